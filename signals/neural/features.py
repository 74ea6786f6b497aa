"""What the shipped model reads of a text: rows of its tables, a scale, figures of style, and parts to look at."""

from __future__ import annotations

from dataclasses import dataclass
from math import log1p, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from signals.neural import lexer
from signals.neural.lexer import U64, Words
from signals.neural.tokenizer import Lexicon

STYLE: Final = 7
WINDOW: Final = 192
STRIDE: Final = 96
"""Words of a window and between the starts of two windows (they overlap by half)."""
SEGMENT: Final = 96
"""A segment (sentence or line) longer than this many words is cut."""
_STOPS: Final = np.zeros(1 << 16, np.bool_)
_STOPS[[ord(c) for c in ".?!。？！"]] = True
_FEED: Final = 10
_MANY: Final = 4000
_ASCII: Final = 128
_LONG: Final = 6
"""Letters from which on a word's beginning and its end, four each, say which word it is, but for its form."""
_FEW: Final = 10
"""Words below which a text says too little to tell whether its language is known."""


@dataclass(frozen=True, slots=True)
class Features:
    """One text as the model reads it.

    rows: int64, the distinct known entries of the text. scale: 1 / the Euclidean length of their weights. words: int32,
    rows of its words in order, 0 for those without an embedding. style: STYLE figures. flat: int32 [4, n], for each
    word the rows of itself, the pair it begins, its beginning and its end; 0 where unknown. found: the words.
    """

    rows: NDArray[np.int64]
    scale: float
    words: NDArray[np.int32]
    style: tuple[float, ...]
    flat: NDArray[np.int32]
    found: Words


def features(text: str, lexicon: Lexicon) -> Features:
    """The features of a text (already normalised); of one that only repeats itself, those of what it says once."""
    found = lexer.words(text)
    hashed = lexer.hashes(found)
    if len(found) > WINDOW and (end := _news(found, hashed[1, :-1])):
        found = lexer.words(text[:end])
        hashed = lexer.hashes(found)
    flat = lexicon.find(hashed)
    words = flat[0] * (flat[0] < lexicon.embedded)
    rows = _distinct(flat, lexicon.rows)
    weights = lexicon.weight.take(rows)
    length = sqrt(weights @ weights)
    return Features(rows, 1 / length if length else 0.0, words, style(found), flat, found)


def _news(found: Words, pairs: U64) -> int:
    """The characters of a text after which none of its `pairs` of words is new, where they are less than half of its
    words; else 0. A harmless sentence said a hundred times is as harmless as said once, but looks like the long texts
    of attackers."""
    half = len(pairs) // 2
    before, after = pairs[:half], pairs[half:]
    # Nearly every text says something new in its second half: that is seen without sorting.
    size = 8 << half.bit_length()
    places = np.uint64(size - 1)
    marks = np.zeros(size, np.bool_)
    marks[before & places] = True
    if not marks[after & places].all():
        if found.size <= lexer.PERIOD:
            return 0
        # A word across a border of the powers has another sum each time.
        ends = found.starts + found.lengths - 1
        torn = found.starts // lexer.PERIOD != ends // lexer.PERIOD
        torn[:-1] |= torn[1:]
        after = after[~torn[half:-1]]
        if not marks[after & places].all():
            return 0
    ordered, firsts = np.unique(before, return_index=True)
    if (ordered.take(np.searchsorted(ordered, after), mode="clip") != after).any():
        return 0
    last = int(firsts.max()) + 1
    return int(found.starts[last] + found.lengths[last])


def _distinct(flat: NDArray[np.int32], rows: int) -> NDArray[np.int64]:
    """The distinct rows in `flat` but 0, in order."""
    if flat.size > _MANY:  # marking is quicker than sorting
        marks = np.zeros(rows, np.bool_)
        marks[flat] = True
        marks[0] = False
        return np.flatnonzero(marks)
    found = np.sort(flat, None)
    fresh = np.empty(found.size, np.bool_)
    np.greater(found[1:], found[:-1], out=fresh[1:])
    fresh[:1] = found[:1] > 0
    return found[fresh].astype(np.int64)


def style(found: Words) -> tuple[float, ...]:
    """Figures of about unit size: words, capitals, digits, punctuation, line feeds, length of the words, characters."""
    count = max(1, len(found))
    return (
        log1p(count) / 8,
        min(1.0, 4 * found.upper / max(1, found.size)),
        found.digits / count,
        len(found.signs) / count,
        min(1.0, 8 * found.lines / count),
        min(1.0, int(found.lengths.sum()) / count / 10),
        log1p(found.size) - 5.5,
    )


def known(text: Features) -> float:
    """The share of a text's words (no signs, no numbers) that the lexicon holds, whole or, of a long one, its beginning
    and its end: languages that bend their words seldom use the same one twice. 1 where they are fewer than ten."""
    signs = text.found.signs
    count = len(text.found) - len(signs) - text.found.digits
    if count < _FEW:
        return 1.0
    held: NDArray[np.bool_] = (text.flat[2] > 0) & (text.flat[3] > 0) & (text.found.lengths >= _LONG)
    held |= text.words > 0
    held[signs] = False
    return min(1.0, int(held.sum()) / count)


def meant(text: Features, vectors: NDArray[np.bool_]) -> float:
    """The share of a text's words (no signs, no numbers) whose meaning the embedding knows; 1 of a text without words.
    `vectors` [embedded] says which rows have a vector. A single letter of another alphabet is no word of its own."""
    found = text.found
    known: NDArray[np.bool_] = vectors.take(text.words)
    known &= (found.lengths > 1) | (found.codes.take(found.starts) < _ASCII)
    known[found.signs] = False
    count = len(found) - len(found.signs) - found.digits
    return min(1.0, int(known.sum()) / count) if count > 0 else 1.0


def windows(count: int) -> NDArray[np.int32]:
    """Overlapping windows over `count` words, int32 [n, 2] of first and one past the last; all when there are few."""
    if count <= WINDOW:
        return np.array([[0, count]], np.int32)
    starts = np.arange(0, count - WINDOW + STRIDE, STRIDE, dtype=np.int32)
    return np.stack((starts, np.minimum(starts + WINDOW, count)), 1)


def distinct(flat: NDArray[np.int32], count: int) -> NDArray[np.int32]:
    """The entries of each of `count` windows once, however often it repeats them: int32 [4, count * WINDOW], WINDOW
    columns a window, 0 where one was there already. `flat` [4, n] is that of `Features`."""
    padded = np.zeros((4, STRIDE * (count - 1) + WINDOW), np.int32)
    padded[:, : flat.shape[1]] = flat
    wide, step = padded.strides
    each = np.ndarray((4, count, WINDOW), np.int32, padded, strides=(wide, STRIDE * step, step)).copy()
    each.sort(2)  # words, pairs, beginnings and ends apart: none is an entry of another sort
    again = each[:, :, 1:] == each[:, :, :-1]
    each[:, :, 1:][again] = 0
    return each.reshape(4, count * WINDOW)


def segments(found: Words) -> NDArray[np.int32]:
    """Sentences and lines, int32 [n, 2] of first and one past the last word; long ones are cut."""
    count = len(found)
    if not count:
        return np.zeros((0, 2), np.int32)
    signs = found.signs[: np.searchsorted(found.signs, count - 1)]  # after the last word nothing begins
    places = found.starts.take(signs)
    ends = _STOPS.take(found.codes.take(places)) & (found.starts.take(signs + 1) > places + found.lengths.take(signs))
    begins = np.zeros(count, np.bool_)
    begins[0] = True
    begins[signs[ends] + 1] = True
    if found.lines:
        after = np.searchsorted(found.starts, np.flatnonzero(found.codes == _FEED))
        begins[after[after < count]] = True
    spans = _between(np.flatnonzero(begins), count)
    sizes = spans[:, 1] - spans[:, 0]
    if sizes.max() > SEGMENT:
        pieces = -(-sizes // SEGMENT)
        extra = np.arange(int(pieces.sum())) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        spans = _between(np.repeat(spans[:, 0], pieces) + extra * SEGMENT, count)
    return spans


def _between(firsts: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    spans = np.empty((len(firsts), 2), np.int32)
    spans[:, 0] = firsts
    spans[:-1, 1] = firsts[1:]
    spans[-1, 1] = count
    return spans
