"""`reasoning`: whether the answer needs several steps of reasoning."""

from __future__ import annotations

from typing import TYPE_CHECKING

from signals.neural.kinds import Probability, ProbabilityParams

if TYPE_CHECKING:
    from signals.neural.heads import HeadVerdict


class Reasoning(Probability):
    """Reads the probability that the answer takes several steps: sums, physics, logic; no look-up, no instruction."""

    kind = "reasoning"
    Parameters = ProbabilityParams
    words = True

    def probability(self, verdict: HeadVerdict) -> float:
        return verdict.reasoning
