"""How a model that joins with a few dozen graded answers would do on all questions, and which questions say most of it.

An item-response model with several abilities (Reckase 2009) is fitted to the models that answered most questions: what
is hard for whom. Of the abilities of one that joins it is known beforehand that they are like those of the others, by
its price, and that it may be better or worse at each category. The grades of its few answers do the rest (the mode of
the posterior, Laplace's approximation). The questions to grade are those that leave the least variance of its mean
grade (Bayesian A-optimal design: Chaloner and Verdinelli, Statistical Science 1995), one after the other; what it has
been graded on already makes them fit it better (sequential design).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

KNOWN: Final = 0.5
"""The share of the most questions that one model answered from which another is no newcomer."""
LEAST: Final = 6
"""Models by which a newcomer is judged; with fewer there is no telling what models are like."""
ABILITIES: Final = 3
ROUNDS: Final = 8
HARD: Final = 3.0
"""How far apart questions are in how hard they are (a standard deviation of the logit, as the next three)."""
STEEP: Final = 0.5
SIDE: Final = 0.4
"""How much of a second or third ability a question needs."""
OF_CATEGORY: Final = 0.3
"""How far a model may be off in one category."""
WIDER: Final = 1.2
SPARE: Final = 0.02
"""What is added to the variance of the others' abilities, since they are few."""
DOUBT: Final = 1.4
"""How much farther off abilities are than the grades say, since what is hard is known from few models (measured on
made-up outcomes of 6 to 16 models)."""
DRAWS: Final = 10
"""Newcomers as they may be, for whom questions are chosen."""
TRIED: Final = 4000
"""Questions that are looked at for it; of more a random part."""


@dataclass(frozen=True, slots=True, eq=False)
class Newcomer:
    """A model that joins: the price of a call (NaN unknown), and the places of the questions that it has answered with
    their grades, 0 to 1."""

    price: float = float("nan")
    tried: I64 = field(default_factory=lambda: np.zeros(0, np.int64))
    grades: F64 = field(default_factory=lambda: np.zeros(0))


def filled(grades: F64, categories: Sequence[str], prices: F64) -> F64:
    """`grades` float64 [n, models], and where a model was not tried (NaN) its chance there. `categories` are the
    questions', `prices` the models' (NaN unknown). Raises ValueError where too few models have answered most
    questions."""
    known = ~np.isnan(grades)
    found = np.where(known, grades, 0.0)
    newcomers = Newcomers(grades, categories, prices)
    for at in np.flatnonzero(~known.all(0)):
        mine = np.flatnonzero(known[:, at])
        left = ~known[:, at]
        found[left, at] = newcomers.chances(Newcomer(float(prices[at]), mine, grades[mine, at]))[left]
    return found


def many(grades: F64) -> NDArray[np.bool_]:
    """Which models have answered most of the questions."""
    counts = (~np.isnan(grades)).sum(0)
    found: NDArray[np.bool_] = counts >= KNOWN * counts.max(initial=0)
    return found


class Newcomers:
    """What models may be like that join those of `grades`, by their prices; as for `filled`."""

    def __init__(self, grades: F64, categories: Sequence[str], prices: F64) -> None:
        whole = many(grades)
        if whole.sum() < LEAST:
            raise ValueError(f"at least {LEAST} models are needed that have answered most of the questions")
        grades, prices = grades[:, whole], prices[whole]
        self._hard, needs, abilities = _items(grades)
        self._abilities = abilities
        told = np.log(np.where(prices > 0, prices, np.nan))
        self._priced = not np.isnan(told).any() and told.std() > 0
        self._prices = told
        names, places = np.unique(np.array(categories), return_inverse=True)
        of_category = np.eye(len(names))[places] if len(names) > 1 else np.zeros((len(grades), 0))
        self._needs = np.hstack([needs, of_category])

    def _prior(self, price: float) -> tuple[F64, F64]:
        """Mean and covariance of the abilities, and of what is added in each category, at a price."""
        abilities = self._abilities
        count, size = abilities.shape
        middle, off, freedom = abilities.mean(0), abilities - abilities.mean(0), count - 1
        if self._priced and price > 0:
            line = np.c_[np.ones(count), self._prices]
            weights = np.linalg.lstsq(line, abilities, rcond=None)[0]
            middle, off, freedom = np.array([1.0, np.log(price)]) @ weights, abilities - line @ weights, count - 2
        all_of = self._needs.shape[1]
        covariance = np.eye(all_of) * OF_CATEGORY**2
        covariance[:size, :size] = WIDER * off.T @ off / freedom + SPARE * np.eye(size)
        return np.r_[middle, np.zeros(all_of - size)], covariance

    def _posterior(self, newcomer: Newcomer) -> tuple[F64, F64]:
        """Likewise, after its grades."""
        middle, covariance = self._prior(newcomer.price)
        if not len(newcomer.tried):
            return middle, covariance
        precision = np.linalg.inv(covariance)
        needs, hard, found = self._needs[newcomer.tried], self._hard[newcomer.tried], middle
        for _ in range(12):
            chance = _sigmoid(hard + needs @ found)
            bend = (needs * (chance * (1 - chance))[:, None]).T @ needs + precision
            slope = needs.T @ (newcomer.grades - chance) - precision @ (found - middle)
            found = found + np.clip(np.linalg.solve(bend, slope), -1.0, 1.0)
        return found, np.linalg.inv(bend)

    def chances(self, newcomer: Newcomer) -> F64:
        """Its chance at each question."""
        found, covariance = self._posterior(newcomer)
        spread = np.einsum("ni,ij,nj->n", self._needs, covariance, self._needs)
        # The mean over how the abilities may be (MacKay 1992).
        return _sigmoid((self._hard + self._needs @ found) / np.sqrt(1 + np.pi * spread / 8))

    def expected(self, newcomer: Newcomer) -> tuple[float, float]:
        """Its mean grade on all questions, and how far off that may be (a standard deviation)."""
        chance = self.chances(newcomer)
        told = chance * (1 - chance)
        told[newcomer.tried] = 0.0
        chance[newcomer.tried] = newcomer.grades
        slope = told @ self._needs / len(chance)
        spread = DOUBT**2 * slope @ self._posterior(newcomer)[1] @ slope + told.sum() / len(chance) ** 2
        return float(chance.mean()), float(np.sqrt(spread))

    def questions(self, count: int, newcomer: Newcomer, seed: int = 0) -> I64:
        """The places of the `count` questions, of those it was not asked, whose grades say most of it."""
        chance = np.random.default_rng(seed)
        middle, covariance = self._posterior(newcomer)
        draws = chance.multivariate_normal(middle, covariance, DRAWS)
        good = _sigmoid(self._hard + draws @ self._needs.T)
        told = good * (1 - good)  # [draws, n]: what an answer says
        slope = told @ self._needs / len(self._hard)  # of the mean grade
        some = np.setdiff1d(np.arange(len(self._hard)), newcomer.tried)
        count = min(count, len(some))
        some = chance.permutation(some)[: max(TRIED, count)]
        needs, told = self._needs[some], told[:, some]
        left = np.ones(len(some), bool)
        spread = np.repeat(covariance[None], DRAWS, 0)
        taken: list[int] = []
        for _ in range(count):
            seen = needs @ spread  # [draws, n, abilities]
            width = 1.0 + told * (seen * needs).sum(2)
            gain = (told * np.einsum("dni,di->dn", seen, slope) ** 2 / width).mean(0)
            at = int(np.where(left, gain, -1.0).argmax())
            left[at] = False
            taken.append(int(some[at]))
            less = seen[:, at]
            spread -= less[:, :, None] * less[:, None] * (told[:, at] / width[:, at])[:, None, None]
        return np.array(taken, np.int64)


def _items(grades: F64) -> tuple[F64, F64, F64]:
    """How easy questions are [n], the abilities that each needs [n, k], and those of the models [models, k], of mean 0
    and spread 1: fitted by turns."""
    known = ~np.isnan(grades)
    given = np.where(known, grades, 0.0)
    size = max(1, min(ABILITIES, grades.shape[1] // 4))
    rate = (given.sum(0) + 0.5) / (known.sum(0) + 1)
    first = np.log(rate / (1 - rate))
    off = np.where(known, given - rate, 0.0)
    off -= known * (off.sum(1) / np.maximum(known.sum(1), 1))[:, None]
    others = np.linalg.svd(off, full_matrices=False)[2][: size - 1].T
    abilities = np.c_[first, others] - np.c_[first, others].mean(0)
    abilities /= np.maximum(abilities.std(0), 1e-6)
    items = np.zeros((len(grades), 1 + size))
    items[:, 1] = 1.0
    middle = items.mean(0)
    precision = np.r_[1 / HARD**2, 1 / STEEP**2, np.full(size - 1, 1 / SIDE**2)]
    for _ in range(ROUNDS):
        told = np.c_[np.ones(len(abilities)), abilities]
        for _ in range(2):
            chance = _sigmoid(items @ told.T)
            slope = np.where(known, given - chance, 0.0) @ told - (items - middle) * precision
            bend = np.einsum("nm,mp,mq->npq", known * chance * (1 - chance), told, told) + np.diag(precision)
            items += np.clip(np.linalg.solve(bend, slope[:, :, None])[:, :, 0], -2.0, 2.0)
        middle[:2] = items[:, :2].mean(0)
        for at, mine in enumerate(known.T):
            needs = items[mine, 1:]
            chance = _sigmoid(items[mine, 0] + needs @ abilities[at])
            bend = (needs * (chance * (1 - chance))[:, None]).T @ needs + 0.1 * np.eye(size)
            abilities[at] += np.linalg.solve(bend, needs.T @ (given[mine, at] - chance) - 0.1 * abilities[at])
        mean, spread = abilities.mean(0), np.maximum(abilities.std(0), 1e-6)
        items[:, 0] += items[:, 1:] @ mean
        abilities = (abilities - mean) / spread
        items[:, 1:] *= spread
    return items[:, 0], items[:, 1:], abilities


def _sigmoid(logit: F64) -> F64:
    found: F64 = 1 / (1 + np.exp(-np.clip(logit, -30, 30)))
    return found
