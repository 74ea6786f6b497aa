"""The policy network: a small MLP from a step's features to the logit of keeping it, its normalisation inside."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from stepwise.features import WIDTH
from stepwise.train.problem import Threshold

_CLIP = 6.0  # normalised features beyond so many standard deviations are cut, so that a strange step stays in range


class Net(nn.Module):
    """features float32 [batch, WIDTH] to the logit of P(keep) [batch]; with ``value`` to the critic's value [batch].

    hidden: width of the two hidden layers. asks: it may ask, too. The mean and scale of the features are buffers, set
    by `fit`.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, hidden: int = 48, *, asks: bool = False) -> None:
        super().__init__()
        self.band = nn.Parameter(torch.zeros(())) if asks else None
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

    def choices(self, x: Tensor) -> Tensor:
        """Log probabilities [batch, actions] of keeping, redoing and, for a network that may, asking.

        Keeping, asking and redoing are in order, so that one logit decides between them, as in an ordered logit
        (McCullagh, "Regression models for ordinal data", 1980): the two cuts are as far on either side of 0 as
        `band` says.
        """
        logit, s = self(x), nn.functional.logsigmoid
        if self.band is None:
            return torch.stack([s(logit), s(-logit)], dim=-1)
        half = nn.functional.softplus(self.band)
        ask = s(logit + half) + s(half - logit) + torch.log(-torch.expm1(-2 * half))
        return torch.stack([s(logit - half), s(-logit - half), ask], dim=-1)

    def pair(self, kappa: float) -> Threshold:
        """The threshold `kappa` of P(keep) or, for a network that may ask, the two that are its band apart from it."""
        if self.band is None:
            return kappa
        half, at = float(nn.functional.softplus(self.band.detach())), math.log(kappa / (1 - kappa))
        return 1 / (1 + math.exp(half - at)), 1 / (1 + math.exp(-half - at))

    def asking(self) -> Net:
        """A copy that may ask, too."""
        net = Net(asks=True)
        net.load_state_dict(self.state_dict(), strict=False)
        return net

    @torch.no_grad()
    def chances(self, vectors: NDArray[np.float32]) -> NDArray[np.float32]:
        """The probabilities [n, actions] of `choices`, for features [n, WIDTH]."""
        out: NDArray[np.float32] = self.choices(torch.from_numpy(vectors)).exp().numpy()
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


def log_chance(choices: Tensor, action: Tensor) -> Tensor:
    """log pi(action) [..] of actions [..], given by `Net.choices` [.., actions]."""
    return choices.gather(-1, action.unsqueeze(-1)).squeeze(-1)


def entropy(choices: Tensor) -> Tensor:
    """Entropy in nats of the choice."""
    return -(choices.exp() * choices).sum(-1)


def divergence(old: Tensor, new: Tensor) -> Tensor:
    """KL(old || new) in nats of two choices."""
    return (old.exp() * (old - new)).sum(-1)
