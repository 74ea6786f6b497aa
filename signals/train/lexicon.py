"""Chooses what the lexicon holds, lays out its hash table and calibrates the token estimate against o200k."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from signals.neural import lexer, tokenizer
from signals.neural.lexer import U64


def table(hashes: U64, bits: int) -> tuple[NDArray[np.int32], NDArray[np.uint16]]:
    """The hash table (slots, prints) of 2^bits places that holds `hashes`, row i + 1 for hash i: cuckoo hashing (Pagh
    and Rodler 2004). ValueError when they do not fit."""
    mask = np.uint64((1 << bits) - 1)
    first, second, prints = tokenizer.places(hashes, mask)
    owner = np.full(1 << bits, -1, np.int64)
    for index in range(len(hashes)):
        here, place = index, int(first[index])
        for _ in range(500):
            here, owner[place] = int(owner[place]), here
            if here < 0:
                break
            place = int(second[here]) if place == first[here] else int(first[here])
        else:
            raise ValueError(f"{len(hashes)} entries do not fit {1 << bits} places")
    used = owner >= 0
    marks = np.zeros(1 << bits, np.uint16)
    marks[used] = prints[owner[used]]
    return (owner + 1).astype(np.int32), marks


def calibrate(lexicon: tokenizer.Lexicon, texts: Sequence[str], counts: NDArray[np.float64]) -> NDArray[np.float32]:
    """Non-negative weights for the token estimate: least squares of the relative error, by projected gradient, drawn
    towards one token a feature where the texts say little."""
    rows = np.zeros((len(texts), tokenizer.ESTIMATE))
    for index, text in enumerate(texts):
        found = lexer.words(text)
        rows[index] = tokenizer.estimate(found, lexicon.tokens[lexicon.find(found.hashes)])
    scale = 1 / np.maximum(counts, 4)
    design, target = rows * scale[:, None], counts * scale
    prior = np.full(tokenizer.ESTIMATE, 0.5)
    prior[2 * lexer.CLASSES : 2 * lexer.CLASSES + 2] = 1.0
    gram = design.T @ design + 0.05 * np.eye(tokenizer.ESTIMATE)
    wanted = design.T @ target + 0.05 * prior
    weights = prior.copy()
    for _ in range(300):  # coordinate descent, each weight kept at zero or above
        for at in range(len(weights)):
            weights[at] = max(0.0, weights[at] + (wanted[at] - gram[at] @ weights) / gram[at, at])
    return weights.astype(np.float32)
