"""One router process: policy in force, transport, health, what the admin port shows, reload and drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from config.problem import PolicyError
from config.watch import Gate, Loaded, Rejected, Watcher, load
from decisions import learned
from decisions.engine import Engine
from decisions.grading import Taken
from decisions.outcome import as_object
from extproc.admin.callers import Callers
from extproc.admin.port import NOTHING, Admin, Allowed, News, Status
from extproc.answers import Answers
from extproc.exchange import Exchange
from extproc.meter import Meter
from extproc.records import metrics, shown
from extproc.records.decisionlog import DecisionLog, LogOptions
from extproc.records.masking import beginning
from extproc.records.metrics import Metrics, Sample, Snapshot, gauge
from extproc.records.recorder import Recorder
from extproc.records.tracing import Tracing
from extproc.serving.health import Health
from extproc.serving.inforce import InCommon, InForce, Policies
from extproc.serving.rollout import Rollout
from extproc.transport import address, heap
from extproc.transport.seam import Handler, Server, Stream, TransportLimits
from extproc.transport.tls import TlsFiles
from upstream.writer import OneEach

if TYPE_CHECKING:
    from extproc.serving.overhttp import Port


log = logging.getLogger("pointsman.server")

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"

Transport = Literal["auto", "http2", "grpcio"]


@dataclass(frozen=True, slots=True)
class Options:
    """What `pointsman serve` was told. Addresses are `host:port` or `unix:PATH`; times are seconds.

    `drain_wait` is how long a worker that says NOT_SERVING still takes new streams (longer than Envoy's health
    interval), `grace` how long it then waits for streams that are open. `models_through` is
    the address of Envoy's internal listener, for the calls of stepwise answers; `stepwise_listen` is where they are
    given over HTTP to proxies that cannot take them from us. `candidate` is a second policy, which decides the share
    `canary` (0 to 1) of the sessions, and all other requests without effect. `admin_hosts` are names, beside
    addresses and `localhost`, under which the admin port answers; `admin_token` is the file of the token that it asks
    for; `allowed` is what the console may do.

    Raises ValueError for TLS on a transport that has none.
    """

    policy: Path
    listen: str
    admin: str | None = None
    transport: Transport = "auto"
    tls: TlsFiles | None = None
    workers: int = 1
    drain_wait: float = 3.0
    grace: float = 30.0
    poll: float = 1.0
    gate: Gate | None = None
    models_through: str | None = None
    stepwise_listen: str | None = None
    candidate: Path | None = None
    canary: float = 0.0
    decision_log: LogOptions | None = None
    traces: bool = False
    admin_hosts: tuple[str, ...] = ()
    admin_token: Path | None = None
    allowed: Allowed = NOTHING

    @property
    def admin_names(self) -> tuple[str, ...]:
        """The names under which the admin port answers: those given, and the one that it listens on."""
        where = "" if self.admin is None else address.parse(self.admin)
        return self.admin_hosts if isinstance(where, str) or not where[0] else (*self.admin_hosts, where[0])

    @property
    def callers(self) -> Callers:
        """Who may ask the admin port. Raises ValueError where its token cannot be used."""
        return Callers(self.admin_names, self.admin_token)

    def __post_init__(self) -> None:
        if self.tls is not None and self.transport == "http2":
            raise ValueError("the http2 transport has no TLS: use --transport grpcio, or drop the --tls options")


class Worker:
    """Serves ext_proc with one policy at a time. Every stream keeps the one it began with."""

    def __init__(self, loaded: Loaded, options: Options) -> None:
        self.resources = loaded.resources
        self._options = options
        self._log = DecisionLog(options.decision_log) if options.decision_log is not None else None
        self._tracing = Tracing() if options.traces else None
        metrics = Metrics()
        recorder = Recorder(metrics, self._log, self._tracing, content=options.allowed.content)
        self.common = InCommon(metrics, recorder, Meter(loaded.resources.loads))
        self._health = Health()
        self._counters = OneEach()
        self._draining = False
        self._loaded: Loaded | None = loaded
        self._policies = Policies()
        self._first = _models(loaded)  # what the gateway's routes were most likely written for
        self._unrouted: tuple[str, ...] = ()
        self._closing: set[asyncio.Task[None]] = set()
        self._port: Port | None = None
        handlers: dict[str, Handler] = {PROCESS: self._exchange, **self._health.handlers()}
        self._server = _transport(options, handlers)

    @property
    def metrics(self) -> Metrics:
        return self.common.metrics

    @property
    def engine(self) -> Engine:
        """The engine of the policy in force."""
        return self._policies.current.engine

    def _exchange(self, stream: Stream) -> Exchange:
        return Exchange(self._policies.current, stream)

    # Life

    async def start(self, listen: str | socket.socket, steps: str | socket.socket | None = None) -> None:
        """Bind and serve: ext_proc, and at `steps` writers' answers over HTTP.

        Raises ValueError or OSError when an address is wrong or taken.

        Raises ValueError too when a writer of the policy cannot be served.
        """
        assert self._loaded is not None
        await self._install(self._loaded)
        self._loaded = None
        if steps is not None:
            from extproc.serving.overhttp import Port, application

            limit = 2 * self.engine.settings.max_body  # ours comes first, in the exchange; a reload may raise it
            app = application(self._policies.borrow, lambda: not self._draining, limit)
            self._port = await Port.open(app, steps, self._options.grace)
        await self._server.start(listen)
        self._health.set_all(True)

    @property
    def address(self) -> str:
        return self._server.address

    @property
    def stepwise_address(self) -> str | None:
        """Where writers answer over HTTP, if anywhere."""
        return None if self._port is None else self._port.address

    async def reload(self, load: Callable[[], Loaded]) -> bool:
        """Load a policy beside the traffic and swap it in; on any error keep the old one, say why, return False."""
        try:
            before = self.engine.policy
            await self._install(await asyncio.to_thread(load))
        except (PolicyError, Rejected, OSError, ValueError) as error:
            reasons = [str(problem) for problem in error.problems] if isinstance(error, PolicyError) else [str(error)]
            log.error("policy_rejected", extra={"kept": self.engine.policy, "reasons": reasons})
        except Exception:  # a defect in a loader must not cost the running policy
            log.exception("policy_rejected", extra={"kept": self.engine.policy})
        else:
            self.metrics.reloaded("accepted")
            log.info("policy_loaded", extra={"policy": self.engine.policy, "before": before})
            if self._unrouted:
                hint = "not in the policy that this router began with: check that the gateway has routes for them"
                log.warning("models_perhaps_without_route", extra={"models": list(self._unrouted), "hint": hint})
            return True
        self.metrics.reloaded("rejected")
        return False

    async def _install(self, loaded: Loaded) -> None:
        """Put a policy in force. Streams hold the one before; what it has goes when the last of them has ended."""
        engines = loaded.engines
        answers: Answers | None = None
        if any(engine.writes for engine in engines):
            options = self._options
            served = options.stepwise_listen is not None
            try:
                answers = Answers(engines, options.policy.parent, options.models_through, self._counters, served=served)
                await answers.start()
            except BaseException:
                for engine in engines:
                    engine.close()
                raise
        rollout = None
        if loaded.candidate is not None:
            rollout = Rollout(loaded.engine, loaded.candidate.engine, self._options.canary, self.metrics.compared)
        if self._port is not None:  # requests that the old one has decided may still be on their way to us
            self._policies.keep_current()
        in_force = InForce(self.common, loaded, answers, rollout)
        self._policies.put(in_force)
        self._unrouted = tuple(sorted(_models(loaded) - self._first))
        for engine in engines:
            weakref.finalize(in_force, engine.shared.close).atexit = False
        if answers is not None:
            weakref.finalize(in_force, self._close, answers).atexit = False

    def _close(self, answers: Answers) -> None:
        """Close these answers, whose policy no stream keeps any more."""
        if self._draining:  # `drain` closes the last ones; there may be no loop by now
            return
        task = asyncio.ensure_future(answers.close())
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)

    async def drain(self, wait: float, grace: float) -> None:
        """NOT_SERVING, `wait` seconds for Envoy to notice, up to `grace` seconds for open streams, closed."""
        self._draining = True
        self._health.set_all(False)
        log.info("draining", extra={"streams": self._server.streams, "wait": wait, "grace": grace})
        await asyncio.sleep(wait)
        self._health.end()
        end = asyncio.get_running_loop().time() + grace
        await self._server.drain(grace)
        if self._port is not None:
            await self._port.close(max(0.1, end - asyncio.get_running_loop().time()))
        await asyncio.gather(*(answers.close() for answers in self._policies.answers()))
        self.common.threads.shutdown(wait=False, cancel_futures=True)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
        await self.resources.close()

    # What the admin port shows (extproc.admin.port.AdminSource)

    async def status(self) -> Status:
        return Status(not self._draining, self.engine.policy, self.state())

    def state(self) -> dict[str, Any]:
        """This worker in a few plain fields."""
        new: dict[str, Any] = {"models_perhaps_without_route": list(self._unrouted)} if self._unrouted else {}
        if self._policies.current.answers is not None and (problems := self._policies.current.answers.problems):
            new["decisions_not_as_written"] = problems
        if (rollout := self._policies.current.rollout) is not None:
            new["candidate"] = {"policy": rollout.candidate.policy, "share": rollout.share}
        return {"pid": os.getpid(), "draining": self._draining, "streams": self._server.streams, **new}

    async def snapshot(self) -> Snapshot:
        return {**self.counts(), **about(self.metrics.last_reload_successful), "pointsman_workers": gauge(1)}

    def counts(self) -> Snapshot:
        """The metrics of this worker alone; a supervisor adds up those of all workers."""
        return {
            **self.metrics.snapshot(),
            **metrics.labelled(self._counters.samples()),
            **metrics.labelled(self.resources.inference.samples()),
            **metrics.selections(self.engine, self.resources.standings.tally),
            "pointsman_streams_inflight": gauge(self._server.streams),
            "pointsman_connections": gauge(self._server.connections),
            "pointsman_open_body_bytes": gauge(self.common.bodies.total),
            **{f"pointsman_cache_{name}": gauge(count) for name, count in self.common.keeper.counts().items()},
            "pointsman_policy_info": gauge(1, self.engine.policy),
            "pointsman_budget_remaining": self._remaining(),
            "pointsman_models_perhaps_without_route": gauge(len(self._unrouted)),
            **{f"pointsman_store_{name}": gauge(count) for name, count in self.resources.counts().items()},
            "pointsman_decision_log_dropped": gauge(0 if self._log is None else self._log.dropped),
            "pointsman_decision_log_restarts_total": gauge(0 if self._log is None else self._log.restarts),
            "pointsman_decision_log_content_errors_total": gauge(0 if self._log is None else self._log.content_errors),
        }

    def _remaining(self) -> list[Sample]:
        now = time.time()
        found = [(name, each.least(now)) for name, each in self.engine.signals.items()]
        return [((name,), left) for name, left in found if left is not None]

    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        return self.recent(limit)

    def recent(self, limit: int) -> list[dict[str, Any]]:
        """The last `limit` decisions, newest first."""
        outcomes, last = self.common.recorder.outcomes, self.common.recorder.recorded
        pid = os.getpid()
        return [
            {
                "key": f"{pid}-{last - index}",
                "time": at,
                "request_id": None if id is None else shown.word(id),
                **as_object(outcome),
                **({} if text is None else {"content": beginning(text)}),
            }
            for index, (at, id, outcome, text) in enumerate(islice(reversed(outcomes), min(limit, len(outcomes))))
        ]

    def news(self, seen: int | None, limit: int) -> tuple[int, list[dict[str, Any]]]:
        """How many decisions there were, and those after the first `seen` that are kept, newest first; with None the
        newest `limit`."""
        last = self.common.recorder.recorded
        return last, self.recent(limit if seen is None else last - seen)

    async def since(self, seen: Mapping[str, int], limit: int) -> News:
        pid = str(os.getpid())
        return followed(seen, {pid: self.news(seen.get(pid), limit)}, limit)

    async def drop(self, decision: str | None, scope: str | None) -> int:
        return await self.common.keeper.drop(self.engine, decision, scope)

    async def grade(self, grades: Sequence[Any]) -> list[Taken]:
        grading = self.engine.grading
        return ["unknown_answer"] * len(grades) if grading is None else await grading.take_all(grades)

    async def learned(self, decision: str | None) -> dict[str, Any]:
        return await learned.learned(self.engine, decision)

    async def take_in(self, state: Any) -> int:
        return await learned.take_in(self.engine, state)

    async def forget(self, decision: str | None) -> list[str]:
        return await learned.forget(self.engine, decision)

    def policy_text(self) -> bytes:
        return self._policies.current.source


def followed(seen: Mapping[str, int], found: Mapping[str, tuple[int, list[dict[str, Any]]]], limit: int) -> News:
    """What workers, by their pids, have to say to somebody who has `seen` so many of their decisions."""
    decisions = sorted((each for _, some in found.values() for each in some), key=lambda each: each["time"])
    if not seen:
        decisions = decisions[len(decisions) - min(limit, len(decisions)) :]
    missed = sum(last - seen[pid] - len(some) for pid, (last, some) in found.items() if pid in seen)
    return News({pid: last for pid, (last, _) in found.items()}, decisions, missed)


def _models(loaded: Loaded) -> frozenset[str]:
    """The keys of the models of the policy and its candidate."""
    return frozenset(key for engine in loaded.engines for key in engine.models)


def about(last_reload_successful: bool) -> Snapshot:
    """The gauges that exist once, however many workers there are."""
    return {
        "pointsman_config_last_reload_successful": gauge(float(last_reload_successful)),
        "pointsman_build_info": gauge(1, version("pointsman")),
    }


def settle_memory() -> None:
    """Call it when everything is loaded: what is alive now is never garbage, so no collection need look at it again.

    A request's objects are freed by their reference counts. Only cycles need the collector, so it may run rarely; but
    nobody else can run while it does, so it should never look at much. A call of 40,000 messages is some 100,000
    objects: the second generation is collected after three of the first (60,000 objects, some 10 ms), the third seldom.
    """
    gc.collect()
    gc.freeze()
    # A thread that reads a long request gives way to the event loop as often as this (5 ms as Python comes).
    sys.setswitchinterval(0.0005)
    gc.set_threshold(20_000, 2, 1_000)
    heap.keep()


def runner() -> asyncio.Runner:
    """An event loop for a serving process: uvloop when it is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.Runner()
    return asyncio.Runner(loop_factory=uvloop.new_event_loop)


def run(options: Options) -> int:
    """Serve in this process until SIGTERM or SIGINT; the exit status. Raises what loading and binding raise."""
    began = time.monotonic()
    watcher = Watcher(
        options.policy, options.poll, options.candidate
    )  # before the load: a change in between must not go unseen
    serving = _run(options, load(options.policy, options.gate, options.candidate), watcher, began)
    with runner() as loop:
        status = loop.run(serving)
    _end_threads(status)
    return status


def _end_threads(status: int) -> None:
    """Wait a moment for threads that nobody needs any more; where one goes on, the process ends here.

    One that is inside a library in C++ when Python has shut down would abort the process: Python ends such a thread by
    unwinding its stack (pthread_exit(3)), which C++ takes for an error.
    """
    until = time.monotonic() + 1
    threads = [thread for thread in threading.enumerate() if thread.daemon]
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    if any(thread.is_alive() for thread in threads):
        logging.shutdown()
        sys.stdout.flush()
        os._exit(status)


async def _run(options: Options, loaded: Loaded, watcher: Watcher, began: float) -> int:
    worker = Worker(loaded, options)
    del loaded  # it would keep the first policy alive for ever

    async def reload() -> None:
        await worker.reload(lambda: load(options.policy, options.gate, options.candidate, worker.resources))

    await worker.start(options.listen, options.stepwise_listen)
    admin = Admin(worker, options.callers, allowed=options.allowed)
    if options.admin is not None:
        await admin.start(options.admin)
    settle_memory()
    log.info(
        "ready",
        extra={
            "policy": worker.engine.policy,
            "listen": worker.address,
            "admin": admin.address if options.admin is not None else None,
            "stepwise": worker.stepwise_address,
            "seconds": round(time.monotonic() - began, 3),
        },
    )
    stop = Stop(reload)
    polling = asyncio.create_task(watcher.run(reload))
    try:
        wait, grace = stop.times(await stop.asked(), options)
        await worker.drain(wait, grace)
    finally:
        polling.cancel()
        await admin.close()
    log.info("stopped")
    return 0


class Stop:
    """Signals: SIGTERM drains, SIGINT stops soon, a second of either at once; SIGHUP reloads.

    In a supervisor's workers, `soon` is another signal: Ctrl-C at a terminal reaches them beside their parent.
    """

    def __init__(self, reload: Callable[[], Any], soon: signal.Signals = signal.SIGINT) -> None:
        loop = asyncio.get_running_loop()
        self._asked: asyncio.Future[signal.Signals] = loop.create_future()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._reload = reload
        for number in (signal.SIGTERM, soon):
            loop.add_signal_handler(number, self._stop, number)
        loop.add_signal_handler(signal.SIGHUP, self._hup)

    async def asked(self) -> signal.Signals:
        """Wait for the first SIGTERM or SIGINT."""
        return await self._asked

    @staticmethod
    def times(by: signal.Signals, options: Options) -> tuple[float, float]:
        """How long to wait as NOT_SERVING and then for open streams, in seconds."""
        return (options.drain_wait, options.grace) if by == signal.SIGTERM else (0.0, min(2.0, options.grace))

    def _stop(self, number: signal.Signals) -> None:
        if self._asked.done():
            os._exit(128 + number)
        self._asked.set_result(number)

    def _hup(self) -> None:
        task = asyncio.ensure_future(self._reload())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def preload(options: Options) -> None:
    """Import what workers will need, so that they share it; grpc must not be imported before a fork."""
    if _transport_name(options) == "http2":
        import extproc.transport.http2  # noqa: F401


def _transport_name(options: Options) -> str:
    if options.transport == "auto":
        return "http2" if options.tls is None else "grpcio"
    return options.transport


def _transport(options: Options, handlers: Mapping[str, Handler]) -> Server:
    """The transport for `options`; each is imported only where it serves."""
    if _transport_name(options) == "http2":
        from extproc.transport.http2 import Http2Server

        return Http2Server(handlers, TransportLimits())
    from extproc.transport.grpcio import GrpcioServer

    return GrpcioServer(handlers, TransportLimits(), options.tls)


__all__ = ["Options", "Worker", "metrics", "run"]
