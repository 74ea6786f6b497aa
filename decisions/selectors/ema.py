"""`ema`: the best decaying mean of grades (ORCH)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from pydantic import Field

from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.exploring import EXPLORED, explored
from decisions.selectors.learner import ClassLearner, ClassParams, Known, expected
from decisions.selectors.selector import Graded, Pick
from signals.facts import Facts
from signals.signal import Shared

BEST: Final = "best mean of grades"
PRIOR: Final = 2.0
"""How many grades the model's own `quality` counts for."""


class EmaParams(ClassParams):
    """How much is left to chance."""

    explore: float = Field(
        0.05, ge=0, le=1, description="Share of requests spread evenly over all candidates, to learn of them."
    )


class Ema(ClassLearner):
    """The highest mean of grades, less the weighed price; the first of equals."""

    name = "ema"
    about = "Take the model with the best decaying mean of grades, for each class of requests."
    Parameters = EmaParams
    sums = 2

    def __init__(self, pick: Pick, params: EmaParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._explore = params.explore

    def chosen(self, models: Sequence[Model], facts: Facts, known: Known) -> Choice:
        worth = self.worths(models, facts, known)
        best = max(range(len(models)), key=worth.__getitem__)
        at, propensity = explored(best, len(models), self._explore, facts)
        return Choice(models[at], BEST if at == best else EXPLORED, propensity, self.name)

    def valued(self, model: Model, sums: Sequence[float]) -> float:
        """The mean of the grades; the model's own quality counts for PRIOR of them."""
        count, total = sums
        return (total + PRIOR * expected(model)) / (count + PRIOR)

    def take(self, given: Graded, score: float, known: Known) -> None:
        self.put(given, (1.0, score), known)
