"""What the exchanges count of the models, for `load`: requests that wait, and decaying averages."""

from __future__ import annotations

import math
import time

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
    """The models' gauges by model key. There is one object per process; it outlives reloads of the policy."""

    def __init__(self) -> None:
        self._gauges: dict[str, Gauge] = {}

    def of(self, model: str) -> Gauge:
        """The gauge of `model`, a key of the policy."""
        gauge = self._gauges.get(model)
        if gauge is None:
            gauge = self._gauges[model] = Gauge()
        return gauge
