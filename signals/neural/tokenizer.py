"""Text to ids of the shipped lexicon, and the estimate of how many tokens a language model will count.

The lexicon is a hash table of what the training saw often enough: words, pairs of neighbours, beginnings and ends of
words. Every entry has a row number (the row of the model's tables), a word also the number of o200k tokens that it
takes. What the lexicon does not hold has row 0, which is all zeros in every table.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from signals.neural import lexer
from signals.neural.lexer import U64, Words

MODELS: Final = Path(__file__).resolve().parent.parent / "models"
LEXICON: Final = MODELS / "lexicon.npz"

_HAN: Final = (0x3400, 0x9FFF)
_KANA: Final = (0x3040, 0x30FF)
_LATIN: Final = (lexer.LETTER, lexer.ACCENTED)
ESTIMATE: Final = 2 * lexer.CLASSES + 10
"""Number of features that the token estimate weighs."""


class Lexicon:
    """A hash table from 64-bit hashes to rows. Two places a hash can be, 16 further bits against mistaken identity.

    `slots` int32 [2^k]: the row; `prints` uint16 [2^k]: the hash's top bits; `tokens` uint8 [rows]: o200k tokens of a
    word (0: not a word); `weights` float32 [ESTIMATE]: the calibration of `count`.
    """

    def __init__(
        self, slots: NDArray[np.int32], prints: NDArray[np.uint16], tokens: NDArray[np.uint8], weights: NDArray[np.float32]
    ) -> None:
        if slots.shape != prints.shape or slots.size & (slots.size - 1) or weights.shape != (ESTIMATE,):
            raise ValueError(f"lexicon: shapes {slots.shape}, {prints.shape}, {weights.shape} do not belong together")
        self.slots, self.prints, self.tokens, self.weights = slots, prints, tokens, weights
        self._mask = np.uint64(slots.size - 1)

    @classmethod
    def load(cls, path: Path = LEXICON) -> Lexicon:
        """The lexicon in an npz file. OSError when it cannot be read, ValueError when it is not one."""
        with np.load(path, allow_pickle=False) as found:
            try:
                return cls(found["slots"], found["prints"], found["tokens"], found["weights"])
            except KeyError as error:
                raise ValueError(f"{path}: not a lexicon: {error}") from None

    @property
    def rows(self) -> int:
        return len(self.tokens)

    def find(self, hashes: U64) -> NDArray[np.int32]:
        """The row of each hash, 0 for unknown ones."""
        first, second, mark = places(hashes, self._mask)
        found = np.where(self.prints[first] == mark, self.slots[first], 0)
        rows: NDArray[np.int32] = np.where(found, found, np.where(self.prints[second] == mark, self.slots[second], 0))
        return rows

    def count(self, text: str) -> int:
        """Estimate of the o200k tokens of `text`."""
        found = lexer.words(text)
        if not len(found):
            return int(bool(text))
        return max(1, round(float(self.weights @ estimate(found, self.tokens[self.find(found.hashes)]))))


def places(hashes: U64, mask: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]:
    """The two slots where a hash may lie and its fingerprint."""
    first = (hashes & mask).astype(np.int64)
    second = ((hashes >> np.uint64(21)) & mask).astype(np.int64)
    return first, second, (hashes >> np.uint64(48)).astype(np.uint16)


def estimate(found: Words, tokens: NDArray[np.uint8]) -> NDArray[np.float64]:
    """The features of a text that the token estimate weighs, float64 [ESTIMATE]: for each class of letters the words
    and the characters that the lexicon does not hold, then tokens of known words, characters by script, digits,
    punctuation and white space. `tokens` uint8 [n]: the known tokens of each word, 0 for unknown words."""
    classes, lengths = found.classes, found.lengths
    out = np.zeros(ESTIMATE)
    unknown = tokens == 0
    out[: lexer.CLASSES] = np.bincount(classes[unknown], minlength=lexer.CLASSES)
    out[lexer.CLASSES : 2 * lexer.CLASSES] = np.bincount(classes[unknown], lengths[unknown], lexer.CLASSES)
    out[: lexer.LETTER] = out[lexer.CLASSES : lexer.CLASSES + lexer.LETTER] = 0
    known = np.bincount(classes, tokens, lexer.CLASSES)
    at = 2 * lexer.CLASSES
    out[at] = known[_LATIN[0]] + known[_LATIN[1]]
    out[at + 1] = known[lexer.LETTER :].sum() - out[at]
    single = found.codes[found.starts[classes == lexer.SINGLE]]
    han, kana = (np.count_nonzero((single >= low) & (single <= high)) for low, high in (_HAN, _KANA))
    out[at + 2 : at + 5] = han, kana, single.size - han - kana
    digits = lengths[classes == lexer.DIGIT]
    out[at + 5] = ((digits + 2) // 3).sum()
    marks = classes == lexer.PUNCT
    spaced = np.count_nonzero(found.gaps & marks)
    out[at + 6 : at + 10] = spaced, np.count_nonzero(marks) - spaced, found.wide, found.lines
    return out


@cache
def shipped() -> Lexicon:
    """The lexicon beside the shipped model (immutable, read once a process)."""
    return Lexicon.load()


def count(text: str) -> int:
    """Estimate of how many o200k tokens `text` has, good to a few per cent in most languages (see the model card)."""
    return shipped().count(text)
