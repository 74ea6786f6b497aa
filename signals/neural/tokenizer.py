"""The shipped lexicon: which words, pairs, beginnings and ends of words the model knows, and their row numbers.

Every entry has a row number (its row in the model's tables). What the lexicon does not hold has row 0, which is all
zeros in every table. The token estimate of requests does not come from here: it is a sum over bytes, thirty times
cheaper (signals/estimate.py).
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


class Lexicon:
    """A hash table from 64-bit hashes to rows. Two places a hash can be, 16 further bits against mistaken identity.

    `slots` int32 [2^k]: the row; `prints` uint16 [2^k]: the hash's top bits; `weight` float32 [rows]: the inverse
    document frequency of an entry. The rows below `embedded` are whole words: they have an embedding.
    """

    def __init__(
        self, slots: NDArray[np.int32], prints: NDArray[np.uint16], weight: NDArray[np.float32], embedded: int
    ) -> None:
        if (
            slots.shape != prints.shape
            or slots.size & (slots.size - 1)
            or not 0 < embedded <= len(weight)
            or slots.max(initial=0) >= len(weight)
        ):
            raise ValueError("lexicon: its arrays do not belong together")
        self.slots, self.prints, self.weight, self.embedded = slots, prints, weight, embedded
        self._mask = np.uint64(slots.size - 1)

    @classmethod
    def load(cls, path: Path = LEXICON) -> Lexicon:
        """The lexicon in an npz file. OSError when it cannot be read, ValueError when it is not one."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                weight, embedded = found["weight"].astype(np.float32), int(found["embedded"])
                return cls(found["slots"], found["prints"], weight, embedded)
        except (KeyError, BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: not a lexicon: {error}") from None

    @property
    def rows(self) -> int:
        return len(self.weight)

    def find(self, hashes: U64) -> NDArray[np.int32]:
        """The row of each hash, 0 for unknown ones."""
        first, second, mark = places(hashes, self._mask)
        found = np.where(self.prints[first] == mark, self.slots[first], 0)
        rows: NDArray[np.int32] = np.where(found, found, np.where(self.prints[second] == mark, self.slots[second], 0))
        return rows

    def words(self, hashes: U64) -> NDArray[np.int32]:
        """The rows of hashes that are known words, 0 for the others."""
        rows = self.find(hashes)
        known: NDArray[np.int32] = np.where(rows < self.embedded, rows, 0)
        return known


def places(hashes: U64, mask: np.uint64) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.uint16]]:
    """The two slots where a hash may lie and its fingerprint."""
    first = (hashes & mask).astype(np.int64)
    second = ((hashes >> np.uint64(21)) & mask).astype(np.int64)
    return first, second, (hashes >> np.uint64(48)).astype(np.uint16)
