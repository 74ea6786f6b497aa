"""An echo model behind the OpenAI and Anthropic APIs, on nothing but asyncio.

It answers with its own name and the last user text, streamed word by word when asked to, and refuses a request for any
other model as a real server does, so that a missing rewrite of `model` shows. Tokens are words.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

Json = dict[str, Any]
Event = tuple[str | None, Json | str]  # SSE event name (Anthropic and /v1/responses have one) and data

MAX_HEAD_BYTES = 65_536
MAX_BODY_BYTES = 128 * 1_048_576


class BadRequest(Exception):
    """Answered with `status` and the text, in the shape of the API that was called."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Echo:
    """One model. `serve` is the client callback of `asyncio.start_server`."""

    def __init__(self, name: str, delay: float = 0.0) -> None:
        self.name = name
        self.delay = delay
        self._apis: dict[str, tuple[Callable[[Json], Json], Callable[[Json], list[Event]] | None]] = {
            "/v1/chat/completions": (self._chat, self._chat_events),
            "/v1/completions": (self._completion, self._completion_events),
            "/v1/embeddings": (self._embedding, None),
            "/v1/responses": (self._response, self._response_events),
            "/v1/messages": (self._message, self._message_events),
        }

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection until the peer closes it."""
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass  # the peer went away or speaks no HTTP: nobody is left to tell
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        method, target, version = head[0].split(" ", 2)
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        if headers.get("expect", "").lower() == "100-continue":
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        body = await _body(reader, headers)
        path = target.partition("?")[0]
        try:
            if method == "GET" and path == "/v1/models":
                _whole(
                    writer, 200, {"object": "list", "data": [{"id": self.name, "object": "model", "owned_by": "echo"}]}
                )
            elif method == "GET":
                _whole(writer, 200, {"model": self.name, "path": target})
            else:
                await self._call(path, body, writer)
        except BadRequest as error:
            _whole(writer, error.status, _error(path, error))
        await writer.drain()
        return version == "HTTP/1.1" and headers.get("connection", "").lower() != "close"

    async def _call(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path not in self._apis:
            raise BadRequest(404, f"no such path: {path}")
        try:
            fields = json.loads(body)
        except ValueError as error:
            raise BadRequest(400, f"not JSON: {error}") from error
        if not isinstance(fields, dict):
            raise BadRequest(400, "the body must be a JSON object")
        if fields.get("model") != self.name:
            raise BadRequest(404, f"The model {fields.get('model')!r} does not exist; this server has {self.name!r}.")
        answer, events = self._apis[path]
        if fields.get("stream") and events is not None:
            await _stream(writer, events(fields), self.delay)
        else:
            _whole(writer, 200, answer(fields))

    def _text(self, fields: Json) -> str:
        asked = _last_text(fields)
        return f"{self.name} answers: {asked}" if asked else f"{self.name} answers."

    def _id(self, prefix: str) -> str:
        return f"{prefix}-echo-{uuid.uuid4().hex[:12]}"

    # OpenAI chat completions

    def _chat(self, fields: Json) -> Json:
        text = self._text(fields)
        return {
            "id": self._id("chatcmpl"),
            "object": "chat.completion",
            "created": int(time.time()),
            "model": self.name,
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": text},
                    "finish_reason": "stop",
                    "logprobs": None,
                }
            ],
            "usage": _usage(fields, text),
        }

    def _chat_events(self, fields: Json) -> list[Event]:
        text = self._text(fields)
        base: Json = {
            "id": self._id("chatcmpl"),
            "object": "chat.completion.chunk",
            "created": int(time.time()),
            "model": self.name,
        }

        def chunk(delta: Json, finish: str | None = None) -> Event:
            return None, {**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}

        events = [chunk({"role": "assistant", "content": ""})]
        events += [chunk({"content": word}) for word in _words(text)]
        events.append(chunk({}, "stop"))
        if (fields.get("stream_options") or {}).get("include_usage"):
            events.append((None, {**base, "choices": [], "usage": _usage(fields, text)}))
        return [*events, (None, "[DONE]")]

    # OpenAI completions and embeddings

    def _completion(self, fields: Json) -> Json:
        text = self._text(fields)
        choice = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None}
        base = {"id": self._id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": self.name}
        return {**base, "choices": [choice], "usage": _usage(fields, text)}

    def _completion_events(self, fields: Json) -> list[Event]:
        base = {"id": self._id("cmpl"), "object": "text_completion", "created": int(time.time()), "model": self.name}
        words = _words(self._text(fields))
        finishes = [None] * (len(words) - 1) + ["stop"]
        return [
            *(
                (None, {**base, "choices": [{"index": 0, "text": word, "finish_reason": finish, "logprobs": None}]})
                for word, finish in zip(words, finishes, strict=True)
            ),
            (None, "[DONE]"),
        ]

    def _embedding(self, fields: Json) -> Json:
        given = fields.get("input", "")
        texts = given if isinstance(given, list) else [given]
        data = [
            {"object": "embedding", "index": index, "embedding": [float(len(str(text)) % 97), 1.0]}
            for index, text in enumerate(texts)
        ]
        count = sum(len(str(text).split()) for text in texts)
        usage = {"prompt_tokens": count, "total_tokens": count}
        return {"object": "list", "model": self.name, "data": data, "usage": usage}

    # OpenAI responses

    def _response(self, fields: Json, status: str = "completed") -> Json:
        text = self._text(fields)
        usage = _usage(fields, text)
        return {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": self.name,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": fields.get("instructions"),
            "metadata": {},
            "parallel_tool_calls": True,
            "tool_choice": "auto",
            "tools": [],
            "output": [_output_item(text)] if status == "completed" else [],
            "usage": {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            },
        }

    def _response_events(self, fields: Json) -> list[Event]:
        text = self._text(fields)
        whole = self._response(fields)
        started = {**whole, "status": "in_progress", "output": [], "usage": None}
        part = {"type": "output_text", "text": text, "annotations": []}
        where = {"item_id": "msg-echo", "output_index": 0, "content_index": 0}
        steps: list[Json] = [
            {"type": "response.created", "response": started},
            {"type": "response.in_progress", "response": started},
            {
                "type": "response.output_item.added",
                "output_index": 0,
                "item": {**_output_item(""), "status": "in_progress", "content": []},
            },
            {"type": "response.content_part.added", **where, "part": {**part, "text": ""}},
            *({"type": "response.output_text.delta", **where, "delta": word, "logprobs": []} for word in _words(text)),
            {"type": "response.output_text.done", **where, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **where, "part": part},
            {"type": "response.output_item.done", "output_index": 0, "item": _output_item(text)},
            {"type": "response.completed", "response": whole},
        ]
        return [(step["type"], {**step, "sequence_number": number}) for number, step in enumerate(steps)]

    # Anthropic messages

    def _message(self, fields: Json) -> Json:
        text = self._text(fields)
        usage = _usage(fields, text)
        return {
            "id": self._id("msg"),
            "type": "message",
            "role": "assistant",
            "model": self.name,
            "content": [{"type": "text", "text": text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": usage["prompt_tokens"], "output_tokens": usage["completion_tokens"]},
        }

    def _message_events(self, fields: Json) -> list[Event]:
        whole = self._message(fields)
        text = whole["content"][0]["text"]
        usage = whole["usage"]
        steps: list[Json] = [
            {
                "type": "message_start",
                "message": {**whole, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}},
            },
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            *(
                {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": word}}
                for word in _words(text)
            ),
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": usage["output_tokens"]},
            },
            {"type": "message_stop"},
        ]
        return [(step["type"], step) for step in steps]


async def _body(reader: asyncio.StreamReader, headers: dict[str, str]) -> bytes:
    """The request body: chunked (what Envoy sends after a streamed change) or of a declared length."""
    if headers.get("transfer-encoding", "").lower() != "chunked":
        return await reader.readexactly(min(int(headers.get("content-length", "0")), MAX_BODY_BYTES))
    parts: list[bytes] = []
    while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
        parts.append(await reader.readexactly(size))
        await reader.readexactly(2)
    while await reader.readuntil(b"\r\n") != b"\r\n":
        pass  # trailers
    return b"".join(parts)


def _whole(writer: asyncio.StreamWriter, status: int, value: Json) -> None:
    body = json.dumps(value).encode()
    head = f"HTTP/1.1 {status} -\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


async def _stream(writer: asyncio.StreamWriter, events: list[Event], delay: float) -> None:
    writer.write(b"HTTP/1.1 200 -\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
    async for data in _paced(events, delay):
        writer.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")
        await writer.drain()
    writer.write(b"0\r\n\r\n")


async def _paced(events: list[Event], delay: float) -> AsyncIterator[bytes]:
    for name, data in events:
        line = data if isinstance(data, str) else json.dumps(data)
        yield (f"event: {name}\n" if name else "").encode() + f"data: {line}\n\n".encode()
        if delay:
            await asyncio.sleep(delay)


def _error(path: str, error: BadRequest) -> Json:
    kind = "not_found_error" if error.status == 404 else "invalid_request_error"
    if path == "/v1/messages":
        return {"type": "error", "error": {"type": kind, "message": str(error)}}
    return {"error": {"message": str(error), "type": kind, "param": None, "code": None}}


def _last_text(fields: Json) -> str:
    given = fields.get("messages", fields.get("input", fields.get("prompt", "")))
    if isinstance(given, list):
        users = [m for m in given if isinstance(m, dict) and m.get("role") == "user"]
        given = users[-1].get("content") if users else (given[-1] if given and isinstance(given[-1], str) else "")
    if isinstance(given, list):
        given = " ".join(str(part.get("text", "")) for part in given if isinstance(part, dict))
    return given if isinstance(given, str) else ""


def _words(text: str) -> list[str]:
    words = text.split(" ")
    return [word if index == 0 else " " + word for index, word in enumerate(words)]


def _usage(fields: Json, text: str) -> Json:
    asked = len(_last_text(fields).split())
    said = len(text.split())
    return {"prompt_tokens": asked, "completion_tokens": said, "total_tokens": asked + said}


def _output_item(text: str) -> Json:
    content = [{"type": "output_text", "text": text, "annotations": []}]
    return {"id": "msg-echo", "type": "message", "role": "assistant", "status": "completed", "content": content}
