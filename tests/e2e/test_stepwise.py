"""Stepwise answers, from inside the ext_proc exchange and over HTTP: a real Envoy, the router's own process, the OpenAI
SDK."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest

from tests.e2e.proxy import Envoy, Router, fetch, served, until, written
from tests.stepwise.fakes import FakeModel, Fault, writer
from tests.stepwise.onnxes import write

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {name: tiny, price: {input: 0.05, output: 0.20}, url: "SMALL"}
  large: {name: huge, price: {input: 0.90, output: 0.90}, url: "LARGE"}
default: small
signals:
  math: {keyword: {any: [compute]}}
  agentic: {keyword: {any: [repair]}}
  broke: {budget: {header: x-tenant, limit: 0.001}}
decisions:
  - name: refuse
    when: broke
    respond: {status: 402, message: "The budget is spent."}
  - name: steps
    when: math
    stepwise: {small: small, large: large, policy: math}
  - name: loop
    when: agentic
    stepwise: {small: small, large: large, per: request, budget: {session: 0.01}}
"""
SMALL = ["one and one is two so far", "two ✗ and two is five", "three is fine as it is"]
LARGE = ["ONE and one is two so far", "TWO and two is four", "THREE is fine as it is"]
MIXED = f"{SMALL[0]}\n\n{LARGE[1]}\n\n{SMALL[2]}"


@dataclass
class Parts:
    """Everything that runs."""

    envoy: Envoy
    router: Router
    small: FakeModel
    large: FakeModel
    way: str  # "exchange" or "http"

    def sdk(self) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.envoy.url()}/v1", api_key="k", max_retries=0)


@pytest.fixture(scope="module", params=["exchange", "http"])
def parts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Parts]:
    folder: Path = tmp_path_factory.mktemp("stepwise")
    small, large = FakeModel("tiny", writer(SMALL), delay=0.003), FakeModel("huge", writer(LARGE))
    # Keeps a step unless one of its words was improbable: the fake's ✗ has a log probability of -0.5.
    write(folder / "math.onnx", weights={"min_logprob": 20.0}, bias=4.0)
    policy = folder / "policy.yaml"
    with served(small, large):
        policy.write_text(POLICY.replace("SMALL", small.url).replace("LARGE", large.url))
        with written(folder, policy, "--stepwise-listen" if request.param == "http" else None) as (envoy, router):
            yield Parts(envoy, router, small, large, request.param)


@pytest.fixture(autouse=True)
def _fresh(parts: Parts) -> None:
    for model in (parts.small, parts.large):
        model.faults.clear()
        model.requests.clear()


QUESTION = [{"role": "user", "content": "compute it"}]


async def test_an_answer_is_streamed_step_by_step_and_says_who_wrote_what(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(
            model="auto", messages=QUESTION, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in raw.parse()]
    assert raw.headers["x-pointsman-decision"] == "steps"
    assert raw.headers["x-pointsman-stepwise"] == "policy"
    assert raw.headers["x-pointsman-model"] == "small+large"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == MIXED
    ours = chunks[-1].usage.model_extra["pointsman"]
    assert [(step["model"], step["action"]) for step in ours["steps"]] == [
        ("small", "keep"), ("large", "redo"), ("small", "keep"),
    ]  # fmt: skip
    assert (len(parts.small.requests), len(parts.large.requests)) == (2, 1)


async def test_a_whole_answer_is_one_json_object(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        whole = await sdk.chat.completions.create(model="auto", messages=QUESTION)
    assert whole.choices[0].message.content == MIXED
    assert whole.usage.model_extra["pointsman"]["redos"] == 1


async def test_many_answers_at_once(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        answers = await asyncio.gather(
            *(sdk.chat.completions.create(model="auto", messages=QUESTION) for _ in range(24))
        )
    assert {answer.choices[0].message.content for answer in answers} == {MIXED}


async def test_an_agent_s_requests_get_the_model_that_they_need(parts: Parts) -> None:
    tool = {"type": "function", "function": {"name": "run", "parameters": {}}}
    call = {"id": "1", "type": "function", "function": {"name": "run", "arguments": "{}"}}
    failed: list[Any] = [
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "1", "content": "Error: exit status 2"},
    ]
    ask = [{"role": "user", "content": "repair the build"}]
    async with parts.sdk() as sdk:
        create = sdk.chat.completions.with_raw_response.create
        fine = await create(model="auto", messages=ask, tools=[tool], extra_headers={"x-session-id": "a"})
        stuck = await create(model="auto", messages=ask + failed * 3, tools=[tool], extra_headers={"x-session-id": "a"})
    assert [reply.headers["x-pointsman-model"] for reply in (fine, stuck)] == ["small", "large"]
    assert fine.parse().choices[0].message.content == "\n\n".join(SMALL)
    assert parts.large.requests[0]["tools"] == [tool]


async def test_what_is_not_eligible_takes_the_large_model_s_route(parts: Parts) -> None:
    tool = {"type": "function", "function": {"name": "f", "parameters": {}}}
    async with parts.sdk() as sdk:
        await sdk.chat.completions.create(model="auto", messages=QUESTION, tools=[tool])
    assert (len(parts.small.requests), len(parts.large.requests)) == (0, 1)
    assert "pointsman_stepwise_ineligible_total" in await asyncio.to_thread(parts.router.metrics)


async def test_a_small_model_that_dies_is_replaced(parts: Parts) -> None:
    parts.small.faults[0] = Fault("kill", 9)
    async with parts.sdk() as sdk:
        whole = await sdk.chat.completions.create(model="auto", messages=QUESTION)
    assert whole.choices[0].message.content == "\n\n".join([SMALL[0], *LARGE[1:]])


async def test_when_both_die_the_client_gets_a_proper_error(parts: Parts) -> None:
    parts.small.faults[-2] = parts.large.faults[-2] = Fault("status", status=500)
    async with parts.sdk() as sdk:
        with pytest.raises(openai.InternalServerError, match="Neither model could answer"):
            await sdk.chat.completions.create(model="auto", messages=QUESTION)
    parts.small.faults[-2] = Fault("kill", 9)
    async with parts.sdk() as sdk:
        stream = await sdk.chat.completions.create(model="auto", messages=QUESTION, stream=True)
        with pytest.raises(openai.APIError, match="Neither model could answer"):
            [chunk async for chunk in stream]


async def test_a_client_that_leaves_stops_the_models(parts: Parts) -> None:
    parts.small.faults[0] = Fault("hang", 9)
    async with aiohttp.ClientSession() as http:
        reply = await http.post(
            f"{parts.envoy.url()}/v1/chat/completions", json={"model": "auto", "messages": QUESTION, "stream": True}
        )
        assert b'"content":"one"' in await reply.content.readany()
        assert parts.small.connections
        reply.close()
        await until(lambda: not parts.small.connections)


async def spent(parts: Parts) -> float:
    """What the tenant of the last request had spent before it."""
    shown = json.loads(await asyncio.to_thread(fetch, f"http://{parts.router.admin}/debug/decisions?limit=1"))
    return (1 - shown["decisions"][0]["signals"]["broke"]["score"]) * 0.001


@pytest.mark.parametrize("stream", [True, False])
async def test_the_budget_pays_for_both_models_and_for_what_was_discarded(parts: Parts, stream: bool) -> None:
    tenant = f"{parts.way}-{stream}"
    headers = {"x-tenant": tenant}
    async with parts.sdk() as sdk:
        if stream:  # without a usage that the client could see
            async for chunk in await sdk.chat.completions.create(
                model="auto", messages=QUESTION, stream=True, extra_headers=headers
            ):
                assert chunk.usage is None
        whole = await sdk.chat.completions.create(model="auto", messages=QUESTION, extra_headers=headers)
    usage = whole.usage.model_extra["pointsman"]
    assert usage["models"]["small"]["discarded_tokens"] > 0
    async with parts.sdk() as sdk:
        await sdk.chat.completions.create(model="auto", messages=QUESTION, extra_headers=headers)
    assert await spent(parts) == pytest.approx((2 if stream else 1) * usage["cost"], rel=0.02)


async def test_an_agent_s_request_is_charged_at_the_price_of_the_model_that_it_got(parts: Parts) -> None:
    headers = {"x-tenant": f"agent-{parts.way}"}
    ask = [{"role": "user", "content": "repair the build"}]
    async with parts.sdk() as sdk:
        for _ in range(2):
            whole = await sdk.chat.completions.create(model="auto", messages=ask, extra_headers=headers)
    usage = whole.usage
    cost = (0.05 * usage.prompt_tokens + 0.20 * usage.completion_tokens) / 1e6
    assert await spent(parts) == pytest.approx(cost, rel=0.02)


async def test_what_has_come_from_here_before_is_not_answered_step_by_step_again(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        once = await sdk.chat.completions.with_raw_response.create(
            model="auto", messages=QUESTION, extra_headers={"x-pointsman-hop": "1"}
        )
    assert "x-pointsman-stepwise" not in once.headers
    assert (len(parts.small.requests), len(parts.large.requests)) == (0, 1)


async def test_a_client_s_own_decision_header_leads_nowhere(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        reply = await sdk.chat.completions.with_raw_response.create(
            model="auto",
            messages=[{"role": "user", "content": "hello"}],
            extra_headers={"x-pointsman-decision": "steps", "x-pointsman-policy": "sha256:0"},
        )
    assert "x-pointsman-stepwise" not in reply.headers
    assert (len(parts.small.requests), len(parts.large.requests)) == (1, 0)
