"""Requests to fuzz with: calls of the six APIs and their neighbours, with a marked text put anywhere, then damaged.

What is drawn depends on the seed alone (and on the seed bodies). Paths, methods, headers, bodies and encodings are each
mutated by themselves, most requests in one or two ways only: a request that is damaged all over is refused at once.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import zlib
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from random import Random
from typing import Any, NamedTuple, TypeVar

import brotli
import orjson
import zstandard

MARK = "classified-codeword"
HALVES = ("classified-", "codeword")
CASES = os.environ.get("POINTSMAN_CASES", "")
"""A folder of further request bodies, each in a file `API-whatever.json`; empty: there is none."""

T = TypeVar("T")


class Case(NamedTuple):
    """One HTTP request as Envoy tells of it. `pieces` (full duplex): where the body is cut; `end`: it has none."""

    path: str
    headers: tuple[tuple[str, str], ...]
    body: bytes
    end: bool
    pieces: int


def _chat(content: Any, **more: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": content}], **more}


_TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}
_SEEDS: list[tuple[str, Any]] = [
    ("/v1/chat/completions", _chat("hi")),
    ("/v1/chat/completions", _chat([{"type": "text", "text": "hi"}, {"type": "text", "text": "there"}])),
    ("/v1/chat/completions", _chat("hi", tools=[_TOOL], stream=True, response_format={"type": "json_object"})),
    (
        "/v1/chat/completions",
        {
            "model": "auto",
            "messages": [
                {"role": "system", "content": "be brief"},
                {"role": "user", "content": "hi", "name": "n"},
                {
                    "role": "assistant",
                    "content": None,
                    "reasoning_content": "r",
                    "tool_calls": [{"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}],
                },
                {"role": "tool", "tool_call_id": "c", "content": [{"type": "text", "text": "ok"}]},
            ],
        },
    ),
    ("/v1/chat/completions", _chat([{"type": "file", "file": {"file_data": "data:text/plain;base64,aGk="}}])),
    ("/v1/chat/completions", _chat([{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}])),
    ("/v1/chat/completions", _chat("hi", documents=[{"title": "t", "text": "x"}], chat_template="{{x}}")),
    ("/v1/completions", {"model": "auto", "prompt": "hi", "suffix": "x"}),
    ("/v1/completions", {"model": "auto", "prompt": ["hi", "there"]}),
    ("/v1/completions", {"model": "auto", "prompt": [["hi"], ["there"]]}),
    ("/v1/embeddings", {"model": "auto", "input": ["hi", "there"]}),
    ("/v1/embeddings", {"model": "auto", "input": [{"content": [{"type": "text", "text": "hi"}]}]}),
    ("/v1/responses", {"model": "auto", "input": "hi", "instructions": "be brief"}),
    (
        "/v1/responses",
        {
            "model": "auto",
            "input": [
                {"role": "user", "content": [{"type": "input_text", "text": "hi"}]},
                {"type": "reasoning", "id": "r", "summary": [{"type": "summary_text", "text": "s"}]},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "output": [{"type": "input_text", "text": "ok"}]},
                {"type": "mcp_call", "id": "m", "name": "f", "server_label": "s", "arguments": "{}", "output": "o"},
                {"type": "code_interpreter_call", "id": "i", "code": "x", "outputs": [{"type": "logs", "logs": "l"}]},
                {"type": "shell_call_output", "call_id": "s", "output": [{"stdout": "o", "stderr": "e"}]},
            ],
        },
    ),
    ("/v1/responses", {"model": "auto", "prompt": {"id": "p", "variables": {"q": "v"}}}),
    ("/v1/messages", {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]}),
    (
        "/v1/messages",
        {
            "model": "auto",
            "max_tokens": 9,
            "system": [{"type": "text", "text": "be brief"}, {"type": "text", "text": "be kind"}],
            "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object", "properties": {"q": {}}}}],
            "messages": [
                {"role": "user", "content": "hi"},
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": "t", "signature": "AA=="},
                        {"type": "tool_use", "id": "t", "name": "f", "input": {"q": "v"}},
                    ],
                },
                {
                    "role": "user",
                    "content": [
                        {
                            "type": "tool_result",
                            "tool_use_id": "t",
                            "content": [{"type": "text", "text": "ok"}, {"type": "text", "text": "so"}],
                        },
                        {"type": "text", "text": "go on"},
                    ],
                },
            ],
        },
    ),
    (
        "/v1/messages",
        {
            "model": "auto",
            "max_tokens": 9,
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "document", "title": "t", "source": {"type": "text", "data": "x"}},
                        {"type": "document", "source": {"type": "base64", "media_type": "text/plain", "data": "aGk="}},
                        {
                            "type": "document",
                            "source": {
                                "type": "content",
                                "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
                            },
                        },
                    ],
                }
            ],
        },
    ),
    ("/v1beta/models/auto:generateContent", {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}),
    ("/v1/projects/p/publishers/google/models/auto:generateContent", {"contents": {"parts": {"text": "hi"}}}),
    (
        "/v1beta/models/auto:streamGenerateContent?alt=sse",
        {
            "system_instruction": {"parts": [{"text": "be brief"}, {"text": "be kind"}]},
            "contents": [
                {"parts": [{"text": "hi"}, {"inlineData": {"mimeType": "image/png", "data": "AAAA"}}]},
                {
                    "role": "model",
                    "parts": [
                        {"text": "t", "thought": True, "thoughtSignature": "AA=="},
                        {"functionCall": {"name": "f", "args": {"q": "v"}}},
                        {"executableCode": {"language": "PYTHON", "code": "x"}},
                        {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
                    ],
                },
                {
                    "role": "user",
                    "parts": [{"functionResponse": {"name": "f", "response": {"a": "b"}}}, {"text": "go"}],
                },
                {"role": "user", "parts": [{"inline_data": {"mime_type": "text/plain", "data": "aGk="}}]},
            ],
            "tools": [{"functionDeclarations": [{"name": "f", "description": "d", "parameters": {"type": "OBJECT"}}]}],
            "generationConfig": {"maxOutputTokens": 9, "responseSchema": {"type": "OBJECT"}, "stopSequences": ["x"]},
        },
    ),
    (
        "/v1beta/models/auto:countTokens",
        {"generateContentRequest": {"model": "models/auto", "contents": [{"parts": [{"text": "hi"}]}]}},
    ),
]


def _json(value: Any) -> bytes:
    try:
        return orjson.dumps(value)
    except TypeError:  # too deep for it
        return json.dumps(value).encode()


def seeds() -> list[tuple[str, bytes]]:
    """Paths and bodies to begin with: those above, and the files of `POINTSMAN_CASES`, if it is set."""
    found = [(path, orjson.dumps(body)) for path, body in _SEEDS]
    for file in sorted(Path(CASES).glob("*.json")) if CASES else ():
        document = json.loads(file.read_bytes())
        api = file.name.partition("-")[0]
        path = {"chat": "/v1/chat/completions"}.get(api, f"/v1/{api}")
        for one in document.get("bodies", document.get("requests", [document])):
            body = one.get("body", one) if isinstance(one, dict) else None
            if isinstance(body, dict) and len(body) > 1:
                text = json.dumps(body).replace(MARK, "hi").encode()
                found.append((one.get("path", path).partition(" ")[0], text))
    return [(path, body) for path, body in found if path.startswith("/")]


_PATHS = (
    "/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses", "/v1/messages",
    "/v1/messages/count_tokens", "/v1/responses/compact", "/v1/responses/input_tokens", "/v1/models", "/v1/models/auto",
    "/v1/responses/resp_1", "/v1/responses/resp_1/cancel", "/v1/responses/resp_1/input_items",
    "/v1/messages/batches", "/generate", "/invocations", "/api/chat", "/api/generate", "/completion", "/infill",
    "/tokenize", "/detokenize", "/v1/rerank", "/v1/score", "/pooling", "/classify", "/v1/images/generations",
    "/v1/audio/speech", "/v1/audio/transcriptions", "/v1/batches", "/v1/files", "/inference/v1/generate",
    "/v1beta/models/auto:generateContent", "/v1/models/auto:streamGenerateContent", "/v1beta/models/auto:countTokens",
    "/v1/projects/p/publishers/google/models/large:generateContent", "/v1beta/models/m:embedContent",
    "/v1beta/tunedModels/m:generateContent", "/model/m/converse", "/v1/threads", "/v1/conversations", "/",
)  # fmt: skip
_PREFIXES = (
    "", "", "", "/api", "/gateway/v1", "/x", "/openai", "/v1beta/openai", "/openai/deployments/auto", "/v1/models",
    "/v1/responses", "/openai/deployments/large", "/OpenAI/Deployments/auto", "/v2", "/a/b/c", "/v1",
)  # fmt: skip
_QUERIES = ("?api-version=2024-10-21", "?", "?beta=true", "?x=%0a&y", "#f", "?/v1/models", "?a#b")
_BITS = (
    "%0a", "%0A", "%0d%0a", "%00", "%09", "%20", "\t", ";x", ";x=/y", "//", "/", "/.", "/./", "/..", "/x/..", "/%2e%2e",
    "/%2e%2e/", "/x/%2e%2E/", "\\", "%5c", "%255c", "%2f", "%252f", "%3f", "%23", "%ff", "%c0%af", "%u0063", "%", "%25",
    "%2525252f", "%e2%84%aa", "%c5%bf", "\u212a", "%c2%a0", "%e2%80%a8", "\x7f", "%7f", "%3b", ".json", ":x", "*", "+",
    " ", "..;/", "/v1", "~", "%1f", "%85",
)  # fmt: skip
_METHODS = ("GET", "HEAD", "PUT", "PATCH", "DELETE", "OPTIONS", "CONNECT", "post", "QUERY", "TRACE")
_TYPES = (
    "application/json; charset=utf-8", "text/plain", "application/x-www-form-urlencoded", "", "APPLICATION/JSON",
    "application/json;charset=utf-16", 'application/json; charset="utf-7"', "application/json,application/json",
    "application/problem+json", "multipart/form-data; boundary=x", "application/json; charset          =utf-16",
    "text/json", "application/octet-stream", "application/x-ndjson", "*/*", "application/json; charset=utf8",
    "application/json;charset=utf-8,application/json;charset=latin-1", "application/cbor", "application/msgpack", "x",
)  # fmt: skip
_ENCODINGS = (
    "gzip", "deflate", "br", "zstd", "x-gzip", "GZIP", "identity", "", "Identity", "gzip,identity", "gzip, gzip", "br,",
    "compress", "aws-chunked", "snappy", "lz4", "gzip;q=1", "\tgzip", "none", "utf-8",
)  # fmt: skip
_MORE = (
    ("upgrade", "websocket"), ("upgrade", "h2c"), ("x-pointsman-route", "large"), ("x-pointsman-model", "x"),
    ("expect", "100-continue"), ("anthropic-version", "2023-06-01"), ("x-goog-api-key", "k"),
    ("content-length", "99999999999"),
    ("content-length", "12"), ("content-type", "application/json"), ("content-type", "text/plain; charset=utf-16"),
    ("content-encoding", "gzip"), ("content-encoding", "identity"), ("x-http-method-override", "PUT"),
    ("authorization", "Bearer k"), (":protocol", "websocket"), ("x-é", "ü"), ("transfer-encoding", "chunked"),
)  # fmt: skip
_KEYS = (
    "model", "messages", "prompt", "input", "instructions", "system", "tools", "functions", "documents", "suffix",
    "content", "role", "type", "text", "name", "tool_calls", "tool_call_id", "function", "arguments", "output",
    "thinking", "reasoning_content", "reasoning", "refusal", "title", "context", "source", "data", "media_type",
    "file", "file_id", "file_url", "file_data", "filename", "url", "image_url", "input_audio", "audio", "results",
    "result", "outputs", "error", "query", "queries", "action", "command", "id", "status", "summary", "annotations",
    "encrypted_content", "signature", "prompt_embeds", "input_ids", "chat_template", "chat_template_kwargs", "format",
    "response_format", "stop", "tool_choice", "guided_json", "variables", "previous_response_id", "conversation",
    "parameters", "properties", "description", "enum", "default", "input_schema", "cache_control", "detail", "object",
    "contents", "parts", "systemInstruction", "system_instruction", "generationConfig", "generation_config",
    "inlineData", "inline_data", "mimeType", "mime_type", "fileData", "functionCall", "function_call", "args",
    "functionResponse", "function_response", "response", "thought", "thoughtSignature", "executableCode", "code",
    "codeExecutionResult", "toolConfig", "functionDeclarations", "responseSchema", "cachedContent", "cached_content",
    "generateContentRequest", "generate_content_request", "labels", "instances", "Contents", "INLINEDATA", "toolCall",
    "requests", "params", "verbosity", "effort", "key", "x", "", "é", "Messages", "MODEL", "Content", "tExt", "Input",
    "\u017fystem", "instruction\u017f", "to\u212aens", "citations", "caller", "container", "tool_use_id", "args",
)  # fmt: skip
_PART_TYPES = (
    "text", "Text", "input_text", "output_text", "image_url", "file", "input_file", "document", "tool_use",
    "tool_result", "mcp_tool_result", "web_search_tool_result", "thinking", "redacted_thinking", "refusal", "audio",
    "search_result", "container_upload", "new_thing", "input_image", "video_url", "summary_text", None, 3,
)  # fmt: skip
_ITEM_TYPES = (
    "message", "MESSAGE", "function_call", "function_call_output", "reasoning", "item_reference", "mcp_call",
    "mcp_list_tools", "mcp_approval_request", "custom_tool_call", "custom_tool_call_output", "computer_call_output",
    "local_shell_call_output", "shell_call", "shell_call_output", "file_search_call", "code_interpreter_call",
    "web_search_call", "image_generation_call", "apply_patch_call_output", "compaction", "newer", None, 3, True,
)  # fmt: skip
_ROLES = ("user", "User", "system", "developer", "assistant", "tool", "function", "model", "other", None, 3, "")
_IDS = (
    "[1,2,3]",
    "[[1,2],[3]]",
    "[[[1,2,3]]]",
    "[1.0,2.0]",
    '[["hi",1.0]]',
    '["hi",[5,6]]',
    "[true]",
    "[[true,false]]",
)
_SCALARS = ("null", "true", "0", "-1.5", "4111111111111111", '""', "[]", "{}", '"x"', '"auto"')
_PAD = "A" * 600


class Grammar:
    """Makes requests, one after the other."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._draw = self._random.random
        self._seeds = seeds()

    def request(self) -> Case:
        """The next request."""
        draw = self._draw
        path, body = self._of(self._seeds)
        if draw() < 0.0002:
            body = self._large()
        elif draw() < 0.75:
            body = self._body(body)
        if draw() < 0.35:
            path = self._path(path)
            if draw() < 0.002:
                path += self._of(_BITS) * int(draw() * 16_000)
        method = "POST" if draw() < 0.93 else self._of(_METHODS)
        kind = "application/json" if draw() < 0.9 else self._of(_TYPES)
        headers = [(":method", method), (":authority", "api"), (":scheme", "http"), ("content-type", kind)]
        if draw() < 0.1:
            name = self._of(_ENCODINGS)
            body = self._encoded(body, name if draw() < 0.9 else self._of(_ENCODINGS))
            headers.append(("content-encoding", name))
        if draw() < 0.06:
            headers.append(self._of(_MORE))
        end = not body or draw() < 0.02 or (method != "POST" and draw() < 0.7)
        return Case(path, tuple(headers), b"" if end else body, end, 1 + int(draw() * 3))

    def _of(self, values: Sequence[T]) -> T:
        return values[int(self._draw() * len(values))]

    # Paths

    def _path(self, path: str) -> str:
        draw = self._draw
        kind = draw()
        if kind < 0.3:
            path = self._of(_PATHS)
        elif kind < 0.5 and path.startswith("/v1"):
            path = path[3:]
        if draw() < 0.4:
            path = self._of(_PREFIXES) + path
        for _ in range(int(draw() * 3.3)):
            at = int(draw() * (len(path) + 1)) if draw() < 0.7 else len(path)
            kind = draw()
            if kind < 0.45:
                path = path[:at] + self._of(_BITS) + path[at:]
            elif kind < 0.65 and at < len(path):
                escaped = f"%{ord(path[at]) & 255:02x}"
                for _ in range(int(draw() * 1.7)):
                    escaped = escaped.replace("%", "%25", 1)
                path = path[:at] + escaped + path[at + 1 :]
            elif kind < 0.8:
                path = path[:at] + path[at:].swapcase() if draw() < 0.5 else path.upper()
            elif kind < 0.9:
                path = path[:at] + path[at + 1 :]
            else:
                path += self._of(_QUERIES)
        return path

    # Bodies

    def _body(self, body: bytes) -> bytes:
        """A body changed in its structure, as text, or both."""
        draw = self._draw
        fields = orjson.loads(body)
        for _ in range(1 + int(draw() * 1.6)):
            self._change(fields)
        body = _json(fields)
        return self._respelled(body) if draw() < 0.3 else body

    def _change(self, fields: Any) -> None:
        """One change somewhere in `fields`."""
        draw = self._draw
        node = fields
        for _ in range(8):
            below = [v for v in (node.values() if type(node) is dict else node) if (type(v) is dict or type(v) is list)]
            if not below or draw() < 0.2:
                break
            node = self._of(below)
        if type(node) is list:
            at = int(draw() * (len(node) + 1))
            if node and draw() < 0.5:
                node[at : at + 1] = [self._value()]
            else:
                node.insert(at, self._value())
            return
        kind = draw()
        if node and kind < 0.45:
            key = self._of(list(node))
            node[key] = self._value(key)
        elif node and kind < 0.55:
            key = self._of(list(node))
            new = (key.capitalize(), key.upper(), MARK, f"{key} ", self._of(_KEYS))[int(draw() * 5)]
            node[new] = node.pop(key)
        else:
            key = self._of(_KEYS)
            node[key] = self._value(key)

    def _value(self, key: str = "") -> Any:
        """Something to put under `key`, mostly with the marked text in it."""
        draw = self._draw
        if key == "type":
            return self._of(_PART_TYPES if draw() < 0.5 else _ITEM_TYPES) if draw() < 0.9 else self._text()
        if key == "role" and draw() < 0.7:
            return self._of(_ROLES)
        kind = draw()
        if kind < 0.45:
            return self._text()
        if kind < 0.55:
            return self._split()
        if kind < 0.7:
            return self._part()
        if kind < 0.75:
            return [self._part() for _ in range(int(draw() * 3))]
        if kind < 0.8:
            return {self._of(_KEYS): self._value()}
        if kind < 0.84:
            return {self._text(): self._of(("x", 1, None))}
        if kind < 0.88:
            return orjson.loads(self._of(_IDS))
        if kind < 0.93:
            return self._item()
        if kind < 0.96:
            value = self._value()
            for _ in range(int(draw() * 40)):
                value = [value] if draw() < 0.3 else {self._of(_KEYS): value}
            return value
        return orjson.loads(self._of(_SCALARS))

    def _text(self) -> str:
        """The marked text, in one way or another."""
        kind = self._draw()
        if kind < 0.5:
            return MARK
        if kind < 0.6:
            return f"say {MARK} now"
        if kind < 0.66:
            return MARK.upper() if kind < 0.63 else MARK.title()
        if kind < 0.72:
            return f"{_PAD}/{MARK}"
        if kind < 0.76:
            return f"data:text/plain,{_PAD},{MARK}"
        if kind < 0.8:
            return f"data:image/png;base64,{_PAD}/{MARK}"
        if kind < 0.83:
            return f"data:text/plain;base64,{base64.b64encode(MARK.encode()).decode()}"
        if kind < 0.86:
            return base64.b64encode(f"so {MARK}".encode()).decode()
        if kind < 0.88:
            return MARK.replace("-", "%2D")
        return "hi"

    def _split(self) -> list[Any]:
        """The marked text in two parts, which some templates join with nothing."""
        if self._draw() < 0.25:
            return list(HALVES)
        kind = self._of(("text", "text", "input_text", "output_text"))
        return [{"type": kind, "text": half} for half in HALVES]

    def _part(self) -> dict[str, Any]:
        part: dict[str, Any] = {"type": self._of(_PART_TYPES)}
        for _ in range(1 + int(self._draw() * 2)):
            key = self._of(("text", "content", "source", "input", "data", "name", "output", self._of(_KEYS)))
            part[key] = self._value(key)
        return part

    def _item(self) -> dict[str, Any]:
        item: dict[str, Any] = {"type": self._of(_ITEM_TYPES), "id": "i"}
        for _ in range(1 + int(self._draw() * 2)):
            key = self._of(("output", "results", "arguments", "content", "summary", self._of(_KEYS)))
            item[key] = self._value(key)
        return item

    def _respelled(self, body: bytes) -> bytes:
        """The same body in other bytes, or nearly: keys twice, escapes, space, what is no JSON."""
        draw = self._draw
        kind = draw()
        if kind < 0.35:  # a key a second time, before or after
            key, value = _json(self._of(_KEYS)), _json(self._value())
            if draw() < 0.3:
                key = key.replace(b"e", b"\\u0065")
            at = int(draw() * len(body)) if draw() < 0.5 else 0
            if draw() < 0.5:
                at = body.find(b"{", at) + 1
                return body[:at] + key + b":" + value + b"," + body[at:]
            at = body.rfind(b"}", at)
            return body[:at] + b"," + key + b":" + value + body[at:]
        if kind < 0.6:
            letter = self._of((b"c", b"m", b"e", b"o", b"t", b'"c', b"s"))
            count = 1 if draw() < 0.5 else -1
            return body.replace(letter, letter[:-1] + b"\\u%04x" % letter[-1], count)
        if kind < 0.7:
            return body.replace(b":", b" :\r\n\t").replace(b",", b" , ")
        if kind < 0.8:
            at = int(draw() * len(body))
            return body[:at] + self._of((b"\0", b"\xff", b"\xc3\xa9", b"\\", b'"', b"{", b"]", b",", b"\n")) + body[at:]
        if kind < 0.85:
            return body[: int(draw() * len(body))]
        if kind < 0.9:
            return body + self._of((b"{}", b"\0", b"//", b"\n", b" ", b",", body))
        if kind < 0.95:
            return self._of((b"\xef\xbb\xbf", b" ", b"\n", b"[", b"\0", b"//\n", b")]}',\n")) + body
        return body.decode(errors="replace").encode(self._of(("utf-16", "utf-16-le", "utf-32", "utf-7")))

    def _large(self) -> bytes:
        """Up to 500 kB that could take long to read."""
        return self._of(_larges())

    # Encodings

    def _encoded(self, body: bytes, name: str) -> bytes:
        draw = self._draw
        name = name.strip().lower()
        if "gzip" in name:
            body = gzip.compress(body, 1)
            if draw() < 0.1:
                body += body
        elif name == "deflate":
            body = zlib.compress(body, 1) if draw() < 0.7 else zlib.compress(body, 1)[2:-4]
        elif name.startswith("br"):
            body = bytes(brotli.compress(body, quality=1))
        elif name == "zstd":
            body = _ZSTD.compress(body)
            if draw() < 0.1:
                body += _ZSTD.compress(b" ")
        if draw() < 0.1:
            at = int(draw() * len(body))
            body = body[:at] + self._of((b"", b"\0", body[:20])) + body[at + 1 :]
        return body


_ZSTD = zstandard.ZstdCompressor(level=1)


@lru_cache
def _larges() -> list[bytes]:
    return [
        orjson.dumps(_chat("ab " * 160_000)),
        orjson.dumps(_chat("é" * 160_000)),
        orjson.dumps(_chat([{"type": "text", "text": "x"}] * 14_000)),
        orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "x"}] * 12_000}),
        b"{" + b'"model":"auto",' * 30_000 + b'"messages":[{"role":"user","content":"hi"}]}',
        b'{"messages":[{"role":"user","content":"hi"}],"x":' + b"[" * 250_000 + b"]" * 250_000 + b"}",
        orjson.dumps(_chat("hi", x=[0] * 190_000)),
        orjson.dumps(_chat("hi", x={f"k{number}": number for number in range(30_000)})),
        orjson.dumps({"model": "auto", "prompt": list(range(80_000))}),
        b'{"messages":[{"role":"user","content":"' + b"\\u0041" * 80_000 + b'"}],"model":"auto"}',
        b'{"messages":[{"role":"user","content":"' + b'\\\\\\"' * 110_000 + b'"}],"\\u006dodel":"auto"}',
        b'{"model":"auto","messages":[{"role":"user","content":"hi"}],"n":' + b"9" * 400_000 + b"}",
        b'{"a":1,"a":2,"messages":[{"role":"user","content":"hi"}],"n":' + b"9" * 400_000 + b"}",
        b'{"model":"auto","messages":[{"role":"user","content":"hi"}]' + b" " * 450_000 + b"}",
        orjson.dumps(_chat("\U000e0041" * 100_000)),
        orjson.dumps(_chat("\ufdfa" * 100_000)),
        orjson.dumps(_chat("e" + "\u0301" * 100_000)),
    ]
