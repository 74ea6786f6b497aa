"""The rendered objects of Envoy Gateway in a real Envoy, beside another application on the same Gateway."""

from __future__ import annotations

import asyncio
import copy
import json
from collections import Counter
from collections.abc import Iterator

import aiohttp
import pytest

from cli.gateways import envoy_gateway
from cli.gateways.kubernetes import Cluster, Front
from cli.gateways.parts import STREAMS
from cli.gateways.place import Place
from config.watch import load
from tests.e2e import egd
from tests.e2e.proxy import JSON, Envoy, Router, Upstream, served, started
from tests.e2e.test_gateway import curl, put
from tests.e2e.test_istio import HOST, MIB, OTHER, Shared, ask, behaviour, static
from tests.e2e.test_routing import PATH
from tests.extproc.envoy import chat

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  small: {name: s, url: "http://small.models.svc:8000", fallback: [twin]}
  mortal: {name: s, url: "http://mortal.models.svc:8000", fallback: [twin]}
  twin: {name: s, url: "http://twin.models.svc:8000"}
  large:
    name: l
    url: "http://large.models.svc:8000"
    base_path: /api/v4
    credential: {from: {secret: large, key: credential}}
default: small
signals: {code: {keyword: {any: [traceback]}}, death: {keyword: {any: [mortal]}}}
decisions: [{name: code, when: code, route: large}, {name: death, when: death, route: mortal}]
settings: {max_body: 4MiB, deadline: 60s}
"""
FORMS = {
    "own": Front(hosts=(HOST,)),
    "joined": Front(name="pointsman", namespace="pointsman", hosts=(HOST,)),
}
ROUTES = [
    {"name": "gone", "match": {"prefix": "/gone"}, "route": {"cluster": "gone", "timeout": "0s"}},
    {"name": "shop", "match": {"prefix": "/"}, "route": {"cluster": "shop", "timeout": "0s"}},
]
LISTENER = "pointsman/pointsman/http"


def manager(listener: JSON) -> JSON:
    found: JSON = listener["default_filter_chain"]["filters"][0]["typed_config"]
    return found


def variants(listener: JSON) -> Iterator[JSON]:
    """The Gateway as it is without us (`none`), without the router (`absent`), and with our filters on for all."""
    none, absent, everywhere = (copy.deepcopy(listener) for _ in range(3))
    none["name"], absent["name"], everywhere["name"] = "none", "absent", "everywhere"
    del manager(none)["route_config"]["virtual_hosts"][0], manager(none)["http_filters"][:-1]
    for one in manager(absent)["http_filters"]:
        if "grpc_service" in one["typed_config"]:
            one["typed_config"]["grpc_service"]["envoy_grpc"]["cluster_name"] = "gone"
    for one in manager(everywhere)["http_filters"]:
        one.pop("disabled", None)
    return iter((none, absent, everywhere))


@pytest.fixture(scope="module", params=FORMS)
def shared(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("gateway")
    policy, keys = folder / "policy.yaml", folder / "secrets"
    policy.write_text(POLICY)
    keys.mkdir()
    put(keys, "large", "credential", "Bearer the-key")
    upstreams = {name: Upstream(name) for name in ("small", "mortal", "twin", "large", "shop")}
    with served(*upstreams.values()) as loop:
        cluster = Cluster(front=FORMS[request.param])
        objects = envoy_gateway.render(load(policy).engine, Place("0.0.0.0:80"), cluster)
        socket = f"unix:{folder / 'router'}"
        router = Router(policy, socket)
        envoy = Envoy(folder, policy, {"pointsman": socket}, secrets=str(keys))
        ours = next(each for each in envoy.config["static_resources"]["clusters"] if each["name"] == "pointsman")
        servers = {name: each.address for name, each in upstreams.items()}
        servers |= {f"model-{name}": address for name, address in servers.items()}
        servers["model-twin-standby"] = servers["twin"]
        listener = egd.listener(objects, [{"name": OTHER, "domains": [OTHER], "routes": ROUTES}])
        assert listener["name"] == LISTENER
        envoy.config["static_resources"] = {
            "listeners": [listener, *variants(listener)],
            "clusters": [
                *egd.clusters(objects, servers, ours, str(keys)),
                static("shop", servers["shop"]),
                static("gone", "127.0.0.1:1"),
            ],
        }
        with started(router, envoy):
            yield Shared(envoy, router, upstreams, loop, LISTENER)


@pytest.fixture
def form(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["shared"])


async def test_a_call_is_decided_and_goes_to_its_model(shared: Shared, client: aiohttp.ClientSession) -> None:
    for text, model, path, key in (
        ("hello", "small", PATH, "mine"),
        ("my traceback", "large", "/api/v4/chat/completions", "Bearer the-key"),
    ):
        sent = {"authorization": "mine", "x-api-key": "mine", "x-pointsman-route": "twin"}
        async with ask(client, shared.url() + PATH, HOST, chat(text), **sent) as response:
            answer = await response.json()
        assert (response.status, response.headers["x-pointsman-model"]) == (200, model)
        echo = answer["echo"]
        assert (echo["upstream"], echo["path"], echo["headers"]["authorization"]) == (model, path, key)
        assert ("x-api-key" in echo["headers"]) is (model == "small")
        assert echo["headers"]["host"].startswith(f"{model}.models.svc")


async def test_what_is_no_call_is_refused(shared: Shared, client: aiohttp.ClientSession) -> None:
    async with ask(client, shared.url() + "/generate", HOST, b"{}") as response:
        assert (response.status, response.content_type) == (404, "application/json")
        assert (await response.json())["error"]["code"] == "unknown_path"


async def test_another_server_of_the_model_takes_the_place_of_one_that_fails(
    shared: Shared, client: aiohttp.ClientSession
) -> None:
    for status in ("503", "429"):
        async with ask(client, shared.url() + PATH, HOST, chat("hello"), **{"x-fail-small": status}) as response:
            answer = await response.json()
        assert (response.status, answer["echo"]["upstream"], answer["model"]) == (200, "twin", "s")
        assert answer["echo"]["headers"]["host"].startswith("twin.models.svc")
    async with ask(client, shared.url() + PATH, HOST, chat("hello"), **{"x-fail-small": "400"}) as response:
        assert response.status == 400


async def test_a_prompt_longer_than_the_gateways_buffer_is_read(shared: Shared, client: aiohttp.ClientSession) -> None:
    for text, model in (("hello ", "twin"), ("my traceback ", "large")):
        sent = {"x-fail-small": "503"}
        async with ask(client, shared.url() + PATH, HOST, chat(text + "x" * 3 * MIB), **sent) as response:
            assert (response.status, (await response.json())["echo"]["upstream"]) == (200, model)
    status, _ = await asyncio.to_thread(curl, shared.url() + PATH, chat("x" * 5 * MIB), "-H", f"host: {HOST}")
    assert status == 413


async def test_clusters_let_more_than_1024_requests_on(shared: Shared) -> None:
    """The limits that Envoy has of the clusters; what happens without is in `test_many`."""
    mark = "::default_priority::max_requests::"
    lines = [line for line in shared.envoy.admin("/clusters").splitlines() if mark in line]
    limits = dict(line.split(mark) for line in lines)
    own = {name: int(limit) for name, limit in limits.items() if name.startswith(("httproute/", "envoyextension"))}
    assert len(own) == 6
    assert set(own.values()) == {STREAMS}
    assert limits["shop"] == "1024"


async def test_a_server_that_dies_fails_no_request(shared: Shared, client: aiohttp.ClientSession) -> None:
    """Requests that it has, and those that come later."""
    answers: Counter[tuple[int, str]] = Counter()
    ending = asyncio.Event()

    async def asking() -> None:
        while not ending.is_set():
            async with ask(client, shared.url() + PATH, HOST, chat("mortal"), **{"x-sleep": "0.05"}) as response:
                answers[response.status, (await response.json())["echo"]["upstream"]] += 1

    tasks = [asyncio.create_task(asking()) for _ in range(8)]

    async def more(name: str, count: int) -> None:
        wanted = answers[200, name] + count
        while answers[200, name] < wanted:
            assert not any(task.done() for task in tasks), [task.exception() for task in tasks if task.done()]
            await asyncio.sleep(0.01)

    await more("mortal", 20)
    assert set(answers) == {(200, "mortal")}
    await asyncio.to_thread(shared.loop.run, shared.upstreams["mortal"].cut())
    await more("twin", 40)
    ending.set()
    await asyncio.gather(*tasks)
    assert {status for status, _ in answers} == {200}


async def test_without_a_router_a_call_fails_as_its_api_says(
    shared: Shared, client: aiohttp.ClientSession, form: str
) -> None:
    """On a Gateway of our own, where the patch is."""
    async with ask(client, shared.envoy.url("absent") + PATH, HOST, chat("hello")) as response:
        text = await response.read()
    assert response.status == 503
    assert form == "joined" or json.loads(text)["error"]["code"] == "router_unavailable"


async def test_the_access_log_says_how_long_the_router_took(
    shared: Shared, client: aiohttp.ClientSession, form: str
) -> None:
    """On a Gateway of our own; others have theirs."""
    async with ask(client, shared.url() + PATH + "?logged", HOST, chat("my traceback")) as response:
        assert response.status == 200
    if form == "own":
        (line, *_) = shared.envoy.accesses('"decision":"code"')
        assert int(line["ext_proc_body_us"]) > 0
    else:
        assert "access_log" not in manager(shared.envoy.config["static_resources"]["listeners"][0])


async def test_the_other_application_of_a_gateway_keeps_its_behaviour(
    shared: Shared, client: aiohttp.ClientSession
) -> None:
    """Also when the router is gone; not where our filters are on for all."""
    names = (LISTENER, "none", "absent", "everywhere")
    found = {name: await behaviour(client, shared.envoy.url(name)) for name in names}
    assert found["none"].statuses == [200, 503, 200, 200]
    assert found[LISTENER] == found["absent"] == found["none"]
    assert found["everywhere"] != found["none"]
