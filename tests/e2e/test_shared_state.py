"""Two routers behind one Envoy share budgets and sessions in a real Redis-compatible server, which may go and come."""

from __future__ import annotations

import asyncio
import signal
from contextlib import AsyncExitStack
from typing import Any

import aiohttp
import pytest

from config.watch import load
from signals.state.store import PREFIX, Valkey
from tests.extproc.live import chat, echoes, envoy, eventually, router
from tests.patience import PATIENCE
from tests.ports import free_port
from tests.signals.state.test_store import Server, needs_server

pytestmark = [pytest.mark.e2e, needs_server]

POLICY = """\
version: 1
models:
  small: {{name: m-small, price: {{input: 1000000, output: 1000000}}}}
  large: {{name: m-large, price: {{input: 1000000, output: 1000000}}}}
default: small
signals:
  spent: {{budget: {{header: x-tenant, limit: 1000000000}}}}
decisions:
  - name: broke
    when: spent
    respond: {{status: 402}}
  - name: chat
    route: {{pick: [small, large], by: cheapest, sticky: session}}
settings: {{deadline: 500ms, store: {{url: "{url}", timeout: 250ms}}}}
"""


class Replicas:
    """Envoy in front of two router processes, taking turns; `spent` adds up what answers said they cost."""

    def __init__(self, base: str, routers: list[Any]) -> None:
        self.base = base
        self.routers = routers
        self.spent = 0
        self.models: dict[str, set[str]] = {}
        self.failures: list[object] = []

    async def ask(self, session: aiohttp.ClientSession, conversation: str) -> None:
        headers = {"x-tenant": "acme", "x-session-id": conversation}
        try:
            async with session.post(f"{self.base}/v1/chat/completions", json=chat(), headers=headers) as answer:
                body = await answer.json()
                if answer.status != 200:
                    self.failures.append((answer.status, body))
                    return
                self.spent += body["usage"]["total_tokens"]
                self.models.setdefault(conversation, set()).add(answer.headers["x-pointsman-model"])
        except (aiohttp.ClientError, KeyError, ValueError) as error:
            self.failures.append(error)

    async def many(self, count: int, conversations: int = 20) -> None:
        """`count` requests, eight at a time."""
        async with aiohttp.ClientSession() as session:
            numbers = iter(range(count))

            async def client() -> None:
                for number in numbers:
                    await self.ask(session, f"s{number % conversations}")

            await asyncio.gather(*(client() for _ in range(8)))


async def _replicas(stack: AsyncExitStack, server: Server, tmp_path: Any) -> Replicas:
    text = POLICY.format(url=server.url)
    (tmp_path / "policy.yaml").write_text(text)
    engine = load(tmp_path / "policy.yaml").engine
    routers = []
    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        routers.append(await stack.enter_async_context(router(tmp_path / "policy.yaml", folder)))
    upstreams = await stack.enter_async_context(echoes(engine))

    def both(rendered: dict[str, Any]) -> None:
        cluster = next(c for c in rendered["static_resources"]["clusters"] if c["name"] == "pointsman")
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        (first,) = endpoints["lb_endpoints"]
        other = {"endpoint": {"address": {"pipe": {"path": routers[1].listen.removeprefix("unix:")}}}}
        endpoints["lb_endpoints"] = [first, other]

    base = await stack.enter_async_context(envoy(engine, routers[0].listen, upstreams, tmp_path, change=both))
    return Replicas(base, routers)


async def _total(server: Server) -> float:
    """What the store says that everybody has spent."""
    store = Valkey(server.url, timeout=PATIENCE)
    try:
        keys = [key async for key in store._client.scan_iter(f"{PREFIX}budget:*")]
        return sum([float(await store._client.get(key) or 0) for key in keys])
    finally:
        await store.close()


@pytest.fixture
def server(tmp_path):
    server = Server(free_port(), tmp_path)
    server.start()
    yield server
    server.kill()


async def test_budgets_are_one_sum_and_sessions_stay_when_a_replica_is_killed(server, tmp_path):
    async with AsyncExitStack() as stack:
        replicas = await _replicas(stack, server, tmp_path)
        await replicas.many(300)
        assert replicas.failures == []
        for each in replicas.routers:
            decided = [v for k, v in (await each.metrics()).items() if k.startswith("pointsman_decisions_total")]
            assert sum(decided) > 50, "both replicas took part"

        async def counted() -> bool:
            return abs(await _total(server) - replicas.spent) <= 0.01 * replicas.spent

        await eventually(counted)
        replicas.routers[0].process.send_signal(signal.SIGKILL)
        await replicas.routers[0].process.wait()
        await asyncio.sleep(2.5)  # until Envoy's health checks have noticed
        await replicas.many(100)
        assert replicas.failures == []
        assert all(len(models) == 1 for models in replicas.models.values()), replicas.models
        await eventually(counted)


async def test_no_request_fails_while_the_store_is_away_and_nothing_spent_is_lost(server, tmp_path):
    async with AsyncExitStack() as stack:
        replicas = await _replicas(stack, server, tmp_path)
        await replicas.many(50)

        async def counted() -> bool:
            return abs(await _total(server) - replicas.spent) <= 0.01 * replicas.spent

        await eventually(counted)
        server.kill()  # keeps nothing: what was spent so far is gone with it
        replicas.spent = 0
        await replicas.many(200)
        assert replicas.failures == []
        samples = [await each.metrics() for each in replicas.routers]
        assert sum(sample["pointsman_store_failures{}"] for sample in samples) > 0
        unknown = "pointsman_signal_unknown_total{reason=store_down,signal=spent}"
        assert sum(sample.get(unknown, 0) for sample in samples) > 0
        server.start()
        await replicas.many(100)
        assert replicas.failures == []

        await eventually(counted)
        samples = [await each.metrics() for each in replicas.routers]
        assert sum(sample["pointsman_store_pending{}"] for sample in samples) == 0
