"""The request bodies that a worker holds at a time: how many bytes they have, and how long each takes to come.

Where Envoy hands bodies over piece by piece (FULL_DUPLEX_STREAMED), a client that never ends its body holds what it has
sent so far, and Envoy 1.40 has no timeout there. So the worker counts them all together and gives each its time.

What many bodies took lies in pieces between what is still in use, and malloc keeps it. So once they are gone, the freed
memory is given back to the system.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, Protocol

from signals.neural.memory import trim_heap

_MUCH: Final = 16 * 2**20
"""Bytes of open bodies after which freed memory is worth giving back."""
_TRIM_S: Final = 1.0
"""Seconds from then on, in which what held the bodies lets go of them."""
_REST_S: Final = 60.0
"""Seconds between two times: giving back much takes some 50 ms, which must stay below a thousandth of the time."""


class Holder(Protocol):
    """An exchange whose body is on its way."""

    def late(self) -> None:
        """The body's time is over."""
        ...


class _Held:
    __slots__ = ("expires", "size")

    def __init__(self, size: int, expires: float) -> None:
        self.size = size
        self.expires = expires


def _on_the_loop(seconds: float, call: Callable[[], None]) -> None:
    asyncio.get_running_loop().call_later(seconds, call)


def _in_a_thread() -> None:
    asyncio.get_running_loop().run_in_executor(None, trim_heap)


class Bodies:
    """One per worker. `total` is the bytes held now.

    `later` calls something after some seconds, `trim` gives freed memory back.
    """

    def __init__(
        self,
        later: Callable[[float, Callable[[], None]], None] = _on_the_loop,
        trim: Callable[[], None] = _in_a_thread,
    ) -> None:
        self.total = 0
        self._most = 0  # bytes held at a time since memory was given back
        self._trim = trim
        self._trimming = False  # or resting from it
        self._held: dict[Holder, _Held] = {}
        self._later = later
        self._waiting = False  # for `_sweep`

    def hold(self, holder: Holder, size: int, most: int, seconds: float) -> bool:
        """Count `size` more bytes for `holder`, whose body has `seconds` from its first piece on.

        False, and nothing is counted, where all bodies together would be over `most` bytes.
        """
        if self.total + size > most:
            return False
        held = self._held.get(holder)
        if held is None:
            self._held[holder] = _Held(size, time.monotonic() + seconds)
            if not self._waiting:
                self._wait(seconds)
        else:
            held.size += size
        self.total += size
        self._most = max(self._most, self.total)
        return True

    def size(self, holder: Holder) -> int:
        """The bytes that are counted for `holder`."""
        held = self._held.get(holder)
        return 0 if held is None else held.size

    def arrived(self, holder: Holder) -> None:
        """The whole body is there: it is held on, and its time no longer counts."""
        held = self._held.get(holder)
        if held is not None:
            held.expires = float("inf")

    def release(self, holder: Holder) -> None:
        """The bytes of `holder` are no longer held."""
        held = self._held.pop(holder, None)
        if held is not None:
            self.total -= held.size
            self._look()

    def _look(self) -> None:
        if self._most >= _MUCH and self.total < self._most // 4 and not self._trimming:
            self._trimming = True
            self._later(_TRIM_S, self._give_back)

    def _give_back(self) -> None:
        self._most = self.total
        self._trim()
        self._later(_REST_S, self._rested)

    def _rested(self) -> None:
        self._trimming = False
        self._look()

    def _sweep(self) -> None:
        self._waiting = False
        now = time.monotonic()
        for holder in [holder for holder, held in self._held.items() if held.expires <= now]:
            self.release(holder)
            holder.late()
        following = min((held.expires for held in self._held.values()), default=float("inf"))
        if following < float("inf"):
            # At most four sweeps a second, each over what is open: bounded work, whatever comes and when.
            self._wait(max(following - now, 0.25))

    def _wait(self, seconds: float) -> None:
        self._waiting = True
        self._later(seconds, self._sweep)
