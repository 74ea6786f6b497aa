"""Cuts text into words and hashes them, without a Python loop: a few numpy passes over the code points.

A word is a run of letters, a run of digits, a run of one punctuation character, or a single character of a script
that does not put spaces between words (Han, kana, Thai, ...). `fooBar` is two words. Case is folded in the hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]

SPACE: Final = 0
DIGIT: Final = 1
PUNCT: Final = 2
SINGLE: Final = 3
"""Classes of code points. From LETTER on, each class is one alphabet: a change of alphabet ends a word."""
LETTER: Final = 4

# (first, last, class): alphabets that end a word; every other letter is LETTER (Latin).
_ALPHABETS: Final = (
    (0x0370, 0x03FF, 5),  # Greek
    (0x0400, 0x052F, 6),  # Cyrillic
    (0x0530, 0x058F, 7),  # Armenian
    (0x0590, 0x05FF, 8),  # Hebrew
    (0x0600, 0x077F, 9),  # Arabic
    (0x0900, 0x097F, 10),  # Devanagari
    (0x0980, 0x0DFF, 11),  # the other Indic alphabets
    (0x10A0, 0x10FF, 12),  # Georgian
    (0x1100, 0x11FF, 13),  # Hangul
    (0xAC00, 0xD7AF, 13),
    (0x00C0, 0x024F, 14),  # Latin with accents: continues a Latin word, see `_classes`
    (0x1E00, 0x1EFF, 14),
)
_SINGLES: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
)
CLASSES: Final = 15
ACCENTED: Final = 14

_LIMIT: Final = 0x10000


_MARKS: Final = (
    (0x0300, 0x036F),
    (0x0483, 0x0489),
    (0x0591, 0x05C7),
    (0x0610, 0x061A),
    (0x064B, 0x065F),
    (0x0900, 0x0DFF),
)


@cache
def _classes() -> tuple[U8, NDArray[np.uint16], NDArray[np.bool_]]:
    """Tables over the basic plane: class, lower case and "is upper case"; what lies beyond counts as SINGLE."""
    points = np.arange(_LIMIT, dtype=np.uint32)
    surrogate = (points >= 0xD800) & (points < 0xE000)
    characters = np.where(surrogate, 0x21, points).astype("<u4").view("<U1")
    alpha, digit = np.strings.isalpha(characters), np.strings.isdigit(characters)
    table = np.full(_LIMIT + 1, PUNCT, np.uint8)
    table[:-1][np.strings.isspace(characters) | (points < 32)] = SPACE
    table[:-1][digit] = DIGIT
    for first, last in _MARKS:
        alpha[first : last + 1] |= table[first : last + 1] == PUNCT
    table[:-1][alpha] = LETTER
    lower = np.strings.lower(characters).astype("<U1").view("<u4")
    lower = np.where((lower != 0) & (lower < _LIMIT), lower, points)
    for first, last, number in _ALPHABETS:
        part = table[first : last + 1]
        part[part == LETTER] = number
    for first, last in _SINGLES:
        part = table[first : last + 1]
        part[part >= PUNCT] = SINGLE
    table[_LIMIT] = SINGLE
    folded = np.append(lower, 0).astype(np.uint16)
    return table, folded, np.append((lower != points) & alpha & ~surrogate, False)


_BASE: Final = 0x9E3779B97F4A7C15
_PERIOD: Final = 1 << 14


def _powers(base: int) -> U64:
    """base^1, base^2, ..., base^_PERIOD modulo 2^64."""
    with np.errstate(over="ignore"):
        return np.multiply.accumulate(np.full(_PERIOD, base, np.uint64))


_POWERS: Final = _powers(_BASE)
_INVERSES: Final = np.concatenate((np.ones(1, np.uint64), _powers(pow(_BASE, -1, 1 << 64))[:-1]))
"""A word's hash is the sum of its letters times powers of a base that grow along the text, divided by the power at the
word's start. The powers begin anew after _PERIOD letters: a word across such a border is not known again."""
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)
_S31: Final = np.uint64(31)
_S29: Final = np.uint64(29)


def mix(value: U64) -> U64:
    """Spread the bits of 64-bit hashes (the finaliser of SplitMix64)."""
    value = (value ^ (value >> _S31)) * _M1
    value = (value ^ (value >> _S29)) * _M2
    return value ^ (value >> _S31)


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text, all arrays of length n (number of words).

    hashes: uint64, one a word, without regard to case. starts, lengths: int32, in code points.
    classes: uint8, the word's class. gaps: bool, white space stands before the word. codes: uint16 of the whole text,
    lower-cased (code points beyond the basic plane are 0). upper: how many code points were upper case, lines: how
    many line feeds there are.
    """

    hashes: U64
    starts: I32
    lengths: I32
    classes: U8
    gaps: NDArray[np.bool_]
    codes: NDArray[np.uint16]
    upper: int
    lines: int

    def __len__(self) -> int:
        return len(self.starts)


_EMPTY: Final = Words(
    np.empty(0, np.uint64),
    np.empty(0, np.int32),
    np.empty(0, np.int32),
    np.empty(0, np.uint8),
    np.empty(0, np.bool_),
    np.empty(0, np.uint16),
    0,
    0,
)


def _points(text: str) -> NDArray[np.uint32]:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def words(text: str) -> Words:
    """The words of `text`, in order. Lone surrogates count as punctuation."""
    if not text:
        return _EMPTY
    class_of, lower_of, upper_of = _classes()
    plain = text.isascii()
    raw = np.frombuffer(text.encode(), np.uint8) if plain else _points(text)
    codes = raw if plain else np.minimum(raw, _LIMIT)
    classes = class_of[codes]
    upper = upper_of[codes]
    # The class without the accents: `né` stays one word.
    base = classes if plain else np.where(classes == ACCENTED, np.uint8(LETTER), classes)
    lower = lower_of[codes]
    begins = np.empty(raw.size, np.bool_)
    begins[0] = True
    before, here = base[:-1], base[1:]
    begins[1:] = (
        (before != here)
        | (here == SINGLE)
        | ((here == PUNCT) & (raw[1:] != raw[:-1]))
        | (upper[1:] & ~upper[:-1] & (before >= LETTER))
    )
    cuts = np.flatnonzero(begins).astype(np.int32)
    lengths = np.diff(cuts, append=np.int32(raw.size))
    value = lower.astype(np.uint64)
    if not plain:
        np.copyto(value, raw, where=raw >= _LIMIT)
    powers = _POWERS[: raw.size] if raw.size <= _PERIOD else np.resize(_POWERS, raw.size)
    value *= powers
    hashes = mix(np.add.reduceat(value, cuts) * _INVERSES[cuts % _PERIOD])
    kinds = base[cuts]
    keep = kinds != SPACE
    gaps = np.empty(cuts.size, np.bool_)
    gaps[0] = False
    gaps[1:] = ~keep[:-1]
    if not plain and classes.max() == ACCENTED:
        kinds = np.maximum(kinds, np.where(np.maximum.reduceat(classes, cuts) == ACCENTED, ACCENTED, 0)).astype(
            np.uint8
        )
    return Words(
        hashes[keep],
        cuts[keep],
        lengths[keep],
        kinds[keep],
        gaps[keep],
        lower,
        int(np.count_nonzero(upper)),
        text.count("\n"),
    )


def ends(found: Words, size: int, tail: bool) -> U64:
    """A hash of the first (`tail` False) or last `size` letters of every word (the whole word when it is shorter)."""
    size_of = np.minimum(found.lengths, size)
    first = found.starts + (found.lengths - size_of if tail else 0)
    steps = np.arange(size, dtype=np.int32)[:, None]
    if not len(found):
        return np.empty(0, np.uint64)
    codes = found.codes[np.minimum(first + steps, len(found.codes) - 1)].astype(np.uint64)
    codes *= _POWERS[:size, None]
    codes *= steps < size_of
    return mix(codes.sum(0) + np.uint64(0xA5A5 if tail else 0x5A5A))


def pairs(found: Words, distance: int = 1) -> U64:
    """A hash of every word with the one `distance` later; the last words pair with nothing (hash of 0)."""
    later = np.zeros(len(found), np.uint64)
    later[: max(0, len(found) - distance)] = found.hashes[distance:]
    return mix(found.hashes * np.uint64(0x9E3779B97F4A7C15) + later + np.uint64(distance))
