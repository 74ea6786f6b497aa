"""How much may go in each direction: flow control's windows, what waits for them, and how much a peer may ask for.

Flow control is RFC 9113 section 5.2. Sizes are in bytes, times are those of the event loop's clock in seconds.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

from extproc.transport import frames, states
from extproc.transport.faults import Fault
from extproc.transport.seam import TransportLimits, Waiter

if TYPE_CHECKING:
    from extproc.transport.core import GrpcStream

_REMEMBERED_RESETS = 1_024  # frames still on the way to a stream that we ended are dropped for this many streams


class Inflow:
    """What the peer may send: the receive windows. They are granted in bulk, when half of one is used."""

    def __init__(self, limits: TransportLimits) -> None:
        self.unacked = 0  # bytes of DATA since the last WINDOW_UPDATE of the connection
        self.window = limits.connection_window_bytes
        self.half = limits.connection_window_bytes // 2
        self.stream_window = limits.stream_window_bytes
        self.stream_half = limits.stream_window_bytes // 2

    def renew(self) -> bytes:
        """The connection's WINDOW_UPDATE. Raises Fault where the peer has sent more than it may."""
        grant = self.unacked
        if grant > self.window:
            raise Fault(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        self.unacked = 0
        return frames.window_update(0, grant)


class Outflow:
    """What we may send: the peer's windows and frame size, and the streams whose answers wait."""

    def __init__(self) -> None:
        self.window = 65_535  # of the connection
        self.stream_window = 65_535  # that a new stream begins with
        self.frame_size = 16_384
        self.paused = False  # the socket takes no more for now
        self.waiting: dict[int, GrpcStream] = {}  # streams with an outbox
        self.ready: dict[int, GrpcStream] = {}  # those of them whose own window is open
        self.buffered = 0  # bytes in all outboxes

    def drop(self, number: int, size: int) -> None:
        """The stream's outbox is gone, with `size` bytes that were still in it."""
        self.buffered -= size
        self.waiting.pop(number, None)
        self.ready.pop(number, None)

    def open_wider(self, increment: int) -> None:
        """A WINDOW_UPDATE of the connection. Raises Fault."""
        self.window += increment
        if not increment or self.window > frames.MAX_WINDOW:
            code = frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR
            raise Fault(code, "a window update of nothing or too much")


class Outbox:
    """What waits of one stream's answer: for a window of the peer's, or for the socket."""

    def __init__(self, now: float) -> None:
        self.parts: deque[memoryview] = deque()
        self.size = 0
        self.end = b""  # the trailers' block that follows, once the answer is finished
        self.touched = now  # when something was last taken
        self.waiters: list[Waiter] = []  # of those who want to send more

    def add(self, message: bytes) -> int:
        """Puts a message with its gRPC prefix behind what waits; returns how many bytes that is."""
        self.parts.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
        size = len(message) + 5
        self.size += size
        return size

    def take(self, size: int, out: list[bytes | memoryview]) -> None:
        """Moves the first `size` bytes, no more than there are, to `out`."""
        parts = self.parts
        self.size -= size
        while size:
            part = parts[0]
            if len(part) <= size:
                parts.popleft()
            else:
                parts[0] = part[size:]
                part = part[:size]
            out.append(part)
            size -= len(part)

    def wake(self) -> None:
        """There is room again, or nothing will ever be sent."""
        for waiter in self.waiters:
            if not waiter.done():
                waiter.set_result(None)
        self.waiters.clear()


class Partial:
    """A message that has not arrived whole."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.touched = 0.0  # when its last part came


class Flood:
    """Counts frames that carry no request (pings, settings, early resets, …).

    Its window is that of `TransportLimits.window_s`.
    """

    def __init__(self, most: int) -> None:
        self.count = 0  # each frame of ours gives credit for the window updates and pings that answer it
        self.most = most

    def note(self) -> None:
        """One more. Raises Fault beyond the limit."""
        self.count += 1
        if self.count > self.most:
            raise Fault(frames.ENHANCE_YOUR_CALM, "too many frames that carry no request")


class Numbers:
    """The stream numbers of a connection: which were used, which are served, and which we reset a short while ago."""

    def __init__(self) -> None:
        self.last = 0  # the highest that was used
        self.accepted = frames.MAX_ID  # streams above it are not answered: our last GOAWAY said so
        self.resets: dict[int, None] = {}

    def state(self, number: int) -> int:
        """What a number stands for that has no `GrpcStream`: one of `states`."""
        if number in self.resets:
            return states.RESET
        if not number & 1:
            return states.EVEN if number else states.CONNECTION
        if number <= self.last:
            return states.CLOSED
        return states.IDLE if number <= self.accepted else states.BEYOND

    def reset(self, number: int) -> None:
        """RST_STREAM is sent: what is still on its way is dropped."""
        self.resets[number] = None
        if len(self.resets) > _REMEMBERED_RESETS:
            del self.resets[next(iter(self.resets))]
