"""What answers took, as their servers say it: metrics, log and budget agree to the token, through a real Envoy."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from prometheus_client.parser import text_string_to_metric_families

from tests.e2e.proxy import Envoy, Loop, Router, until

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {url: "http://UPSTREAM", price: {input: 1, output: 2, cached_input: 0.25}}
  large: {url: "http://UPSTREAM", price: {input: 10, output: 30, cached_input: 1}}
default: small
signals:
  hard: {keyword: {any: [prove]}}
  spent: {budget: {header: x-tenant, limit: 1000}}
decisions:
  - {name: broke, when: spent, on_unknown: skip, respond: {status: 402}}
  - {name: hard, when: hard, route: large}
settings: {meter: on, tenant: {header: x-tenant}}
"""
PRICES: dict[str, tuple[float, float, float]] = {"small": (1, 2, 0.25), "large": (10, 30, 1)}
PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages")


@dataclass
class Truth:
    """What the upstream has said that its answers took, by model and kind."""

    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)
    answers: Counter[str] = field(default_factory=Counter)

    def money(self, prices: dict[str, tuple[float, float, float]] = PRICES) -> float:
        total = 0.0
        for model in PRICES:
            fresh, said, cached = prices[model]
            total += self.tokens[model, "input"] * fresh + self.tokens[model, "output"] * said
            total -= self.tokens[model, "cached"] * (fresh - cached)
        return total / 1e6


def usage(path: str, tokens: dict[str, int]) -> dict[str, Any]:
    """The `usage` of an API that says these tokens."""
    asked, said, cached, thought = (tokens[kind] for kind in ("input", "output", "cached", "reasoning"))
    if path == "/v1/messages":
        return {"input_tokens": asked - cached, "cache_read_input_tokens": cached, "output_tokens": said}
    names = ("input", "output") if path == "/v1/responses" else ("prompt", "completion")
    return {
        f"{names[0]}_tokens": asked,
        f"{names[1]}_tokens": said,
        f"{names[0]}_tokens_details": {"cached_tokens": cached},
        f"{names[1]}_tokens_details": {"reasoning_tokens": thought},
    }


def upstream(truth: Truth) -> web.Application:
    """Answers all four APIs, whole or streamed, with the tokens of a generator of its own."""
    numbers = random.Random(1)

    async def answer(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        model, path = body["model"], request.path
        tokens = {"input": numbers.randrange(1, 3000), "output": numbers.randrange(1, 900)}
        tokens |= {"cached": numbers.randrange(tokens["input"]), "reasoning": numbers.randrange(tokens["output"])}
        if path == "/v1/messages":
            tokens["reasoning"] = 0  # that API does not say it
        for kind, count in tokens.items():
            truth.tokens[model, kind] += count
        truth.answers[model] += 1
        said = usage(path, tokens)
        if not body.get("stream"):
            return web.json_response({"id": "x", "model": model, "usage": said})
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
            events = [{"choices": [{"text": "a"}]}] * numbers.randrange(1, 40) + [{"choices": [], "usage": said}]
        for event in events:
            await response.write(b"data: " + json.dumps(event).encode() + b"\n\n")
        await response.write_eof()
        return response

    app = web.Application()
    for path in PATHS:
        app.router.add_post(path, answer)
    return app


@dataclass
class World:
    url: str
    router: Router
    log: Path
    truth: Truth

    def samples(self) -> dict[tuple[str, ...], float]:
        """The metrics' samples by name and label values, in the order of the labels' names."""
        return {
            (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
            for family in text_string_to_metric_families(self.router.metrics())
            for sample in family.samples
        }

    def lines(self) -> list[dict[str, Any]]:
        return [orjson.loads(line) for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    loop, truth = Loop(), Truth()
    runner = web.AppRunner(upstream(truth), access_log=None, shutdown_timeout=1.0)

    async def start() -> str:
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        host, port = runner.addresses[0][:2]
        return f"{host}:{port}"

    policy, log, address = tmp_path / "policy.yaml", tmp_path / "log.jsonl", f"unix:{tmp_path / 'router'}"
    policy.write_text(POLICY.replace("UPSTREAM", loop.run(start())))
    router = Router(policy, address, "--decision-log", str(log))
    envoy = Envoy(tmp_path, policy, {"pointsman": address})
    try:
        router.start()
        envoy.start()
        yield World(envoy.url("ingress"), router, log, truth)
    finally:
        envoy.stop()
        router.stop()
        loop.run(runner.cleanup())
        loop.close()


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
        async with client.post(world.url + path, json=body(path, number), headers=headers) as response:
            await response.read()
            assert response.status == 200

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
