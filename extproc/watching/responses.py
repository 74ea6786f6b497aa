"""Answers of OpenAI's responses: a list of output items (messages, thoughts, calls), one after another.

https://platform.openai.com/docs/api-reference/responses-streaming. What comes in pieces is in an event whose type ends
in `.delta`; what follows repeats it: the `.done` of the text, of its part and of its item, and the whole response.
"""

from __future__ import annotations

import time
import uuid
from types import NoneType
from typing import Any, Final

from extproc.bodies.jsonbody import dicts
from extproc.watching.chat import APART, FILTERED
from extproc.watching.shape import (
    AnswerCourse,
    AnswerShape,
    AnswerText,
    Assembly,
    Channel,
    Pieces,
    inner,
    kind_of,
    size,
    walk,
)
from upstream.events import event

_ECHOED: Final = frozenset(
    (
        "conversation",
        "include",
        "instructions",
        "metadata",
        "prompt",
        "prompt_cache_key",
        "prompt_cache_options",
        "prompt_cache_retention",
        "reasoning",
        "safety_identifier",
        "text",
        "tool_choice",
        "tools",
        "truncation",
        "user",
    )
)
"""Fields of a response that repeat the request: what the client, or the policy, has put in."""
_NAMES: Final = frozenset(("id", "object", "model", "service_tier", "usage"))
"""What else stays of a response that is cut, beside plain numbers."""
_ENDS: Final = ("response.completed", "response.incomplete", "response.failed")
_DELTA, _DONE = ".delta", ".done"
_CLOSING: Final = (_DONE, *_ENDS)
_PLACES: Final = ("content_index", "summary_index", "command_index")
_KEPT: Final = 256 * 1024
"""Characters of a stream that are kept for its last event to repeat. A longer answer is cut without that."""
_PARTS: Final = {
    # A part of an item: the field with its text, and what its events are called.
    "output_text": ("text", "response.output_text"),
    "refusal": ("refusal", "response.refusal"),
    "reasoning_text": ("text", "response.reasoning_text"),
}
_SAID: Final = ("output_text", "response.output_text.delta", "response.output_text.done")
"""What holds a text of a message."""
_SHOWN: Final = {"output_text": "text", "refusal": "refusal", "reasoning_text": "text", "summary_text": "text"}
"""Parts of items that clients join, and the field with their text: OpenAI's SDK those of messages
(`Response.output_text`), others the thoughts as well."""
_PIECES: Final = {name: kind for kind, (_, name) in _PARTS.items()} | {
    "response.reasoning_summary_text": "summary_text"
}
_LISTS: Final = ("content", "summary")
_CALLS: Final = {
    # An item that is a call: the field that comes in pieces, and what its events are called.
    "function_call": ("arguments", "response.function_call_arguments"),
    "mcp_call": ("arguments", "response.mcp_call_arguments"),
    "custom_tool_call": ("input", "response.custom_tool_call_input"),
    "code_interpreter_call": ("code", "response.code_interpreter_call_code"),
}


class ResponsesAnswer(AnswerShape):
    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        out = self._texts(fields)
        return [text._replace(code=True) if _says(text) else text for text in out] if json else out

    def _texts(self, fields: dict[str, Any]) -> list[AnswerText]:
        out: list[AnswerText] = []
        kind = kind_of(fields)
        if not kind:
            walk(fields, (), True, out, _ECHOED)
            return [_joined(text, fields) for text in out]
        path: Channel = ("output", _number(fields, "output_index"))
        if kind.endswith(_DELTA):
            channel = _channel(fields, kind.removesuffix(_DELTA))
            delta = fields.get("delta")
            if type(delta) is str:
                if delta and kind != "response.audio.delta":
                    part = _PIECES.get(kind.removesuffix(_DELTA))
                    joins: Channel = () if part is None else (part, channel[1], channel[3])
                    out.append(AnswerText(channel, fields, "delta", kind.endswith("_arguments.delta"), joins=joins))
            else:
                walk(inner(fields, "delta"), channel, False, out)
            walk(fields, channel, True, out, ("delta",))
            return out
        walk(inner(fields, "response"), ("response",), True, out, _ECHOED)
        walk(fields, path, True, out, ("response",))
        return [_joined(text, fields) for text in out]

    def closes(self, fields: dict[str, Any]) -> list[Channel]:
        kind = kind_of(fields)
        if not kind.endswith(_CLOSING):
            return []
        if kind in _ENDS:
            return [()]
        if kind == "response.output_item.done":
            return [("output", _number(fields, "output_index"))]
        return [_channel(fields, kind.removesuffix(_DONE))]

    def repeats(self) -> bool:
        return True

    def course(self) -> AnswerCourse:
        return ResponsesCourse()

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        item = _message("incomplete", [_part(message)] if message else [])
        plain = (int, float, NoneType)
        kept = {key: one for key, one in fields.items() if key in _ECHOED or key in _NAMES or isinstance(one, plain)}
        return {**kept, **_filtered([item] if message else [])}

    def assembly(self, limit: int) -> Assembly:
        return ResponsesAssembly(limit)

    def stream(self, final: dict[str, Any], usage: bool = True) -> bytes:
        status = final.get("status") or "completed"
        begun = {**final, "status": "in_progress", "output": [], "usage": None, "incomplete_details": None}
        events: list[dict[str, Any]] = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
        ]
        for at, item in enumerate(dicts(final, "output")):
            _write_item(events, at, item)
        events.append({"type": f"response.{status}", "response": final})
        return _written(events, 0)


class ResponsesCourse(AnswerCourse):
    def __init__(self) -> None:
        self._response: dict[str, Any] | None = None
        self._names: dict[str, Any] = {}
        self._sequence = -1
        self._next = 0
        self._left = _KEPT
        self._over = False
        self._items: dict[int, dict[str, Any]] = {}
        """The open items, as they began."""
        self._parts: dict[int, dict[int, tuple[str, Pieces]]] = {}
        """The parts of open messages: their type and text."""
        self._done: dict[int, dict[str, Any]] = {}

    def seen(self, fields: dict[str, Any]) -> None:
        kind = kind_of(fields)
        self._sequence = _number(fields, "sequence_number", self._sequence + 1)
        at = _number(fields, "output_index")
        if kind in ("response.output_text.delta", "response.refusal.delta"):
            delta, part = fields.get("delta"), self._parts.get(at, {}).get(_number(fields, "content_index"))
            if part is not None and type(delta) is str and self._keeps(len(delta)):
                part[1].list.append(delta)
        elif kind == "response.content_part.added":
            part_given = fields.get("part")
            if type(part_given) is dict and at in self._parts and self._keeps(64):
                name = kind_of(part_given)
                text = part_given.get(_PARTS[name][0]) if name in _PARTS else ""
                self._parts[at][_number(fields, "content_index")] = name, Pieces(text if type(text) is str else "")
        elif kind == "response.output_item.added":
            item = fields.get("item")
            self._next = max(self._next, at + 1)
            if type(item) is dict and self._keeps(64 + size(item)):
                self._items[at] = item
                if kind_of(item) == "message":
                    self._parts[at] = {}
        elif kind == "response.output_item.done":
            item = fields.get("item")
            self._next = max(self._next, at + 1)
            self._items.pop(at, None)
            self._parts.pop(at, None)
            if type(item) is dict and self._keeps(64 + size(item)):
                self._done[at] = item
        elif type(fields.get("response")) is dict:
            self._response = {key: value for key, value in fields["response"].items() if key != "output"}
            self._over = kind in _ENDS

    def unseen(self, fields: dict[str, Any]) -> None:
        response = fields.get("response")
        if type(response) is dict:
            self._names |= {key: response[key] for key in ("id", "model") if type(response.get(key)) is str}

    def _keeps(self, characters: int) -> bool:
        """Whether so much more is kept; once it is too much, nothing is."""
        self._left -= characters
        if self._left < 0:
            self._items.clear()
            self._parts.clear()
            self._done.clear()
        return self._left >= 0

    def cut(self, message: str) -> bytes:
        if self._over:
            return b""
        events: list[dict[str, Any]] = []
        if self._response is None:
            self._response = _begun() | self._names
            events.append({"type": "response.created", "response": {**self._response, "output": []}})
        told = not message
        output = dict(self._done)
        for at, parts in self._parts.items():
            item = self._items[at]
            if not told:
                told = True
                self._tell(events, at, message)
            content = [_repeated(kind, text.text()) for kind, text in parts.values()]
            output[at] = {**item, "status": "incomplete", "content": content}
            events.append({"type": "response.output_item.done", "output_index": at, "item": output[at]})
        if not told:
            at, begun = self._next, _message("in_progress", [])
            events.append({"type": "response.output_item.added", "output_index": at, "item": begun})
            self._items[at], self._parts[at] = begun, {}
            self._tell(events, at, message)
            output[at] = {**begun, "status": "incomplete", "content": [_part(message)]}
            events.append({"type": "response.output_item.done", "output_index": at, "item": output[at]})
        items = [output[at] for at in sorted(output)]
        events.append({"type": "response.incomplete", "response": {**self._response, **_filtered(items)}})
        return _written(events, self._sequence + 1)

    def _tell(self, events: list[dict[str, Any]], at: int, message: str) -> None:
        """Shows `message` at the end of an open item. No event says that its text is done, since an SDK that was given
        a format reads the text by it then."""
        parts = self._parts[at]
        last = max(parts, default=-1)
        place = {"item_id": self._items[at].get("id"), "output_index": at}
        if last < 0 or parts[last][0] != "output_text":
            last += 1
            parts[last] = "output_text", Pieces("")
            events.append({"type": "response.content_part.added", **place, "content_index": last, "part": _part("")})
        pieces = parts[last][1]
        shown = APART + message if any(pieces.list) else message
        pieces.list.append(shown)
        delta = {"content_index": last, "delta": shown, "logprobs": []}
        events.append({"type": "response.output_text.delta", **place, **delta})


class ResponsesAssembly(Assembly):
    def __init__(self, limit: int) -> None:
        self._left = limit
        self._items: dict[int, dict[str, Any]] = {}
        self._response: dict[str, Any] | None = None

    def add(self, fields: dict[str, Any]) -> None:
        kind = kind_of(fields)
        if kind == "response.output_item.done" and type(fields.get("item")) is dict:
            self._left -= 1 + size(fields["item"])
            if self._left >= 0:
                self._items[_number(fields, "output_index")] = fields["item"]
            else:
                self._items.clear()
        elif kind in _ENDS and type(fields.get("response")) is dict:
            self._response = fields["response"]

    def final(self) -> dict[str, Any] | None:
        response = self._response
        if response is None or self._left < 0 or response.get("status") == "failed":
            return None
        if response.get("output"):
            return response
        return {**response, "output": [self._items[at] for at in sorted(self._items)]}


def _says(text: AnswerText) -> bool:
    """Whether a text is of a message."""
    return type(text.holder) is dict and kind_of(text.holder) in _SAID and text.key in ("text", "delta")


def _number(fields: dict[str, Any], key: str, default: int = 0) -> int:
    given = fields.get(key)
    return given if type(given) is int else default


def _channel(fields: dict[str, Any], name: str) -> Channel:
    """The channel of the pieces that are called `name`, in one part of an item."""
    return "output", _number(fields, "output_index"), name, _place(fields)


def _place(fields: dict[str, Any]) -> int:
    """Which part of its item an event is of."""
    for key in _PLACES:
        given = fields.get(key)
        if type(given) is int:
            return given
    return 0


def _joined(text: AnswerText, fields: dict[str, Any]) -> AnswerText:
    """A text of an event that is no delta, or of a whole response: with the part that it is of, where clients show it
    as one with those of others."""
    holder, channel = text.holder, text.channel
    if type(holder) is not dict:
        return text
    kind = kind_of(holder)
    if holder is fields:
        kind = _PIECES.get(kind.removesuffix(_DONE), "")
    if kind not in _SHOWN or text.key != _SHOWN[kind]:
        return text
    item, place = _number(fields, "output_index"), _place(fields)
    if len(channel) > 3 and channel[-3] in _LISTS:
        place, owner = int(channel[-2]), channel[-4]
        item = owner if type(owner) is int else item
    return text._replace(joins=(kind, item, place))


def _begun() -> dict[str, Any]:
    """A response of our own, without its output."""
    return {
        "id": "resp_" + uuid.uuid4().hex,
        "object": "response",
        "created_at": int(time.time()),
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": "",
        "parallel_tool_calls": True,
        "temperature": None,
        "tool_choice": "auto",
        "tools": [],
        "top_p": None,
        "usage": None,
    }


def _message(status: str, content: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "id": "msg_" + uuid.uuid4().hex,
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": content,
    }


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def _repeated(kind: str, text: str) -> dict[str, Any]:
    if kind == "output_text":
        return _part(text)
    return {"type": kind, _PARTS[kind][0] if kind in _PARTS else "text": text}


def _filtered(output: list[dict[str, Any]]) -> dict[str, Any]:
    """What a response says that was cut."""
    return {
        "status": "incomplete",
        "error": None,
        "incomplete_details": {"reason": FILTERED},
        "output": output,
    }


def _write_item(events: list[dict[str, Any]], at: int, item: dict[str, Any]) -> None:
    """The events of one item."""
    kind = kind_of(item)
    place = {"item_id": item.get("id"), "output_index": at}
    begun = dict(item)
    if "status" in begun:
        begun["status"] = "in_progress"
    inner: list[dict[str, Any]] = []
    if kind in _CALLS:
        field, name = _CALLS[kind]
        text = item.get(field)
        if type(text) is str:
            begun[field] = ""
            inner += ({"type": name + _DELTA, "delta": text}, {"type": name + _DONE, field: text})
    for key in ("summary", "content"):
        if type(item.get(key)) is list:
            begun[key] = []
            for number, part in enumerate(dicts(item, key)):
                inner += _summary(part, number) if key == "summary" else _content(part, number)
    events.append({"type": "response.output_item.added", "output_index": at, "item": begun})
    events += ({**one, **place} for one in inner)
    events.append({"type": "response.output_item.done", "output_index": at, "item": item})


def _content(part: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The events of one part of an item."""
    kind, place = kind_of(part), {"content_index": number}
    if kind not in _PARTS or type(part.get(_PARTS[kind][0])) is not str:
        inner: list[dict[str, Any]] = []
        begun = part
    else:
        field, name = _PARTS[kind]
        begun = {**part, field: ""}
        if part.get("annotations"):
            begun["annotations"] = []
        more = {"logprobs": part.get("logprobs") or []} if kind == "output_text" else {}
        inner = [
            {"type": name + _DELTA, **place, "delta": part[field], **more},
            {"type": name + _DONE, **place, field: part[field], **more},
        ]
    return [
        {"type": "response.content_part.added", **place, "part": begun},
        *inner,
        {"type": "response.content_part.done", **place, "part": part},
    ]


def _summary(part: dict[str, Any], number: int) -> list[dict[str, Any]]:
    """The events of one part of the summary of a thought."""
    place, text = {"summary_index": number}, part.get("text", "")
    name = "response.reasoning_summary"
    return [
        {"type": name + "_part.added", **place, "part": {**part, "text": ""}},
        {"type": name + "_text.delta", **place, "delta": text},
        {"type": name + "_text.done", **place, "text": text},
        {"type": name + "_part.done", **place, "part": part},
    ]


def _written(events: list[dict[str, Any]], first: int) -> bytes:
    numbered = enumerate(events, first)
    return b"".join(event({**one, "sequence_number": number}, one["type"]) for number, one in numbered)
