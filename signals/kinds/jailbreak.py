"""`jailbreak`: attacks on the model, direct ones and ones hidden in documents and tool results."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from pydantic import Field

from signals.facts import Facts
from signals.neural.fair import client_of
from signals.neural.kinds import second, shipped
from signals.neural.shipped import LEAST_KNOWN, Shipped, Verdicts
from signals.reading import Reading, Unavailable, unknown
from signals.request import Scope
from signals.signal import Cost, Params, Shared, Signal

if TYPE_CHECKING:
    from signals.neural.heads import HeadVerdict
    from signals.neural.reader import Opinion

DEFAULT = 0.8
"""The threshold for which the model card promises at most 1 % false alarms on ordinary traffic."""
PASTED = 0.25
"""How much an instruction inside the user's own text counts as a hidden one. Whoever pastes a document also asks
something about it, so what would be an attack in a tool's result is only a hint here."""
DOCUMENT = 3
"""Sentences from which on the user's text may be a pasted document."""
BLOCK = 1.5
"""By how much the odds of a direct attack must be greater in a block of an agent's: its reminders are orders to the
model as well (`you MUST not`, `never mention this to the user`), and look like attacks to whoever expects a user."""
READ_BLOCK = 4.0
"""The same where the second reader was asked, who is more easily sure of an attack there, rightly or not."""
BOTH = 30.0
"""The odds against an attack in such a block. A hidden instruction there is one that both heads together are sure of:
each of them alone takes some reminders for one (docs/models.md says how this was measured)."""


class JailbreakParams(Params):
    """How probable an attack must be, and where to look."""

    at_least: float = Field(DEFAULT, ge=0, le=1, description="The least probability of an attack that matches.")
    in_: list[Scope] = Field(
        ["user", "tools"],
        alias="in",
        min_length=1,
        description="The texts to judge: user (last user message), latest (all since the assistant's last answer), "
        "conversation, system, tools (tool results), all.",
    )

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, None

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1

    def scopes(self) -> tuple[Scope, ...]:
        return tuple(self.in_)


AGENTS: Final[tuple[Scope, ...]] = ("latest", "conversation")
"""The scopes in which agents' blocks stand beside what users say."""


class Part(Verdicts):
    """Slow input: the heads' verdict on one of the texts into which `Request.apart` parts a scope. Nothing is read
    where there are no blocks: then the whole is read alone."""

    def __init__(self, shipped: Shipped, scope: Scope, part: int) -> None:
        super().__init__(shipped, scope)
        self._part = part

    async def fetch(self, facts: Facts) -> HeadVerdict:
        texts = facts.request.apart(self.scope)
        text = texts[self._part] if any(texts[1:]) else ""
        return await self._shipped.verdict(text, facts.deadline, client_of(facts.request))


class Jailbreak(Signal):
    """Reads the probability that one of the texts attacks the model; the label is `direct` or `planted`. Unknown
    (`too_little_known`) where none seems to, but the model knows next to no word of one of them."""

    kind = "jailbreak"
    Parameters = JailbreakParams
    answers = True
    scored = True
    labelled = True
    finds = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: JailbreakParams, shared: Shared) -> None:
        from signals.neural.reader import Opinions

        super().__init__(name, params, shared)
        self._least = params.at_least
        model, other = shipped(shared), second(shared)
        self._sources = tuple(
            (scope, shared.use(Opinions, shared.use(Verdicts, model, scope), other))
            for scope in dict.fromkeys(params.in_)
        )
        self._parts = {
            scope: [shared.use(Opinions, shared.use(Part, model, scope, part), other) for part in range(3)]
            for scope, _ in self._sources
            if scope in AGENTS
        }
        self.slow = (*(opinions for _, opinions in self._sources), *chain.from_iterable(self._parts.values()))

    def read(self, facts: Facts) -> Reading:
        score, label, windows, strange, asked = 0.0, None, 0, False, False
        missing: Unavailable | None = None
        for scope, source in self._sources:
            whole = facts.got(source)
            if not facts.request.text(scope):
                continue
            read = [(whole, whole.direct, _planted(whole, scope))]
            outside, *inside = [facts.got(part) for part in self._parts.get(scope, ())] or [whole]
            blocks = [opinion for opinion in inside if opinion.verdict.segments]
            if blocks:
                weaker = _weaker(whole)
                read = [(whole, weaker, 0.0), (outside, outside.direct, _planted(outside, scope)), *map(_block, blocks)]
            for opinion, direct, planted in read:
                verdict = opinion.verdict
                windows += verdict.windows + verdict.segments
                missing = missing or opinion.missing
                strange, asked = strange or verdict.known < LEAST_KNOWN, asked or opinion.asked
                for found, name in ((direct, "direct"), (planted, "planted")):
                    if found > score:
                        score, label = found, name
        if missing is not None and score < self._least:
            return unknown(missing.reason)  # the second reader might have found what the heads did not
        if strange and score < self._least:
            return unknown("too_little_known")
        evidence = (f"windows={windows}", f"readers={'both' if asked else 'fast'}")
        return Reading(score >= self._least, score, label, evidence=evidence)


def _block(opinion: Opinion) -> tuple[Opinion, float, float]:
    """The probabilities of a direct and of a planted attack in agents' blocks."""
    return opinion, _weaker(opinion), _chance(_odds(opinion.direct) * _odds(opinion.planted) / BOTH)


def _weaker(opinion: Opinion) -> float:
    """The probability of a direct attack where an agent's blocks are read as well."""
    return _chance(_odds(opinion.direct) / (READ_BLOCK if opinion.asked else BLOCK))


def _odds(chance: float) -> float:
    return chance / max(1e-9, 1 - chance)


def _chance(odds: float) -> float:
    return odds / (1 + odds)


def _planted(opinion: Opinion, scope: Scope) -> float:
    """The probability of a planted instruction: in full in what tools return, as a hint in what the user wrote."""
    if scope == "tools":
        return opinion.planted
    return PASTED * opinion.planted if opinion.verdict.segments >= DOCUMENT else 0.0
