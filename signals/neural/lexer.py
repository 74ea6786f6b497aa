"""Cuts text into words and hashes them, without a Python loop: a few numpy passes over the code points.

A word is a run of letters, a run of digits, a run of one punctuation character, or a single character of a script
that does not put spaces between words (Han, kana, Thai, ...). `fooBar` is two words. Case is folded in the hash.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

U64 = NDArray[np.uint64]
I64 = NDArray[np.int64]

ENDS: Final = 4
"""Letters of a word's beginning and of its end: four of 16 bits are read as one number."""

# Classes of code points. From _LETTER on, each class is one alphabet: a change of alphabet ends a word.
_SPACE, _DIGIT, _PUNCT, _SINGLE, _LETTER = range(5)

# (first, last, class): alphabets that end a word; every other letter is _LETTER (Latin).
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
)
_SINGLES: Final = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # kana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
)
_LIMIT: Final = 0x10000
_BLOCK: Final = 0x1000
_MARKS: Final = (
    (0x0300, 0x036F),
    (0x0483, 0x0489),
    (0x0591, 0x05C7),
    (0x0610, 0x061A),
    (0x064B, 0x065F),
    (0x0900, 0x0DFF),
)


class _Tables(NamedTuple):
    """What is known of a code point. `keys` uint32 and `lower` uint16 [65,537], for the basic plane; what lies beyond
    counts as its last entry. `ascii` maps ASCII bytes to keys of one byte.

    Two neighbours belong to one word where their keys are the same, or where a capital (one more than the small
    letters of its alphabet) comes before a small letter: where the difference is 0 or 1. White space is 0, a digit
    _NUMBER, a letter less than _SIGN, a sign less than _ALONE; above are the characters that stand alone.
    """

    keys: NDArray[np.uint32]
    lower: NDArray[np.uint16]
    ascii: bytes


_NUMBER: Final = 4
_SMALL: Final = 17
_SIGN: Final = 64
_ALONE: Final = 1 << 20


def _block(first: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
    """Keys and lower case of the 4,096 code points from `first` on."""
    points = np.arange(first, first + _BLOCK, dtype=np.uint32)
    surrogate = (points >= 0xD800) & (points < 0xE000)
    characters = np.where(surrogate, 0x21, points).astype("<u4").view("<U1")
    alpha, digit = np.strings.isalpha(characters), np.strings.isdigit(characters)
    classes = np.full(_BLOCK, _PUNCT, np.uint8)
    classes[np.strings.isspace(characters) | (points < 32)] = _SPACE
    classes[digit] = _DIGIT

    def within(begin: int, end: int) -> NDArray[np.bool_]:
        return (points >= begin) & (points <= end)

    for begin, end in _MARKS:
        alpha |= within(begin, end) & (classes == _PUNCT)
    classes[alpha] = _LETTER
    for begin, end, number in _ALPHABETS:
        classes[within(begin, end) & (classes == _LETTER)] = number
    for begin, end in _SINGLES:
        classes[within(begin, end) & (classes >= _PUNCT)] = _SINGLE
    lower = np.strings.lower(characters).astype("<U1").view("<u4")
    lower = np.where((lower != 0) & (lower < _LIMIT), lower, points)
    capital = (lower != points) & alpha & ~surrogate
    keys = np.where(classes >= _LETTER, _SMALL + 4 * (classes.astype(np.uint32) - _LETTER) + capital, 0)
    keys[classes == _DIGIT] = _NUMBER
    keys[classes == _PUNCT] = (_SIGN + 4 * points)[classes == _PUNCT]
    keys[classes == _SINGLE] = (_ALONE + 4 * points)[classes == _SINGLE]
    return keys.astype(np.uint32), lower.astype(np.uint16)


@cache
def _tables() -> _Tables:
    keys, lower = np.empty(_LIMIT + 1, np.uint32), np.zeros(_LIMIT + 1, np.uint16)
    for first in range(0, _LIMIT, _BLOCK):  # in blocks: made at once, the intermediate arrays would stay as free memory
        keys[first : first + _BLOCK], lower[first : first + _BLOCK] = _block(first)
    keys[_LIMIT] = _ALONE + 4 * _LIMIT
    plain = keys[:128].tolist()
    signs = [key for key in plain if key >= _SIGN]
    return _Tables(
        keys, lower, bytes(_SIGN + 4 * signs.index(key) if key >= _SIGN else key for key in plain).ljust(256, b"\0")
    )


_BASE: Final = 0x9E3779B97F4A7C15
PERIOD: Final = 1 << 14


def _powers(base: int) -> U64:
    """base^1, base^2, ..., base^PERIOD modulo 2^64."""
    with np.errstate(over="ignore"):
        return np.multiply.accumulate(np.full(PERIOD, base, np.uint64))


POWERS: Final = _powers(_BASE)
INVERSES: Final = np.concatenate((np.ones(1, np.uint64), _powers(pow(_BASE, -1, 1 << 64))[:-1]))
"""A word's sum is that of its letters times powers of a base that grow along the text, divided by the power at the
word's start. The powers begin anew after PERIOD letters: a word across such a border is not known again."""
_M1: Final = np.uint64(0xBF58476D1CE4E5B9)
_M2: Final = np.uint64(0x94D049BB133111EB)
_S31: Final = np.uint64(31)
_S29: Final = np.uint64(29)
_PAIR: Final = np.uint64(0xD6E8FEB86659FD93)
FIRST: Final = np.uint64(0xA24BAED4963EE407)
_LAST: Final = np.uint64(0x9FB21C651E98DF25)
_MASKS: Final = np.array([0, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF], np.uint64)
"""Keeps the first 0 to 4 letters of a number that was read from four of them."""


def mix(value: U64) -> U64:
    """Spread the bits of 64-bit numbers (the finaliser of SplitMix64), in place; `value` is returned."""
    shifted = value >> _S31
    value ^= shifted
    value *= _M1
    value ^= np.right_shift(value, _S29, out=shifted)
    value *= _M2
    value ^= np.right_shift(value, _S31, out=shifted)
    return value


@dataclass(frozen=True, slots=True)
class Words:
    """The words of one text.

    sums: uint64 [n], one a word, without regard to case. starts, lengths: int64 [n], in code points. signs: int64,
    which words are punctuation. digits: how many are numbers. codes: uint16 [size + 3] of the whole text, lower-cased
    (code points beyond the basic plane are 0) and followed by zeros. size: length of the text in code points. upper:
    how many of them were upper case. lines: how many line feeds there are.
    """

    sums: U64
    starts: I64
    lengths: I64
    signs: I64
    digits: int
    codes: NDArray[np.uint16]
    size: int
    upper: int
    lines: int

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def hashes(self) -> U64:
        """One hash a word, uint64 [n]: the first row of `hashes`."""
        return mix(self.sums.copy())


_NONE: Final = np.empty(0, np.int64)
_EMPTY: Final = Words(np.empty(0, np.uint64), _NONE, _NONE, _NONE, 0, np.zeros(ENDS - 1, np.uint16), 0, 0, 0)


def words(text: str) -> Words:
    """The words of `text`, in order. Lone surrogates count as punctuation."""
    if not text:
        return _EMPTY
    tables, size = _tables(), len(text)
    raw: NDArray[np.uint32] | None = None
    keys: NDArray[Any]
    letters: NDArray[Any]
    if text.isascii():
        data = text.encode()
        keys, letters = np.frombuffer(data.translate(tables.ascii), np.uint8), np.frombuffer(data.lower(), np.uint8)
    else:
        raw = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
        near = np.minimum(raw, _LIMIT)
        keys, letters = tables.keys.take(near), tables.lower.take(near)
    codes = np.zeros(size + ENDS - 1, np.uint16)
    codes[:size] = letters
    begins = np.empty(size, np.bool_)
    begins[0] = True
    np.greater(keys[:-1] - keys[1:], 1, out=begins[1:])
    if raw is not None:
        begins |= keys >= _ALONE
    cuts = np.flatnonzero(begins)
    value = letters.astype(np.uint64)
    if raw is not None:
        np.copyto(value, raw, where=raw >= _LIMIT)
    value *= POWERS[:size] if size <= PERIOD else np.resize(POWERS, size)
    kinds = keys.take(cuts)
    kept = np.flatnonzero(kinds)  # white space is 0
    kinds, starts = kinds.take(kept), cuts.take(kept)
    sums = np.add.reduceat(value, cuts).take(kept)
    sums *= INVERSES.take(starts & (PERIOD - 1))
    return Words(
        sums,
        starts,
        np.append(cuts[1:], size).take(kept) - starts,
        np.flatnonzero((kinds >= _SIGN) if raw is None else (kinds >= _SIGN) & (kinds < _ALONE)),
        int(np.count_nonzero(kinds == _NUMBER)),
        codes,
        size,
        int(np.count_nonzero(keys & 3 == 2)),
        text.count("\n"),
    )


DIGITS: Final = 2
RUN: Final = 1
HANGUL: Final = 13
"""The kinds of digits, of scripts that do not put spaces between words, and of Korean's syllables."""


def kinds(codes: U64) -> NDArray[np.uint8]:
    """What each of some code points is a part of: 0 of no word, DIGITS, RUN, or the letters of one alphabet."""
    keys = _tables().keys.take(np.minimum(codes, _LIMIT).astype(np.int64))
    made = np.where(keys < _SIGN, keys >> 2, 0)  # a digit is 1 then, letters are 4 and more
    made[keys == _NUMBER] = DIGITS
    made[(keys >= _ALONE) & (codes < _LIMIT)] = RUN
    return made.astype(np.uint8)


def hashes(found: Words) -> U64:
    """uint64 [4, n]: of every word, of it with the next one (the last: with nothing), of its first ENDS letters and of
    its last (the whole word when it is shorter)."""
    made = np.empty((4, len(found)), np.uint64)
    if not len(found):
        return made
    made[0] = found.sums
    np.multiply(found.sums, _PAIR, out=made[1])
    made[1, :-1] += found.sums[1:]
    # Four letters at once: the text's codes as one number of 64 bits from every place on.
    fours = np.ndarray((found.size,), np.uint64, found.codes, strides=(2,))
    short = np.minimum(found.lengths, ENDS)
    mask = _MASKS.take(short)
    np.bitwise_and(fours[found.starts], mask, out=made[2])
    np.bitwise_and(fours[found.starts + (found.lengths - short)], mask, out=made[3])
    made[2] += FIRST
    made[3] += _LAST
    return mix(made)


def substrings(run: str, longest: int) -> U64:
    """uint64 [n, longest]: the hash of every part of a run of n <= 16,384 ASCII letters, by its start and its length
    less one, as that of a word. What would go beyond the end is the part up to it."""
    size = len(run)
    value = np.frombuffer(run.lower().encode(), np.uint8) * POWERS[:size]
    before = np.zeros(size + 1, np.uint64)
    np.cumsum(value, out=before[1:])
    starts = np.arange(size)[:, None]
    ends = np.minimum(starts + np.arange(1, longest + 1), size)
    sums = before[ends]
    sums -= before[starts]
    sums *= INVERSES[starts]
    return mix(sums)
