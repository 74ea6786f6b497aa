"""Frequent words of many languages: what a few words alone can say of their language."""

from __future__ import annotations

from pathlib import Path
from typing import Final
from zipfile import BadZipFile
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

LEAST: Final = -13.0
"""The natural logarithm of the probability of a word that a language is not known to have."""
STEP: Final = -LEAST / 255


class FrequentWords:
    """How probable a word is in each language. Words are kept by their CRC-32, so that 300,000 take 2 MB."""

    def __init__(self, path: Path) -> None:
        """OSError when `path` cannot be read, ValueError when it is not such a table."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                self.languages: list[str] = found["languages"].tolist()
                self._words: NDArray[np.uint32] = found["words"]
                sizes: NDArray[np.uint8] = found["sizes"]
                self._language: NDArray[np.uint8] = found["language"]
                self._level: NDArray[np.uint8] = found["level"]
        except (KeyError, ValueError, BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: not a table of words: {error}") from None
        self._ends = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
        if len(sizes) != len(self._words) or not len(self._language) == len(self._level) == self._ends[-1]:
            raise ValueError(f"{path}: its arrays do not belong together")

    def read(self, words: list[str]) -> NDArray[np.float64]:
        """The sum over the known ones of `words` of the logarithm of each one's probability, by language. Time is
        linear in their number."""
        hashes = np.array([crc32(word.encode()) for word in words], np.uint32)
        rows = np.minimum(np.searchsorted(self._words, hashes), len(self._words) - 1)
        rows = rows[self._words[rows] == hashes]
        starts, sizes = self._ends[rows], self._ends[rows + 1] - self._ends[rows]
        # All rows' entries, one after the other.
        before = np.cumsum(sizes) - sizes
        entries = np.repeat(starts - before, sizes) + np.arange(int(sizes.sum()))
        levels = np.bincount(self._language[entries], self._level[entries], len(self.languages))
        return np.asarray(levels * STEP + len(rows) * LEAST, np.float64)


def save(path: Path, probability: dict[str, dict[str, float]]) -> None:
    """Writes the table of `probability` by language and word."""
    languages = sorted(probability)
    found: dict[int, dict[int, int]] = {}
    for number, language in enumerate(languages):
        for word, share in probability[language].items():
            level = min(255, round((float(np.log(share)) - LEAST) / STEP))
            if level > 0:
                entry = found.setdefault(crc32(word.encode()), {})
                entry[number] = max(level, entry.get(number, 0))
    order = sorted(found)
    np.savez_compressed(
        path,
        languages=np.array(languages),
        words=np.array(order, np.uint32),
        sizes=np.array([len(found[word]) for word in order], np.uint8),
        language=np.array([number for word in order for number in found[word]], np.uint8),
        level=np.array([level for word in order for level in found[word].values()], np.uint8),
    )
