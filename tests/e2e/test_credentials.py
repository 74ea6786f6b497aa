"""Through a real Envoy: the gateway's key reaches a provider in the header that it reads, and none of the client's."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import Envoy, Router, Upstream, prepared, served, started
from tests.e2e.test_routing import JSON_TYPE
from tests.extproc.envoy import chat

pytestmark = pytest.mark.e2e

POLICY = """\
version: 1
models:
  gpt: {name: gpt-5, url: "http://OTHER", credential: {from: {env: TEST_OPENAI_KEY}}}
  claude:
    name: claude-x
    url: "http://SERVER"
    credential: {header: x-api-key, from: {secret: claude, key: token, env: TEST_ANTHROPIC_KEY}}
  azure: {name: deployed, url: "http://SERVER", credential: {header: api-key, from: {env: TEST_AZURE_KEY}}}
  gemini:
    name: gemini-x
    url: "http://SERVER"
    credential: {header: x-goog-api-key, from: {env: TEST_GEMINI_KEY}}
    fallback: [gpt]
  own: {name: own, url: "http://SERVER"}
default: own
paths: [{match: /v1/audio/*, to: gemini}]
settings: {deadline: 60s}
"""
KEYS = {name: f"the-{name.lower()}-key" for name in ("OPENAI", "ANTHROPIC", "AZURE", "GEMINI")}
CLIENTS = {"authorization": "Bearer mine", "x-api-key": "mine", "api-key": "mine", "x-goog-api-key": "mine"}
HEADERS = set(CLIENTS)
GEMINI = {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


@dataclass
class World:
    envoy: Envoy
    router: Router


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("credentials")
    server, other = Upstream("server"), Upstream("other")
    with served(server, other), pytest.MonkeyPatch.context() as patch:
        text = POLICY.replace("SERVER", server.address).replace("OTHER", other.address)
        router, envoy = prepared(folder, text, absent="unix:/nowhere")
        envoy.listen("duplex", processing_mode=DUPLEX)
        envoy.listen("absent", "absent", failure_mode_allow=True)
        for name, key in KEYS.items():
            patch.setenv(f"TEST_{name}_KEY", key)
        with started(router, envoy):
            yield World(envoy, router)


def fields(api: str, model: str) -> Any:
    return {**json.loads(chat("hi", model=model)), **({"max_tokens": 9} if api == "messages" else {})}


async def reached(client: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[str, dict[str, str]]:
    """The path and the headers that reached the server."""
    sent = {**JSON_TYPE, **CLIENTS, **headers}
    async with client.post(url, data=json.dumps(body).encode(), headers=sent) as response:
        answer = await response.json()
    assert response.status == 200, answer
    echo = answer.get("echo", answer)
    return echo["path"], echo["headers"]


async def ask(client: aiohttp.ClientSession, url: str, body: Any, **headers: str) -> tuple[str, dict[str, str]]:
    """The path and the keys that reached the server."""
    path, found = await reached(client, url, body, **headers)
    return path, {name: value for name, value in found.items() if name in HEADERS}


@pytest.mark.parametrize("mode", ["ingress", "duplex"])
@pytest.mark.parametrize(
    ("path", "body", "header", "value"),
    [
        ("/v1/chat/completions", fields("chat", "gpt"), "authorization", f"Bearer {KEYS['OPENAI']}"),
        ("/v1/messages", fields("messages", "claude"), "x-api-key", KEYS["ANTHROPIC"]),
        ("/openai/deployments/deployed/chat/completions", fields("chat", "azure"), "api-key", KEYS["AZURE"]),
        ("/v1beta/models/gemini:generateContent", GEMINI, "x-goog-api-key", KEYS["GEMINI"]),
    ],
)
async def test_the_gateways_key_takes_the_place_of_all_of_the_clients(
    world: World, client: aiohttp.ClientSession, mode: str, path: str, body: Any, header: str, value: str
) -> None:
    for query in ("", "?key=mine", "?a=1&k%65y=mine&b=2&key=mine", "?keys=1"):
        arrived, keys = await ask(client, world.envoy.url(mode) + path + query, body)
        assert keys == {header: value}
        assert arrived.partition("?")[2] == {"?a": "a=1&b=2", "?keys": "keys=1"}.get(query.partition("=")[0], "")


async def test_where_there_is_no_credential_the_clients_stay(world: World, client: aiohttp.ClientSession) -> None:
    path = "/v1/chat/completions?key=mine"
    arrived, keys = await ask(client, world.envoy.url() + path, fields("chat", "own"))
    assert (arrived, keys) == (path, CLIENTS)


async def test_a_fallback_gets_its_own_key_alone(world: World, client: aiohttp.ClientSession) -> None:
    url = world.envoy.url() + "/v1/chat/completions?key=mine"
    arrived, keys = await ask(client, url, fields("chat", "gemini"), **{"x-fail-server": "503"})
    assert (arrived, keys) == ("/v1/chat/completions", {"authorization": f"Bearer {KEYS['OPENAI']}"})


async def test_opened_paths_and_a_missing_router_let_no_key_through(
    world: World, client: aiohttp.ClientSession
) -> None:
    for mode in ("ingress", "absent"):
        arrived, keys = await ask(client, world.envoy.url(mode) + "/v1/audio/speech?key=mine", {"model": "tts"})
        assert (arrived, keys) == ("/v1/audio/speech", {"x-goog-api-key": KEYS["GEMINI"]})


async def test_nobody_writes_a_key_down(world: World, client: aiohttp.ClientSession) -> None:
    url = world.envoy.url() + "/v1/chat/completions?key=hidden-mine"
    _, headers = await reached(client, url, fields("chat", "gpt"), authorization="Bearer hidden-mine")
    world.envoy.accesses(headers["x-request-id"])
    told = world.envoy.log() + json.dumps(world.envoy.config) + world.envoy.admin("/config_dump")
    told += world.router.metrics()
    assert not [key for key in (*KEYS.values(), "hidden-mine") if key in told]
