"""`fact_check`: whether the request asks for, or makes, claims that should be verified."""

from __future__ import annotations

from signals.neural.heads import HeadVerdict
from signals.neural.kinds import Probability, ProbabilityParams


class FactCheck(Probability):
    """Reads the probability that the answer will rest on facts that should be verified."""

    kind = "fact_check"
    Parameters = ProbabilityParams

    def probability(self, verdict: HeadVerdict) -> float:
        return verdict.fact_check
