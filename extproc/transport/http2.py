"""Our own HTTP/2 and gRPC server: asyncio around `core`, which knows the protocol and does no input or output.

RFC 9113 and the gRPC-over-HTTP/2 mapping, as far as a server of unary and streaming methods needs them; cleartext
starts with prior knowledge, TLS with ALPN. There is no task for a stream, and one write for each batch of frames read.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Mapping
from functools import partial
from typing import cast

from extproc.transport import address, frames, headers, states
from extproc.transport.core import Common, Connection
from extproc.transport.seam import Handler, TransportLimits

_LINGER = 2.0  # seconds that a closed server waits for its connections' ends


class _Protocol(asyncio.Protocol):
    """One connection's socket."""

    transport: asyncio.Transport

    def __init__(self, server: Http2Server) -> None:
        self.server = server
        self.core = Connection(server.shared, partial(server.loop.call_soon, self._flush))

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server = self.server
        tls = transport.get_extra_info("ssl_object")
        refused = len(server.live) >= server.limits.max_connections or server.draining
        if refused or (tls is not None and tls.selected_alpn_protocol() != "h2"):
            self.core.abandon()
            self.transport.abort()
            return
        server.live.add(self)
        self.transport.set_write_buffer_limits(high=server.limits.high_water_bytes)
        self.transport.write(server.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.live.discard(self)
        self.core.abandon()
        self.core.drop()
        if not self.server.live:
            self.server.empty.set()

    def eof_received(self) -> bool:
        return False  # the transport closes, and connection_lost follows

    def pause_writing(self) -> None:
        self.core.pause()
        self.transport.pause_reading()  # a peer that does not read may not make us queue more answers

    def resume_writing(self) -> None:
        self.transport.resume_reading()
        self.core.resume()

    def data_received(self, data: bytes) -> None:
        self.core.receive(data)
        self._flush()

    # --- writing ---

    def _flush(self) -> None:
        """Write what the batch made. No application code is on the stack."""
        core = self.core
        if core.leaving == states.GONE:
            return
        while core.work():
            self.transport.write(core.take())
        if core.fault is not None:
            self.fail(core.fault.code, core.fault.why)
            return
        if core.out:
            self.transport.write(core.take())
        core.busy = False
        if core.leaving == states.LEAVING and not core.streams:
            self.fail(frames.NO_ERROR, "")

    def fail(self, code: int, why: str) -> None:
        """Say GOAWAY, end every stream and close; the peer's bytes are read on for a moment so that it can be read."""
        core = self.core
        if core.leaving == states.GONE:
            return
        core.close(code, why)
        self.transport.write(core.take())
        core.drop()
        if code and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        else:
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Once in a while: has anything waited too long?"""
        if self.core.sweep(now):
            self.transport.abort()


class Http2Server:
    """`extproc.transport.seam.Server` on our own HTTP/2. With `tls`, a context whose ALPN offers `h2`."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self, handlers: Mapping[str, Handler], limits: TransportLimits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.limits = limits = limits or TransportLimits()
        self.memory = headers.BlockMemory(dict(handlers), limits.max_header_bytes)
        self.shared = Common(limits, self.memory)
        self.live: set[_Protocol] = set()
        self.draining = False
        self.empty = asyncio.Event()
        self.greeting = frames.settings(
            {
                frames.HEADER_TABLE_SIZE: 0,
                frames.MAX_CONCURRENT_STREAMS: limits.max_concurrent_streams,
                frames.INITIAL_WINDOW_SIZE: limits.stream_window_bytes,
                frames.MAX_FRAME_SIZE: limits.max_frame_bytes,
                frames.MAX_HEADER_LIST_SIZE: limits.max_header_bytes,
            }
        ) + frames.window_update(0, limits.connection_window_bytes - 65_535)
        self._tls = tls
        self._server: asyncio.AbstractServer | None = None
        self._address: str | None = None
        self._made = False  # the socket
        self._sweeper: asyncio.TimerHandle | None = None
        self._swept = 0.0

    async def start(self, listen: str | socket.socket) -> None:
        self.use(asyncio.get_running_loop())
        self._made = isinstance(listen, str)
        sock = address.bind(listen) if isinstance(listen, str) else listen
        self._address = address.name(sock)
        if sock.family == socket.AF_UNIX:
            keep = address.keep_file(self.loop)
            self._server = await self.loop.create_unix_server(
                self._connection, sock=sock, ssl=self._tls, backlog=1024, **keep
            )
        else:
            self._server = await self.loop.create_server(self._connection, sock=sock, ssl=self._tls, backlog=1024)
        self._swept = self.loop.time()
        self._sweep()

    def use(self, loop: asyncio.AbstractEventLoop) -> None:
        """Hands the loop's clock and timers to the connections."""
        self.loop = loop
        self.shared.now = loop.time
        self.shared.later = loop.call_later
        self.shared.waiter = loop.create_future

    def _connection(self) -> _Protocol:
        return _Protocol(self)

    @property
    def address(self) -> str:
        if self._address is None:
            raise RuntimeError("the server is not started")
        return self._address

    @property
    def streams(self) -> int:
        return sum(len(connection.core.streams) for connection in self.live)

    @property
    def partial_bytes(self) -> int:
        """Bytes of messages that have not arrived whole."""
        return self.shared.partial_bytes

    @property
    def connections(self) -> int:
        return len(self.live)

    async def drain(self, grace: float) -> None:
        self._stop_listening()
        for connection in list(self.live):
            connection.core.start_drain()
        if not await self._emptied(grace):
            for connection in list(self.live):
                connection.core.cut_all()
            await self._emptied(_LINGER)
        await self.close()

    async def close(self) -> None:
        self._stop_listening()
        for connection in list(self.live):
            connection.fail(frames.NO_ERROR, "the server is closed")
            connection.transport.abort()
        await self._emptied(_LINGER)
        if self._sweeper is not None:
            self._sweeper.cancel()
            self._sweeper = None

    def _stop_listening(self) -> None:
        self.draining = True
        if self._server is not None:
            self._server.close()
            self._server = None
            if self._made and self._address is not None:
                address.unbind(self._address)

    async def _emptied(self, seconds: float) -> bool:
        self.empty.clear()
        if self.live:
            try:
                await asyncio.wait_for(self.empty.wait(), seconds)
            except TimeoutError:
                return False
        return True

    def _sweep(self) -> None:
        now = self.loop.time()
        limits = self.limits
        for connection in list(self.live):
            if now - self._swept > limits.window_s:
                connection.core.flood.count = 0
            connection.sweep(now)
        if now - self._swept > limits.window_s:
            self._swept = now
        shortest = min(limits.handshake_s, limits.stall_s, limits.keepalive_s, limits.idle_s, limits.window_s)
        self._sweeper = self.loop.call_later(min(1.0, shortest / 4), self._sweep)
