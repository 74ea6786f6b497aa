"""The policies that the exchanges of one worker work with, and what these have in common."""

from __future__ import annotations

import asyncio
import contextlib
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from config.watch import Loaded
from decisions.engine import Engine
from decisions.outcome import Outcome
from extproc.answers import Answers
from extproc.bodies.holder import Bodies
from extproc.chains import Chains
from extproc.exchange import Answerer
from extproc.keeping.keeper import Keeper
from extproc.makers import Makers
from extproc.meter import Meter
from extproc.records.metrics import Metrics
from extproc.records.recorder import Recorder
from extproc.requests.unread import UnreadLog
from extproc.serving.rollout import Rollout
from extproc.transport.seam import Stream
from signals.background import background
from signals.request import Request
from upstream.writer import Writer

LONG_TEXTS = 1
"""Threads that read long requests; more of them would only wait for each other."""
PATIENCE_S = 2.0
"""How long a request over HTTP and its decision's policy wait for each other: a policy reaches workers one by one."""

Record = Callable[[Outcome, Request, Stream], None]
T = TypeVar("T")


class InCommon:
    """What all exchanges of a worker share, whatever the policy."""

    def __init__(self, metrics: Metrics, recorder: Recorder, meter: Meter) -> None:
        self.metrics = metrics
        self.recorder = recorder
        self.meter = meter
        self.bodies = Bodies()
        self.makers = Makers()
        self.chains = Chains()
        self.keeper = Keeper()
        self.unread = UnreadLog()
        self.threads = ThreadPoolExecutor(LONG_TEXTS, "long-text")

    async def apart(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in one of the threads for requests that take long to read."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, background, work)


class InForce:
    """What an exchange works with: the policy that was in force when it began (extproc.exchange.Context)."""

    __slots__ = (
        "__weakref__",
        "answerer",
        "answers",
        "apart",
        "bodies",
        "chains",
        "engine",
        "failed",
        "follow",
        "keeper",
        "keeps",
        "makers",
        "meter",
        "record",
        "rollout",
        "source",
        "timed",
        "unread",
    )

    def __init__(self, common: InCommon, loaded: Loaded, answers: Answers | None, rollout: Rollout | None) -> None:
        self.engine = loaded.engine
        self.source = loaded.source
        self.answers = answers
        self.answerer: Answerer | None = answers
        recorder = common.recorder
        self.timed = recorder.timed
        self.record = _recording(loaded.engines, recorder.record)
        self.keeps = recorder.keeps
        self.follow = None if rollout is None else rollout.follow
        self.failed = common.metrics.failed
        self.meter = common.meter
        self.bodies = common.bodies
        self.makers = common.makers
        self.chains = common.chains
        self.keeper = common.keeper
        self.apart = common.apart
        self.unread = common.unread.tell
        self.rollout = rollout

    def choose(self, request: Request) -> Engine:
        """The engine that decides `request`: the policy's, or the candidate's for its share."""
        return self.engine if self.rollout is None else self.rollout.choose(request)


class Policies:
    """The `current` policy, from the first `put` on, and those before it that somebody still works with."""

    def __init__(self) -> None:
        self.current: InForce
        self._held: weakref.WeakSet[InForce] = weakref.WeakSet()
        self._news = asyncio.Event()  # set when another policy comes into force

    def put(self, policy: InForce) -> None:
        """Make `policy` the current one. Exchanges hold the one that they began with."""
        self.current = policy
        self._held.add(policy)
        self._news.set()
        self._news = asyncio.Event()

    def keep_current(self) -> None:
        """Hold the current policy for `PATIENCE_S` seconds, whatever comes after it."""
        asyncio.get_running_loop().call_later(PATIENCE_S, lambda _: None, self.current)

    def answers(self) -> list[Answers]:
        """Those of all the policies."""
        return [held.answers for held in self._held if held.answers is not None]

    @contextlib.asynccontextmanager
    async def borrow(self, decision: str, policy: str) -> AsyncIterator[Writer | None]:
        """The writer of a decision for a request over HTTP; its policy is held until the answer has been sent."""
        held = self._holder(decision, policy)
        if held is None and policy:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PATIENCE_S):
                    while held is None:
                        await self._news.wait()
                        held = self._holder(decision, policy)
        if held is None:  # whoever has decided it is gone, or never was
            held, policy = self.current, ""
        yield None if held.answers is None else held.answers.find(decision, policy)

    def _holder(self, decision: str, policy: str) -> InForce | None:
        known: list[InForce] = [self.current, *(self._held if policy else ())]
        for held in known:
            if held.answers is not None and held.answers.find(decision, policy) is not None:
                return held
        return None


def _recording(engines: Sequence[Engine], record: Record) -> Record:
    """`record`, and before it the engine that decided, where one of `engines` has budgets or learns."""
    if not any(engine.shared.metered or engine.learning for engine in engines):
        return record
    deciding = {engine.policy: engine for engine in engines}

    def both(outcome: Outcome, request: Request, stream: Stream) -> None:
        deciding[outcome.trace.policy].record(outcome, request)
        record(outcome, request, stream)

    return both
