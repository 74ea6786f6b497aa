"""Agents keep their model: through a real Envoy, two replicas, with nonces, across a reload that adds a model."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from config.watch import load
from tests.extproc.live import Router, echoes, envoy, router
from tests.ports import free_port
from tests.signals.state.test_session import AGENTS, TURNS, chat, claude_code, codex
from tests.signals.state.test_store import Server, needs_server

pytestmark = pytest.mark.e2e

JSON = dict[str, Any]

POLICY = """\
version: 1
models:
  small: {{name: m-small, aliases: ["claude-haiku-*"], context: 32768}}
  large: {{name: m-large, context: 131072, capabilities: [tools, vision]}}
  third: {{name: m-third}}
default: small
signals:
  evil: {{keyword: {{any: [evil plan], in: all}}}}
  code: {{keyword: {{any: [write code]}}}}
  st: {{keyword: {{any: [issue, tell me], in: all}}}}
decisions:
  - {{name: guard, when: evil, on_unknown: match, respond: {{status: 403}}}}
  - {{name: code, when: code, route: large, sticky: {{by: session, until: 10m}}}}
  - {{name: agents, when: st, route: {{pick: {pick}, sticky: session}}}}
settings: {{deadline: 2s, {store}}}
"""


class Agent:
    """One conversation of a well-known agent, in its way of saying which it is; `number` makes it a new one."""

    def __init__(self, number: int) -> None:
        self.session = str(uuid.uuid5(uuid.NAMESPACE_URL, f"agent {number}"))
        self.number = number
        self._kind = number % 5

    def call(self, turn: int) -> tuple[str, JSON, dict[str, str]]:
        nonce = uuid.uuid4().hex[:5]
        if self._kind == 0:  # Claude Code, whose gateway dropped everything that names the session
            return "/v1/messages", claude_code(nonce, self.number, turn), {}
        if self._kind == 1:  # Claude Code as it is
            user = f'{{"device_id":"d","account_uuid":"","session_id":"{self.session}"}}'
            body = claude_code(nonce, self.number, turn) | {"metadata": {"user_id": user}}
            return "/v1/messages", body, {"x-claude-code-session-id": self.session}
        if self._kind == 2:  # Codex
            body = codex(nonce, self.number, turn) | {"prompt_cache_key": self.session}
            return "/v1/responses", body, {"session-id": self.session}
        if self._kind == 3:  # opencode
            affinity = {"x-session-affinity": self.session, "x-session-id": self.session}
            return "/v1/chat/completions", chat(nonce, self.number, turn), affinity
        return "/v1/chat/completions", chat(nonce, self.number, turn), {}  # some other, that says nothing


class Gateway:
    """Envoy before two routers of one policy file, which take turns."""

    def __init__(self, base: str, routers: list[Router], policy: Path, client: aiohttp.ClientSession) -> None:
        self.base = base
        self.routers = routers
        self.policy = policy
        self.client = client

    async def ask(self, path: str, body: JSON, headers: dict[str, str]) -> tuple[int, str | None, str | None]:
        """Status, decision and model."""
        async with self.client.post(self.base + path, json=body, headers=headers) as answer:
            told = answer.headers
            return answer.status, told.get("x-pointsman-decision"), told.get("x-pointsman-model")

    async def turns(self, agents: list[Agent], turns: range) -> dict[int, set[str | None]]:
        """The models of each agent over these turns, all agents at once."""

        async def one(agent: Agent) -> set[str | None]:
            models = set()
            for turn in turns:
                status, decision, model = await self.ask(*agent.call(turn))
                assert (status, decision) == (200, "agents")
                models.add(model)
            return models

        return dict(zip([agent.number for agent in agents], await asyncio.gather(*map(one, agents)), strict=True))

    async def reload(self, text: str) -> None:
        reloads = [await each.reloads() for each in self.routers]
        self.policy.write_text(text)
        for each, times in zip(self.routers, reloads, strict=True):
            await each.reloaded(times + 1)

    async def decided(self) -> list[float]:
        """How many requests each router has decided."""
        samples = [await each.metrics() for each in self.routers]
        return [sum(v for k, v in each.items() if k.startswith("pointsman_decisions_total")) for each in samples]


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    server = Server(free_port(), tmp_path)
    server.start()
    yield server
    server.kill()


async def gateway(stack: AsyncExitStack, text: str, tmp_path: Path) -> Gateway:
    policy = tmp_path / "policy.yaml"
    policy.write_text(text)
    engine = load(policy).engine
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    starting = [stack.enter_async_context(router(policy, tmp_path / name)) for name in ("a", "b")]
    routers = list(await asyncio.gather(*starting))
    upstreams = await stack.enter_async_context(echoes(engine))

    def both(rendered: JSON) -> None:
        cluster = next(c for c in rendered["static_resources"]["clusters"] if c["name"] == "pointsman")
        (endpoints,) = cluster["load_assignment"]["endpoints"]
        (first,) = endpoints["lb_endpoints"]
        other = {"endpoint": {"address": {"pipe": {"path": routers[1].listen.removeprefix("unix:")}}}}
        endpoints["lb_endpoints"] = [first, other]

    base = await stack.enter_async_context(envoy(engine, routers[0].listen, upstreams, tmp_path, change=both))
    client = await stack.enter_async_context(aiohttp.ClientSession())
    return Gateway(base, routers, policy, client)


def new(first: int, count: int = AGENTS) -> list[Agent]:
    return [Agent(number) for number in range(first, first + count)]


@needs_server
async def test_agents_keep_their_model_and_sessions_their_decision(server: Server, tmp_path: Path) -> None:
    """One gateway for all of it, since it takes seconds to start."""
    shared = f'store: {{url: "{server.url}", timeout: 1s}}'
    alone = POLICY.format(pick="[small, large]", store="")
    async with AsyncExitStack() as stack:
        made = await gateway(stack, alone, tmp_path)
        await replicas_choose_alike_without_a_store(made, alone)
        await made.reload(POLICY.format(pick="[small, large]", store=shared))
        await agents_stay_when_a_reload_adds_a_model(made, POLICY.format(pick="[small, large, third]", store=shared))
        await a_session_keeps_its_decision_and_its_guards(made)
        await models_are_listed_and_called_by_their_aliases(made)


CHAINED = """\
version: 1
models: {{small: {{name: m-small}}, large: {{name: m-large}}}}
default: small
signals:
  code: {{keyword: {{any: [write code]}}}}
decisions:
  - {{name: code, when: code, route: large, sticky: session}}
  - {{name: agents, route: {{pick: [small, large], sticky: session}}}}
settings: {{deadline: 2s, response_headers: {shown}, {store}}}
"""


@needs_server
@pytest.mark.parametrize("stream", [False, True])
async def test_a_chain_of_responses_is_one_session(server: Server, tmp_path: Path, stream: bool) -> None:
    """Each turn names but the response before it, and comes to either replica."""
    store = f'store: {{url: "{server.url}", timeout: 1s}}'
    async with AsyncExitStack() as stack:
        made = await gateway(stack, CHAINED.format(store=store, shown="true" if stream else "false"), tmp_path)

        async def turns(number: int) -> list[str]:
            """The models of one chain's answers; in the second turn it asks for code."""
            names, before = [], None
            for turn in range(TURNS):
                said = "write code" if turn == 1 and number % 2 else f"turn {turn} {uuid.uuid4().hex}"
                body = {"model": "auto", "stream": stream, "input": f"chain {number}" if turn == 0 else said}
                if before is not None:
                    body["previous_response_id"] = before
                async with made.client.post(f"{made.base}/v1/responses", json=body) as answer:
                    text = await answer.text()
                assert answer.status == 200, text
                if stream:
                    text = next(line for line in text.splitlines() if "response.completed" in line and "data:" in line)
                whole = json.loads(text.removeprefix("data: "))
                whole = whole.get("response", whole)
                before = whole["id"]
                names.append(whole["model"])
            return names

        chains = await asyncio.gather(*map(turns, range(AGENTS)))
        for number, names in enumerate(chains):
            assert len({*names[1:]}) == 1, names
            if number % 2:
                assert names[1] == "m-large", "the decision is kept"
            else:
                assert names[0] == names[1], names
        assert {names[0] for names in chains} == {"m-small", "m-large"}
        assert min(await made.decided()) > 10, "both replicas took part"


async def replicas_choose_alike_without_a_store(made: Gateway, text: str) -> None:
    agents = new(0)
    models = await made.turns(agents, range(TURNS // 2))
    await made.reload(text.replace("third: {", "fourth: {}\n  third: {"))
    assert await made.turns(agents, range(TURNS // 2, TURNS)) == models
    assert all(len(each) == 1 for each in models.values()), models
    assert min(await made.decided()) > 10, "both replicas took part"


async def agents_stay_when_a_reload_adds_a_model(made: Gateway, text: str) -> None:
    agents = new(100)
    models = await made.turns(agents, range(TURNS // 2))
    assert all(len(each) == 1 for each in models.values()), models
    assert len(set.union(*models.values())) == 2
    await made.reload(text)
    assert await made.turns(agents, range(TURNS // 2, TURNS)) == models
    fresh = await made.turns(new(200, 30), range(1))
    assert {"third"} in fresh.values()


async def a_session_keeps_its_decision_and_its_guards(made: Gateway) -> None:
    async def say(text: str, session: str = "s") -> tuple[int, str | None, str | None]:
        body = {"model": "AUTO", "messages": [{"role": "user", "content": text}]}
        return await made.ask("/v1/chat/completions", body, {"x-session-id": session})

    for _ in range(3):  # whichever replica it comes to
        assert await say("commit it") == (200, None, "small")
    assert await say("write code") == (200, "code", "large")
    for _ in range(4):
        assert await say("commit it") == (200, "code", "large")
    assert (await say("an evil plan"))[0] == 403
    assert await say("commit it") == (200, "code", "large")
    assert await say("commit it", "other") == (200, None, "small")


async def models_are_listed_and_called_by_their_aliases(made: Gateway) -> None:
    async with made.client.get(f"{made.base}/v1/models") as answer:
        entries = {entry["id"]: entry for entry in (await answer.json())["data"]}
    assert entries["m-large"]["context_length"] == entries["auto"]["max_model_len"] == 131072
    assert entries["large"]["capabilities"] == ["tools", "vision"]
    headers = {"anthropic-version": "2023-06-01"}
    async with made.client.get(f"{made.base}/v1/models/claude-haiku-4-5", headers=headers) as answer:
        assert (await answer.json())["max_input_tokens"] == 32768
    for model in ("claude-haiku-4-5", "Auto"):
        body = {"model": model, "messages": [{"role": "user", "content": "hi"}]}
        assert (await made.ask("/v1/chat/completions", body, {}))[::2] == (200, "small")
