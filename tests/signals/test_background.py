"""Long work in threads leaves the interpreter to the event loop, in turns."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from signals.background import _TURNS, LONGEST_S, SHARE, background, rest


def work(seconds: float) -> None:
    """Takes so much of this thread's processor time."""
    until = time.thread_time() + seconds
    while time.thread_time() < until:
        pass


def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr("signals.background.time.sleep", waits.append)
    return waits


def test_a_thread_rests_half_as_long_as_it_worked(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = slept(monkeypatch)

    def job() -> str:
        work(0.01)
        rest()
        return "done"

    assert background(job) == "done"
    assert len(waits) == 1
    assert 0.9 * SHARE * 0.01 < waits[0] <= LONGEST_S


def test_a_rest_has_a_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = slept(monkeypatch)

    def job() -> None:
        work(0.1)
        rest()

    background(job)
    assert max(waits) <= LONGEST_S


def test_whoever_is_next_waits_for_the_rest_of_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = slept(monkeypatch)
    background(lambda: work(0.02))
    background(lambda: None)
    assert len(waits) == 1
    assert waits[0] <= SHARE * 0.02 * 1.5


def test_outside_of_such_work_nothing_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    waits = slept(monkeypatch)
    work(0.002)
    rest()
    background(lambda: None)
    work(0.002)
    rest()
    assert waits == []


def test_one_works_at_a_time_and_turns_are_taken_in_order() -> None:
    """Two jobs of several steps: neither runs while the other does, and who waits is next."""
    at_work = threading.Lock()
    order: list[str] = []

    def steps(name: str) -> None:
        for _ in range(4):
            assert at_work.acquire(blocking=False), "two worked at once"
            order.append(name)
            while len(order) == 1 and not _TURNS._queue.locked():  # until the other waits
                time.sleep(0.001)
            work(0.002)
            at_work.release()
            rest()

    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(background, lambda name=name: steps(name)) for name in "ab"]  # type: ignore[misc]
        for job in jobs:
            job.result(30)
    assert sorted(order) == ["a"] * 4 + ["b"] * 4
    assert sorted(order[:2]) == ["a", "b"]


def test_work_that_fails_gives_its_turn_back() -> None:
    with pytest.raises(ZeroDivisionError):
        background(lambda: 1 / 0)
    assert background(lambda: 1) == 1
