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

_WORD_SEEN, _RUN_SEEN, _END_SEEN = 4, 6, 12
_MOST = 96_000
"""Entries: more would make the models larger than the 40 MB that they have together."""


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
    """The lexicon of `texts` (training part only) and of the words in `vocabulary` (the teacher's).

    Words seen in _WORD_SEEN texts; pairs of characters of scripts without spaces, which are words elsewhere, in
    _RUN_SEEN; beginnings and ends in _END_SEEN, of words that are no shorter than these; and of the other pairs as many
    as keep the lexicon within _MOST. ValueError where the rest alone is more than that.
    """
    cut = [lexer.words(text) for text in tqdm(texts, desc="lexicon", mininterval=5)]
    words = _seen(found.hashes for found in cut)
    for word in vocabulary:
        found = lexer.words(word)
        if len(found) == 1:
            value = int(found.hashes[0])
            words[value] = max(words.get(value, 0), _WORD_SEEN)
    hashed = [lexer.hashes(found) for found in cut]
    runs = [_runs(found) for found in cut]
    long = [found.lengths >= lexer.ENDS for found in cut]
    groups = [
        (words, _WORD_SEEN),
        (_seen(one[1, :-1][run] for one, run in zip(hashed, runs, strict=True)), _RUN_SEEN),
        *((_seen(one[row][some] for one, some in zip(hashed, long, strict=True)), _END_SEEN) for row in (2, 3)),
    ]
    pairs = _seen(one[1, :-1][~run] for one, run in zip(hashed, runs, strict=True))
    room = _MOST - sum(seen >= least for group, least in groups for seen in group.values())
    if room < 0:
        raise ValueError(f"the lexicon has {-room} entries too many: raise _WORD_SEEN or _END_SEEN in {__file__}")
    ranked = sorted(pairs.values(), reverse=True)
    groups.append((pairs, max(_RUN_SEEN, ranked[room] + 1 if len(ranked) > room else 0)))
    order: list[int] = []
    counts: list[int] = []
    taken = set[int]()
    for group, least in groups:
        fresh = sorted(value for value, seen in group.items() if seen >= least and value not in taken)
        taken.update(fresh)
        order += fresh
        counts += [group[value] for value in fresh]
        if group is words:
            embedded = len(order) + 1
    weight = np.log(len(texts) / np.array([len(texts), *counts], np.float32)).astype(np.float16)
    bits = int(np.ceil(np.log2(len(order) / 0.48)))
    return Lexicon(table(np.array(order, np.uint64), bits), weight.astype(np.float32), embedded)


def _runs(found: lexer.Words) -> NDArray[np.bool_]:
    """Which words but the last make a pair of characters of scripts without spaces with the next: bool [n - 1]."""
    alone = lexer.kinds(found.codes.take(found.starts).astype(np.uint64)) == lexer.RUN
    return alone[:-1] & alone[1:]


def save(lexicon: Lexicon, path: Path) -> None:
    np.savez_compressed(
        path,
        slots=lexicon.slots,
        weight=lexicon.weight.astype(np.float16),
        embedded=np.int64(lexicon.embedded),
    )
