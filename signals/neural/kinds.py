"""What the kinds that read one head of the shipped classifier have in common."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from signals.bounds import Bounds
from signals.facts import Facts
from signals.neural.shipped import LEAST_KNOWN, Shipped, Verdicts
from signals.reading import Reading, unknown
from signals.signal import Cost, Doubt, Shared, Signal, TextParams

if TYPE_CHECKING:
    from signals.neural.heads import HeadVerdict
    from signals.neural.reader import Second


def shipped(shared: Shared) -> Shipped:
    """The shipped model of an engine."""
    return shared.use(Shipped, shared.services)


def second(shared: Shared) -> Second | None:
    """The second reader of an engine, None where `settings.readers` is `fast`."""
    if shared.services.readers == "fast":
        return None
    from signals.neural.reader import Second

    return shared.use(Second, shared.services)


class ProbabilityParams(Bounds, TextParams):
    """Bounds of the probability."""

    at_least: float | None = Field(None, ge=0, le=1, description="The least probability that matches.")
    at_most: float | None = Field(None, ge=0, le=1, description="The greatest probability that matches.")

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, self.at_most

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1


class Probability(Signal):
    """Reads one probability of the verdict. Without text it is 0."""

    scored = True
    cost = Cost.NEURAL
    words: ClassVar[bool] = False
    """Whether it reads what words mean, and is Unknown where it knows too few of them."""

    def __init__(self, name: str, params: ProbabilityParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._bounds, self._scope = params, params.in_
        self._verdict = shared.use(Verdicts, shipped(shared), params.in_)
        self.slow = (self._verdict,)

    def probability(self, verdict: HeadVerdict) -> float:
        raise NotImplementedError

    def read(self, facts: Facts) -> Reading:
        verdict = facts.got(self._verdict)
        if self.words and verdict.known < LEAST_KNOWN:
            return unknown("too_little_known")
        score = self.probability(verdict) if facts.request.text(self._scope) else 0.0
        return Reading(self._bounds.hold(score), score, evidence=(f"windows={verdict.windows}",))


class LikeliestClassParams(TextParams):
    """Classes, and how probable they must be together. Subclasses say which classes there are."""

    at_least: float | None = Field(
        None,
        ge=0,
        le=1,
        description="The least probability of the classes together; left out, the likeliest class must be one of them.",
    )

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1

    def doubts(self) -> Iterator[Doubt]:
        if self.at_least == 0:
            message = "every text holds it: leave it out, and the likeliest class must be one of those given"
            yield Doubt(("at_least",), "L322", message)


class LikeliestClass(Signal):
    """Reads the probability of some of a head's classes; the label is the likeliest. Without text nothing matches."""

    scored = True
    labelled = True
    cost = Cost.NEURAL
    head: ClassVar[str]
    words: ClassVar[bool] = False
    """As in `Probability`."""

    def __init__(self, name: str, params: Any, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._wanted, self._least, self._scope = frozenset(params.is_), params.at_least, params.in_
        self._verdict = shared.use(Verdicts, shipped(shared), params.in_)
        self.slow = (self._verdict,)

    def read(self, facts: Facts) -> Reading:
        return self.choose(facts, facts.got(self._verdict))

    def choose(self, facts: Facts, verdict: HeadVerdict, both: dict[str, float] | None = None) -> Reading:
        """The reading by the verdict, or by the probabilities that `both` readers give where the second was asked."""
        if not facts.request.text(self._scope):
            return Reading(False, 0.0)
        if both is None and self.words and verdict.known < LEAST_KNOWN:
            return unknown("too_little_known")
        chances: dict[str, float] = both or getattr(verdict, self.head)
        score = min(1.0, sum(chances[label] for label in self._wanted))
        label = max(chances, key=chances.__getitem__)
        matched = label in self._wanted if self._least is None else score >= self._least
        told = (f"windows={verdict.windows}",) if both is None else (f"windows={verdict.windows}", "readers=both")
        return Reading(matched, score, label, evidence=told)
