"""One model's queue and the thread that runs it: micro-batches, fair turns, deadlines, bounds, a watch on hung runs.

Whatever goes wrong in a model reaches the caller as `Unavailable` (`overloaded`, `deadline`, `timeout`, `error`,
`closed`, or what the model itself raises), never as another exception and never as a wait without end.
"""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from signals.metrics import Histogram, MetricSample
from signals.neural.fair import FairQueue
from signals.reading import Unavailable

log = logging.getLogger("pointsman.neural")

I = TypeVar("I")  # noqa: E741
O = TypeVar("O")  # noqa: E741
M = TypeVar("M")

BATCH_BOUNDS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0)
SECONDS: Final = (5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5)
_RESTARTS: Final = 3
_SHORT: Final = 4096
"""The size together of what runs in the midst of something long."""
_EACH: Final = 64
"""Work that a job is whatever its size: a turn is not free."""


@dataclass(slots=True)
class InferenceMetrics:
    """What one model's service counts; `name` is the model's, and the label of the metrics."""

    name: str
    batch: Histogram = field(default_factory=lambda: Histogram(BATCH_BOUNDS))
    queued: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    ran: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    refused: Counter[str] = field(default_factory=Counter)

    def samples(self) -> Iterator[MetricSample]:
        """Everything as it stands; the model and the reasons are the only labels."""
        labels = {"model": self.name}
        for name, histogram in (
            ("batch_size", self.batch),
            ("queue_seconds", self.queued),
            ("run_seconds", self.ran),
        ):
            yield MetricSample(f"pointsman_inference_{name}", labels, (list(histogram.counts), histogram.sum))
        for reason, count in list(self.refused.items()):
            yield MetricSample("pointsman_inference_refused_total", {**labels, "reason": reason}, count)


_MOST: Final = 200
"""Models that are counted by their names; those of a thousand reloads must not fill the metrics."""


class Inference:
    """The models of one process: which are loaded, and what they have counted.

    Engines of one policy after another are built with it, so that a reload loads nothing that the engine before still
    has, and no counter begins anew. A model goes when the last engine that uses it has gone. Threads may share it.
    """

    def __init__(self) -> None:
        self._meters: dict[str, InferenceMetrics] = {}
        self._loaded: weakref.WeakValueDictionary[Hashable, object] = weakref.WeakValueDictionary()
        self._loading = threading.Lock()

    def loaded(self, kind: type[M], key: Hashable, load: Callable[[], M]) -> M:
        """The model of this class and `key`, which says all that it depends on; `load` makes it where it is not there.

        Raises what `load` raises.
        """
        with self._loading:
            found = self._loaded.get((kind, key))
            if found is None:
                found = self._loaded[kind, key] = load()
            assert isinstance(found, kind)
            return found

    def meter(self, name: str) -> InferenceMetrics:
        """The meter of a model's name, which outlives the services of that name."""
        if name not in self._meters and len(self._meters) >= _MOST:
            name = "other"
        return self._meters.setdefault(name, InferenceMetrics(name))

    def samples(self) -> Iterator[MetricSample]:
        """The metrics of every model that was served."""
        for meter in list(self._meters.values()):
            yield from meter.samples()


@dataclass(slots=True, eq=False)
class _Job(Generic[I, O]):
    item: I
    work: int
    bucket: int
    client: str
    deadline: float
    asked: float
    answer: asyncio.Future[O]
    loop: asyncio.AbstractEventLoop
    number: int = 0


class Limits(NamedTuple):
    """`queue` bounds what waits for a model, `batch` what runs together; `hang` is how many seconds a run may take
    before it counts as hung (None: the model's own default)."""

    queue: int = 512
    batch: int = 32
    hang: float | None = None


DEFAULT_LIMITS: Final = Limits()


class Service(Generic[I, O]):
    """Runs one model off the event loop.

    `run` gets a list of items and gives as many answers; it is only ever called from the service's own thread. `size`
    tells how much work an item is: its length. Clients take turns by it (`fair`), and where batches are padded items
    share one when their lengths round up to the same power of two, so that little of it is padding. A full queue costs
    the client with the most waiting work its newest item. When a run has hung (`limits`, `hang` where those do not
    say), a fresh thread takes over, at most three times; after that every answer is Unavailable("timeout") until a run
    comes back.

    `work` bounds the sizes of a batch together, so that a run takes little longer than the largest single item does;
    `padded` says that a batch is as long as its longest item. `company` tells how many items may come at the most for
    now; while fewer wait, the first of them waits up to `wait` seconds for others to share its batch with. All four may
    be set before the first question.
    """

    work: int = 1 << 15
    padded: bool = True
    wait: float = 0.0

    def __init__(
        self,
        meter: InferenceMetrics,
        run: Callable[[list[I]], Sequence[O | Unavailable]],
        size: Callable[[I], int] | None = None,
        *,
        limits: Limits = DEFAULT_LIMITS,
        hang: float = 5.0,
    ) -> None:
        self.meter = meter
        self._run, self._size = run, size
        self._limits, self._hang = limits, limits.hang or hang
        self._waiting: FairQueue[_Job[I, O]] = FairQueue()
        self._wake = threading.Condition()
        self._generation = self._restarts = 0
        self._busy = 0.0  # time.monotonic() at which the current run began, 0 when idle
        self._logged = float("-inf")  # when a failure was last logged
        self._closed = False
        self._resting, self._rested = False, 0.0  # whether `rest` runs something, and for how many seconds it has
        self._wanted = 1  # how many must wait for the thread to be woken
        self.company: Callable[[], int] = lambda: 1
        self._thread: threading.Thread | None = None  # started by the first question: threads do not survive a fork

    @property
    def name(self) -> str:
        """The model's."""
        return self.meter.name

    def _start(self) -> None:
        self._thread = threading.Thread(
            target=self._work, args=(self._generation,), name=f"model-{self.name}", daemon=True
        )
        self._thread.start()

    async def ask(self, item: I, deadline: float = float("inf"), client: str = "") -> O:
        """The model's answer for `item`; `deadline` is a time.monotonic() instant, `client` whose turn it takes.

        Raises Unavailable.
        """
        now = time.monotonic()
        if self._closed:
            raise self._refuse("closed")
        if self._thread is None or not self._thread.is_alive():
            # In a forked worker the lock may be held, and the wake-up awaited, by a thread that is not there.
            self._waiting, self._wake = FairQueue(), threading.Condition()
            self._start()
        self._watch(now)
        if self._stuck(now):
            raise self._refuse("timeout")
        loop = asyncio.get_running_loop()
        size = self._size(item) if self._size else 0
        bucket = size.bit_length() if self.padded else 0
        job = _Job(item, size + _EACH, bucket, client, deadline, now, loop.create_future(), loop)
        with self._wake:
            self._waiting.add(job)
            loser = self._waiting.evict() if len(self._waiting) > self._limits.queue else None
            if len(self._waiting) >= self._wanted:  # a thread that is woken for less only takes turns with this one
                self._wake.notify()
        if loser is job:
            raise self._refuse("overloaded")
        if loser is not None and not loser.loop.is_closed():
            loser.loop.call_soon_threadsafe(_deliver, [(loser.answer, self._refuse("overloaded"))])
        timer = loop.call_later(min(deadline - now, 2 * self._hang), self._late, job)
        try:
            answer: O = await job.answer
            return answer
        finally:
            timer.cancel()
            if job.answer.cancelled():  # what nobody waits for any more takes no place
                with self._wake:
                    self._waiting.remove(job)

    def _late(self, job: _Job[I, O]) -> None:
        """Nobody waits for `job` any longer."""
        if not job.answer.done():
            with self._wake:
                self._waiting.remove(job)
            patience = job.deadline - job.asked
            job.answer.set_exception(self._refuse("deadline" if patience <= 2 * self._hang else "timeout"))

    def _refuse(self, reason: str) -> Unavailable:
        self.meter.refused[reason] += 1
        return Unavailable(reason)

    def _stuck(self, now: float) -> bool:
        return bool(self._busy) and now - self._busy > self._hang

    def _watch(self, now: float) -> None:
        """Give a hung run's place to a fresh thread; the old one ends when its run comes back."""
        if not self._stuck(now) or self._restarts >= _RESTARTS:
            return
        with self._wake:
            if not self._stuck(now):
                return
            self._restarts += 1
            self._generation += 1
            self._busy = 0.0
        log.error("model %s: a run has hung for %.1f s; thread %d takes over", self.name, self._hang, self._generation)
        self._start()

    def _work(self, generation: int) -> None:
        while True:
            with self._wake:
                if not self._gathered(generation):
                    return
                jobs = self._waiting.take(self._limits.batch, self._limits.batch * _EACH + self.work)
                started = time.monotonic()
                self._busy = started
            try:
                self._answer(jobs, started)
            finally:
                with self._wake:
                    if generation == self._generation:
                        self._busy = 0.0
                        self._restarts = 0
                    elif self._restarts >= _RESTARTS and self._stuck(time.monotonic()):
                        # Every thread hung and this one has come back: the model lives again.
                        self._restarts = 0

    def _gathered(self, generation: int) -> bool:
        """Wait, under the lock, until there is something to run; False when this thread has nothing to run any more."""
        until = 0.0
        while not self._closed and generation == self._generation:
            there, now = len(self._waiting), time.monotonic()
            if not there:
                until, self._wanted = 0.0, 1
                self._wake.wait()
                continue
            until = until or now + self.wait
            enough = min(self.company(), self._limits.batch)
            if there >= enough or now >= until:
                self._wanted = sys.maxsize
                return True
            self._wanted = enough
            self._wake.wait(until - now)
        return False

    def rest(self) -> None:
        """For `run` to call between the steps of something long: runs what is short and waits, at most one batch, so
        that it need not wait for the whole."""
        started = time.monotonic()
        if self._resting or self._thread is not threading.current_thread() or not self._waiting:
            return
        with self._wake:
            jobs = self._waiting.short(self._limits.batch, _SHORT)
        self._resting = True
        try:
            self._answer(jobs, started)
        finally:
            self._resting = False
            self._rested += time.monotonic() - started

    def _answer(self, jobs: list[_Job[I, O]], started: float) -> None:
        jobs = [job for job in jobs if job.deadline > started and not job.answer.done()]
        if not jobs:
            return
        meter, rested = self.meter, self._rested
        meter.batch.observe(len(jobs))
        for job in jobs:
            meter.queued.observe(started - job.asked)
        answers: Sequence[O | Unavailable]
        try:
            answers = self._run([job.item for job in jobs])
            if len(answers) != len(jobs):
                raise RuntimeError(f"{len(answers)} answers for {len(jobs)} items")
        except Unavailable as error:
            answers = [error] * len(jobs)
        except BaseException as error:  # noqa: BLE001  whatever a model raises ends this batch, not the thread
            # The text of the exception could quote the prompt, so only its type is logged, and that once a second.
            if started > self._logged + 1:
                self._logged = started
                log.error("model %s failed: %s", self.name, type(error).__name__)
            answers = [Unavailable("error")] * len(jobs)
        meter.refused.update(answer.reason for answer in answers if isinstance(answer, Unavailable))
        meter.ran.observe(time.monotonic() - started - (self._rested - rested))
        loops: dict[asyncio.AbstractEventLoop, list[tuple[asyncio.Future[O], O | Unavailable]]] = {}
        for job, answer in zip(jobs, answers, strict=True):
            loops.setdefault(job.loop, []).append((job.answer, answer))
        for loop, pairs in loops.items():
            if not loop.is_closed():
                try:
                    loop.call_soon_threadsafe(_deliver, pairs)
                except RuntimeError:  # the loop closed in between: nobody waits any more
                    log.debug("model %s: the loop has gone", self.name)

    def close(self) -> None:
        """End the thread; what still waits is Unavailable("closed")."""
        with self._wake:
            self._closed = True
            waiting = list(self._waiting)
            self._waiting = FairQueue()
            self._wake.notify_all()
        for job in waiting:
            if not job.loop.is_closed():
                job.loop.call_soon_threadsafe(_deliver, [(job.answer, Unavailable("closed"))])


def _deliver(pairs: Sequence[tuple[asyncio.Future[O], O | Unavailable]]) -> None:
    for future, answer in pairs:
        if future.done():
            continue
        if isinstance(answer, Unavailable):
            future.set_exception(answer)
        else:
            future.set_result(answer)
