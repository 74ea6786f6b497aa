"""Lenient model servers, modelled: what they would make of a request, and whether the model would see the marked text.

Written apart from what it judges: nothing here comes from `extproc`. A server is a way to read a path and a way to read
a body, and every way of the one goes with every way of the other. What a server shows the model is taken to be every
key and every string, but for those that the APIs keep from it; texts of one list are also joined, as templates do.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import parse_qsl, unquote

from tests.fuzz.grammar import HALVES, MARK

# Paths

_CALLS = {
    "/chat/completions": "chat",
    "/completions": "completions",
    "/embeddings": "embeddings",
    "/responses": "responses",
    "/responses/compact": "responses",
    "/responses/input_tokens": "responses",
    "/messages": "messages",
    "/messages/count_tokens": "messages",
}
_OTHERS = (
    "/generate", "/invocations", "/api/chat", "/api/generate", "/completion", "/infill", "/tokenize", "/detokenize",
    "/v1/rerank", "/v1/score", "/pooling", "/classify", "/v1/images/generations", "/v1/audio/speech", "/v1/batches",
    "/v1/audio/transcriptions", "/v1/messages/batches", "/inference/v1/generate", "/v1/files", "/converse",
)  # fmt: skip
_ROUTES = sorted([*_CALLS, *_OTHERS], key=len, reverse=True)


def _fastapi(path: str) -> str:
    """One decoding; a route's pattern ends with `$`, which also fits before a newline at the end."""
    return unquote(path).removesuffix("\n")


def _express(path: str) -> str:
    """Without regard to case, and to a slash at the end."""
    return unquote(path).lower().rstrip("/")


def _twice(path: str) -> str:
    return unquote(unquote(path))


def _normal(path: str) -> str:
    """As servlet containers and proxies do: parameters, empty and dot segments are removed."""
    kept: list[str] = []
    for segment in unquote(path).replace("\\", "/").split("/"):
        segment = segment.partition(";")[0]
        if segment == "..":
            kept = kept[:-1]
        elif segment not in ("", "."):
            kept.append(segment.strip())
    return "/" + "/".join(kept)


def _cut(path: str) -> str:
    """Up to the first NUL."""
    return unquote(path).partition("\0")[0]


_GOOGLE = re.compile(
    r"(?:.*/v[0-9][a-z0-9]*|.*/publishers/[^/]+|)/models/.+:(?:generateContent|streamGenerateContent|countTokens)",
    re.IGNORECASE,
)
_READERS: tuple[Callable[[str], str], ...] = (_fastapi, _express, _twice, _normal, _cut)
_PLAIN = {prefix + call: api for call, api in _CALLS.items() for prefix in ("", "/v1", "/openai/v1")}


def calls(path: str) -> set[str]:
    """The APIs that servers take `path` for; `other` is a call of another kind that shows a text to a model."""
    path = path.partition("#")[0].partition("?")[0]
    if (api := _PLAIN.get(path)) is not None:
        return {api}
    found = set()
    for read in _READERS:
        seen = read(path)
        if _GOOGLE.fullmatch(seen):
            found.add("gemini")
            continue
        for route in _ROUTES:
            if seen.endswith(route):
                found.add(_CALLS.get(route, "other"))
                break
    return found


# Bodies


def _last(pairs: list[tuple[str, Any]]) -> Any:
    return dict(pairs)


def _first(pairs: list[tuple[str, Any]]) -> Any:
    return dict(reversed(pairs))


def _folded(pairs: list[tuple[str, Any]]) -> Any:
    """As Go's encoding/json fills a struct: keys without regard to case, the last one counts."""
    return {key.casefold(): value for key, value in pairs}


def readings(body: bytes) -> Iterator[Any]:
    """What lenient readers make of the JSON in `body`."""
    text = body.decode("utf-8", "replace").removeprefix("\ufeff")
    found: list[Any] = []
    for hook in (_last, _first, _folded):
        try:
            value, _ = json.JSONDecoder(strict=False, object_pairs_hook=hook).raw_decode(text.lstrip(" \r\n\t\0"))
        except (ValueError, RecursionError):
            continue
        if value not in found:
            found.append(value)
            yield value


_HIDDEN = frozenset(
    (
        "model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "include", "cache_salt",
        "encoding_format", "previous_response_id", "conversation", "truncation",
    )
)  # fmt: skip
_HIDDEN_BY_GOOGLE = frozenset(("model", "cachedcontent", "labels", "servicetier", "store", "safetysettings"))
_TURNS = frozenset(
    (
        "messages", "input", "system", "instructions", "prompt", "contents", "systemInstruction", "system_instruction",
        "systeminstruction", "generateContentRequest", "generate_content_request", "generatecontentrequest",
    )
)  # fmt: skip
_CALLED = frozenset(("input", "arguments", "parameters", "input_schema", "args", "response"))
_FORMS = frozenset(
    (
        "input_image", "image_url", "image", "output_image", "computer_screenshot", "base64", "file", "input_file",
        "document", "audio", "input_audio", "audio_url", "video", "video_url", "input_video", "thinking",
        "redacted_thinking", "reasoning", "container_upload",
    )
)  # fmt: skip
_MEDIA = frozenset(("image_url", "file", "input_audio", "source", "inlineData", "inline_data", "inlinedata"))
"""In a part of those types, or below these keys of a message, a string of base64 is decoded and never shown as text."""
_MEDIA_TYPES = ("media_type", "mimeType", "mime_type", "mimetype")
_SEALED = {"thinking": "signature", "redacted_thinking": "data", "reasoning": "encrypted_content"}
_ENCODED = re.compile(r"data:[a-z/+-]*;base64,[A-Za-z0-9+/]*=*|[A-Za-z0-9+/_-]*=*")
_TEXT_DATA = re.compile(r"data:text/[a-z0-9.+-]*(;[^,]*)?", re.IGNORECASE)


def _hidden(api: str, key: str) -> bool:
    if api == "gemini":
        return _plain(key) in _HIDDEN_BY_GOOGLE
    return key in _HIDDEN


def _plain(key: str) -> str:
    """The name of a field of Google's, however it is spelled."""
    return key.lower().replace("_", "")


def shows(fields: Any, api: str = "chat") -> str | None:
    """In which way the model would see the marked text in the body `fields`; None where it would not."""
    if type(fields) is not dict:
        return None
    # What a template or a tool is called with reaches the model as it is, whatever it looks like.
    stack = [(value, key not in _TURNS, False) for key, value in fields.items() if not _hidden(api, key)]
    if any(not _hidden(api, key) and MARK in key.lower() for key in fields):
        return "plain"
    joined = None
    while stack:
        value, text, inside = stack.pop()
        if type(value) is str:
            if MARK in value.lower():
                return "plain"
        elif type(value) is dict:
            media = next((value[name] for name in _MEDIA_TYPES if name in value), None)
            image = not text and (inside or _is_image(value))
            for key, item in value.items():
                if MARK in key.lower():
                    return "plain"
                if type(item) is not str:
                    stack.append((item, text or key in _CALLED, key in _MEDIA))
                elif not text and key in ("data", "file_data") and MARK in _decoded(item, media):
                    return "decoded"
                elif not text and _seals(key, value) and " " not in item:
                    continue
                elif MARK in item.lower() and not (image and _base64(item)):
                    return "plain"
        elif type(value) is list:
            stack += [(item, text, False) for item in value]
            if MARK in "".join([_own_text(item) for item in value]).lower():
                joined = "joined"
    return joined


def _seals(key: str, part: dict[str, Any]) -> bool:
    """Whether what stands at `key` of a part is a signature, or a thought that only its model can open."""
    return key == _SEALED.get(str(part.get("type"))) or _plain(key) == "thoughtsignature"


def _is_image(part: dict[str, Any]) -> bool:
    """Whether `part` is of a form whose data is decoded as an image or sound, and never shown as text."""
    kind = part.get("type")
    fitting = type(kind) is str and kind.lower() in _FORMS
    return fitting or part.keys() <= {"url", "detail"} or part.keys() == {"data", "format"}


def _base64(value: str) -> bool:
    """Whether a decoder of base64 takes all of `value`, in a `data:` URL or alone, in the alphabet of URLs too."""
    return _ENCODED.fullmatch(value) is not None


def _own_text(part: Any) -> str:
    if type(part) is str:
        return part
    text = part.get("text") if type(part) is dict else None
    return text if type(text) is str else ""


def _decoded(data: str, media: Any) -> str:
    """The text of a document that says it is text."""
    if (found := _TEXT_DATA.match(data)) is not None:
        kind, data = found[0], data[found.end() + 1 :]
        if not kind.endswith(";base64"):
            return unquote(data).lower()
    elif type(media) is not str or not media.startswith("text/"):
        return ""
    try:
        return base64.b64decode(data).decode("utf-8", "replace").lower()
    except ValueError:
        return ""


def shows_unread(api: str, fields: Any) -> str | None:
    """What stands for text that no reader of the body can read: token ids and references; None where nothing does."""
    if type(fields) is not dict:
        return None
    if api in ("completions", "embeddings"):
        prompt = fields.get("prompt" if api == "completions" else "input")
        if type(prompt) is list and _numbers(prompt):
            return "token ids"
        if api == "completions" and fields.get("prompt_embeds"):
            return "embeddings"
    if api == "gemini":
        inner = [value for key, value in fields.items() if _plain(key) == "generatecontentrequest"]
        for one in (fields, *inner):
            if type(one) is dict and any(_plain(key) == "cachedcontent" and one[key] is not None for key in one):
                return "cachedContent"
    if api == "responses":
        for key in ("previous_response_id", "conversation"):
            if fields.get(key) is not None:
                return key
    return None


def names(path: str, api: str, fields: dict[str, Any]) -> Any:
    """The model that a reader of the path and the body takes the call for; None where they disagree."""
    if api != "gemini":
        return fields.get("model")
    path = unquote(path.partition("?")[0])
    model = path[path.index("/models/") + 8 :].rpartition(":")[0]
    return model if fields.get("model") in (None, model, f"models/{model}") else None


def _numbers(prompt: list[Any]) -> bool:
    """Whether a lax reader takes some of this for token ids: numbers in lists."""
    return any(type(item) in (int, float, bool) or (type(item) is list and _numbers(item)) for item in prompt)


def form(body: bytes) -> bool:
    """Whether a reader of forms would find the marked text in a body that looks like one."""
    if b"%" not in body:
        return False
    return any(MARK in value.lower() for _, value in parse_qsl(body.decode("utf-8", "replace")))


def may_show(body: bytes) -> bool:
    """Whether it is worth looking closer: some piece of the marked text, or an escape that could be one, is there."""
    low = body.lower()
    return (
        HALVES[0][:5].encode() in low
        or b"\\u" in low
        or b"codew" in low
        or b"media" in low
        or b"data:" in low
        or b"%" in low
    )
