"""`factors`: a weighed sum of quality, cost, latency and load."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

from pydantic import Field

from decisions.candidates import expected_tokens
from decisions.decision import Choice
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.selectors.learner import USUAL, Stubbed, expected
from decisions.selectors.selector import Params, Pick, Selector
from decisions.selectors.timing import Timing
from signals.facts import Facts
from signals.signal import Doubt, Shared

BEST: Final = "best sum of factors"
LIMITS: Final = "best sum of factors, since none keeps the limits"


class FactorLimits(Params):
    """What a candidate must keep, unless none does."""

    cost: float | None = Field(None, gt=0, description="The most estimated money of the call.")
    latency: float | None = Field(None, gt=0, description="The most expected seconds to the first byte.")
    load: float | None = Field(None, ge=0, description="The most requests that wait for the model in this process.")
    quality: float | None = Field(None, ge=0, le=1, description="The least `quality` of the model.")

    def keeps(self, quality: float, cost: float, latency: float, load: float) -> bool:
        """Whether a candidate with these figures keeps them all."""
        most = ((self.cost, cost), (self.latency, latency), (self.load, load))
        return all(limit is None or value <= limit for limit, value in most) and quality >= (self.quality or 0.0)


class FactorsParams(Params):
    """The weights of the factors, each of which is brought to 0 to 1 among the candidates; and limits."""

    quality: float = Field(1.0, ge=0, description="Weight of the model's `quality`.")
    cost: float = Field(0.0, ge=0, description="Weight of the estimated price of the call.")
    latency: float = Field(0.0, ge=0, description="Weight of the expected seconds to the first byte.")
    load: float = Field(0.0, ge=0, description="Weight of the requests that wait for the model.")
    limits: FactorLimits = Field(FactorLimits(), description="What a candidate must keep, unless none does.")

    def check(self, models: Sequence[str]) -> None:
        if not self.quality + self.cost + self.latency + self.load > 0:
            raise ValueError("all weights are 0: at least one factor must count")

    def doubts(self, models: Sequence[Model]) -> Iterator[Doubt]:
        unknown = next((model for model in models if model.quality is None), None)
        if self.quality and unknown is not None:
            yield Doubt((), "L326", f"{unknown.key!r} has no `quality` and so counts as {USUAL}: give every model one")
        unpriced = next((model for model in models if not model.priced), None)
        if self.cost and unpriced is not None:
            message = f"{unpriced.key!r} has no price and so counts as free: give every model a `price`"
            yield Doubt((), "L326", f"{message}, or `price: {{input: 0, output: 0}}` when it is free")


class Factors(Selector):
    """The highest sum of weighed factors among the candidates that keep the limits; the first of equals.

    A factor is 0 for the least and 1 for the greatest figure among them; quality counts for a candidate, the others
    against it.
    """

    name = "factors"
    about = "Take the best weighed sum of quality, cost, latency and load, within limits."
    Parameters = FactorsParams

    def __init__(self, pick: Pick, params: FactorsParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self.learns = True
        self._weights = (params.quality, -params.cost, -params.latency, -params.load)
        limits = params.limits
        self._priced = params.cost > 0 or limits.cost is not None
        self._timed = params.latency > 0 or limits.latency is not None
        self._loaded = params.load > 0 or limits.load is not None
        self._limits = None if limits == FactorLimits() else limits
        self._timing = Timing(shared, "first_byte")
        self._rates = {model: (model.cost(1, 0), model.cost(0, 1)) for model in self.models}
        self._stubbed = Stubbed()
        self._qualities = {model: expected(model) for model in self.models}

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        columns = self._figures(models, facts)
        limits = self._limits
        every = list(range(len(models)))
        keeping = every
        if limits is not None:
            keeping = [at for at, each in enumerate(zip(*columns, strict=True)) if limits.keeps(*each)]
        some = keeping or every
        sums = [0.0] * len(some)
        for column, weight in zip(columns, self._weights, strict=True):
            if not weight:
                continue
            values = column if some is every else [column[at] for at in some]
            least = min(values)
            width = max(values) - least
            if width > 0:
                scale = weight / width
                sums = [total + scale * (value - least) for total, value in zip(sums, values, strict=True)]
        best = some[max(range(len(some)), key=sums.__getitem__)]
        return Choice(models[best], BEST if keeping else LIMITS, 1.0, self.name)

    def stub(self, facts: Facts, qualities: Mapping[str, float]) -> None:
        facts.put(self._stubbed, qualities)

    def stub_seconds(self, facts: Facts, seconds: Mapping[str, float]) -> None:
        self._timing.stub(facts, seconds)

    def learn(self, outcome: Outcome, choice: Choice) -> None:
        self._timing.learn(outcome, choice.model)

    def _figures(self, models: Sequence[Model], facts: Facts) -> tuple[list[float], ...]:
        """Quality, money, seconds and waiting requests of each; nothing of what does not count."""
        nothing = [0.0] * len(models)
        money, seconds, waiting = nothing, nothing, nothing
        if self._priced:
            asked, answered = expected_tokens(facts)
            rates = map(self._rates.__getitem__, models)
            money = [of_input * asked + of_output * answered for of_input, of_output in rates]
        if self._timed:
            seconds = self._timing.expected(models, facts)
        if self._loaded:
            waiting = [float(each) for each in self._timing.waiting(models)]
        qualities = [self._qualities[model] for model in models]
        if facts.has(self._stubbed):
            told = facts.get(self._stubbed)
            qualities = [told.get(model.key, quality) for model, quality in zip(models, qualities, strict=True)]
        return qualities, money, seconds, waiting
