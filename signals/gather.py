"""Takes readings: the only place where a detector's failure turns into an Unknown reading."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable
from typing import Any, Protocol

from signals.facts import Facts, SlowInput
from signals.reading import FALSE, Reading, Unavailable, unknown
from signals.signal import Signal

log = logging.getLogger("pointsman.signals")


def read(signal: Signal, facts: Facts) -> Reading:
    """Take `signal`'s reading and remember it. Never raises: a failure becomes an Unknown reading with a reason."""
    timings = facts.timings
    started = time.perf_counter_ns() if timings is not None else 0
    try:
        reading = signal.read(facts)
    except Unavailable as unavailable:
        reading = unknown(unavailable.reason)
    except Exception as error:  # noqa: BLE001 - a detector's bug must not take the request down; it is logged and counted
        # The exception's text could quote the prompt, so only its type is logged.
        log.error("signal %s failed: %s", signal.name, type(error).__name__)
        reading = unknown("error")
    if facts.request.sealed and reading.matched is not None and _unreadable(signal, facts, reading):
        reading = unknown("unreadable")
    facts.readings[signal.name] = reading
    if reading is not FALSE:
        facts.telling[signal.name] = reading
    if timings is not None:
        timings[signal.name] = timings.get(signal.name, 0.0) + (time.perf_counter_ns() - started) / 1000
    return reading


def _unreadable(signal: Signal, facts: Facts, reading: Reading) -> bool:
    """Whether the reading does not hold for the whole text, since some of it cannot be read."""
    if reading.matched and signal.finds:
        return False
    return any(facts.request.unreadable(scope) for scope in signal.reads)


class Needy(Protocol):
    """Whoever needs slow inputs: a signal, or a selector of models."""

    @property
    def name(self) -> str: ...

    @property
    def slow(self) -> tuple[SlowInput[Any], ...]: ...


def ready(signal: Needy, facts: Facts) -> bool:
    """Whether all the slow inputs that `signal` needs are there (or known to have failed)."""
    return all(facts.has(source) for source in signal.slow)


async def fetch(signals: Iterable[Needy], facts: Facts) -> None:
    """Fetch the slow inputs of `signals` concurrently, until the deadline of `facts`; afterwards all are `ready`."""
    wanted: dict[SlowInput[Any], list[str]] = {}
    for signal in signals:
        for source in signal.slow:
            if not facts.has(source):
                wanted.setdefault(source, []).append(signal.name)
    if not wanted:
        return
    started = time.perf_counter_ns()
    tasks = {asyncio.ensure_future(source.fetch(facts)): source for source in wanted}
    try:
        remaining = facts.deadline - time.monotonic()
        await asyncio.wait(tasks, timeout=None if remaining == float("inf") else max(remaining, 0.0))
        for task, source in tasks.items():
            facts.put(source, _outcome(task))
    finally:
        for task in tasks:
            task.cancel()
            task.add_done_callback(let_go)
    if facts.timings is not None:
        spent = (time.perf_counter_ns() - started) / 1000
        for names in wanted.values():
            for name in names:
                facts.timings[name] = spent


def let_go(task: asyncio.Future[Any]) -> None:
    """Take note of what a task that nobody waits for any more has raised; else asyncio logs it as forgotten."""
    if not task.cancelled():
        task.exception()


def _outcome(task: asyncio.Future[Any]) -> Any:
    if not task.done():
        return Unavailable("deadline")
    if task.cancelled():
        return Unavailable("cancelled")
    error = task.exception()
    if error is None:
        return task.result()
    if isinstance(error, Unavailable):
        return error
    log.error("a slow input failed: %s", type(error).__name__)
    return Unavailable("error")
