from __future__ import annotations

import asyncio
import json
import socket
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import aiohttp
import jsonschema
import pytest

from config.build import build
from config.load import parse
from decisions import learned
from decisions.grading import Taken
from decisions.selectors.selector import Graded
from extproc.admin.callers import Callers
from extproc.admin.openapi import SCHEMAS
from extproc.admin.port import MAX_BODY_BYTES, MAX_CONNECTIONS, MAX_FOLLOWERS, Admin, News, Status
from extproc.records.metrics import Metrics, Snapshot
from extproc.serving.server import Options, followed
from signals.reading import Unavailable
from tests.extproc.live import policy
from tests.patience import PATIENCE

DECISION = {
    "key": "7-1",
    "decision": "gold",
    "action": "route",
    "policy": "",
    "signals": {"gold": {"matched": True, "score": 1.0, "label": None, "error": None, "evidence": []}},
    "rules": [{"decision": "gold", "result": True}],
}


class FakeSource:
    ready = True
    engine = build(parse(policy().encode(), "policy.yaml"))

    async def since(self, seen: Mapping[str, int], limit: int) -> News:
        """One decision after the other, and three that were missed at first."""
        last = seen.get("7", 0) + 1
        return News({"7": last}, [{"key": f"7-{last}", "decision": "code", "limit": limit}], 0 if seen else 3)

    async def status(self) -> Status:
        return Status(self.ready, "sha256:abc", {"pid": 7})

    async def snapshot(self) -> Snapshot:
        return Metrics().snapshot()

    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        if limit == 13:
            raise RuntimeError("a broken view")
        return [{"decision": "code"}] * min(limit, 2)

    async def drop(self, decision: str | None, scope: str | None) -> int:
        if decision == "away":
            raise Unavailable("store_down")
        return len((decision or "") + (scope or ""))

    async def grade(self, grades: Sequence[Any]) -> list[Taken]:
        if grades == ["away"]:
            raise Unavailable("store_down")
        return ["taken" if isinstance(grade, dict) else "invalid_feedback" for grade in grades]

    async def learned(self, decision: str | None) -> dict[str, Any]:
        return await learned.learned(self.engine, decision)

    async def take_in(self, state: Any) -> int:
        return await learned.take_in(self.engine, state)

    async def forget(self, decision: str | None) -> list[str]:
        return await learned.forget(self.engine, decision)

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
    assert (await _get(admin, "/cache?decision=away", "DELETE"))[0] == 503
    for method in ("GET", "POST"):
        assert (await _get(admin, "/cache", method))[0] == 405
    assert (await _get(admin, "/metrics", "DELETE"))[0] == 405


async def test_grades_come_in_any_number(admin):
    told = {"taken": 2, "refused": [{"at": 1, "why": "invalid_feedback"}]}
    assert await _post(admin, "/feedback", [{"id": "a"}, 3, {"id": "b"}]) == (200, told)
    assert await _post(admin, "/feedback", []) == (200, {"taken": 0, "refused": []})
    assert (await _post(admin, "/feedback", {"id": "a", "score": 1}))[0] == 400
    assert (await _post(admin, "/feedback", ["away"]))[0] == 503


LEARNING = """\
version: 1
models: {small: {quality: 0.6}, large: {quality: 0.5}}
default: small
signals: {one: {header: {name: x-one, exists: true}}}
decisions:
- {name: one, when: one, route: {pick: [small, large], by: ema, sticky: session}}
- {name: two, route: {pick: [small, large], by: bandit}}
"""


async def test_what_was_learned_is_taken_out_and_in_and_forgotten(admin, monkeypatch):
    first, second = (build(parse(LEARNING)) for _ in range(2))
    monkeypatch.setattr(FakeSource, "engine", first)
    for score in (1.0, 0.0, 0.0):
        first.selectors["one"].grade(Graded("small", ""), score)
        first.selectors["two"].grade(Graded("large", [(0, 1.0)]), score)
    status, state = await _shown(admin, "/selection")
    assert status == 200
    jsonschema.validate(state, {**SCHEMAS["Learned"], "components": {"schemas": SCHEMAS}})
    assert state["decisions"]["one"]["models"] == {
        "small": {"grades": pytest.approx(3, abs=1e-3), "quality": pytest.approx(2.2 / 5, abs=1e-3)},
        "large": {"grades": 0, "quality": 0.5},
    }
    assert state["decisions"]["two"]["models"]["large"] == {
        "grades": pytest.approx(3, abs=1e-3),
        "quality": pytest.approx(3 / 7, abs=1e-3),
    }
    assert set((await _shown(admin, "/selection?decision=one"))[1]["decisions"]) == {"one"}

    monkeypatch.setattr(FakeSource, "engine", second)
    assert await _post(admin, "/selection", state) == (200, {"candidates": 2})
    again = (await _shown(admin, "/selection"))[1]["decisions"]
    for name in ("one", "two"):
        for key, sums in state["decisions"][name]["sums"].items():
            assert again[name]["sums"][key] == pytest.approx(sums, abs=1e-3), name

    wrong = {**state, "decisions": {**state["decisions"], "two": {**state["decisions"]["two"], "by": "ema"}}}
    short = {"by": "ema", "size": 2, "sums": {"|a": [1]}}
    two = state["decisions"]["two"]
    beyond = {"decisions": {"two": {**two, "sums": {"small": [1e13] * two["size"]}}}}
    for bad in (wrong, {}, {"decisions": {"none": {}}}, {"decisions": {"one": short}}, beyond):
        assert (await _post(admin, "/selection", bad))[0] == 400, bad
    sums = (await _shown(admin, "/selection"))[1]["decisions"]["one"]["sums"]
    assert sums["|small"] == pytest.approx(again["one"]["sums"]["|small"], abs=1e-3), "nothing was added"

    assert json.loads((await _get(admin, "/selection?decision=one", "DELETE"))[1]) == {"forgotten": ["one"]}
    left = (await _shown(admin, "/selection"))[1]["decisions"]
    assert (left["one"]["sums"], set(left["two"]["sums"])) == ({}, {"large"})
    assert (await _get(admin, "/selection?decision=none", "DELETE"))[0] == 400
    assert (await _get(admin, "/selection?desicion=one", "DELETE"))[0] == 400
    assert json.loads((await _get(admin, "/selection", "DELETE"))[1]) == {"forgotten": ["one", "two"]}


async def _shown(admin: Admin, path: str) -> tuple[int, Any]:
    status, text = await _get(admin, path)
    return status, json.loads(text)


async def test_not_ready_is_503(admin, monkeypatch):
    monkeypatch.setattr(FakeSource, "ready", False)
    status, _ = await _get(admin, "/readyz")
    assert status == 503


async def test_wrong_requests_get_their_status(admin):
    assert (await _get(admin, "/nothing"))[0] == 404
    assert (await _get(admin, "/livez", "POST"))[0] == 405
    assert await _get(admin, "/debug/decisions?limit=many") == (400, "limit: an integer is needed\n")
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
    monkeypatch.setattr("extproc.admin.port.TIMEOUT_S", 0.2)
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
    server = Admin(FakeSource(), Callers(["Router.local"]))
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


async def test_a_follower_gets_decisions_as_they_are_made(admin, monkeypatch):
    monkeypatch.setattr("extproc.admin.port.FOLLOW_S", 0.01)
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{admin.address}/debug/decisions?follow&limit=5") as answer,
    ):
        assert (answer.status, answer.content_type) == (200, "text/event-stream")
        events = [(await answer.content.readuntil(b"\n\n")).decode().split("\n")[:-2] for _ in range(4)]
    assert events[0][0].startswith(":")
    assert events[1] == ["event: missed", "data: 3"]
    assert events[2][0] == "id: 7-1"
    assert json.loads(events[2][1].removeprefix("data: ")) == {"key": "7-1", "decision": "code", "limit": 5}
    assert json.loads(events[3][1].removeprefix("data: "))["limit"] == 0  # only the first look goes back


async def test_followers_are_bounded_and_leave_room_when_they_go(admin, monkeypatch):
    monkeypatch.setattr("extproc.admin.port.FOLLOW_S", 0.01)
    url = f"http://{admin.address}/debug/decisions?follow"
    async with aiohttp.ClientSession() as session:
        answers = [await session.get(url) for _ in range(MAX_FOLLOWERS)]
        for answer in answers:
            await answer.content.readuntil(b"id: 7-1")
        async with session.get(url) as one_more:
            assert (one_more.status, one_more.headers["retry-after"]) == (503, "10")
        assert (await _get(admin, "/livez"))[0] == 200
        for answer in answers:
            answer.close()
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession() as session:
        while True:
            async with session.get(url) as again:
                if again.status == 200:
                    break
            await asyncio.sleep(0.01)


async def test_a_follower_does_not_keep_it_from_closing(monkeypatch):
    monkeypatch.setattr("extproc.admin.port.FOLLOW_S", PATIENCE)
    server = Admin(FakeSource())
    await server.start("127.0.0.1:0")
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.address}/debug/decisions?follow") as answer,
    ):
        await answer.content.readuntil(b"id: 7-1")
        await asyncio.wait_for(server.close(PATIENCE), PATIENCE / 10)
        await answer.content.read()
        assert answer.content.at_eof()


async def _post(admin: Admin, path: str, body: Any) -> tuple[int, Any]:
    data = body if isinstance(body, bytes) else json.dumps(body)
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"http://{admin.address}{path}", data=data) as answer,
    ):
        return answer.status, await (answer.json() if answer.content_type == "application/json" else answer.text())


async def test_a_decision_is_told_with_its_rules(admin):
    decided = {**DECISION, "policy": FakeSource.engine.policy}
    leaf = {"text": "gold", "signal": "gold", "value": "true", "said": "true, score 1"}
    told = {"decision": "gold", "value": "true", "does": "route large", "notes": [], "rule": leaf}
    assert await _post(admin, "/debug/tree", decided) == (200, {"tree": [told]})
    status, why = await _post(admin, "/debug/tree", DECISION)
    assert (status, why["policy"]) == (409, FakeSource.engine.policy)


@pytest.mark.parametrize(
    "change",
    [
        *({"signals": []}, {"rules": {}}, {"decision": 3}, {"signals": {"gold": 1}}, {"rules": [1]}, {"rules": [{}]}),
        *({"signals": {"gold": {"score": "x"}}}, {"signals": {"gold": {"label": 1}}}),
        *({"rules": [{"decision": "gold", "result": "true"}]}, {"action": []}, {"fallback": 1}),
    ],
)
async def test_what_is_no_decision_is_refused(admin, change):
    decided = {**DECISION, "policy": FakeSource.engine.policy, **change}
    assert (await _post(admin, "/debug/tree", decided))[0] == 400


async def test_a_decision_of_many_levels_is_refused(admin):
    decided = {**DECISION, "policy": FakeSource.engine.policy, "signals": {"gold": {"evidence": ["?"]}}}
    deep = json.dumps(decided).replace('"?"', "[" * 100_000 + "]" * 100_000).encode()
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(1_000)  # as a router has it: other tests raise it
    try:
        assert (await _post(admin, "/debug/tree", deep))[0] == 400
    finally:
        sys.setrecursionlimit(limit)


async def test_bodies_are_bounded_and_say_their_length(admin):
    assert (await _post(admin, "/debug/tree", b"[]"))[0] == 400
    status, why = await _post(admin, "/debug/tree", b"{")
    assert (status, why.partition(": ")[0]) == (400, "the body is not JSON")
    head = "POST /debug/tree HTTP/1.1\nHost: localhost\n"
    assert await _raw(admin, f"{head}Content-Length: {MAX_BODY_BYTES + 1}") == 400
    assert await _raw(admin, f"{head}Content-Length: -1") == 400
    assert await _raw(admin, f"{head}Content-Length: {'0' * 30}{MAX_BODY_BYTES + 1}") == 400
    assert await _raw(admin, f"{head}Transfer-Encoding: chunked") == 400


async def test_the_policy_comes_as_an_object_too(admin):
    status, body = await _get(admin, "/policy?form=json")
    found = json.loads(body)
    assert status == 200
    assert [each["name"] for each in found["models"]] == ["small", "large"]
    assert found["decisions"][0]["rule"] == "gold"
    assert found["signals"][0]["used_by"] == ["gold"]
    assert (await _get(admin, "/policy?form=xml"))[0] == 400


async def test_outcomes_are_sums_and_points_in_time(admin):
    status, body = await _get(admin, "/outcomes")
    assert (status, json.loads(body)["total"]["requests"]) == (200, 0)
    assert await _get(admin, "/outcomes?after=now") == (400, "after: seconds since the epoch are needed\n")


async def test_pictures_and_scripts_of_other_sites_get_nothing(admin):
    head = "GET /policy HTTP/1.1\nHost: localhost\nSec-Fetch-Site: cross-site\n"
    assert await _raw(admin, f"{head}Sec-Fetch-Mode: no-cors") == 403
    assert await _raw(admin, f"{head}Sec-Fetch-Mode: navigate") == 200


def test_a_follower_sees_the_decisions_of_all_workers_in_order():
    def made(*times: int) -> list[dict[str, Any]]:
        return [{"time": time} for time in sorted(times, reverse=True)]

    first = followed({}, {"7": (40, made(1, 4)), "8": (2, made(2, 3))}, 3)
    assert first == ({"7": 40, "8": 2}, made(2, 3, 4)[::-1], 0)
    assert followed({}, {"7": (40, [])}, 0) == ({"7": 40}, [], 0)
    # One worker kept two of three, one is gone, a new one came.
    later = followed({"7": 40, "8": 2}, {"7": (43, made(6, 5)), "9": (1, made(7))}, 0)
    assert later == ({"7": 43, "9": 1}, made(5, 6, 7)[::-1], 1)
