from __future__ import annotations

import asyncio
import json
import socket
from typing import Any

import aiohttp
import pytest

from extproc.admin import MAX_CONNECTIONS, Admin, Status
from extproc.metrics import Metrics, Snapshot
from extproc.server import Options
from tests.patience import PATIENCE


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

    async def drop(self, decision: str | None, scope: str | None) -> int:
        return len((decision or "") + (scope or ""))

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


async def test_kept_answers_are_dropped_by_delete_only(admin):
    assert json.loads((await _get(admin, "/cache", "DELETE"))[1]) == {"dropped": 0}
    assert json.loads((await _get(admin, "/cache?decision=faq", "DELETE"))[1]) == {"dropped": 3}
    assert json.loads((await _get(admin, "/cache?decision=faq&tenant=a%20b", "DELETE"))[1]) == {"dropped": 3 + 32}
    assert json.loads((await _get(admin, "/cache?all=", "DELETE"))[1]) == {"dropped": 32}
    for wrong in ("?desicion=faq", "?tenant=", "?decision=", "?tenant=a&user=b", "?faq", "?tenant=a;b&x"):
        assert (await _get(admin, f"/cache{wrong}", "DELETE"))[0] == 400, wrong
    for method in ("GET", "POST"):
        assert (await _get(admin, "/cache", method))[0] == 405
    assert (await _get(admin, "/metrics", "DELETE"))[0] == 405


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


async def _raw(admin: Admin, head: str) -> int:
    """The status of a request that is written byte by byte, as no client library would."""
    host, _, port = admin.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host.strip("[]"), int(port))
    writer.write(head.replace("\n", "\r\n").encode() + b"\r\n\r\n")
    answer = await reader.read()
    writer.close()
    return int(answer.split(b" ")[1])


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9090", "10.1.2.3", "[::1]:9090", "[fd00::7]", "localhost", "LocalHost.:9090", "router.local:80"],
)
async def test_it_is_asked_by_address_or_by_a_name_of_its_own(host):
    server = Admin(FakeSource(), ["Router.local"])
    await server.start("127.0.0.1:0")
    assert await _raw(server, f"GET /metrics HTTP/1.1\nHost: {host}") == 200
    assert await _raw(server, f"GET http://{host}/metrics HTTP/1.1\nHost: {host}") == 200
    assert await _raw(server, f"GET /metrics HTTP/1.1\nHost: {host}\nOrigin: http://{host.upper()}") == 200
    assert await _raw(server, f"GET /metrics HTTP/1.1\nHost: {host}\nOrigin: http://evil.example") == 403
    assert await _raw(server, f"GET /metrics HTTP/1.1\nHost: {host}\nOrigin: null") == 403
    await server.close()


@pytest.mark.parametrize(
    "host",
    [
        *("evil.example", "evil.example:9090", "localhost.evil.example", "127.0.0.1.evil.example", "[evil.example]"),
        *("127.0.0.1@evil.example", "evil.example#127.0.0.1", "127.0.0.1, evil.example", "127.1", "0x7f000001"),
        *("[::1", "::1", "", "localhost:80:80", "127.0.0.1:x"),
    ],
)
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/metrics", "/policy", "/debug/decisions", "/nothing"])
async def test_a_name_that_a_page_elsewhere_may_own_is_refused(admin, host, path):
    assert await _raw(admin, f"GET {path} HTTP/1.1\nHost: {host}") == 421
    assert await _raw(admin, f"GET http://{host}{path} HTTP/1.1\nHost: 127.0.0.1") == 421


async def test_heads_that_two_readers_would_read_in_two_ways_are_refused(admin):
    assert await _raw(admin, "GET /livez HTTP/1.1\nHost: 127.0.0.1\nHost: evil.example") == 400
    assert await _raw(admin, "GET /livez HTTP/1.1\nHost : evil.example") == 400
    assert await _raw(admin, "GET /livez HTTP/1.1\nHost: 127.0.0.1\n folded") == 400


async def test_a_probe_may_name_no_host(admin):
    assert await _raw(admin, "GET /livez HTTP/1.0") == 200
    assert await _raw(admin, "GET /livez HTTP/1.0\nUser-Agent: probe") == 200


def test_the_name_that_it_listens_on_is_its_own(tmp_path):
    options = Options(tmp_path, "127.0.0.1:0", admin="router.local:9090", admin_hosts=("pointsman-admin",))
    assert options.admin_names == ("pointsman-admin", "router.local")
    assert Options(tmp_path, "127.0.0.1:0", admin=f"unix:{tmp_path}/a").admin_names == ()
    assert Options(tmp_path, "127.0.0.1:0", admin=":9090").admin_names == ()
    assert Options(tmp_path, "127.0.0.1:0").admin_names == ()


@pytest.mark.parametrize("turns", range(8))
async def test_who_comes_while_it_closes_is_answered_by_it_or_by_the_next(tmp_path, turns):
    """Whatever asyncio has made of a connection by then: accepted, a transport, a task."""
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "admin.sock"))
        first, second = Admin(FakeSource()), Admin(FakeSource())
        await first.start(listening.dup())
        reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock")
        writer.write(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n")
        for _ in range(turns):
            await asyncio.sleep(0)
        await first.close()
        await second.start(listening.dup())
        assert (await asyncio.wait_for(reader.read(), PATIENCE)).endswith(b"ok\n")
        writer.close()
        await second.close()


async def test_a_long_answer_is_whole_though_it_closes(tmp_path, monkeypatch):
    monkeypatch.setattr(FakeSource, "policy_text", lambda self: b"x" * 3_000_000)
    server = Admin(FakeSource())
    await server.start(f"unix:{tmp_path}/admin.sock")
    reader, writer = await asyncio.open_unix_connection(tmp_path / "admin.sock", limit=1000)
    writer.write(b"GET /policy HTTP/1.1\r\n\r\n")
    await reader.readuntil(b"\r\n\r\n")
    closing = asyncio.create_task(server.close(PATIENCE))
    assert len(await asyncio.wait_for(reader.read(), PATIENCE)) == 3_000_000
    await closing
    writer.close()
