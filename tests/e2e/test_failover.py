"""A model's server dies under load, and its fallback takes over, in a real Envoy."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from cli.gateways.failover import FAILURES
from tests.e2e.proxy import Envoy, Loop, Upstream, prepared, served, started, until
from tests.e2e.test_routing import JSON_TYPE, PATH, post
from tests.extproc.envoy import chat
from tests.patience import PATIENCE

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

POLICY = """\
version: 1
models:
  first: {name: org/first, url: "http://FIRST", fallback: [second]}
  second: {name: org/second, url: "http://SECOND"}
default: first
settings: {deadline: 60s}
"""


@dataclass
class World:
    envoy: Envoy
    loop: Loop
    first: Upstream
    second: Upstream


@contextmanager
def running(folder: Path, more: str = "") -> Iterator[World]:
    """`more` is said of the first model."""
    first, second = Upstream("first"), Upstream("second")
    with served(first, second) as loop:
        text = POLICY.replace("[second]", f"[second]{more}")
        text = text.replace("FIRST", first.address).replace("SECOND", second.address)
        router, envoy = prepared(folder, text)
        for cluster in envoy.config["static_resources"]["clusters"]:
            for check in cluster.get("health_checks", ()):
                check |= {"interval": "0.100s", "no_traffic_interval": "0.100s", "timeout": "0.500s"}
        with started(router, envoy):
            yield World(envoy, loop, first, second)


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    with running(tmp_path) as found:
        yield found


async def test_a_server_that_dies_under_load_fails_no_request(world: World, client: aiohttp.ClientSession) -> None:
    """Requests that it has, and those that come later."""
    answers: Counter[tuple[int, str]] = Counter()
    ending = asyncio.Event()

    async def ask() -> None:
        while not ending.is_set():
            status, headers, answer = await post(client, world.envoy.url() + PATH, chat("hi"), x_sleep="0.05")
            answers[status, answer["model"]] += 1
            assert headers["x-pointsman-model"] == answer["model"].removeprefix("org/")

    tasks = [asyncio.create_task(ask()) for _ in range(16)]

    async def more(model: str, count: int) -> None:
        wanted = answers[200, model] + count
        while answers[200, model] < wanted:
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
            await asyncio.sleep(0.01)

    await more("org/first", 50)
    assert set(answers) == {(200, "org/first")}
    await asyncio.to_thread(world.loop.run, world.first.cut())
    await more("org/second", 100)
    ending.set()
    await asyncio.gather(*tasks)
    assert {status for status, _ in answers} == {200}


async def test_a_server_that_fails_on_end_is_passed_over(world: World, client: aiohttp.ClientSession) -> None:
    for _ in range(4 * FAILURES):
        status, _, answer = await post(client, world.envoy.url() + PATH, chat("hi"), x_fail_first="500")
        assert (status, answer["model"]) == (200, "org/second")
    assert world.first.seen == FAILURES
    deadline = time.monotonic() + 60
    while world.first.seen == FAILURES and time.monotonic() < deadline:  # it is tried again after a while
        await post(client, world.envoy.url() + PATH, chat("hi"))
        await asyncio.sleep(0.5)
    assert world.first.seen > FAILURES


async def test_an_answer_that_breaks_off_is_not_begun_anew(world: World, client: aiohttp.ClientSession) -> None:
    headers = JSON_TYPE | {"x-pause": "1"}
    body = chat("hi", stream=True)
    async with client.post(world.envoy.url() + PATH, data=body, headers=headers) as response:
        assert (response.status, (await response.content.readany())[:6]) == (200, b"data: ")
        await asyncio.to_thread(world.loop.run, world.first.cut())
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()
    assert world.second.seen == 0


async def test_a_server_that_hangs_fails_no_request(tmp_path: Path, client: aiohttp.ClientSession) -> None:
    """The next one is asked after a while, and at once when this has happened often."""
    with running(tmp_path, ", per_try_timeout: 5s") as world:
        url = world.envoy.url() + PATH
        assert (await post(client, url, chat("hi")))[2]["model"] == "org/first"
        with world.first.holding():
            for count in (2 * FAILURES, 4):
                seen = world.first.seen
                asked = await asyncio.gather(*(post(client, url, chat("hi")) for _ in range(count)))
                answers = [(status, headers["x-pointsman-model"], answer["model"]) for status, headers, answer in asked]
                assert answers == [(200, "second", "org/second")] * count
            assert world.first.seen == seen  # passed over by now


async def test_an_answer_that_has_begun_may_take_longer_than_a_try(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    with running(tmp_path, ", per_try_timeout: 2s") as world:
        headers = JSON_TYPE | {"x-pause": "0.8"}
        body = chat("hi", stream=True)
        async with client.post(world.envoy.url() + PATH, data=body, headers=headers) as response:
            assert (await response.read()).endswith(b"data: [DONE]\n\n")
        assert (response.status, world.second.seen) == (200, 0)


async def test_a_server_that_is_not_well_is_passed_over_and_taken_back(
    tmp_path: Path, client: aiohttp.ClientSession
) -> None:
    with running(tmp_path, ", health_check: /up") as world:

        def well() -> bool:
            (line,) = [
                line
                for line in world.envoy.admin("/clusters").splitlines()
                if line.startswith("model-first::") and "::health_flags::" in line
            ]
            return line.endswith("::healthy")

        async def one() -> tuple[int, str]:
            status, headers, _ = await post(client, world.envoy.url() + PATH, chat("hi"))
            return status, headers["x-pointsman-model"]

        assert await one() == (200, "first")
        with world.first.holding():
            await until(lambda: not well())
            assert [await one() for _ in range(3)] == [(200, "second")] * 3
        await until(well)
        again = await one()
        for _ in range(int(PATIENCE / 0.05)):  # Envoy's worker hears of it later
            if again != (200, "second"):
                break
            await asyncio.sleep(0.05)
            again = await one()
        assert again == (200, "first")
