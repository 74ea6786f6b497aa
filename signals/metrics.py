"""What counts are made of, whoever counts: a histogram, and a value as it is handed on."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple


class MetricSample(NamedTuple):
    """One value: a counter's number, or a histogram's bucket counts (one more than its bounds) and its sum. Label
    values come from the configuration and from fixed lists only."""

    name: str
    labels: dict[str, str]
    value: float | tuple[list[int], float]


class Histogram:
    """Counts by bucket; `bounds` are inclusive upper limits in ascending order, and one more bucket takes the rest."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value
