"""Requests of an agent's loop, sent on to the model that was chosen for each."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from signals.state.session import USUAL
from stepwise.agent import Agent, Spend
from stepwise.relay import Loop as Writer
from stepwise.spec import StepwiseSpec
from tests.stepwise.fakes import FakeModel, Fault, served, text_of, writer
from tests.stepwise.test_agent import SMOOTH, STUCK
from upstream.answer import Answer
from upstream.writer import Call

TEXT = "Done: the build is green again."
S = {"x-session-id": "s", "authorization": "Bearer k", "cookie": "c"}


async def relay(agent: Agent, body: dict[str, Any], headers: dict[str, str], **more: Any) -> Answer:
    return await Writer(agent).answer(Call(body, headers, session=headers.get("x-session-id", ""), **more))


@dataclass
class Loop:
    small: FakeModel
    large: FakeModel
    agent: Agent
    spend: Spend

    async def ask(self, body: dict[str, Any], headers: dict[str, str] = S) -> tuple[int, dict[str, str], bytes]:
        reply = await relay(self.agent, body, headers)
        async with reply:
            return reply.status, dict(reply.headers), b"".join([part async for part in reply.body])


@asynccontextmanager
async def loop(**block: Any) -> AsyncIterator[Loop]:
    small, large = FakeModel("tiny", writer([TEXT])), FakeModel("huge", writer([TEXT]))
    await small.start()
    await large.start()
    spec = StepwiseSpec.model_validate({"small": "small", "large": "large", "per": "request", **block})
    spend = Spend()
    agent = Agent(spec.loop(Path()), {"small": small.endpoint(), "large": large.endpoint()}, spend)
    try:
        yield Loop(small, large, agent, spend)
    finally:
        await agent.close()
        for _ in range(500):
            if not small.connections and not large.connections:
                break
            await asyncio.sleep(0.01)
        assert (small.connections, large.connections) == (0, 0)
        await small.stop()
        await large.stop()


def events(data: bytes) -> list[dict[str, Any]]:
    parts = data.decode().strip().split("\n\n")
    assert parts[-1] == "data: [DONE]"
    return [json.loads(part.removeprefix("data: ")) for part in parts[:-1]]


async def test_an_answer_passes_untouched_and_its_usage_is_what_the_session_has_spent() -> None:
    async with loop(budget={"session": 1.0}) as agent:
        status, headers, data = await agent.ask(SMOOTH)
        usage = json.loads(data)["usage"]
        assert (status, headers["x-pointsman-model"]) == (200, "small")
        assert json.loads(data)["choices"][0]["message"]["content"] == TEXT
        assert await agent.spend.spent("s") == pytest.approx(
            (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6
        )
        sent = agent.small.requests[0]
        assert (sent["model"], sent["tools"], sent["messages"]) == ("tiny", SMOOTH["tools"], SMOOTH["messages"])
        head = agent.small.heads[0]
        assert (head["authorization"], head["x-pointsman-hop"], head.get("cookie")) == ("Bearer k", "1", None)


@pytest.mark.parametrize("asked", [True, False])
async def test_a_stream_shows_its_usage_only_to_who_asked_and_is_settled_either_way(asked: bool) -> None:
    async with loop(budget={"session": 1.0}) as agent:
        more = {"stream_options": {"include_usage": True}} if asked else {}
        _, headers, data = await agent.ask({**SMOOTH, "stream": True, **more})
        found = events(data)
        assert headers["content-type"].startswith("text/event-stream")
        assert text_of([event for event in found if event["choices"] and event["choices"][0].get("delta")]) == TEXT
        assert any("usage" in event for event in found) == asked
        assert 0 < await agent.spend.spent("s") < 1e-3


async def test_trouble_goes_to_the_large_model_and_is_remembered() -> None:
    async with loop() as agent:
        assert (await agent.ask(STUCK))[1]["x-pointsman-model"] == "large"
        assert (await agent.ask(SMOOTH))[1]["x-pointsman-model"] == "small"
        assert agent.agent._writers["s"] == ["large", "small"]
        assert agent.agent.metrics.choices["large", "rule"] == 1


async def test_effort_goes_into_the_body() -> None:
    async with loop(choose="effort") as agent:
        _, headers, _ = await agent.ask(STUCK)
        assert agent.large.requests[0]["reasoning_effort"] == headers["x-pointsman-effort"] != "low"
        _, headers, _ = await agent.ask({**SMOOTH, "reasoning_effort": "high"})
        assert agent.large.requests[1]["reasoning_effort"] == headers["x-pointsman-effort"] == "low"


async def test_a_session_without_money_left_is_refused_and_others_are_not() -> None:
    async with loop(budget={"session": 0.002}) as agent:
        await agent.spend.reserve("s", 0.002, 1.0)
        status, _, data = await agent.ask(SMOOTH)
        assert (status, json.loads(data)["error"]["code"]) == (429, "budget_exhausted")
        assert not agent.small.requests
        status, _, _ = await agent.ask({**SMOOTH, "max_tokens": 50}, {"x-session-id": "other"})
        assert status == 200


async def test_the_answer_s_length_is_limited_to_what_was_reserved() -> None:
    async with loop(budget={"session": 0.002}) as agent:
        await agent.ask(SMOOTH)
        assert 0 < agent.small.requests[0]["max_tokens"] < 1000


async def test_what_failed_costs_nothing() -> None:
    async with loop(budget={"session": 1.0}) as agent:
        agent.small.faults = {0: Fault("kill"), 1: Fault("status", status=400)}
        status, _, data = await agent.ask(SMOOTH)
        assert (status, json.loads(data)["error"]["code"]) == (502, "upstream_error")
        assert await agent.spend.spent("s") == 0
        status, _, data = await agent.ask(SMOOTH)
        assert (status, json.loads(data)["error"]["code"]) == (400, "y")
        assert await agent.spend.spent("s") == 0


async def test_a_stream_that_breaks_off_ends_with_an_error_and_keeps_what_was_reserved() -> None:
    async with loop(budget={"session": 1.0}) as agent:
        agent.small.faults = {0: Fault("kill", 2)}
        _, _, data = await agent.ask({**SMOOTH, "stream": True})
        assert events(data)[-1]["error"]["code"] == "upstream_error"
        assert await agent.spend.spent("s") > 1e-3


async def test_a_client_that_goes_stops_the_model() -> None:
    async with loop() as agent:
        agent.small.faults = {0: Fault("hang", 2)}
        reply = await relay(agent.agent, {**SMOOTH, "stream": True}, S)
        await anext(reply.body)
        await reply.aclose()
        await reply.aclose()
        with pytest.raises(StopAsyncIteration):
            await anext(reply.body)
        assert agent.agent.metrics.answers == {"cancelled": 1}


async def test_it_is_served_over_http_too() -> None:
    async with loop() as agent:
        headers = {"x-pointsman-decision": "agents", "session-id": "s"}  # Codex's name for it
        async with served({"agents": Writer(agent.agent)}) as base, aiohttp.ClientSession(headers=headers) as http:
            url = f"{base}/v1/chat/completions"
            async with http.post(url, json=STUCK) as reply:
                assert (reply.status, reply.headers["x-pointsman-model"]) == (200, "large")
                assert (await reply.json())["choices"][0]["message"]["content"] == TEXT
            async with http.post(url, json={"prompt": "x"}) as reply:
                assert reply.status == 400
            async with http.post(url, json={**STUCK, "stream": True}) as reply:
                comments = [line for line in (await reply.text()).splitlines() if line.startswith(": ")]
        assert list(agent.agent._writers) == [USUAL.named({"session-id": "s"})]  # named as in the exchange
        assert json.loads(comments[0].removeprefix(": "))["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("usage", [True, False])
async def test_whoever_pays_is_told_what_it_cost(stream: bool, usage: bool) -> None:
    costs: list[float] = []
    async with loop() as agent:
        agent.small.usage = usage
        reply = await relay(agent.agent, {**SMOOTH, "stream": stream}, S, charge=lambda bill: costs.append(bill.money))
        data = b"".join([part async for part in reply.body])
        await reply.aclose()
    (cost,) = costs
    written = len(TEXT.split())
    least = 2 * written / 1e6
    assert least < cost < 200 * least
    assert b'"usage"' not in data or not stream


async def test_a_second_pass_and_other_requests_are_left_alone() -> None:
    async with loop() as agent:
        assert Writer(agent.agent).unfit(Call(SMOOTH, {"x-pointsman-hop": "1"})) == "hop"
        assert Writer(agent.agent).unfit(Call({"prompt": "x"}, {})) == "not_chat"
