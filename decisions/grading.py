"""Grades of answers: which choice an answer came from is remembered for a day, and who asked may say how good it was.

Nobody can speak for another: a grade is taken once for an answer, from the tenant or the session that asked for it, and
only so many in a minute. What is remembered is in the policy's state store, so that any replica takes the grade.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Coroutine, Iterable, Mapping
from typing import Any, Final, Literal

import orjson

from decisions.decision import Trace
from decisions.selectors.selector import Graded, Selector
from signals.reading import Unavailable
from signals.request import Request
from signals.state.session import Sessions
from signals.state.store import Store

DAY_S: Final = 86_400.0
"""How long an answer can be graded."""
A_MINUTE: Final = 60
"""Grades that are taken of one tenant or session in a minute."""
LONGEST: Final = 512
"""Characters of an answer's id."""
SAID: Final = {"satisfied": 1.0, "clarification": 0.3, "dissatisfied": 0.0}
"""What a user's words in the next turn (`feedback`) say of the answer before."""

Taken = Literal["taken", "invalid_feedback", "unknown_answer", "graded_already", "too_many_grades", "store_down"]


class Grading:
    """One an engine. `selectors` are those that learn from grades, by the decision's name; `signals` the kinds of the
    policy's signals by their names; `tenant` is the header that says who asks."""

    def __init__(
        self,
        selectors: Mapping[str, Selector],
        store: Store,
        sessions: Sessions,
        tenant: str | None,
        signals: Mapping[str, str],
    ) -> None:
        self._selectors = dict(selectors)
        self._store = store
        self._sessions = sessions
        self._tenant = tenant
        self._says = {name: kind for name, kind in signals.items() if kind in ("feedback", "reask")}
        self._writing: set[asyncio.Task[None]] = set()

    def sent(self, trace: Trace, request: Request) -> None:
        """A request goes to its model. What its user says now (`feedback`, `reask`) grades the answer before in the
        session, where the policy has read it; the answer to come may be named by the request's id. Never waits and
        never raises."""
        scores = [
            score
            for name, kind in self._says.items()
            if (reading := trace.readings.get(name)) is not None
            and (score := SAID.get(reading.label or "") if kind == "feedback" else 0.0 if reading.matched else None)
            is not None
        ]
        named = request.headers.get("x-request-id", "")
        kept = self._kept(trace, request, named) if self._says or named else None
        session = self._sessions.key(request) if self._says else ""
        if (scores and session) or kept is not None:
            self._begin(self._sent(session, min(scores, default=None), _digest(named) if named else "", kept))

    def answered(self, trace: Trace, request: Request, answer: str) -> None:
        """The answer of this id comes from the choice in `trace`. Never waits and never raises."""
        kept = self._kept(trace, request, answer)
        if kept is not None:
            self._begin(self._store.keep(f"decided:{_digest(answer)}", kept, DAY_S))

    def _kept(self, trace: Trace, request: Request, answer: str) -> str | None:
        """What is remembered of a choice; None where no selector of ours has made it."""
        name, choice = trace.decision.name, trace.choice
        if choice is None or name not in self._selectors or len(answer) > LONGEST:
            return None
        kept = {
            "decision": name,
            "arm": choice.model.key,
            "context": trace.context,
            "owner": self._owner(request),
            "key": _digest(request.headers.get("x-request-id") or answer),
        }
        return orjson.dumps(kept).decode()

    async def take(self, request: Request) -> Taken:
        """The grade in the body of `request`: `{"id": …, "score": 0 to 1}` or `{"id": …, "better_than": …}`."""
        fields = request.fields
        answer, score, worse = fields.get("id"), fields.get("score"), fields.get("better_than")
        if not {"id", "score", "better_than"} >= {*fields} - {"session_id", "metadata"} or not _id(answer):
            return "invalid_feedback"
        if (score is None) == (worse is None) or (worse is not None and (not _id(worse) or worse == answer)):
            return "invalid_feedback"
        if score is not None and (type(score) not in (int, float) or not 0 <= score <= 1):
            return "invalid_feedback"
        try:
            owner = self._owner(request)
            minute = f"grades:{int(time.time() // 60)}:{_digest(owner)}"
            if not await self._store.take(minute, 1.0, A_MINUTE, 120.0):
                return "too_many_grades"
            found = [await self._found(str(each), owner) for each in (answer, worse) if each is not None]
            if None in found:
                return "unknown_answer"
            for kept in found:
                if kept is not None and not await self._first(kept["key"], "said"):
                    return "graded_already"
        except Unavailable:
            return "store_down"
        try:
            self._learn([kept for kept in found if kept is not None], score)
        except (ValueError, TypeError):  # another kind of selector chose it, before the policy was changed
            return "unknown_answer"
        return "taken"

    def _learn(self, found: list[dict[str, Any]], score: float | None) -> None:
        selector = self._selectors[found[0]["decision"]]
        graded = [Graded(kept["arm"], kept["context"]) for kept in found]
        if score is not None:
            selector.grade(graded[0], float(score))
        elif found[1]["decision"] == found[0]["decision"]:
            selector.compare(graded[0], graded[1])

    async def _found(self, answer: str, owner: str) -> dict[str, Any] | None:
        """What is remembered of an answer; None where that is nothing, or another's."""
        text = await self._store.text(f"decided:{_digest(answer)}")
        if text is None:
            return None
        kept: dict[str, Any] = orjson.loads(text)
        selector = self._selectors.get(kept["decision"])
        if selector is None or kept["owner"] not in ("", owner):
            return None
        return kept if kept["arm"] in {model.key for model in selector.models} else None

    async def _first(self, key: str, how: str) -> bool:
        """Whether nobody has graded the answer of this key so before."""
        return await self._store.take(f"{how}:{key}", 1.0, 1.0, DAY_S)

    async def _sent(self, session: str, score: float | None, key: str, kept: str | None) -> None:
        if score is not None and session:
            await self._hear(session, score)
        if kept is not None and key:
            await self._store.keep(f"decided:{key}", kept, DAY_S)
        if kept is not None and session:
            await self._store.keep(f"answered:{session}", kept, DAY_S)

    async def _hear(self, session: str, score: float) -> None:
        text = await self._store.text(f"answered:{session}")
        if text is None:
            return
        kept: dict[str, Any] = orjson.loads(text)
        selector = self._selectors.get(kept["decision"])
        if selector is None or kept["arm"] not in {model.key for model in selector.models}:
            return
        if await self._first(kept["key"], "heard"):
            with contextlib.suppress(ValueError, TypeError):  # as above
                selector.grade(Graded(kept["arm"], kept["context"]), score)

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        async def quietly() -> None:
            with contextlib.suppress(Unavailable):  # the answer cannot be graded then
                await work

        task = asyncio.get_running_loop().create_task(quietly())
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    def _owner(self, request: Request) -> str:
        """Who asks: the tenant, where the policy says how that is told, else the session that the request names; ''
        where nobody is named, so that whoever knows the answer's id may grade it."""
        if self._tenant is not None:
            return "tenant " + _digest(request.headers.get(self._tenant, ""))
        name = self._sessions.name(request)
        return "session " + _digest(name) if name else ""


def _id(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= LONGEST


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def graded(selectors: Iterable[tuple[str, Selector]]) -> dict[str, Selector]:
    """Those of `selectors` that learn from grades."""
    return {name: selector for name, selector in selectors if selector.graded}
