"""Our transport under a real Envoy, with a processor that changes nothing. The router itself has tests/e2e."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import aiohttp
import pytest

from bench.direct import PROCESS
from bench.echo import NoOp
from bench.envoy import Envoy, Route
from extproc.transport.grpcio import GrpcioServer
from extproc.transport.http2 import Http2Server
from extproc.transport.seam import Server, Stream
from tests.extproc.transport.conftest import until

pytestmark = pytest.mark.e2e


async def answered(session: aiohttp.ClientSession, url: str) -> None:
    """Wait for Envoy's listener."""
    for _ in range(400):
        try:
            async with session.get(url) as response:
                if response.status == 200:
                    return
        except aiohttp.ClientConnectionError:
            pass
        await asyncio.sleep(0.05)
    raise AssertionError("Envoy did not start")


@pytest.mark.parametrize("kind", [Http2Server, GrpcioServer], ids=["http2", "grpcio"])
async def test_every_request_of_a_real_envoy_is_answered(kind: type[Http2Server], tmp_path: Path) -> None:
    opened = 0

    def counted(stream: Stream) -> NoOp:
        nonlocal opened
        opened += 1
        return NoOp(stream)

    server: Server = kind({PROCESS: counted})
    await server.start(f"unix:{tmp_path}/p.sock")
    routes = [Route(mode, server.address, mode) for mode in ("BUFFERED", "FULL_DUPLEX_STREAMED", "NONE")]
    envoy = Envoy(tmp_path, routes, None)
    try:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=100)) as session:
            for route, port in envoy.ports.items():
                url = f"http://127.0.0.1:{port}/v1/chat/completions"
                await answered(session, url)

                async def post(size: int, url: str = url) -> int:
                    async with session.post(url, data=bytes(size)) as response:
                        return response.status

                before = opened
                sizes = [0, 1, 1_000, 20_000, 200_000, 1_000_000] * 20
                assert set(await asyncio.gather(*map(post, sizes))) == {200}, route.name
                assert opened - before == len(sizes)
                with contextlib.suppress(asyncio.TimeoutError):  # a client that leaves in the middle of an upload
                    async with session.post(url, data=_slow(), timeout=aiohttp.ClientTimeout(0.3)):
                        pass
        await until(lambda: server.streams == 0)
    finally:
        envoy.close()
        await server.close()


async def _slow():  # type: ignore[no-untyped-def]
    yield bytes(1_000)
    await asyncio.sleep(2)
    yield bytes(1_000)
