"""Both transports behind one fixture, a receiver that records, and a raw HTTP/2 peer that can misbehave."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import grpc.aio
import pytest

from extproc.transport import frames
from extproc.transport.grpcio import GrpcioServer
from extproc.transport.http2 import Http2Server
from extproc.transport.seam import Handler, Server, Stream, TransportLimits
from tests.patience import PATIENCE

METHOD = "/test.Service/Method"


class Recorder:
    """A receiver that writes down what it is told, and acts as `script` says."""

    def __init__(self, stream: Stream, script: Callable[[Recorder, str, bytes], None]) -> None:
        self.stream = stream
        self.script = script
        self.events: list[str] = []
        self.messages: list[bytes] = []
        self.over = asyncio.Event()

    def message(self, data: bytes) -> None:
        self.events.append("message")
        self.messages.append(data)
        self.script(self, "message", data)

    def half_closed(self) -> None:
        self.events.append("half_closed")
        self.script(self, "half_closed", b"")

    def closed(self) -> None:
        self.events.append("closed")
        self.over.set()
        self.script(self, "closed", b"")


def echo(recorder: Recorder, event: str, data: bytes) -> None:
    """Every message back, OK at the end."""
    if event == "message":
        recorder.stream.send(data)
    elif event == "half_closed":
        recorder.stream.finish()


def silent(recorder: Recorder, event: str, data: bytes) -> None:
    """Nothing at all."""


@dataclass
class Running:
    """A started server and the receivers it has made."""

    server: Server
    receivers: list[Recorder] = field(default_factory=list)

    @property
    def target(self) -> str:
        return self.server.address

    def channel(self, **options: Any) -> grpc.aio.Channel:
        pairs = [("grpc.max_receive_message_length", -1), ("grpc.use_local_subchannel_pool", 1), *options.items()]
        return grpc.aio.insecure_channel(self.target, options=pairs)

    async def receiver(self, index: int = 0) -> Recorder:
        """The receiver of the stream opened as number `index`."""
        await until(lambda: len(self.receivers) > index)
        return self.receivers[index]


Start = Callable[..., Coroutine[Any, Any, Running]]


async def until(condition: Callable[[], bool], seconds: float = PATIENCE) -> None:
    """Wait for something that the other side of a socket brings about."""
    end = asyncio.get_running_loop().time() + seconds
    while not condition():
        if asyncio.get_running_loop().time() > end:
            raise AssertionError("it did not happen in time")
        await asyncio.sleep(0.005)


async def _starter(kind: type[Any]) -> AsyncIterator[Start]:
    started: list[Server] = []

    async def start(
        script: Callable[[Recorder, str, bytes], None] = echo,
        limits: TransportLimits | None = None,
        listen: Any = "127.0.0.1:0",
        wrap: Callable[[Handler], Handler] = lambda handler: handler,
        **more: Any,
    ) -> Running:
        receivers: list[Recorder] = []

        def handler(stream: Stream) -> Recorder:
            receivers.append(Recorder(stream, script))
            return receivers[-1]

        server: Server = kind({METHOD: wrap(handler)}, limits, **more)
        await server.start(listen)
        started.append(server)
        return Running(server, receivers)

    yield start
    for server in started:
        await server.close()


@pytest.fixture(params=[Http2Server, GrpcioServer], ids=["http2", "grpcio"])
async def start(request: pytest.FixtureRequest) -> AsyncIterator[Start]:
    """Starts a server of either transport."""
    async for one in _starter(request.param):
        yield one


@pytest.fixture
async def start_http2() -> AsyncIterator[Start]:
    """Starts our own transport only: for what can be seen on the wire alone."""
    async for one in _starter(Http2Server):
        yield one


@dataclass
class Frame:
    kind: int
    flags: int
    stream: int
    payload: bytes

    @property
    def code(self) -> int:
        """The error code of RST_STREAM or GOAWAY."""
        return struct.unpack(">I", self.payload[4:8] if self.kind == frames.GOAWAY else self.payload)[0]


class RawPeer:
    """A client made of frames, for what no well-behaved client sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def connect(cls, target: str, greet: bool = True) -> RawPeer:
        host, _, port = target.rpartition(":")
        peer = cls(*await asyncio.open_connection(host, int(port), limit=2**24))
        if greet:
            peer.write(frames.PREFACE, frames.settings({}))
            assert (await peer.read()).kind == frames.SETTINGS
            assert (await peer.read()).kind == frames.WINDOW_UPDATE
            peer.write(frames.frame(frames.SETTINGS, frames.ACK, 0))
            ack = await peer.read()
            assert (ack.kind, ack.flags) == (frames.SETTINGS, frames.ACK)
        return peer

    def write(self, *parts: bytes) -> None:
        self.writer.write(b"".join(parts))

    async def read(self, seconds: float = PATIENCE) -> Frame:
        """The next frame. Raises EOFError when the server has closed."""
        async with asyncio.timeout(seconds):
            try:
                word, flags, stream = frames.read_head(await self.reader.readexactly(9), 0)
                return Frame(word & 0xFF, flags, stream, await self.reader.readexactly(word >> 8))
            except (asyncio.IncompleteReadError, ConnectionError):
                raise EOFError from None

    async def find(self, kind: int) -> Frame:
        """The next frame of a kind."""
        while True:
            frame = await self.read()
            if frame.kind == kind:
                return frame

    async def goaway(self) -> int:
        """The error code of the GOAWAY that must come, and the end of the connection after it."""
        code = (await self.find(frames.GOAWAY)).code
        try:
            while True:
                await self.read()
        except EOFError:
            self.writer.close()
            return code

    async def pong(self) -> None:
        """Check that the connection still works."""
        self.write(frames.frame(frames.PING, 0, 0, b"stillup?"))
        while True:
            frame = await self.find(frames.PING)
            if frame.payload == b"stillup?":
                return

    def open(self, number: int, flags: int = frames.END_HEADERS, block: bytes | None = None) -> None:
        """HEADERS of a stream."""
        self.write(frames.frame(frames.HEADERS, flags, number, head() if block is None else block))

    def data(self, number: int, message: bytes = b"", flags: int = 0) -> None:
        """One message in one DATA frame."""
        payload = b"\0" + len(message).to_bytes(4, "big") + message
        self.write(frames.frame(frames.DATA, flags, number, payload))

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            return


def text(value: str | bytes) -> bytes:
    """An HPACK string without Huffman coding."""
    raw = value.encode() if isinstance(value, str) else value
    return frames._string(raw)


def head(path: str = METHOD, *extra: tuple[str, str], first: bool = True) -> bytes:
    """A request's header block that needs no table; `first` says so, as the first block after our SETTINGS must."""
    block = (frames.TABLE_SIZE_0 if first else b"") + b"\x83\x86\x04" + text(path) + b"\x01" + text("test")
    for name, value in [("te", "trailers"), ("content-type", "application/grpc"), *extra]:
        block += b"\0" + text(name) + text(value)
    return block


Connect = Callable[..., Coroutine[Any, Any, RawPeer]]


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Opens raw peers and closes them."""
    peers: list[RawPeer] = []

    async def open_peer(running: Running, greet: bool = True) -> RawPeer:
        peers.append(await RawPeer.connect(running.target, greet))
        return peers[-1]

    yield open_peer
    for peer in peers:
        await peer.close()
