"""How long candidates take, from what their answers took: for the kinds of selectors that want to know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final, Literal

from decisions.model import Model
from decisions.outcome import Outcome
from decisions.selectors.learner import Stubbed
from signals.facts import Facts
from signals.signal import Shared
from signals.state.gauges import Gauge

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
        self._gauges: dict[Model, Gauge] = {}
        self._stubbed = Stubbed()
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

    def stub(self, facts: Facts, seconds: Mapping[str, float]) -> None:
        """Let these seconds by candidate stand for what is known, for one request (policy tests)."""
        facts.put(self._stubbed, seconds)

    def stubbed(self, facts: Facts) -> bool:
        """Whether seconds stand for what is known."""
        return facts.has(self._stubbed)

    def expected(self, models: Sequence[Model], facts: Facts) -> list[float]:
        """Seconds for each of `models`. One of which nothing is known counts as a little quicker than the quickest, so
        that it is tried before long."""
        if self.stubbed(facts):
            means = [facts.get(self._stubbed).get(model.key) for model in models]
        else:
            self._standing.refresh()
            told, mean = self._standing.told, self._mean
            means = [None if (sums := told(model.key)) is None else mean(sums) for model in models]
        known = [each for each in means if each is not None]
        least = UNKNOWN * min(known, default=1.0)
        return [
            (least if each is None else each) * (1.0 + waiting / ABREAST)
            for each, waiting in zip(means, self.waiting(models), strict=True)
        ]

    def waiting(self, models: Sequence[Model]) -> list[int]:
        """Requests that wait for the first byte of each one's answer, in this process."""
        gauges = self._gauges
        for model in models:
            if model not in gauges:
                gauges[model] = self._loads.of(model.plain.key)
        return [gauges[model].waiting for model in models]

    @staticmethod
    def _mean(sums: Sequence[float]) -> float | None:
        count, seconds, failed = sums
        if count < FEW:
            return None
        good = count - failed
        mean = seconds / good if good > FEW else 1.0 + seconds  # all have failed: it counts as slow
        return mean / max(LEAST, good / count)
