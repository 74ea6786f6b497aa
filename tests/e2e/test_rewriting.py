"""Bodies on their way through a real Envoy: what the SDKs send, and what a recording upstream gets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

import aiohttp
import anthropic
import openai
import orjson
import pytest
from aiohttp import web

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import Envoy, prepared, served, started
from tests.extproc.bodies.test_edit import Writer, pieces

pytestmark = pytest.mark.e2e

POLICY = """
version: 1
models:
  small: {name: small, url: "URL"}
  gpt: {name: gpt-5, url: "URL"}
  claude: {name: claude-x, thinking: anthropic, url: "URL"}
  newer: {name: claude-y, thinking: adaptive, url: "URL"}
  newest: {name: claude-opus-5, thinking: anthropic, url: "URL"}
default: small
signals:
  cap: {keyword: {any: [briefly]}}
  think: {keyword: {any: [ponder]}}
  muse: {keyword: {any: [muse]}}
  brood: {keyword: {any: [brood]}}
  rest: {keyword: {any: [rest]}}
decisions:
  - {name: cap, when: cap, route: gpt, set: {max_tokens: 1000, system: "Be kind."}}
  - {name: think, when: think, route: claude, set: {reasoning_effort: high}}
  - {name: muse, when: muse, route: newer, set: {reasoning_effort: xhigh}}
  - {name: brood, when: brood, route: newest, set: {reasoning_effort: high}}
  - {name: rest, when: rest, route: newer, set: {reasoning_effort: none}}
"""
MODES = ["ingress", "duplex"]
THOUGHT: Any = {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"}


@dataclass
class Recorder:
    """An upstream that keeps the bodies it gets, and answers as each API does."""

    bodies: list[bytes] = field(default_factory=list)
    url: str = ""

    async def start(self) -> None:
        app = web.Application(client_max_size=2**24)
        app.router.add_post("/{path:.*}", self._answer)
        self._runner = web.AppRunner(app)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        await self._runner.cleanup()

    @property
    def last(self) -> dict[str, Any]:
        fields: dict[str, Any] = orjson.loads(self.bodies[-1])
        return fields

    async def _answer(self, request: web.Request) -> web.Response:
        self.bodies.append(await request.read())
        model = json.loads(self.bodies[-1])["model"]
        if request.path.endswith("/messages"):
            usage = {"input_tokens": 1, "output_tokens": 1}
            said = {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "So."}], "stop_sequence": None}
            answer = {"id": "m", "type": "message", "model": model, "stop_reason": "end_turn", "usage": usage, **said}
            return web.json_response(answer)
        message = {"role": "assistant", "content": "So."}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        kind = {"id": "c", "object": "chat.completion", "created": 1}
        return web.json_response({**kind, "model": model, "choices": [choice]})


@dataclass
class World:
    envoy: Envoy
    upstream: Recorder


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("rewriting")
    upstream = Recorder()
    with served(upstream):
        router, envoy = prepared(folder, POLICY.replace("URL", upstream.url))
        envoy.listen("duplex", processing_mode=DUPLEX)
        with started(router, envoy):
            yield World(envoy, upstream)


@pytest.fixture(params=MODES)
async def gpt(world: World, request: pytest.FixtureRequest) -> AsyncIterator[openai.AsyncOpenAI]:
    url = world.envoy.url(request.param) + "/v1"
    async with openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0) as client:
        yield client


@pytest.fixture(params=MODES)
async def claude(world: World, request: pytest.FixtureRequest) -> AsyncIterator[anthropic.AsyncAnthropic]:
    url = world.envoy.url(request.param)
    async with anthropic.AsyncAnthropic(base_url=url, api_key="sk-test", max_retries=0) as client:
        yield client


async def test_openai_s_own_fields(world: World, gpt: openai.AsyncOpenAI) -> None:
    answer = await gpt.chat.completions.create(
        model="auto",
        messages=[{"role": "user", "content": "briefly"}],
        max_tokens=5000,
        extra_body={"seed": 2**80, "nested": {"model": "max_tokens", "n": 10**30}},
    )
    assert answer.model == "gpt-5"
    body = world.upstream.bodies[-1]
    assert b'"max_completion_tokens":1000' in body
    assert b"%d" % 2**80 in body
    assert b"%d" % 10**30 in body
    fields = json.loads(body)
    assert "max_tokens" not in fields
    assert [message["content"] for message in fields["messages"]] == ["Be kind.", "briefly"]
    assert fields["nested"]["model"] == "max_tokens"


TOOL: Any = {"name": "look", "input_schema": {"type": "object"}}
USE: Any = {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "look", "input": {}}]}
RESULT: Any = {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": "a door"}]}


def asked(text: str) -> Any:
    return {"role": "user", "content": text}


async def test_anthropic_is_asked_to_think_where_it_allows_that(world: World, claude: anthropic.AsyncAnthropic) -> None:
    ask: Any = claude.messages.create
    plain: Any = {"model": "auto", "max_tokens": 20_000, "timeout": 20, "messages": [asked("ponder")]}
    answer = await ask(**plain)
    assert (answer.model, answer.content[0].type, answer.content[1].text) == ("claude-x", "thinking", "So.")
    assert world.upstream.last["thinking"] == {"type": "enabled", "budget_tokens": 19_999}
    for more in (
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look"}},
        {"tools": [TOOL], "messages": [asked("ponder"), USE, RESULT]},
        {"messages": [asked("ponder"), {"role": "assistant", "content": "["}]},
        {"extra_body": {"top_p": 0.5}},
    ):
        await ask(**(plain | more))
        assert "thinking" not in world.upstream.last, more
    await ask(**plain, thinking={"type": "adaptive"}, output_config={"effort": "low"})
    assert world.upstream.last["thinking"] == {"type": "adaptive"}
    assert world.upstream.last["output_config"] == {"effort": "high"}
    await ask(**(plain | {"messages": [asked("muse")]}))
    assert world.upstream.last["thinking"] == {"type": "adaptive"}
    assert world.upstream.last["output_config"] == {"effort": "xhigh"}
    await ask(**(plain | {"messages": [asked("brood")]}))
    assert world.upstream.last["thinking"] == {"type": "adaptive"}, "a budget is refused by this model"
    clearing = {"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}
    resting = plain | {"messages": [asked("rest")], "thinking": {"type": "adaptive"}, "extra_body": clearing}
    await ask(**resting)
    assert world.upstream.last["thinking"] == {"type": "disabled"}
    assert world.upstream.last["context_management"] == {"edits": []}


async def test_a_model_gets_no_thoughts_of_another(
    world: World, claude: anthropic.AsyncAnthropic, request: pytest.FixtureRequest
) -> None:
    session = {"x-claude-code-session-id": request.node.name}
    messages: list[Any] = []
    ask: Any = claude.messages.create
    for text, model, thoughts in (
        ("ponder", "claude-x", 0),
        ("go on and ponder", "claude-x", 1),
        ("muse", "claude-y", 0),
    ):
        messages.append(asked(text))
        answer = await ask(model="auto", max_tokens=4000, messages=messages, extra_headers=session)
        assert answer.model == model
        body = world.upstream.bodies[-1]
        assert body.count(b"c2lnbmVk") == thoughts
        assert len(world.upstream.last["messages"]) == len(messages)
        messages.append({"role": "assistant", "content": answer.model_dump()["content"]})


@pytest.mark.parametrize("mode", MODES)
async def test_odd_bodies_arrive_byte_for_byte_but_for_what_is_set(world: World, mode: str) -> None:
    url = world.envoy.url(mode) + "/v1/chat/completions"
    before = len(world.upstream.bodies)
    sent = []
    async with aiohttp.ClientSession() as session:
        for seed in range(100):
            _, body = Writer(seed).body()
            sent.append(body.replace(b'"\\u0068i"', b'"\\u0062riefly"'))
            async with session.post(url, data=sent[-1], headers={"content-type": "application/json"}) as answer:
                assert answer.status == 200, await answer.text()
    got = world.upstream.bodies[before:]
    assert len(got) == len(sent)
    ours = {"model", "max_tokens", "max_completion_tokens", "messages"}
    for old, new in zip(sent, got, strict=True):
        had, has = pieces(old), pieces(new)
        assert has["model"] == b'"gpt-5"'
        assert {key: value for key, value in has.items() if key not in ours} == {
            key: value for key, value in had.items() if key not in ours
        }
        assert had["messages"][1:] in has["messages"]
