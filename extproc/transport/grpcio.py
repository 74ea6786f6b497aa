"""The transport on `grpc.aio`: the default with TLS, and what our own is measured against."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any

import grpc
import grpc.aio

from extproc.transport import address
from extproc.transport.seam import Handler, Receiver, TransportLimits
from extproc.transport.tls import TlsFiles

log = logging.getLogger(__name__)

_CRASH = "an exception in a gRPC handler ends its stream with INTERNAL"

_CODES: Mapping[int, grpc.StatusCode] = {code.value[0]: code for code in grpc.StatusCode}


def _credentials(files: TlsFiles) -> grpc.ServerCredentials:
    seen = files.stamp()  # before the load, so that no change is missed

    def fetch() -> grpc.ServerCertificateConfiguration | None:  # on a grpc thread, once for each new connection
        nonlocal seen
        now = files.stamp()
        if now == seen:
            return None
        seen = now
        try:
            loaded = _configuration(files)
        except ValueError as error:  # half of a rotation, perhaps: the next change of a file is another chance
            log.error("tls_files_rejected", extra={"reason": str(error), "kept": "the certificate loaded before"})
            return None
        log.info("tls_files_loaded")
        return loaded

    dynamic: Any = grpc.dynamic_ssl_server_credentials  # its stub forgets that the fetcher may return None
    credentials: grpc.ServerCredentials = dynamic(_configuration(files), fetch, bool(files.client_ca))
    return credentials


def _configuration(files: TlsFiles) -> grpc.ServerCertificateConfiguration:
    certificate, key, *authority = files.read()
    return grpc.ssl_server_certificate_configuration([(key, certificate)], authority[0] if authority else None)


class _Guests:
    """Which peers may come in, by the subject alternative names of their certificates.

    DNS knows no case. A name with a colon is a URI, and only a URI has one, so that neither passes for the other.
    """

    def __init__(self, sans: Iterable[str]) -> None:
        self._sans = frozenset(name if ":" in name else name.lower() for name in sans)
        self._refused: tuple[str, ...] | None = None

    def admits(self, context: grpc.aio.ServicerContext[bytes, bytes]) -> bool:
        if not self._sans:
            return True
        shown = context.auth_context()
        hosts = (name.decode("latin-1").lower() for name in shown.get("peer_dns", ()))
        uris = (name.decode("latin-1") for name in shown.get("peer_uri", ()))
        names = (*(name for name in hosts if ":" not in name), *(name for name in uris if ":" in name))
        if not self._sans.isdisjoint(names):
            return True
        if names != self._refused:  # not a line for each of its health checks
            self._refused = names
            log.warning("client_refused", extra={"names": names, "peer": context.peer()})
        return False


class _Stream:
    """One RPC: a task that waits for its end, one that reads, and one that writes, made when there is something."""

    def __init__(self, context: grpc.aio.ServicerContext[bytes, bytes], limits: TransportLimits) -> None:
        self._context = context
        self._limits = limits
        self._queue: deque[bytes] = deque()
        self._buffered = 0
        self._writer: asyncio.Task[None] | None = None
        self._drained: asyncio.Future[None] | None = None
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.status: tuple[int, str] | None = None
        self.gone = False

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        merged: dict[str, str] = {}
        for name, value in self._context.invocation_metadata() or ():
            text = _text(name, value)
            merged[name] = f"{merged[name]},{text}" if name in merged else text
        return merged

    def send(self, message: bytes) -> None:
        if self.gone or self.status is not None:
            return
        if self._queue and self._buffered + len(message) > self._limits.max_buffered_bytes:
            self.abandon()
            self.finish(8, "the answer waits for a peer that does not read it")
            return
        self._queue.append(message)
        self._buffered += len(message)
        if self._writer is None:
            self._writer = asyncio.ensure_future(self._write())

    def finish(self, status: int = 0, message: str = "") -> None:
        if self.gone or self.status is not None:
            return
        self.status = (status, message)
        if not self.finished.done():  # it is, once the task that waits for it is cancelled
            self.finished.set_result(None)

    async def drain(self) -> None:
        while self._buffered >= self._limits.high_water_bytes and not self.gone:
            if self._drained is None:
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)
        if self.gone:
            raise ConnectionError("the gRPC stream is gone")

    async def _write(self) -> None:
        try:
            while self._queue:
                message = self._queue[0]
                await self._context.write(message)
                if self._queue:  # `send` empties it when the peer is too slow
                    self._queue.popleft()
                self._buffered -= len(message)
                if self._buffered < self._limits.high_water_bytes:
                    self._wake()
        except grpc.aio.BaseError:  # the RPC is over; grpc cancels the task that serves it
            self._queue.clear()
        finally:
            self._writer = None

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
        self._drained = None

    async def read(self, receiver: Receiver) -> None:
        """Hand over what the peer sends. A task of its own: grpc.aio may swallow the cancellation of a read."""
        try:
            while self._live():
                if self._buffered >= self._limits.high_water_bytes:
                    await self.drain()
                message: object = await self._context.read()
                if not self._live():
                    return
                if not isinstance(message, bytes):  # grpc.aio.EOF
                    receiver.half_closed()
                    return
                receiver.message(message)
        except (ConnectionError, grpc.aio.BaseError):
            return  # the RPC is over; grpc cancels the task that serves it
        except Exception:
            log.exception(_CRASH)
            self.fail()

    def _live(self) -> bool:
        return self.status is None and not self.gone

    def fail(self) -> None:
        """End the stream after an exception of the application."""
        self.abandon()
        self.finish(13, "internal error")

    async def written(self) -> None:
        """Wait until all is written: grpc loses a status that overtakes a write which flow control holds back."""
        while self._writer is not None:
            await self._writer

    def abandon(self) -> None:
        """Drop what waits to be written."""
        self._queue.clear()

    def end(self) -> None:
        self._queue.clear()
        if self._writer is not None:
            self._writer.cancel()
        self._wake()


def _text(name: str, value: str | bytes) -> str:
    if isinstance(value, str):
        return value
    import base64  # only `-bin` metadata needs it

    return base64.b64encode(value).rstrip(b"=").decode() if name.endswith("-bin") else value.decode("latin-1")


class GrpcioServer:
    """`extproc.transport.seam.Server` on grpc.aio. TLS and mTLS come from `tls`.

    grpc-core has its own limits for frames; of `TransportLimits` it takes the sizes of messages, headers and windows,
    the number of streams, the idle, keep-alive and age times. Connections are counted by their live streams.
    """

    def __init__(
        self, handlers: Mapping[str, Handler], limits: TransportLimits | None = None, tls: TlsFiles | None = None
    ) -> None:
        self._handlers = {path: self._rpc(handler) for path, handler in handlers.items()}
        self._limits = limits or TransportLimits()
        self._tls = tls
        self._guests = _Guests(() if tls is None else tls.client_sans)
        self._server: grpc.aio.Server | None = None
        self._address: str | None = None
        self._peers: dict[str, int] = {}
        self._streams = 0

    async def start(self, listen: str | socket.socket) -> None:
        """As `Server.start`. grpc-core binds by itself: of a TCP socket given here it takes the address (SO_REUSEPORT).

        Raises ValueError for an inherited Unix socket and for TLS files that do not work, OSError for a taken port.
        """
        lent: socket.socket | None = None
        if isinstance(listen, str):
            where = address.parse(listen)  # for its errors; grpc-core's name no cause
            if not isinstance(where, str) and where[1]:
                lent = address.shared(address.bind(listen))  # grpc-core itself would share a port that is taken
        elif listen.family == socket.AF_UNIX:
            raise ValueError("the grpcio transport cannot take over a Unix socket; give it unix:PATH")
        else:
            lent, listen = listen, address.name(listen)
            where = address.parse(listen)
        limits = self._limits
        server = grpc.aio.server(handlers=[_Generic(self._handlers)], options=_options(limits))
        if self._tls is None:
            port = server.add_insecure_port(listen)
        else:
            port = server.add_secure_port(listen, _credentials(self._tls))
        if lent is not None:
            lent.close()
        await server.start()
        self._server = server
        self._address = listen if isinstance(where, str) else f"{listen.rpartition(':')[0]}:{port}"

    @property
    def address(self) -> str:
        if self._address is None:
            raise RuntimeError("the server is not started")
        return self._address

    @property
    def streams(self) -> int:
        return self._streams

    @property
    def connections(self) -> int:
        """Connections with a live stream; grpc.aio does not tell of others."""
        return len(self._peers)

    async def drain(self, grace: float) -> None:
        if self._server is not None:
            await self._server.stop(grace)

    async def close(self) -> None:
        await self.drain(0)

    def _rpc(self, handler: Handler) -> grpc.RpcMethodHandler[bytes, bytes]:
        async def behaviour(_: object, context: grpc.aio.ServicerContext[bytes, bytes]) -> None:
            if not self._guests.admits(context):
                context.set_code(grpc.StatusCode.PERMISSION_DENIED)
                return
            peer = context.peer()
            self._streams += 1
            self._peers[peer] = self._peers.get(peer, 0) + 1
            stream = _Stream(context, self._limits)
            try:
                await self._exchange(handler, stream)
                await stream.written()
                status, message = stream.status or (0, "")
                if status:
                    context.set_code(_CODES.get(status, grpc.StatusCode.UNKNOWN))
                    context.set_details(message)
            finally:
                self._streams -= 1
                self._peers[peer] -= 1
                if not self._peers[peer]:
                    del self._peers[peer]
                stream.end()

        make: Callable[..., grpc.RpcMethodHandler[bytes, bytes]] = grpc.stream_stream_rpc_method_handler
        return make(behaviour)  # no (de)serializers: messages stay bytes

    async def _exchange(self, handler: Handler, stream: _Stream) -> None:
        """From the handler's call to the receiver's last."""
        try:
            receiver = handler(stream)
        except Exception:
            log.exception(_CRASH)
            stream.fail()
            return
        reader = asyncio.ensure_future(stream.read(receiver))
        try:
            await stream.finished
        finally:
            reader.cancel()
            stream.gone = True
            _closed(receiver)


class _Generic(grpc.GenericRpcHandler):
    def __init__(self, handlers: Mapping[str, grpc.RpcMethodHandler[bytes, bytes]]) -> None:
        self._handlers = handlers

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[bytes, bytes] | None:
        return self._handlers.get(details.method)


def _closed(receiver: Receiver) -> None:
    try:
        receiver.closed()
    except Exception:
        log.exception("an exception in a gRPC receiver's closed()")


def _options(limits: TransportLimits) -> list[tuple[str, int]]:
    millis = 1_000
    return [
        ("grpc.max_receive_message_length", limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        ("grpc.max_concurrent_streams", limits.max_concurrent_streams),
        ("grpc.max_metadata_size", limits.max_header_bytes),
        ("grpc.absolute_max_metadata_size", limits.max_header_bytes),
        ("grpc.http2.max_frame_size", limits.max_frame_bytes),
        ("grpc.http2.hpack_table_size.decoder", 0),
        ("grpc.http2.lookahead_bytes", limits.stream_window_bytes),
        ("grpc.keepalive_time_ms", int(limits.keepalive_s * millis)),
        ("grpc.keepalive_timeout_ms", int(limits.stall_s * millis)),
        ("grpc.max_connection_idle_ms", int(limits.idle_s * millis)),
        ("grpc.max_connection_age_ms", int(limits.max_age_s * millis) or 2**31 - 1),
        ("grpc.so_reuseport", 1),
    ]
