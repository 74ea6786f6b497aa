"""One answer's stream, as a server sends it and leaves its connection."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from tests.patience import PATIENCE
from upstream.client import ModelClient, UpstreamError
from upstream.endpoint import Endpoint

ANSWER = (
    b'HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\ndata: {"choices": [{"delta": {"content": "yes"}, '
    b'"finish_reason": "stop"}]}\n\ndata: [DONE]\n\n'
)


@asynccontextmanager
async def opened(serve: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> AsyncIterator[Any]:
    """The stream of an answer by `serve`."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = ModelClient(Endpoint(url=f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", model="small"))
    try:
        yield await client.open("/v1/chat/completions", {"messages": []})
    finally:
        await client.close()
        server.close()
        await server.wait_closed()


async def test_an_answer_that_is_read_to_its_end_leaves_no_connection_open() -> None:
    over = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(ANSWER)  # and then neither closes nor sends anything
        while await reader.read(1 << 16):
            pass
        over.set()
        writer.close()

    pieces = []
    async with opened(serve) as stream:
        while (piece := await stream.next()) is not None:
            pieces.append(piece)
        async with asyncio.timeout(PATIENCE):
            await over.wait()
    assert [token.text for piece in pieces for token in piece.tokens] == ["yes"]
    assert pieces[-1].finish == "stop"


@pytest.mark.parametrize("whole", [True, False])
async def test_a_connection_that_breaks_after_the_answer_costs_nothing_and_before_its_end_all(whole: bool) -> None:
    choice = {"delta": {"content": "yes"}, "finish_reason": "stop" if whole else None}
    event = f"data: {json.dumps({'choices': [choice]})}\n\n"

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        writer.write(f"{head}{len(event):x}\r\n{event}\r\n".encode())
        await writer.drain()
        writer.close()  # without the last chunk

    async with opened(serve) as stream:
        piece = await stream.next()
        assert piece is not None
        assert [token.text for token in piece.tokens] == ["yes"]
        if whole:
            assert await stream.next() is None
        else:
            with pytest.raises(UpstreamError, match="broke off"):
                await stream.next()
            stream.close()
