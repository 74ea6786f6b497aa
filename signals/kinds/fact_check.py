"""`fact_check`: whether the request asks for, or makes, claims that should be verified."""

from __future__ import annotations

from typing import TYPE_CHECKING

from signals.neural.kinds import Probability, ProbabilityParams

if TYPE_CHECKING:
    from signals.neural.heads import HeadVerdict


class FactCheck(Probability):
    """Reads the probability that the answer will rest on facts that should be verified."""

    kind = "fact_check"
    Parameters = ProbabilityParams

    def probability(self, verdict: HeadVerdict) -> float:
        return verdict.fact_check
