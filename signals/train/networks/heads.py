"""Trains the classifier's heads: wide weights of words, pairs, beginnings and ends, plus a small network on the
embedding (Wide & Deep, Cheng et al. 2016), all heads at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import trange

from signals.neural.features import STYLE, Features
from signals.train.sources.corpus import Item

HIDDEN = 96
SIZES = {"reasoning": 1, "jailbreak": 1, "fact_check": 1, "feedback": 4, "modality": 3}
"""Logits of every head but `domain`, which has one a class and comes first."""


@dataclass(slots=True)
class Batch:
    """Texts side by side: `flat` int64 rows of all, `offsets` int64 where each begins, `scale` float32 [n]; the same
    for the words; `style` float32 [n, STYLE]."""

    flat: torch.Tensor
    offsets: torch.Tensor
    scale: torch.Tensor
    words: torch.Tensor
    word_offsets: torch.Tensor
    style: torch.Tensor


def batch(texts: Sequence[Features]) -> Batch:
    def join(parts: Sequence[NDArray[np.integer[Any]]]) -> tuple[torch.Tensor, torch.Tensor]:
        sizes = np.array([len(part) for part in parts])
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)), torch.from_numpy(np.cumsum(sizes) - sizes)

    flat, offsets = join([text.rows for text in texts])
    words, word_offsets = join([text.words for text in texts])
    scale = torch.tensor([text.scale for text in texts], dtype=torch.float32)
    style = torch.tensor([text.style for text in texts], dtype=torch.float32)
    return Batch(flat, offsets, scale, words, word_offsets, style)


class HeadsNetwork(nn.Module):
    """Logits float32 [n, classes + 10] of a batch of texts; the first `classes` are the domain head's.

    `weight` float32 [rows]: the entries' inverse document frequencies; `table` float32 [words, d]: the frozen
    embedding; `domain_of`: the domain of each of the classes
    """

    def __init__(self, weight: NDArray[np.float32], table: NDArray[np.float32], domain_of: Sequence[int]) -> None:
        super().__init__()
        self.classes = classes = len(domain_of)
        self.domain_of: torch.Tensor
        self.register_buffer("domain_of", torch.tensor(domain_of))
        self.outputs = classes + sum(SIZES.values())
        self.weight: torch.Tensor
        self.table: torch.Tensor
        self.register_buffer("weight", torch.from_numpy(weight))
        self.register_buffer("table", torch.from_numpy(table))
        self.wide = nn.Parameter(torch.zeros(len(weight), self.outputs))
        self.inner = nn.Linear(table.shape[1] + STYLE, HIDDEN)
        self.outer = nn.Linear(HIDDEN, self.outputs)
        self.drop, self.drop_deep = 0.25, 0.2

    def forward(self, given: Batch) -> torch.Tensor:
        weights = self.weight[given.flat]
        if self.training:
            weights = weights * (torch.rand(len(weights)) > self.drop) / (1 - self.drop)
        wide = nn.functional.embedding_bag(
            given.flat, self.wide, given.offsets, mode="sum", per_sample_weights=weights, sparse=self.training
        ) * given.scale.unsqueeze(1)
        sums = nn.functional.embedding_bag(given.words, self.table, given.word_offsets, mode="sum")
        deep = torch.cat((nn.functional.normalize(sums, dim=1), given.style), 1)
        deep = nn.functional.dropout(torch.relu(self.inner(deep)), self.drop_deep, self.training)
        logits: torch.Tensor = wide + self.outer(deep)
        return logits

    def slices(self) -> dict[str, slice]:
        """Which columns belong to which head."""
        found, at = {"domain": slice(0, self.classes)}, self.classes
        for name, size in SIZES.items():
            found[name] = slice(at, at + size)
            at += size
        return found


BALANCED = ("fact_check", "feedback", "modality")


def labels(items: Sequence[Item]) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Head to targets and weights, float32 [n]; weight 0 where a text has no label for it; no head
    that no text has a label for. `field` is the domain head
    again, where only the domain is known and not which of its subjects. The classes of the BALANCED
    heads weigh the same in all, since their frequencies here say nothing about real traffic."""
    found = {}
    for head in ("domain", "field", *SIZES):
        targets = torch.tensor([item.labels.get(head, (0.0, 0.0))[0] for item in items])
        weights = torch.tensor([item.labels.get(head, (0.0, 0.0))[1] for item in items])
        if not weights.any():
            continue
        if head in BALANCED:
            mass = torch.bincount(targets.long(), weights)
            weights = weights * (mass.sum() / len(mass) / mass)[targets.long()]
        found[head] = targets, weights.float()
    return found


LOSS_WEIGHTS = {
    "domain": 1.0,
    "field": 1.0,
    "reasoning": 1.0,
    "jailbreak": 2.0,
    "fact_check": 1.0,
    "feedback": 1.0,
    "modality": 1.0,
}


def train(model: HeadsNetwork, texts: Sequence[Features], items: Sequence[Item], seed: int, epochs: int = 7) -> None:
    """Adam with the rate falling to zero; entries are dropped at random, so that no single one carries a head."""
    fields = nn.functional.one_hot(model.domain_of).float().log()
    torch.manual_seed(seed)
    chance = np.random.default_rng(seed)
    truth, columns = labels(items), model.slices()
    peak, size = 0.02, 512
    deep = [parameter for name, parameter in model.named_parameters() if name != "wide"]
    wide = torch.optim.SparseAdam([model.wide], lr=peak)
    narrow = torch.optim.AdamW(deep, lr=peak / 8, weight_decay=0.01)
    steps, step = epochs * -(-len(texts) // size), 0
    progress = trange(epochs, desc="heads", mininterval=5)
    model.train()
    for _ in progress:
        order, total = chance.permutation(len(texts)), 0.0
        for at in range(0, len(order), size):
            chosen = order[at : at + size]
            given = batch([texts[i] for i in chosen])
            logits = model(given)
            index = torch.from_numpy(chosen)
            loss = torch.zeros(())
            for head, (targets, weights) in truth.items():
                goal, share = targets[index], weights[index]
                part = logits[:, columns["domain" if head == "field" else head]]
                if head == "field":
                    part = torch.logsumexp(part.unsqueeze(2) + fields, 1)
                if part.shape[1] == 1:
                    losses = nn.functional.binary_cross_entropy_with_logits(part[:, 0], goal, reduction="none")
                else:
                    losses = nn.functional.cross_entropy(part, goal.long(), reduction="none")
                loss = loss + LOSS_WEIGHTS[head] * (losses * share).sum() / len(chosen)
            for optimiser, rate in ((wide, peak), (narrow, peak / 8)):
                optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
                optimiser.zero_grad()
            loss.backward()
            wide.step()
            narrow.step()
            step += 1
            total += float(loss.detach()) * len(chosen)
        progress.set_postfix(loss=f"{total / len(order):.3f}")
    model.eval()


@torch.inference_mode()
def predict(model: HeadsNetwork, texts: Sequence[Features], size: int = 512) -> NDArray[np.float32]:
    """Logits float32 [n, outputs]."""
    model.eval()
    return np.concatenate([model(batch(texts[at : at + size])).numpy() for at in range(0, len(texts), size)])


@torch.inference_mode()
def deep(model: HeadsNetwork, texts: Sequence[Features]) -> NDArray[np.float32]:
    """What the network on the embedding adds to the logits, float32 [n, outputs]."""
    given = batch(texts)
    sums = nn.functional.embedding_bag(given.words, model.table, given.word_offsets, mode="sum")
    seen = torch.cat((nn.functional.normalize(sums, dim=1), given.style), 1)
    added: NDArray[np.float32] = model.outer(torch.relu(model.inner(seen))).numpy()
    return added
