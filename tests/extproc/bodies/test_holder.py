"""What many open bodies took is given back to the system, and not too often."""

from __future__ import annotations

from collections.abc import Callable

from extproc.bodies.holder import Bodies

MIB = 2**20


class Holder:
    def late(self) -> None:
        pass


class Clock:
    """Timers that run when the test says so."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []
        self.trims = 0
        self.bodies = Bodies(lambda seconds, call: self.timers.append((seconds, call)), self.trim)

    def trim(self) -> None:
        self.trims += 1

    def run(self) -> list[float]:
        """Run what waits now; the seconds that each waited for, the timers of late bodies aside."""
        due, self.timers = self.timers, []
        for _, call in due:
            call()
        return [seconds for seconds, _ in due if seconds < 400]

    def open_and_close(self, *sizes: int) -> None:
        holders = [Holder() for _ in sizes]
        for holder, size in zip(holders, sizes, strict=True):
            assert self.bodies.hold(holder, size, 10**9, 500.0)
        for holder in holders:
            self.bodies.release(holder)


def test_freed_memory_is_given_back_once_most_of_much_is_gone() -> None:
    clock = Clock()
    clock.open_and_close(9 * MIB, 9 * MIB)
    assert clock.trims == 0  # what held them lets go first
    assert clock.run() == [1.0]
    assert clock.trims == 1


def test_little_is_not_worth_it() -> None:
    clock = Clock()
    for _ in range(100):
        clock.open_and_close(MIB, MIB)
    assert clock.run() == []
    assert clock.trims == 0


def test_it_is_done_once_a_minute_at_most_and_not_forgotten() -> None:
    clock = Clock()
    clock.open_and_close(20 * MIB)
    clock.run()
    clock.open_and_close(20 * MIB)
    clock.open_and_close(20 * MIB)
    assert clock.trims == 1
    assert clock.run() == [60.0]
    assert clock.run() == [1.0]
    assert clock.trims == 2
    assert clock.run() == [60.0]
    assert clock.run() == []
    assert clock.trims == 2


def test_while_much_is_held_nothing_is_given_back() -> None:
    clock = Clock()
    held, gone = Holder(), Holder()
    assert clock.bodies.hold(held, 10 * MIB, 10**9, 500.0)
    assert clock.bodies.hold(gone, 20 * MIB, 10**9, 500.0)
    clock.bodies.release(gone)
    assert clock.run() == []
    clock.bodies.release(held)
    assert clock.run() == [1.0]
    assert clock.trims == 1
