from __future__ import annotations

import asyncio
import json
from typing import Any

import aiohttp
import pytest

from extproc.admin import MAX_CONNECTIONS, Admin, Status
from extproc.metrics import Metrics, Snapshot


class FakeSource:
    ready = True

    async def status(self) -> Status:
        return Status(self.ready, "sha256:abc", {"pid": 7})

    async def snapshot(self) -> Snapshot:
        return Metrics().snapshot()

    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        if limit == 13:
            raise RuntimeError("a broken view")
        return [{"decision": "code"}] * min(limit, 2)

    def policy_text(self) -> bytes:
        return b"version: 1\n"


@pytest.fixture
async def admin():
    server = Admin(FakeSource())
    await server.start("127.0.0.1:0")
    yield server
    await server.close()


async def _get(admin: Admin, path: str, method: str = "GET") -> tuple[int, str]:
    async with aiohttp.ClientSession() as session, session.request(method, f"http://{admin.address}{path}") as answer:
        return answer.status, await answer.text()


async def test_the_routes_answer(admin):
    assert await _get(admin, "/livez") == (200, "ok\n")
    status, body = await _get(admin, "/readyz")
    assert status == 200
    assert json.loads(body) == {"ready": True, "policy": "sha256:abc", "pid": 7}
    assert await _get(admin, "/policy") == (200, "version: 1\n")
    status, body = await _get(admin, "/metrics")
    assert status == 200
    assert "# TYPE pointsman_decisions_total counter" in body
    status, body = await _get(admin, "/debug/decisions?limit=1")
    assert json.loads(body) == {"decisions": [{"decision": "code"}]}


async def test_not_ready_is_503(admin, monkeypatch):
    monkeypatch.setattr(FakeSource, "ready", False)
    status, _ = await _get(admin, "/readyz")
    assert status == 503


async def test_wrong_requests_get_their_status(admin):
    assert (await _get(admin, "/nothing"))[0] == 404
    assert (await _get(admin, "/livez", "POST"))[0] == 405
    assert (await _get(admin, "/debug/decisions?limit=many"))[0] == 400
    assert (await _get(admin, "/debug/decisions?limit=13"))[0] == 500
    assert await _get(admin, "/policy", "HEAD") == (200, "")


async def test_it_listens_on_a_unix_socket(tmp_path):
    server = Admin(FakeSource())
    await server.start(f"unix:{tmp_path}/admin.sock")
    connector = aiohttp.UnixConnector(f"{tmp_path}/admin.sock")
    async with aiohttp.ClientSession(connector=connector) as session, session.get("http://admin/livez") as answer:
        assert answer.status == 200
    await server.close()
    assert list(tmp_path.iterdir()) == []


async def test_a_head_that_is_too_long_is_cut_off(admin):
    host, port = admin.address.split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET /livez HTTP/1.1\r\n" + b"x: y\r\n" * 10_000)
    try:
        answer = await reader.read()
    except ConnectionError:
        answer = b""
    assert answer == b""
    writer.close()


async def test_idle_connections_are_bounded_and_do_not_starve_probes(admin, monkeypatch):
    monkeypatch.setattr("extproc.admin.TIMEOUT_S", 0.2)
    host, port = admin.address.split(":")
    writers = [(await asyncio.open_connection(host, int(port)))[1] for _ in range(MAX_CONNECTIONS)]
    await asyncio.sleep(0.05)
    reader, extra = await asyncio.open_connection(host, int(port))
    assert await reader.read() == b""  # one too many is closed at once
    await asyncio.sleep(0.3)
    assert (await _get(admin, "/livez"))[0] == 200  # the idle ones are gone
    for writer in (*writers, extra):
        writer.close()
