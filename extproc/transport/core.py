"""HTTP/2 and gRPC as a server speaks them, without any input or output: bytes in, calls of receivers, bytes out.

`Connection.receive` takes what was read; `Connection.work` and `Connection.take` give what is to be written. The time,
timers and "call me soon" are handed in. Which frame may come when is said in `states`, how much may go in `flow`, how
long a peer may take in `liveness`. What makes it cheap: the frames of one read are handled in one loop, and what is not
a whole message or a known request leaves that loop for a named method.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from typing import Final

from extproc.transport import frames, headers, liveness, states
from extproc.transport.faults import CompressionError, Fault, Malformed, TooLarge
from extproc.transport.flow import Flood, Inflow, Numbers, Outbox, Outflow, Partial
from extproc.transport.liveness import Liveness
from extproc.transport.seam import Receiver, Timer, TransportLimits, Waiter

log = logging.getLogger(__name__)

# What the application may still do with its stream.
ANSWERING: Final = 0
FINISHED: Final = 1  # it has said its last; that may still wait to be sent
GONE: Final = 2

_BATCH: Final = 262_144  # bytes handed to the socket at once when a long answer is written
_LINGER: Final = 2.0  # seconds that a closed connection is still read, so that its GOAWAY arrives
_CRASH = "an exception in a gRPC handler ends its stream with INTERNAL"
_DRAIN_PING = b"draining"
_ALIVE_PING = b"alive?\0\0"


class Common:
    """What the connections of one server share."""

    def __init__(self, limits: TransportLimits, memory: headers.BlockMemory) -> None:
        self.limits = limits
        self.memory = memory
        self.partial_bytes = 0  # of the unfinished messages of all streams
        # The event loop's; a server that is not started has none.
        self.now: Callable[[], float]
        self.later: Callable[[float, Callable[[], None]], Timer]
        self.waiter: Callable[[], Waiter]


class GrpcStream:
    """One gRPC stream: `seam.Stream` for the application, and the state that the connection keeps for it."""

    receiver: Receiver
    state = states.OPEN  # what the peer may still send: OPEN or HALF_CLOSED
    answer = ANSWERING
    started = False  # our HEADERS are sent
    received = 0  # bytes of DATA frames, as flow control counts them
    padding = 0
    partial: Partial | None = None
    outbox: Outbox | None = None
    code: int | None = None  # RST_STREAM is sent with it
    timer: Timer | None = None

    def __init__(self, connection: Connection, number: int, head: headers.RequestHead) -> None:
        self.connection = connection
        self.number = number
        self.head = head
        self.window = connection.outflow.stream_window
        self.renew_at = connection.inflow.stream_half  # `received` beyond which the peer is granted more

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.head.metadata

    @property
    def buffered(self) -> int:
        """Bytes of the answer that wait to be sent."""
        return 0 if self.outbox is None else self.outbox.size

    def send(self, message: bytes) -> None:
        if self.answer:
            return
        connection = self.connection
        outflow = connection.outflow
        size = len(message)
        whole = size + 5
        if (
            whole <= self.window
            and whole <= outflow.window
            and whole <= outflow.frame_size
            and self.outbox is None
            and not outflow.paused
        ):
            self.window -= whole
            outflow.window -= whole
            connection.flood.count -= 4  # a peer answers data with window updates and pings
            out = connection.out
            if self.started:
                out.append(frames.data_and_prefix(whole << 8, 0, self.number, 0, size))
            else:
                self.started = True
                if connection.fresh:
                    out.append(connection.first_block(self.number))
                    out.append(frames.data_and_prefix(whole << 8, 0, self.number, 0, size))
                else:
                    out.append(frames.reply_and_data(self.number, size))
            out.append(message)
            if not connection.busy:
                connection.wake()
        else:
            self._queue(message)

    def _queue(self, message: bytes) -> None:
        connection = self.connection
        limits = connection.limits
        outflow = connection.outflow
        outbox = self.outbox
        if outbox is None:
            outbox = self.outbox = Outbox(connection.shared.now())
            outflow.waiting[self.number] = self
        elif outbox.size + len(message) > limits.max_buffered_bytes:
            self.reset(frames.ENHANCE_YOUR_CALM)  # gRPC reads it as RESOURCE_EXHAUSTED
            return
        if not self.started:
            self.started = True
            connection.out.append(connection.reply_block(self.number))
        outflow.buffered += outbox.add(message)
        if outflow.buffered > limits.max_connection_buffer_bytes:
            connection.fault = Fault(frames.ENHANCE_YOUR_CALM, "too much waits for this peer")
        if self.window > 0:
            outflow.ready[self.number] = self
        connection.wake()

    def finish(self, status: int = 0, message: str = "") -> None:
        if self.answer:
            return
        self.answer = FINISHED
        if self.partial is not None:
            self.forget()
        connection = self.connection
        if self.outbox is not None:
            self.outbox.end = frames.trailers(status, message)
            return
        if status == 0 and self.started:
            connection.out.append(frames.end_ok(self.number))
        elif self.started:
            connection.end_block(self.number, frames.trailers(status, message))
        else:
            connection.end_block(self.number, frames.trailers_only(status, message))
        connection.ended.append(self)
        if not connection.busy:
            connection.wake()

    async def drain(self) -> None:
        connection = self.connection
        while self.answer != GONE:
            outbox = self.outbox
            if outbox is None or outbox.size < connection.limits.high_water_bytes:
                return
            waiter = connection.shared.waiter()
            outbox.waiters.append(waiter)
            await waiter
        raise ConnectionError("the gRPC stream is gone")

    def reset(self, code: int) -> None:
        """End the stream with RST_STREAM once the application is not on the stack any more."""
        if self.code is None:
            self.answer = FINISHED
            self.code = code
            self.forget()
            self.connection.ended.append(self)
            self.connection.wake()

    def expire(self) -> None:
        """The client's grpc-timeout has passed."""
        self.timer = None
        self.cut(4, "the time that grpc-timeout gave is over")

    def cut(self, status: int, message: str) -> None:
        """Finish with an error that does not wait for what is still to be written."""
        if self.answer == FINISHED:
            self.reset(frames.CANCEL)
        elif self.answer == ANSWERING:
            self.discard()
            self.finish(status, message)

    def forget(self) -> None:
        """Drop what has arrived of a message."""
        partial = self.partial
        if partial is not None:
            self.partial = None
            self.connection.shared.partial_bytes -= len(partial.data)
            self.connection.partials.pop(self.number, None)

    def discard(self) -> None:
        """Forget what waits in either direction."""
        outbox = self.outbox
        if outbox is not None:
            self.outbox = None
            self.connection.outflow.drop(self.number, outbox.size)
            outbox.wake()
        self.forget()

    def stalled(self, before: float) -> bool:
        """Has nothing that waits, in either direction, moved since then?"""
        outbox, partial = self.outbox, self.partial
        return (outbox is None or outbox.touched < before) and (partial is None or partial.touched < before)

    def gone(self) -> None:
        """The last thing that happens to a stream; it has left the connection's map."""
        self.answer = GONE
        if self.timer is not None:
            self.timer.cancel()
        self.discard()
        try:
            self.receiver.closed()
        except Exception:
            log.exception("an exception in a gRPC receiver's closed()")
        self.receiver = _NOBODY  # it mostly refers to this stream: leave no cycle to the garbage collector


class _Nobody:
    """The receiver of a stream whose handler failed, and of one that is gone."""

    def message(self, data: bytes) -> None:
        pass

    def half_closed(self) -> None:
        pass

    def closed(self) -> None:
        pass


_NOBODY = _Nobody()


class Rest:
    """The bytes of a read that make no whole frame."""

    def __init__(self, need: int, now: float) -> None:
        self.data: bytearray | None = bytearray()
        self.need = need  # bytes that are to be there before it is worth a look
        self.since = now


class Connection:
    """One HTTP/2 connection."""

    def __init__(self, shared: Common, soon: Callable[[], object]) -> None:
        """`soon` has `work` called before long; it is not called again until `busy` is False."""
        limits = shared.limits
        now = shared.now()
        self.shared = shared
        self.limits = limits
        self.soon = soon
        self.streams: dict[int, GrpcStream] = {}
        self.partials: dict[int, GrpcStream] = {}  # those with an unfinished message
        self.ended: list[GrpcStream] = []  # those that `work` has to let go
        self.out: list[bytes | memoryview] = []  # frames to be written
        self.busy = False  # `work` will be called
        self.fresh = True  # no header block is sent yet
        self.fault: Fault | None = None  # the peer's, or ours: the connection is to end with it
        self.phase = states.PREFACE
        self.leaving = states.STAYING
        self.left_at = 0.0  # when `leaving` last changed by our doing
        self.numbers = Numbers()
        self.rest = Rest(len(frames.PREFACE), now)
        self.blocks = headers.Blocks(shared.memory, limits.max_header_bytes)
        self.inflow = Inflow(limits)
        self.outflow = Outflow()
        self.flood = Flood(limits.max_control_frames)
        self.liveness = Liveness(limits, now)

    # --- bytes in ---

    def receive(self, data: bytes) -> None:
        """Handle what was read. `work` has to be called next."""
        self.liveness.heard = True
        if self.leaving == states.GONE:
            return
        self.busy = True
        rest = self.rest
        try:
            used = self._complete(data) if rest.data is not None else 0
            if rest.data is None:
                used = self._read(data, used)
                if used < len(data):
                    rest.data = bytearray(memoryview(data)[used:])
                    rest.since = self.shared.now()
        except Fault as fault:
            self.fault = fault

    def _complete(self, data: bytes) -> int:
        """Finish the frame that `rest` began, and no more, so that little is copied; returns how much was used."""
        rest = self.rest
        begun = rest.data
        assert begun is not None
        used = 0
        while True:
            missing = rest.need - len(begun)
            begun += memoryview(data)[used : used + missing]
            used = min(len(data), used + missing)
            if len(begun) < rest.need:
                return used
            if self.phase == states.PREFACE:
                if begun != frames.PREFACE:
                    raise Fault(frames.PROTOCOL_ERROR, "not HTTP/2: the connection preface is missing")
                self.phase = states.GREETING
                break
            if self._read(bytes(begun), 0):  # nothing is used of a mere frame head: `need` then is the whole frame
                break
        rest.data = None
        return used

    def _read(self, data: bytes, position: int) -> int:
        """Handle the whole frames of `data`; returns where the rest begins, and sets how long that must grow."""
        streams = self.streams
        inflow = self.inflow
        numbers = self.numbers
        heads = self.shared.memory.heads
        read_head = frames.read_head
        read_prefix = frames.read_prefix
        opened, ready = states.OPEN, states.READY
        largest = self.limits.max_frame_bytes
        longest = self.limits.max_message_bytes
        end = len(data)
        while end - position >= 9:
            word, flags, number = read_head(data, position)
            size = word >> 8
            start = position + 9
            stop = start + size
            if stop > end or size > largest:
                if size > largest:
                    raise Fault(frames.FRAME_SIZE_ERROR, "a frame larger than SETTINGS_MAX_FRAME_SIZE")
                self.rest.need = 9 + size
                return position
            kind = word & 0xFF
            position = stop
            if kind == frames.DATA:
                stream = streams.get(number)
                if stream is None or flags & frames.PADDED or stream.state != opened or self.phase != ready:
                    self._frame(kind, flags, number, data[start:stop])
                    continue
                # What `states` says of DATA on an open stream.
                inflow.unacked += size
                stream.received += size
                if stream.received > stream.renew_at:
                    self._renew(stream)
                if size >= 5 and stream.partial is None:
                    flag, length = read_prefix(data, start)
                    if flag or length != size - 5 or length > longest:
                        self._message_part(stream, memoryview(data)[start:stop])
                    elif not stream.answer:
                        try:
                            stream.receiver.message(data[start + 5 : stop])
                        except Exception:
                            log.exception(_CRASH)
                            stream.cut(13, "internal error")
                elif size:
                    self._message_part(stream, memoryview(data)[start:stop])
                elif not flags & frames.END_STREAM:
                    self.flood.note()
                if flags & frames.END_STREAM:
                    self._half_close(stream)
            elif kind == frames.HEADERS and flags & 0x2C == frames.END_HEADERS and self.phase == ready:
                block = data[start:stop]
                head = heads.get(block)
                if (
                    head is not None
                    and self.blocks.decoder is None
                    and numbers.last < number <= numbers.accepted
                    and number & 1
                ):
                    self._open(number, flags, head)  # what `states` says of HEADERS on an idle stream
                else:
                    self._block(number, flags, block)
            else:
                self._frame(kind, flags, number, data[start:stop])
        self.rest.need = 9
        return position

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        """A frame that the fast paths leave: asks the tables, and hands it to its method."""
        number &= frames.MAX_ID
        expected = states.EXPECTED[self.phase]
        if expected != states.ANY and (
            kind != expected
            or (kind == frames.SETTINGS and flags & frames.ACK)
            or (kind == frames.CONTINUATION and number != self.blocks.number)
        ):
            raise Fault(frames.PROTOCOL_ERROR, states.UNEXPECTED[self.phase])
        if expected == frames.CONTINUATION:
            self._continuation(flags, payload)
            return
        stream = self.streams.get(number)
        state = self.numbers.state(number) if stream is None else stream.state
        act = _act(state, kind)
        if kind == frames.DATA:
            self._data(number, flags, payload, act)
            return
        if kind == frames.HEADERS:
            self._headers(number, flags, payload)
            return
        if kind == frames.RST_STREAM:
            self._rst_stream(stream, payload)
            return
        self.flood.note()
        if kind == frames.WINDOW_UPDATE:
            self._window_update(number, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, payload)
        elif kind == frames.PING:
            self._ping(flags, payload)
        elif kind == frames.GOAWAY:
            if len(payload) < 8:
                raise Fault(frames.FRAME_SIZE_ERROR, "a malformed GOAWAY")
            if self.leaving == states.STAYING:
                self.leaving = states.WARNED  # the peer opens no more streams; close when the last is done
            self.wake()
        elif kind == frames.PRIORITY and len(payload) != 5:  # else it is deprecated, and ignored like unknown kinds
            self._stream_error(number, frames.FRAME_SIZE_ERROR)

    # --- DATA and messages ---

    def _data(self, number: int, flags: int, payload: bytes, act: int) -> None:
        """A DATA frame that the fast path leaves: padded, or on a stream that is not open."""
        size = len(payload)
        self.inflow.unacked += size
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if act != states.TAKE:
            if size < 1_024:  # a flood of larger ones costs its sender more than us
                self.flood.note()
            if act == states.REFUSE:
                self._refuse(number)
            return
        if not payload and not flags & frames.END_STREAM:
            self.flood.note()
        stream = self.streams[number]
        stream.received += size
        stream.padding += size - len(payload)
        if stream.received > stream.renew_at:
            self._renew(stream)
        if payload:
            self._message_part(stream, payload)
        if flags & frames.END_STREAM:
            self._half_close(stream)

    def _half_close(self, stream: GrpcStream) -> None:
        stream.state = states.HALF_CLOSED
        if stream.answer:
            return
        if stream.partial is not None:
            stream.cut(13, "the stream ended inside a message")
        elif stream.head.length is not None and stream.head.length != stream.received - stream.padding:
            stream.reset(frames.PROTOCOL_ERROR)  # malformed (RFC 9113 section 8.1.1)
        else:
            try:
                stream.receiver.half_closed()
            except Exception:
                log.exception(_CRASH)
                stream.cut(13, "internal error")

    def _message_part(self, stream: GrpcStream, payload: bytes | memoryview) -> None:
        """Part of a message, several messages, or something that is no message."""
        if stream.answer:
            return
        shared = self.shared
        partial = stream.partial
        if partial is None:
            partial = stream.partial = Partial()
            self.partials[stream.number] = stream
        data = partial.data
        data += payload
        shared.partial_bytes += len(payload)
        partial.touched = shared.now()
        start = 0
        while len(data) - start >= 5 and not stream.answer:
            flag, size = frames.read_prefix(data, start)
            if flag or size > self.limits.max_message_bytes:
                self._refuse_message(stream, flag, size)
                return
            stop = start + 5 + size
            if stop > len(data):
                break
            with memoryview(data) as view:
                message = bytes(view[start + 5 : stop])
            start = stop
            try:
                stream.receiver.message(message)
            except Exception:
                log.exception(_CRASH)
                stream.cut(13, "internal error")
        if stream.partial is None:  # the stream was finished or cut
            return
        if start:
            del data[:start]
            shared.partial_bytes -= start
        if not data:
            stream.partial = None
            del self.partials[stream.number]
        elif shared.partial_bytes > self.limits.max_partial_bytes:
            stream.cut(8, "too many unfinished messages")

    def _refuse_message(self, stream: GrpcStream, flag: int, size: int) -> None:
        if flag == 1 and stream.metadata.get("grpc-encoding", "identity") != "identity":
            stream.cut(12, "compressed messages are not supported; grpc-accept-encoding is identity")
        elif flag:
            stream.cut(13, "a compressed flag without grpc-encoding")
        else:
            stream.cut(8, f"a message of {size} bytes; at most {self.limits.max_message_bytes} are allowed")

    def _renew(self, stream: GrpcStream) -> None:
        """Half the stream's window is used: grant it anew, unless the answer waits for a peer that does not take it."""
        inflow = self.inflow
        if stream.received > stream.renew_at + inflow.stream_window - inflow.stream_half:
            stream.reset(frames.FLOW_CONTROL_ERROR)
        elif stream.buffered < self.limits.high_water_bytes and not stream.answer and stream.state == states.OPEN:
            grant = stream.received - stream.renew_at + inflow.stream_half
            stream.renew_at += grant
            self.out.append(frames.window_update(stream.number, grant))

    # --- header blocks ---

    def _headers(self, number: int, flags: int, payload: bytes) -> None:
        """A HEADERS frame with padding, priority fields, or without END_HEADERS."""
        if flags & frames.PADDED:
            payload = _unpadded(payload)
        if flags & frames.PRIORITIZED:
            if len(payload) < 5:
                raise Fault(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority fields")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._block(number, flags, payload)
            return
        blocks = self.blocks
        blocks.part = bytearray(payload)
        blocks.number = number
        blocks.flags = flags
        blocks.since = self.shared.now()
        self.phase = states.BLOCK

    def _continuation(self, flags: int, payload: bytes) -> None:
        blocks = self.blocks
        part = blocks.part
        assert part is not None
        self.flood.note()
        part += payload
        if len(part) > self.limits.max_header_bytes:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header block too large")
        if flags & frames.END_HEADERS:
            blocks.part = None
            self.phase = states.READY
            self._block(blocks.number, blocks.flags, bytes(part))

    def _block(self, number: int, flags: int, block: bytes) -> None:
        """A whole header block: a request that the fast path leaves, trailers, or one to be dropped."""
        number &= frames.MAX_ID
        stream = self.streams.get(number)
        state = self.numbers.state(number) if stream is None else stream.state
        act = _act(state, frames.HEADERS)
        head: headers.RequestHead | None = None
        try:
            if state == states.IDLE:
                head = self.blocks.head(block)
            else:  # whatever becomes of it: HPACK's state depends on every block
                fields = self.blocks.fields(block)
                if state == states.OPEN:
                    headers.check_trailers(fields)
        except CompressionError as error:
            raise Fault(frames.COMPRESSION_ERROR, str(error)) from None
        except TooLarge:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header list too large") from None
        except Malformed:
            if act == states.TAKE:
                if stream is None:
                    self.numbers.last = number
                self._stream_error(number, frames.PROTOCOL_ERROR)
                return
        if head is not None:
            self._open(number, flags, head)
        elif stream is None or act != states.TAKE:
            self.flood.note()
            if act == states.REFUSE:
                self._refuse(number)
        elif flags & frames.END_STREAM:
            self._half_close(stream)
        else:
            stream.reset(frames.PROTOCOL_ERROR)

    def _open(self, number: int, flags: int, head: headers.RequestHead) -> None:
        self.numbers.last = number
        if len(self.streams) >= self.limits.max_concurrent_streams:
            self.flood.note()
            self._reset(number, frames.REFUSED_STREAM)
            return
        half = flags & frames.END_STREAM
        if head.handler is None:
            self.end_block(number, head.refusal)
            if not half:
                self._reset(number, frames.NO_ERROR)
            return
        stream = GrpcStream(self, number, head)
        self.streams[number] = stream
        if head.timeout is not None:
            stream.timer = self.shared.later(head.timeout, stream.expire)
        try:
            stream.receiver = head.handler(stream)
        except Exception:
            stream.receiver = _NOBODY
            log.exception(_CRASH)
            stream.cut(13, "internal error")
        if half:
            self._half_close(stream)

    # --- other frames ---

    def _refuse(self, number: int) -> None:
        """A frame for a stream that is closed, or closed from the peer's side."""
        stream = self.streams.get(number)
        if stream is not None:
            stream.reset(frames.STREAM_CLOSED)
        else:
            self._reset(number, frames.STREAM_CLOSED)

    def _stream_error(self, number: int, code: int) -> None:
        """A malformed frame that concerns its stream alone."""
        self.flood.note()
        stream = self.streams.get(number)
        if stream is not None:
            stream.reset(code)
            return
        after = states.cell(self.numbers.state(number), states.SENT_RESET)
        if after.act == states.TAKE:
            if after.then == states.RESET:
                self.numbers.reset(number)
            self.out.append(frames.rst_stream(number, code))

    def _reset(self, number: int, code: int) -> None:
        """RST_STREAM for a stream without state; what is still on the way to it will be dropped."""
        self.numbers.reset(number)
        self.out.append(frames.rst_stream(number, code))

    def _rst_stream(self, stream: GrpcStream | None, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed RST_STREAM")
        if stream is None or not stream.started:
            self.flood.note()  # rapid reset: opened and cancelled before an answer
        if stream is not None:
            stream.code = frames.NO_ERROR  # so that nothing ends it again
            del self.streams[stream.number]
            stream.gone()

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed WINDOW_UPDATE")
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not number:
            self.outflow.open_wider(increment)
            return
        stream = self.streams.get(number)
        if stream is None:
            return
        stream.window += increment
        if not increment or stream.window > frames.MAX_WINDOW:
            stream.reset(frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR)
        elif stream.outbox is not None and stream.window > 0:
            self.outflow.ready[number] = stream

    def _settings(self, flags: int, payload: bytes) -> None:
        if len(payload) % 6 or (flags & frames.ACK and payload):
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed SETTINGS")
        if flags & frames.ACK:
            self.blocks.acknowledge()
            return
        self.phase = states.READY
        outflow = self.outflow
        values = dict(frames.read_setting(payload))  # the last of a repeated setting counts
        window = values.get(frames.INITIAL_WINDOW_SIZE, outflow.stream_window)
        size = values.get(frames.MAX_FRAME_SIZE, outflow.frame_size)
        if values.get(frames.ENABLE_PUSH, 0) > 1 or not 16_384 <= size <= 16_777_215:
            raise Fault(frames.PROTOCOL_ERROR, "a setting out of range")
        if window > frames.MAX_WINDOW:
            raise Fault(frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
        outflow.frame_size = size
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        change = window - outflow.stream_window
        if change:
            outflow.stream_window = window
            for stream in self.streams.values():
                stream.window += change
                if stream.window > frames.MAX_WINDOW:
                    raise Fault(frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE opens a window too far")
                if stream.outbox is not None and stream.window > 0:
                    outflow.ready[stream.number] = stream

    def _ping(self, flags: int, payload: bytes) -> None:
        if len(payload) != 8:
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed PING")
        if not flags & frames.ACK:
            self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAIN_PING and self.leaving == states.WARNED:
            self._last_goaway()

    # --- bytes out ---

    def first_block(self, number: int) -> bytes:
        """The HEADERS frame that begins the first answer of the connection."""
        self.fresh = False
        return frames.frame(frames.HEADERS, frames.END_HEADERS, number, frames.TABLE_SIZE_0 + frames.REPLY)

    def reply_block(self, number: int) -> bytes:
        """The HEADERS frame that begins an answer."""
        if self.fresh:
            return self.first_block(number)
        return frames.frame(frames.HEADERS, frames.END_HEADERS, number, frames.REPLY)

    def end_block(self, number: int, block: bytes) -> None:
        """Sends the HEADERS frame that ends an answer, or is all of it."""
        if self.fresh:
            self.fresh = False
            block = frames.TABLE_SIZE_0 + block
        self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, block))

    def wake(self) -> None:
        """See to it that `work` is called soon."""
        if not self.busy:
            self.busy = True
            self.soon()

    def pause(self) -> None:
        """The socket takes no more for now."""
        self.outflow.paused = True
        self.liveness.paused_at = self.shared.now()

    def resume(self) -> None:
        """The socket takes more again."""
        self.outflow.paused = False
        self.wake()

    def work(self) -> bool:
        """Grant windows, send what waits, let go of ended streams. No application code may be on the stack.

        True when there is as much to write as one write should be: `take` it, and come again. After False comes a
        last `take`, and `fault` says whether the connection goes on.
        """
        if self.inflow.unacked > self.inflow.half:
            try:
                self.out.append(self.inflow.renew())
            except Fault as fault:
                self.fault = fault
        outflow = self.outflow
        if outflow.ready and not outflow.paused and self._pump():
            return True
        while self.ended:
            self._end_streams()
        return False

    def take(self) -> bytes:
        """What is to be written now."""
        data = b"".join(self.out)
        self.out.clear()
        return data

    def _end_streams(self) -> None:
        ended, self.ended = self.ended, []
        for stream in ended:
            if self.streams.pop(stream.number, None) is None:
                continue
            event = states.SENT_END if stream.code is None else states.SENT_RESET
            if states.cell(stream.state, event).then == states.RESET:
                self._reset(stream.number, stream.code or frames.NO_ERROR)
            stream.gone()

    def _pump(self) -> bool:
        """Send what waits, one frame a stream in turn, as far as windows go. True when it stopped to be written."""
        written = 0
        outflow = self.outflow
        ready = outflow.ready
        while ready and outflow.window > 0:
            if written >= _BATCH:
                return True
            number = next(iter(ready))
            stream = ready.pop(number)
            written += self._push(stream)
            if stream.outbox is not None and stream.window > 0:
                ready[number] = stream
        return False

    def _push(self, stream: GrpcStream) -> int:
        outbox = stream.outbox
        assert outbox is not None
        outflow = self.outflow
        size = min(outflow.frame_size, stream.window, outflow.window, outbox.size)
        self.out.append(frames.head(frames.DATA, 0, stream.number, size))
        outbox.take(size, self.out)
        stream.window -= size
        outflow.window -= size
        outflow.buffered -= size
        self.flood.count -= 4
        outbox.touched = self.shared.now()
        if outbox.size < self.limits.high_water_bytes:
            outbox.wake()
            if stream.received > stream.renew_at:
                self._renew(stream)
        if not outbox.size:
            stream.outbox = None
            outflow.drop(stream.number, 0)
            if stream.answer == FINISHED and stream.code is None:
                self.end_block(stream.number, outbox.end)
                self.ended.append(stream)
        return size

    # --- the end ---

    def start_drain(self) -> None:
        """First GOAWAY: new streams are still served until the peer has surely read it (RFC 9113 section 6.8)."""
        if self.leaving == states.STAYING:
            self.leaving = states.WARNED
            self.left_at = self.shared.now()
            self.out.append(frames.goaway(frames.MAX_ID, frames.NO_ERROR, "draining"))
            self.out.append(frames.frame(frames.PING, 0, 0, _DRAIN_PING))
            self.wake()

    def _last_goaway(self) -> None:
        self.leaving = states.LEAVING
        self.numbers.accepted = self.numbers.last
        self.out.append(frames.goaway(self.numbers.last, frames.NO_ERROR, "draining"))
        self.wake()

    def cut_all(self) -> None:
        """The grace of a drain is over."""
        for stream in list(self.streams.values()):
            stream.cut(14, "the server is shutting down")
        if self.leaving < states.LEAVING:
            self.leaving = states.LEAVING
            self.numbers.accepted = self.numbers.last
        self.wake()

    def close(self, code: int, why: str) -> None:
        """The last frame, GOAWAY, unless it is said. What is in `out` has to be written before `drop`."""
        if code or self.leaving != states.LEAVING:
            self.out.append(frames.goaway(self.numbers.last, code, why))
        self.abandon()
        self.rest.data = self.blocks.part = None

    def abandon(self) -> None:
        """Nothing is read or written any more."""
        if self.leaving != states.GONE:
            self.leaving = states.GONE
            self.left_at = self.shared.now()

    def drop(self) -> None:
        """Let go of every stream."""
        while self.streams:
            self.streams.popitem()[1].gone()
        self.ended.clear()

    def sweep(self, now: float) -> bool:
        """Once in a while: what has waited too long? True when the socket is to be cut off without a word."""
        limits = self.limits
        alive = self.liveness
        alive.look(now, bool(self.streams))
        if self.leaving == states.GONE:
            return now - self.left_at > _LINGER
        greeted = self.phase >= states.READY and self.blocks.acknowledged
        if not greeted and now - alive.born > limits.handshake_s:
            self._fail(Fault(frames.SETTINGS_TIMEOUT, "no preface or no SETTINGS in time"))
        elif self.outflow.paused and now - alive.paused_at > limits.stall_s:
            return True
        elif self._unfinished(now - limits.stall_s):
            self._fail(Fault(frames.ENHANCE_YOUR_CALM, "a frame or header block was not finished in time"))
        else:
            if self.leaving == states.STAYING:
                if alive.aged(now):
                    self.start_drain()
            else:
                if self.leaving == states.WARNED and now - self.left_at > 1.0:
                    self._last_goaway()
                self.wake()
            self._sweep_streams(now - limits.stall_s)
            what = alive.silence(now, bool(self.streams))
            if what == liveness.ASK:
                self.out.append(frames.frame(frames.PING, 0, 0, _ALIVE_PING))
                self.wake()
            return what == liveness.CUT
        return False

    def _fail(self, fault: Fault) -> None:
        self.fault = fault
        self.wake()

    def _unfinished(self, before: float) -> bool:
        """Has a frame, or a header block, not been finished since then?"""
        rest, blocks = self.rest, self.blocks
        return (bool(rest.data) and rest.since < before) or (blocks.part is not None and blocks.since < before)

    def _sweep_streams(self, before: float) -> None:
        for stream in [*self.outflow.waiting.values(), *self.partials.values()]:
            if stream.stalled(before):
                if stream.outbox is not None:
                    stream.reset(frames.CANCEL)
                else:
                    stream.cut(4, "a message was not finished in time")


def _act(state: int, kind: int) -> int:
    """What to do with a frame: TAKE, DROP or REFUSE. Raises Fault."""
    event = kind if kind < states.OTHER else states.OTHER
    act = states.cell(state, event).act
    if act >= states.FAULT:
        code = frames.PROTOCOL_ERROR if act == states.FAULT else frames.STREAM_CLOSED
        raise Fault(code, f"{states.KINDS[event]} on {states.STATES[state]}")
    return act


def _unpadded(payload: bytes) -> bytes:
    """What a padded frame carries. Raises Fault."""
    size = len(payload)
    if not size or payload[0] >= size:
        raise Fault(frames.PROTOCOL_ERROR, "more padding than frame")
    return payload[1 : size - payload[0]]
