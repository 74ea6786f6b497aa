"""Where a value lies among the last ones of its kind."""

from __future__ import annotations

import bisect
from collections import deque

ENOUGH = 32  # values before a quantile is trusted


class Quantile:
    """Where a value lies among the last `_WINDOW` of its kind."""

    _WINDOW = 512

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._order)

    def look(self, value: float) -> float:
        """Share of the values seen that are below `value` (half of those equal to it)."""
        below = bisect.bisect_left(self._sorted, value)
        equal = bisect.bisect_right(self._sorted, value) - below
        return (below + equal / 2) / len(self._sorted) if self._sorted else 0.5

    def rank(self, value: float) -> float:
        """The same, and then `value` is one of them."""
        rank = self.look(value)
        if len(self._order) == self._WINDOW:
            del self._sorted[bisect.bisect_left(self._sorted, self._order.popleft())]
        self._order.append(value)
        bisect.insort(self._sorted, value)
        return rank
