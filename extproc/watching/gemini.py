"""Answers of Google's Gemini: candidates whose parts are text, thoughts and calls. Every event is a whole object.

https://ai.google.dev/api/generate-content#method:-models.streamgeneratecontent. A stream is one of server-sent events
(`alt=sse`), or else one array of these objects.
"""

from __future__ import annotations

import uuid
from typing import Any, Final

import orjson

from extproc.bodies.jsonbody import dicts
from extproc.watching.array import Elements
from extproc.watching.chat import APART, grown
from extproc.watching.shape import (
    AnswerCourse,
    AnswerShape,
    AnswerText,
    Assembly,
    Channel,
    Pieces,
    index,
    inner,
    objects,
    put,
    size,
    walk,
)
from extproc.watching.sse import Events
from upstream.events import event

_FILTERED: Final = "SAFETY"
_KEPT: Final = ("modelVersion", "responseId", "createTime", "usageMetadata")
_CANDIDATES: Final = 1024
"""Candidates that are remembered of one stream; Google gives at most 8."""


class GeminiAnswer(AnswerShape):
    def texts(self, fields: dict[str, Any], json: bool = False) -> list[AnswerText]:
        out: list[AnswerText] = []
        for place, candidate in enumerate(objects(fields, "candidates")):
            path: Channel = ("candidates", index(candidate, place))
            content = inner(candidate, "content")
            for number, part in enumerate(objects(content, "parts")):
                _part(part, path, number, json, out)
            walk(content, (*path, "content"), True, out, ("parts",))
            walk(candidate, path, True, out, ("content",))
        walk(fields, (), True, out, ("candidates",))
        return out

    def closes(self, fields: dict[str, Any]) -> list[Channel]:
        return [
            ("candidates", index(candidate, place))
            for place, candidate in enumerate(dicts(fields, "candidates"))
            if candidate.get("finishReason") is not None
        ]

    def course(self) -> AnswerCourse:
        return GeminiCourse()

    def cut(self, fields: dict[str, Any], message: str) -> dict[str, Any]:
        places = [index(candidate, place) for place, candidate in enumerate(dicts(fields, "candidates"))] or [0]
        kept: dict[str, Any] = {key: fields[key] for key in _KEPT if key in fields}
        return {**kept, "candidates": [_candidate(at, message) for at in places]}

    def assembly(self, limit: int) -> Assembly:
        return GeminiAssembly(limit)

    def stream(self, final: dict[str, Any], usage: bool = True) -> bytes:
        return event(final)


class GeminiArray(GeminiAnswer):
    """The same in a stream that is one array."""

    def events(self, limit: int) -> Events:
        return Elements(limit)

    def course(self) -> AnswerCourse:
        return GeminiArrayCourse()


class GeminiCourse(AnswerCourse):
    def __init__(self) -> None:
        self._head: dict[str, Any] = {"modelVersion": "", "responseId": uuid.uuid4().hex}
        self._open: dict[int, bool] = {}
        """The candidates that have begun, and whether they show a text."""
        self._finished: set[int] = set()

    def unseen(self, fields: dict[str, Any]) -> None:
        self._head |= {key: fields[key] for key in ("modelVersion", "responseId") if type(fields.get(key)) is str}

    def seen(self, fields: dict[str, Any]) -> None:
        self._head.update({key: fields[key] for key in _KEPT if fields.get(key)})
        for place, candidate in enumerate(dicts(fields, "candidates")):
            at = index(candidate, place)
            if at in self._open or len(self._open) < _CANDIDATES:
                content = candidate.get("content")
                shows = any(part.get("text") and not part.get("thought") for part in dicts(content, "parts"))
                self._open[at] = shows or self._open.get(at, False)
            if candidate.get("finishReason") is not None and at in self._open:
                self._finished.add(at)

    def cut(self, message: str) -> bytes:
        return event(self.closing(message))

    def closing(self, message: str) -> dict[str, Any]:
        """The last object of the stream."""
        left = [at for at in self._open if at not in self._finished] or list(self._open) or [0]
        shown = [_candidate(at, APART + message if message and self._open.get(at) else message) for at in left]
        return {**self._head, "candidates": shown}


class GeminiArrayCourse(GeminiCourse):
    def __init__(self) -> None:
        super().__init__()
        self._begun = False

    def seen(self, fields: dict[str, Any]) -> None:
        self._begun = True
        super().seen(fields)

    def cut(self, message: str) -> bytes:
        return (b"," if self._begun else b"[") + orjson.dumps(self.closing(message)) + b"]"


class GeminiAssembly(Assembly):
    def __init__(self, limit: int) -> None:
        self._left = limit
        self._failed = False
        self._head: dict[str, Any] = {}
        self._candidates: dict[int, dict[str, Any]] = {}
        self._parts: dict[int, list[dict[str, Any]]] = {}

    def add(self, fields: dict[str, Any]) -> None:
        if self._failed:
            return
        for key, value in fields.items():
            if key != "candidates":
                self._left -= put(self._head, key, value)
        for place, candidate in enumerate(dicts(fields, "candidates")):
            at = index(candidate, place)
            known = self._candidates.setdefault(at, {})
            parts = self._parts.setdefault(at, [])
            self._left -= 1
            for key, value in candidate.items():
                if key != "content":
                    self._left -= put(known, key, value)
                elif type(value) is dict:
                    content = known.setdefault("content", {})
                    for name, one in value.items():
                        if name != "parts":
                            self._left -= put(content, name, one)
                    for part in dicts(value, "parts"):
                        self._left -= 1 + size(part)
                        _join(parts, part)
        if self._left < 0 or fields.get("error"):
            self._failed = True
            self._head.clear()
            self._candidates.clear()
            self._parts.clear()

    def final(self) -> dict[str, Any] | None:
        candidates = []
        for at in sorted(self._candidates):
            candidate = dict(self._candidates[at])
            if candidate.get("finishReason") is None:
                return None
            if self._parts[at]:
                candidate["content"] = {**candidate.get("content", {}), "parts": grown(self._parts[at])}
            candidates.append(candidate)
        return {**self._head, "candidates": candidates} if candidates else None


def _part(part: dict[str, Any], path: Channel, number: int, json: bool, out: list[AnswerText]) -> None:
    thought = bool(part.get("thought"))
    text = part.get("text")
    if type(text) is str and text:  # it goes on in the next event, whatever stands before it there
        out.append(AnswerText((*path, "thought" if thought else "text"), part, "text", json and not thought))
    call = part.get("functionCall")
    pieces = type(call) is dict and "partialArgs" in call
    but = ("text",) if type(text) is str else ()
    walk(part, (*path, "content", "parts", number), not pieces, out, but)


def _join(parts: list[dict[str, Any]], part: dict[str, Any]) -> None:
    """Adds a part to the ones before it; a text goes on with the text before it."""
    if not {"text"} <= part.keys() <= {"text", "thought"} or type(part["text"]) is not str:
        parts.append(part)
        return
    last = parts[-1] if parts else {}
    before = last.get("text")
    if isinstance(before, Pieces) and last.get("thought") == part.get("thought"):
        before.list.append(part["text"])
    else:
        parts.append({**part, "text": Pieces(part["text"])})


def _candidate(at: int, message: str) -> dict[str, Any]:
    parts = [{"text": message}] if message else []
    return {"content": {"parts": parts, "role": "model"}, "finishReason": _FILTERED, "index": at}
