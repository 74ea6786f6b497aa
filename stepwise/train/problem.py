"""What the reinforcement learners share: the constrained problem, its rewards, and their common measurements.

Minimise the expected cost (a large model's answer is 1) subject to: of the questions that some sequence of
decisions would have answered rightly, at most a share `alpha` is answered wrongly. The Lagrangian turns it into a
reward: minus the cost of every step, and minus `multiplier` at the end of an avoidable error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from stepwise.train.forest import Forest, Runs, simulate


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


def at_threshold(forest: Forest, redo: NDArray[np.float32], kappa: float, questions: NDArray[np.int64]) -> Runs:
    """Runs of the policy as it is served: keep when P(keep) >= kappa."""
    return simulate(forest, (1 - redo < kappa).astype(np.float32), questions, None)


def curve(forest: Forest, redo: NDArray[np.float32], points: int = 41) -> NDArray[np.float64]:
    """[points, 3]: kappa, mean cost, share of right answers, for thresholds at the policy's own quantiles."""
    everyone = np.arange(len(forest.roots))
    kappas = np.unique(np.quantile(1 - redo, np.linspace(0, 1, points)))
    rows = []
    for kappa in [0.0, *kappas, 1.01]:
        runs = at_threshold(forest, redo, float(kappa), everyone)
        rows.append((kappa, runs.cost.sum(axis=1).mean(), runs.right.mean()))
    return np.array(rows)


def area(forest: Forest, redo: NDArray[np.float32]) -> float:
    """Mean accuracy over costs from the cheapest point of `curve` to 1: training picks its best network by it."""
    rows = curve(forest, redo)
    order = np.argsort(rows[:, 1])
    cost, right = rows[order, 1], np.maximum.accumulate(rows[order, 2])
    grid = np.linspace(cost[0], max(1.0, cost[0] + 1e-6), 200)
    return float(right[np.searchsorted(cost, grid, side="right") - 1].mean())
