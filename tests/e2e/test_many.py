"""More requests at a time than Envoy lets on by itself (1,024 to a cluster), through a real Envoy."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import aiohttp
import pytest

from tests.e2e.proxy import Envoy, one_upstream, started
from tests.e2e.test_routing import PATH, post
from tests.extproc.envoy import chat

pytestmark = [pytest.mark.e2e, pytest.mark.slow]

MANY = 1300
HELD_S = 10
"""How long the model takes for each, so that all are under way together."""


@pytest.fixture
def envoy(tmp_path: Path) -> Iterator[Envoy]:
    """Not yet started; its router is."""
    with one_upstream(tmp_path) as (router, envoy), started(router):
        yield envoy


@pytest.mark.no_cover
@pytest.mark.parametrize("broken", [None, "pointsman"])
async def test_a_busy_hour_opens_no_circuit_breaker(
    envoy: Envoy, client: aiohttp.ClientSession, broken: str | None
) -> None:
    """Without the rendered limits of the router's cluster some are refused."""
    for cluster in envoy.config["static_resources"]["clusters"]:
        if cluster["name"] == broken:
            del cluster["circuit_breakers"]
    with started(envoy):
        waiting = (post(client, envoy.url() + PATH, chat("hello"), x_sleep=str(HELD_S)) for _ in range(MANY))
        statuses = Counter(status for status, _, _ in await asyncio.gather(*waiting))
    assert (statuses == {200: MANY}) is (broken is None), statuses
