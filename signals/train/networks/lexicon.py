"""Chooses what the lexicon holds and lays out its hash table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from signals.neural import lexer, tokenizer
from signals.neural.lexer import U64
from signals.neural.tokenizer import Lexicon

_WORD_SEEN, _PAIR_SEEN, _END_SEEN = 3, 7, 6
_MOST = 96_000
"""Entries: more would make the model larger than it was (and no longer fit the same table)."""


def table(hashes: U64, bits: int) -> NDArray[np.uint32]:
    """The hash table of 2^bits places that holds `hashes`, row i + 1 for hash i: cuckoo hashing (Pagh and Rodler 2004).
    ValueError when they do not fit."""
    mask = np.uint64((1 << bits) - 1)
    first, second, marks = tokenizer.places(hashes, mask)
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
    return np.where(owner < 0, tokenizer.EMPTY, marks[owner] | (owner + 1).astype(np.uint32)).astype(np.uint32)


def _seen(hashes: Iterable[U64]) -> dict[int, int]:
    """In how many texts each hash occurs."""
    found: list[U64] = [np.unique(part) for part in hashes]
    values, counts = np.unique(np.concatenate(found), return_counts=True)
    return dict(zip(values.tolist(), counts.tolist(), strict=True))


def build(texts: Sequence[str], vocabulary: Sequence[str]) -> Lexicon:
    """The lexicon of `texts` (training part only) and of the words in `vocabulary` (the teacher's): words seen in three
    texts, pairs in seven or as many as keep the lexicon within _MOST, beginnings and ends in six."""
    cut = [lexer.words(text) for text in tqdm(texts, desc="lexicon", mininterval=5)]
    words = _seen(found.hashes for found in cut)
    for word in vocabulary:
        found = lexer.words(word)
        if len(found) == 1:
            value = int(found.hashes[0])
            words[value] = max(words.get(value, 0), _WORD_SEEN)
    pairs = _seen(lexer.hashes(found)[1, :-1] for found in cut)
    firsts = _seen(lexer.hashes(found)[2] for found in cut)
    lasts = _seen(lexer.hashes(found)[3] for found in cut)
    order = sorted(value for value, seen in words.items() if seen >= _WORD_SEEN)
    embedded = len(order) + 1
    counts = [words[value] for value in order]
    taken = set(order)
    room = _MOST - len(order) - sum(seen >= _END_SEEN for group in (firsts, lasts) for seen in group.values())
    ranked = sorted(pairs.values(), reverse=True)
    least_pair = max(_PAIR_SEEN, ranked[room] + 1 if len(ranked) > room else 0)
    for group, least in ((pairs, least_pair), (firsts, _END_SEEN), (lasts, _END_SEEN)):
        for value in sorted(value for value, seen in group.items() if seen >= least and value not in taken):
            taken.add(value)
            order.append(value)
            counts.append(group[value])
    weight = np.log(len(texts) / np.array([len(texts), *counts], np.float32)).astype(np.float16)
    bits = int(np.ceil(np.log2(len(order) / 0.48)))
    return Lexicon(table(np.array(order, np.uint64), bits), weight.astype(np.float32), embedded)


def save(lexicon: Lexicon, path: Path) -> None:
    np.savez_compressed(
        path,
        slots=lexicon.slots,
        weight=lexicon.weight.astype(np.float16),
        embedded=np.int64(lexicon.embedded),
    )
