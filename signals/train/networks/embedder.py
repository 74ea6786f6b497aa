"""Distils a sentence encoder into one vector a word (as Model2Vec does): the teacher's vectors of single words, their
principal components, then tuned so that a text's mean of word vectors comes near the teacher's vector of the text."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import trange

WIDTH = 96
_EPOCHS, _BATCH, _RATE = 12, 512, 4e-3


def components(vectors: NDArray[np.float32], width: int = WIDTH) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Mean float32 [d] and the first principal directions float32 [d, width] of `vectors` [n, d]."""
    mean = vectors.mean(0)
    _, _, directions = np.linalg.svd((vectors - mean).T @ (vectors - mean))
    return mean, directions[:width].T.astype(np.float32)


def distil(
    start: NDArray[np.float32], texts: Sequence[NDArray[np.int32]], targets: NDArray[np.float32], seed: int
) -> NDArray[np.float32]:
    """Word vectors float32 [rows, WIDTH] whose sum over a text's rows points where the teacher's vector points.

    `start` [rows, WIDTH]: first guess, row 0 zero. `texts`: the rows of each text's words. `targets` [n, WIDTH]: the
    teacher's vectors, reduced. The loss is 1 - cosine, and within a batch the texts' similarities to one another; a
    pull to the start keeps words sensible that few texts have.
    """
    torch.manual_seed(seed)
    table = torch.nn.Parameter(torch.from_numpy(start.copy()))
    origin = torch.from_numpy(start)
    goals = torch.nn.functional.normalize(torch.from_numpy(targets), dim=1)
    optimiser = torch.optim.Adam([table], lr=_RATE)
    used = [index for index, rows in enumerate(texts) if len(rows)]
    chance = np.random.default_rng(seed)
    progress = trange(_EPOCHS, desc="embedder", mininterval=5)
    for epoch in progress:
        order = chance.permutation(used)
        for group in optimiser.param_groups:
            group["lr"] = _RATE * (1 - epoch / _EPOCHS)
        total = 0.0
        for at in range(0, len(order), _BATCH):
            chosen = order[at : at + _BATCH]
            flat = torch.from_numpy(np.concatenate([texts[i] for i in chosen]).astype(np.int64))
            sizes = np.array([len(texts[i]) for i in chosen])
            offsets = torch.from_numpy(np.cumsum(sizes) - sizes)
            sums = torch.nn.functional.embedding_bag(flat, table, offsets, mode="sum")
            vectors = torch.nn.functional.normalize(sums, dim=1)
            goal = goals[torch.from_numpy(chosen)]
            loss = (1 - (vectors * goal).sum(1)).mean() + 3 * ((vectors @ vectors.T) - (goal @ goal.T)).square().mean()
            touched = torch.unique(flat)
            loss = loss + 0.02 * (table[touched] - origin[touched]).square().sum(1).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            total += float(loss.detach()) * len(chosen)
        progress.set_postfix(loss=f"{total / len(order):.3f}")
    made = table.detach().numpy()
    made[0] = 0
    return made
