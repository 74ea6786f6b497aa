"""The policy network: a small MLP from a step's features to the logit of keeping it, its normalisation inside."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stepwise.features import WIDTH

_CLIP = 6.0  # normalised features beyond so many standard deviations are cut, so that a strange step stays in range


class Net(nn.Module):
    """features float32 [batch, WIDTH] to the logit of P(keep) [batch]; with ``value`` to the critic's value [batch].

    hidden: width of the two hidden layers. The mean and scale of the features are buffers, set by `fit`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 48) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))
        self.register_buffer("scale", torch.ones(WIDTH))
        self.actor = _mlp(hidden)
        self.critic = _mlp(hidden)

    def fit(self, vectors: NDArray[np.float32]) -> None:
        """Takes mean and standard deviation from `vectors` [nodes, WIDTH]; a constant feature counts for nothing."""
        deviation = vectors.std(axis=0)
        self.mean = torch.from_numpy(vectors.mean(axis=0))
        self.scale = torch.from_numpy(
            np.where(deviation > 1e-6, 1 / np.maximum(deviation, 1e-6), 0.0).astype(np.float32)
        )

    def normalised(self, x: Tensor) -> Tensor:
        return ((x - self.mean) * self.scale).clamp(-_CLIP, _CLIP)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.actor(self.normalised(x)).squeeze(-1)
        return out

    def value(self, x: Tensor) -> Tensor:
        out: Tensor = self.critic(self.normalised(x)).squeeze(-1)
        return out

    @torch.no_grad()
    def redo(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """P(redo) [n] for features [n, WIDTH]."""
        out: NDArray[np.float32] = torch.sigmoid(-self(torch.from_numpy(vectors))).numpy()
        return out


def _mlp(hidden: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(WIDTH, hidden), nn.Tanh(), nn.Linear(hidden, hidden), nn.Tanh(), nn.Linear(hidden, 1)
    )  # fmt: skip


def log_chance(logit: Tensor, action: Tensor) -> Tensor:
    """log pi(action): action 0 keeps (probability sigmoid(logit)), 1 redoes."""
    return nn.functional.logsigmoid(torch.where(action == 0, logit, -logit))


def entropy(logit: Tensor) -> Tensor:
    """Entropy in nats of the choice."""
    keep = torch.sigmoid(logit)
    return -(keep * nn.functional.logsigmoid(logit) + (1 - keep) * nn.functional.logsigmoid(-logit))


def divergence(old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) in nats of two choices given by their logits."""
    p = torch.sigmoid(old)
    s = nn.functional.logsigmoid
    return p * (s(old) - s(new)) + (1 - p) * (s(-old) - s(-new))
