"""The shipped lexicon: which words, pairs, beginnings and ends of words the model knows, and their row numbers.

Every entry has a row number (its row in the model's tables). What the lexicon does not hold has row 0, which is all
zeros in every table. The token estimate of requests does not come from here: it is a sum over bytes, thirty times
cheaper (signals/text/estimate.py).
"""

from __future__ import annotations

from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from signals.neural.lexer import U64

MODELS: Final = Path(__file__).resolve().parent.parent / "models"
LEXICON: Final = MODELS / "lexicon.npz"


_ROW_BITS: Final = 17
_ROW: Final = np.uint32((1 << _ROW_BITS) - 1)
EMPTY: Final = _ROW
"""A free place: its row is none that a lexicon has."""
_TOP: Final = np.uint64(32)
_SECOND: Final = np.uint64(21)


class Lexicon:
    """A hash table from 64-bit hashes to rows. Two places a hash can be, 15 further bits against mistaken identity.

    `slots` uint32 [2^k]: the row in the low 17 bits, the hash's top bits above; `weight` float32 [rows]: the inverse
    document frequency of an entry. The rows below `embedded` are whole words: they have an embedding.
    """

    def __init__(self, slots: NDArray[np.uint32], weight: NDArray[np.float32], embedded: int) -> None:
        rows = slots & _ROW
        if (
            slots.dtype != np.uint32
            or slots.size & (slots.size - 1)
            or not 0 < embedded <= len(weight) < EMPTY
            or rows[rows < EMPTY].max(initial=0) >= len(weight)
        ):
            raise ValueError("lexicon: its arrays do not belong together")
        self.slots, self.weight, self.embedded = slots, weight, embedded
        self._mask = np.uint64(slots.size - 1)

    @classmethod
    def load(cls, path: Path = LEXICON) -> Lexicon:
        """The lexicon in an npz file. OSError when it cannot be read, ValueError when it is not one."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                return cls(found["slots"], found["weight"].astype(np.float32), int(found["embedded"]))
        except (KeyError, BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: not a lexicon: {error}") from None

    @property
    def rows(self) -> int:
        return len(self.weight)

    def find(self, hashes: U64) -> NDArray[np.int32]:
        """The row of each hash, 0 for unknown ones."""
        first, second, mark = places(hashes, self._mask)
        rows = self.slots.take(first)
        rows ^= mark
        other = self.slots.take(second)
        other ^= mark
        # Where the top bits agree they are gone, and the lesser number is the row.
        np.minimum(rows, other, out=rows)
        rows[rows >= EMPTY] = 0
        return rows.view(np.int32)

    def words(self, hashes: U64) -> NDArray[np.int32]:
        """The rows of hashes that are known words, 0 for the others."""
        rows = self.find(hashes)
        known: NDArray[np.int32] = np.where(rows < self.embedded, rows, 0)
        return known


def places(hashes: U64, mask: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint32]]:
    """The two slots where a hash may lie and its top 15 bits, in the place where a slot has them."""
    second = hashes >> _SECOND
    second &= mask
    mark = (hashes >> _TOP).astype(np.uint32)
    mark &= ~_ROW
    return (hashes & mask).view(np.int64), second.view(np.int64), mark
