"""Answers of panels, from inside the ext_proc exchange and over HTTP: a real Envoy, the router's own process, two real
language models (examples/tinylm), the official SDKs."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import pytest

from examples.tinylm import problems
from examples.tinylm.server import serve
from tests.e2e.proxy import Envoy, Router, served, until, written
from tests.panel.fakes import says
from tests.stepwise.fakes import FakeModel, Fault

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {name: tinylm-small, price: {input: 0.05, output: 0.20}, url: "TINYLM"}
  large: {name: tinylm-large, price: {input: 0.50, output: 2.00}, url: "TINYLM"}
  first: {name: first, price: {input: 0.05, output: 0.20}, url: "FIRST"}
  second: {name: second, price: {input: 0.50, output: 2.00}, url: "SECOND"}
default: small
signals:
  faulty: {keyword: {any: [faulty]}}
  guarded: {keyword: {any: [guarded]}}
  voted: {keyword: {any: [voted]}}
  agreed: {keyword: {any: [agreed]}}
  merged: {keyword: {any: [merged]}}
  ranked: {keyword: {any: [ranked]}}
  rounded: {keyword: {any: [rounded]}}
  planned: {keyword: {any: [planned]}}
decisions:
  - name: faulty
    when: faulty
    panel: {cascade: [first, second], until: {sure: 0.9}}
  - name: guarded
    when: guarded
    panel:
      cascade: [first, second]
      until: {sure: 0.9}
      cards: {first: {trust: [inside]}, second: {trust: [outside]}}
      trust: {header: x-trust}
  - {name: vote, when: voted, panel: {vote: [small, large, first], answers: number, quorum: 2}}
  - {name: agree, when: agreed, panel: {agree: small, then: [large], answers: number}}
  - {name: merge, when: merged, panel: {merge: [first, large], writer: second}}
  - {name: rank, when: ranked, panel: {rank: [first, small], judges: [second]}}
  - {name: rounds, when: rounded, panel: {rounds: [small, second], planner: first}}
  - name: plan
    when: planned
    panel: {plan: {short: {model: small}, long: {model: large}}, planner: first, answers: number}
  - name: cascade
    panel: {cascade: [small, large], until: {sure: 0.9, by: digits}, heartbeat: 300}
"""
EASY, HARD = "Work out 2 + 3.", problems.make(problems.SPLITS["test"] + 7).question
UNSURE = "it is ✗ five or six"


@dataclass
class Parts:
    """Everything that runs."""

    envoy: Envoy
    router: Router
    first: FakeModel
    second: FakeModel
    way: str  # "exchange" or "http"

    @property
    def base(self) -> str:
        return self.envoy.url()

    def sdk(self, **more: Any) -> openai.AsyncOpenAI:
        return openai.AsyncOpenAI(base_url=f"{self.base}/v1", api_key="k", max_retries=0, **more)

    def claude(self) -> anthropic.AsyncAnthropic:
        return anthropic.AsyncAnthropic(base_url=self.base, api_key="k", max_retries=0)


@pytest.fixture(scope="module", params=["exchange", "http"])
def parts(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Iterator[Parts]:
    folder: Path = tmp_path_factory.mktemp("panels")
    stack = AsyncExitStack()
    first, second = says("first", UNSURE), says("second", "IT IS FOUR")
    policy, text = folder / "policy.yaml", POLICY
    with served(first, second) as loop:
        tiny = loop.run(stack.enter_async_context(serve()))
        for name, url in {"TINYLM": tiny.url, "FIRST": first.url, "SECOND": second.url}.items():
            text = text.replace(f'"{name}"', f'"{url}"')
        policy.write_text(text)
        try:
            with written(folder, policy, "--writers-listen" if request.param == "http" else None) as (envoy, router):
                yield Parts(envoy, router, first, second, request.param)
        finally:
            loop.run(stack.aclose())


@pytest.fixture(autouse=True)
def _fresh(parts: Parts) -> None:
    for model in (parts.first, parts.second):
        model.faults.clear()
        model.requests.clear()


def ask(question: str) -> Any:
    return {"model": "auto", "temperature": 0, "messages": [{"role": "user", "content": question}]}


async def test_chat_is_answered_by_the_first_model_that_is_sure(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        easy = await sdk.chat.completions.with_raw_response.create(**ask(EASY))
        raw = await sdk.chat.completions.with_raw_response.create(
            **ask(HARD), stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in raw.parse()]
        alone = await sdk.chat.completions.create(**{**ask(HARD), "model": "large"})
    assert easy.headers["x-pointsman-panel"] == raw.headers["x-pointsman-panel"] == "cascade"
    assert easy.headers["x-pointsman-model"] == "small"
    assert "Answer: 5" in easy.parse().choices[0].message.content
    calls = chunks[-1].usage.model_extra["pointsman"]["calls"]
    assert [(call["model"], call["released"]) for call in calls] == [("small", False), ("large", True)]
    assert raw.headers["x-pointsman-model"] == "large"
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == alone.choices[0].message.content


async def test_responses_and_messages_are_answered_alike(parts: Parts) -> None:
    async with parts.sdk() as sdk, parts.claude() as claude:
        whole = await sdk.responses.create(model="auto", temperature=0, input=EASY)
        async with sdk.responses.stream(model="auto", temperature=0, input=HARD) as stream:
            async for _ in stream:
                pass
            streamed = await stream.get_final_response()
        turns: Any = [{"role": "user", "content": EASY}]
        said: Any = {"model": "auto", "max_tokens": 300, "messages": turns, "extra_body": {"temperature": 0}}
        message = await claude.messages.create(**said)
        async with claude.messages.stream(**said) as events:
            final = await events.get_final_message()
    assert "Answer: 5" in whole.output_text
    assert [call["model"] for call in streamed.usage.model_extra["pointsman"]["calls"]] == ["small", "large"]
    assert message.content[0].text == final.content[0].text == whole.output_text
    assert message.usage.model_extra["pointsman"]["panel"] == "cascade"


async def test_what_is_not_eligible_takes_the_last_member_s_route(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        two = await sdk.chat.completions.with_raw_response.create(
            **ask("faulty"), extra_headers={"x-pointsman-hop": "1"}
        )
    assert "x-pointsman-panel" not in two.headers
    assert (len(parts.first.requests), len(parts.second.requests)) == (0, 1)
    assert 'pointsman_panel_ineligible_total{reason="hop"}' in await asyncio.to_thread(parts.router.metrics)


async def test_a_member_that_dies_is_done_without(parts: Parts) -> None:
    parts.first.faults[-2] = Fault("kill", 1)
    async with parts.sdk() as sdk:
        whole = await sdk.chat.completions.create(**ask("faulty"))
    assert whole.choices[0].message.content == "IT IS FOUR"


async def test_when_all_die_the_client_gets_a_proper_error(parts: Parts) -> None:
    parts.first.faults[-2] = parts.second.faults[-2] = Fault("status", status=500)
    async with parts.sdk() as sdk, parts.claude() as claude:
        with pytest.raises(openai.InternalServerError, match="No member of the panel could answer"):
            await sdk.chat.completions.create(**ask("faulty"), stream=True)
        with pytest.raises(anthropic.InternalServerError, match="No member of the panel could answer"):
            await claude.messages.create(max_tokens=9, model="auto", messages=ask("faulty")["messages"])


async def test_a_client_that_leaves_ends_every_call(parts: Parts) -> None:
    parts.second.faults[-2], gone = Fault("hang", 2), parts.second.gone
    async with aiohttp.ClientSession() as http:
        reply = await http.post(f"{parts.base}/v1/chat/completions", json={**ask("faulty"), "stream": True})
        assert b"IT" in await reply.content.readany()
        assert parts.second.gone == gone
        reply.close()
        await until(lambda: parts.second.gone == gone + 1)


async def test_a_request_reaches_no_member_outside_of_its_trust_domain(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        inside = await sdk.chat.completions.create(**ask("guarded"), extra_headers={"x-trust": "inside"})
        assert inside.choices[0].message.content == UNSURE
        for headers in ({"x-trust": "inside", "x-pointsman-hop": "1"}, {"x-trust": "nowhere"}, {}):
            with pytest.raises(openai.PermissionDeniedError, match="trust domain"):
                await sdk.chat.completions.create(**ask("guarded"), extra_headers=headers)
        with pytest.raises(openai.PermissionDeniedError, match="trust domain"):  # `n` takes the plain route
            await sdk.chat.completions.create(**ask("guarded"), n=2, extra_headers={"x-trust": "inside"})
    assert (len(parts.first.requests), len(parts.second.requests)) == (1, 0)


async def test_many_at_once(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        asked = [sdk.chat.completions.create(**ask(EASY if at % 2 else "faulty")) for at in range(40)]
        answers = [answer.choices[0].message.content for answer in await asyncio.gather(*asked)]
    assert set(answers[::2]) == {"IT IS FOUR"}
    assert all("Answer: 5" in (answer or "") for answer in answers[1::2])


async def test_a_vote_takes_the_answer_of_the_majority(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        whole = await sdk.chat.completions.with_raw_response.create(**ask("Work out 2 + 3. (voted)"))
        stream = await sdk.chat.completions.create(**ask("Work out 2 + 3. (voted)"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
    said = whole.parse()
    assert whole.headers["x-pointsman-panel"] == "vote"
    calls = said.usage.model_extra["pointsman"]["calls"]
    assert [call["model"] for call in calls] == ["small", "large", "first"]
    assert sum(call["released"] for call in calls) == 1
    assert text


async def test_an_answer_that_the_small_model_agrees_on_costs_no_other(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        easy = await sdk.chat.completions.create(**ask(f"{EASY} agreed"))
    calls = [(call["model"], call["why"]) for call in easy.usage.model_extra["pointsman"]["calls"]]
    assert calls[:3] == [("small", "sample")] * 3
    assert calls[3:] in ([], [("large", "alone")])


async def test_drafts_are_merged_and_streamed(parts: Parts) -> None:
    async with parts.sdk() as sdk:
        raw = await sdk.chat.completions.with_raw_response.create(**ask("merged"), stream=True)
        text = "".join([chunk.choices[0].delta.content or "" async for chunk in raw.parse()])
    assert (raw.headers["x-pointsman-panel"], raw.headers["x-pointsman-model"]) == ("merge", "second")
    assert text == "IT IS FOUR"
    (asked,) = parts.second.requests
    assert f"Draft 1:\n\n{UNSURE}\n\nDraft 2:\n\n" in asked["messages"][-1]["content"]


async def test_answers_are_ranked(parts: Parts) -> None:
    """The judge says neither A nor B, so that the earlier answer wins."""
    async with parts.claude() as claude:
        message = await claude.messages.create(model="auto", max_tokens=300, messages=ask("ranked")["messages"])
    assert message.content[0].text == UNSURE
    assert [call["why"] for call in message.usage.model_extra["pointsman"]["calls"]] == ["draft"] * 2 + ["judge"] * 2


async def test_a_planner_asks_and_answers(parts: Parts, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts.first, "write", lambda _, number: ("ASK small: Work out 2 + 3.", "Five.")[number])
    async with parts.sdk() as sdk, sdk.responses.stream(model="auto", temperature=0, input="rounded") as stream:
        async for _ in stream:
            pass
        response = await stream.get_final_response()
    calls = response.usage.model_extra["pointsman"]["calls"]
    assert response.output_text == "Five."
    assert [(call["model"], call["why"]) for call in calls] == [("first", "plan"), ("small", "ask"), ("first", "plan")]
    assert "Answer: 5" in parts.first.requests[1]["messages"][-1]["content"]


@pytest.mark.parametrize(("said", "ways"), [("B", ["large"]), ("neither", ["small", "large"])])
async def test_a_planner_chooses_ways(
    parts: Parts, monkeypatch: pytest.MonkeyPatch, said: str, ways: list[str]
) -> None:
    monkeypatch.setattr(parts.first, "write", lambda _, number: said)
    async with parts.claude() as claude:
        message = await claude.messages.create(
            model="auto", max_tokens=300, messages=ask(f"{EASY} planned")["messages"], extra_body={"temperature": 0}
        )
    calls = message.usage.model_extra["pointsman"]["calls"]
    assert [call["model"] for call in calls] == ["first", *ways]
    assert message.content[0].text
