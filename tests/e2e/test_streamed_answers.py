"""Answers of our own, sent piece by piece from inside the exchange (streamed_immediate_response)."""

from __future__ import annotations

import asyncio

import aiohttp
import pytest

from extproc.exchange import ANSWER_LIMIT
from tests.e2e.conftest import World
from tests.e2e.proxy import until
from tests.e2e.test_routing import JSON_TYPE, PATH, post
from tests.extproc.envoy import chat

pytestmark = pytest.mark.e2e


async def test_an_answer_is_streamed_after_the_request_body(world: World, client: aiohttp.ClientSession) -> None:
    loop = asyncio.get_running_loop()
    url = f"{world.envoy.url('steps_duplex')}/streamed-answer{PATH}"
    times = []
    body = b""
    async with client.post(url, data=chat("count 5 0.1"), headers=JSON_TYPE) as response:
        assert response.status == 200
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["x-pointsman-decision"] == "math"
        assert response.headers["transfer-encoding"] == "chunked"
        async for piece in response.content.iter_any():
            times.append(loop.time())
            body += piece
    assert body == b"".join(b"data: %d\n\n" % number for number in range(5))
    assert len(times) >= 3
    assert times[-1] - times[0] > 0.3  # events arrive as they are made
    [line] = await asyncio.to_thread(world.envoy.accesses, "streamed-answer")
    assert line["details"] == "ext_proc_local_response"
    assert (line["decision"], line["model"]) == ("math", "large")


async def test_a_mode_that_cannot_stream_takes_the_plain_route(world: World, client: aiohttp.ClientSession) -> None:
    world.steps.decisions.clear()
    got, headers, answer = await post(client, world.envoy.url("steps_buffered") + PATH, chat("count 1 0"))
    assert (got, answer["echo"]["upstream"]) == (200, "large")
    assert headers["x-pointsman-decision"] == "math"
    got, _, answer = await post(client, world.envoy.url("steps_duplex") + PATH, chat("plain"))
    assert (got, answer["echo"]["upstream"]) == (200, "large")
    assert world.steps.decisions == ["body_mode", "ineligible"]


async def test_many_answers_at_once(world: World, client: aiohttp.ClientSession) -> None:
    async def one(count: int) -> None:
        url = world.envoy.url("steps_duplex") + PATH
        async with client.post(url, data=chat(f"count {count} 0.01"), headers=JSON_TYPE) as response:
            assert await response.read() == b"".join(b"data: %d\n\n" % number for number in range(count))

    await asyncio.gather(*(one(number % 17 + 1) for number in range(100)))
    await until(lambda: world.words.open == 0)


async def test_a_client_that_leaves_closes_the_answer(world: World, client: aiohttp.ClientSession) -> None:
    url = world.envoy.url("steps_duplex") + PATH
    for _ in range(10):
        response = await client.post(url, data=chat("endless"), headers=JSON_TYPE)
        await response.content.readany()
        assert world.words.open == 1
        response.close()
        await until(lambda: world.words.open == 0)
    assert world.steps.failures == []


async def test_a_client_that_does_not_read_is_not_fed_without_end(world: World) -> None:
    """Envoy buffers for it and never tells us to stop, so an answer has a limit of its own."""
    world.steps.failures.clear()
    body = chat("endless")
    _, writer = await asyncio.open_connection("127.0.0.1", world.envoy.port("steps_duplex"), limit=4096)
    try:
        head = (
            f"POST {PATH} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        await until(lambda: world.steps.failures == ["answer_broken"])
        assert world.words.sent <= ANSWER_LIMIT
        assert world.words.open == 0
    finally:
        writer.transport.abort()
    await until(lambda: world.steps.live == 0)


async def test_an_answer_that_breaks_off_is_no_whole_answer(world: World, client: aiohttp.ClientSession) -> None:
    world.steps.failures.clear()
    url = world.envoy.url("steps_duplex") + PATH
    async with client.post(url, data=chat("break"), headers=JSON_TYPE) as response:
        with pytest.raises(aiohttp.ClientError):
            await response.read()
    assert world.steps.failures == ["answer_broken"]
    await until(lambda: world.steps.live == 0)
