"""What answers took, as their servers say it: metrics, log and budget agree to the token, through a real Envoy."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import openai
import pytest
from aiohttp import web

from signals.state.store import PREFIX, Valkey
from tests.e2e.proxy import Loop, Observed, fetch, hosted, prepared, started, until
from tests.patience import PATIENCE
from tests.ports import free_port
from tests.signals.state.test_store import Server, needs_server
from tests.stepwise.fakes import FakeModel, writer
from tests.stepwise.onnxes import write

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {url: "http://UPSTREAM", price: {input: 1, output: 2, cached_input: 0.25, cache_write: 1.25}}
  large: {url: "http://UPSTREAM", price: {input: 10, output: 30, cached_input: 1, cache_write: 12.5}}
default: small
signals:
  hard: {keyword: {any: [prove]}}
  spent: {budget: {header: x-tenant, limit: 1000}}
decisions:
  - {name: broke, when: spent, on_unknown: skip, respond: {status: 402}}
  - {name: hard, when: hard, route: large}
settings: {meter: on, tenant: {header: x-tenant}}
"""
Prices = tuple[float, float, float, float]
PRICES: dict[str, Prices] = {"small": (1, 2, 0.25, 1.25), "large": (10, 30, 1, 12.5)}
KINDS = ("input", "output", "cached", "reasoning", "cache_write")
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass
class Truth:
    """What the upstream has said that its answers took, by model and kind; and `said`, by the request's id."""

    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)
    said: dict[str, tuple[str, dict[str, int]]] = field(default_factory=dict)

    def money(self, prices: dict[str, Prices] = PRICES) -> float:
        kinds = ("input", "output", "cached", "cache_write")
        counts = {model: {kind: self.tokens[model, kind] for kind in kinds} for model in PRICES}
        return sum(money(counts[model], prices[model]) for model in PRICES)


def money(tokens: dict[str, int], prices: Prices) -> float:
    fresh, said, cached, written = prices
    total = tokens["input"] * fresh + tokens["output"] * said
    return (total - tokens["cached"] * (fresh - cached) - tokens["cache_write"] * (fresh - written)) / 1e6


def usage(path: str, tokens: dict[str, int]) -> dict[str, Any]:
    """The `usage` of an API that says these tokens."""
    asked, said, cached, thought, written = (tokens[kind] for kind in KINDS)
    if path == "/v1/messages":
        return {
            "input_tokens": asked - cached - written,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": written,
            "output_tokens": said,
        }
    names = ("input", "output") if path == "/v1/responses" else ("prompt", "completion")
    return {
        f"{names[0]}_tokens": asked,
        f"{names[1]}_tokens": said,
        f"{names[0]}_tokens_details": {"cached_tokens": cached},
        f"{names[1]}_tokens_details": {"reasoning_tokens": thought},
    }


def upstream(truth: Truth) -> web.Application:
    """Answers all four APIs, whole or streamed, with the tokens of a generator of its own.

    Chat and completions say the usage of a stream only where they are asked for it, as OpenAI's do. A stream with
    `x-endless` never ends. Some chat answers are calls of tools.
    """
    numbers = random.Random(1)

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model, path = body["model"], request.path
        tokens = {"input": numbers.randrange(1, 3000), "output": numbers.randrange(1, 900)}
        tokens |= {"cached": numbers.randrange(tokens["input"]), "reasoning": numbers.randrange(tokens["output"])}
        tokens["cache_write"] = 0
        if path == "/v1/messages":
            tokens["reasoning"] = 0  # that API does not say it
            tokens["cache_write"] = numbers.randrange(tokens["input"] - tokens["cached"])
        endless = "x-endless" in request.headers
        if not endless:
            for kind, count in tokens.items():
                truth.tokens[model, kind] += count
            truth.answers[model] += 1
            truth.said[request.headers["x-request-id"]] = model, tokens
        said = usage(path, tokens)
        call = {"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": '{"usage": null}'}}
        spoken = {"content": "a"} if numbers.random() < 0.7 else {"tool_calls": [call]}
        if not body.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", **spoken}, "finish_reason": "stop"}
            return web.json_response({"id": "x", "object": "x", "model": model, "choices": [choice], "usage": said})
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        if path == "/v1/messages":
            message = {"model": model, "usage": {**said, "output_tokens": 1}}
            events: list[dict[str, Any]] = [{"type": "message_start", "message": message}]
            events += [{"type": "message_delta", "usage": {"output_tokens": tokens["output"]}}]
        elif path == "/v1/responses":
            events = [{"type": "response.created", "response": {}}]
            events += [{"type": "response.completed", "response": {"usage": said}}]
        else:
            chunk: dict[str, Any] = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": model}
            choice = {"index": 0, "text": "a", "delta": spoken, "finish_reason": None}
            asked = (body.get("stream_options") or {}).get("include_usage") is True
            events = [chunk | {"choices": [choice]} | ({"usage": None} if asked else {})] * numbers.randrange(1, 40)
            events += [chunk | {"choices": [], "usage": said}] if asked else []
        for event in events[: len(events) // 2 + 1] if endless else events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        with suppress(ConnectionError):  # its client is gone
            while endless:
                await asyncio.sleep(0.05)
                await response.write(b": nothing\n\n")
            await response.write_eof()
        return response

    app = web.Application()
    for path in PATHS:
        app.router.add_post(path, answer)
    return app


@dataclass
class World(Observed):
    url: str
    truth: Truth
    policy: Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path, POLICY) as made:
        yield made


@contextmanager
def running(tmp_path: Path, text: str, *flags: str) -> Iterator[World]:
    truth, log = Truth(), tmp_path / "log.jsonl"
    with hosted(upstream(truth)) as there:
        router, envoy = prepared(tmp_path, text.replace("UPSTREAM", there), "--decision-log", str(log), *flags)
        with started(router, envoy):
            yield World(router, log, envoy.url("ingress"), truth, tmp_path / "policy.yaml")


def body(path: str, number: int) -> dict[str, Any]:
    text = "Prove it." if number % 3 == 0 else "Say hello."
    asked: dict[str, Any] = {"model": "auto", "stream": number % 2 == 0}
    if path == "/v1/completions":
        return {**asked, "prompt": text}
    if path == "/v1/responses":
        return {**asked, "input": text}
    return {**asked, "max_tokens": 9, "messages": [{"role": "user", "content": text}]}


async def test_metrics_log_and_budget_agree_with_the_upstream_to_the_token(
    world: World, client: aiohttp.ClientSession
) -> None:
    async def post(path: str, number: int) -> None:
        headers = {"x-tenant": "acme"}
        sent = body(path, number)
        async with client.post(world.url + path, json=sent, headers=headers) as response:
            received = await response.read()
            assert response.status == 200
        if sent["stream"] and path in PATHS[:2]:
            chunks = [json.loads(event[6:]) for event in received.split(b"\n\n")[:-1]]
            assert not any("usage" in chunk for chunk in chunks), "nobody has asked for it"
            assert all(chunk["choices"] for chunk in chunks)

    for start in range(0, 240, 12):
        await asyncio.gather(*(post(PATHS[number % 4], number // 4) for number in range(start, start + 12)))
    await until(lambda: len(world.lines()) == 240)
    truth, samples, lines = world.truth, world.samples(), world.lines()
    assert min(truth.answers.values()) > 50
    for (model, kind), count in truth.tokens.items():
        assert samples.get(("pointsman_answer_tokens_total", kind, model), 0) == count
        logged = sum(line["answer"].get(f"{kind}_tokens", 0) for line in lines if line["model"] == model)
        assert logged == count
    for model, decision in (("small", ""), ("large", "hard")):
        assert samples["pointsman_answers_total", decision, model, "200"] == truth.answers[model]
        assert samples["pointsman_first_byte_seconds_count", model] == truth.answers[model]
        assert samples["pointsman_answer_seconds_count", model] == truth.answers[model]
    counted = sum(value for name, value in samples.items() if name[0] == "pointsman_answer_cost_total")
    assert counted == pytest.approx(truth.money(), rel=1e-9)
    assert sum(line["answer"]["cost"] for line in lines) == pytest.approx(truth.money(), rel=1e-9)
    assert {line["tenant"] for line in lines} == {"acme"}
    saved = truth.money(dict.fromkeys(PRICES, PRICES["large"])) - truth.money()
    assert samples["pointsman_saved_total", ""] == pytest.approx(saved, rel=1e-9)
    assert samples["pointsman_overspent_total", ""] == 0
    await post(PATHS[0], 1)
    await until(lambda: len(world.lines()) == 241)
    charged = 1000 * (1 - world.lines()[-1]["signals"]["spent"]["score"])
    assert charged == pytest.approx(sum(line["answer"]["cost"] for line in world.lines()[:-1]), rel=1e-6)


WRITERS = """\
version: 1
models:
  small: {url: "http://UPSTREAM", price: {input: 1, output: 2, cached_input: 0.25, cache_write: 1.25}}
  large: {url: "http://UPSTREAM", price: {input: 10, output: 30, cached_input: 1, cache_write: 12.5}}
  tiny: {url: "TINY", price: {input: 0.05, output: 0.2}}
  huge: {url: "HUGE", price: {input: 0.9, output: 0.9}}
default: small
signals:
  hard: {keyword: {any: [prove]}}
  agentic: {keyword: {any: [repair]}}
  stepped: {keyword: {any: [compute]}}
  spent: {budget: {header: x-tenant, limit: 1000}}
decisions:
  - {name: broke, when: spent, on_unknown: skip, respond: {status: 429}}
  - {name: hard, when: hard, route: large}
  - {name: agents, when: agentic, stepwise: {small: small, large: large, per: request}}
  - {name: steps, when: stepped, stepwise: {small: tiny, large: huge, policy: steps}}
settings: {meter: on, tenant: {header: x-tenant}, deadline: 2s, store: {url: "STORE", timeout: 1s}}
"""
TEXTS = ("Say hello.", "Prove it.", "Repair it.", "Compute it.")
STEPS = ["one and one is two so far", "two ✗ and two is five", "three is fine as it is"]


@pytest.mark.no_cover
@needs_server
@pytest.mark.slow
@pytest.mark.timeout(300)
async def test_a_thousand_mixed_requests_agree_in_all_places(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    """Streams that nobody asked the usage of, cut ones, cached tokens, calls of tools, agents and stepwise answers; two
    workers with one store, a reload in the middle, a worker that is killed, and a store that is away for a while.

    What a killed worker had counted since its parent last asked is lost, so it is killed while nothing is under way.
    """
    store = Server(free_port(), tmp_path)
    store.start()
    loop = Loop()
    tiny, huge = (FakeModel(name, writer(STEPS), running_usage=True) for name in ("tiny", "huge"))
    loop.run(tiny.start())
    loop.run(huge.start())
    write(tmp_path / "steps.onnx", weights={"min_logprob": 20.0}, bias=4.0)
    text = WRITERS.replace("TINY", tiny.url).replace("HUGE", huge.url).replace("STORE", store.url)
    try:
        with running(tmp_path, text, "--workers", "2") as world:
            mixed = Mixed(world, client)
            await mixed.run(store.url)
            await mixed.without(store)
    finally:
        loop.run(tiny.stop())
        loop.run(huge.stop())
        loop.close()
        store.kill()


@dataclass
class Mixed:
    """Sends the requests, each as a tenant of its own. `shown`: by tenant, the usage that a stepwise answer has shown
    to its client; `cut`: whose streams were left before their end; `ended`: how many requests are over."""

    world: World
    client: aiohttp.ClientSession
    shown: dict[str, dict[str, Any]] = field(default_factory=dict)
    cut: set[str] = field(default_factory=set)
    ended: int = 0

    async def post(self, number: int) -> None:
        path, text = PATHS[number % 4], TEXTS[number // 4 % 4]
        if text == TEXTS[3] and path != PATHS[0]:
            text = TEXTS[0]  # stepwise answers are chat completions
        sent = {**body(path, number // 16), "max_tokens": 900}
        if "messages" in sent:
            sent["messages"] = [{"role": "user", "content": text}]
        elif "prompt" in sent:
            sent["prompt"] = text
        else:
            sent["input"] = text
        if asks := sent["stream"] and path in PATHS[:2] and number % 3 == 0:
            sent["stream_options"] = {"include_usage": True}
        headers = {"x-tenant": str(number)}
        if cut := bool(sent["stream"]) and number % 7 == 0:
            headers["x-endless"] = "1"
        async with self.client.post(self.world.url + path, json=sent, headers=headers) as response:
            assert response.status == 200, await response.text()
            if cut:
                self.cut.add(str(number))
                await response.content.readany()
            else:
                received = await response.read()
                if path == PATHS[0] and text == TEXTS[3] and (asks or not sent["stream"]):
                    final = received.split(b"\n\n")[-3][6:] if sent["stream"] else received
                    self.shown[str(number)] = json.loads(final)["usage"]
                if sent["stream"] and path in PATHS[:2]:
                    assert (b'"usage"' in received.replace(b'\\"', b"")) is asks
        self.ended += 1

    async def many(self, numbers: Iterable[int]) -> None:
        left = iter(numbers)

        async def one() -> None:
            for number in left:
                await self.post(number)

        await asyncio.gather(*(one() for _ in range(12)))

    async def quiet(self, store: str) -> tuple[float, float, float]:
        """The money in the metrics, in the log and in the store, once everything is written."""
        await until(lambda: len(self.world.lines()) == self.ended, 60)
        samples, lines = self.world.samples(), self.world.lines()
        assert sum(n for name, n in samples.items() if name[0] == "pointsman_answers_total") == self.ended
        counted = sum(value for name, value in samples.items() if name[0] == "pointsman_answer_cost_total")
        logged = sum(line["answer"]["cost"] for line in lines)
        charged = 0.0
        for _ in range(100):
            charged = await total(store)
            if charged == pytest.approx(logged, rel=1e-9):
                break
            await asyncio.sleep(0.05)
        return counted, logged, charged

    async def run(self, store: str) -> None:
        world = self.world
        await self.many(range(300))
        asking = asyncio.create_task(self.many(range(300, 600)))
        await asyncio.sleep(0.5)
        world.policy.write_text(world.policy.read_text() + "# reloaded\n")
        await asking
        before = await self.quiet(store)
        workers = json.loads(fetch(f"http://{world.router.admin}/readyz"))["workers"]
        os.kill(workers[0]["pid"], signal.SIGKILL)
        await until(lambda: "pointsman_worker_restarts_total 1" in world.router.metrics())
        assert await self.quiet(store) == pytest.approx(before, rel=1e-9), "what it had counted stays"
        await self.many(range(600, 1000))
        counted, logged, charged = await self.quiet(store)
        assert counted == pytest.approx(logged, rel=1e-9)
        assert charged == pytest.approx(logged, rel=1e-9)
        self.compare(world.lines())

    async def without(self, store: Server) -> None:
        """The store dies with all that it knew: what is charged while it is away is written once it is back."""
        store.kill()
        await self.many(range(1000, 1100))
        await until(lambda: len(self.world.lines()) == self.ended, 60)
        store.start()
        wanted = sum(line["answer"]["cost"] for line in self.world.lines()[1000:])
        charged = 0.0
        for _ in range(200):
            charged = await total(store.url)
            if charged == pytest.approx(wanted, rel=1e-9):
                return
            await asyncio.sleep(0.05)
        raise AssertionError(f"{charged} of {wanted}")

    def compare(self, lines: list[dict[str, Any]]) -> None:
        """Every line says what the upstream has said of the same request."""
        assert len({line["policy"] for line in lines}) == 2
        assert len({line["tenant"] for line in lines}) == len(lines) == 1000
        seen: Counter[str] = Counter()
        for line in lines:
            answer, id, tenant = line["answer"], line["id"], line["tenant"]
            tokens = {kind: answer.get(f"{kind}_tokens", 0) for kind in KINDS}
            if id in self.world.truth.said and tenant not in self.cut:
                model, said = self.world.truth.said[id]
                if line["action"] == "stepwise":
                    said = said | {"reasoning": tokens["reasoning"]}  # a writer's bill does not say it
                assert (line["model"], tokens) == (model, said), line
                assert answer["cost"] == pytest.approx(money(tokens, PRICES[model]), rel=1e-9)
                seen["said" if line["action"] == "route" or line["decision"] is None else "agent"] += 1
            elif tenant in self.shown:
                usage = self.shown[tenant]
                assert (tokens["input"], tokens["output"]) == (usage["prompt_tokens"], usage["completion_tokens"])
                assert answer["cost"] == pytest.approx(usage["pointsman"]["cost"], abs=1e-9)
                seen["shown"] += 1
            else:  # left before its end, or stepwise and without a usage for the client
                assert tenant in self.cut or line["decision"] == "steps"
                assert answer["cost"] > 0
                seen["guessed"] += 1
        assert min(seen.values()) > 20, seen
        assert set(seen) == {"said", "agent", "shown", "guessed"}


async def total(url: str) -> float:
    """What the store says that everybody has spent."""
    store = Valkey(url, timeout=PATIENCE)
    try:
        keys = [key async for key in store._client.scan_iter(f"{PREFIX}budget:*")]
        return sum([float(await store._client.get(key) or 0) for key in keys])
    finally:
        await store.close()


async def test_the_official_sdk_sees_a_usage_only_where_it_has_asked(world: World) -> None:
    async with openai.AsyncOpenAI(base_url=f"{world.url}/v1", api_key="k", max_retries=0) as sdk:
        for asked in (False, True):
            more: dict[str, Any] = {"stream_options": {"include_usage": True}} if asked else {}
            for _ in range(5):
                stream = await sdk.chat.completions.create(
                    model="auto", messages=[{"role": "user", "content": "Say hello."}], stream=True, **more
                )
                chunks = [chunk async for chunk in stream]
                assert [bool(chunk.choices) for chunk in chunks] == [True] * (len(chunks) - asked) + [False] * asked
                assert [chunk.usage is not None for chunk in chunks] == [not chunk.choices for chunk in chunks]
    await until(lambda: len(world.lines()) == 10)
    for line in world.lines():
        _, said = world.truth.said[line["id"]]
        assert {kind: line["answer"].get(f"{kind}_tokens", 0) for kind in KINDS} == said
