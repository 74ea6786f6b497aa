"""Whether the time that something takes grows with its input as it should: at four times the size, four times the time.

The times compared are processor time in one run, the least of several, so that a busy machine does not
matter. Twice the expected ratio is allowed; time squared would show as sixteen.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")

MEASURABLE = 0.002
"""Seconds from which a time is compared."""
LARGEST = 1 << 16
"""The size at which something that still takes less than that is quick enough."""
RATIO = 8.0


def spent(run: Callable[[T], Any], given: T, rounds: int = 3) -> float:
    """Seconds of processor time for one `run`, the least of several."""
    best = float("inf")
    for _ in range(rounds):
        started = time.process_time()
        run(given)
        best = min(best, time.process_time() - started)
    return best


def assert_linear(make: Callable[[int], T], run: Callable[[T], Any], largest: int = LARGEST) -> None:
    """`run(make(size))` takes at most `RATIO` times as long for four times the size, wherever that can be measured.

    `make` gives an input of about `size` characters (or bytes, messages, repetitions). Sizes go up to four times
    `largest`.
    """
    size = 256
    gc.disable()
    try:
        while size <= largest and spent(run, make(size), 1) < MEASURABLE:
            size *= 4
        if size > largest:
            return
        ratio = _ratio(make, run, size, 6)
        if ratio > RATIO:
            # What is bounded may still be on its way to its bound; what is not grows on.
            ratio = min(ratio, _ratio(make, run, 4 * size, 2))
        if ratio <= RATIO:
            return
    finally:
        gc.enable()
    raise AssertionError(f"{ratio:.1f} times as long for four times the size (from {size} on)")


def _ratio(make: Callable[[int], T], run: Callable[[T], Any], size: int, attempts: int) -> float:
    small, large = make(size), make(4 * size)
    ratio = RATIO + 1
    # The first time, what is made once is made. That, a first touch of memory, another thread's cache: all of it only
    # makes `large` slower, so that a ratio that is low enough is one, however it was measured.
    for _ in range(1 + attempts):
        ratio = spent(run, large, 1) / spent(run, small)
        if ratio <= RATIO:
            break
    return ratio
