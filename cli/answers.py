"""What the decisions on the answer make of a whole answer, for the commands that decide without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

import orjson

from cli.calls import RecordedCall, Unread
from decisions.decision import Trace
from decisions.engine import Engine
from extproc.refusal import Refusal
from extproc.watching.plain import PlainText
from extproc.watching.shape import AnswerShape
from extproc.watching.shapes import SHAPES, asks_json
from extproc.watching.watch import Watch


class Answered(NamedTuple):
    """What becomes of an answer.

    `decision` is the one that acts, or the first that flags; `action` is mask, cut, respond, flag, observe, or pass
    where none does anything. `status` is that of a respond. `text` is what the client would read: all texts of the
    answer, joined with newlines. `acted` are all decisions that did something, in order; `read` the signals of answers
    that were looked at.
    """

    decision: str | None
    action: str
    status: int | None
    text: str
    acted: Sequence[tuple[str, str]] = ()
    read: frozenset[str] = frozenset()

    def summary(self) -> dict[str, Any]:
        """The fields that every command prints."""
        return {"decision": self.decision, "action": self.action}

    def as_object(self) -> dict[str, Any]:
        """The object `answer` of `explain -o json`."""
        found = {**self.summary(), "text": self.text}
        if self.status is not None:
            found["status"] = self.status
        return {**found, "acted": [{"decision": name, "action": action} for name, action in self.acted]}

    def lines(self) -> Iterator[str]:
        """The same for people."""
        yield f"answer    {self.action}{'' if self.decision is None else f' by {self.decision}'}"
        for name, action in self.acted:
            if name != self.decision:
                yield f"          {action} by {name}"
        yield from (f"  {line}" for line in self.text.splitlines())


_PLAIN: Final = PlainText()
_RANK: Final = ("respond", "cut", "mask", "flag", "observe")


async def answered(engine: Engine, call: RecordedCall, trace: Trace, answer: object) -> Answered | None:
    """What `engine`, which has decided the call as in `trace`, makes of an answer: an object as the call's API gives
    it, or its bytes, or plain text. None where no model answers."""
    if trace.decision.action == "respond":
        return None
    try:
        request = call.request(engine)
    except Refusal:
        return None
    if isinstance(request, Unread) or request.api not in SHAPES:
        return None
    fields = _read(answer)
    shape = SHAPES[request.api]
    if isinstance(fields, str):
        shape, fields = _PLAIN, {"text": fields}
    judge = engine.judge(trace, request)
    if judge is None:
        return Answered(None, "pass", None, _text(shape, fields))
    watch = Watch(shape, judge, False, json=asks_json(request.fields))
    shown = watch.feed(orjson.dumps(fields), True)
    while watch.waiting:
        shown += await watch.judged(float("inf"))
    if watch.error is not None:
        raise watch.error
    acted, read = tuple(judge.acted), judge.reads
    name, action = min(acted, key=lambda one: _RANK.index(one[1]), default=(None, "pass"))
    instead = watch.responds
    if instead is not None:
        return Answered(name, action, instead.status, instead.message or "", acted, read)
    return Answered(name, action, None, _text(shape, orjson.loads(shown)), acted, read)


def _read(answer: object) -> str | dict[str, Any]:
    if isinstance(answer, dict):
        return answer
    found: Any
    raw = answer if isinstance(answer, bytes) else str(answer).encode(errors="replace")
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else raw.decode(errors="replace")


def _text(shape: AnswerShape, fields: dict[str, Any]) -> str:
    """What is read of an answer; '' where it is none of its API's."""
    try:
        return "\n".join([text.holder[text.key] for text in shape.texts(fields)])
    except ValueError:
        return ""
