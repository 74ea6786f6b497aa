"""An answer with a fixed text, in the normal shape of the API that was called, streamed where the call asks for it.

For guards that answer instead of refusing (`respond: {status: 200, …}`). Shapes after OpenAI's API reference (chat
completions, completions, responses, and their streams) and Anthropic's (messages, and its events).
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import orjson

from signals.request import Api, Request

JSON = "application/json"
EVENTS = "text/event-stream"


class StaticAnswer(NamedTuple):
    """A whole HTTP answer of status 200."""

    content_type: str
    body: bytes


def static_answer(request: Request, text: str) -> StaticAnswer | None:
    """The answer `text` to `request`; None where the call has no answer in words (embeddings, counting tokens)."""
    shape = _SHAPES.get(request.api)
    if shape is None or request.operation:
        return None
    call = _Call(request.model or "auto", text, uuid.uuid4().hex[:24], int(time.time()), request.fields)
    if request.fields.get("stream") is True:
        return StaticAnswer(EVENTS, b"".join(shape[1](call)))
    return StaticAnswer(JSON, orjson.dumps(shape[0](call)))


class _Call(NamedTuple):
    model: str
    text: str
    id: str
    created: int
    fields: dict[str, Any]


def _event(data: dict[str, Any], name: str | None = None) -> bytes:
    line = b"data: " + orjson.dumps(data) + b"\n\n"
    return line if name is None else b"event: " + name.encode() + b"\n" + line


_DONE = b"data: [DONE]\n\n"
_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def _chat_choice(call: _Call, part: str, **more: Any) -> dict[str, Any]:
    kind = "chat.completion" if part == "message" else "chat.completion.chunk"
    return {
        "id": f"chatcmpl-{call.id}",
        "object": kind,
        "created": call.created,
        "model": call.model,
        "choices": [{"index": 0, "logprobs": None, **more}],
    }


def _chat(call: _Call) -> dict[str, Any]:
    message = {"role": "assistant", "content": call.text, "refusal": None}
    return {**_chat_choice(call, "message", message=message, finish_reason="stop"), "usage": _USAGE}


def _chat_stream(call: _Call) -> Iterable[bytes]:
    role = {"role": "assistant", "content": ""}
    yield _event(_chat_choice(call, "delta", delta=role, finish_reason=None))
    yield _event(_chat_choice(call, "delta", delta={"content": call.text}, finish_reason=None))
    yield _event(_chat_choice(call, "delta", delta={}, finish_reason="stop"))
    if _wants_usage(call):
        yield _event({**_chat_choice(call, "delta"), "choices": [], "usage": _USAGE})
    yield _DONE


def _wants_usage(call: _Call) -> bool:
    options = call.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True


def _completion(call: _Call) -> dict[str, Any]:
    choice = {"index": 0, "text": call.text, "logprobs": None, "finish_reason": "stop"}
    return {
        "id": f"cmpl-{call.id}",
        "object": "text_completion",
        "created": call.created,
        "model": call.model,
        "choices": [choice],
        "usage": _USAGE,
    }


def _completion_stream(call: _Call) -> Iterable[bytes]:
    whole = _completion(call)
    del whole["usage"]
    yield _event(whole)
    if _wants_usage(call):
        yield _event({**whole, "choices": [], "usage": _USAGE})
    yield _DONE


def _response(call: _Call, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {
        "input_tokens": 0,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 0,
    }
    return {
        "id": f"resp_{call.id}",
        "object": "response",
        "created_at": call.created,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": call.model,
        "output": output,
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": usage if status == "completed" else None,
    }


def _message_item(call: _Call, status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {"id": f"msg_{call.id}", "type": "message", "status": status, "role": "assistant", "content": content}


def _text_part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _responses(call: _Call) -> dict[str, Any]:
    return _response(call, "completed", [_message_item(call, "completed", [_text_part(call.text)])])


def _responses_stream(call: _Call) -> Iterable[bytes]:
    place = {"item_id": f"msg_{call.id}", "output_index": 0, "content_index": 0}
    done = _message_item(call, "completed", [_text_part(call.text)])
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": _response(call, "in_progress", [])},
        {"type": "response.in_progress", "response": _response(call, "in_progress", [])},
        {"type": "response.output_item.added", "output_index": 0, "item": _message_item(call, "in_progress", [])},
        {"type": "response.content_part.added", **place, "part": _text_part("")},
        {"type": "response.output_text.delta", **place, "delta": call.text, "logprobs": []},
        {"type": "response.output_text.done", **place, "text": call.text, "logprobs": []},
        {"type": "response.content_part.done", **place, "part": _text_part(call.text)},
        {"type": "response.output_item.done", "output_index": 0, "item": done},
        {"type": "response.completed", "response": _response(call, "completed", [done])},
    ]
    for number, event in enumerate(events):
        yield _event({**event, "sequence_number": number}, event["type"])


def _anthropic(call: _Call) -> dict[str, Any]:
    return {
        "id": f"msg_{call.id}",
        "type": "message",
        "role": "assistant",
        "model": call.model,
        "content": [{"type": "text", "text": call.text}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 0, "output_tokens": 0},
    }


def _anthropic_stream(call: _Call) -> Iterable[bytes]:
    start = {**_anthropic(call), "content": [], "stop_reason": None}
    events: list[dict[str, Any]] = [
        {"type": "message_start", "message": start},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": call.text}},
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": 0},
        },
        {"type": "message_stop"},
    ]
    for event in events:
        yield _event(event, event["type"])


_SHAPES: dict[Api, tuple[Callable[[_Call], dict[str, Any]], Callable[[_Call], Iterable[bytes]]]] = {
    "chat": (_chat, _chat_stream),
    "completions": (_completion, _completion_stream),
    "responses": (_responses, _responses_stream),
    "messages": (_anthropic, _anthropic_stream),
}
