"""Long work in threads beside the event loop, which share one interpreter with it.

A thread that computes takes the interpreter from the loop at each of the loop's system calls, and one call of C or of
compiled code keeps it for milliseconds. So one thread works at a time, and after each step of its work the interpreter
is left alone for half as long as the step took: whoever waits for the loop waits for one step, not for them all.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final, TypeVar

T = TypeVar("T")

SHARE: Final = 0.5
"""Seconds of rest per second of processor time."""
LONGEST_S: Final = 0.02
"""The longest rest after one step."""
_STEP_S: Final = 0.0005
"""Shorter steps are worked on together."""


_me: Final = threading.get_ident


class _Turns:
    """Whose turn it is in this process, in order of asking."""

    def __init__(self) -> None:
        self._queue = threading.Lock()  # held by the one that is next
        self._turn = threading.Lock()
        self._free = 0.0  # when the next turn may begin (time.monotonic())
        self._owner = 0  # the thread whose turn it is
        self._since = 0.0  # its processor time when its turn began

    def take(self) -> None:
        with self._queue:
            self._turn.acquire()
        if (wait := self._free - time.monotonic()) > 0:
            time.sleep(wait)
        self._since = time.thread_time()
        self._owner = _me()

    def give(self, rest: float) -> None:
        self._owner = 0
        self._free = time.monotonic() + rest
        self._turn.release()

    def owed(self) -> float:
        """How long the interpreter should be left alone now, in seconds; 0 for a thread whose turn it is not."""
        if self._owner != _me():
            return 0.0
        held = time.thread_time() - self._since
        return min(SHARE * held, LONGEST_S) if held >= _STEP_S else 0.0


_TURNS: Final = _Turns()


def background(work: Callable[[], T]) -> T:
    """The result of `work`, done in this thread in turns with others that do such work. Raises what `work` raises."""
    _TURNS.take()
    try:
        return work()
    finally:
        _TURNS.give(_TURNS.owed())


def rest() -> None:
    """Between two steps of work in the background; on the event loop and in other threads nothing happens."""
    if owed := _TURNS.owed():
        _TURNS.give(owed)
        _TURNS.take()
