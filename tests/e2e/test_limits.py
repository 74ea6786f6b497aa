"""Limits of tokens as the operator's guide writes them: Envoy's in a real Envoy, the others by their schemas."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests import yamls
from tests.e2e.proxy import Envoy, one_upstream, started
from tests.e2e.test_routing import PATH, post
from tests.extproc.envoy import chat
from tests.k8s import crd

PAGE = Path(__file__).parents[2] / "docs" / "operate.md"


def examples() -> list[dict[str, Any]]:
    section = PAGE.read_text().partition("## Limit tokens")[2].partition("\n## ")[0]
    return [yamls.load(text) for text in re.findall(r"^```yaml\n(.*?)^```", section, re.M | re.S)]


@pytest.mark.skipif(not crd.FOLDER, reason="POINTSMAN_CRDS names no folder of CRD schemas")
def test_the_objects_on_the_page_pass_their_schemas() -> None:
    filter_, *objects = examples()
    assert [each["kind"] for each in objects] == ["BackendTrafficPolicy", "EnvoyFilter"]
    for each in objects:
        assert crd.problems(each) == []
    istio = objects[1]["spec"]["configPatches"][0]["patch"]["value"]
    for value in (istio, filter_):
        value["typed_config"].pop("token_bucket")
    assert istio == filter_


@pytest.fixture
def envoy(tmp_path: Path) -> Iterator[Envoy]:
    with one_upstream(tmp_path) as (router, envoy):
        manager = envoy.config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
        names = [each["name"] for each in manager["http_filters"]]
        manager["http_filters"].insert(names.index("envoy.filters.http.ext_proc") + 1, examples()[0])
        with started(router, envoy):
            yield envoy


@pytest.mark.e2e
async def test_envoy_limits_tokens_and_not_requests(envoy: Envoy, client: aiohttp.ClientSession) -> None:
    async def ask(text: str, tenant: str) -> int:
        return (await post(client, envoy.url() + PATH, chat(text), x_tenant=tenant))[0]

    long = "word " * 9_000  # some 9,000 tokens: two of them fit into a minute
    assert [await ask(long, "research") for _ in range(3)] == [200, 200, 429]
    assert [await ask("hi", "research") for _ in range(3)] == [200, 200, 200]
