"""What the decisions on the answer make of a whole answer, for the commands that decide without a network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import orjson

from cli.calls import RecordedCall, Unread
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.watching import Judge, Verdict
from extproc.refusal import Refusal
from extproc.watching.jsontext import decode
from extproc.watching.shape import AnswerText
from extproc.watching.shapes import SHAPES, asks_json


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
    judge = engine.judge(trace, request)
    texts: list[AnswerText] | None
    try:
        if isinstance(fields, str):
            texts = [AnswerText((), [fields], 0, whole=True)]
        else:
            texts = SHAPES[request.api].texts(fields, asks_json(request.fields))
    except ValueError:
        texts = None
    if judge is None:
        return Answered(None, "pass", None, _joined(texts or ()))
    read = judge.reads
    verdict = judge.unreadable() if texts is None else await _judged(judge, texts)
    if verdict.act in ("cut", "respond"):
        return Answered(verdict.clause, verdict.act, verdict.status, verdict.message or "", tuple(judge.acted), read)
    ranked = sorted(judge.acted, key=lambda one: _RANK.index(one[1]))
    name, action = ranked[0] if ranked else (None, "pass")
    return Answered(name, action, None, _joined(texts or ()), tuple(judge.acted), read)


_RANK = ("mask", "flag", "observe")


def _read(answer: object) -> str | dict[str, Any]:
    found: Any
    if isinstance(answer, dict):
        answer = orjson.dumps(answer)  # a copy, since masks are put into it
    raw = answer if isinstance(answer, bytes) else str(answer).encode(errors="replace")
    try:
        found = orjson.loads(raw)
    except orjson.JSONDecodeError:
        found = None
    return found if isinstance(found, dict) else raw.decode(errors="replace")


async def _judged(judge: Judge, texts: Sequence[AnswerText]) -> Verdict:
    """The verdict on the whole; masks are put into the texts."""
    for place, text in enumerate(texts):
        raw: str = text.holder[text.key]
        decoded = decode(raw) if text.code else None
        shown = raw if decoded is None else decoded.text
        verdict = judge.judge(place, shown, True)
        if verdict is None:
            verdict = await judge.read(place, shown, True, float("inf"))
        if verdict.act in ("cut", "respond"):
            return verdict
        if verdict.spans:
            edits = [(span.start, span.end, f"[{span.label}]") for span in verdict.spans]
            text.holder[text.key] = _edited(raw, edits if decoded is None else decoded.edits(edits))
    return judge.end()


def _edited(text: str, edits: Sequence[tuple[int, int, str]]) -> str:
    parts: list[str] = []
    at = 0
    for start, end, new in edits:
        parts += (text[at:start], new)
        at = end
    return "".join(parts) + text[at:]


def _joined(texts: Sequence[AnswerText]) -> str:
    return "\n".join([text.holder[text.key] for text in texts])
