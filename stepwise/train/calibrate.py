"""Thresholds that guarantee a bound: Learn-then-Test (Angelopoulos et al., arXiv 2110.01052) on held-out questions.

The thresholds are ordered from safe to bold before any calibration answer is looked at, and tested in that order,
each at level delta, until one fails (fixed-sequence testing). With probability 1 - delta over the calibration
questions, every threshold that passed keeps the bound, in particular the boldest one, which is taken.

accuracy_loss: of the questions that the large model alone answers rightly, at most a share alpha is lost: not in
expectation only, but of as many questions to come, so that who counts them finds the promise kept (the binomial tail
promises the expectation, and was seen broken in up to 18 % of resampled halves at delta 0.1). cost: the expected cost
is at most a share of the large model's. Costs are bounded by the limits of an answer but far from the bound, so the
test is the empirical Bernstein bound (Maurer and Pontil, 2009).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from stepwise.policy import KappaPair, Kind

_RANGE = 4.0  # costs are cut at so many mean large answers, which no answer of a working pair comes near


LOSSES = (0.005, 0.01, 0.02, 0.03, 0.05, 0.1)
"""Accuracy losses that are promised unless others are asked for."""
Kappa = float | KappaPair
"""What is calibrated: a threshold, or for a policy that may ask the pair of them."""


@dataclass(frozen=True)
class Trial:
    """What one threshold did on the calibration questions: right: bool [questions]; cost: float [questions], the
    large model's mean cost being 1."""

    kappa: Kappa
    right: NDArray[np.bool_]
    cost: NDArray[np.float64]


@dataclass(frozen=True)
class Trials:
    """What was seen on the calibration questions. trials: in an order that was fixed before, the safest first;
    large_right: bool [questions], of the large model alone; large_cost: float [questions], its mean being 1."""

    trials: Sequence[Trial]
    large_right: NDArray[np.bool_]
    large_cost: NDArray[np.float64]


@dataclass(frozen=True)
class Promises:
    """What is to be promised. alphas: shares of accuracy lost; shares: of the large model's cost; each with probability
    1 - delta, of answers at this temperature."""

    alphas: Sequence[float]
    shares: Sequence[float]
    delta: float
    temperature: float = 0.0


class Promise(NamedTuple):
    """`kind` stays at `target` with the threshold `kappa`."""

    kind: Kind
    target: float
    kappa: Kappa


def luck(losses: int, count: int, alpha: float) -> float:
    """The chance of so few losses among `count` calibration questions, when of as many others more than a share
    alpha is lost: hypergeometric, since every split of the two together is as likely. Largest for the fewest losses
    that the others can have."""
    total = losses + math.floor(alpha * count) + 1
    if total > 2 * count:
        return 1.0

    def ways(n: int, k: int) -> float:
        return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)

    every = ways(2 * count, total)
    fewest = max(0, total - count)
    return math.fsum(math.exp(ways(count, k) + ways(count, total - k) - every) for k in range(fewest, losses + 1))


def upper_mean(values: NDArray[np.float64], span: float, delta: float) -> float:
    """Empirical Bernstein bound: above the expectation of values within an interval of length `span`, with
    probability 1 - delta."""
    n = len(values)
    if n < 2:
        return math.inf
    log = math.log(2 / delta)
    return float(values.mean() + math.sqrt(2 * values.var(ddof=1) * log / n) + 7 * span * log / (3 * (n - 1)))


def loss_threshold(trials: Sequence[Trial], large_right: NDArray[np.bool_], alpha: float, delta: float) -> Kappa | None:
    """The boldest kappa that promises a loss of at most alpha; None when even the safest does not.

    trials: the safest first; large_right: bool [questions].
    """
    count, passed = int(large_right.sum()), None
    for trial in trials:
        losses = int((large_right & ~trial.right).sum())
        if luck(losses, count, alpha) > delta:
            break
        passed = trial.kappa
    return passed


def cost_threshold(
    trials: Sequence[Trial], large_cost: NDArray[np.float64], share: float, delta: float
) -> Kappa | None:
    """The safest kappa that promises an expected cost of at most `share` of the large model's; None when none does.

    trials: the cheapest first; large_cost: float [questions], its mean being 1.
    """
    passed = None
    for trial in trials:
        excess = np.minimum(trial.cost, _RANGE) - share * np.minimum(large_cost, _RANGE)
        if upper_mean(excess, (1 + share) * _RANGE, delta) > 0:
            break
        passed = trial.kappa
    return passed


def promise(seen: Trials, wanted: Promises) -> list[Promise]:
    """Each target that can be promised."""
    kept = []
    for alpha in wanted.alphas:
        kappa = loss_threshold(seen.trials, seen.large_right, alpha, wanted.delta)
        if kappa is not None:
            kept.append(Promise("accuracy_loss", alpha, kappa))
    for share in wanted.shares:
        kappa = cost_threshold(seen.trials[::-1], seen.large_cost, share, wanted.delta)
        if kappa is not None:
            kept.append(Promise("cost", share, kappa))
    return kept


def worse(kind: Kind, pair: Trial, alone: Trial) -> bool:
    """Whether a pair of thresholds, which asks, keeps a promise of this kind in a worse way than the one threshold that
    keeps it without asking: a bound on the loss at a higher cost, or one on the cost with fewer right answers. Both
    were seen on the same questions."""
    if kind == "accuracy_loss":
        return float(pair.cost.mean()) > float(alone.cost.mean())
    return int(pair.right.sum()) < int(alone.right.sum())


def resample(seen: Trials, alpha: float, delta: float, *, splits: int, seed: int) -> tuple[float, float, float]:
    """Whether the promise holds: the questions are split in halves many times, and each time the threshold is taken on
    one half and the loss measured on the other.

    Returns the share of splits whose loss is above alpha, the mean loss, and the mean cost. A half is a sample
    itself, so a loss a little above alpha on it can be chance: the share is an upper estimate of what the promise
    allows (delta).
    """
    safe_first, large_right = seen.trials, seen.large_right
    right = np.stack([t.right for t in safe_first])
    cost = np.stack([t.cost for t in safe_first])
    rng = np.random.default_rng(seed)
    broken, losses, costs = 0, [], []
    for _ in range(splits):
        order = rng.permutation(len(large_right))
        fit, test = order[: len(order) // 2], order[len(order) // 2 :]
        halves = [Trial(t.kappa, t.right[fit], t.cost[fit]) for t in safe_first]
        kappa = loss_threshold(halves, large_right[fit], alpha, delta)
        row = 0 if kappa is None else next(i for i, t in enumerate(safe_first) if t.kappa == kappa)
        lost = float((large_right[test] & ~right[row, test]).sum() / max(1, large_right[test].sum()))
        broken += lost > alpha
        losses.append(lost)
        costs.append(float(cost[row, test].mean()))
    return broken / splits, float(np.mean(losses)), float(np.mean(costs))
