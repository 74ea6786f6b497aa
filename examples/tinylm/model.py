"""The network: a decoder-only transformer (RMSNorm, rotary positions, ReLU, tied embeddings, no biases).

Every position also sees the embeddings of the three tokens before it, through a short convolution, one weight a channel
(as in Fu et al., "Hungry Hungry Hippos", arXiv 2212.14052): a network this small then finds the number to copy by what
stands before it in one layer instead of two.

torch is imported here, so only training, export and tests import this file; the server runs the ONNX export.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from examples.tinylm.tokenizer import PAD, RECENT


@dataclass(frozen=True)
class Shape:
    """vocab: tokens; width: model width; layers; heads (width / heads is the rotary dimension, an even number); mlp:
    width of a block's hidden layer, in model widths."""

    vocab: int
    width: int
    layers: int
    heads: int
    mlp: int = 4

    def flops_per_token(self, context: int) -> int:
        """Multiply-adds counted twice, for one generated token that looks back on `context` positions: projections,
        attention and the output layer (the embedding look-up is free)."""
        block = (4 + 2 * self.mlp) * self.width**2 + 2 * self.width * context
        return 2 * (self.layers * block + self.width * (self.vocab + RECENT + 1))

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


def angles(positions: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Cosines and sines [batch, 1, time, dim / 2] of the rotary embedding at `positions` [batch, time]."""
    rates = 10000.0 ** (-torch.arange(dim // 2, dtype=torch.float32) / (dim // 2))
    turned = positions.to(torch.float32)[:, None, :, None] * rates
    return torch.cos(turned), torch.sin(turned)


def rotate(x: Tensor, turn: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary position embedding (Su et al., arXiv 2104.09864) of x [batch, heads, time, dim]."""
    (cos, sin), half = turn, x.shape[-1] // 2
    a, b = x[..., :half], x[..., half:]
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)


class Norm(nn.Module):
    """RMSNorm, written out so that it exports to plain ONNX operators."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6) * self.weight


class Block(nn.Module):
    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.heads = shape.heads
        self.norm1, self.norm2 = Norm(shape.width), Norm(shape.width)
        self.qkv = nn.Linear(shape.width, 3 * shape.width, bias=False)
        self.out = nn.Linear(shape.width, shape.width, bias=False)
        self.up = nn.Linear(shape.width, shape.mlp * shape.width, bias=False)
        self.down = nn.Linear(shape.mlp * shape.width, shape.width, bias=False)

    def forward(
        self, x: Tensor, turn: tuple[Tensor, Tensor], past: tuple[Tensor, Tensor] | None, visible: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        batch, time, width = x.shape
        q, k, v = self.qkv(self.norm1(x)).view(batch, time, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past[0], k], dim=2), torch.cat([past[1], v], dim=2)
        if visible is None:
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            scores = (q @ k.transpose(-1, -2)) * (q.shape[-1] ** -0.5)
            mixed = torch.softmax(torch.where(visible[:, None], scores, -1e9), dim=-1) @ v
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, time, width))
        out: Tensor = x + self.down(F.relu(self.up(self.norm2(x))))
        return out, k, v


class TinyLM(nn.Module):
    """The language model. ``forward`` is for training, ``step`` for generation with a key/value cache."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        self.shape = shape
        self.dim = shape.width // shape.heads
        self.embed = nn.Embedding(shape.vocab, shape.width)
        self.mix = nn.Parameter(torch.zeros(RECENT + 1, shape.width))
        self.blocks = nn.ModuleList(Block(shape) for _ in range(shape.layers))
        self.norm = Norm(shape.width)
        for name, weight in self.named_parameters():
            if weight.dim() == 2 and name != "mix":
                scale = (2 * shape.layers) ** -0.5 if name.endswith(("out.weight", "down.weight")) else 1.0
                nn.init.normal_(weight, std=scale * (0.02 if "embed" in name else shape.width**-0.5))
        nn.init.constant_(self.mix, 0.3)
        nn.init.ones_(self.mix[0])

    def _look(self, ids: Tensor) -> Tensor:
        """ids [batch, RECENT + time] to the mixed embeddings [batch, time, width]."""
        x, time = self.embed(ids), ids.shape[1] - RECENT
        out: Tensor = x[:, RECENT:] * self.mix[0]
        for back in range(1, RECENT + 1):
            out = out + x[:, RECENT - back : RECENT - back + time] * self.mix[back]
        return out

    def forward(self, ids: Tensor) -> Tensor:
        """The last layer [batch, time, width] for ids [batch, time]; padding goes to the right. ``logits`` of it are
        the predictions (kept apart so that training pays for the vocabulary only where there is a target)."""
        turn = angles(torch.arange(ids.shape[1])[None], self.dim)
        x = self._look(F.pad(ids, (RECENT, 0), value=PAD))
        for block in self.blocks:
            x, _, _ = block(x, turn, None, None)
        out: Tensor = self.norm(x)
        return out

    def logits(self, x: Tensor) -> Tensor:
        """[..., width] to [..., vocab]."""
        out: Tensor = F.linear(x, self.embed.weight)
        return out

    def step(self, ids: Tensor, positions: Tensor, past: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Generation with a cache.

        ids: int64 [batch, RECENT + time], the new tokens after the last ones before them (PAD where there are none);
        positions: int64 [batch, time]; past: float32 [layers, 2, batch, heads, before, dim], rows padded on the
        left; valid: bool [batch, before + time], False on padding. Returns logits [batch, time, vocab] and the new
        cache [layers, 2, batch, heads, before + time, dim].
        """
        before, time = past.shape[4], positions.shape[1]
        order = torch.arange(before + time)
        visible = valid[:, None, :] & (order[None, None, :] <= order[before:][None, :, None])
        turn = angles(positions, self.dim)
        x = self._look(ids)
        caches = []
        for i, block in enumerate(self.blocks):
            x, k, v = block(x, turn, (past[i, 0], past[i, 1]), visible)
            caches.append(torch.stack([k, v]))
        return self.logits(self.norm(x)), torch.stack(caches)
