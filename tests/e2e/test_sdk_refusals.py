"""The OpenAI, Azure and Anthropic SDKs, unchanged: what they call works, and each refusal is the right exception."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx2 as httpx  # what both SDKs speak HTTP with
import openai
import pytest

from tests.e2e.conftest import DUPLEX
from tests.e2e.proxy import Envoy, Router, Upstream, prepared, served, started, until
from tests.e2e.servers import echo_server
from tests.e2e.test_unread import MARK, MODES

pytestmark = pytest.mark.e2e

POLICY = f"""\
version: 1
models:
  small: {{name: org/small, url: "http://SMALL"}}
  large: {{name: org/large, url: "http://LARGE"}}
default: small
signals:
  forbidden: {{keyword: {{any: [{MARK}], in: all}}}}
decisions:
  - {{name: guard, when: forbidden, on_unknown: match, respond: {{status: 403, message: "Refused by policy."}}}}
settings: {{max_body: 1MiB, max_open_bodies: 2MiB, body_timeout: 1s}}
"""
TURN: list[Any] = [{"role": "user", "content": "hello"}]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Envoy, Router]]:
    folder: Path = tmp_path_factory.mktemp("sdks")
    large = Upstream("large")
    with served(large) as loop:
        small = echo_server(loop)
        text = POLICY.replace("SMALL", small.address).replace("LARGE", large.address)
        router, envoy = prepared(folder, text)
        envoy.listen("duplex", processing_mode=DUPLEX)
        try:
            with started(router, envoy):
                yield envoy, router
        finally:
            small.stop()


@pytest.fixture(params=MODES)
def url(world: tuple[Envoy, Router], request: pytest.FixtureRequest) -> str:
    return world[0].url("ingress" if request.param == "buffered" else "duplex")


def gpt(url: str, **more: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=url + "/v1", api_key="sk-test", max_retries=0, **more)


def claude(url: str, **more: Any) -> anthropic.AsyncAnthropic:
    return anthropic.AsyncAnthropic(base_url=url, api_key="sk-test", max_retries=0, **more)


async def test_the_apis_of_openai_work(url: str) -> None:
    async with gpt(url) as client:
        answer = await client.chat.completions.create(model="auto", messages=TURN)
        assert answer.choices[0].message.content == "org/small answers: hello"
        response = await client.responses.create(model="auto", input="hello")
        assert response.output_text == "org/small answers: hello"
        async with client.responses.stream(model="auto", input="hello") as stream:
            kinds = [event.type async for event in stream]
        assert kinds[-1] == "response.completed"
        embedded = await client.embeddings.create(model="auto", input=["a", "b"])
        assert (embedded.model, len(embedded.data)) == ("org/small", 2)
        fetched = await client.responses.with_raw_response.retrieve("resp_1")
        assert fetched.http_response.json() == {"model": "org/small", "path": "/v1/responses/resp_1"}


async def test_azure_s_deployments_are_models(url: str) -> None:
    for model, name in (("small", "org/small"), ("org/small", "org/small"), ("large", "org/large")):
        async with openai.AsyncAzureOpenAI(
            azure_endpoint=url, api_version="2024-10-21", api_key="x", max_retries=0
        ) as client:
            answer = await client.chat.completions.create(model=model, messages=TURN)
            assert answer.model == name
            with pytest.raises(openai.PermissionDeniedError):
                await client.chat.completions.create(model=model, messages=[{"role": "user", "content": MARK}])
            with pytest.raises(openai.NotFoundError) as unknown:
                await client.chat.completions.create(model="nobody", messages=TURN)
            assert unknown.value.code == "model_not_found"
    async with openai.AsyncAzureOpenAI(
        azure_endpoint=url, azure_deployment="small", api_version="2024-10-21", api_key="x", max_retries=0
    ) as client:
        embedded = await client.embeddings.create(model="whatever", input="a")
        assert embedded.model == "org/small"


async def test_the_apis_of_anthropic_work(url: str) -> None:
    async with claude(url) as client:
        message = await client.messages.create(model="auto", max_tokens=9, messages=TURN)
        assert message.content[0].text == "org/small answers: hello"  # type: ignore[union-attr]
        counted = await client.messages.with_raw_response.count_tokens(model="large", messages=TURN)
        echo = counted.http_response.json()["echo"]
        assert (echo["upstream"], echo["path"]) == ("large", "/v1/messages/count_tokens")


REFUSALS: list[tuple[int, str, dict[str, Any]]] = [
    (404, "/v1/files", {}),
    (404, "/v1/messages/batches", {}),
    (405, "/v1/chat/completions", {"method": "put"}),
    (413, "/v1/chat/completions", {"content": b'{"messages":"' + b"x" * 2**20 + b'"}'}),
    (
        415,
        "/v1/chat/completions",
        {"content": b"a=b", "headers": {"content-type": "application/x-www-form-urlencoded"}},
    ),
    (415, "/v1/chat/completions", {"content": b"x", "headers": {"content-encoding": "compress"}}),
    (400, "/v1/chat/completions", {"content": b"{"}),
    (403, "/v1/chat/completions", {"json": {"model": "auto", "messages": [{"role": "user", "content": MARK}]}}),
]
_GPT = {400: openai.BadRequestError, 403: openai.PermissionDeniedError, 404: openai.NotFoundError}
_CLAUDE = {
    400: anthropic.BadRequestError, 403: anthropic.PermissionDeniedError, 404: anthropic.NotFoundError,
    413: anthropic.RequestTooLargeError if hasattr(anthropic, "RequestTooLargeError") else anthropic.APIStatusError,
}  # fmt: skip


def ours(error: openai.APIStatusError | anthropic.APIStatusError, status: int) -> dict[str, Any]:
    """The error as the SDK has it, with our words in it."""
    assert error.status_code == status
    assert isinstance(error.body, dict), error.body
    found: dict[str, Any] = error.body.get("error", error.body)
    assert found["message"].endswith(".")
    assert found["message"] in error.message
    assert found["type"]
    return found


@pytest.mark.parametrize(("status", "path", "options"), REFUSALS)
async def test_openai_s_exceptions(url: str, status: int, path: str, options: dict[str, Any]) -> None:
    async with gpt(url) as client:
        with pytest.raises(_GPT.get(status, openai.APIStatusError)) as caught:
            await low(client, path.removeprefix("/v1"), options)
        assert ours(caught.value, status)["code"]


@pytest.mark.parametrize(("status", "path", "options"), REFUSALS)
async def test_anthropic_s_exceptions(url: str, status: int, path: str, options: dict[str, Any]) -> None:
    async with claude(url, default_headers={"anthropic-version": "2023-06-01"}) as client:
        with pytest.raises(_CLAUDE.get(status, anthropic.APIStatusError)) as caught:
            await low(client, path.replace("/chat/completions", "/messages"), options)
        assert caught.value.body["type"] == "error"  # type: ignore[index]
        ours(caught.value, status)


async def low(client: Any, path: str, options: dict[str, Any]) -> None:
    """One request through the SDK's own machinery, which makes its exceptions."""
    given = dict(options)
    method = given.pop("method", "post")
    headers = {"content-type": "application/json"} | given.pop("headers", {})
    body = given.pop("content", None) or given.pop("json", {})
    if isinstance(body, bytes):
        await getattr(client, method)(path, cast_to=object, content=body, options={"headers": headers})
    else:
        await getattr(client, method)(path, cast_to=object, body=body, options={"headers": headers})


class Stalls(httpx.AsyncHTTPTransport):
    """Sends half of every body, and the rest when it is too late."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        body = await request.aread()

        async def half() -> AsyncIterator[bytes]:
            yield body[: len(body) // 2]
            await asyncio.sleep(2.5)
            yield body[len(body) // 2 :]

        stalled = httpx.Request(request.method, request.url, headers=request.headers, content=half())
        return await super().handle_async_request(stalled)


async def test_a_body_that_does_not_come_and_one_that_does_not_fit(world: tuple[Envoy, Router]) -> None:
    """408 and 503, in the body mode where the router holds bodies."""
    envoy, router = world
    url = envoy.url("duplex")
    async with httpx.AsyncClient(transport=Stalls()) as slow:
        with pytest.raises(openai.APIStatusError) as late:
            await gpt(url, http_client=slow).chat.completions.create(model="auto", messages=TURN)
        assert ours(late.value, 408)["code"] == "body_timeout"
        with pytest.raises(anthropic.APIStatusError) as later:
            await claude(url, http_client=slow).messages.create(model="auto", max_tokens=9, messages=TURN)
        ours(later.value, 408)
    for client, kind in ((gpt(url), openai.InternalServerError), (claude(url), anthropic.InternalServerError)):
        async with client:
            holding = [await asyncio.to_thread(hold, envoy.port("duplex")) for _ in range(2)]
            await until(lambda: "pointsman_open_body_bytes 0.0" not in router.metrics())
            try:
                with pytest.raises(kind) as full:
                    await low(
                        client, "/chat/completions" if client.base_url.path.endswith("v1/") else "/v1/messages", BIG
                    )
                refused: Any = full.value
                ours(refused, 503)
                assert refused.response.headers["retry-after"] == "1"
            finally:
                for one in holding:
                    one.close()
            await until(lambda: "pointsman_open_body_bytes 0.0" in router.metrics())


BIG: dict[str, Any] = {
    "json": {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "x" * 700_000}]}
}


def hold(port: int) -> socket.socket:
    """A connection whose body of almost 1 MiB does not end."""
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 1000000\r\n\r\n" + b" " * 999_000)
    return client
