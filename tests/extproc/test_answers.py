"""What a policy's answers do with a decided request, in this process: who is told, who pays, what is left alone."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from config.watch import load
from decisions.decision import Trace
from extproc.answers import Answers, deadline
from extproc.requests.body import parse
from extproc.requests.paths import Target
from signals.request import Request
from stepwise.agent import Agent, LoopChoice
from tests.stepwise.fakes import FakeModel, writer
from upstream.usage import Spent

TEXT = ["first we add the two of them up", "that leaves what is left of it"]
POLICY = """\
version: 1
models:
  small: {name: tiny, url: "SMALL", price: {input: 1, output: 2}}
  large: {name: huge, url: "LARGE", price: {input: 10, output: 20}}
default: small
signals:
  difficulty: {score: {sum: {hard: 0.8}, at_least: 0.5}}
  hard: {keyword: {any: [prove]}}
  agentic: {keyword: {any: [repair]}}
  broke: {budget: {header: x-tenant, limit: 1}}
decisions:
  - {name: refuse, when: broke, respond: {status: 402, message: "no"}}
  - {name: loop, when: agentic, stepwise: {small: small, large: large, per: request}}
  - {name: proof, when: difficulty, stepwise: {small: small, large: large, strategy: first-n}}
  - {name: steps, stepwise: {small: small, large: large, strategy: always-small}}
"""


class World:
    def __init__(self, answers: Answers, engine: Any) -> None:
        self.answers = answers
        self.engine = engine

    async def decide(self, text: str, headers: dict[str, str] | None = None, **more: Any) -> tuple[Trace, Request]:
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **more}).encode()
        request = parse(Target("chat"), {":path": "/v1/chat/completions", "x-tenant": "a", **(headers or {})}, {}, body)
        return await self.engine.decide(request), request


@asynccontextmanager
async def world(folder: Path, *, served: bool) -> AsyncIterator[World]:
    small, large = FakeModel("tiny", writer(TEXT)), FakeModel("huge", writer(TEXT))
    await small.start()
    await large.start()
    file = folder / "policy.yaml"
    file.write_text(POLICY.replace("SMALL", small.url).replace("LARGE", large.url))
    engine = load(file).engine
    answers = Answers([engine], folder, None, served=served)
    await answers.start()
    try:
        yield World(answers, engine)
    finally:
        await answers.close()
        await small.stop()
        await large.stop()


async def test_the_service_over_http_is_told_what_was_decided(tmp_path: Path) -> None:
    async with world(tmp_path, served=True) as each:
        trace, request = await each.decide("prove it")
        assert dict(each.answers.elsewhere(trace, request)) == {
            "x-pointsman-decision": "proof",
            "x-pointsman-policy": each.engine.policy,
            "x-pointsman-difficulty": "0.80",
        }
        trace, request = await each.decide("repair it", tools=[{"type": "function"}])
        told = dict(each.answers.elsewhere(trace, request))
        assert told["x-pointsman-decision"] == "loop"
        # Its budget is one for the whole conversation, which nobody has named.
        assert told["x-pointsman-session"] == each.engine.sessions.key(request) != ""
        for headers, same in (({"x-session-id": "s"}, False), ({"x-pointsman-session": "spoofed"}, True)):
            trace, request = await each.decide("repair it", headers)
            again = dict(each.answers.elsewhere(trace, request))
            assert (again["x-pointsman-session"] == told["x-pointsman-session"]) is same
        for name in ("proof", "loop", "steps"):
            assert each.answers.find(name) is each.answers.find(name, each.engine.policy) is not None
        assert each.answers.find("refuse") is each.answers.find("steps", "sha256:0") is None


@pytest.mark.parametrize(
    ("more", "headers", "reason"),
    [
        ({"n": 2}, {}, "n"),
        ({}, {"x-pointsman-hop": "1"}, "hop"),
        ({"tools": [{"type": "function"}]}, {}, "tools"),
    ],
)
async def test_what_cannot_be_answered_so_is_sent_nowhere_and_counted(
    tmp_path: Path, more: dict[str, Any], headers: dict[str, str], reason: str
) -> None:
    async with world(tmp_path, served=True) as each:
        trace, request = await each.decide("hello", headers, **more)
        assert each.answers.elsewhere(trace, request) == ()
        assert await each.answers.answer(trace, request) is None
        found = each.answers.find("steps")
        assert found is not None
        assert found.metrics.ineligible == {reason: 2}


async def test_other_apis_take_the_plain_route(tmp_path: Path) -> None:
    async with world(tmp_path, served=True) as each:
        asks: tuple[tuple[str, str, dict[str, Any]], ...] = (
            ("completions", "/v1/completions", {"prompt": "hello"}),
            ("messages", "/v1/messages", {"max_tokens": 9, "messages": [{"role": "user", "content": "repair it"}]}),
        )
        for api, path, body in asks:
            request = parse(Target(api), {":path": path}, {}, json.dumps({"model": "auto", **body}).encode())
            trace = await each.engine.decide(request)
            assert trace.decision.action == "stepwise"
            assert await each.answers.answer(trace, request) is None
            assert each.answers.elsewhere(trace, request) == ()


async def test_without_the_service_nothing_is_sent_there(tmp_path: Path) -> None:
    async with world(tmp_path, served=False) as each:
        assert each.answers.elsewhere(*await each.decide("hello")) is None


async def test_an_agent_s_budget_is_its_session_s_however_that_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str | None] = []
    choose = Agent.choose

    async def told(self: Agent, body: Any, session: str | None = None, **more: Any) -> LoopChoice:
        asked.append(session)
        return await choose(self, body, session, **more)

    monkeypatch.setattr(Agent, "choose", told)
    async with world(tmp_path, served=False) as each:
        for headers, more in (({"x-session-id": "s"}, {}), ({}, {"prompt_cache_key": "s"}), ({}, {}), ({}, {})):
            given = await each.answers.answer(*await each.decide("repair it", headers, **more))
            assert given is not None
            await given.body.aclose()
    assert asked[0] == asked[1]
    assert asked[2] == asked[3]
    assert len({*asked}) == 2
    assert all(asked)


@pytest.mark.parametrize("text", ["hello", "prove it", "repair it"])
@pytest.mark.parametrize("read", [True, False])
async def test_the_payer_is_charged_what_both_models_took(tmp_path: Path, text: str, read: bool) -> None:
    async with world(tmp_path, served=False) as each:
        trace, request = await each.decide(text, stream=True, stream_options={"include_usage": True})
        bills: list[Spent] = []
        given = await each.answers.answer(trace, request, bills.append)
        assert given is not None
        events = [part async for part in given.body] if read else [await anext(given.body)]
        await given.body.aclose()
        (bill,) = bills
        spent = bill.money
        if not read:
            assert spent > 0  # the client has left: what was written until then is to be paid
            return
        usage = json.loads(b"".join(events).split(b"\n\n")[-3].removeprefix(b"data: "))["usage"]
        if bill.course is not None:  # how it came about, as the client is told
            assert bill.course["steps"] == usage["pointsman"]["steps"]
            assert bill.course["count"] == len(bill.course["steps"]) > 0
        assert (bill.course is None) is ("pointsman" not in usage)
        cost = usage["pointsman"]["cost"] if "pointsman" in usage else None
        if cost is None:  # an agent's request, answered by the small model
            cost = (usage["prompt_tokens"] + 2 * usage["completion_tokens"]) / 1e6
        assert spent == pytest.approx(cost)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1500", 1.5), ("0", None), ("", None), ("²", None), ("-5", None), ("1e3", None), ("9" * 40, None)],
)
async def test_envoys_deadline_is_a_plain_number_or_none(text: str, seconds: float | None) -> None:
    limit = deadline({"x-envoy-expected-rq-timeout-ms": text})
    now = asyncio.get_running_loop().time()
    assert limit is None if seconds is None else limit == pytest.approx(now + seconds, abs=1)
