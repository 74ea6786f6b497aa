"""How long candidates take, from what their answers took: for the kinds of selectors that want to know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, Literal

from decisions.model import Model
from decisions.outcome import Outcome
from signals.signal import Shared

Until = Literal["first_byte", "end"]
HALF_LIFE_S: Final = 60.0
ABREAST: Final = 8.0
"""Requests that a model's server works at side by side before one has to wait for another, by and large."""
FEW: Final = 0.5
"""Weight of outcomes below which they say nothing."""
UNKNOWN: Final = 0.9
"""What a candidate of which nothing is known is expected to take, of the time of the quickest."""
LEAST: Final = 0.05
"""The share of answers that succeed is taken to be no less."""


class Timing:
    """Expected seconds by candidate: the decaying mean of what answers took (half-life a minute), the longer the more
    requests wait for the model now, and the longer the more of its answers fail, since one who gets none asks again."""

    def __init__(self, shared: Shared, until: Until) -> None:
        self._until = until
        self._loads = shared.services.loads
        self._standing = shared.services.standings.of(shared.services.store, f"timing:{until}", 3, HALF_LIFE_S)

    def learn(self, outcome: Outcome, arm: Model) -> None:
        """What became of a request that `arm` was chosen for."""
        seconds = outcome.first_byte if self._until == "first_byte" else outcome.seconds
        if outcome.model is not arm.plain or outcome.status is None or seconds is None:
            return  # another model answered, or the client has left: that says nothing of this one
        if 400 <= outcome.status < 500 and outcome.status != 429:
            return  # the request's own fault, which is soon said
        failed = outcome.status == 429 or outcome.status >= 500
        self._standing.add(arm.key, (1.0, 0.0 if failed else seconds, float(failed)))

    def expected(self, models: Sequence[Model]) -> list[float]:
        """Seconds for each of `models`. One of which nothing is known counts as a little quicker than the quickest, so
        that it is tried before long."""
        self._standing.refresh()
        means = [self._mean(model) for model in models]
        known = [mean for mean in means if mean is not None]
        least = UNKNOWN * min(known, default=1.0)
        return [
            (least if mean is None else mean) * (1.0 + self.waiting(model) / ABREAST)
            for mean, model in zip(means, models, strict=True)
        ]

    def waiting(self, model: Model) -> int:
        """Requests that wait for the first byte of the model's answer, in this process."""
        return self._loads.of(model.plain.key).waiting

    def _mean(self, model: Model) -> float | None:
        found = self._standing.told(model.key)
        if found is None:
            return None
        count, seconds, failed = found
        if count < FEW:
            return None
        good = count - failed
        mean = seconds / good if good > FEW else 1.0 + seconds  # all have failed: it counts as slow
        return mean / max(LEAST, good / count)
