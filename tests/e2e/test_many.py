"""More requests at a time than Envoy lets on by itself (1,024 to a cluster), through a real Envoy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.proxy import Envoy, Upstream, one_model, started, until
from tests.e2e.test_routing import PATH, post
from tests.extproc.envoy import chat

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MANY = 1300


@pytest.fixture
def parts(tmp_path: Path) -> Iterator[tuple[Upstream, Envoy]]:
    """The model's server, and an Envoy that is not yet started; its router is."""
    with one_model(tmp_path) as (upstream, router, envoy), started(router):
        yield upstream, envoy


@pytest.mark.no_cover
@pytest.mark.parametrize("broken", [None, "pointsman"])
async def test_a_busy_hour_opens_no_circuit_breaker(
    parts: tuple[Upstream, Envoy], client: aiohttp.ClientSession, broken: str | None
) -> None:
    """Without the rendered limits of the router's cluster some are refused."""
    upstream, envoy = parts
    for cluster in envoy.config["static_resources"]["clusters"]:
        if cluster["name"] == broken:
            del cluster["circuit_breakers"]
    with started(envoy):
        with upstream.holding():  # until all are under way together
            url = envoy.url() + PATH
            asked = [asyncio.create_task(post(client, url, chat("hello"))) for _ in range(MANY)]
            await until(lambda: upstream.seen + sum(each.done() for each in asked) >= MANY)
        statuses = Counter(status for status, _, _ in await asyncio.gather(*asked))
    assert (statuses == {200: MANY}) is (broken is None), statuses
