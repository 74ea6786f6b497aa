"""`POST /playground/send`: only calls, only to the gateway that was named, few at a time, and told as they come.

That a real Envoy answers is shown in tests/console.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from cli.main import main
from extproc.admin import sending
from extproc.admin.callers import Callers
from extproc.admin.port import Admin, Allowed
from tests.extproc.admin.test_port import FakeSource
from tests.extproc.live import eventually
from tests.ports import free_port

CALL = {"path": "/v1/chat/completions", "request": '{"model": "auto"}', "headers": {"X-Tier": "gold"}}


class Gateway:
    """What stands where the gateway is said to be."""

    def __init__(self) -> None:
        self.seen: list[tuple[str, dict[str, str], bytes]] = []
        self.gone = 0
        self.go = asyncio.Event()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        self.seen.append((request.path, headers, await request.read()))
        if request.path.endswith("/messages"):
            raise web.HTTPFound("http://elsewhere.invalid/")
        response = web.StreamResponse(status=201, headers={"x-pointsman-model": "small"})
        await response.prepare(request)
        try:
            await response.write("grü".encode()[:3])  # in the middle of a letter
            await self.go.wait()
            await response.write("grüße".encode()[3:])
            if request.path.endswith("/embeddings"):
                await response.write(b"x" * (sending.LONGEST + 1))
            await response.write_eof()
        except (asyncio.CancelledError, ConnectionError):
            self.gone += 1
            raise
        return response


@asynccontextmanager
async def served(gateway: str | None = None, token: Any = None) -> AsyncIterator[tuple[Gateway, str]]:
    """A gateway, and the address of an admin port that sends to it (or to `gateway`)."""
    behind = Gateway()
    app = web.Application()
    app.router.add_post("/{path:.*}", behind.answer)
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    port = free_port()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    where = f"http://127.0.0.1:{port}" if gateway is None else gateway
    admin = Admin(FakeSource(), Callers(token=token), allowed=Allowed(gateway=where or None))
    await admin.start("127.0.0.1:0")
    try:
        yield behind, admin.address
    finally:
        behind.go.set()
        await admin.close()
        await runner.cleanup()


async def told(answer: aiohttp.ClientResponse) -> list[tuple[str, Any]]:
    """The events of an answer."""
    found = []
    for event in (await answer.text()).split("\n\n"):
        if event.startswith("event: "):
            name, data = event.split("\n")
            found.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return found


async def test_it_is_told_as_it_comes_and_goes_on_as_a_client_sends_it():
    async with served() as (gateway, address), aiohttp.ClientSession() as session:
        async with session.post(f"http://{address}/playground/send", json=CALL) as answer:
            assert (answer.status, answer.content_type) == (200, "text/event-stream")
            begun = b""
            while b"event: body" not in begun:
                begun += await answer.content.readany()
            gateway.go.set()
            rest = (begun + await answer.content.read()).decode()
        assert rest.index("event: head") < rest.index("event: body") < rest.index("event: end")
        path, headers, body = gateway.seen[0]
        assert (path, body) == ("/v1/chat/completions", b'{"model": "auto"}')
        assert (headers["x-tier"], headers["content-type"]) == ("gold", "application/json")
        assert "authorization" not in headers
        async with session.post(f"http://{address}/playground/send", json=CALL) as answer:
            events = await told(answer)
        assert events[0][1]["status"] == 201
        assert events[0][1]["headers"]["x-pointsman-model"] == "small"
        assert "".join(data for name, data in events if name == "body") == "grüße"
        assert (events[-1][0], events[-1][1]["bytes"]) == ("end", 7)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"path": "/metrics"}, "path: that of a call"),
        ({"path": "/v1/models"}, "path: that of a call"),
        ({"path": "http://elsewhere/v1/chat/completions"}, "path: that of a call"),
        ({"path": "@elsewhere/v1/chat/completions"}, "path: that of a call"),
        ({"path": None}, "path: that of a call"),
        ({"request": {"model": "auto"}}, "request: a string"),
        ({"headers": {"host": "elsewhere"}}, "headers: host is not a client's to set"),
        ({"headers": {"Transfer-Encoding": "chunked"}}, "headers: Transfer-Encoding is not a client's to set"),
        ({"headers": {"x-pointsman-route": "large"}}, "headers: x-pointsman-route is not a client's to set"),
        ({"headers": {"x": "a\r\nhost: b"}}, "headers: names and values that HTTP takes"),
        ({"headers": {"a b": "c"}}, "headers: names and values that HTTP takes"),
        ({"headers": {"a": 5}}, "headers: names and values that HTTP takes"),
    ],
)
async def test_what_is_no_call_is_not_sent(change, said):
    async with served() as (gateway, address), aiohttp.ClientSession() as session:
        async with session.post(f"http://{address}/playground/send", json={**CALL, **change}) as answer:
            assert answer.status == 400
            assert (await answer.text()).startswith(said)
        assert gateway.seen == []


async def test_it_follows_nobody_elsewhere_and_says_what_went_wrong(caplog):
    async with served() as (gateway, address), aiohttp.ClientSession() as session:
        gateway.go.set()
        async with session.post(f"http://{address}/playground/send", json={**CALL, "path": "/v1/messages"}) as answer:
            assert (await told(answer))[0][1]["status"] == 302
        async with session.post(f"http://{address}/playground/send", json={**CALL, "path": "/v1/embeddings"}) as answer:
            name, data = (await told(answer))[-1]
        assert (name, data) == ("error", {"error": f"the answer is longer than {sending.LONGEST} bytes"})
    nowhere = f"http://127.0.0.1:{free_port()}"
    async with (
        served(nowhere) as (_, address),
        aiohttp.ClientSession() as session,
        session.post(f"http://{address}/playground/send", json=CALL) as answer,
    ):
        ((name, data),) = await told(answer)
    assert name == "error"
    assert data["error"].startswith(f"the gateway at {nowhere} does not answer: ")
    assert "playground_send_failed" not in caplog.text


async def test_a_caller_who_goes_ends_it_and_no_more_than_a_few_are_under_way():
    async with served() as (gateway, address), aiohttp.ClientSession() as session:
        url = f"http://{address}/playground/send"
        answers = [await session.post(url, json=CALL) for _ in range(sending.AT_ONCE)]
        for answer in answers:
            await answer.content.readuntil(b"event: body")
        async with session.post(url, json=CALL) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        for answer in answers:
            answer.close()

        async def all_gone() -> bool:
            return gateway.gone == sending.AT_ONCE

        await eventually(all_gone)
        gateway.go.set()
        async with session.post(url, json=CALL) as answer:
            assert answer.status == 200


async def test_without_a_gateway_or_the_token_nothing_is_sent(tmp_path):
    async with served("") as (gateway, address), aiohttp.ClientSession() as session:
        async with session.post(f"http://{address}/playground/send", json=CALL) as answer:
            assert (answer.status, "--gateway" in await answer.text()) == (404, True)
        assert gateway.seen == []
    token = tmp_path / "token"
    token.write_text("correct-horse-battery")
    async with served(token=token) as (gateway, address), aiohttp.ClientSession() as session:
        for headers in ({}, {"authorization": "Bearer wrong-horse-battery"}, {"origin": "http://evil.example"}):
            async with session.post(f"http://{address}/playground/send", json=CALL, headers=headers) as answer:
                assert answer.status in (401, 403)
        assert gateway.seen == []
        gateway.go.set()
        given = {"authorization": "Bearer correct-horse-battery"}
        async with session.post(f"http://{address}/playground/send", json=CALL, headers=given) as answer:
            assert (await told(answer))[-1][0] == "end"
        assert "authorization" not in gateway.seen[0][1]  # the token is ours alone


@pytest.mark.parametrize("url", ["127.0.0.1:10000", "ftp://a", "http://", "http://user@a", "http://a/?b", "http://a#b"])
def test_an_address_that_is_none_is_refused_at_the_start(url, capsys):
    with pytest.raises(SystemExit):
        main(["serve", "policy.yaml", "--gateway", url])
    assert "a URL such as http://127.0.0.1:10000" in capsys.readouterr().err
