"""What payers have spent, in bounded memory: nobody's sum is ever too low, however many payers there are."""

from __future__ import annotations

from collections import OrderedDict
from heapq import heapify, heappop, heappush, heapreplace
from typing import Final

_TRIES: Final = 64
"""Sums that are looked at to find the least one: with each change, so that all are looked at in time."""
_EXPIRED: Final = 8
"""Sums out of date that are dropped with each change."""


class Sums:
    """Amounts of one kind of payer by their keys, each for its time.

    The `limit` payers who have spent most are known by name. Of all others the most that one of them had spent is kept,
    and each counts as having spent as much: a crowd of payers wins nobody a fresh budget, and a sum is too high by no
    more than the `limit`-th part of what all have spent since there were more than `limit` of them without a break.
    (Space-Saving: Metwally, Agrawal, El Abbadi, "Efficient computation of frequent and top-k elements in data streams",
    ICDT 2005.)

    Times are seconds of one clock, given with each call.
    """

    __slots__ = ("_least", "_limit", "_others", "_others_until", "_sums", "until")

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._sums: OrderedDict[str, tuple[float, float]] = OrderedDict()  # key → (amount, until), last change last
        self._least: list[tuple[float, str]] = []  # a heap of them; amounts may be old, keys gone
        self._others = 0.0  # the most that a payer had spent who is not known any more
        self._others_until = 0.0
        self.until = 0.0
        """When the last of all sums is out of date."""

    def __len__(self) -> int:
        return len(self._sums)

    def get(self, key: str, now: float) -> float:
        """What the payer of this key has spent, or somewhat more."""
        known = self._sums.get(key)
        if known is not None:
            return known[0] if known[1] > now else 0.0
        return self._others if self._others_until > now else 0.0

    def put(self, key: str, amount: float, until: float, now: float) -> None:
        """The payer of this key has spent so much; that holds until a time."""
        if key not in self._sums:
            heappush(self._least, (amount, key))
        self._sums[key] = (amount, until)
        self._sums.move_to_end(key)
        self.until = max(self.until, until)
        for _ in range(_EXPIRED):
            oldest = next(iter(self._sums))
            if self._sums[oldest][1] > now:
                break
            del self._sums[oldest]
        if len(self._sums) > self._limit:
            self._forget_least(now)
        if len(self._least) > 2 * self._limit:  # most of it is of keys that are gone
            self._least = [(known[0], one) for one, known in self._sums.items()]
            heapify(self._least)

    def _forget_least(self, now: float) -> None:
        """One payer less, unless the least one is not found at once."""
        for _ in range(_TRIES):
            amount, key = self._least[0]
            known = self._sums.get(key)
            if known is None:
                heappop(self._least)
            elif known[0] != amount:
                heapreplace(self._least, (known[0], key))
            else:
                heappop(self._least)
                del self._sums[key]
                if self._others_until <= now:
                    self._others = 0.0
                if known[1] > now:
                    self._others = max(self._others, amount)
                    self._others_until = max(self._others_until, known[1])
                return
