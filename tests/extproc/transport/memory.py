"""Our transport without sockets: a loop that runs by hand and a transport that keeps what is written."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from extproc.transport import frames
from extproc.transport.http2 import Http2Server, _Protocol
from extproc.transport.seam import Handler, TransportLimits
from tests.extproc.transport.conftest import Frame


class Timer:
    def cancel(self) -> None:
        pass


class Loop:
    """As much of an event loop as a connection uses."""

    def __init__(self) -> None:
        self.now = 1_000.0
        self.soon: list[Callable[[], Any]] = []

    def time(self) -> float:
        return self.now

    def call_soon(self, callback: Callable[[], Any]) -> None:
        self.soon.append(callback)

    def call_later(self, delay: float, callback: Callable[[], Any]) -> Timer:
        return Timer()

    def create_future(self) -> asyncio.Future[None]:
        return asyncio.get_running_loop().create_future()

    def run(self) -> None:
        while self.soon:
            self.soon.pop(0)()


class Wire:
    """The transport: frames written, and whether it is open."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.open = True

    def get_extra_info(self, name: str) -> None:
        return None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        assert self.open, "written after the end"
        self.written += data

    def can_write_eof(self) -> bool:
        return True

    def is_closing(self) -> bool:
        return not self.open

    def write_eof(self) -> None:
        self.open = False

    def close(self) -> None:
        self.open = False

    def abort(self) -> None:
        self.open = False

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def take(self) -> list[Frame]:
        """The frames written since the last call; everything must be whole frames."""
        found, data = [], bytes(self.written)
        self.written.clear()
        while data:
            word, flags, stream = frames.read_head(data, 0)
            stop = 9 + (word >> 8)
            assert stop <= len(data)
            found.append(Frame(word & 0xFF, flags, stream, data[9:stop]))
            data = data[stop:]
        return found


class InMemory:
    """A server with one connection."""

    def __init__(self, handlers: dict[str, Handler], limits: TransportLimits) -> None:
        self.loop = Loop()
        self.server = Http2Server(handlers, limits)
        self.server.empty = asyncio.Event()
        self.server.use(self.loop)  # type: ignore[arg-type]
        self.wire = Wire()
        self.protocol = _Protocol(self.server)
        self.connection = self.protocol.core
        self.protocol.connection_made(self.wire)  # type: ignore[arg-type]

    def feed(self, data: bytes) -> None:
        self.protocol.data_received(data)
        self.loop.run()

    def lose(self) -> None:
        self.protocol.connection_lost(None)
        self.loop.run()

    def check_empty(self) -> None:
        """Nothing may be left of a connection that is gone."""
        assert not self.connection.streams
        assert not self.connection.partials
        assert not self.connection.outflow.waiting
        assert not self.connection.outflow.ready
        assert self.connection.outflow.buffered == 0
        assert self.server.partial_bytes == 0
        assert not self.server.live
