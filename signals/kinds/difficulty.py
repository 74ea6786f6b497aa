"""`difficulty`: whether the weak model would fail where the strong one succeeds."""

from __future__ import annotations

from signals.neural.heads import Verdict
from signals.neural.kinds import Probability, ProbabilityParams


class Difficulty(Probability):
    """Reads the probability that a weak model fails where a strong one succeeds (its card says which)."""

    kind = "difficulty"
    Parameters = ProbabilityParams

    def probability(self, verdict: Verdict) -> float:
        return verdict.difficulty
