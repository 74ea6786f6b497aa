"""`score`: a weighted sum of other signals' scores."""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from signals.bounds import check, within
from signals.facts import Facts
from signals.reading import Reading, unknown
from signals.signal import Params, Shared, Signal


class ScoreParams(Params):
    """What is added up, and the sum's bounds."""

    sum: dict[str, float] = Field(
        min_length=1, description="Weight by signal name. A signal without a score counts 1 where it matches, else 0."
    )
    at_least: float | None = Field(None, description="The least sum that matches.")
    at_most: float | None = Field(None, description="The greatest sum that matches.")
    bands: dict[str, float] = Field(
        {},
        description="Names by lower bound, as in {low: 0, high: 0.7}: the label is that of the highest one reached.",
    )

    def inputs(self) -> tuple[str, ...]:
        return tuple(self.sum)

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, self.at_most

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        check(self.at_least, self.at_most)
        if any(weight == 0 for weight in self.sum.values()):
            raise ValueError("a weight is 0; leave the signal out")
        if len(set(self.bands.values())) < len(self.bands):
            raise ValueError("two bands begin at the same sum")
        return self


class Score(Signal):
    """Reads the sum. Unknown (`input_unknown`) while any signal in it is Unknown."""

    kind = "score"
    Parameters = ScoreParams
    sure = True
    scored = True
    labelled = True

    def __init__(self, name: str, params: ScoreParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self.inputs = params.inputs()
        self._weights = tuple(params.sum.items())
        self._least, self._most = params.at_least, params.at_most
        self._bands = sorted(params.bands.items(), key=lambda band: -band[1])

    def read(self, facts: Facts) -> Reading:
        total = 0.0
        for name, weight in self._weights:
            reading = facts.readings.get(name)
            if reading is None or reading.matched is None:
                return unknown("input_unknown")
            total += weight * (float(reading.matched) if reading.score is None else reading.score)
        label = next((label for label, low in self._bands if total >= low), None)
        return Reading(within(total, self._least, self._most), total, label)
