"""Answers of Anthropic's messages: a list of content blocks, one after another.

https://docs.anthropic.com/en/docs/build-with-claude/streaming. What comes in pieces is in a block's `delta`; a block
that a server's own tool gives comes whole, in the event that starts it.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import orjson

from extproc.bodies.jsonbody import dicts
from extproc.watching.chat import APART, grow, grown
from extproc.watching.shape import (
    AnswerCourse,
    AnswerShape,
    AnswerText,
    Assembly,
    Channel,
    Pieces,
    as_json,
    exact,
    inner,
    kind_of,
    put,
    walk,
)
from upstream.events import event

_KEPT: Final = ("id", "type", "role", "model", "container", "usage")
"""What stays of an answer that is cut."""
_COUNTS: Final = (
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "output_tokens",
    "output_tokens_details",
    "server_tool_use",
)
"""What a stream's last `usage` may say."""
_SHOWN: Final = ("text", "thinking")
"""Fields of blocks that clients join: Anthropic's SDK the texts (`get_final_text`, `text_stream`), others the thoughts
as well."""
_BLOCKS: Final = 4096
"""Blocks that are remembered of one stream."""


class MessagesAnswer(AnswerShape):
    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        out: list[AnswerText] = []
        kind = kind_of(fields)
        if kind == "content_block_delta":
            delta = inner(fields, "delta")
            path: Channel = ("content", _place(fields))
            walk(delta, path, delta.get("type") == "citations_delta", out)
            out = [_shown(one, delta, path[1]) for one in out]
            walk(fields, path, True, out, ("delta",))
        elif kind == "content_block_start":
            block = inner(fields, "content_block")
            path = ("content", _place(fields))
            walk(block, path, False, out)
            # Its text goes on in its deltas. Its name, and what a server's own tool has given, are there whole.
            out = [_shown(one, block, path[1]) if _grows(one, block) else one._replace(whole=True) for one in out]
            walk(fields, path, True, out, ("content_block",))
        else:
            walk(fields, (), True, out)
            out = [_shown(one, one.holder, one.channel[1]) if _in_block(one) else one for one in out]
        return as_json(out, "text") if json else out

    def closes(self, fields: dict[str, Any]) -> list[Channel]:
        kind = kind_of(fields)
        if kind == "content_block_stop":
            return [("content", _place(fields))]
        return [()] if kind == "message_stop" else []

    def course(self) -> AnswerCourse:
        return MessagesCourse()

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        kept: dict[str, Any] = {key: fields[key] for key in _KEPT if key in fields}
        return {**kept, "content": [_text(message)] if message else [], **_refusal(message)}

    def assembly(self, limit: int) -> Assembly:
        return MessagesAssembly(limit)

    def stream(self, final: dict[str, Any], usage: bool = True) -> bytes:
        ends = {key: final.get(key) for key in ("stop_reason", "stop_sequence")}
        begun = {**final, "content": [], **dict.fromkeys(ends)}
        ends |= {key: final[key] for key in ("stop_details", "container") if final.get(key) is not None}
        events: list[dict[str, Any]] = [{"type": "message_start", "message": begun}]
        for at, block in enumerate(dicts(final, "content")):
            start, deltas = _apart(block)
            events.append({"type": "content_block_start", "index": at, "content_block": start})
            events += ({"type": "content_block_delta", "index": at, "delta": delta} for delta in deltas)
            events.append({"type": "content_block_stop", "index": at})
        said = final.get("usage")
        said = said if isinstance(said, dict) else {}
        counted = {"output_tokens": 0, **{key: said[key] for key in _COUNTS if key in said}}
        events += ({"type": "message_delta", "delta": ends, "usage": counted}, {"type": "message_stop"})
        return _written(events)


class MessagesCourse(AnswerCourse):
    def __init__(self) -> None:
        self._names: dict[str, Any] = {"id": "msg_" + uuid.uuid4().hex[:24], "model": ""}
        self._begun = self._over = False
        self._next = 0
        self._open: dict[int, bool] = {}
        """The open blocks, and whether one is text."""
        self._shown = False
        """Whether the last text block shows anything."""
        self._tokens = 0

    def seen(self, fields: dict[str, Any]) -> None:
        kind = kind_of(fields)
        if kind == "content_block_delta":
            delta = fields.get("delta")
            if not self._shown and type(delta) is dict and delta.get("text"):
                self._shown = True
        elif kind == "content_block_start":
            at, block = _place(fields), fields.get("content_block")
            is_text = isinstance(block, dict) and block.get("type") == "text"
            if len(self._open) < _BLOCKS:
                self._open[at] = is_text
            self._next = max(self._next, at + 1)
            if is_text:
                self._shown = isinstance(block, dict) and bool(block.get("text"))
        elif kind == "content_block_stop":
            self._open.pop(_place(fields), None)
        elif kind == "message_start":
            self._begun = True
            self._count(fields.get("message"))
        elif kind == "message_delta":
            self._count(fields)
        elif kind == "message_stop":
            self._over = True

    def unseen(self, fields: dict[str, Any]) -> None:
        message = fields.get("message")
        if type(message) is dict:
            self._names |= {key: message[key] for key in self._names if type(message.get(key)) is str}

    def _count(self, holder: Any) -> None:
        usage = holder.get("usage") if type(holder) is dict else None
        tokens = usage.get("output_tokens") if type(usage) is dict else None
        if type(tokens) is int:
            self._tokens = tokens

    def cut(self, message: str) -> bytes:
        if self._over:
            return b""
        events: list[dict[str, Any]] = []
        if not self._begun:
            begun: dict[str, Any] = {
                **self._names,
                "type": "message",
                "role": "assistant",
                "content": [],
                "stop_reason": None,
                "stop_sequence": None,
                "usage": {"input_tokens": 0, "output_tokens": 0},
            }
            events.append({"type": "message_start", "message": begun})
        told = not message
        for at, is_text in self._open.items():
            if is_text and not told:
                told = True
                events.append(_shows(at, APART + message if self._shown else message))
            events.append({"type": "content_block_stop", "index": at})
        if not told:
            at = self._next
            events.append({"type": "content_block_start", "index": at, "content_block": _text("")})
            events += (_shows(at, message), {"type": "content_block_stop", "index": at})
        usage = {"output_tokens": self._tokens}
        events.append({"type": "message_delta", "delta": _refusal(message), "usage": usage})
        return _written([*events, {"type": "message_stop"}])


class MessagesAssembly(Assembly):
    """There is no final object where an input has a number that is read as another one."""

    def __init__(self, limit: int) -> None:
        self._left = limit
        self._failed = self._stopped = False
        self._message: dict[str, Any] | None = None
        self._blocks: dict[int, dict[str, Any]] = {}
        self._inputs: dict[int, Pieces] = {}

    def add(self, fields: dict[str, Any]) -> None:
        kind = kind_of(fields)
        if kind == "message_start" and type(fields.get("message")) is dict:
            self._message = dict(fields["message"])
        elif kind == "message_delta" and self._message is not None:
            self._end(self._message, fields)
        elif kind == "message_stop":
            self._stopped = True
        elif kind == "error":
            self._failed = True
        elif kind == "content_block_start" and type(fields.get("content_block")) is dict:
            known = self._blocks[_place(fields)] = {}
            self._left -= 1 + grow(known, fields["content_block"])
        elif kind == "content_block_delta" and type(fields.get("delta")) is dict:
            block = self._blocks.get(_place(fields))
            if block is None:
                self._failed = True
            else:
                self._grow(_place(fields), block, fields["delta"])
        if self._left < 0:
            self._failed = True
            self._message = None
            self._blocks.clear()
            self._inputs.clear()

    def _grow(self, at: int, block: dict[str, Any], delta: dict[str, Any]) -> None:
        kind = kind_of(delta)
        if kind == "input_json_delta":
            piece = delta.get("partial_json")
            if type(piece) is str:
                self._left -= len(piece)
                if at in self._inputs:
                    self._inputs[at].list.append(piece)
                else:
                    self._inputs[at] = Pieces(piece)
        elif kind == "citations_delta":
            self._left -= grow(block, {"citations": [delta.get("citation")]})
        else:
            self._left -= grow(block, {key: value for key, value in delta.items() if key != "type"})

    def _end(self, message: dict[str, Any], fields: dict[str, Any]) -> None:
        delta, usage = fields.get("delta"), fields.get("usage")
        if type(delta) is dict:
            for key, value in delta.items():
                if value is not None or key not in message:
                    self._left -= put(message, key, value)
        if type(usage) is dict:
            before = message.get("usage")
            said = {key: value for key, value in usage.items() if value is not None}
            self._left -= put(message, "usage", {**before, **said} if type(before) is dict else said)

    def final(self) -> dict[str, Any] | None:
        if self._failed or not self._stopped or self._message is None or self._message.get("stop_reason") is None:
            return None
        content = []
        for at in sorted(self._blocks):
            block = grown(self._blocks[at])
            written = self._inputs[at].text() if at in self._inputs else ""
            if written:
                try:
                    block["input"] = orjson.loads(written)
                except orjson.JSONDecodeError:
                    return None
                if not exact(block["input"]):
                    return None
            content.append(block)
        return {**self._message, "content": content}


def _place(fields: dict[str, Any]) -> int:
    given = fields.get("index")
    return given if type(given) is int else 0


def _grows(text: AnswerText, block: dict[str, Any]) -> bool:
    return text.holder is block and text.key != "name"


def _in_block(text: AnswerText) -> bool:
    """Whether a text of a whole answer is a field of one of its blocks."""
    return len(text.channel) == 3 and text.channel[0] == "content"


def _shown(text: AnswerText, holder: Any, block: str | int) -> AnswerText:
    """The text, which clients show as one with those of other blocks where it is what a block says or thinks."""
    if text.holder is holder and text.key in _SHOWN:
        return text._replace(joins=(text.key, block))
    return text


def _text(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text}


def _shows(at: int, text: str) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": at, "delta": {"type": "text_delta", "text": text}}


def _refusal(message: str) -> dict[str, Any]:
    details = {"type": "refusal", "category": None, "explanation": message or None}
    return {"stop_reason": "refusal", "stop_sequence": None, "stop_details": details}


def _apart(block: dict[str, Any]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How a block starts, and the deltas that make it whole."""
    start = dict(block)
    deltas: list[dict[str, Any]] = []
    kind = kind_of(block)
    if kind == "text":
        start["text"] = ""
        deltas.append({"type": "text_delta", "text": block.get("text", "")})
        if block.get("citations"):
            start["citations"] = []
            deltas += ({"type": "citations_delta", "citation": one} for one in block["citations"])
    elif kind == "thinking":
        start |= {"thinking": "", "signature": ""}
        deltas.append({"type": "thinking_delta", "thinking": block.get("thinking", "")})
        deltas.append({"type": "signature_delta", "signature": block.get("signature", "")})
    elif type(block.get("input")) is dict:
        start["input"] = {}
        if block["input"]:
            deltas.append({"type": "input_json_delta", "partial_json": orjson.dumps(block["input"]).decode()})
    return start, deltas


def _written(events: list[dict[str, Any]]) -> bytes:
    return b"".join(event(one, one["type"]) for one in events)
