"""`elo`: ratings from comparisons of answers."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Final

from pydantic import Field

from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.exploring import EXPLORED, explored
from decisions.selectors.learner import ClassLearner, ClassParams, Known, expected
from decisions.selectors.selector import Graded, Pick
from signals.facts import Facts
from signals.signal import Shared

BEST: Final = "highest rating"
SCALE: Final = 400.0


class EloParams(ClassParams):
    """How quickly ratings move, and how much is left to chance."""

    step: float = Field(32.0, gt=0, le=400, description="The most points that one comparison moves a rating.")
    explore: float = Field(
        0.05, ge=0, le=1, description="Share of requests spread evenly over all candidates, to learn of them."
    )


class Elo(ClassLearner):
    """The highest Elo rating (Elo 1978), less the weighed price on the scale of its chance against an average opponent.

    A rating is the sum of what comparisons have moved it, so that those of replicas add up. A grade without a second
    answer is a game against an opponent of rating 0, that of a model of quality 0.5.
    """

    name = "elo"
    about = "Take the model with the highest rating, by comparisons of answers."
    Parameters = EloParams
    sums = 2

    def __init__(self, pick: Pick, params: EloParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._explore = params.explore
        self._step = params.step
        self._first = {model.key: _rating(expected(model)) for model in self.models}

    def chosen(self, models: Sequence[Model], facts: Facts, known: Known) -> Choice:
        worth = self.worths(models, facts, known)
        best = max(range(len(models)), key=worth.__getitem__)
        at, propensity = explored(best, len(models), self._explore, facts)
        return Choice(models[at], BEST if at == best else EXPLORED, propensity, self.name)

    def valued(self, model: Model, sums: Sequence[float]) -> float:
        """The chance against an average candidate."""
        return _chance(self._first[model.key] + sums[1])

    def rating(self, context: str, arm: str, known: Known) -> float:
        """The rating of a candidate in a class; 0 is that of an average one."""
        return self._first.get(arm, 0.0) + self.told(context, arm, known)[1]

    def take(self, given: Graded, score: float, known: Known) -> None:
        self._play(given, 0.0, score, known)

    def compare(self, better: Graded, worse: Graded) -> None:
        for known in self.learning(better):
            above, below = (self.rating(one.context, one.arm, known) for one in (better, worse))
            self._play(better, below, 1.0, known)
            self._play(worse, above, 0.0, known)

    def _play(self, given: Graded, opponent: float, score: float, known: Known) -> None:
        moved = self._step * (score - _chance(self.rating(given.context, given.arm, known) - opponent))
        self.put(given, (1.0, moved), known)


def _chance(difference: float) -> float:
    """How likely one wins who is rated so much higher."""
    return float(1.0 / (1.0 + 10.0 ** (-max(-4000.0, min(4000.0, difference)) / SCALE)))


def _rating(quality: float) -> float:
    """The rating of one who wins such a share of games against an average opponent."""
    share = min(0.99, max(0.01, quality))
    return SCALE * log10(share / (1.0 - share))
