"""`load`: how busy and how well a model is, as this replica sees it."""

from __future__ import annotations

import math
import time
from typing import Self

from pydantic import Field, model_validator

from signals.bounds import Bounds
from signals.facts import Facts
from signals.reading import Reading, of, unknown
from signals.signal import Params, Shared, Signal

HALF_LIFE_S = 30.0
FEW = 0.5  # weight of observations under which averages say nothing


class Gauge:
    """One model's state: requests waiting for their first byte, and decaying averages (half-life 30 s)."""

    __slots__ = ("_errors", "_first_byte", "_updated", "_weight", "waiting")

    def __init__(self) -> None:
        self.waiting = 0
        self._weight = self._errors = self._first_byte = 0.0
        self._updated = time.monotonic()

    def started(self) -> None:
        """A request went to the model."""
        self.waiting += 1

    def ended(self, seconds: float | None, failed: bool) -> None:
        """Its first byte came after `seconds`, or never did (None: given up by the client, which says nothing)."""
        self.waiting -= 1
        if seconds is None:
            return
        self._decay()
        self._weight += 1.0
        self._errors += failed
        self._first_byte += seconds

    @property
    def error_rate(self) -> float | None:
        """Share of answers with status 500 or above, 0 to 1; None when there were too few lately."""
        self._decay()
        return self._errors / self._weight if self._weight >= FEW else None

    @property
    def first_byte(self) -> float | None:
        """Mean seconds to the first byte; None when there were too few answers lately."""
        self._decay()
        return self._first_byte / self._weight if self._weight >= FEW else None

    def _decay(self) -> None:
        now = time.monotonic()
        kept = math.exp2((self._updated - now) / HALF_LIFE_S)
        self._updated = now
        self._weight *= kept
        self._errors *= kept
        self._first_byte *= kept


class Loads:
    """The models' gauges by model key. One object a process; it outlives reloads of the policy."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def of(self, model: str) -> Gauge:
        """The gauge of `model`, a key of the policy."""
        gauge = self._gauges.get(model)
        if gauge is None:
            gauge = self._gauges[model] = Gauge()
        return gauge


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


class Load(Signal):
    """Reads this replica's own counters; the score is the number waiting. Unknown (`no_traffic`) without averages."""

    kind = "load"
    Parameters = LoadParams
    scored = True

    def __init__(self, name: str, params: LoadParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        loads: Loads = shared.settings.get("loads") or shared.use(Loads)
        self._gauge = loads.of(params.model)
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
