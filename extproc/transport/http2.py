"""Our own HTTP/2 and gRPC server: one `asyncio.Protocol` over the raw frames, made for the least CPU a stream.

RFC 9113 and the gRPC-over-HTTP/2 mapping, as far as a server of unary and streaming methods needs them; cleartext
starts with prior knowledge, TLS with ALPN. What makes it cheap: no task a stream, remembered header blocks (`headers`),
constant reply blocks (`frames`), receive windows granted in bulk, and one write for each batch of frames read. The
frames of a batch are handled in one loop; what is not a whole message or a known request leaves it for a named method.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections import deque
from collections.abc import Mapping
from typing import cast

from hpack import Decoder

from extproc.transport import address, frames, headers
from extproc.transport.faults import CompressionError, Fault, Malformed, TooLarge
from extproc.transport.seam import Handler, Limits, Receiver

log = logging.getLogger(__name__)

_OPEN, _FINISHED, _GONE = range(3)
_REMEMBERED_RESETS = 1_024  # frames still on the way to a stream that we ended are dropped for this many streams
_BATCH = 262_144  # bytes handed to the socket at once when a long answer is written
_LINGER = 2.0  # seconds that a closed connection is still read, so that its GOAWAY arrives
_CRASH = "an exception in a gRPC handler ends its stream with INTERNAL"
_DRAIN_PING = b"draining"
_ALIVE_PING = b"alive?\0\0"


class _Stream:
    """One gRPC stream: `seam.Stream` for the application, and the state that the connection keeps for it.

    What most streams never use is a class attribute until it is: an instance pays for five fields.
    """

    receiver: Receiver
    state = _OPEN
    half = False  # the client sent END_STREAM
    started = False  # our HEADERS are sent
    received = 0  # bytes of DATA frames, as flow control counts them
    padding = 0
    partial: bytearray | None = None  # a message that has not arrived whole
    touched = 0.0  # when `partial` or `pending` last moved
    pending: deque[memoryview] | None = None  # bytes that wait for a window or for the socket
    buffered = 0
    end = b""  # the trailers' block that follows `pending`
    code: int | None = None  # RST_STREAM is sent with it
    timer: asyncio.TimerHandle | None = None
    waiter: asyncio.Future[None] | None = None

    def __init__(self, connection: _Connection, number: int, head: headers.Head) -> None:
        self.connection = connection
        self.number = number
        self.head = head
        self.window = connection.stream_window
        self.renew_at = connection.renew_after

    @property
    def metadata(self) -> Mapping[str, str]:
        return self.head.metadata

    def send(self, message: bytes) -> None:
        if self.state:
            return
        connection = self.connection
        size = len(message)
        whole = size + 5
        if (
            whole <= self.window
            and whole <= connection.window
            and whole <= connection.frame_size
            and self.pending is None
            and not connection.paused
        ):
            self.window -= whole
            connection.window -= whole
            connection.control -= 4  # a peer answers data with window updates and pings
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
        pending = self.pending
        if pending is None:
            pending = self.pending = deque()
            self.touched = connection.loop.time()
            connection.waiting[self.number] = self
        elif self.buffered + len(message) > limits.max_buffered_bytes:
            self.reset(frames.ENHANCE_YOUR_CALM)  # gRPC reads it as RESOURCE_EXHAUSTED
            return
        if not self.started:
            self.started = True
            connection.out.append(connection.reply_block(self.number))
        pending.append(memoryview(b"\0" + len(message).to_bytes(4, "big") + message))
        self.buffered += len(message) + 5
        connection.buffered += len(message) + 5
        if connection.buffered > limits.max_connection_buffer_bytes:
            connection.fault = Fault(frames.ENHANCE_YOUR_CALM, "too much waits for this peer")
        if self.window > 0:
            connection.ready[self.number] = self
        connection.wake()

    def finish(self, status: int = 0, message: str = "") -> None:
        if self.state:
            return
        self.state = _FINISHED
        self.forget()
        connection = self.connection
        if self.pending is not None:
            self.end = frames.trailers(status, message)
            return
        if status == 0 and self.started:
            connection.out.append(frames.end_ok(self.number))
        else:
            block = frames.trailers(status, message) if self.started else frames.trailers_only(status, message)
            if not self.started and connection.fresh:
                connection.fresh = False
                block = frames.TABLE_SIZE_0 + block
            connection.out.append(
                frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, self.number, block)
            )
        connection.ended.append(self)
        if not connection.busy:
            connection.wake()

    async def drain(self) -> None:
        while self.buffered >= self.connection.limits.high_water_bytes and self.state != _GONE:
            if self.waiter is None:
                self.waiter = self.connection.loop.create_future()
            await asyncio.shield(self.waiter)
        if self.state == _GONE:
            raise ConnectionError("the gRPC stream is gone")

    def reset(self, code: int) -> None:
        """End the stream with RST_STREAM once the application is not on the stack any more."""
        if self.code is None:
            self.state = _FINISHED
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
        if self.state == _FINISHED:
            self.reset(frames.CANCEL)
        elif self.state == _OPEN:
            self.discard()
            self.finish(status, message)

    def forget(self) -> None:
        """Drop what has arrived of a message."""
        if self.partial is not None:
            self.connection.server.partial_bytes -= len(self.partial)
            self.partial = None
            self.connection.partials.pop(self.number, None)

    def discard(self) -> None:
        """Forget what waits in either direction."""
        connection = self.connection
        if self.pending is not None:
            self.pending = None
            connection.buffered -= self.buffered
            self.buffered = 0
            connection.waiting.pop(self.number, None)
            connection.ready.pop(self.number, None)
            self.woken()
        self.forget()

    def woken(self) -> None:
        if self.waiter is not None:
            if not self.waiter.done():
                self.waiter.set_result(None)
            self.waiter = None

    def gone(self) -> None:
        """The last thing that happens to a stream; it has left the connection's map."""
        self.state = _GONE
        if self.timer is not None:
            self.timer.cancel()
        self.discard()
        self.woken()
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


class _Connection(asyncio.Protocol):
    """One HTTP/2 connection."""

    transport: asyncio.Transport

    def __init__(self, server: Http2Server) -> None:
        limits = server.limits
        self.server = server
        self.limits = limits
        self.loop = server.loop
        self.streams: dict[int, _Stream] = {}
        self.last_id = 0
        self.accept_to = frames.MAX_ID  # streams above it are ignored: we said GOAWAY
        # receiving
        self.rest: bytearray | None = bytearray()  # bytes that are no whole frame yet
        self.need = len(frames.PREFACE)
        self.rest_since = self.loop.time()
        self.read_preface = False
        self.read_settings = False
        self.decoder: Decoder | None = headers.new_decoder(limits.max_header_bytes)
        self.block: bytearray | None = None  # a header block whose CONTINUATION frames are still to come
        self.block_of = (0, 0)  # its stream and flags
        self.block_since = 0.0
        self.unacked = 0  # bytes of DATA received since the last connection WINDOW_UPDATE
        self.renew_after = limits.stream_window_bytes // 2
        self.partials: dict[int, _Stream] = {}
        self.control = 0
        self.resets: dict[int, None] = {}
        # sending
        self.out: list[bytes | memoryview] = []
        self.ended: list[_Stream] = []
        self.busy = False  # a flush will come
        self.paused = False
        self.fresh = True  # no header block is sent yet
        self.window = 65_535
        self.stream_window = 65_535
        self.frame_size = 16_384
        self.waiting: dict[int, _Stream] = {}  # streams with pending bytes
        self.ready: dict[int, _Stream] = {}  # those of them whose own window is open
        self.buffered = 0
        # time
        self.fault: Fault | None = None
        self.closing = 0.0  # when we said the last GOAWAY
        self.draining = False
        self.drained_at = 0.0
        self.acknowledged = False  # the peer has our SETTINGS
        self.heard = True  # since the last sweep
        self.born = self.heard_at = self.used_at = self.loop.time()
        self.asked_at = 0.0  # a PING of ours is out
        self.paused_at = 0.0

    # --- asyncio.Protocol ---

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        server, limits = self.server, self.limits
        tls = transport.get_extra_info("ssl_object")
        refused = len(server.live) >= limits.max_connections or server.draining
        if refused or (tls is not None and tls.selected_alpn_protocol() != "h2"):
            self.closing = self.born
            self.transport.abort()
            return
        server.live.add(self)
        self.transport.set_write_buffer_limits(high=limits.high_water_bytes)
        self.transport.write(server.greeting)

    def connection_lost(self, exc: Exception | None) -> None:
        self.server.live.discard(self)
        self.closing = self.closing or self.loop.time()
        self._drop_streams()
        if not self.server.live:
            self.server.empty.set()

    def eof_received(self) -> bool:
        return False  # the transport closes, and connection_lost follows

    def pause_writing(self) -> None:
        self.paused = True
        self.paused_at = self.loop.time()
        self.transport.pause_reading()  # a peer that does not read may not make us queue more answers

    def resume_writing(self) -> None:
        self.paused = False
        self.transport.resume_reading()
        self.wake()

    def data_received(self, data: bytes) -> None:
        self.heard = True
        if self.closing:
            return
        self.busy = True
        try:
            used = self._complete(data) if self.rest is not None else 0
            if self.rest is None:
                used = self._read(data, used)
                if used < len(data):
                    self.rest = bytearray(memoryview(data)[used:])
                    self.rest_since = self.loop.time()
        except Fault as fault:
            self.fault = fault
        self._flush()

    # --- reading ---

    def _complete(self, data: bytes) -> int:
        """Finish the frame that `rest` began, and no more, so that little is copied; returns how much was used."""
        rest = self.rest
        assert rest is not None
        used = 0
        while True:
            missing = self.need - len(rest)
            rest += memoryview(data)[used : used + missing]
            used = min(len(data), used + missing)
            if len(rest) < self.need:
                return used
            if not self.read_preface:
                if rest != frames.PREFACE:
                    raise Fault(frames.PROTOCOL_ERROR, "not HTTP/2: the connection preface is missing")
                self.read_preface = True
                break
            if self._read(bytes(rest), 0):  # nothing is used of a mere frame head: `need` then is the whole frame
                break
        self.rest = None
        return used

    def _read(self, data: bytes, position: int) -> int:
        """Handle the whole frames of `data`; returns where the rest begins. `need` then says how long it must grow."""
        streams = self.streams
        heads = self.server.memory.heads
        read_head = frames.read_head
        read_prefix = frames.read_prefix
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
                self.need = 9 + size
                return position
            kind = word & 0xFF
            position = stop
            if kind == frames.DATA:
                stream = streams.get(number)
                if stream is None or flags & frames.PADDED or stream.half or self.block is not None:
                    self._data(number, flags, data[start:stop])
                    continue
                self.unacked += size
                stream.received += size
                if stream.received > stream.renew_at:
                    self._renew(stream)
                if size >= 5 and stream.partial is None:
                    flag, length = read_prefix(data, start)
                    if flag or length != size - 5 or length > longest:
                        self._message_part(stream, memoryview(data)[start:stop])
                    elif not stream.state:
                        try:
                            stream.receiver.message(data[start + 5 : stop])
                        except Exception:
                            log.exception(_CRASH)
                            stream.cut(13, "internal error")
                elif size:
                    self._message_part(stream, memoryview(data)[start:stop])
                elif not flags & frames.END_STREAM:
                    self._controlled()
                if flags & frames.END_STREAM:
                    self._half_close(stream)
            elif kind == frames.HEADERS and flags & 0x2C == frames.END_HEADERS and self.block is None:
                block = data[start:stop]
                head = heads.get(block)
                if (
                    head is not None
                    and self.decoder is None
                    and self.last_id < number <= self.accept_to
                    and number & 1
                    and head.handler is not None
                    and head.timeout is None
                    and len(streams) < self.limits.max_concurrent_streams
                ):
                    self.last_id = number
                    stream = _Stream(self, number, head)
                    streams[number] = stream
                    try:
                        stream.receiver = head.handler(stream)
                    except Exception:
                        stream.receiver = _NOBODY
                        log.exception(_CRASH)
                        stream.cut(13, "internal error")
                    if flags & frames.END_STREAM:
                        self._half_close(stream)
                else:
                    self._block(number, flags, block)
            else:
                self._other(kind, flags, number, data[start:stop])
        self.need = 9
        return position

    def _half_close(self, stream: _Stream) -> None:
        stream.half = True
        if stream.state:
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

    def _data(self, number: int, flags: int, payload: bytes) -> None:
        """A DATA frame that is not one whole message on an open stream."""
        if self.block is not None:
            raise Fault(frames.PROTOCOL_ERROR, "a frame inside a header block")
        number &= frames.MAX_ID
        if number > self.last_id or not number & 1:
            if number > self.accept_to:
                return
            raise Fault(frames.PROTOCOL_ERROR, "DATA on an idle stream")
        size = len(payload)
        self.unacked += size
        if flags & frames.PADDED:
            if not size or payload[0] >= size:
                raise Fault(frames.PROTOCOL_ERROR, "more padding than frame")
            payload = payload[1 : size - payload[0]]
        if not payload and not flags & frames.END_STREAM:
            self._controlled()
        stream = self.streams.get(number)
        if stream is None or stream.half:
            if size < 1_024:  # a flood of larger ones costs its sender more than us
                self._controlled()
            self._late(number)
            return
        stream.received += size
        stream.padding += size - len(payload)
        if stream.received > stream.renew_at:
            self._renew(stream)
        if payload:
            self._message_part(stream, payload)
        if flags & frames.END_STREAM:
            self._half_close(stream)

    def _late(self, number: int) -> None:
        """A frame for a stream that is closed, or closed from the peer's side."""
        if number not in self.resets:
            stream = self.streams.get(number)
            if stream is not None:
                stream.reset(frames.STREAM_CLOSED)
            else:
                self._reset(number, frames.STREAM_CLOSED)

    def _message_part(self, stream: _Stream, payload: bytes | memoryview) -> None:
        """Part of a message, several messages, or something that is no message."""
        if stream.state:
            return
        server = self.server
        partial = stream.partial
        if partial is None:
            partial = stream.partial = bytearray()
            self.partials[stream.number] = stream
        partial += payload
        server.partial_bytes += len(payload)
        stream.touched = self.loop.time()
        start = 0
        while len(partial) - start >= 5 and not stream.state:
            flag, size = frames.read_prefix(partial, start)
            if flag or size > self.limits.max_message_bytes:
                self._refuse(stream, flag, size)
                return
            stop = start + 5 + size
            if stop > len(partial):
                break
            with memoryview(partial) as view:
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
            del partial[:start]
            server.partial_bytes -= start
        if not partial:
            stream.partial = None
            del self.partials[stream.number]
        elif server.partial_bytes > self.limits.max_partial_bytes:
            stream.cut(8, "too many unfinished messages")

    def _refuse(self, stream: _Stream, flag: int, size: int) -> None:
        if flag == 1 and stream.metadata.get("grpc-encoding", "identity") != "identity":
            stream.cut(12, "compressed messages are not supported; grpc-accept-encoding is identity")
        elif flag:
            stream.cut(13, "a compressed flag without grpc-encoding")
        else:
            stream.cut(8, f"a message of {size} bytes; at most {self.limits.max_message_bytes} are allowed")

    def _renew(self, stream: _Stream) -> None:
        """Half the stream's window is used: grant it anew, unless the answer waits for a peer that does not take it."""
        window = self.limits.stream_window_bytes
        if stream.received > stream.renew_at + window - window // 2:
            stream.reset(frames.FLOW_CONTROL_ERROR)
        elif stream.buffered < self.limits.high_water_bytes and not stream.state and not stream.half:
            grant = stream.received - stream.renew_at + window // 2
            stream.renew_at += grant
            self.out.append(frames.window_update(stream.number, grant))

    def _other(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if self.block is not None and (kind != frames.CONTINUATION or number != self.block_of[0]):
            raise Fault(frames.PROTOCOL_ERROR, "a frame inside a header block")
        if not self.read_settings and (kind != frames.SETTINGS or flags & frames.ACK):
            raise Fault(frames.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        number &= frames.MAX_ID
        if kind == frames.HEADERS:
            self._headers(flags, number, payload)
        elif kind == frames.CONTINUATION:
            self._continuation(flags, payload)
        elif kind == frames.WINDOW_UPDATE:
            self._window_update(number, payload)
        elif kind == frames.RST_STREAM:
            self._rst_stream(number, payload)
        elif kind == frames.SETTINGS:
            self._settings(flags, number, payload)
        elif kind == frames.PING:
            self._ping(flags, number, payload)
        elif kind == frames.GOAWAY:
            if number or len(payload) < 8:
                raise Fault(frames.PROTOCOL_ERROR if number else frames.FRAME_SIZE_ERROR, "a malformed GOAWAY")
            self.draining = True  # the peer opens no more streams; close when the last is done
            self.wake()
        elif kind == frames.PUSH_PROMISE:
            raise Fault(frames.PROTOCOL_ERROR, "a client cannot push")
        else:  # PRIORITY is deprecated, unknown kinds must be ignored
            self._controlled()
            if kind == frames.PRIORITY:
                if not number:
                    raise Fault(frames.PROTOCOL_ERROR, "PRIORITY on stream 0")
                if len(payload) != 5:
                    self._stream_error(number, frames.FRAME_SIZE_ERROR)

    def _controlled(self) -> None:
        """Count a frame that carries no request."""
        self.control += 1
        if self.control > self.limits.max_control_frames:
            raise Fault(frames.ENHANCE_YOUR_CALM, "too many frames that carry no request")

    # --- header blocks ---

    def _headers(self, flags: int, number: int, payload: bytes) -> None:
        """A HEADERS frame with padding, priority fields, or without END_HEADERS."""
        if flags & frames.PADDED:
            if not payload or payload[0] >= len(payload):
                raise Fault(frames.PROTOCOL_ERROR, "more padding than frame")
            payload = payload[1 : len(payload) - payload[0]]
        if flags & frames.PRIORITIZED:
            if len(payload) < 5:
                raise Fault(frames.FRAME_SIZE_ERROR, "HEADERS too short for its priority fields")
            payload = payload[5:]
        if flags & frames.END_HEADERS:
            self._block(number, flags, payload)
        else:
            self._check_number(number)
            self.block = bytearray(payload)
            self.block_of = (number, flags)
            self.block_since = self.loop.time()

    def _continuation(self, flags: int, payload: bytes) -> None:
        block = self.block
        if block is None:
            raise Fault(frames.PROTOCOL_ERROR, "CONTINUATION without HEADERS")
        self._controlled()
        block += payload
        if len(block) > self.limits.max_header_bytes:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header block too large")
        if flags & frames.END_HEADERS:
            self.block = None
            self._block(self.block_of[0], self.block_of[1], bytes(block))

    def _check_number(self, number: int) -> None:
        if not self.read_settings:
            raise Fault(frames.PROTOCOL_ERROR, "the first frame is not SETTINGS")
        if not number & 1:
            raise Fault(frames.PROTOCOL_ERROR, "a client's streams have odd numbers")

    def _block(self, number: int, flags: int, block: bytes) -> None:
        """A whole header block: a request that the fast path leaves, or trailers."""
        number &= frames.MAX_ID
        self._check_number(number)
        new = number > self.last_id
        if not new and number not in self.streams and number not in self.resets:
            raise Fault(frames.STREAM_CLOSED, "HEADERS on a closed stream")
        try:
            head = self._head(block) if new else None
            if head is None:
                self._trailers(block)
        except CompressionError as error:
            raise Fault(frames.COMPRESSION_ERROR, str(error)) from None
        except TooLarge:
            raise Fault(frames.ENHANCE_YOUR_CALM, "a header list too large") from None
        except Malformed:
            if new and number <= self.accept_to:
                self.last_id = number
            self._stream_error(number, frames.PROTOCOL_ERROR)
            return
        if head is not None:
            self._open(number, flags, head)
            return
        stream = self.streams.get(number)
        if stream is None or stream.half:
            self._late(number)
        elif not flags & frames.END_STREAM:
            stream.reset(frames.PROTOCOL_ERROR)
        else:
            self._half_close(stream)

    def _head(self, block: bytes) -> headers.Head:
        memory = self.server.memory
        if self.decoder is None:
            return memory.heads.get(block) or memory.head(block)
        return memory.head_of(self._decode(self.decoder, block))

    def _trailers(self, block: bytes) -> None:
        fields = self.server.memory.fields(block) if self.decoder is None else self._decode(self.decoder, block)
        headers.check_trailers(fields)

    def _decode(self, decoder: Decoder, block: bytes) -> list[headers.Field]:
        fields = headers.decode(decoder, block)
        if decoder.header_table_size == 0 and self.acknowledged:
            self.decoder = None  # from here on every block decodes alone
        return fields

    def _open(self, number: int, flags: int, head: headers.Head) -> None:
        if number > self.accept_to:
            return
        self.last_id = number
        if len(self.streams) >= self.limits.max_concurrent_streams:
            self._controlled()
            self._reset(number, frames.REFUSED_STREAM)
            return
        half = flags & frames.END_STREAM
        if head.handler is None:
            block = head.refusal
            if self.fresh:
                self.fresh = False
                block = frames.TABLE_SIZE_0 + block
            self.out.append(frames.frame(frames.HEADERS, frames.END_HEADERS | frames.END_STREAM, number, block))
            if not half:
                self._reset(number, frames.NO_ERROR)
            return
        stream = _Stream(self, number, head)
        self.streams[number] = stream
        if head.timeout is not None:
            stream.timer = self.loop.call_later(head.timeout, stream.expire)
        try:
            stream.receiver = head.handler(stream)
        except Exception:
            stream.receiver = _NOBODY
            log.exception(_CRASH)
            stream.cut(13, "internal error")
        if half:
            self._half_close(stream)

    # --- other frames ---

    def _stream_error(self, number: int, code: int) -> None:
        self._controlled()
        stream = self.streams.get(number)
        if stream is not None:
            stream.reset(code)
        elif number not in self.resets:
            self._reset(number, code)

    def _reset(self, number: int, code: int) -> None:
        """RST_STREAM for a stream without state; what is still on the way to it will be dropped."""
        self.resets[number] = None
        if len(self.resets) > _REMEMBERED_RESETS:
            del self.resets[next(iter(self.resets))]
        self.out.append(frames.rst_stream(number, code))

    def _rst_stream(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed RST_STREAM")
        if self._idle(number):
            raise Fault(frames.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        stream = self.streams.get(number)
        if stream is None:
            self._controlled()
            return
        if not stream.started:
            self._controlled()  # rapid reset: opened and cancelled before an answer
        stream.code = frames.NO_ERROR  # so that nothing ends it again
        del self.streams[number]
        stream.gone()

    def _idle(self, number: int) -> bool:
        return not number & 1 or number > self.last_id

    def _window_update(self, number: int, payload: bytes) -> None:
        if len(payload) != 4:
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed WINDOW_UPDATE")
        self._controlled()
        increment = int.from_bytes(payload, "big") & frames.MAX_WINDOW
        if not number:
            self.window += increment
            if not increment or self.window > frames.MAX_WINDOW:
                code = frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR
                raise Fault(code, "a window update of nothing or too much")
        else:
            if self._idle(number) and number <= self.accept_to:
                raise Fault(frames.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            stream = self.streams.get(number)
            if stream is None:
                return
            stream.window += increment
            if not increment or stream.window > frames.MAX_WINDOW:
                stream.reset(frames.FLOW_CONTROL_ERROR if increment else frames.PROTOCOL_ERROR)
                return
            if stream.pending is not None and stream.window > 0:
                self.ready[number] = stream
        if self.ready:
            self._pump()

    def _settings(self, flags: int, number: int, payload: bytes) -> None:
        if number:
            raise Fault(frames.PROTOCOL_ERROR, "SETTINGS on a stream")
        if len(payload) % 6 or (flags & frames.ACK and payload):
            raise Fault(frames.FRAME_SIZE_ERROR, "a malformed SETTINGS")
        self._controlled()
        if flags & frames.ACK:
            self.acknowledged = True
            if self.decoder is not None:
                self.decoder.max_allowed_table_size = 0
            return
        self.read_settings = True
        values = dict(frames.read_setting(payload))  # the last of a repeated setting counts
        window = values.get(frames.INITIAL_WINDOW_SIZE, self.stream_window)
        size = values.get(frames.MAX_FRAME_SIZE, self.frame_size)
        if values.get(frames.ENABLE_PUSH, 0) > 1 or not 16_384 <= size <= 16_777_215:
            raise Fault(frames.PROTOCOL_ERROR, "a setting out of range")
        if window > frames.MAX_WINDOW:
            raise Fault(frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE out of range")
        self.frame_size = size
        self.out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
        if window != self.stream_window:
            self._resize(window - self.stream_window)
            self.stream_window = window

    def _resize(self, change: int) -> None:
        for stream in self.streams.values():
            stream.window += change
            if stream.window > frames.MAX_WINDOW:
                raise Fault(frames.FLOW_CONTROL_ERROR, "SETTINGS_INITIAL_WINDOW_SIZE opens a window too far")
            if stream.pending is not None and stream.window > 0:
                self.ready[stream.number] = stream
        if self.ready:
            self._pump()

    def _ping(self, flags: int, number: int, payload: bytes) -> None:
        if number or len(payload) != 8:
            raise Fault(frames.PROTOCOL_ERROR if number else frames.FRAME_SIZE_ERROR, "a malformed PING")
        self._controlled()
        if not flags & frames.ACK:
            self.out.append(frames.frame(frames.PING, frames.ACK, 0, payload))
        elif payload == _DRAIN_PING and self.draining:
            self._last_goaway()

    # --- writing ---

    def first_block(self, number: int) -> bytes:
        """The HEADERS frame that begins the first answer of the connection."""
        self.fresh = False
        return frames.frame(frames.HEADERS, frames.END_HEADERS, number, frames.TABLE_SIZE_0 + frames.REPLY)

    def reply_block(self, number: int) -> bytes:
        """The HEADERS frame that begins an answer."""
        if self.fresh:
            return self.first_block(number)
        return frames.frame(frames.HEADERS, frames.END_HEADERS, number, frames.REPLY)

    def wake(self) -> None:
        """See to it that a flush comes soon."""
        if not self.busy:
            self.busy = True
            self.loop.call_soon(self._flush)

    def _flush(self) -> None:
        """Write what the batch made, grant windows, let go of ended streams. No application code is on the stack."""
        if self.closing:
            return
        if self.unacked > self.limits.connection_window_bytes // 2:
            self._renew_connection()
        if self.ready and not self.paused:
            self._pump()
        while self.ended:
            self._end_streams()
        if self.fault is not None:
            self.fail(self.fault.code, self.fault.why)
            return
        if self.out:
            self.transport.write(b"".join(self.out))
            self.out.clear()
        self.busy = False
        if self.draining and not self.streams and self.accept_to != frames.MAX_ID:
            self.fail(frames.NO_ERROR, "")

    def _renew_connection(self) -> None:
        if self.unacked > self.limits.connection_window_bytes:
            self.fault = Fault(frames.FLOW_CONTROL_ERROR, "more data than the connection's window")
        else:
            self.out.append(frames.window_update(0, self.unacked))
            self.unacked = 0

    def _end_streams(self) -> None:
        ended, self.ended = self.ended, []
        for stream in ended:
            if self.streams.pop(stream.number, None) is None:
                continue
            if stream.code is not None or not stream.half:
                self._reset(stream.number, stream.code or frames.NO_ERROR)
            stream.gone()

    def _pump(self) -> None:
        """Send what waits, one frame a stream in turn, as far as windows and the socket go."""
        written = 0
        ready = self.ready
        while ready and self.window > 0 and not self.paused:
            number = next(iter(ready))
            stream = ready.pop(number)
            written += self._push(stream)
            if stream.pending is not None and stream.window > 0:
                ready[number] = stream
            if written >= _BATCH:
                written = 0
                self.transport.write(b"".join(self.out))  # may set `paused`
                self.out.clear()

    def _push(self, stream: _Stream) -> int:
        pending = stream.pending
        assert pending is not None
        size = min(self.frame_size, stream.window, self.window, stream.buffered)
        self.out.append(frames.head(frames.DATA, 0, stream.number, size))
        left = size
        while left:
            part = pending[0]
            if len(part) <= left:
                pending.popleft()
            else:
                pending[0] = part[left:]
                part = part[:left]
            self.out.append(part)
            left -= len(part)
        stream.window -= size
        self.window -= size
        self.control -= 4
        stream.buffered -= size
        self.buffered -= size
        stream.touched = self.loop.time()
        if stream.buffered < self.limits.high_water_bytes:
            stream.woken()
            if stream.received > stream.renew_at:
                self._renew(stream)
        if not pending:
            stream.pending = None
            del self.waiting[stream.number]
            if stream.state == _FINISHED and stream.code is None:
                flags = frames.END_HEADERS | frames.END_STREAM
                self.out.append(frames.frame(frames.HEADERS, flags, stream.number, stream.end))
                self.ended.append(stream)
                self.wake()
        return size

    # --- the end ---

    def start_drain(self) -> None:
        """First GOAWAY: new streams are still served until the peer has surely read it (RFC 9113 section 6.8)."""
        if not self.draining and not self.closing:
            self.draining = True
            self.drained_at = self.loop.time()
            self.out.append(frames.goaway(frames.MAX_ID, frames.NO_ERROR, "draining"))
            self.out.append(frames.frame(frames.PING, 0, 0, _DRAIN_PING))
            self.wake()

    def _last_goaway(self) -> None:
        if self.accept_to == frames.MAX_ID:
            self.accept_to = self.last_id
            self.out.append(frames.goaway(self.last_id, frames.NO_ERROR, "draining"))
            self.wake()

    def cut_all(self) -> None:
        """The grace of a drain is over."""
        for stream in list(self.streams.values()):
            stream.cut(14, "the server is shutting down")
        self.accept_to = self.last_id
        self.draining = True
        self.wake()

    def fail(self, code: int, why: str) -> None:
        """Say GOAWAY, end every stream and close; the peer's bytes are read on for a moment so that it can be read."""
        if self.closing:
            return
        self.closing = self.loop.time()
        if code or self.accept_to == frames.MAX_ID:
            self.out.append(frames.goaway(self.last_id, code, why))
        self.transport.write(b"".join(self.out))
        self.out.clear()
        self.rest = self.block = None
        self._drop_streams()
        if code and self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        else:
            self.transport.close()

    def _drop_streams(self) -> None:
        while self.streams:
            self.streams.popitem()[1].gone()
        self.ended.clear()

    def sweep(self, now: float) -> None:
        """Once in a while: what has waited too long?"""
        limits = self.limits
        if self.heard:
            self.heard = False
            self.heard_at = now
        if self.streams:
            self.used_at = now
        if self.closing:
            if now - self.closing > _LINGER:
                self.transport.abort()
        elif not (self.read_settings and self.acknowledged) and now - self.born > limits.handshake_s:
            self.fail(frames.SETTINGS_TIMEOUT, "no preface or no SETTINGS in time")
        elif self.paused and now - self.paused_at > limits.stall_s:
            self.transport.abort()
        elif (self.rest and now - self.rest_since > limits.stall_s) or (
            self.block is not None and now - self.block_since > limits.stall_s
        ):
            self.fail(frames.ENHANCE_YOUR_CALM, "a frame or header block was not finished in time")
        else:
            if self.draining:
                if now - self.drained_at > 1.0:
                    self._last_goaway()
                self.wake()
            elif now - self.used_at > limits.idle_s or (limits.max_age_s and now - self.born > limits.max_age_s):
                self.start_drain()
            self._sweep_silence(now)
        for stream in [*self.waiting.values(), *self.partials.values()]:
            if now - stream.touched > limits.stall_s:
                if stream.pending is not None:
                    stream.reset(frames.CANCEL)
                else:
                    stream.cut(4, "a message was not finished in time")

    def _sweep_silence(self, now: float) -> None:
        limits = self.limits
        if self.heard_at > self.asked_at:
            self.asked_at = 0.0
        if self.asked_at:
            if now - self.asked_at > limits.stall_s:
                self.transport.abort()
        elif self.streams and now - self.heard_at > limits.keepalive_s:
            self.asked_at = now
            self.out.append(frames.frame(frames.PING, 0, 0, _ALIVE_PING))
            self.wake()


class Http2Server:
    """`extproc.transport.seam.Server` on our own HTTP/2. With `tls`, a context whose ALPN offers `h2`."""

    loop: asyncio.AbstractEventLoop

    def __init__(
        self, handlers: Mapping[str, Handler], limits: Limits | None = None, tls: ssl.SSLContext | None = None
    ) -> None:
        self.limits = limits = limits or Limits()
        self.memory = headers.Memory(dict(handlers), limits.max_header_bytes)
        self.live: set[_Connection] = set()
        self.partial_bytes = 0
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
        self.loop = asyncio.get_running_loop()
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

    def _connection(self) -> _Connection:
        return _Connection(self)

    @property
    def address(self) -> str:
        if self._address is None:
            raise RuntimeError("the server is not started")
        return self._address

    @property
    def streams(self) -> int:
        return sum(len(connection.streams) for connection in self.live)

    @property
    def connections(self) -> int:
        return len(self.live)

    async def drain(self, grace: float) -> None:
        self._stop_listening()
        for connection in list(self.live):
            connection.start_drain()
        if not await self._emptied(grace):
            for connection in list(self.live):
                connection.cut_all()
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
                connection.control = 0
            connection.sweep(now)
        if now - self._swept > limits.window_s:
            self._swept = now
        shortest = min(limits.handshake_s, limits.stall_s, limits.keepalive_s, limits.idle_s, limits.window_s)
        self._sweeper = self.loop.call_later(min(1.0, shortest / 4), self._sweep)
