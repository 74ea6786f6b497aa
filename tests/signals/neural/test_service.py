"""A model's queue batches, bounds, drops late work, and outlives a model that fails or hangs."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from signals.neural.service import Inference, InferenceMetrics, Limits, Service
from signals.reading import Unavailable
from tests.patience import PATIENCE

Make = Callable[..., Service[int, int]]


@pytest.fixture
def make() -> Iterator[Make]:
    made: list[Service[int, int]] = []

    def build(run: Callable[[list[int]], Sequence[int]], **given: object) -> Service[int, int]:
        made.append(Service(given.pop("meter", None) or InferenceMetrics("test"), run, **given))  # type: ignore[arg-type]
        return made[-1]

    yield build
    for service in made:
        service.close()


def double(items: list[int]) -> list[int]:
    return [2 * item for item in items]


async def refused(service: Service[int, int], item: int = 1, patience: float = 30.0) -> str:
    with pytest.raises(Unavailable) as caught:
        await service.ask(item, time.monotonic() + patience)
    return caught.value.reason


class Gate:
    """A model that runs only while the gate is open, and tells what batches it saw."""

    def __init__(self) -> None:
        self.open, self.entered = threading.Event(), threading.Event()
        self.batches: list[list[int]] = []

    def run(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.set()
        assert self.open.wait(PATIENCE)
        return double(items)

    async def occupied(self) -> None:
        await asyncio.to_thread(self.entered.wait, 30)


async def test_everyone_gets_their_own_answer(make: Make) -> None:
    service = make(double)
    assert await asyncio.gather(*(service.ask(item) for item in range(200))) == [2 * item for item in range(200)]


async def test_what_waits_runs_together_by_bucket_of_length(make: Make) -> None:
    gate = Gate()
    service = make(gate.run, size=lambda item: item, limits=Limits(batch=3))
    first = asyncio.create_task(service.ask(1))
    await gate.occupied()
    rest = [asyncio.create_task(service.ask(item)) for item in (5, 100, 6, 7, 4)]
    await asyncio.sleep(0)
    gate.open.set()
    assert await asyncio.gather(first, *rest) == [2, 10, 200, 12, 14, 8]
    assert gate.batches == [[1], [5, 6, 7], [4], [100]]


async def test_what_is_short_runs_in_the_midst_of_what_is_long(make: Make) -> None:
    gate = Gate()
    order: list[list[int]] = []

    def run(items: list[int]) -> list[int]:
        if 9000 in items:
            gate.run(items)
            service.rest()
        service.rest()  # in a run that is in the midst of another it does nothing
        order.append(items)
        return double(items)

    service = make(run, size=lambda item: item)
    first = asyncio.create_task(service.ask(9000))
    await gate.occupied()
    rest = [asyncio.create_task(service.ask(item)) for item in (5, 8000, 6)]
    await asyncio.sleep(0)
    service.rest()  # not the model's thread
    gate.open.set()
    assert await asyncio.gather(first, *rest) == [18000, 10, 16000, 12]
    assert order == [[5, 6], [9000], [8000]]


async def test_a_full_queue_refuses(make: Make) -> None:
    gate = Gate()
    service = make(gate.run, limits=Limits(queue=2))
    first = asyncio.create_task(service.ask(1))
    await gate.occupied()
    waiting = [asyncio.create_task(service.ask(item)) for item in (2, 3)]
    await asyncio.sleep(0)
    assert await refused(service) == "overloaded"
    gate.open.set()
    assert await asyncio.gather(first, *waiting) == [2, 4, 6]
    assert service.meter.refused["overloaded"] >= 1


async def test_late_work_is_dropped_before_it_runs(make: Make) -> None:
    gate = Gate()
    service = make(gate.run)
    first = asyncio.create_task(service.ask(1))
    await gate.occupied()
    assert await refused(service, 2, patience=0.05) == "deadline"
    gate.open.set()
    assert await first == 2
    assert await service.ask(3) == 6
    assert gate.batches == [[1], [3]]


async def test_a_failing_model_fails_its_batch_only(make: Make) -> None:
    def moody(items: list[int]) -> list[int]:
        if 13 in items:
            raise RuntimeError("no")
        return double(items)

    service = make(moody, limits=Limits(batch=1))
    assert await refused(service, 13) == "error"
    assert await service.ask(2) == 4


@pytest.mark.parametrize("end", [SystemExit, MemoryError, Unavailable("error")])
async def test_nothing_that_a_model_raises_ends_its_thread(make: Make, end: BaseException) -> None:
    def broken(items: list[int]) -> list[int]:
        if 13 in items:
            raise end
        return double(items)

    service = make(broken)
    before = service.meter.refused["error"]
    assert await refused(service, 13) == "error"
    thread = service._thread
    assert await refused(service, 13) == "error"
    assert await service.ask(2) == 4
    assert service.meter.refused["error"] == before + 2
    assert service._thread is thread


async def test_a_model_that_loses_answers_is_an_error(make: Make) -> None:
    assert await refused(make(lambda items: [])) == "error"


async def test_a_hung_run_is_left_behind(make: Make) -> None:
    gate = Gate()

    def run(items: list[int]) -> list[int]:
        return gate.run(items) if 13 in items else double(items)

    service = make(run, hang=0.2)
    stuck = asyncio.create_task(refused(service, 13))
    await gate.occupied()
    await asyncio.sleep(0.3)
    assert await service.ask(4) == 8
    assert await stuck == "timeout"
    gate.open.set()


async def test_a_model_that_always_hangs_stays_unknown_until_it_comes_back(make: Make) -> None:
    gate = Gate()
    service = make(gate.run, hang=0.05)
    before = threading.active_count()
    for _ in range(8):
        assert await refused(service) == "timeout"
    assert threading.active_count() <= before + 1 + 3  # its own, and three that took over
    gate.open.set()
    for _ in range(100):
        try:
            assert await service.ask(4) == 8
            break
        except Unavailable:
            await asyncio.sleep(0.05)
    else:
        pytest.fail("the service did not recover")


async def test_closing_answers_what_waits(make: Make) -> None:
    gate = Gate()
    service = make(gate.run)
    first = asyncio.create_task(refused(service))
    await gate.occupied()
    second = asyncio.create_task(refused(service))
    await asyncio.sleep(0)
    service.close()
    assert await second == "closed"
    assert await refused(service) == "closed"
    gate.open.set()
    first.cancel()


async def test_a_cancelled_request_is_not_run(make: Make) -> None:
    gate = Gate()
    service = make(gate.run)
    first = asyncio.create_task(service.ask(1))
    await gate.occupied()
    gone = asyncio.create_task(service.ask(2))
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    gate.open.set()
    assert await first == 2
    assert await service.ask(3) == 6
    assert gate.batches == [[1], [3]]


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*:DeprecationWarning")
def test_a_forked_worker_has_a_thread_of_its_own(make: Make) -> None:
    service = make(double)
    assert asyncio.run(service.ask(1)) == 2
    child = os.fork()
    if not child:
        status = 1
        try:
            status = int(asyncio.run(service.ask(4, time.monotonic() + PATIENCE)) != 8)
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def test_who_comes_first_waits_for_company_as_long_as_some_may_come(make: Make) -> None:
    seen: list[list[int]] = []
    service = make(lambda items: [seen.append(items), *double(items)][1:])  # type: ignore[func-returns-value]
    service.wait, service.company = PATIENCE, lambda: 3
    first = asyncio.create_task(service.ask(1))
    gone = asyncio.create_task(service.ask(9))
    await asyncio.sleep(0.05)
    gone.cancel()
    await asyncio.sleep(0.05)
    assert seen == []
    assert await asyncio.gather(first, *(service.ask(item) for item in (2, 3))) == [2, 4, 6]
    assert seen == [[1, 2, 3]]
    service.wait = 0.05
    assert await service.ask(4) == 8  # nobody came
    service.wait, service.company = PATIENCE, lambda: 1
    assert await service.ask(5) == 10  # nobody can come
    service.company = lambda: 2
    waiting = asyncio.create_task(service.ask(6))
    await asyncio.sleep(0.05)
    service.close()
    with pytest.raises(Unavailable, match="closed"):
        await waiting
    assert seen[1:] == [[4], [5]]


async def test_metrics_name_the_model(make: Make) -> None:
    def batches() -> int:
        return sum(
            sum(sample.value[0])  # type: ignore[index]
            for sample in inference.samples()
            if sample.name == "pointsman_inference_batch_size" and sample.labels == {"model": "test"}
        )

    inference = Inference()
    await make(double, meter=inference.meter("test")).ask(1)
    await make(double, meter=inference.meter("test")).ask(1)  # as after a reload: the counters of a name go on
    assert batches() == 2
    assert list(Inference().samples()) == []  # and belong to whoever serves them


def test_no_number_of_models_fills_the_metrics() -> None:
    inference = Inference()
    for number in range(300):
        inference.meter(f"m{number}").refused["closed"] += 1
    refused = {s.labels["model"]: s.value for s in inference.samples() if s.name == "pointsman_inference_refused_total"}
    assert len(refused) == 201
    assert refused["other"] == 100
