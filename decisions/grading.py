"""Grades of answers: which choice an answer came from is remembered for a day, and who asked may say how good it was.

Nobody can speak for another: a grade is taken once for an answer, from the tenant or the session that asked for it, and
only so many in a minute. What is remembered is in the policy's state store, so that any replica takes the grade.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from typing import Any, Final, Literal

import orjson

from decisions.candidates import digest, whose
from decisions.decision import Trace
from decisions.selectors.learner import given
from decisions.selectors.selector import Graded, Selector
from signals.reading import Unavailable
from signals.request import Request
from signals.state.session import Sessions
from signals.state.store import Store, first_text

DAY_S: Final = 86_400.0
"""How long an answer can be graded."""
A_MINUTE: Final = 60
"""Grades that are taken of one tenant or session in a minute."""
_AT_A_TIME: Final = 100
"""Grades of the operator's that are taken without a pause for requests."""
_ON_ITS_WAY_S: Final = 0.2
"""After how long an answer that is not known is looked up once more."""
LONGEST: Final = 512
"""Characters of an answer's id."""
SAID: Final = {"satisfied": 1.0, "clarification": 0.3, "dissatisfied": 0.0}
"""What a user's words in the next turn (`feedback`) say of the answer before."""

SEVERAL: Final = '{"key":""}'
"""What is remembered under an id that answers of two servers, or of two who asked, have: some count from 1, and some
draw from few numbers."""

Taken = Literal[
    "taken", "invalid_feedback", "unknown_answer", "ambiguous_answer", "graded_already", "too_many_grades", "store_down"
]


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
        owner, named = self._owner(request), request.headers.get("x-request-id", "")
        kept = self._kept(trace, request, named) if self._says or named else None
        session = f"{digest(owner)}:{key}" if self._says and (key := self._sessions.key(request)) else ""
        if (scores and session) or kept is not None:
            asked = _asked(owner, named) if named else ""
            self._begin(self._sent(session, min(scores, default=None), asked, kept))

    def answered(self, trace: Trace, request: Request, answer: str) -> None:
        """The answer of this id comes from the choice in `trace`. Never waits and never raises."""
        kept = self._kept(trace, request, answer)
        if kept is not None:
            self._begin(self._answered(f"decided:{digest(answer)}", kept))

    def _kept(self, trace: Trace, request: Request, answer: str) -> str | None:
        """What is remembered of a choice; None where no selector of ours has made it. Its `key` is the answer's,
        whichever id names it: nobody else's request has the same, though it have the same id."""
        name, choice = trace.decision.name, trace.choice
        if choice is None or name not in self._selectors or len(answer) > LONGEST:
            return None
        owner = self._owner(request)
        kept = {
            "decision": name,
            "arm": choice.model.key,
            "context": trace.context,
            "propensity": given(choice, None).propensity,
            "owner": owner,
            "key": digest(f"{owner} {request.headers.get('x-request-id') or answer} {request.received}"),
        }
        return orjson.dumps(kept).decode()

    async def take(self, request: Request) -> Taken:
        """The grade in the body of `request`: `{"id": …, "score": 0 to 1}` or `{"id": …, "better_than": …}`."""
        if not _sound(request.fields):
            return "invalid_feedback"
        owner = self._owner(request)
        try:
            return await self._take(request.fields, owner) if await self._within_rate(owner) else "too_many_grades"
        except Unavailable:
            return "store_down"

    async def take_all(self, grades: Sequence[Any]) -> list[Taken]:
        """What becomes of grades that the operator gives, in any number and of anybody's answers. With a request's `id`
        its `tenant` or `session_id` is told, whichever tells askers apart. Raises `Unavailable`; what was taken by then
        is taken."""
        told: list[Taken] = []
        for at, grade in enumerate(grades):
            if at % _AT_A_TIME == 0:
                await asyncio.sleep(0)
            sound = isinstance(grade, dict) and _sound(grade, "tenant") and _texts(grade, "tenant", "session_id")
            told.append(await self._take(grade, None) if sound else "invalid_feedback")
        return told

    async def _take(self, fields: Mapping[str, Any], owner: str | None) -> Taken:
        """Take one grade; `owner` None: of the operator. Raises `Unavailable`."""
        score = fields.get("score")
        found = [
            await self._found(fields, str(fields[name]), owner) for name in ("id", "better_than") if name in fields
        ]
        kept = [each for each in found if each is not None]
        if len(kept) < len(found):
            return "unknown_answer"
        if not all(each["key"] for each in kept):
            return "ambiguous_answer"
        if kept[0]["decision"] != kept[-1]["decision"]:
            return "invalid_feedback"  # of two decisions, so that nothing can be learned of either
        taken: list[str] = []
        try:
            for each in kept:
                if not await self._first(each["key"], "said"):
                    return "graded_already"
                taken.append(each["key"])
            apart = None if owner is None else await self._apart(kept[0])
            graded = [_graded(each, apart) for each in kept]
            selector = self._selectors[kept[0]["decision"]]
            if score is None:
                selector.compare(graded[0], graded[1])
            else:
                selector.grade(graded[0], float(score))
            taken = []
        except (ValueError, TypeError):  # another kind of selector chose it, before the policy was changed
            return "unknown_answer"
        finally:
            for key in taken:  # it has not counted, and may be graded yet
                self._store.add(f"said:{key}", -1.0, DAY_S)
        return "taken"

    async def _found(self, fields: Mapping[str, Any], answer: str, owner: str | None) -> dict[str, Any] | None:
        """What is remembered of an answer, with a `key` of '' where the id is that of several; None where that is
        nothing, or another's."""
        if owner is None:
            owners = ["", *(self._named(str(fields[name])) for name in ("tenant", "session_id") if name in fields)]
        else:
            owners = ["", owner]
        places = [f"decided:{digest(answer)}", *(_asked(each, answer) for each in dict.fromkeys(owners))]
        text = await first_text(self._store, places, 0.0 if owner is None else _ON_ITS_WAY_S)
        if text is None:
            return None
        kept: dict[str, Any] = orjson.loads(text)
        known = not kept["key"] or (self._knows(kept) and (owner is None or kept["owner"] in owners))
        return kept if known else None

    def _knows(self, kept: Mapping[str, Any]) -> bool:
        """Whether the candidate is still one of a selector that learns."""
        selector = self._selectors.get(kept["decision"])
        return selector is not None and kept["arm"] in {model.key for model in selector.models}

    async def _within_rate(self, owner: str) -> bool:
        """Whether another grade of this owner may be taken in this minute."""
        minute = f"grades:{int(time.time() // 60)}:{digest(owner)}"
        return await self._store.take(minute, 1.0, A_MINUTE, 120.0)

    async def _apart(self, kept: Mapping[str, Any]) -> str | None:
        """Whose choices alone another grade of this answer's owner counts for; None: everybody's."""
        selector, owner = self._selectors[kept["decision"]], str(kept["owner"])
        if self._tenant is None or selector.standing is None:
            return None
        half_life = selector.standing.half_life
        said = f"common:{kept['decision']}:{int(time.time() / half_life)}:{owner}"
        return None if await self._store.take(said, 1.0, selector.per_tenant, half_life) else owner

    async def _first(self, key: str, how: str) -> bool:
        """Whether nobody has graded the answer of this key so before."""
        return await self._store.take(f"{how}:{key}", 1.0, 1.0, DAY_S)

    async def _answered(self, place: str, kept: str) -> None:
        first = await self._store.pin(place, kept, DAY_S)
        if first != kept:  # one server that counts from 1 again means its last answer
            before, now = orjson.loads(first), orjson.loads(kept)
            alike = all(before.get(name) == now[name] for name in ("decision", "arm", "owner"))
            await self._store.keep(place, kept if alike else SEVERAL, DAY_S)

    async def _sent(self, session: str, score: float | None, asked: str, kept: str | None) -> None:
        if score is not None and session:
            await self._hear(session, score)
        if kept is not None and asked:
            await self._store.pin(asked, kept, DAY_S)  # an id that is used again names the first
        if kept is not None and session:
            await self._store.keep(f"answered:{session}", kept, DAY_S)

    async def _hear(self, session: str, score: float) -> None:
        text = await self._store.text(f"answered:{session}")
        kept: dict[str, Any] | None = None if text is None else orjson.loads(text)
        if kept is None or not self._knows(kept):
            return
        if await self._first(kept["key"], "heard") and await self._within_rate(kept["owner"]):
            apart = await self._apart(kept)
            with contextlib.suppress(ValueError, TypeError):  # as in `_take`
                self._selectors[kept["decision"]].grade(_graded(kept, apart), score)

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
            return self._named(request.headers.get(self._tenant, ""))
        name = self._sessions.name(request)
        return self._named(name) if name else ""

    def _named(self, name: str) -> str:
        """The owner of this name."""
        return f"session {digest(name)}" if self._tenant is None else whose(name)


def _graded(kept: Mapping[str, Any], apart: str | None) -> Graded:
    return Graded(kept["arm"], kept["context"], kept.get("propensity"), apart)


def _sound(fields: Mapping[str, Any], *more: str) -> bool:
    """Whether `fields` are a grade, which may have `more` of them."""
    answer, score, worse = fields.get("id"), fields.get("score"), fields.get("better_than")
    if {*fields} - {"id", "score", "better_than", "session_id", "metadata", *more} or not _id(answer):
        return False
    if worse is not None:
        return score is None and _id(worse) and worse != answer
    return isinstance(score, (int, float)) and type(score) is not bool and 0 <= score <= 1


def _texts(fields: Mapping[str, Any], *names: str) -> bool:
    """Whether those of `fields` that have these names are texts or whole numbers."""
    return all(type(fields.get(name, "")) in (str, int) for name in names)


def _asked(owner: str, name: str) -> str:
    """Where it is remembered what the owner's request of this id has chosen: another's may have the same id."""
    return f"asked:{digest(f'{owner} {name}')}"


def _id(value: Any) -> bool:
    return type(value) is str and 0 < len(value) <= LONGEST


def graded(selectors: Iterable[tuple[str, Selector]]) -> dict[str, Selector]:
    """Those of `selectors` that learn from grades."""
    return {name: selector for name, selector in selectors if selector.graded}
