"""The rendered Istio objects in a real Envoy, beside another application on the same gateway."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from cli.gateways import istio
from cli.gateways.kubernetes import Cluster, Front
from cli.gateways.place import Place
from config.watch import load
from tests.e2e import istiod
from tests.e2e.proxy import JSON, Envoy, Loop, Router, Upstream, served, started
from tests.e2e.test_gateway import curl, put
from tests.e2e.test_routing import JSON_TYPE, PATH
from tests.extproc.envoy import chat

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {name: s, url: "http://small.models.svc:8000", fallback: [large], per_try_timeout: 5s, health_check: /up}
  large:
    name: l
    url: "http://large.models.svc:8000"
    base_path: /api/v4
    credential: {from: {secret: large, key: token}}
default: small
signals: {code: {keyword: {any: [traceback]}}}
decisions: [{name: code, when: code, route: large}]
settings: {max_body: 4MiB, deadline: 60s}
"""
HOST, OTHER = "models.example.com", "shop.example.com"
MIB = 2**20


@dataclass
class Shared:
    """A gateway that two applications share."""

    envoy: Envoy
    router: Router
    upstreams: dict[str, Upstream]
    loop: Loop
    listener: str = "0.0.0.0_80"

    def url(self) -> str:
        return self.envoy.url(self.listener)


def static(name: str, address: str) -> JSON:
    host, _, port = address.rpartition(":")
    endpoint = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
    assignment = {"cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": endpoint}]}]}
    return {"name": name, "connect_timeout": "1s", "load_assignment": assignment}


def objects_of(policy: Path, folder: Path, form: str) -> list[JSON]:
    front = Front(hosts=(HOST,), gateway_api=form == "gateway-api")
    return istio.render(load(policy).engine, Place("0.0.0.0:80", secrets=str(folder / "secrets")), Cluster(front=front))


@contextmanager
def gateway(folder: Path, form: str, change: Any = None) -> Iterator[Shared]:
    """`change` is a function that changes the rendered EnvoyFilter."""
    policy = folder / "policy.yaml"
    policy.write_text(POLICY)
    (folder / "secrets").mkdir()
    put(folder / "secrets", "large", "token", "the-key")
    upstreams = {name: Upstream(name) for name in ("small", "large", "shop")}
    with served(*upstreams.values()) as loop:
        objects = objects_of(policy, folder, form)
        if change is not None:
            change(next(each["spec"] for each in objects if each["kind"] == "EnvoyFilter"))
        socket = f"unix:{folder / 'router'}"
        router, envoy = (
            Router(policy, socket),
            Envoy(folder, policy, {"pointsman": socket}, secrets=str(folder / "secrets")),
        )
        shop = {"cluster": "outbound|80||shop.shop.svc.cluster.local", "timeout": "0s"}
        gone = {"cluster": "outbound|80||gone.shop.svc.cluster.local", "timeout": "0s"}
        others = [
            {
                "name": f"{OTHER}:80",
                "domains": [OTHER],
                "routes": [
                    {"name": "gone", "match": {"prefix": "/gone"}, "route": gone},
                    {"name": "shop", "match": {"prefix": "/"}, "route": shop},
                ],
            }
        ]
        made = [
            static("outbound|8000||small.models.svc.cluster.local", upstreams["small"].address),
            static("outbound|8000||large.models.svc.cluster.local", upstreams["large"].address),
            static(shop["cluster"], upstreams["shop"].address),
            static(gone["cluster"], "127.0.0.1:1"),
        ]
        ours = next(each for each in envoy.config["static_resources"]["clusters"] if each["name"] == "pointsman")
        ours["name"] = ours["load_assignment"]["cluster_name"] = "outbound|50051||pointsman.pointsman.svc.cluster.local"
        clusters = istiod.clusters(objects, {each["name"]: each for each in made})
        envoy.config["static_resources"] = {
            "listeners": [istiod.gateway(objects, others), *istiod.listeners(objects)],
            "clusters": [ours, *clusters.values()],
        }
        with started(router, envoy):
            yield Shared(envoy, router, upstreams, loop)


@pytest.fixture(scope="module", params=["virtual-service", "gateway-api"])
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    with gateway(tmp_path_factory.mktemp("istio"), request.param) as found:
        yield found


@asynccontextmanager
async def ask(
    client: aiohttp.ClientSession, url: str, host: str, body: bytes, **headers: str
) -> AsyncIterator[aiohttp.ClientResponse]:
    async with client.post(url, data=io.BytesIO(body), headers={**JSON_TYPE, "host": host, **headers}) as response:
        yield response


async def test_a_call_is_decided_and_goes_to_its_model(shared: Shared, client: aiohttp.ClientSession) -> None:
    for text, model, path, key in (
        ("hello", "small", PATH, "mine"),
        ("my traceback", "large", "/api/v4/chat/completions", "Bearer the-key"),
    ):
        sent = {"authorization": "mine", "x-pointsman-route": "large", "x-pointsman-decision": "code"}
        async with ask(client, shared.url() + PATH, HOST, chat(text), **sent) as response:
            answer = await response.json()
        assert (response.status, response.headers["x-pointsman-model"]) == (200, model)
        echo = answer["echo"]
        assert (echo["upstream"], echo["path"], echo["headers"]["authorization"]) == (model, path, key)
        assert echo["headers"]["host"] == f"{model}.models.svc:8000"
        assert "x-pointsman-decision" not in echo["headers"] or text != "hello"


async def test_another_host_takes_the_place_of_one_that_fails(shared: Shared, client: aiohttp.ClientSession) -> None:
    """With its own name, path, host and key, and with no key of the client's."""
    for status in ("503", "429"):
        sent = {"authorization": "mine", "x-fail-small": status, "x-claim": "small"}
        async with ask(client, shared.url() + PATH, HOST, chat("hello"), **sent) as response:
            answer = await response.json()
        assert (response.status, response.headers["x-pointsman-model"], answer["model"]) == (200, "large", "l")
        echo = answer["echo"]
        assert (echo["upstream"], echo["path"]) == ("large", "/api/v4/chat/completions")
        assert (echo["headers"]["authorization"], echo["headers"]["host"]) == (
            "Bearer the-key",
            "large.models.svc:8000",
        )
    async with ask(client, shared.url() + PATH, HOST, chat("hello"), **{"x-fail-small": "400"}) as response:
        assert (response.status, "x-pointsman-fallback" in response.headers) == (400, False)


@pytest.mark.parametrize("form", ["virtual-service", "gateway-api"])
async def test_a_host_that_hangs_or_dies_fails_no_request(
    tmp_path: Path, client: aiohttp.ClientSession, form: str
) -> None:
    with gateway(tmp_path, form) as shared:
        small = shared.upstreams["small"]

        async def one() -> tuple[int, str]:
            async with ask(client, shared.url() + PATH, HOST, chat("hello")) as response:
                answer = await response.json()
                assert response.headers["x-pointsman-model"] == answer["echo"]["upstream"]
                return response.status, answer["echo"]["upstream"]

        assert await one() == (200, "small")
        with small.holding():
            assert set(await asyncio.gather(*(one() for _ in range(8)))) == {(200, "large")}
        await asyncio.to_thread(shared.loop.run, small.cut())
        assert set(await asyncio.gather(*(one() for _ in range(8)))) == {(200, "large")}


async def test_what_is_no_call_is_refused(shared: Shared, client: aiohttp.ClientSession) -> None:
    async with ask(client, shared.url() + "/generate", HOST, b"{}") as response:
        assert (response.status, response.content_type) == (404, "application/json")
        assert (await response.json())["error"]["code"] == "unknown_path"


async def test_a_prompt_longer_than_the_gateways_buffer_is_read(shared: Shared, client: aiohttp.ClientSession) -> None:
    async with ask(client, shared.url() + PATH, HOST, chat("my traceback " + "x" * 3 * MIB)) as response:
        assert (response.status, response.headers["x-pointsman-model"]) == (200, "large")
    # Envoy closes the connection in the middle of the body, which not every client takes well.
    status, answer = await asyncio.to_thread(curl, shared.url() + PATH, chat("x" * 5 * MIB), "-H", f"host: {HOST}")
    assert (status, json.loads(answer)["error"]["code"]) == (413, "too_large")


async def test_the_access_log_has_our_requests_alone(shared: Shared, client: aiohttp.ClientSession) -> None:
    for host, path in ((OTHER, "/shop/logged"), (HOST, PATH + "?logged")):
        async with ask(client, shared.url() + path, host, chat("my traceback")) as response:
            assert response.status == 200
    lines = shared.envoy.accesses('"decision":"code"')
    assert lines
    assert "shop" not in shared.envoy.log()


@dataclass
class Behaviour:
    """What a client of the other application sees."""

    statuses: list[int]
    texts: list[bytes]
    headers: list[list[str]]


async def behaviour(client: aiohttp.ClientSession, url: str) -> Behaviour:
    seen = Behaviour([], [], [])
    for path, body in (
        (PATH, chat("my traceback")),
        ("/gone", b"{}"),
        ("/generate", b'{"model":"m"}'),
        ("/upload", b'{"model":"' + b"x" * 6 * MIB + b'"}'),
    ):
        async with ask(client, url + path, OTHER, body, **{"authorization": "mine"}) as response:
            text = await response.read()
        seen.statuses.append(response.status)
        seen.headers.append(sorted(name for name in response.headers if name not in ("date", "server")))
        if response.status == 200:
            echo = json.loads(text).get("echo") or json.loads(text)
            text = json.dumps(
                [echo["upstream"], echo["path"], echo["length"], echo["headers"]["authorization"]]
            ).encode()
        seen.texts.append(text)
    return seen


def without(spec: JSON) -> None:
    spec["configPatches"] = []


def switched_on(spec: JSON) -> None:
    spec["configPatches"][0]["patch"]["value"].pop("disabled")


def for_all(spec: JSON) -> None:
    text = json.dumps(spec).replace("xds.route_name.startsWith('pointsman-')", "true")
    spec.clear()
    spec.update(json.loads(text))


@pytest.mark.parametrize("form", ["virtual-service", "gateway-api"])
async def test_the_other_application_keeps_its_behaviour(
    tmp_path: Path, client: aiohttp.ClientSession, form: str
) -> None:
    """With our EnvoyFilter, with none, and also when the router is gone; not with one that is for all."""
    found = {}
    for name, change in {"none": without, "ours": None, "on": switched_on, "all": for_all}.items():
        folder = tmp_path / name
        folder.mkdir()
        with gateway(folder, form, change) as shared:
            found[name] = await behaviour(client, shared.url())
            if name == "ours":
                shared.router.stop()
                found["routerless"] = await behaviour(client, shared.url())
                async with ask(client, shared.url() + PATH, HOST, chat("hello")) as response:
                    assert response.status == 503
                    assert (await response.json())["error"]["code"] == "router_unavailable"
    assert found["none"].statuses == [200, 503, 200, 200]
    assert found["ours"] == found["routerless"] == found["none"]
    assert found["on"] != found["none"]
    assert found["all"] != found["none"]
