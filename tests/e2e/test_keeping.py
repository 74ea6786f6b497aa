"""Answers that are given again, through a real Envoy and read by the official SDKs."""

from __future__ import annotations

import asyncio
import statistics
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import openai
import orjson
import pytest
from aiohttp import web

from extproc.watching.shapes import SHAPES
from tests.e2e.proxy import Envoy, Observed, Router, hosted, started, until
from tests.extproc.keeping.test_keeper import ANSWERS, ASKED, PATHS
from tests.patience import PATIENCE
from tests.signals.state.test_store import Server, needs_server, server  # noqa: F401

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {url: "http://UPSTREAM", price: {input: 1, output: 2}}
default: small
signals: {spent: {budget: {header: x-tenant, limit: 1000}}}
decisions:
  - {name: broke, when: spent, respond: {status: 402}}
  - {name: faq, route: small, cache: {ttl: 1h}}
settings: {tenant: {header: x-tenant}}
"""
APIS = {path: api for api, path in PATHS.items()}


@dataclass
class World(Observed):
    url: str = ""
    calls: Counter[str] = field(default_factory=Counter)
    slow: float = 0.0


def upstream(world: World) -> web.Application:
    async def answer(request: web.Request) -> web.StreamResponse:
        asked = await request.json()
        api = APIS[request.path]
        world.calls[api] += 1
        await asyncio.sleep(world.slow)
        final = {**ANSWERS[api], "id": f"id-{sum(world.calls.values())}"}
        if not asked.get("stream"):
            return web.json_response(final)
        response = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await response.prepare(request)
        data = SHAPES[api].stream(final, bool((asked.get("stream_options") or {}).get("include_usage")))
        for at in range(0, len(data), 50):
            await response.write(data[at : at + 50])
        await response.write_eof()
        return response

    app = web.Application()
    for path in APIS:
        app.router.add_post(path, answer)
    return app


def serving(folder: Path, policy_text: str, *flags: str) -> Iterator[World]:
    policy, log, address = folder / "policy.yaml", folder / "log.jsonl", f"unix:{folder / 'router'}"
    router = Router(policy, address, "--decision-log", str(log), *flags)
    world = World(router, log)
    with hosted(upstream(world)) as there:
        policy.write_text(policy_text.replace("UPSTREAM", there))
        envoy = Envoy(folder, policy, {"pointsman": address})
        with started(router, envoy):
            world.url = envoy.url("ingress")
            yield world


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    yield from serving(tmp_path, POLICY)


async def post(
    client: aiohttp.ClientSession, world: World, api: str = "chat", tenant: str = "acme", **fields: Any
) -> tuple[str | None, bytes]:
    data = {"model": "auto", "temperature": 0, **ASKED[api], **fields}
    headers = {"x-tenant": tenant} if tenant else {}
    async with client.post(world.url + PATHS[api], json=data, headers=headers) as response:
        body = await response.read()
        assert response.status == 200, body
        return response.headers.get("x-pointsman-cache"), body


def read(world: World, api: str, streamed: bool) -> str:
    """What the official SDK reads."""
    headers = {"x-tenant": "acme"}
    if api == "messages":
        claude = anthropic.Anthropic(base_url=world.url, api_key="k", default_headers=headers, max_retries=0)
        asked: dict[str, Any] = {"model": "auto", "extra_body": {"temperature": 0}, **ASKED[api]}
        if not streamed:
            return claude.messages.create(**asked).content[0].text
        with claude.messages.stream(**asked) as stream:
            return stream.get_final_message().content[0].text
    gpt = openai.OpenAI(base_url=world.url + "/v1", api_key="k", default_headers=headers, max_retries=0)
    asked = {"model": "auto", "temperature": 0, "stream": streamed, **ASKED[api]}
    if api == "responses":
        given = gpt.responses.create(**asked)
        if not streamed:
            return given.output_text
        return next(one for one in given if one.type == "response.completed").response.output_text
    if api == "completions":
        given = gpt.completions.create(**asked)
        return "".join(one.choices[0].text for one in given) if streamed else given.choices[0].text
    given = gpt.chat.completions.create(**asked)
    if not streamed:
        return given.choices[0].message.content
    return "".join(one.choices[0].delta.content or "" for one in given if one.choices)


@pytest.mark.parametrize("first", [False, True])
async def test_the_sdks_read_kept_answers_of_every_api_in_both_forms(world: World, first: bool) -> None:
    for api in APIS.values():
        for streamed in (first, not first, first, not first):
            assert await asyncio.to_thread(read, world, api, streamed) == "In Italy."
        assert world.calls[api] == 1
    await until(lambda: len(world.lines()) == 16)
    assert Counter(line["cache"] for line in world.lines()) == {"miss": 4, "hit": 12}
    hits = [line["answer"] for line in world.lines() if line["cache"] == "hit"]
    assert {(each["cost"], each["input_tokens"], each["output_tokens"]) for each in hits} == {(0.0, 0, 0)}
    samples = world.samples()
    assert samples["pointsman_cache_total", "faq", "hit"] == 12
    assert samples["pointsman_cache_total", "faq", "miss"] == 4
    assert samples["pointsman_cache_entries",] == 4
    cost = (3 * 1 + 4 * 2) / 1e6
    assert samples["pointsman_answer_cost_total", "small"] == pytest.approx(4 * cost)
    assert samples["pointsman_saved_total", "faq"] == pytest.approx(12 * cost)


async def test_who_asks_and_what_is_asked_keeps_answers_apart(world: World, client: aiohttp.ClientSession) -> None:
    assert (await post(client, world))[0] == "miss"
    told, body = await post(client, world)
    assert told is not None
    assert told.startswith("hit; age=")
    assert orjson.loads(body)["id"] == "id-1"
    assert (await post(client, world, tenant="umbra"))[0] == "miss"
    assert (await post(client, world, tenant=""))[0] is None
    assert (await post(client, world, temperature=0.5))[0] is None
    assert (await post(client, world, seed=2))[0] == "miss"
    assert world.calls["chat"] == 5
    request = urllib.request.Request(f"http://{world.router.admin}/cache?tenant=acme", method="DELETE")
    with await asyncio.to_thread(urllib.request.urlopen, request) as response:
        assert orjson.loads(response.read()) == {"dropped": 2}
    assert (await post(client, world))[0] == "miss"
    assert (await post(client, world, tenant="umbra"))[0] == "hit; age=0"


@pytest.mark.parametrize("streamed", [False, True])
async def test_equal_requests_at_the_same_time_ask_the_model_once(
    world: World, client: aiohttp.ClientSession, streamed: bool
) -> None:
    world.slow = 2.5  # longer than Envoy waits for a message
    found = await asyncio.gather(*(post(client, world, stream=streamed) for _ in range(20)))
    assert world.calls["chat"] == 1
    assert Counter(told for told, _ in found) == {"miss": 1, "hit; age=0": 19}


async def test_a_client_that_leaves_leaves_the_others_their_answer(world: World, client: aiohttp.ClientSession) -> None:
    world.slow = 1.0
    first = asyncio.create_task(post(client, world))
    await until(lambda: world.calls["chat"] == 1)
    others = [asyncio.create_task(post(client, world)) for _ in range(3)]
    await asyncio.sleep(0.2)
    first.cancel()
    found = await asyncio.gather(*others)
    assert all(orjson.loads(body)["choices"] for _, body in found)
    assert (await post(client, world))[0] is not None
    await until(lambda: world.samples()["pointsman_open_body_bytes",] == 0)


async def test_a_hit_takes_the_router_no_time(world: World, client: aiohttp.ClientSession) -> None:
    """The figure is printed; the bound is against a mistake, since the machine is shared."""
    await post(client, world)
    times = []
    for _ in range(300):
        began = time.perf_counter()
        told, _ = await post(client, world)
        times.append(time.perf_counter() - began)
        assert told is not None
        assert told.startswith("hit")
    print(f"a hit through Envoy: median {statistics.median(times) * 1e3:.2f} ms")
    assert world.calls["chat"] == 1
    assert statistics.median(times) < 0.1


@needs_server
async def test_no_request_fails_while_valkey_is_killed_under_load(
    tmp_path: Path,
    server: Server,  # noqa: F811
    client: aiohttp.ClientSession,
) -> None:
    stored = f"settings: {{store: {{url: '{server.url}', timeout: 5s}}, cache: {{where: store}}, "
    lines = [line for line in POLICY.splitlines() if "budget" not in line and "broke" not in line]
    text = "\n".join(lines).replace("settings: {", stored)
    for world in serving(tmp_path, text, "--workers", "2"):
        for _ in range(3):
            await asyncio.gather(*(post(client, world, seed=seed) for seed in range(5)))
            await asyncio.sleep(0.3)
        assert world.calls["chat"] == 5  # the workers share what they keep

        async def load() -> None:
            for number in range(60):
                told, _ = await post(client, world, seed=number % 5)  # noqa: B023
                assert told is not None

        loads = [asyncio.create_task(load()) for _ in range(8)]
        await asyncio.sleep(0.2)
        await asyncio.to_thread(server.kill)
        await asyncio.gather(*loads)
        calls = world.calls["chat"]
        assert calls > 5
        server.start()
        for _ in range(int(PATIENCE)):  # a store that was away is left alone for a second
            if (await post(client, world, seed=1))[0] != "miss":
                break
            await asyncio.sleep(0.1)
        else:
            raise AssertionError("nothing is kept any more")
        request = urllib.request.Request(f"http://{world.router.admin}/cache?decision=faq", method="DELETE")
        with await asyncio.to_thread(urllib.request.urlopen, request) as response:  # the supervisor asks its workers
            assert orjson.loads(response.read())["dropped"] >= 1
        assert (await post(client, world, seed=1))[0] == "miss"
