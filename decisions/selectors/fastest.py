"""`fastest`: the least expected time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from pydantic import Field

from decisions.decision import Choice
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.selectors.exploring import EXPLORED, explored
from decisions.selectors.selector import Params, Pick, Selector
from decisions.selectors.timing import Timing, Until
from signals.facts import Facts
from signals.signal import Shared

LEAST: Final = "least expected time"


class FastestParams(Params):
    """What is measured, and how much is left to chance."""

    until: Until = Field("first_byte", description="What is to be soon: the answer's first byte, or its end.")
    explore: float = Field(
        0.05, ge=0, le=1, description="Share of requests spread evenly over all candidates, to measure them."
    )


class Fastest(Selector):
    """The candidate whose answer is expected soonest (`Timing`), but for a share of the requests that measures all."""

    name = "fastest"
    about = "Take the model whose answer is expected soonest, by what its answers took and how many requests wait."
    Parameters = FastestParams

    def __init__(self, pick: Pick, params: FastestParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self.learns = True
        self._explore = params.explore
        self.watches_answers = params.until == "end"
        self._timing = Timing(shared, params.until)

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        expected = self._timing.expected(models, facts)
        best = min(range(len(models)), key=expected.__getitem__)
        explore = 0.0 if self._timing.stubbed(facts) else self._explore
        at, propensity = explored(best, len(models), explore, facts)
        return Choice(models[at], LEAST if at == best else EXPLORED, propensity, self.name)

    def stub_seconds(self, facts: Facts, seconds: Mapping[str, float]) -> None:
        self._timing.stub(facts, seconds)

    def learn(self, outcome: Outcome, choice: Choice) -> None:
        self._timing.learn(outcome, choice.model)
