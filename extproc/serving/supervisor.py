"""`serve --workers N`: a parent that forks workers, restarts them, gives them new policies, and answers for them all.

The parent loads the policy and its models before it forks, so that workers share that memory copy-on-write. It never
forks while an event loop or a thread of its own is alive: the loop is closed, the missing workers are forked, and a new
loop goes on (the admin port's socket stays open meanwhile). Inference threads belong to the workers, which start them
after the fork.

Each worker listens on its own SO_REUSEPORT socket (TCP) or on one shared socket (Unix), which the parent has bound and
keeps open, so that the successor of a dead worker takes the connections that wait. Over a socket pair the parent asks a
worker one thing at a time: its state, its counts, its last decisions, or to take a new policy.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import os
import pickle
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from config.problem import PolicyError
from config.watch import Loaded, Rejected, Watcher, from_sources, load
from decisions import learned
from decisions.engine import Engine
from decisions.grading import Taken
from extproc.admin.history import History
from extproc.admin.port import Admin, News, Status
from extproc.answers import reachable
from extproc.records import metrics
from extproc.records.metrics import Metrics, Snapshot, gauge
from extproc.serving.server import Options, Stop, Worker, about, followed, preload, runner, settle_memory
from extproc.transport import address
from signals.reading import Unavailable
from signals.state.store import Valkey

log = logging.getLogger("pointsman.supervisor")

HEARTBEAT_S = 1.0
LOOK_S = 0.4  # how long the admin port waits for workers before it answers with what it knows
HUNG_S = 30.0  # a worker that answers nothing for this long is killed
EARLY_S = 5.0  # a worker that dies younger than this is started again only after a pause
MAX_PAUSE_S = 10.0
MAX_MESSAGE_BYTES = 64 * 2**20
SOON = signal.SIGUSR1  # what the parent tells a worker where it was itself told SIGINT
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGCHLD, SOON)
PR_SET_PDEATHSIG = 1  # prctl(2)


def run(options: Options) -> int:
    """Supervise `options.workers` workers until SIGTERM or SIGINT; the exit status."""
    return Supervisor(options).run()


class Gone(Exception):
    """The worker died, or did not answer in time, or could not."""


class Failure(str):
    """A worker's answer that it has none: the name of the error that its log has."""


class Objection(str):
    """A worker's answer to what is wrong: why."""


@dataclass(eq=False)
class Slot:
    """One worker's place: the socket it serves on, the process there now, and what is known of it."""

    index: int
    listen: str | socket.socket
    steps: socket.socket | None = None  # for stepwise answers over HTTP
    pid: int | None = None
    born: float = 0.0
    failures: int = 0  # early deaths in a row
    channel: Channel | None = None
    pair: socket.socket | None = None
    refreshing: asyncio.Task[None] | None = None
    state: dict[str, Any] = field(default_factory=dict)
    counts: Snapshot = field(default_factory=dict)

    @property
    def ready(self) -> bool:
        return self.pid is not None and bool(self.state) and not self.state["draining"]

    @property
    def due(self) -> float:
        """When a dead worker may be started again (`time.monotonic()`)."""
        pause = min(MAX_PAUSE_S, 0.1 * 2**self.failures) if self.failures else 0.0
        return self.born + pause


class Channel:
    """One question at a time to one worker, over a socket pair; messages are pickled and carry their length."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._turn = asyncio.Lock()

    async def ask(self, question: str, argument: Any = None, within: float | None = None) -> Any:
        """The worker's answer. Raises Gone, and ValueError where the worker refuses the argument.

        A question whose asker has given up or was cancelled still takes its answer off the channel.
        """
        asked = asyncio.ensure_future(self._ask(question, argument))
        asked.add_done_callback(lambda done: done.cancelled() or done.exception())  # nobody may be left to look
        try:
            async with asyncio.timeout(HUNG_S if within is None else within):
                return await asyncio.shield(asked)
        except (TimeoutError, OSError, asyncio.IncompleteReadError) as error:
            raise Gone(type(error).__name__) from error

    async def _ask(self, question: str, argument: Any) -> Any:
        async with self._turn:
            await send(self._writer, (question, argument))
            answer = await receive(self._reader)
        if isinstance(answer, Failure):
            raise Gone(answer)
        if isinstance(answer, Objection):
            raise ValueError(str(answer))
        return answer

    async def leave(self) -> None:
        """Close this end between two answers, so that a later channel on the same pair starts clean. Raises Gone."""
        try:
            async with asyncio.timeout(HUNG_S), self._turn:
                self.close()
        except TimeoutError as error:
            raise Gone("TimeoutError") from error

    def close(self) -> None:
        self._writer.close()


async def send(writer: asyncio.StreamWriter, message: Any) -> None:
    try:
        data = pickle.dumps(message)
    except RecursionError:
        raise ValueError("what was given is nested too deeply") from None
    writer.write(len(data).to_bytes(4, "big") + data)
    await writer.drain()


async def receive(reader: asyncio.StreamReader) -> Any:
    size = int.from_bytes(await reader.readexactly(4), "big")
    if size > MAX_MESSAGE_BYTES:
        raise ConnectionError(f"a message of {size} bytes")
    return pickle.loads(await reader.readexactly(size))


class Supervisor:
    """The parent process. It is also what the admin port shows."""

    def __init__(self, options: Options) -> None:
        self._options = options
        self._metrics = Metrics()  # only the reloads are counted here
        self._callers = options.callers
        self._history = History()
        self._retired: Snapshot = {}  # the counts of workers that are gone
        self._restarts = 0
        self._stopping = False
        self._ready = False
        self._began = time.monotonic()
        self._watcher = Watcher(options.policy, options.poll, options.candidate)
        self._loaded = _load(options)
        self._admin_socket = None if options.admin is None else address.bind(options.admin)
        listens = _sockets(options)
        steps: list[socket.socket | None] = [None] * options.workers
        if options.stepwise_listen is not None:
            steps = [*_shared(options.stepwise_listen, options.workers)]
        self._slots = [Slot(index, *each) for index, each in enumerate(zip(listens, steps, strict=True))]

    def run(self) -> int:
        preload(self._options)
        settle_memory()
        # Signals that come while no loop runs wait for the next one.
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        while True:
            for slot in self._slots:
                if slot.pid is None and slot.due <= time.monotonic():
                    self._fork(slot)
            status = asyncio.run(self._watch())
            if status is not None:
                break
        for listen in (self._options.listen, self._options.stepwise_listen, self._options.admin):
            if listen is not None:
                address.unbind(listen)
        return status

    def _fork(self, slot: Slot) -> None:
        ours, theirs = socket.socketpair()
        sys.stdout.flush()
        sys.stderr.flush()
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                ours.close()
                self._close_inherited(slot)
                _die_with(parent)
                status = _work(self._loaded, self._options, slot, theirs)
            except (OSError, ValueError) as error:  # an address that is taken, a writer that cannot be served
                log.error("worker_failed", extra={"why": str(error)})
            except Exception:
                log.exception("worker_failed")
            finally:
                sys.stderr.flush()
                os._exit(status)
        theirs.close()
        slot.pid, slot.pair, slot.born, slot.state = pid, ours, time.monotonic(), {}

    def _close_inherited(self, mine: Slot) -> None:
        """In a new worker: what belongs to the parent and to the other workers."""
        if self._admin_socket is not None:
            self._admin_socket.close()
        for slot in self._slots:
            if slot.pair is not None:
                slot.pair.close()
            for their, our in ((slot.listen, mine.listen), (slot.steps, mine.steps)):
                if slot is not mine and their is not our and isinstance(their, socket.socket):
                    their.close()

    async def _watch(self) -> int | None:
        """One turn of the event loop's life: until a worker has to be forked (None) or all is over (exit status)."""
        loop = asyncio.get_running_loop()
        self._changed = asyncio.Event()
        self._reloading = asyncio.Lock()
        stop = Stop(self._reload)
        loop.add_signal_handler(signal.SIGCHLD, self._reap)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        admin = Admin(self, self._callers, self._history, self._options.allowed)
        tasks: list[asyncio.Task[Any]] = [
            asyncio.create_task(self._beat()),
            asyncio.create_task(self._watcher.run(self._reload)),
        ]
        try:
            if self._admin_socket is not None:
                await admin.start(self._admin_socket.dup())
            for slot in self._slots:
                if slot.pair is not None:
                    slot.channel = Channel(*await asyncio.open_unix_connection(sock=slot.pair.dup()))
            self._reap()
            asked = asyncio.create_task(stop.asked())
            tasks.append(asked)
            while not asked.done():
                if self._due():
                    return None
                self._changed.clear()
                waits = [asyncio.create_task(self._changed.wait()), asked]
                await asyncio.wait(waits, timeout=HEARTBEAT_S, return_when=asyncio.FIRST_COMPLETED)
                waits[0].cancel()
                if not self._ready:
                    self._announce()
                if self._hopeless():
                    return 1
            return await self._stop(asked.result())
        finally:
            signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
            async with self._reloading:  # a reload that has begun comes to its end
                for task in tasks:
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await admin.close()
            await asyncio.gather(*(self._leave(slot) for slot in self._slots))
            await asyncio.gather(*(slot.refreshing for slot in self._slots if slot.refreshing))
            for slot in self._slots:
                slot.refreshing = None

    async def _leave(self, slot: Slot) -> None:
        channel, slot.channel = slot.channel, None
        if channel is not None:
            try:
                await channel.leave()
            except Gone:
                _kill(slot, signal.SIGKILL)

    def _due(self) -> bool:
        now = time.monotonic()
        return any(slot.pid is None and slot.due <= now for slot in self._slots)

    def _hopeless(self) -> bool:
        """Whether a worker keeps dying before all were ever up: a start that cannot succeed must end."""
        if self._ready or not any(slot.failures > 3 for slot in self._slots):
            return False
        log.error("workers_do_not_start")
        for slot in self._slots:
            _kill(slot, signal.SIGKILL)
        return True

    def _announce(self) -> None:
        if all(slot.ready for slot in self._slots):
            self._ready = True
            log.info(
                "ready",
                extra={
                    "policy": self._loaded.engine.policy,
                    "listen": self._slots[0].state["address"],
                    "admin": None if self._admin_socket is None else address.name(self._admin_socket),
                    "stepwise": None if self._slots[0].steps is None else address.name(self._slots[0].steps),
                    "workers": len(self._slots),
                    "seconds": round(time.monotonic() - self._began, 3),
                },
            )

    def _reap(self) -> None:
        """Find out which workers have ended; what they reported last stays in the sums."""
        for slot in self._slots:
            if slot.pid is None:
                continue
            pid, status = os.waitpid(slot.pid, os.WNOHANG)
            if pid == 0:
                continue
            early = time.monotonic() - slot.born < EARLY_S
            slot.failures = slot.failures + 1 if early else 0
            self._retired = metrics.merge([self._retired, metrics.counted(slot.counts)])
            if not self._stopping:
                self._restarts += 1
                code = os.waitstatus_to_exitcode(status)
                log.error("worker_died", extra={"worker": slot.index, "died": pid, "status": code})
            slot.pid, slot.state, slot.counts = None, {}, {}
            if slot.channel is not None:
                slot.channel.close()
                slot.channel = None
            if slot.pair is not None:
                slot.pair.close()
                slot.pair = None
        self._changed.set()

    async def _beat(self) -> None:
        """Ask every worker for its state and counts, again and again; kill one that does not answer."""
        while True:
            await asyncio.gather(*(self._refresh(slot) for slot in self._slots))
            behind = [slot for slot in self._slots if slot.ready and slot.state["policy"] != self._loaded.engine.policy]
            for slot in behind:  # forked from an older policy, or its reload failed for a passing reason
                await self._tell(slot)
            self._changed.set()
            await asyncio.sleep(HEARTBEAT_S if self._ready else 0.02)

    async def _refresh(self, slot: Slot) -> None:
        """Take over a worker's state and counts; kill it when it does not answer in time."""
        channel = slot.channel
        if channel is None:
            return
        pid = slot.pid
        try:
            slot.state, slot.counts = await channel.ask("state")
        except Gone as gone:
            self._reap()  # a worker that has died is no news here
            if slot.pid == pid and slot.channel is channel and not self._stopping:
                log.error("worker_hung", extra={"worker": slot.index, "reason": str(gone)})
                _kill(slot, signal.SIGKILL)

    async def _look(self) -> None:
        """Refresh all workers for a caller; of a slow worker the caller gets what it said last."""
        for slot in self._slots:
            if slot.refreshing is None or slot.refreshing.done():
                slot.refreshing = asyncio.create_task(self._refresh(slot))
        await asyncio.wait([slot.refreshing for slot in self._slots if slot.refreshing], timeout=LOOK_S)

    # Reload

    async def _reload(self) -> None:
        """Load a changed policy here first; only a good one goes to the workers, as the bytes that were read."""
        async with self._reloading:
            await self._load_and_tell()

    async def _load_and_tell(self) -> None:
        kept = self._loaded.engine.policy
        try:
            loaded = await asyncio.to_thread(_load, self._options)
        except (PolicyError, Rejected, OSError, ValueError) as error:
            reasons = [str(problem) for problem in error.problems] if isinstance(error, PolicyError) else [str(error)]
            log.error("policy_rejected", extra={"kept": kept, "reasons": reasons})
            self._metrics.reloaded("rejected")
        except Exception:
            log.exception("policy_rejected", extra={"kept": kept})
            self._metrics.reloaded("rejected")
        else:
            self._loaded.close()
            self._loaded = loaded
            told = await asyncio.gather(*(self._tell(slot) for slot in self._slots))
            self._metrics.reloaded("accepted")
            log.info("policy_loaded", extra={"policy": loaded.engine.policy, "before": kept, "workers": sum(told)})

    async def _tell(self, slot: Slot) -> bool:
        """Give the policy in force to one worker; whether it has taken it."""
        if slot.channel is None:
            return False
        try:
            taken: bool = await slot.channel.ask("reload", self._loaded.sources)
        except Gone as gone:
            log.warning("worker_not_told", extra={"worker": slot.index, "reason": str(gone)})
            return False
        await self._refresh(slot)
        return taken

    # Stop

    async def _stop(self, by: signal.Signals) -> int:
        """Let every worker drain; kill what is left after its time."""
        self._stopping = True
        wait, grace = Stop.times(by, self._options)
        log.info("draining", extra={"workers": sum(slot.pid is not None for slot in self._slots), "wait": wait})
        for slot in self._slots:
            _kill(slot, signal.SIGTERM if by == signal.SIGTERM else SOON)
        deadline = time.monotonic() + wait + grace + 5.0
        while any(slot.pid is not None for slot in self._slots):
            if time.monotonic() > deadline:
                for slot in self._slots:
                    _kill(slot, signal.SIGKILL)
            self._changed.clear()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), 0.2)
            self._reap()
        log.info("stopped")
        return 0

    # What the admin port shows (extproc.admin.port.AdminSource)

    @property
    def engine(self) -> Engine:
        """The engine of the policy in force."""
        return self._loaded.engine

    async def status(self) -> Status:
        await self._look()
        policy = self._loaded.engine.policy
        agree = all(slot.ready and slot.state["policy"] == policy for slot in self._slots)
        ready = any(slot.ready for slot in self._slots) and not self._stopping
        return Status(ready, policy, {"agree": agree, "workers": [slot.state for slot in self._slots]})

    async def snapshot(self) -> Snapshot:
        await self._look()
        ours = {
            "pointsman_config_reloads_total": self._metrics.snapshot()["pointsman_config_reloads_total"],
            **about(self._metrics.last_reload_successful),
            "pointsman_workers": gauge(sum(slot.ready for slot in self._slots)),
            "pointsman_worker_restarts_total": gauge(self._restarts),
        }
        theirs = metrics.merge([self._retired, *(slot.counts for slot in self._slots)])
        return {**theirs, **ours}

    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = []
        for slot in self._slots:
            if slot.channel is not None:
                with contextlib.suppress(Gone):  # the next heartbeat sees to a worker that is gone
                    found += await slot.channel.ask("decisions", limit, 5.0)
        return sorted(found, key=lambda each: -each["time"])[:limit]

    async def since(self, seen: Mapping[str, int], limit: int) -> News:
        found = {}
        for slot in self._slots:
            if slot.channel is not None:
                pid = str(slot.pid)
                # All of a worker that began meanwhile is new.
                known = seen.get(pid, 0 if seen else None)
                try:
                    found[pid] = await slot.channel.ask("news", (known, limit), 5.0)
                except Gone:  # for now, or for ever: the next heartbeat sees to it
                    if known is not None:
                        found[pid] = (known, [])
        return followed(seen, found, limit)

    async def drop(self, decision: str | None, scope: str | None) -> int:
        dropped = 0
        shared = self.engine.settings.cache.store is not None  # what lies in a store is dropped by one for all
        for slot in self._slots:
            if slot.channel is not None:
                pid = slot.pid
                try:
                    dropped += await slot.channel.ask("drop", (decision, scope), 5.0)
                    if shared:
                        break
                except Gone as gone:
                    self._reap()
                    if slot.pid == pid:  # what a worker kept that has died has gone with it
                        raise Unavailable(str(gone)) from None
        return dropped

    async def grade(self, grades: Sequence[Any]) -> list[Taken]:
        """Without a store each worker knows its own answers only, so that all of them are asked."""
        found: list[Taken] = ["unknown_answer"] * len(grades)
        for slot in self._slots:
            left = [at for at, told in enumerate(found) if told == "unknown_answer"]
            if left and slot.channel is not None:
                for at, told in zip(left, await _ask(slot.channel, "grade", [grades[at] for at in left]), strict=True):
                    found[at] = told
        return found

    async def learned(self, decision: str | None) -> dict[str, Any]:
        return learned.together(await self._each("learned", decision))

    async def take_in(self, state: Any) -> int:
        if len(self._slots) > 1 and not self._shared:
            raise ValueError(
                "several workers without a state store learn each for themselves: none can be given it all"
            )
        count: int = (await self._each("take_in", state))[0]
        return count

    async def forget(self, decision: str | None) -> list[str]:
        names: list[str] = (await self._each("forget", decision))[0]
        return names

    @property
    def _shared(self) -> bool:
        """Whether what one worker has learned is what all have."""
        return isinstance(self.engine.store, Valkey)

    async def _each(self, question: str, argument: Any) -> list[Any]:
        """The answers of all workers that learn for themselves; of one, where they learn together. Raises Unavailable,
        ValueError."""
        channels = [slot.channel for slot in self._slots if slot.channel is not None]
        if not channels:
            raise Unavailable("no worker")
        return [await _ask(channel, question, argument) for channel in channels[: 1 if self._shared else None]]

    def policy_text(self) -> bytes:
        return self._loaded.source


async def _ask(channel: Channel, question: str, argument: Any) -> Any:
    """A worker's answer to a question that it may refuse. Raises Unavailable, ValueError."""
    try:
        return await channel.ask(question, argument, 10.0)
    except Gone as gone:
        raise Unavailable(str(gone)) from None


def _load(options: Options) -> Loaded:
    """The policy, which every worker can serve. Raises what loading raises, and ValueError."""
    loaded = load(options.policy, options.gate, options.candidate)
    try:
        reachable(loaded.engines, options.models_through)
    except ValueError:
        loaded.close()
        raise
    return loaded


def _kill(slot: Slot, number: signal.Signals) -> None:
    if slot.pid is not None:
        os.kill(slot.pid, number)  # never somebody else's: the pid is ours until it is waited for


def _sockets(options: Options) -> list[str | socket.socket]:
    """What each worker listens on."""
    if options.tls is not None or options.transport == "grpcio":
        # grpc-core binds by itself: a socket that is bound but does not listen keeps the port for its workers.
        first = address.shared(address.bind(options.listen))
        if first.family == socket.AF_UNIX:
            raise ValueError("the grpcio transport cannot share a Unix socket between workers: use --workers 1 or TCP")
        return [first] * options.workers
    return [*_shared(options.listen, options.workers)]


def _shared(listen: str, workers: int) -> list[socket.socket]:
    """A socket for each worker, bound to the same port; a Unix socket is one for all."""
    first = address.shared(address.bind(listen))
    if first.family == socket.AF_UNIX:
        return [first] * workers
    return [first, *(address.bind(address.name(first), share=True) for _ in range(workers - 1))]


def _die_with(parent: int) -> None:
    """Have the kernel send SIGTERM to this process when its parent dies (Linux; prctl(2), PR_SET_PDEATHSIG)."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it died before we asked
        os._exit(1)


# The worker's side


def _work(loaded: Loaded, options: Options, slot: Slot, control: socket.socket) -> int:
    with runner() as loop:
        return loop.run(_serve(loaded, options, slot, control))


async def _serve(loaded: Loaded, options: Options, slot: Slot, control: socket.socket) -> int:
    async def nothing() -> None:
        """SIGHUP does nothing in a worker: the parent handles it."""

    stop = Stop(nothing, SOON)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells us what to do
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    worker = Worker(loaded, options)
    await worker.start(slot.listen, slot.steps)
    reader, writer = await asyncio.open_unix_connection(sock=control)
    answering = asyncio.create_task(_answer(worker, options, reader, writer))
    asked = asyncio.create_task(stop.asked())
    await asyncio.wait([answering, asked], return_when=asyncio.FIRST_COMPLETED)
    by = asked.result() if asked.done() else signal.SIGTERM
    await worker.drain(*Stop.times(by, options))
    answering.cancel()
    return 0


async def _answer(worker: Worker, options: Options, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer the parent until it goes away."""
    questions: dict[str, Callable[[Any], Any]] = {
        "state": lambda _: (_state(worker), worker.counts()),
        "decisions": worker.recent,
        "news": lambda wanted: worker.news(*wanted),
        "drop": lambda which: worker.drop(*which),
        "grade": worker.grade,
        "learned": worker.learned,
        "take_in": worker.take_in,
        "forget": worker.forget,
        "reload": lambda sources: worker.reload(
            lambda: from_sources(sources, options.policy, options.candidate, worker.resources)
        ),
    }
    try:
        while True:
            question, argument = await receive(reader)
            try:
                answer = questions[question](argument)
                answer = await answer if asyncio.iscoroutine(answer) else answer
            except ValueError as error:
                answer = Objection(error)
            except Unavailable as error:
                answer = Failure(error)
            except Exception as error:  # a view that is broken must not take its worker down with it
                log.exception("question_failed", extra={"question": question})
                answer = Failure(type(error).__name__)
            await send(writer, answer)
    except (OSError, asyncio.IncompleteReadError):
        log.debug("parent_gone")


def _state(worker: Worker) -> dict[str, Any]:
    return {**worker.state(), "policy": worker.engine.policy, "address": worker.address}
