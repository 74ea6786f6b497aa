"""Constrained actor-critic with V-trace corrections, a trust region, and the multiplier and threshold learned
jointly.

The setting is that of Si, Lee and Bastani (arXiv 2605.06116). Answers are drawn by an acting policy that lags
behind (a copy of some updates ago, mixed with chance), so their returns are corrected with V-trace (Espeholt et
al., arXiv 1802.01561). Each update is held back by the KL divergence from the acting policy; its weight rises and
falls with the divergence measured (as in PPO's adaptive penalty). The multiplier climbs while the served policy,
that is the one with threshold kappa, loses more than alpha, and falls while it loses less; kappa moves the same
way, faster.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from stepwise.train.forest import Forest, simulate
from stepwise.train.net import Net, divergence, entropy, log_chance
from stepwise.train.problem import Goal, area, at_threshold, lost, rewards


@dataclass(frozen=True)
class VTraceSettings:
    """updates; runs drawn for each; lag: updates between two copies for acting; explore: share of chance in them;
    region: KL in nats that an update may reach; entropy: weight of the bonus that keeps P(keep) graded; rate;
    seed."""

    updates: int = 800
    runs: int = 1024
    lag: int = 4
    explore: float = 0.1
    region: float = 0.01
    entropy: float = 0.02
    rate: float = 3e-4
    seed: int = 0


def vtrace(value: Tensor, reward: Tensor, ratio: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """V-trace targets and advantages, undiscounted, both [runs, time].

    value, reward, ratio (new over acting policy), mask: [runs, time], the mask False after the end of an answer.
    Ratios are cut at 1. Equation (1) of arXiv 1802.01561, from the back.
    """
    value = torch.where(mask, value, 0.0)
    weight = torch.where(mask, ratio.clamp(max=1.0), 0.0)
    following = torch.cat([value[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    delta = weight * (reward + following - value)
    extra = torch.zeros_like(value[:, 0])
    targets = torch.zeros_like(value)
    for t in range(value.shape[1] - 1, -1, -1):
        extra = delta[:, t] + weight[:, t] * extra
        targets[:, t] = value[:, t] + extra
    next_target = torch.cat([targets[:, 1:], torch.zeros_like(value[:, :1])], dim=1)
    return targets, weight * (reward + next_target - value)


def train(forest: Forest, check: Forest, start: Net, goal: Goal, settings: VTraceSettings) -> tuple[Net, float]:
    """Improves a copy of `start` on `forest`; returns the network that was best on `check` (by `area`) and kappa."""
    torch.manual_seed(settings.seed)
    rng = np.random.default_rng(settings.seed)
    net, acting = copy.deepcopy(start), copy.deepcopy(start)
    best, best_area = copy.deepcopy(start), area(check, start.redo(check.vectors))
    optimizer = torch.optim.Adam(net.parameters(), settings.rate)
    multiplier, kappa, penalty = goal.multiplier, 0.5, 1.0
    bar = tqdm(range(settings.updates), desc="v-trace", mininterval=2)
    for update in bar:
        if update % settings.lag == 0:
            acting.load_state_dict(net.state_dict())
            behaviour = acting.chances(forest.vectors)
            behaviour += settings.explore * (1 / behaviour.shape[1] - behaviour)
        drawn = rng.integers(0, len(forest.roots), settings.runs)
        batch = rewards(forest, simulate(forest, behaviour, drawn, rng), multiplier)
        choices = net.choices(batch.x)
        with torch.no_grad():
            ratio = torch.exp(log_chance(choices, batch.action) - batch.behaviour)
            targets, advantage = vtrace(net.value(batch.x), batch.reward, ratio, batch.mask)
            old = acting.choices(batch.x)
        spread = advantage[batch.mask].std() + 1e-6
        gain = log_chance(choices, batch.action) * advantage / spread
        kl = divergence(old, choices)
        loss = -(gain + settings.entropy * entropy(choices) - penalty * kl)[batch.mask].mean()
        loss = loss + 0.5 * ((net.value(batch.x) - targets)[batch.mask] / (1 + goal.multiplier)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        optimizer.step()
        moved = float(kl.detach()[batch.mask].mean())
        penalty = float(np.clip(penalty * (1.5 if moved > settings.region else 0.95), 0.05, 50.0))
        served = at_threshold(forest, net.redo(forest.vectors), net.pair(kappa), drawn)
        excess = float(lost(forest, served).mean()) - goal.alpha
        multiplier = float(np.clip(multiplier * np.exp(goal.pace * excess), 0.5, 50.0))
        kappa = float(np.clip(kappa + 0.5 * excess, 0.01, 0.99))
        if update % 20 == 19:
            found = area(check, net.redo(check.vectors))
            if found > best_area:
                best, best_area = copy.deepcopy(net), found
            bar.set_postfix(area=f"{found:.4f}", best=f"{best_area:.4f}", kappa=f"{kappa:.2f}", lam=f"{multiplier:.1f}")
    return best, kappa
