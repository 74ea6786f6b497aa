"""Whoever sends large texts does not decide how long others wait."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signals.neural.fair import FairQueue, client_of
from signals.neural.heads import HeadVerdict
from signals.neural.service import InferenceMetrics, Limits, Service
from signals.neural.shipped import Shipped
from signals.reading import Unavailable
from signals.request import Request
from signals.services import Services
from tests.patience import PATIENCE


@dataclass(eq=False)
class Work:
    client: str
    work: int
    bucket: int = 0
    number: int = 0


def queue(*jobs: Work) -> FairQueue[Work]:
    made: FairQueue[Work] = FairQueue()
    for job in jobs:
        made.add(job)
    return made


def order(waiting: FairQueue[Work], count: int = 1, work: int = 1) -> list[list[tuple[str, int]]]:
    """What is taken until nothing is left, batch by batch."""
    taken = []
    while waiting:
        taken.append([(job.client, job.work) for job in waiting.take(count, work)])
    return taken


def test_clients_take_turns_by_the_work_they_were_served() -> None:
    waiting = queue(*(Work("big", 100) for _ in range(2)), *(Work("small", 10) for _ in range(25)))
    turns = "".join(client[0] for [(client, _)] in order(waiting))
    assert turns == "sb" + "s" * 10 + "b" + "s" * 14


def test_many_who_send_the_same_do_not_keep_a_short_one_waiting_for_all_of_them() -> None:
    """In lock-step they all have the same tag, and whoever sends short texts comes again and again."""
    waiting = queue(*(Work(f"client {i}", 1000) for i in range(12)))
    between = []
    for _ in range(100):
        waiting.add(Work("short", 10))
        between.append(0)
        while True:
            [served] = waiting.take(1, 1)
            if served.client == "short":
                break
            waiting.add(Work(served.client, 1000))
            between[-1] += 1
    assert max(between) <= 1


def test_a_large_one_has_its_turn_however_many_short_ones_come() -> None:
    waiting = queue(Work("large", 1000))
    for number in range(1000):
        waiting.add(Work(f"client {number}", 10))
        [served] = waiting.take(1, 1)
        if served.client == "large":
            break
    assert number <= 200  # twice the work it wants: half of what is done is its share


def test_who_has_nothing_to_make_up_for_is_forgotten() -> None:
    waiting = queue(Work("stays", 100_000))
    for number in range(5000):
        waiting.add(Work(f"client {number}", 10))
        waiting.take(1, 1)
    assert len(waiting._clients) < 50
    assert len(waiting._line) + len(waiting._later) < 300
    order(waiting)
    assert not waiting._clients
    assert not waiting._line
    assert not waiting._later


def test_who_comes_new_is_next_whatever_waits() -> None:
    waiting = queue(*(Work(f"client {i}", 1000) for i in range(12)))
    waiting.take(1, 1)
    for _ in range(50):  # each sends its next one as soon as it is answered
        [served] = waiting.take(1, 1)
        waiting.add(Work(served.client, 1000))
    waiting.add(Work("new", 1))
    assert [job.client for job in waiting.take(1, 1)] == ["new"]


def test_who_was_away_has_no_credit() -> None:
    waiting = queue(Work("a", 10), Work("b", 10))
    order(waiting)
    for _ in range(100):
        waiting.add(Work("a", 10))
        waiting.take(1, 1)
    for _ in range(4):
        waiting.add(Work("a", 10))
        waiting.add(Work("b", 10))
    assert sorted(job.client for _ in range(4) for job in waiting.take(1, 1)) == ["a", "a", "b", "b"]


def test_within_a_client_the_shortest_is_first_and_each_fourth_turn_the_oldest() -> None:
    waiting = queue(Work("a", 90, 7), *(Work("a", 1, 1) for _ in range(9)), Work("a", 20, 5))
    assert [work for [(_, work)] in order(waiting)] == [1, 1, 1, 90, 1, 1, 1, 1, 1, 1, 20]


def test_a_batch_is_of_one_bucket_and_bounded_in_count_and_in_work() -> None:
    waiting = queue(*(Work(client, 10, 4) for client in "abc" for _ in range(3)), Work("a", 1, 1))
    assert order(waiting, 4, 1000) == [
        [("a", 1)],
        [("b", 10), ("c", 10), ("a", 10), ("b", 10)],
        [("c", 10), ("a", 10), ("b", 10), ("c", 10)],
        [("a", 10)],
    ]
    waiting = queue(*(Work("a", 10, 4) for _ in range(4)), Work("a", 500, 9), Work("a", 500, 9))
    assert [len(batch) for batch in order(waiting, 32, 25)] == [2, 2, 1, 1]


def test_only_what_is_short_is_taken_in_the_midst_of_something_long() -> None:
    waiting = queue(Work("big", 100, 7), Work("both", 100, 7), Work("both", 8, 3), Work("small", 9, 3), Work("x", 9, 3))
    taken = waiting.short(8, 20)
    assert sorted((job.client, job.work) for job in taken) == [("both", 8), ("small", 9)]
    assert [job.client for job in waiting.short(8, 20)] == ["x"]
    assert waiting.short(8, 20) == []
    assert sorted(client for [(client, _)] in order(waiting)) == ["big", "both"]
    assert queue().short(8, 20) == []


def test_the_greatest_client_loses_its_newest() -> None:
    jobs = [Work("a", 10), Work("b", 50), Work("a", 10), Work("b", 5), Work("c", 54)]
    waiting = queue(*jobs)
    assert [waiting.evict() for _ in range(4)] == [jobs[3], jobs[4], jobs[1], jobs[2]]
    assert len(waiting) == 1


def test_what_nobody_waits_for_is_taken_out() -> None:
    jobs = [Work("a", 10), Work("a", 10), Work("b", 10)]
    waiting = queue(*jobs)
    assert waiting.remove(jobs[0])
    assert not waiting.remove(jobs[0])
    assert waiting.remove(jobs[2])
    assert order(waiting) == [[("a", 10)]]
    assert not waiting.remove(jobs[1])


_STEPS = st.lists(
    st.one_of(
        st.tuples(st.sampled_from("abcdef"), st.integers(1, 2000)),
        st.sampled_from(["take", "short", "evict", "remove"]),
    ),
    max_size=200,
)


@given(_STEPS)
def test_nothing_is_lost_and_nothing_is_taken_twice(steps: list[tuple[str, int] | str]) -> None:
    waiting: FairQueue[Work] = FairQueue()
    inside: list[Work] = []
    for step in steps:
        if isinstance(step, tuple):
            job = Work(step[0], step[1], step[1].bit_length())
            inside.append(job)
            waiting.add(job)
        elif inside:
            if step == "take":
                gone = waiting.take(4, 3000)
                assert len({job.bucket for job in gone}) == 1
                assert len(gone) == 1 or sum(job.work for job in gone) <= 3000
            elif step == "short":
                gone = waiting.short(4, 300)
                assert sum(job.work for job in gone) <= 300
            elif step == "evict":
                gone = [waiting.evict()]
            else:
                gone = [inside[len(inside) // 2]]
                assert waiting.remove(gone[0])
            for job in gone:
                inside.remove(job)
        assert len(waiting) == len(inside)
        assert set(waiting) == set(inside)
    while waiting:
        for job in waiting.take(4, 3000):
            inside.remove(job)
    assert not inside


@given(st.lists(st.tuples(st.integers(1, 1000), st.integers(1, 1000)), min_size=1, max_size=60))
def test_of_two_who_always_wait_neither_is_far_behind(works: list[tuple[int, int]]) -> None:
    """The difference is never more than the largest job of the one and of the other together."""
    waiting = queue(*(Work("a", a) for a, _ in works), *(Work("b", b) for _, b in works))
    served = {"a": 0, "b": 0}
    left = {"a": len(works), "b": len(works)}
    bound = max(a for a, _ in works) + max(b for _, b in works)
    while all(left.values()):
        assert abs(served["a"] - served["b"]) <= bound
        [job] = waiting.take(1, 1)
        served[job.client] += job.work
        left[job.client] -= 1


@pytest.mark.parametrize(
    ("header", "client"),
    [
        (None, ""),
        ("", ""),
        ("10.0.0.1", "10.0.0.1"),
        ("6.6.6.6, 10.0.0.1", "10.0.0.1"),  # what a client wrote itself is in front
        ("6.6.6.6,, 10.0.0.1 ", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "20010db800010002"),
        ("2001:db8:1:2::9", "20010db800010002"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ("not:an:address", "not:an:address"),
    ],
)
def test_a_client_is_the_last_address_that_envoy_wrote(header: str | None, client: str) -> None:
    headers = {} if header is None else {"x-forwarded-for": header}
    assert client_of(Request("chat", b"", {}, None, (), headers)) == client


class Model:
    """A model that takes its time by the size of what it reads, and notes what it read, in order."""

    def __init__(self) -> None:
        self.open, self.batches = threading.Event(), list[list[str]]()

    def run(self, texts: list[str]) -> Sequence[int]:
        assert self.open.wait(PATIENCE)
        self.batches.append(texts)
        return [len(text) for text in texts]


async def test_a_full_queue_costs_the_greatest_its_newest_and_not_the_newcomer() -> None:
    model = Model()
    service: Service[str, int] = Service(InferenceMetrics("fair"), model.run, len, limits=Limits(queue=3, batch=1))
    try:
        first = asyncio.create_task(service.ask("x", client="big"))
        await asyncio.sleep(0.05)  # the thread has it
        big = [asyncio.create_task(service.ask("x" * size, client="big")) for size in (100, 200, 300)]
        await asyncio.sleep(0)
        small = asyncio.create_task(service.ask("y", client="small"))
        with pytest.raises(Unavailable, match="overloaded"):
            await big[2]
        with pytest.raises(Unavailable, match="overloaded"):
            await service.ask("x", client="big")
        model.open.set()
        assert await asyncio.gather(first, small, *big[:2]) == [1, 1, 100, 200]
        assert model.batches == [["x"], ["y"], ["x" * 100], ["x" * 200]]
        assert service.meter.refused["overloaded"] >= 2
    finally:
        service.close()


async def test_the_given_up_take_no_place() -> None:
    model = Model()
    service: Service[str, int] = Service(InferenceMetrics("fair"), model.run, len, limits=Limits(queue=2, batch=1))
    try:
        first = asyncio.create_task(service.ask("x"))
        await asyncio.sleep(0.05)
        for _ in range(5):
            with pytest.raises(Unavailable, match="deadline"):
                await service.ask("gone", time.monotonic() + 0.01)
        rest = [asyncio.create_task(service.ask(text)) for text in ("yy", "zzz")]
        await asyncio.sleep(0)
        model.open.set()
        assert await asyncio.gather(first, *rest) == [1, 2, 3]
    finally:
        service.close()


@pytest.mark.slow
@pytest.mark.parametrize("named", [True, False], ids=["addresses", "one address"])
async def test_large_texts_in_a_loop_do_not_make_others_unknown(named: bool) -> None:
    """Twelve clients send the shipped model 122 kB each, again and again; one asks about 1 kB now and then."""
    shipped = Shipped(Services())
    sizes: list[int] = []
    run = shipped.service._run

    def noted(texts: list[str]) -> Sequence[HeadVerdict | Unavailable]:
        sizes.append(sum(map(len, texts)))
        started.append(len(texts[0]))
        return run(texts)

    started: list[int] = []
    shipped.service._run = noted
    large = ("Attention is all you need, and many words more. " * 2600)[:122_000]
    small = "How many people live in Lisbon, and where do they come from? " * 16
    stop = False

    async def flood(number: int) -> int:
        answers = 0
        while not stop:
            try:
                await shipped.verdict(large, time.monotonic() + PATIENCE, f"10.0.0.{number}" if named else "")
            except Unavailable:
                continue
            answers += 1
        return answers

    try:
        await shipped.verdict(large, time.monotonic() + PATIENCE)
        hostile = [asyncio.create_task(flood(number)) for number in range(12)]
        await asyncio.sleep(0.2)
        between = []
        for _ in range(20):
            before = len(started)
            await shipped.verdict(small, time.monotonic() + PATIENCE, "192.0.2.1" if named else "")
            between.append(sum(size > 100_000 for size in started[before:]))
            await asyncio.sleep(0.02)
        stop = True
        served = await asyncio.gather(*hostile)
    finally:
        shipped.close()
    # One that was running, one that began before we were in the queue; the oldest's turn where all are one client.
    assert max(between) <= 3
    assert sorted(between)[10] <= 2
    assert max(sizes) <= 122_000  # a run is never longer than the largest text makes it
    assert min(served) >= 1
