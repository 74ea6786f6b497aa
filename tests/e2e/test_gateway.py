"""Through a real Envoy: base paths, fallbacks, credentials, browsers, and Envoy's own answers in the API's shape."""

from __future__ import annotations

import asyncio
import hashlib
import json
import select
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import anthropic
import h2.config
import h2.connection
import h2.events
import openai
import pytest
import yaml
from google import genai
from google.genai import errors

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import JSON, Envoy, Router, Upstream, served, started
from tests.e2e.test_routing import JSON_TYPE, PATH, post
from tests.extproc.envoy import chat
from tests.extproc.watching.streams import plainly

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  plain: {name: org/plain, url: "http://PLAIN"}
  glm:
    name: org/glm
    url: "http://GLM"
    base_path: /api/paas/v4
    fallback: [backup]
    credential: {from: {secret: glm, key: token}}
  root: {name: org/root, url: "http://ROOT/proxy", base_path: /}
  backup:
    name: "org/\\"back\\" up"
    url: "http://BACKUP/below/v1"
    fallback: [last]
    credential: {header: x-api-key, from: {secret: backup, key: key}}
  last: {name: org/glm, url: "http://LAST", base_path: /v9}
  dead: {name: org/dead, url: "http://DEAD", fallback: [plain]}
  gone: {name: org/gone, url: "http://DEAD"}
  locked: {name: org/locked, url: "http://PLAIN", credential: {from: {secret: locked, key: token}}}
default: plain
paths:
  - {match: /v1/audio/*, to: glm}
  - {match: /tools/*, to: glm}
settings: {max_body: 3MiB}
"""
NAMES = ("plain", "glm", "root", "backup", "last")


@dataclass
class World:
    envoy: Envoy
    router: Router
    upstreams: dict[str, Upstream]
    secrets: Path

    def seen(self) -> dict[str, int]:
        return {name: upstream.seen for name, upstream in self.upstreams.items()}


def put(folder: Path, secret: str, key: str, value: str) -> None:
    """A secret as Envoy reads it from a file."""
    kind = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"
    content = {"@type": kind, "name": key, "generic_secret": {"secret": {"inline_string": value}}}
    (folder / secret).mkdir(exist_ok=True)
    new = folder / secret / "new"
    new.write_text(yaml.safe_dump({"resources": [content]}))
    new.rename(folder / secret / f"{key}.yaml")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("gateway")
    upstreams = {name: Upstream(name) for name in NAMES}
    with served(*upstreams.values()):
        text = POLICY
        for name, upstream in upstreams.items():
            text = text.replace(f"//{name.upper()}", f"//{upstream.address}")
        with socket.create_server(("127.0.0.1", 0)) as nobody:
            text = text.replace("DEAD", f"127.0.0.1:{nobody.getsockname()[1]}")
        policy = folder / "policy.yaml"
        policy.write_text(text)
        secrets = folder / "secrets"
        secrets.mkdir()
        put(secrets, "glm", "token", "glm-token")
        put(secrets, "backup", "key", "backup-key")
        put(secrets, "locked", "token", "")
        sockets = {name: f"unix:{folder / name}" for name in ("pointsman", "absent")}
        router = Router(policy, sockets["pointsman"])
        envoy = Envoy(folder, policy, sockets, secrets=str(secrets), origins=("https://chat.example.com",))
        for cluster in envoy.config["static_resources"]["clusters"]:
            cluster.pop("outlier_detection", None)  # servers fail on purpose here, one test after the other
        envoy.listen("buffered")
        envoy.listen("duplex", processing_mode=DUPLEX)
        envoy.listen("absent", "absent")
        envoy.listen("absent_duplex", "absent", processing_mode=DUPLEX)
        envoy.listen("small_buffer", buffer=32_768)
        with started(router, envoy):
            yield World(envoy, router, upstreams, secrets)


MODES = ("ingress", "duplex")


async def ask(
    world: World, client: aiohttp.ClientSession, model: str, mode: str = "ingress", **headers: str
) -> tuple[int, JSON]:
    status, _, answer = await post(client, world.envoy.url(mode) + PATH, chat("hello", model=model), **headers)
    return status, answer


# Base paths


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("path", "arrives"),
    [
        ("/v1/chat/completions", "/chat/completions"),
        ("/v1/chat/completions?a=1", "/chat/completions?a=1"),
        ("/tenant/v2/chat/completions", "/chat/completions"),
        ("/openai/v1/responses", "/responses"),
        ("/v1/messages/count_tokens", "/messages/count_tokens"),
        ("/openai/deployments/glm/chat/completions", "/chat/completions"),
        ("/chat/completions", "/chat/completions"),
    ],
)
async def test_a_base_path_takes_the_place_of_the_clients(
    world: World, client: aiohttp.ClientSession, mode: str, path: str, arrives: str
) -> None:
    fields: JSON = {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 9}
    if path.endswith("responses"):
        fields = {"input": "hi"}
    for model, before in (("glm", "/api/paas/v4"), ("root", "/proxy")):
        if "deployments" in path and model != "glm":
            continue
        body = json.dumps({"model": model, **fields}).encode()
        status, _, answer = await post(client, world.envoy.url(mode) + path, body)
        assert status == 200
        assert (answer["echo"]["upstream"], answer["echo"]["path"]) == (model, before + arrives)


async def test_a_model_without_a_base_path_gets_what_the_client_has(
    world: World, client: aiohttp.ClientSession
) -> None:
    for path in ("/v1/chat/completions", "/tenant/v2/chat/completions"):
        _, _, answer = await post(client, world.envoy.url() + path, chat("hi", model="plain"))
        assert answer["echo"]["path"] == path


async def test_opened_paths_lead_below_the_base_path_where_they_have_a_version(
    world: World, client: aiohttp.ClientSession
) -> None:
    for path, arrives in (("/v1/audio/speech", "/api/paas/v4/audio/speech"), ("/tools/x", "/tools/x")):
        async with client.post(world.envoy.url() + path, data=b"x") as response:
            assert (await response.json())["path"] == arrives


# Credentials


async def test_the_gateway_lets_the_request_in_and_keeps_the_clients_key(
    world: World, client: aiohttp.ClientSession
) -> None:
    keys = {"authorization": "Bearer client", "x_api_key": "client"}
    _, answer = await ask(world, client, "glm", **keys)
    assert answer["echo"]["headers"]["authorization"] == "Bearer glm-token"
    _, answer = await ask(world, client, "backup", **keys)
    assert answer["echo"]["headers"]["x-api-key"] == "backup-key"
    _, answer = await ask(world, client, "plain", **keys)
    assert answer["echo"]["headers"]["authorization"] == "Bearer client"
    async with client.post(world.envoy.url() + "/v1/audio/speech", data=b"x") as response:
        assert (await response.json())["headers"]["authorization"] == "Bearer glm-token"
    assert "glm-token" not in world.envoy.log()


async def test_a_new_file_is_followed(world: World, client: aiohttp.ClientSession) -> None:
    put(world.secrets, "backup", "key", "renewed")
    try:
        for _ in range(100):
            _, answer = await ask(world, client, "backup")
            if answer["echo"]["headers"]["x-api-key"] == "renewed":
                return
            await asyncio.sleep(0.05)
        raise AssertionError("the old key is still sent")
    finally:
        put(world.secrets, "backup", "key", "backup-key")


async def test_without_its_credential_a_request_goes_nowhere(world: World, client: aiohttp.ClientSession) -> None:
    before = world.upstreams["plain"].seen
    status, answer = await ask(world, client, "locked")
    assert (status, answer["error"]["type"]) == (401, "authentication_error")
    assert world.upstreams["plain"].seen == before


# Fallbacks


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("status", [429, 500, 503])
async def test_a_failed_model_makes_way_for_its_fallbacks(
    world: World, client: aiohttp.ClientSession, mode: str, status: int
) -> None:
    """With their own name, path, host and credential."""
    before = world.seen()
    keys = {"authorization": "Bearer client"}
    got, answer = await ask(world, client, "glm", mode, x_fail_glm=str(status), **keys)
    echo = answer["echo"]
    assert (got, echo["upstream"], echo["path"]) == (200, "backup", "/below/v1/chat/completions")
    assert json.loads(echo["body"])["model"] == 'org/"back" up'
    assert echo["headers"]["host"] == world.upstreams["backup"].address
    assert echo["headers"]["x-api-key"] == "backup-key"
    assert "authorization" not in echo["headers"]
    got, answer = await ask(world, client, "glm", mode, x_fail_glm=str(status), x_fail_backup=str(status), **keys)
    echo = answer["echo"]
    assert (got, echo["upstream"], echo["path"]) == (200, "last", "/v9/chat/completions")
    assert json.loads(echo["body"])["model"] == "org/glm"
    assert not {"authorization", "x-api-key"} & set(echo["headers"])
    after = world.seen()
    assert {name: after[name] - before[name] for name in NAMES} == {
        "plain": 0,
        "glm": 2,
        "root": 0,
        "backup": 2,
        "last": 1,
    }


@pytest.mark.parametrize("mode", MODES)
async def test_a_server_that_is_not_there_makes_way(world: World, client: aiohttp.ClientSession, mode: str) -> None:
    status, answer = await ask(world, client, "dead", mode)
    assert (status, answer["echo"]["upstream"], answer["model"]) == (200, "plain", "org/plain")


@pytest.mark.parametrize("mode", MODES)
async def test_long_bodies_fail_over_whole(world: World, client: aiohttp.ClientSession, mode: str) -> None:
    """Byte for byte but for the name, however much comes before it."""
    noise = {"model": "not this", "a": ['"model": "nor this"', {"model": "nor this"}], "b\\": "\\"}
    tail = {"messages": [{"role": "user", "content": "é" * 1_000_000}], "n": 123456789012345678901234567890}
    text = f'{{"metadata": {json.dumps(noise)} , "mod\\u0065l" : "glm","x": "model", '
    text += json.dumps(tail, ensure_ascii=False)[1:]
    status, _, answer = await post(client, world.envoy.url(mode) + PATH, text.encode(), x_fail_glm="503")
    assert (status, answer["echo"]["upstream"]) == (200, "backup")
    wanted = text.replace('"glm"', '"org/\\"back\\" up"').encode()
    assert (answer["echo"]["length"], answer["echo"]["sha256"]) == (len(wanted), hashlib.sha256(wanted).hexdigest())


async def test_the_client_is_told_who_has_answered(world: World, client: aiohttp.ClientSession) -> None:
    for fails, model in (((), "glm"), (("glm",), "backup"), (("glm", "backup"), "last")):
        more = {f"x_fail_{name}": "503" for name in fails}
        _, headers, _ = await post(client, world.envoy.url() + PATH, chat("hi", model="glm"), **more)
        assert headers.getall("x-pointsman-model") == [model]
        assert "x-pointsman-fallback" not in headers


async def test_no_model_answers_in_another_s_name(world: World, client: aiohttp.ClientSession) -> None:
    """What an upstream says of fallbacks is not Envoy's word, be it the chosen model's or a fallback's."""
    for claim in ("backup", "last", "glm", ""):
        for fails, model in (((), "glm"), (("glm",), "backup"), (("glm", "backup"), "last")):
            more = {f"x_fail_{name}": "503" for name in fails} | {"x_claim": claim}
            _, headers, _ = await post(client, world.envoy.url() + PATH, chat("hi", model="glm"), **more)
            assert headers.getall("x-pointsman-model") == [model]
            assert "x-pointsman-fallback" not in headers


async def test_streams_fail_over_before_their_first_byte(world: World, client: aiohttp.ClientSession) -> None:
    body = chat("hi", model="glm", stream=True)
    headers = JSON_TYPE | {"x-fail-glm": "503"}
    async with client.post(world.envoy.url() + PATH, data=body, headers=headers) as response:
        assert response.status == 200
        assert b"back" in await response.read()


async def test_when_all_fail_the_last_one_answers(world: World, client: aiohttp.ClientSession) -> None:
    fails = {f"x_fail_{name}": "500" for name in ("glm", "backup")} | {"x_fail_last": "429"}
    status, answer = await ask(world, client, "glm", **fails)
    assert (status, answer["error"]["message"]) == (429, "last fails")


async def test_a_refused_request_does_not_fail_over(world: World, client: aiohttp.ClientSession) -> None:
    before = world.upstreams["backup"].seen
    status, answer = await ask(world, client, "glm", x_fail_glm="400")
    assert (status, answer["error"]["message"], world.upstreams["backup"].seen) == (400, "glm fails", before)


# Envoy's own answers


APIS = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}]}, False),
    ("/v1/responses", {"input": "hi"}, False),
    ("/v1/embeddings", {"input": "hi"}, False),
    ("/v1/messages", {"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}, True),
    ("/v1/messages?beta=true", {"max_tokens": 1, "messages": [{"role": "user", "content": "hi"}]}, True),
    ("/v1/messages/count_tokens", {"messages": [{"role": "user", "content": "hi"}]}, True),
]
GEMINI: JSON = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


def check(answer: JSON, anthropic: bool, kinds: tuple[str, str]) -> None:
    """An error in the shape of its API: its type, and a text."""
    assert answer["error"]["message"]
    if anthropic:
        assert (set(answer), answer["type"]) == ({"type", "error"}, "error")
        assert (set(answer["error"]), answer["error"]["type"]) == ({"type", "message"}, kinds[1])
    else:
        assert set(answer) == {"error"}
        assert (set(answer["error"]), answer["error"]["type"]) == ({"message", "type", "param", "code"}, kinds[0])


@pytest.mark.parametrize(("path", "fields", "anthropic"), APIS, ids=[path for path, _, _ in APIS])
async def test_a_dead_upstream_is_503_in_the_apis_shape(
    world: World, client: aiohttp.ClientSession, path: str, fields: JSON, anthropic: bool
) -> None:
    body = json.dumps({"model": "gone", **fields}).encode()
    for mode in MODES:
        async with client.post(world.envoy.url(mode) + path, data=body, headers=JSON_TYPE) as response:
            assert (response.status, response.content_type) == (503, "application/json")
            check(await response.json(), anthropic, ("server_error", "api_error"))


@pytest.mark.parametrize(("path", "fields", "anthropic"), APIS, ids=[path for path, _, _ in APIS])
async def test_no_router_is_503_in_the_apis_shape(
    world: World, client: aiohttp.ClientSession, path: str, fields: JSON, anthropic: bool
) -> None:
    body = json.dumps({"model": "plain", **fields}).encode()
    before = world.seen()
    for mode in ("absent", "absent_duplex"):
        async with client.post(world.envoy.url(mode) + path, data=body, headers=JSON_TYPE) as response:
            assert (response.status, response.content_type) == (503, "application/json")
            answer = await response.json()
            check(answer, anthropic, ("server_error", "api_error"))
            assert "router" in answer["error"]["message"]
    assert world.seen() == before


@pytest.mark.filterwarnings("ignore:Inheritance class AiohttpClientSession:DeprecationWarning")  # Google's own
@pytest.mark.parametrize("method", ["generateContent", "streamGenerateContent?alt=sse", "countTokens"])
async def test_google_s_shape_is_the_gateways_too(world: World, client: aiohttp.ClientSession, method: str) -> None:
    long = {"contents": [{"role": "user", "parts": [{"text": "x" * 200_000}]}]}
    for listener, model, body, status, name in (
        ("ingress", "gone", GEMINI, 503, "UNAVAILABLE"),
        ("duplex", "gone", GEMINI, 503, "UNAVAILABLE"),
        ("absent", "plain", GEMINI, 503, "UNAVAILABLE"),
        ("absent_duplex", "plain", GEMINI, 503, "UNAVAILABLE"),
        ("small_buffer", "plain", long, 413, "INVALID_ARGUMENT"),
        ("ingress", "locked", GEMINI, 401, "UNAUTHENTICATED"),
    ):
        url = f"{world.envoy.url(listener)}/v1beta/models/{model}:{method}"
        async with client.post(url, json=body) as response:
            assert (response.status, response.content_type) == (status, "application/json")
            error = (await response.json())["error"]
        assert (error["code"], error["status"]) == (status, name)
        assert error["message"]
        google = genai.Client(api_key="k", http_options=plainly(world.envoy.url(listener)))
        async with google.aio as sdk:
            with pytest.raises(errors.APIError) as refused:
                await sdk.models.generate_content(model=model, contents=body["contents"])
        google.close()
        assert (refused.value.code, refused.value.status) == (status, name)


async def test_the_sdks_read_the_gateways_answers(world: World) -> None:
    turn: list[Any] = [{"role": "user", "content": "hi"}]
    long: list[Any] = [{"role": "user", "content": "x" * 200_000}]
    for listener, model, messages, status in (
        ("ingress", "gone", turn, 503),
        ("absent", "plain", turn, 503),
        ("small_buffer", "plain", long, 413),
        ("ingress", "locked", turn, 401),
    ):
        url = world.envoy.url(listener)
        async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as gpt:
            with pytest.raises(openai.APIStatusError) as refused:
                await gpt.chat.completions.create(model=model, messages=messages)
            assert refused.value.status_code == status
            assert isinstance(refused.value.body, dict)
            assert refused.value.body["message"]
        async with anthropic.AsyncAnthropic(base_url=url, api_key="k", max_retries=0) as claude:
            with pytest.raises(anthropic.APIStatusError) as failed:
                await claude.messages.create(model=model, max_tokens=9, messages=messages)
            assert failed.value.status_code == status
            assert isinstance(failed.value.body, dict)
            assert failed.value.body["type"] == "error"
            assert failed.value.body["error"]["message"]


async def test_the_routers_answers_stay_as_they_are(world: World, client: aiohttp.ClientSession) -> None:
    status, answer = await ask(world, client, "nobody")
    assert (status, answer["error"]["code"]) == (404, "model_not_found")
    async with client.get(world.envoy.url() + "/nowhere") as response:
        assert (response.status, (await response.json())["error"]["code"]) == (404, "unknown_path")
    # With no router the route's own refusal is the same.
    status, answer = await ask(world, client, "glm", x_fail_glm="404")
    assert (status, answer) == (404, {"error": {"message": "glm fails"}})


def curl(url: str, body: bytes, *options: str) -> tuple[int, bytes]:
    """The status and the answer of a client that sends on HTTP/1.1 whatever comes back meanwhile."""
    command = ["curl", "-sS", "--http1.1", "--max-time", "20", "-w", "\n%{http_code}", "-H", "expect:", *options]
    command += ["-H", "content-type: application/json", "--data-binary", "@-", url]
    done = subprocess.run(command, input=body, capture_output=True, check=True)
    answer, _, status = done.stdout.rpartition(b"\n")
    return int(status), answer


def over_http2(port: int, path: str, body: bytes, declared: bool) -> tuple[int, bytes]:
    """The same over HTTP/2. Once it has the whole answer the server says that it wants no more (RFC 9113, 8.1)."""
    client = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True, header_encoding="utf-8"))
    client.initiate_connection()
    fields = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "x")]
    fields += [("content-type", "application/json"), *([("content-length", str(len(body)))] if declared else [])]
    client.send_headers(1, fields)
    sent, status, answer = 0, 0, b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        while True:
            room = 0
            if sent < len(body) and client.streams[1].open:
                room = min(client.local_flow_control_window(1), client.max_outbound_frame_size, len(body) - sent)
            if room:
                client.send_data(1, body[sent : sent + room], end_stream=sent + room == len(body))
                sent += room
            connection.sendall(client.data_to_send())
            if not select.select([connection], [], [], 0 if room else 10)[0]:
                assert room, "nothing came"
                continue
            for event in client.receive_data(connection.recv(65_536)):
                if isinstance(event, h2.events.ResponseReceived):
                    status = int(dict(event.headers)[":status"])
                elif isinstance(event, h2.events.DataReceived):
                    answer += event.data
                elif isinstance(event, h2.events.StreamEnded):
                    return status, answer
                else:
                    assert not isinstance(event, h2.events.StreamReset | h2.events.ConnectionTerminated)


@pytest.mark.parametrize("version", ["1.1", "2"])
@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("mode", ["ingress", "duplex", "small_buffer"])
@pytest.mark.parametrize("size", [3 * 2**20 + 1000, 3 * 2**20 + 200_000, 12 * 2**20])
def test_too_long_a_body_is_413_in_the_apis_shape(
    world: World, version: str, declared: bool, mode: str, size: int
) -> None:
    body = chat("x" * size, model="plain")
    for path, claude in ((PATH, False), ("/v1/messages", True)):
        if version == "2":
            status, answer = over_http2(world.envoy.port(mode), path, body, declared)
        else:
            more = [] if declared else ["-H", "transfer-encoding: chunked"]
            status, answer = curl(world.envoy.url(mode) + path, body, *more)
        assert status == 413
        check(json.loads(answer), claude, ("invalid_request_error", "request_too_large"))


async def test_the_gateways_own_413_is_in_the_apis_shape(world: World, client: aiohttp.ClientSession) -> None:
    """A body that the policy would take, and the gateway's buffer does not hold."""
    url = world.envoy.url("small_buffer")
    for path, claude in ((PATH, False), ("/v1/messages", True)):
        status, headers, answer = await post(client, url + path, chat("x" * 200_000, model="plain"))
        assert (status, headers["content-type"]) == (413, "application/json")
        check(answer, claude, ("invalid_request_error", "request_too_large"))
    assert world.envoy.accesses("request_payload_too_large")


# Browsers


async def test_a_preflight_is_answered_and_pages_may_read_answers(world: World, client: aiohttp.ClientSession) -> None:
    asks = {
        "origin": "https://chat.example.com",
        "access-control-request-method": "POST",
        "access-control-request-headers": "authorization,content-type,x-stainless-lang",
    }
    before = world.seen()
    async with client.options(world.envoy.url() + PATH, headers=asks) as response:
        assert response.status in (200, 204)
        assert response.headers["access-control-allow-origin"] == "https://chat.example.com"
        allowed = response.headers["access-control-allow-headers"].split(", ")
        assert {"authorization", "content-type", "x-stainless-lang", "anthropic-version"} <= set(allowed)
        assert "POST" in response.headers["access-control-allow-methods"]
    assert world.seen() == before
    for model, status in (("plain", 200), ("nobody", 404), ("gone", 503)):
        got, headers, _ = await post(client, world.envoy.url() + PATH, chat("hi", model=model), origin=asks["origin"])
        assert (got, headers["access-control-allow-origin"]) == (status, "https://chat.example.com")
        assert "x-pointsman-model" in headers["access-control-expose-headers"]


async def test_other_pages_are_not_let_in(world: World, client: aiohttp.ClientSession) -> None:
    asks = {"origin": "https://evil.example.com", "access-control-request-method": "POST"}
    async with client.options(world.envoy.url() + PATH, headers=asks) as response:
        assert response.status == 405
        assert "access-control-allow-origin" not in response.headers


@pytest.mark.parametrize("mode", MODES)
async def test_a_call_that_names_its_model_in_the_path_fails_over_with_the_others_name(
    world: World, client: aiohttp.ClientSession, mode: str
) -> None:
    body = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}
    url = world.envoy.url(mode) + "/v1beta/models/glm:generateContent?alt=json"
    async with client.post(url, json=body, headers={"x-fail-glm": "503"}) as response:
        answer = await response.json()
    assert response.status == 200
    echo = answer["echo"]
    assert (echo["upstream"], echo["path"]) == (
        "backup",
        "/below/v1beta/models/org/%22back%22%20up:generateContent?alt=json",
    )
    assert json.loads(echo["body"]) == body
    assert response.headers["x-pointsman-model"] == "backup"
