"""What the reinforcement learners share: the constrained problem, its rewards, and their common measurements.

Minimise the expected cost (a large model's answer is 1) subject to: of the questions that some sequence of
decisions would have answered rightly, at most a share `alpha` is answered wrongly. The Lagrangian turns it into a
reward: minus the cost of every step, and minus `multiplier` at the end of an avoidable error.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwise.train.forest import Forest, Runs, simulate

Threshold = float | tuple[float, float]
"""Of P(keep): a draft is redone under it and kept from it on, or between the two of a pair the large model is asked."""


@dataclass(frozen=True)
class Goal:
    """alpha: share of avoidable errors allowed; multiplier: Lagrange multiplier at the start; pace: how fast it
    moves."""

    alpha: float = 0.01
    multiplier: float = 3.0
    pace: float = 0.5


class RewardBatch(NamedTuple):
    """Runs as tensors [runs, time]: features [.., WIDTH], action, log chance of the acting policy, reward, mask."""

    x: Tensor
    action: Tensor
    behaviour: Tensor
    reward: Tensor
    mask: Tensor


def lost(forest: Forest, runs: Runs) -> NDArray[np.bool_]:
    """[runs]: an error that could have been avoided."""
    out: NDArray[np.bool_] = forest.avoidable[runs.question] & ~runs.right
    return out


def rewards(forest: Forest, runs: Runs, multiplier: float) -> RewardBatch:
    """The Lagrangian's rewards of `runs`."""
    mask = runs.node >= 0
    reward = -runs.cost.copy()
    last = mask.sum(axis=1) - 1
    reward[np.arange(len(last)), last] -= multiplier * lost(forest, runs)
    node = np.where(mask, runs.node, 0)
    return RewardBatch(
        torch.from_numpy(forest.vectors[node]),
        torch.from_numpy(runs.action),
        torch.from_numpy(np.log(np.maximum(runs.chance, 1e-6))),
        torch.from_numpy(reward),
        torch.from_numpy(mask),
    )


def at_threshold(forest: Forest, redo: NDArray[np.float32], kappa: Threshold, questions: NDArray[np.int64]) -> Runs:
    """Runs of the policy as it is served: keep when P(keep) >= kappa; for a pair, ask between the two."""
    low, high = kappa if isinstance(kappa, tuple) else (kappa, kappa)
    keep = 1 - redo
    chances = np.zeros(forest.child.shape, np.float32)
    chances[:, 0], chances[:, 1] = keep >= high, keep < low
    chances[:, -1] += (keep >= low) & (keep < high)
    return simulate(forest, chances, questions, None)


class Tried(NamedTuple):
    """What came of a threshold: the mean cost, and the share of right answers."""

    kappa: Threshold
    cost: float
    right: float


def curve(forest: Forest, redo: NDArray[np.float32], points: int | None = None) -> list[Tried]:
    """Thresholds at the policy's own quantiles (`points`: 41, or 13 for each of the two where it may ask)."""
    everyone = np.arange(len(forest.roots))
    asks = forest.mark is not None
    levels = np.quantile(1 - redo, np.linspace(0, 1, points or (13 if asks else 41)))
    single: list[float] = [0.0, *np.unique(levels).tolist(), 1.01]
    kappas: Iterable[Threshold] = combinations_with_replacement(single, 2) if asks else single
    found = []
    for kappa in kappas:
        runs = at_threshold(forest, redo, kappa, everyone)
        found.append(Tried(kappa, float(runs.cost.sum(axis=1).mean()), float(runs.right.mean())))
    return found


def area(forest: Forest, redo: NDArray[np.float32]) -> float:
    """Mean accuracy over costs from the cheapest point of `curve` to 1: training picks its best network by it."""
    rows = np.array([tried[1:] for tried in curve(forest, redo)])
    order = np.argsort(rows[:, 0])
    cost, right = rows[order, 0], np.maximum.accumulate(rows[order, 1])
    grid = np.linspace(cost[0], max(1.0, cost[0] + 1e-6), 200)
    return float(right[np.searchsorted(cost, grid, side="right") - 1].mean())
