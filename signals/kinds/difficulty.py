"""`difficulty`: how likely a model of a given standing fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from signals.neural.kinds import Probability, ProbabilityParams, shipped
from signals.signal import Shared

if TYPE_CHECKING:
    from signals.neural.heads import HeadVerdict


class DifficultyParams(ProbabilityParams):
    """Bounds of the probability, and which model's it is."""

    standing: float | None = Field(
        None,
        ge=0,
        le=1,
        description="How good the model is whose failure is foretold: the share of MMLU-Pro's questions that it "
        "answers rightly. Left out, the `quality` of the policy's default model, or 0.5 where it has none.",
    )


class Difficulty(Probability):
    """Reads the probability that a model of the given standing fails: 0.5 means that it fails at every other such
    request."""

    kind = "difficulty"
    Parameters = DifficultyParams

    def __init__(self, name: str, params: DifficultyParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        standing = shared.services.standing if params.standing is None else params.standing
        self._ability = shipped(shared).ability(standing)

    def probability(self, verdict: HeadVerdict) -> float:
        from signals.neural.outcomes import fails

        return fails(verdict.item, self._ability)
