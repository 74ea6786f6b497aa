"""Proximal policy optimisation (Schulman et al., arXiv 1707.06347), the learner that TRIM (arXiv 2601.10245) uses.

On-policy answers, generalised advantage estimation without discount, the clipped objective, and the multiplier held
fixed.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stepwise.train.forest import Forest, simulate
from stepwise.train.net import Net, entropy, log_chance
from stepwise.train.problem import Goal, area, rewards


@dataclass(frozen=True)
class PPOSettings:
    """rounds of `runs` fresh answers; epochs over each; clip: of the ratio; lam: of the advantages; entropy; rate;
    seed."""

    rounds: int = 100
    runs: int = 2048
    epochs: int = 4
    clip: float = 0.2
    lam: float = 0.95
    entropy: float = 0.02
    rate: float = 3e-4
    seed: int = 0


def advantages(value: Tensor, reward: Tensor, mask: Tensor, lam: float) -> Tensor:
    """Generalised advantage estimates [runs, time] (arXiv 1506.02438), undiscounted."""
    value = torch.where(mask, value, 0.0)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    delta = torch.where(mask, reward + following - value, 0.0)
    out, carried = torch.zeros_like(value), torch.zeros_like(value[:, 0])
    for t in range(value.shape[1] - 1, -1, -1):
        carried = delta[:, t] + lam * carried
        out[:, t] = carried
    return out


def train(forest: Forest, check: Forest, start: Net, goal: Goal, settings: PPOSettings) -> Net:
    """Improves a copy of `start`; returns the network that was best on `check`."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    net = copy.deepcopy(start)
    best, best_area = copy.deepcopy(start), area(check, start.redo(check.vectors))
    optimizer = torch.optim.Adam(net.parameters(), settings.rate)
    bar = tqdm(range(settings.rounds), desc="ppo", mininterval=2)
    for turn in bar:
        drawn = rng.integers(0, len(forest.roots), settings.runs)
        batch = rewards(forest, simulate(forest, net.chances(forest.vectors), drawn, rng), goal.multiplier)
        with torch.no_grad():
            value = net.value(batch.x)
            gain = advantages(value, batch.reward, batch.mask, settings.lam)
            targets = gain + value
            before = log_chance(net.choices(batch.x), batch.action)
            gain = (gain - gain[batch.mask].mean()) / (gain[batch.mask].std() + 1e-6)
        for _ in range(settings.epochs):
            choices = net.choices(batch.x)
            ratio = torch.exp(log_chance(choices, batch.action) - before)
            clipped = ratio.clamp(1 - settings.clip, 1 + settings.clip)
            surrogate = torch.minimum(ratio * gain, clipped * gain) + settings.entropy * entropy(choices)
            error = ((net.value(batch.x) - targets) / (1 + goal.multiplier)).square()
            loss = -surrogate[batch.mask].mean() + 0.5 * error[batch.mask].mean()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
        if turn % 5 == 4:
            found = area(check, net.redo(check.vectors))
            if found > best_area:
                best, best_area = copy.deepcopy(net), found
            bar.set_postfix(area=f"{found:.4f}", best=f"{best_area:.4f}")
    return best
