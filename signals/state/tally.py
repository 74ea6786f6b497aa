"""Counts of grades by which choices can be compared with choices that were not made."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

LEAST: Final = 0.01
"""A propensity counts as no less, so that no grade, and no line of a log, weighs more than a hundred."""
MOST: Final = 2_000
"""Pairs of a decision and a candidate; grades of further ones are not counted."""


class Tally:
    """For each decision and candidate: grades, their sum, their weight and their weighed sum.

    A grade weighs 1 / p, for the propensity p with which its candidate was chosen. So the weighed sum of a candidate
    over its weight says what it would have got had it taken every request that was graded (self-normalised inverse
    propensity scoring: Hájek 1971; Swaminathan and Joachims, NeurIPS 2015), and the sums of processes add up.
    """

    def __init__(self) -> None:
        self._sums: dict[tuple[str, str], tuple[float, float, float, float]] = {}

    def add(self, decision: str, arm: str, score: float, propensity: float) -> None:
        """A grade, 0 to 1, of an answer of a candidate that was chosen with a propensity."""
        key = (decision, arm)
        before = self._sums.get(key)
        if before is None and len(self._sums) >= MOST:
            return
        count, total, weight, weighed = before or (0.0, 0.0, 0.0, 0.0)
        more = 1.0 / max(LEAST, propensity)
        self._sums[key] = (count + 1.0, total + score, weight + more, weighed + more * score)

    def __iter__(self) -> Iterator[tuple[tuple[str, str], tuple[float, float, float, float]]]:
        """Decision and candidate, and their four sums."""
        return iter(self._sums.items())
