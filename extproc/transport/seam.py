"""The seam between the application and whatever carries gRPC: one `Stream` and one `Receiver` for each gRPC stream.

A transport accepts connections, calls the `Handler` registered for a stream's gRPC method with a `Stream`, and feeds
the `Receiver` it gets back. Everything here is called on the transport's event loop, none of it may block, and messages
are bytes: no transport knows protobuf.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Protocol


class Stream(Protocol):
    """What a transport gives the application for one gRPC stream."""

    @property
    def metadata(self) -> Mapping[str, str]:
        """Request metadata: lower-case names, decoded on first use; values of a repeated name are joined by a comma.

        The values of names that end in `-bin` stay in base64, as on the wire.
        """
        ...

    def send(self, message: bytes) -> None:
        """Queue one serialized protobuf message (the transport adds the gRPC prefix). Never blocks.

        Flow control may keep bytes here: a stream that already waits and would pass
        `TransportLimits.max_buffered_bytes` ends with RESOURCE_EXHAUSTED; `drain` keeps a long answer below that.
        Ignored once the stream is finished or gone.
        """
        ...

    def finish(self, status: int = 0, message: str = "") -> None:
        """End the stream with a gRPC status (0 to 16) after everything sent. Calls after the first are ignored."""
        ...

    async def drain(self) -> None:
        """Wait until fewer than `TransportLimits.high_water_bytes` are buffered for this stream.

        Raises ConnectionError when the stream is gone (cancelled, reset, or its connection lost).
        """
        ...


class Receiver(Protocol):
    """What the application gives a transport for one gRPC stream. An exception from a method ends it with INTERNAL."""

    def message(self, data: bytes) -> None:
        """One whole request message, without the gRPC prefix."""
        ...

    def half_closed(self) -> None:
        """The client sent END_STREAM: no further message comes, the answer may go on.

        grpc-core reports a cancelled stream this way too, just before `closed`.
        """
        ...

    def closed(self) -> None:
        """Always the last call, exactly once: the stream is finished, cancelled, or its connection is lost."""
        ...


Handler = Callable[[Stream], Receiver]
"""One for each fully-qualified gRPC method path, such as `/envoy.service.ext_proc.v3.ExternalProcessor/Process`."""


class Timer(Protocol):
    """What an event loop gives for a call that is to come later."""

    def cancel(self) -> None: ...


class Waiter(Awaitable[None], Protocol):
    """A future of an event loop."""

    def done(self) -> bool: ...

    def set_result(self, result: None, /) -> None: ...


@dataclass(frozen=True, slots=True)
class TransportLimits:
    """What one peer may make the server hold or do. Sizes in bytes, times in seconds."""

    max_message_bytes: int = 104_857_600 + 65_536  # a 100 MiB body and its envelope
    max_partial_bytes: int = 268_435_456  # half-received messages of all streams of a server together
    max_connections: int = 1_024
    max_concurrent_streams: int = 1_024  # of one connection, announced in SETTINGS
    max_header_bytes: int = 65_536  # of one header list, counted as RFC 9113 section 6.5.2 says
    max_frame_bytes: int = 65_536  # SETTINGS_MAX_FRAME_SIZE: the largest frame a peer may send
    stream_window_bytes: int = 4_194_304  # receive window of one stream
    connection_window_bytes: int = 67_108_864  # receive window of one connection
    high_water_bytes: int = 262_144  # `Stream.drain` waits while this much is buffered for the stream
    max_buffered_bytes: int = 16_777_216  # most that waits for a stream's peer, unless it is one message
    max_connection_buffer_bytes: int = 268_435_456  # a connection that waits with more than this is closed
    max_control_frames: int = 4_096  # frames without a request (pings, settings, early resets, ...) in one `window_s`
    window_s: float = 10.0
    handshake_s: float = 10.0  # from accept to the peer's preface and the acknowledgement of our SETTINGS
    idle_s: float = 3_600.0  # a connection that carried no stream for this long is drained
    keepalive_s: float = 60.0  # a connection with streams that is silent for this long is asked for a PING
    stall_s: float = 60.0  # for a peer that takes nothing that waits for it, stops inside a message, or owes a PING
    max_age_s: float = 0.0  # a connection this old is drained, so that load spreads after a scale-up (0: never)


class Server(Protocol):
    """One transport: accepts connections and serves the handlers it was built with."""

    async def start(self, listen: str | socket.socket) -> None:
        """Listen on `host:port` (port 0 picks one), `unix:PATH`, or a bound socket, which the server then owns.

        Raises ValueError when the address cannot be read and OSError when it cannot be bound.
        """
        ...

    @property
    def address(self) -> str:
        """The bound address, in the form that `start` takes, with the real port. Raises RuntimeError before `start`."""
        ...

    @property
    def streams(self) -> int:
        """Live gRPC streams."""
        ...

    @property
    def connections(self) -> int:
        """Live connections."""
        ...

    async def drain(self, grace: float) -> None:
        """Stop accepting, tell every peer to go elsewhere, and wait up to `grace` seconds for live streams to end.

        What is still alive then is cancelled with UNAVAILABLE. The server is closed when this returns.
        """
        ...

    async def close(self) -> None:
        """Stop at once: every stream is cancelled, every connection closed. Safe to call twice."""
        ...
