"""`pheromone`: trails that good answers strengthen and time lets evaporate (AMRO-S)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Final

from pydantic import Field

from decisions.candidates import fraction, request_key
from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.learner import ClassLearner, ClassParams, Known, expected
from decisions.selectors.selector import Graded, Pick
from signals.facts import Facts
from signals.signal import Shared

STRONGEST: Final = "strongest trail"
OTHER: Final = "a weaker trail"
FIRST: Final = 2.0
"""How many answers the trail counts for that there is before any."""


class PheromoneParams(ClassParams):
    """What strengthens a trail, and how closely trails are followed."""

    gate: float = Field(0.5, ge=0, le=1, description="Answers with a lower grade leave nothing on the trail.")
    sharpness: float = Field(
        16.0, ge=1, le=100, description="How closely the strongest trail is followed: shares go by this power."
    )


class Pheromone(ClassLearner):
    """Every candidate has a trail in each class of requests: what good answers have left there, over how many took it.
    Its share of the requests is the power `sharpness` of its strength."""

    name = "pheromone"
    about = "Follow trails that good answers strengthen and time lets evaporate, for each class of requests."
    Parameters = PheromoneParams
    sums = 2

    def __init__(self, pick: Pick, params: PheromoneParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._gate = params.gate
        self._sharpness = params.sharpness

    def chosen(self, models: Sequence[Model], facts: Facts, known: Known) -> Choice:
        strengths = [max(1e-3, worth) for worth in self.worths(models, facts, known)]
        most = max(strengths)
        shares = [(strength / most) ** self._sharpness for strength in strengths]
        ends = list(accumulate(shares))
        drawn = fraction(request_key(facts.request), "trail") * ends[-1]
        at = next(at for at, end in enumerate(ends) if drawn <= end)
        why = STRONGEST if strengths[at] == most else OTHER
        return Choice(models[at], why, shares[at] / ends[-1], self.name)

    def valued(self, model: Model, sums: Sequence[float]) -> float:
        """How strong the trail is."""
        count, left = sums
        return (left + FIRST * expected(model)) / (count + FIRST)

    def take(self, given: Graded, score: float, known: Known) -> None:
        self.put(given, (1.0, score if score >= self._gate else 0.0), known)
