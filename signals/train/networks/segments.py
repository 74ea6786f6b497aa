"""Trains the head that looks at single sentences and lines of documents for instructions that do not belong there."""

from __future__ import annotations

import random
import sysconfig
from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import trange

from signals.neural.features import Features, features, segments
from signals.neural.normalise import normalise
from signals.neural.tokenizer import Lexicon
from signals.train.sources import attacks, written
from signals.train.sources.data import Data, library, said

_FRAGMENT = 0.3
"""What a fragment of a word or two weighs in training: with nothing, every lone "the" is an attack."""


_MOST = 120
"""Segments of one text that are learned from: long ones have enough."""


def plant(document: str, attack: str, chance: random.Random) -> str:
    """`document` with `attack` at its start, its end or between two of its lines or sentences (as BIPIA does)."""
    place = chance.randrange(3)
    if place == 0:
        return f"{attack}\n{document}"
    if place == 1:
        return f"{document}\n{attack}"
    glue = "\n" if "\n" in document.strip() else ". "
    pieces = document.split(glue)
    at = chance.randrange(len(pieces))
    return glue.join([*pieces[:at], attack, *pieces[at:]])


def entries(
    read: Features, weight: NDArray[np.float32], first: int, last: int
) -> tuple[NDArray[np.int32], NDArray[np.float32]]:
    """Rows and scaled weights of the words `first` to `last` (excluded) of a text."""
    flat = read.flat[:, first:last].ravel()
    flat = flat[flat > 0]
    weights = weight[flat]
    length = float(np.sqrt(weights @ weights))
    return flat, weights / length if length else weights


def rows_of(read: Features, weight: NDArray[np.float32]) -> list[tuple[NDArray[np.int32], NDArray[np.float32]]]:
    """Rows and scaled weights of every segment of a text."""
    return [entries(read, weight, first, last) for first, last in segments(read.found).tolist()]


def train(
    data: Data, lexicon: Lexicon, seed: int, without: Collection[str] = (), epochs: int = 8
) -> tuple[NDArray[np.float32], float]:
    """Weights float32 [rows] and bias of the logistic regression over a segment's entries, learned from everything but
    the sources `without`."""
    import torch

    chance = random.Random(seed)
    torch.manual_seed(seed)
    parts: list[tuple[NDArray[np.int32], NDArray[np.float32], float, float]] = []

    def add(text: str, label: float, share: float) -> None:
        read = features(normalise(text, lexicon), lexicon)
        pieces = rows_of(read, lexicon.weight)
        # Of an attack with code only the instruction counts: the code may be as harmless as it looks.
        for rows, weights in pieces[:1] if label else pieces[:_MOST]:
            parts.append((rows, weights, label, share))
            # A word or two are no instruction, wherever they come from: lines of tables and code are that short.
            at = chance.randrange(len(read.found))
            parts.append(
                (*entries(read, lexicon.weight, at, at + chance.randint(1, 2)), 0, _FRAGMENT * min(share, 1.0))
            )

    for row in data.part("injection/bipia_contexts"):
        add(row["context"], 0, 1.0)
    for row in data.part("injection/bipia_attacks"):
        add(row["text"], 1, 8.0)
    for text in dict.fromkeys(attacks.plants(chance, 5000)):
        add(text, 1, 0.5)
    for text in dict.fromkeys(attacks.direct(chance, 400)):
        add(text, 1, 1.0)
    for text, _ in dict.fromkeys(written.spoken("plant", chance, 8000)):
        add(text, 1, 1.0)
    for kind, size in (("doc", 4000), ("caption", 1500), ("chat", 800), ("like", 5000), ("system", 500)):
        for text, _ in dict.fromkeys(written.spoken(kind, chance, size)):
            add(text, 0, 3.0)
    for text in dict.fromkeys(written.remarks(chance, 1000)):
        add(text, 0, 6.0)
    for text in library(Path(sysconfig.get_path("stdlib")), 700, 1):
        add(text, 0, 1.0)
    for name in ("wild/ok_pubmed_tool", "wild/ok_bfcl_react", "wild/ok_bfcl_tools"):
        if name.removeprefix("wild/") not in without:
            for row in data.part(name):
                add(said(row["request"], "tool") or said(row["request"], "user"), 0, 0.5)
    if "sentences" not in without:
        for row in data.part("language/sentences"):
            add(row["text"], 0, 0.5)
    for _ in range(1000):
        add(attacks.document(chance), 0, 0.5)
    for row in data.part("reasoning/gsm8k_train")[:800]:
        add(row["answer"], 0, 0.3)
    for row in data.part("pii/presidio_synth"):
        if "?" not in row["text"]:
            add(row["text"], 0, 0.3)
    table = torch.nn.Parameter(torch.zeros(lexicon.rows, 1))
    bias = torch.nn.Parameter(torch.zeros(1))
    wide, narrow = torch.optim.SparseAdam([table], lr=0.05), torch.optim.Adam([bias], lr=0.02)
    order = np.random.default_rng(seed)
    size = 512
    for epoch in trange(epochs, desc="segments", mininterval=5):
        shuffled = order.permutation(len(parts))
        for at in range(0, len(shuffled), size):
            chosen = [parts[i] for i in shuffled[at : at + size]]
            sizes = np.array([len(part[0]) for part in chosen])
            flat = torch.from_numpy(np.concatenate([part[0] for part in chosen]).astype(np.int64))
            weights = torch.from_numpy(np.concatenate([part[1] for part in chosen]))
            weights = weights * (torch.rand(len(weights)) > 0.2) / 0.8
            offsets = torch.from_numpy(np.cumsum(sizes) - sizes)
            logits = torch.nn.functional.embedding_bag(
                flat, table, offsets, mode="sum", per_sample_weights=weights, sparse=True
            )
            goal, share = (torch.tensor([part[i] for part in chosen], dtype=torch.float32) for i in (2, 3))
            losses = torch.nn.functional.binary_cross_entropy_with_logits(logits[:, 0] + bias, goal, reduction="none")
            for optimiser in (wide, narrow):
                optimiser.param_groups[0]["lr"] *= 1.0 if at else 0.75 if epoch else 1.0
                optimiser.zero_grad()
            (losses * share).mean().backward()
            wide.step()
            narrow.step()
    return table.detach().numpy()[:, 0], float(bias.detach())


def score(text: str, lexicon: Lexicon, table: NDArray[np.float32], bias: float) -> float:
    """The largest logit over a text's segments."""
    read = features(normalise(text, lexicon), lexicon)
    return max((float(weights @ table[rows]) + bias for rows, weights in rows_of(read, lexicon.weight)), default=bias)


def evaluation(data: Data, seed: int) -> tuple[Sequence[str], Sequence[str]]:
    """Held-out documents without and with a held-out attack, every attack in five documents."""
    chance = random.Random(seed)
    documents = [row["context"] for row in data.part("injection/bipia_contexts", held_out=True)]
    planted = [
        plant(chance.choice(documents), row["text"], chance)
        for row in data.part("injection/bipia_attacks", held_out=True)
        for _ in range(10)
    ]
    return documents, planted
