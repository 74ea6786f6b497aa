"""One set of upstreams, routers and processors, and one Envoy with a listener for each way of being configured."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from decisions.engine import Engine, Opening
from extproc import wire
from extproc.wire import Kind
from stepwise.spec import StepwiseSpec
from tests.e2e.answers import Words
from tests.e2e.proxy import (
    POLICY,
    Canned,
    Counted,
    Counting,
    Envoy,
    Router,
    Silent,
    Upstream,
    processor,
    served,
    started,
)
from tests.extproc.envoy import clause, engine
from tests.extproc.test_exchange import Slow
from tests.patience import PATIENCE

STREAMED = {"request_body_mode": "STREAMED"}
DUPLEX = {"request_body_mode": "FULL_DUPLEX_STREAMED", "request_trailer_mode": "SEND"}
NONE = {"request_body_mode": "NONE"}


@dataclass
class World:
    """Everything that runs."""

    envoy: Envoy
    router: Router
    killable: Router
    upstreams: dict[str, Upstream]
    slow: Counting
    steps: Counting
    words: Words
    policy: Path


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("e2e")
    upstreams = {name: Upstream(name) for name in ("small", "large")}
    with served(*upstreams.values()) as loop:
        policy = folder / "policy.yaml"
        text = POLICY.replace("SMALL", upstreams["small"].address).replace("LARGE", upstreams["large"].address)
        policy.write_text(text)
        sockets = {
            name: f"unix:{folder / name}"
            for name in ("pointsman", "killable", "hanging", "spurious", "absent", "slow", "steps")
        }
        router = Router(policy, sockets["pointsman"])
        killable = Router(policy, sockets["killable"])
        slow = Counting(slow_policy())
        words = Words()
        steps = Counting(
            engine(clause("math", None, "stepwise", writer=StepwiseSpec(small="small", large="large"))), words
        )
        servers = [
            loop.run(processor(sockets["hanging"], Silent)),
            loop.run(processor(sockets["spurious"], lambda stream: Canned(stream, wire.reply(Kind.RESPONSE_BODY)))),
            loop.run(processor(sockets["slow"], lambda stream: Counted(slow, stream))),
            loop.run(processor(sockets["steps"], lambda stream: Counted(steps, stream))),
        ]
        envoy = Envoy(folder, policy, sockets)
        listen(envoy)
        try:
            with started(router, killable, envoy):
                yield World(envoy, router, killable, upstreams, slow, steps, words, policy)
        finally:
            for server in servers:
                loop.run(server.close())


def slow_policy() -> Engine:
    """A guard whose detector never answers, and a deadline of 50 ms."""
    signal = Slow("slow", None)
    guard = clause("guard", "slow", "respond", on_unknown="match", status=451, message="Not now.")
    fall = clause("fall", "slow", "route")
    # The guard applies to requests that name a model, the rule to the others: one policy shows both.
    return engine(fall, guard, signals=[signal], deadline=0.05, openings=(Opening("/x", "small"),))


def listen(envoy: Envoy) -> None:
    """The listeners beside the rendered one (`ingress`, BUFFERED)."""
    envoy.listen("buffered")
    envoy.listen("duplex", processing_mode=DUPLEX)
    envoy.listen("no_wait", processing_mode=STREAMED, send_body_without_waiting_for_header_response=True)
    envoy.listen("streamed", processing_mode=STREAMED, allow_mode_override=False)
    envoy.listen("none", processing_mode=NONE, allow_mode_override=False)
    envoy.listen("none_override", processing_mode=NONE)
    envoy.listen("observing", processing_mode=STREAMED, observability_mode=True)
    envoy.listen("buffered_trailers", processing_mode={"request_trailer_mode": "SEND"})
    envoy.listen("buffered_32k", buffer=32_768)
    envoy.listen("duplex_32k", processing_mode=DUPLEX, buffer=32_768)
    envoy.listen("per_route", per_route=True)
    envoy.listen("no_namespace", metadata_options={})
    envoy.listen("silent_response", processing_mode={"response_header_mode": "SKIP"})
    for name in ("hanging", "spurious", "absent", "killable"):
        for mode, changes in (("buffered", {}), ("duplex", DUPLEX)):
            envoy.listen(f"{name}_{mode}", name, processing_mode=changes, message_timeout="0.3s")
            envoy.listen(
                f"{name}_{mode}_open", name, processing_mode=changes, message_timeout="0.3s", failure_mode_allow=True
            )
    for name in ("slow", "steps"):
        envoy.listen(f"{name}_buffered", name)
        envoy.listen(f"{name}_duplex", name, processing_mode=DUPLEX)


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    connector = aiohttp.TCPConnector(limit=0)
    timeout = aiohttp.ClientTimeout(total=PATIENCE)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        yield session
    await asyncio.sleep(0)  # let the connections' transports close
