"""The supervised baseline: predict the benefit of escalation.

At a node whose both branches were written, redoing helps when a right answer can be reached after the redo and none
after keeping the draft. P(keep) is one minus the probability of that, and the threshold does the rest. Costs and
what later decisions will be are left out: that is what reinforcement learning adds.
"""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from stepwise.train.forest import UNKNOWN, Forest
from stepwise.train.net import Net


def train(forest: Forest, *, epochs: int = 40, batch: int = 512, rate: float = 3e-3, seed: int = 0) -> Net:
    """A network whose P(keep) is 1 - P(redo helps); batches of nodes, Adam with a falling rate."""
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    net = Net()
    net.fit(forest.vectors)
    reach, _ = forest.values()
    known = np.flatnonzero(forest.child[:, 1] != UNKNOWN)
    helps = (reach[:, 1] & ~reach[:, 0]).astype(np.float32)
    x, y = torch.from_numpy(forest.vectors), torch.from_numpy(helps)
    optimizer = torch.optim.AdamW(net.actor.parameters(), rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.02, epochs)
    for _ in tqdm(range(epochs), desc="supervised", mininterval=2):
        rng.shuffle(known)
        for start in range(0, len(known), batch):
            rows = torch.from_numpy(known[start : start + batch])
            loss = F.binary_cross_entropy_with_logits(-net(x[rows]), y[rows])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        schedule.step()
    return net
