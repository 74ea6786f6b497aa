"""`load`: how busy a model is and whether it fails, as this replica sees it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Self

from pydantic import Field, model_validator

from signals.bounds import Bounds, idle
from signals.facts import Facts
from signals.reading import Reading, of, unknown
from signals.signal import Doubt, Params, Shared, Signal


class LoadParams(Params):
    """Which model, and one or more bounds that must all hold."""

    model: str = Field(min_length=1, description="The model's key in the policy.")
    waiting: Bounds | None = Field(None, description="Requests that wait for their first byte.")
    error_rate: Bounds | None = Field(None, description="Share of answers with status 500 or above, lately, 0 to 1.")
    first_byte: Bounds | None = Field(None, description="Mean seconds to the first byte, lately.")

    @model_validator(mode="after")
    def _some(self) -> Self:
        if self.waiting is None and self.error_rate is None and self.first_byte is None:
            raise ValueError("one of waiting, error_rate, first_byte is needed")
        return self

    def named_models(self) -> Mapping[str, str]:
        return {"model": self.model}

    def doubts(self) -> Iterator[Doubt]:
        for name, high in (("waiting", None), ("error_rate", 1), ("first_byte", None)):
            test = getattr(self, name)
            if test is not None:
                yield from idle(test, 0, high, name)


class Load(Signal):
    """Reads this replica's own counters; the score is the number of requests that wait. Unknown (`no_traffic`) where
    an average is asked for and there were too few answers lately."""

    kind = "load"
    Parameters = LoadParams
    scored = True
    timed = True

    def __init__(self, name: str, params: LoadParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._gauge = shared.services.loads.of(params.model)
        self._params = params

    def read(self, facts: Facts) -> Reading:
        gauge, params = self._gauge, self._params
        holds = params.waiting is None or params.waiting.hold(gauge.waiting)
        for bounds, value in ((params.error_rate, gauge.error_rate), (params.first_byte, gauge.first_byte)):
            if bounds is None:
                continue
            if value is None:
                return of(False) if not holds else unknown("no_traffic")
            holds = holds and bounds.hold(value)
        return Reading(holds, float(gauge.waiting))
