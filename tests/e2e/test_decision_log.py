"""The decision log and the admin port of a router behind a real Envoy: what a client sends stops neither."""

from __future__ import annotations

import asyncio
import io
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest

from tests.e2e.proxy import Router, one_upstream, started, until
from tests.extproc.envoy import chat

pytestmark = pytest.mark.e2e

PATH = "/v1/chat/completions"


@dataclass
class Logged:
    """A router that logs content, and the Envoy before it."""

    url: str
    router: Router
    file: Path

    def lines(self) -> list[dict[str, Any]]:
        text = self.file.read_text() if self.file.exists() else ""
        return [orjson.loads(line) for line in text.splitlines()]

    async def post(self, client: aiohttp.ClientSession, body: bytes, query: str = "") -> int:
        headers = {"content-type": "application/json"}
        async with client.post(self.url + PATH + query, data=io.BytesIO(body), headers=headers) as response:
            await response.read()
            return response.status


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Logged]:
    folder = tmp_path_factory.mktemp("log")
    file = folder / "log.jsonl"
    flags = ["--decision-log", str(file), "--decision-log-content", "--decision-log-buffer", "8"]
    with one_upstream(folder, *flags, "--admin-host", "router.test") as (router, envoy), started(router, envoy):
        yield Logged(envoy.url("ingress"), router, file)


async def test_no_body_ends_the_log(logged: Logged, client: aiohttp.ClientSession) -> None:
    """Deep ones made its writer die for good: 254 levels are too many for orjson, about 1,000 for Python's stack."""
    for depth in (300, 1_000):
        deep = chat(mail="ann@example.org")[:-1] + b',"x":' + b"[" * depth + b"]" * depth + b"}"
        assert await logged.post(client, deep, "?api-key=sk-secret&sig=secret") == 200
    assert await logged.post(client, chat("the last")) == 200
    await until(lambda: len(logged.lines()) == 3)
    assert [line.get("content_error") for line in logged.lines()] == [None] * 3
    assert [line["path"] for line in logged.lines()] == [PATH] * 3
    assert "ann@" not in logged.file.read_text()
    assert "secret" not in logged.file.read_text()
    assert "pointsman_decision_log_restarts_total 0" in logged.router.metrics()


async def test_more_than_the_disk_takes_is_dropped_and_nobody_waits_for_it(
    logged: Logged, client: aiohttp.ClientSession
) -> None:
    """Bodies of 3 MB against a buffer of 8 MiB; a small request beside them is answered all the while."""
    large = chat("ann@example.org " * 200_000)
    before = len(logged.lines())
    waits: list[float] = []

    async def beside(done: asyncio.Event) -> None:
        while not done.is_set() or not waits:
            began = time.perf_counter()
            assert await logged.post(client, chat("beside")) == 200
            waits.append(time.perf_counter() - began)
            await asyncio.sleep(0.01)

    done = asyncio.Event()
    done.set()
    await beside(done)
    worst = 2.0 * max(1.0, waits.pop() / 0.05)  # an overloaded machine is slow before there is anything to wait for
    done.clear()
    asking = asyncio.create_task(beside(done))
    sent = await asyncio.gather(*(logged.post(client, large) for _ in range(20)))
    done.set()
    await asking
    assert sent == [200] * 20
    total = 1 + 20 + len(waits)

    def dropped() -> int:
        [line] = [x for x in logged.router.metrics().splitlines() if x.startswith("pointsman_decision_log_dropped ")]
        return int(float(line.split()[1]))

    await until(lambda: len(logged.lines()) - before + dropped() == total)
    assert dropped() > 0
    assert max(waits) < worst


@pytest.mark.parametrize(
    ("head", "status"),
    [
        ("GET /metrics HTTP/1.1\r\nHost: ADDRESS", 200),
        ("GET /readyz HTTP/1.1\r\nHost: router.test:8080", 200),
        ("GET /readyz HTTP/1.0", 200),
        ("GET /metrics HTTP/1.1\r\nHost: evil.example", 421),
        ("GET /metrics HTTP/1.1\r\nHost: ADDRESS\r\nOrigin: http://evil.example", 403),
    ],
)
async def test_the_admin_port_is_for_those_who_mean_it(logged: Logged, head: str, status: int) -> None:
    host, _, port = logged.router.admin.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(head.replace("ADDRESS", logged.router.admin).encode() + b"\r\n\r\n")
    assert int((await reader.read()).split(b" ")[1]) == status
    writer.close()
