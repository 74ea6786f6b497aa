"""Two routers behind one Envoy learn as one through a real Redis-compatible server; what they have learned is taken out
and in and forgotten; nobody else's grades move it."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cli.main import main
from config.watch import load
from tests.e2e.test_feedback import Client
from tests.extproc.live import Router, echoes, envoy, eventually, router
from tests.ports import free_port
from tests.signals.state.test_store import Server, needs_server

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models: {{small: {{name: m-small, quality: 0.6}}, large: {{name: m-large, quality: 0.5}}}}
default: small
decisions:
  - {{name: learned, route: {{pick: [small, large], by: {by}}}}}
settings: {{deadline: 2s, tenant: {{header: x-tenant}}{store}}}
"""
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "Hello"}]}


@pytest.fixture
def server(tmp_path: Path) -> Any:
    server = Server(free_port(), tmp_path)
    server.start()
    yield server
    server.kill()


async def _post(at: Router, path: str, body: Any) -> tuple[int, Any]:
    connector = aiohttp.UnixConnector(str(at.admin))
    async with (
        aiohttp.ClientSession(connector=connector) as session,
        session.post(f"http://admin{path}", json=body) as answer,
    ):
        return answer.status, await answer.json()


async def _grade(client: Client, tenant: str, **body: Any) -> int:
    url = f"{client.base}/v1/feedback"
    async with client.session.post(url, json=body, headers={"x-tenant": tenant}) as answer:
        await answer.read()
        return answer.status


@pytest.fixture
async def replicas(tmp_path: Path, server: Server) -> AsyncIterator[tuple[Client, list[Router]]]:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(by="{ema: {explore: 0}}", store=f', store: {{url: "{server.url}", timeout: 2s}}'))
    engine = load(policy).engine
    async with AsyncExitStack() as stack:
        routers = []
        for name in ("a", "b"):
            (tmp_path / name).mkdir()
            routers.append(await stack.enter_async_context(router(policy, tmp_path / name)))
        upstreams = await stack.enter_async_context(echoes(engine))

        def both(rendered: dict[str, Any]) -> None:
            cluster = next(c for c in rendered["static_resources"]["clusters"] if c["name"] == "pointsman")
            (endpoints,) = cluster["load_assignment"]["endpoints"]
            other = {"endpoint": {"address": {"pipe": {"path": routers[1].listen.removeprefix("unix:")}}}}
            endpoints["lb_endpoints"].append(other)

        base = await stack.enter_async_context(envoy(engine, routers[0].listen, upstreams, tmp_path, change=both))
        yield Client(base, await stack.enter_async_context(aiohttp.ClientSession())), routers


async def _models(routers: list[Router]) -> list[dict[str, Any]]:
    return [(await each.get("/selection"))[1]["decisions"]["learned"]["models"] for each in routers]


@needs_server
async def test_two_replicas_learn_as_one_and_forged_grades_move_nothing(
    replicas: tuple[Client, list[Router]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    client, routers = replicas
    for _ in range(20):
        model, answer = await client.ask("/v1/chat/completions", CHAT, x_tenant="honest")
        assert await _grade(client, "honest", id=answer, score=float(model == "large")) == 200

    async def learned() -> bool:  # each asks the store once a second, while there are requests
        await _took(client, 4)
        known = [each["small"]["grades"] + each["large"]["grades"] for each in await _models(routers)]
        return known == [pytest.approx(20, abs=0.05)] * 2

    await eventually(learned)
    one, two = await _models(routers)
    assert one["large"]["quality"] > one["small"]["quality"]
    for key in one:
        assert two[key] == {name: pytest.approx(value, abs=1e-3) for name, value in one[key].items()}

    async def settled() -> bool:
        return (await _took(client, 10)) == {"large"}

    await eventually(settled)

    ids = [(await client.ask("/v1/chat/completions", CHAT, x_tenant="honest"))[1] for _ in range(20)]
    told = Counter([await _grade(client, "forger", id=ids[n % 20], score=0) for n in range(1000)])
    assert set(told) <= {404, 429}
    assert told[404] >= 60
    again, _ = await _models(routers)
    assert again["large"] == {name: pytest.approx(value, abs=1e-3) for name, value in one["large"].items()}
    assert await _took(client, 10) == {"large"}

    policy, file = tmp_path / "policy.yaml", tmp_path / "learned.json"
    assert await _run("export", "--policy", policy, "--out", file) == 0
    assert await _run("reset", "--policy", policy) == 0
    assert all(models["large"]["grades"] == 0 for models in await _models(routers))
    assert await _run("import", file, "--policy", policy) == 0
    for models in await _models(routers):
        assert models["large"]["quality"] == pytest.approx(one["large"]["quality"], abs=1e-3)
    capsys.readouterr()
    assert await _run("inspect", "--policy", policy, "-o", "json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["decisions"]["learned"]["models"]["large"]["grades"] == pytest.approx(one["large"]["grades"], abs=0.01)


async def _took(client: Client, count: int) -> set[str]:
    return {(await client.ask("/v1/chat/completions", CHAT, x_tenant="honest"))[0] for _ in range(count)}


async def _run(*arguments: object) -> int:
    return await asyncio.to_thread(main, ["select", *map(str, arguments)])


async def test_workers_without_a_store_are_graded_and_shown_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(POLICY.format(by="bandit", store=""))
    engine = load(policy).engine
    async with AsyncExitStack() as stack:
        port = free_port()
        serving = await stack.enter_async_context(router(policy, tmp_path, "--workers", "2", admin_port=port))
        upstreams = await stack.enter_async_context(echoes(engine))
        base = await stack.enter_async_context(envoy(engine, serving.listen, upstreams, tmp_path))
        client = Client(base, await stack.enter_async_context(aiohttp.ClientSession()))
        await _took(client, 30)
        named = [each["request_id"] for each in (await serving.get("/debug/decisions"))[1]["decisions"]]
        grades = [{"id": each, "score": 1.0, "tenant": "honest"} for each in [*named, "nobody"]]
        url = f"http://127.0.0.1:{port}"
        async with client.session.post(f"{url}/feedback", json=grades) as answer:
            told = await answer.json()
        assert told == {"taken": 30, "refused": [{"at": 30, "why": "unknown_answer"}]}
        models = (await _models([serving]))[0]
        assert sum(of["grades"] for of in models.values()) == pytest.approx(30, abs=0.01)

        async def counted() -> bool:
            found = await serving.metrics()
            each = [value for name, value in found.items() if name.startswith("pointsman_selection_grades_total")]
            return sum(each) == 30

        await eventually(counted)
        standing = "pointsman_selection_standing{decision=learned,model=small}"
        assert 0.5 < (await serving.metrics())[standing] <= 1

        assert await _run("export", "--admin", url, "--out", tmp_path / "learned.json") == 0
        assert await _run("import", tmp_path / "learned.json", "--admin", url) == 1
        assert "without a state store" in capsys.readouterr().err
        assert await _run("reset", "--admin", url, "--decision", "learned") == 0
        assert all(of["grades"] == 0 for of in (await _models([serving]))[0].values())
        assert await _run("reset", "--admin", url, "--decision", "nobody") == 2
        assert await _run("inspect", "--policy", policy) == 2
        assert "no state store" in capsys.readouterr().err
