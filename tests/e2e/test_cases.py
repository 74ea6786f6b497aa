"""Requests of public reports, each of which was read or sent on wrongly once, through a real Envoy to a server that
keeps what it gets. The SDK of each API reads the answer, or the refusal."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import anthropic
import openai
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import Envoy, Loop, prepared, started
from tests.e2e.servers import Records, echo_server

pytestmark = pytest.mark.e2e

JSON = dict[str, Any]
POLICY = """\
version: 1
auto: [auto, MoM]
models:
  small: {name: org/small, url: "http://SMALL", context: 32768}
  large: {name: org/large, url: "http://LARGE", context: 131072, aliases: ["claude-*"]}
  gpt: {name: gpt-5, url: "http://GPT", family: max_completion_tokens}
default: small
signals:
  forbidden: {keyword: {any: [classified-codeword], in: all}}
  code: {keyword: {any: [refactor]}}
  cap: {keyword: {any: [capme]}}
  long: {tokens: {at_least: 15000}}
  pictured: {conversation: {images: true}}
decisions:
  - {name: guard, when: forbidden, on_unknown: skip, respond: {status: 403, message: "Refused by policy."}}
  - {name: cap, when: cap, route: gpt, set: {max_tokens: 1000}}
  - {name: code, when: code, route: large}
  - {name: long, when: long, route: large}
  - {name: pictured, when: pictured, route: gpt}
"""
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
EMBEDDINGS, COMPLETIONS = "/v1/embeddings", "/v1/completions"
PNG = "data:image/png;base64,iVBORw0KGgo="
SHOWN = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}}
WORDS = "word " * 20_000
PDF = "JVBERi0xLjcK" + "A" * 1_900_000
MARK = "classified-codeword"


def user(content: Any) -> JSON:
    return {"role": "user", "content": content}


def tool_loop(first: str, result: Any, *beside: JSON) -> list[JSON]:
    """A call of /v1/messages that goes on after a tool's result, beside which stand further parts."""
    use = {"type": "tool_use", "id": "t1", "name": "Read", "input": {}}
    given = {"type": "tool_result", "tool_use_id": "t1", "content": result}
    return [user(first), {"role": "assistant", "content": [use]}, user([given, *beside])]


REMINDER = {"type": "text", "text": "<system-reminder>The list was not used lately. Just capme.</system-reminder>"}
SHELL = {
    "type": "shell_call_output", "call_id": "c1", "max_output_length": 4096,
    "output": [{"stdout": "a.txt", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
}  # fmt: skip
CALLED = {"type": "shell_call", "call_id": "c1", "action": {"commands": ["ls"]}}

CASES: dict[str, tuple[str, JSON, str]] = {
    "an image in a tool's result": (MESSAGES, {"messages": tool_loop("look at the screenshot", [SHOWN])}, "gpt"),
    "a reminder beside a tool's result": (MESSAGES, {"messages": tool_loop("refactor it", "x", REMINDER)}, "large"),
    "an image in a function's output": (
        RESPONSES,
        {
            "input": [
                user("look"),
                {"type": "function_call", "call_id": "c1", "name": "shot", "arguments": "{}"},
                {
                    "type": "function_call_output",
                    "call_id": "c1",
                    "output": [{"type": "input_image", "image_url": PNG}],
                },
            ]
        },
        "gpt",
    ),
    "a shell's output": (RESPONSES, {"input": [user("list the files"), CALLED, SHELL]}, "small"),
    "a conversation alone": (RESPONSES, {"conversation": "conv_1"}, "small"),
    "an item whose type is null": (RESPONSES, {"input": [user("hi") | {"type": None}, user("refactor")]}, "large"),
    "embeddings of messages": (
        EMBEDDINGS,
        {"messages": [user([{"type": "image_url", "image_url": {"url": PNG}}])], "encoding_format": "float"},
        "gpt",
    ),
    "embeddings of parts": (
        EMBEDDINGS,
        {"input": [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": PNG}}]},
        "gpt",
    ),
    "a prompt of embeddings": (COMPLETIONS, {"prompt_embeds": "AAAA", "max_tokens": 4}, "small"),
    "a custom tool's long input": (
        RESPONSES,
        {
            "input": [
                {"type": "custom_tool_call", "call_id": "c", "name": "p", "input": WORDS},
                {"type": "custom_tool_call_output", "call_id": "c", "output": "ok"},
                user("hi"),
            ]
        },
        "large",
    ),
    "a server's long output": (
        RESPONSES,
        {
            "input": [
                {"type": "mcp_call", "id": "m", "name": "f", "server_label": "s", "arguments": "{}", "output": WORDS},
                user("hi"),
            ]
        },
        "large",
    ),
    "a long thought": (
        MESSAGES,
        {
            "messages": [
                user("hi"),
                {
                    "role": "assistant",
                    "content": [
                        {"type": "thinking", "thinking": WORDS, "signature": "c2ln"},
                        {"type": "text", "text": "Hm."},
                    ],
                },
                user("and?"),
            ]
        },
        "large",
    ),
    "what code has printed": (
        MESSAGES,
        {
            "messages": [
                user("run it"),
                {
                    "role": "assistant",
                    "content": [
                        {
                            "type": "server_tool_use",
                            "id": "s",
                            "name": "bash_code_execution",
                            "input": {"command": "x"},
                        },
                        {
                            "type": "bash_code_execution_tool_result",
                            "tool_use_id": "s",
                            "content": {
                                "type": "bash_code_execution_result",
                                "stdout": WORDS,
                                "stderr": "",
                                "return_code": 0,
                            },
                        },
                    ],
                },
                user("and?"),
            ]
        },
        "large",
    ),
    "long reasoning of a chat": (
        CHAT,
        {"messages": [user("hi"), {"role": "assistant", "content": "", "reasoning_content": WORDS}, user("and?")]},
        "large",
    ),
    "an image in a template's variable": (
        RESPONSES,
        {"prompt": {"id": "p", "variables": {"a": "b", "shot": {"type": "input_image", "image_url": PNG}}}},
        "gpt",
    ),
    "a thread that goes on": (
        MESSAGES,
        {"thread": {"type": "continue", "previous_message_id": "msg_1"}, "messages": [user("refactor it")]},
        "large",
    ),
    "a long PDF": (
        MESSAGES,
        {
            "messages": [
                user([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": PDF}}])
            ]
        },
        "large",
    ),
}
KINDS: dict[str, Any] = {
    CHAT: ChatCompletion, COMPLETIONS: Completion, EMBEDDINGS: CreateEmbeddingResponse, RESPONSES: Response,
    MESSAGES: anthropic.types.Message,
}  # fmt: skip


NAMES = {"small": "org/small", "large": "org/large", "gpt": "gpt-5"}


@dataclass
class World:
    envoy: Envoy
    servers: dict[str, Records]

    def counts(self) -> dict[str, int]:
        """How many requests each model has had."""
        return {name: len(server.read()) for name, server in self.servers.items()}

    def last(self, model: str) -> tuple[str, JSON]:
        """The path and body of the last request that this model has had."""
        return self.servers[model].read()[-1]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("cases")
    loop = Loop()
    servers = {key: echo_server(loop, name) for key, name in NAMES.items()}
    text = POLICY
    for key, server in servers.items():
        text = text.replace(key.upper(), server.address)
    router, envoy = prepared(folder, text)
    envoy.listen("duplex", processing_mode=DUPLEX)
    try:
        with started(router, envoy):
            yield World(envoy, servers)
    finally:
        for server in servers.values():
            server.stop()
        loop.close()


def sdk(url: str, path: str) -> openai.AsyncOpenAI | anthropic.AsyncAnthropic:
    if path == MESSAGES:
        return anthropic.AsyncAnthropic(base_url=url, api_key="sk-test", max_retries=0)
    return openai.AsyncOpenAI(base_url=url, api_key="sk-test", max_retries=0)


async def ask(url: str, path: str, body: JSON) -> Any:
    """The answer, as the SDK of the API has it."""
    async with sdk(url, path) as client:
        return await client.post(path, cast_to=KINDS[path], body=body)


@pytest.mark.parametrize("mode", ["ingress", "duplex"])
@pytest.mark.parametrize("case", CASES)
async def test_it_goes_where_it_should_and_as_it_came(world: World, case: str, mode: str) -> None:
    path, fields, model = CASES[case]
    body = {"model": "auto", **({"max_tokens": 9} if path == MESSAGES else {}), **fields}
    answer = await ask(world.envoy.url(mode), path, body)
    assert isinstance(answer, KINDS[path])
    assert answer.model == NAMES[model]
    assert world.last(model) == (path, body | {"model": NAMES[model]})


TEXTLESS = ("a prompt of embeddings", "a conversation alone")


@pytest.mark.parametrize("case", [case for case in CASES if case not in TEXTLESS])
async def test_the_guard_sees_it(world: World, case: str) -> None:
    """What names the marked text anywhere is refused, and nobody gets it."""
    path, fields, _ = CASES[case]
    body = {"model": "auto", **({"max_tokens": 9} if path == MESSAGES else {}), **fields}
    before = world.counts()
    marked = _marked(body)
    refused = anthropic.PermissionDeniedError if path == MESSAGES else openai.PermissionDeniedError
    with pytest.raises(refused):
        await ask(world.envoy.url(), path, marked)
    assert world.counts() == before


def _marked(body: JSON) -> JSON:
    """`body` with the marked text in its innermost last object."""
    new = copy.deepcopy(body)
    value: Any = new
    while True:
        below = [one for one in (value.values() if isinstance(value, dict) else value) if isinstance(one, (dict, list))]
        if not below:
            break
        value = below[-1]
    value["note"] = MARK
    return new


@pytest.mark.parametrize("mode", ["ingress", "duplex"])
async def test_names_of_models(world: World, mode: str) -> None:
    body: JSON = {"messages": [user("hello")]}
    for name in ("auto", "AUTO", "MoM", "mom", " MoM ", "MoM[1m]", "MoM[1M]"):
        assert (await ask(world.envoy.url(mode), CHAT, body | {"model": name})).model == "org/small", name
    for name in ("claude-haiku-4-5-20251001", "large", "org/large"):
        assert (await ask(world.envoy.url(mode), CHAT, body | {"model": name})).model == "org/large", name
    for name in ("auto:latest", "org/small:free", "pointsman/auto"):
        with pytest.raises(openai.NotFoundError):
            await ask(world.envoy.url(mode), CHAT, body | {"model": name})
        with pytest.raises(anthropic.NotFoundError):
            await ask(world.envoy.url(mode), MESSAGES, body | {"model": name, "max_tokens": 9})


async def test_integers_and_limits(world: World) -> None:
    seed = 123456789012345678901234567890
    async with sdk(world.envoy.url(), CHAT) as client:
        raw = b'{"seed": %d, "model": "auto", "max_tokens": 5000, "messages": [{"role": "user", "content": "capme"}]}'
        await client.post(
            CHAT, cast_to=ChatCompletion, content=raw % seed, options={"headers": {"content-type": "application/json"}}
        )
    wanted = {"model": "gpt-5", "seed": seed, "max_completion_tokens": 1000, "messages": [user("capme")]}
    assert world.last("gpt")[1] == wanted
