"""`reasoning`: whether the answer needs several steps of reasoning."""

from __future__ import annotations

from signals.neural.heads import HeadVerdict
from signals.neural.kinds import Probability, ProbabilityParams


class Reasoning(Probability):
    """Reads the probability that the answer takes several steps: sums, physics, logic; no look-up, no instruction."""

    kind = "reasoning"
    Parameters = ProbabilityParams
    words = True

    def probability(self, verdict: HeadVerdict) -> float:
        return verdict.reasoning
