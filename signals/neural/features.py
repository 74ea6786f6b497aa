"""What the shipped model reads of a text: rows of its tables, a scale, figures of style, and parts to look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from signals.neural import lexer
from signals.neural.lexer import Words
from signals.neural.tokenizer import Lexicon

PREFIX: Final = 4
STYLE: Final = 7
WINDOW: Final = 192
STRIDE: Final = 96
"""Words of a window and between the starts of two windows (they overlap by half)."""
SEGMENT: Final = 96
"""A segment (sentence or line) longer than this many words is cut."""
_STOPS: Final = np.zeros(1 << 16, np.bool_)
_STOPS[[ord(c) for c in ".?!。？！"]] = True
_MANY: Final = 2000
_FEED: Final = 10


@dataclass(frozen=True, slots=True)
class Features:
    """One text as the model reads it.

    rows: int32, the distinct known entries of the text. scale: 1 / the Euclidean length of their weights. words: int32,
    rows of its words in order (those with an embedding). style: float32 [STYLE]. flat: int32 [n, 4], for each word the
    rows of itself, the pair it begins, its beginning and its end; 0 where unknown. found: the words themselves.
    """

    rows: NDArray[np.int32]
    scale: float
    words: NDArray[np.int32]
    style: NDArray[np.float32]
    flat: NDArray[np.int32]
    found: Words


def features(text: str, lexicon: Lexicon) -> Features:
    """The features of a text (already normalised)."""
    found = lexer.words(text)
    count = len(found)
    hashes = np.concatenate(
        (found.hashes, lexer.pairs(found), lexer.ends(found, PREFIX, False), lexer.ends(found, PREFIX, True))
    )
    flat = lexicon.find(hashes)
    words = flat[:count]
    words = words[(words > 0) & (words < lexicon.embedded)]
    rows = _distinct(flat, lexicon.rows)
    weights = lexicon.weight[rows]
    length = float(np.sqrt(weights @ weights))
    return Features(rows, 1 / length if length else 0.0, words, style(found), flat.reshape(4, count).T, found)


def _distinct(flat: NDArray[np.int32], rows: int) -> NDArray[np.int32]:
    """The distinct rows in `flat` but 0, in order."""
    if flat.size > _MANY:  # marking is quicker than sorting
        marks = np.zeros(rows, np.bool_)
        marks[flat] = True
        marks[0] = False
        return np.flatnonzero(marks).astype(np.int32)
    found = np.unique(flat)
    return found[1:] if found.size and not found[0] else found


def style(found: Words) -> NDArray[np.float32]:
    """Figures of about unit size: words, capitals, digits, punctuation, line feeds, length of the words, characters."""
    count = max(1, len(found))
    characters = max(1, len(found.codes))
    return np.array(
        [
            np.log1p(count) / 8,
            min(1.0, 4 * found.upper / characters),
            np.count_nonzero(found.classes == lexer.DIGIT) / count,
            np.count_nonzero(found.classes == lexer.PUNCT) / count,
            min(1.0, 8 * found.lines / count),
            min(1.0, float(found.lengths.sum()) / count / 10),
            np.log1p(len(found.codes)) - 5.5,
        ],
        np.float32,
    )


def windows(count: int) -> NDArray[np.int32]:
    """Overlapping windows over `count` words, int32 [n, 2] of first and one past the last; all when there are few."""
    if count <= WINDOW:
        return np.array([[0, count]], np.int32)
    starts = np.arange(0, count - WINDOW + STRIDE, STRIDE, dtype=np.int32)
    return np.stack((starts, np.minimum(starts + WINDOW, count)), 1)


def segments(found: Words) -> NDArray[np.int32]:
    """Sentences and lines, int32 [n, 2] of first and one past the last word; long ones are cut."""
    count = len(found)
    if not count:
        return np.zeros((0, 2), np.int32)
    stop = _STOPS[found.codes[found.starts]] & (found.classes == lexer.PUNCT)
    begins = np.zeros(count, np.bool_)
    begins[0] = True
    begins[1:] = stop[:-1] & found.gaps[1:]
    feeds = np.flatnonzero(found.codes == _FEED)
    after = np.searchsorted(found.starts, feeds)
    begins[after[after < count]] = True
    firsts = np.flatnonzero(begins).astype(np.int32)
    sizes = np.diff(firsts, append=np.int32(count))
    if sizes.max() > SEGMENT:
        pieces = -(-sizes // SEGMENT)
        extra = np.arange(int(pieces.sum()), dtype=np.int32) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        firsts = (np.repeat(firsts, pieces) + extra * SEGMENT).astype(np.int32)
    return np.stack((firsts, np.append(firsts[1:], np.int32(count))), 1).astype(np.int32)
