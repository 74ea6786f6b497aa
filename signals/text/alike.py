"""How alike two texts are written, whatever their language."""

from __future__ import annotations

from collections import Counter
from functools import cached_property
from math import sqrt
from typing import Final

_MOST: Final = 2000
"""Characters of each text that are compared."""


class Letters:
    """A text's letters, counted once, and only if it is compared."""

    def __init__(self, text: str) -> None:
        self._text = text

    def alike(self, other: Letters) -> float:
        """The cosine of the texts' counts of three letters in a row, 0 to 1: a question and the same one with a typo
        have 0.8 and more, unrelated ones of a language seldom 0.4."""
        others = other._counts
        common = sum(count * others[gram] for gram, count in self._counts.items())
        return common / sqrt(self._square * other._square) if common else 0.0

    @cached_property
    def _counts(self) -> Counter[str]:
        letters = f"  {' '.join(self._text[:_MOST].casefold().split())}  "
        return Counter(letters[at : at + 3] for at in range(len(letters) - 2))

    @cached_property
    def _square(self) -> int:
        return sum(count * count for count in self._counts.values())
