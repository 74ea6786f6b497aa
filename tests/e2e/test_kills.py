"""A router is killed outright while requests are with it; another one stands beside it, behind a real Envoy."""

from __future__ import annotations

import asyncio
import hashlib
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import POLICY, Envoy, Router, Upstream, served, started, until
from tests.e2e.test_routing import JSON_TYPE, PATH, inflight, post
from tests.extproc.envoy import chat

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

NO_RETRY = {"grpc_service": {"envoy_grpc": {"cluster_name": "pointsman"}}}
KEPT = 64 * 1024
"""Bytes of what was sent on a stream that Envoy keeps to begin it anew."""


@dataclass
class Pair:
    routers: tuple[Router, Router]
    envoy: Envoy
    upstream: Upstream

    def busy(self) -> Router | None:
        """The router that has a request."""
        return next((each for each in self.routers if inflight(each) > 0), None)

    def healthy(self) -> bool:
        """Whether Envoy sends requests to both."""
        lines = [line for line in self.envoy.admin("/clusters").splitlines() if line.startswith("pointsman::")]
        flags = [line for line in lines if "::health_flags::" in line]
        return len(flags) == 2 and all(line.endswith("::healthy") for line in flags)


@contextmanager
def paired(folder: Path, settings: str) -> Iterator[Pair]:
    upstream, policy = Upstream("small"), folder / "policy.yaml"
    with served(upstream):
        text = POLICY.replace("SMALL", upstream.address).replace("LARGE", upstream.address)
        policy.write_text(text.replace("settings: {", f"settings: {{{settings}"))
        one, two = Router(policy, f"unix:{folder}/one"), Router(policy, f"unix:{folder}/two")
        envoy = Envoy(folder, policy, {"pointsman": f"{one.listen},{two.listen}"})
        envoy.listen("duplex", processing_mode=DUPLEX)
        envoy.listen("duplex_once", processing_mode=DUPLEX, **NO_RETRY)
        with started(one, two, envoy):
            yield Pair((one, two), envoy, upstream)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    with paired(tmp_path_factory.mktemp("kills"), "") as found:
        yield found


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    """Routers that do not want to see answers."""
    with paired(tmp_path_factory.mktemp("quiet"), "response_headers: false, ") as found:
        yield found


async def killed(pair: Pair) -> None:
    """Kill the router that has the request."""
    await until(lambda: pair.busy() is not None)
    busy = pair.busy()
    assert busy is not None
    await asyncio.to_thread(busy.stop, signal.SIGKILL)


async def again(pair: Pair) -> None:
    """Start the killed router anew, and wait until Envoy knows."""
    for router in pair.routers:
        if router._process is None:
            await asyncio.to_thread(router.start)
    await until(pair.healthy)


@pytest.mark.parametrize(
    ("listener", "size", "status"),
    [
        ("duplex", 100, 200),
        ("duplex", KEPT // 2, 200),
        ("duplex", 4 * KEPT, 503),  # more than Envoy keeps
        ("duplex_once", 100, 503),
        ("ingress", 100, 503),  # BUFFERED: the router has answered the headers, or else no body would come
    ],
)
async def test_a_stream_begins_anew_with_the_other_router_before_anything_was_answered(
    pair: Pair, client: aiohttp.ClientSession, listener: str, size: int, status: int
) -> None:
    """Half of a body is with the router when it dies."""
    await until(pair.healthy)
    body, going = chat("x" * size), asyncio.Event()

    async def halved() -> AsyncIterator[bytes]:
        yield body[:-20]
        await going.wait()
        yield body[-20:]

    async def one() -> tuple[int, bytes]:
        url = pair.envoy.url(listener) + PATH
        async with client.post(url, data=halved(), headers=JSON_TYPE) as response:
            return response.status, await response.read()

    request = asyncio.create_task(one())
    await killed(pair)
    going.set()
    got, answer = await request
    assert (got, b'"one two three"' in answer) == (status, status == 200)
    await again(pair)


async def test_a_model_s_answer_is_lost_where_the_router_is_to_see_its_head(
    pair: Pair, client: aiohttp.ClientSession
) -> None:
    await until(pair.healthy)
    seen = pair.upstream.seen
    with pair.upstream.holding():
        request = asyncio.create_task(client.post(pair.envoy.url() + PATH, data=chat("hello"), headers=JSON_TYPE))
        await until(lambda: pair.upstream.seen > seen)
        await killed(pair)
    async with await request as response:
        assert response.status == 503
    await again(pair)


@pytest.mark.parametrize("listener", ["ingress", "duplex"])
async def test_no_answer_is_lost_where_the_router_has_let_go_of_it(
    quiet: Pair, client: aiohttp.ClientSession, listener: str
) -> None:
    await until(quiet.healthy)
    for size in (1, 2**20):
        seen = quiet.upstream.seen
        url, body = quiet.envoy.url(listener) + PATH, chat("x" * size)
        with quiet.upstream.holding():
            request = asyncio.create_task(post(client, url, body))
            await until(lambda seen=seen: quiet.upstream.seen > seen)  # type: ignore[misc]
            await until(lambda: quiet.busy() is None)
            for router in quiet.routers:
                await asyncio.to_thread(router.stop, signal.SIGKILL)
        status, _, answer = await request
        wanted = chat("x" * size, model="Qwen/Qwen3-8B")
        assert (status, answer["echo"]["sha256"]) == (200, hashlib.sha256(wanted).hexdigest())
        await again(quiet)


async def test_an_answer_that_has_begun_goes_on(pair: Pair, client: aiohttp.ClientSession) -> None:
    await until(pair.healthy)
    headers = JSON_TYPE | {"x-pause": "0.2"}
    body = chat("hello", stream=True)
    async with client.post(pair.envoy.url() + PATH, data=body, headers=headers) as response:
        assert response.status == 200
        for router in pair.routers:
            await asyncio.to_thread(router.stop, signal.SIGKILL)
        assert (await response.read()).endswith(b"data: [DONE]\n\n")
    await again(pair)
