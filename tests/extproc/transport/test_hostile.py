"""Peers that misbehave, by accident or on purpose: each gets the right error code, and memory stays bounded."""

from __future__ import annotations

import asyncio
import contextlib
import struct
from collections.abc import Callable

import psutil
import pytest

from extproc.transport import frames
from extproc.transport.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
)
from extproc.transport.seam import TransportLimits
from tests.extproc.transport.conftest import METHOD, Connect, RawPeer, Recorder, Start, echo, head, silent, text, until
from tests.patience import PATIENCE

GRPC_DATA = b"\0\0\0\0\1x"


def opened(number: int, block: bytes | None = None, flags: int = END_HEADERS) -> bytes:
    """HEADERS of a stream."""
    return frame(HEADERS, flags, number, head() if block is None else block)


def reset(number: int) -> bytes:
    return frames.rst_stream(number, frames.CANCEL)


async def flood(peer: RawPeer, make: Callable[[int], bytes], count: int = 40_000) -> None:
    """Write without end, or until the server hangs up. Reading goes on beside it, as a socket's buffer needs."""
    with contextlib.suppress(ConnectionError):
        for start in range(0, count, 200):
            peer.write(*(make(number) for number in range(start, start + 200)))
            await peer.writer.drain()
            if peer.reader.at_eof():
                return


CONNECTION_ERRORS = {
    "data on stream 0": (frame(DATA, 0, 0, GRPC_DATA), frames.PROTOCOL_ERROR),
    "data on an idle stream": (frame(DATA, 0, 5, GRPC_DATA), frames.PROTOCOL_ERROR),
    "data padded beyond its frame": (opened(1) + frame(DATA, PADDED, 1, b"\x09abc"), frames.PROTOCOL_ERROR),
    "headers on an even stream": (opened(2), frames.PROTOCOL_ERROR),
    "headers on stream 0": (opened(0), frames.PROTOCOL_ERROR),
    "headers padded beyond the frame": (
        frame(HEADERS, END_HEADERS | PADDED, 1, b"\xff" + head()),
        frames.PROTOCOL_ERROR,
    ),
    "headers without room for priority": (
        frame(HEADERS, END_HEADERS | PRIORITIZED, 1, b"\0\0"),
        frames.FRAME_SIZE_ERROR,
    ),
    "headers on a stream that is closed": (
        frame(HEADERS, END_HEADERS | END_STREAM, 3, head()) + reset(3) + opened(3, head(first=False)),
        frames.STREAM_CLOSED,
    ),
    "a lower stream number": (
        opened(5) + opened(3, head(first=False)),
        frames.STREAM_CLOSED,
    ),
    "a header block that does not decode": (opened(1, b"\x20\xff\xff\xff\xff\xff"), frames.COMPRESSION_ERROR),
    "a reference to a table that we do not keep": (opened(1, b"\x20\xbe"), frames.COMPRESSION_ERROR),
    "no table size update after our SETTINGS": (opened(1, head(first=False)), frames.COMPRESSION_ERROR),
    "a table size above the announced": (opened(1, b"\x3f\xe1\x1f" + head()), frames.COMPRESSION_ERROR),
    "continuation without headers": (frame(CONTINUATION, END_HEADERS, 1, b""), frames.PROTOCOL_ERROR),
    "another frame inside a header block": (opened(1, flags=0) + frame(PING, 0, 0, bytes(8)), frames.PROTOCOL_ERROR),
    "data inside a header block": (
        opened(1) + opened(3, head(first=False), 0) + frame(DATA, 0, 1, GRPC_DATA),
        frames.PROTOCOL_ERROR,
    ),
    "headers inside a header block": (opened(1, flags=0) + opened(3), frames.PROTOCOL_ERROR),
    "continuation of another stream": (opened(1, flags=0) + frame(CONTINUATION, 4, 3, b""), frames.PROTOCOL_ERROR),
    "priority on stream 0": (frame(PRIORITY, 0, 0, bytes(5)), frames.PROTOCOL_ERROR),
    "reset of an idle stream": (frame(RST_STREAM, 0, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "reset of stream 0": (frame(RST_STREAM, 0, 0, bytes(4)), frames.PROTOCOL_ERROR),
    "reset of five bytes": (opened(1) + frame(RST_STREAM, 0, 1, bytes(5)), frames.FRAME_SIZE_ERROR),
    "settings on a stream": (frame(SETTINGS, 0, 1), frames.PROTOCOL_ERROR),
    "settings of five bytes": (frame(SETTINGS, 0, 0, bytes(5)), frames.FRAME_SIZE_ERROR),
    "settings acknowledged with content": (frame(SETTINGS, ACK, 0, bytes(6)), frames.FRAME_SIZE_ERROR),
    "push enabled twice over": (frames.settings({frames.ENABLE_PUSH: 2}), frames.PROTOCOL_ERROR),
    "a frame size too small": (frames.settings({frames.MAX_FRAME_SIZE: 16_383}), frames.PROTOCOL_ERROR),
    "a frame size too large": (frames.settings({frames.MAX_FRAME_SIZE: 2**24}), frames.PROTOCOL_ERROR),
    "a window too large": (frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31}), frames.FLOW_CONTROL_ERROR),
    "push promise": (frame(PUSH_PROMISE, END_HEADERS, 1, bytes(4)), frames.PROTOCOL_ERROR),
    "ping on a stream": (frame(PING, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "ping of seven bytes": (frame(PING, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "goaway on a stream": (frame(GOAWAY, 0, 1, bytes(8)), frames.PROTOCOL_ERROR),
    "goaway of seven bytes": (frame(GOAWAY, 0, 0, bytes(7)), frames.FRAME_SIZE_ERROR),
    "window update of an idle stream": (frames.window_update(7, 1), frames.PROTOCOL_ERROR),
    "window update of nothing": (frames.window_update(0, 0), frames.PROTOCOL_ERROR),
    "window update of three bytes": (frame(WINDOW_UPDATE, 0, 0, bytes(3)), frames.FRAME_SIZE_ERROR),
    "connection window overflow": (frames.window_update(0, 2**31 - 1), frames.FLOW_CONTROL_ERROR),
    "a stream's window opened too far by SETTINGS": (
        opened(1) + frames.window_update(1, 2**31 - 1 - 65_535) + frames.settings({frames.INITIAL_WINDOW_SIZE: 65_536}),
        frames.FLOW_CONTROL_ERROR,
    ),
    "a frame larger than announced": (frames.head(DATA, 0, 1, 65_537), frames.FRAME_SIZE_ERROR),
    "an unknown frame larger than announced": (frame(0x77, 0, 0, bytes(70_000)), frames.FRAME_SIZE_ERROR),
}


@pytest.mark.parametrize("name", CONNECTION_ERRORS)
async def test_connection_errors(start_http2: Start, connect: Connect, name: str) -> None:
    sent, code = CONNECTION_ERRORS[name]
    running = await start_http2(silent)
    peer = await connect(running)
    peer.write(sent)
    assert await peer.goaway() == code
    await until(lambda: running.server.connections == 0)


STREAM_ERRORS = {
    "no method": (head()[1:2] and b"\x20\x86\x04" + text(METHOD), frames.PROTOCOL_ERROR),
    "no path": (b"\x20\x83\x86", frames.PROTOCOL_ERROR),
    "an empty path": (b"\x20\x83\x86\x04\0", frames.PROTOCOL_ERROR),
    "no scheme": (b"\x20\x83\x04" + text(METHOD), frames.PROTOCOL_ERROR),
    "a pseudo-header twice": (b"\x20\x83" + head()[1:], frames.PROTOCOL_ERROR),
    "a pseudo-header after a header": (head() + b"\x01" + text("host"), frames.PROTOCOL_ERROR),
    "an unknown pseudo-header": (b"\x20\0" + text(":protocol") + text("x") + head()[1:], frames.PROTOCOL_ERROR),
    "a response's pseudo-header": (b"\x20\x88" + head()[1:], frames.PROTOCOL_ERROR),
    "an upper-case name": (head() + b"\0" + text("X-Name") + text("v"), frames.PROTOCOL_ERROR),
    "a name with a space": (head() + b"\0" + text("a b") + text("v"), frames.PROTOCOL_ERROR),
    "an empty name": (head() + b"\0" + text("") + text("v"), frames.PROTOCOL_ERROR),
    "a value with a line feed": (head() + b"\0" + text("a") + text("v\nw"), frames.PROTOCOL_ERROR),
    "a value with a zero": (head() + b"\0" + text("a") + text("v\0"), frames.PROTOCOL_ERROR),
    "a value with a space around": (head() + b"\0" + text("a") + text(" v"), frames.PROTOCOL_ERROR),
    "connection": (head() + b"\0" + text("connection") + text("close"), frames.PROTOCOL_ERROR),
    "transfer-encoding": (head() + b"\0" + text("transfer-encoding") + text("chunked"), frames.PROTOCOL_ERROR),
    "te other than trailers": (head() + b"\0" + text("te") + text("gzip"), frames.PROTOCOL_ERROR),
    "content-length that is no number": (head() + b"\0" + text("content-length") + text("-1"), frames.PROTOCOL_ERROR),
    "two content-lengths": (
        head() + b"\0" + text("content-length") + text("1") + b"\0" + text("content-length") + text("2"),
        frames.PROTOCOL_ERROR,
    ),
}


@pytest.mark.parametrize("stateless", [False, True], ids=["first block", "later block"])
@pytest.mark.parametrize("name", STREAM_ERRORS)
async def test_malformed_requests_end_their_stream_only(
    start_http2: Start, connect: Connect, name: str, stateless: bool
) -> None:
    block, code = STREAM_ERRORS[name]
    running = await start_http2()
    peer = await connect(running)
    if stateless:
        peer.open(1)
    peer.open(7, END_HEADERS, block)
    ended = await peer.find(RST_STREAM)
    assert (ended.stream, ended.code) == (7, code)
    peer.open(9)
    peer.data(9, b"fine", END_STREAM)
    assert (await peer.find(DATA)).payload == b"\0\0\0\0\4fine"


async def test_stream_errors_after_the_headers(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent)
    peer = await connect(running)
    length = head(METHOD, ("content-length", "10"))
    cases: list[tuple[int, int]] = []

    def case(number: int, *parts: bytes, code: int) -> None:
        peer.write(*parts)
        cases.append((number, code))

    def open_frame(number: int, block: bytes, flags: int = END_HEADERS) -> bytes:
        return frame(HEADERS, flags, number, block)

    case(1, open_frame(1, length), frame(DATA, END_STREAM, 1, GRPC_DATA), code=frames.PROTOCOL_ERROR)
    case(3, open_frame(3, head()), frames.window_update(3, 0), code=frames.PROTOCOL_ERROR)
    case(5, open_frame(5, head()), frames.window_update(5, 2**31 - 1), code=frames.FLOW_CONTROL_ERROR)
    case(7, open_frame(7, head()), frame(HEADERS, END_HEADERS, 7, b"\0" + text("a") + text("b")), code=1)
    case(9, open_frame(9, head(), END_HEADERS | END_STREAM), frame(DATA, 0, 9, GRPC_DATA), code=frames.STREAM_CLOSED)
    case(11, open_frame(11, head()), frame(HEADERS, 5, 11, b"\x83"), code=frames.PROTOCOL_ERROR)
    case(13, frame(PRIORITY, 0, 13, b"abc"), code=frames.FRAME_SIZE_ERROR)
    resets = [await peer.find(RST_STREAM) for _ in cases]
    assert {reset.stream: reset.code for reset in resets} == dict(cases)
    await peer.pong()
    assert running.server.streams == 0


async def test_frames_that_were_on_their_way_to_an_ended_stream_are_dropped(
    start_http2: Start, connect: Connect
) -> None:
    def hasty(recorder: Recorder, event: str, data: bytes) -> None:
        if event == "message":
            recorder.stream.finish(5, "enough")

    running = await start_http2(hasty)
    peer = await connect(running)
    peer.open(1)
    peer.data(1, b"x")
    assert (await peer.find(RST_STREAM)).code == frames.NO_ERROR
    for _ in range(50):
        peer.data(1, bytes(16_000))
    peer.write(frames.window_update(1, 5), frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0" + text("a") + text("b")))
    peer.write(frame(PING, 0, 0, b"12345678"))
    assert (await peer.read()).kind == PING  # nothing else came before it
    assert running.receivers[0].events == ["message", "closed"]


async def test_more_streams_than_announced_are_refused(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, TransportLimits(max_concurrent_streams=10))
    peer = await connect(running)
    for number in range(1, 25, 2):
        peer.open(number)
    for number in (21, 23):
        ended = await peer.find(RST_STREAM)
        assert (ended.stream, ended.code) == (number, frames.REFUSED_STREAM)
    assert running.server.streams == 10


async def test_connections_beyond_the_limit_are_closed(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(limits=TransportLimits(max_connections=2))
    peers = [await connect(running) for _ in range(2)]
    third = await connect(running, greet=False)
    with pytest.raises(EOFError):
        await third.read()
    for peer in peers:
        await peer.pong()


@pytest.mark.parametrize(
    "opening", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\r" + bytes(20)]
)
async def test_what_is_not_http2_is_turned_away(start_http2: Start, connect: Connect, opening: bytes) -> None:
    running = await start_http2()
    peer = await connect(running, greet=False)
    peer.write(opening)
    assert await peer.goaway() == frames.PROTOCOL_ERROR


@pytest.mark.parametrize("kind", [PING, WINDOW_UPDATE, HEADERS, DATA])
async def test_the_first_frame_must_be_settings(start_http2: Start, connect: Connect, kind: int) -> None:
    running = await start_http2()
    peer = await connect(running, greet=False)
    payload = {PING: bytes(8), WINDOW_UPDATE: b"\0\0\0\1", HEADERS: head(), DATA: GRPC_DATA}[kind]
    peer.write(
        frames.PREFACE, frame(kind, END_HEADERS if kind == HEADERS else 0, 1 if kind in (HEADERS, DATA) else 0, payload)
    )
    assert await peer.goaway() == frames.PROTOCOL_ERROR


# --- floods: each frame is legal, their number is not ---

FLOODS: dict[str, Callable[[int], bytes]] = {
    "rapid reset": lambda n: opened(2 * n + 3, head(first=n == 0)) + reset(2 * n + 3),
    "empty DATA": lambda n: frame(DATA, 0, 1),
    "padding only": lambda n: frame(DATA, PADDED, 1, b"\x03\0\0\0"),
    "ping": lambda n: frame(PING, 0, 0, bytes(8)),
    "settings": lambda n: frame(SETTINGS, 0, 0),
    "settings acknowledgements": lambda n: frame(SETTINGS, ACK, 0),
    "priority": lambda n: frame(PRIORITY, 0, 1, b"\0\0\0\3\x10"),
    "unknown frames": lambda n: frame(0x42, 0, 0, b"what"),
    "window updates of one byte": lambda n: frames.window_update(0, 1),
    "resets of a closed stream": lambda n: reset(1),
    "data on a closed stream": lambda n: reset(1) if n == 0 else frame(DATA, 0, 1, GRPC_DATA),
    "malformed requests": lambda n: frame(HEADERS, END_HEADERS, 2 * n + 3, b"\x20\x83"),
    "empty CONTINUATION": lambda n: opened(3, flags=0) if n == 0 else frame(CONTINUATION, 0, 3),
    "small CONTINUATION": lambda n: opened(3, flags=0) if n == 0 else frame(CONTINUATION, 0, 3, b"\0\1a\1b"),
    "large CONTINUATION": lambda n: opened(3, flags=0) if n == 0 else frame(CONTINUATION, 0, 3, bytes(16_000)),
    "streams beyond the limit": lambda n: opened(2 * n + 3),
}


@pytest.mark.parametrize("name", FLOODS)
async def test_floods_end_the_connection_with_enhance_your_calm(
    start_http2: Start, connect: Connect, name: str
) -> None:
    running = await start_http2(silent, TransportLimits(max_concurrent_streams=100, max_control_frames=1_000))
    peer = await connect(running)
    peer.open(1)
    before = psutil.Process().memory_info().rss
    flooding = asyncio.ensure_future(flood(peer, FLOODS[name]))
    assert await peer.goaway() == frames.ENHANCE_YOUR_CALM
    await flooding
    await until(lambda: running.server.connections == 0)
    assert running.server.streams == 0
    assert psutil.Process().memory_info().rss - before < 20_000_000
    assert all(receiver.events.count("closed") == 1 for receiver in running.receivers)


async def test_control_frames_that_go_with_requests_are_no_flood(start_http2: Start, connect: Connect) -> None:
    """A client that grants windows and pings for every answer, as grpcio does, may go on for ever."""
    running = await start_http2(limits=TransportLimits(max_control_frames=100))
    peer = await connect(running)
    for number in range(1, 1_001, 2):
        peer.open(number, block=head(first=number == 1))
        peer.data(number, b"x", END_STREAM)
        peer.write(frames.window_update(0, 6), frames.window_update(number, 6), frame(PING, 0, 0, bytes(8)))
        assert (await peer.find(DATA)).stream == number
    await peer.pong()
    assert running.server.connections == 1


async def test_a_header_list_that_unpacks_to_too_much(start_http2: Start, connect: Connect) -> None:
    """A bomb: few bytes on the wire, with the connection's table (before it must be empty) and without."""
    running = await start_http2(limits=TransportLimits(max_header_bytes=16_384))
    early = await connect(running, greet=False)
    bomb = head(first=False) + b"\x40" + text("a") + text("b" * 3_000) + b"\xbe" * 5_000
    early.write(frames.PREFACE, frames.settings({}), frame(HEADERS, END_HEADERS, 1, bomb))
    assert await early.goaway() == frames.ENHANCE_YOUR_CALM
    late = await connect(running)
    late.open(1)
    late.open(3, block=head() + b"\x90" * 2_000)  # 2,000 times accept-encoding: gzip, deflate
    assert await late.goaway() == frames.ENHANCE_YOUR_CALM


@pytest.mark.parametrize(
    ("payload", "headers", "status"),
    [
        (b"\0\xff\xff\xff\xffabc", (), 8),
        (b"\1\0\0\0\1x", (), 13),
        (b"\1\0\0\0\1x", (("grpc-encoding", "gzip"),), 12),
        (b"\2\0\0\0\1x", (), 13),
        (b"\0\0\0\0\5x", (), 13),
        (b"\0\0", (), 13),
    ],
    ids=["huge length", "compressed", "compressed with encoding", "unknown flag", "short message", "short prefix"],
)
async def test_bytes_that_are_no_grpc_message(
    start_http2: Start, connect: Connect, payload: bytes, headers: tuple[tuple[str, str], ...], status: int
) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1, block=head(METHOD, *headers))
    peer.write(frame(DATA, END_STREAM, 1, payload))
    trailers = await peer.find(HEADERS)
    assert trailers.flags & END_STREAM
    assert b"grpc-status" + text(str(status)) in trailers.payload
    await peer.pong()
    assert running.receivers[0].messages == []
    assert running.server.partial_bytes == 0  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("block", "expected"),
    [
        (b"\x20\x82" + head()[2:], b":status\x03405"),
        (b"\x20\x83\x86\x04" + text(METHOD), b":status\x03415"),
        (head("/no.Such/Method"), b"grpc-status\x0212"),
        (head(METHOD, ("grpc-timeout", "soon")), b"grpc-status\x0213"),
        (b"\x20\x02" + text("CONNECT") + b"\x01" + text("host"), b":status\x03405"),
    ],
    ids=["GET", "no content type", "unknown method", "unreadable timeout", "CONNECT"],
)
async def test_requests_that_are_refused(start_http2: Start, connect: Connect, block: bytes, expected: bytes) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1, block=block)
    answer = await peer.find(HEADERS)
    assert answer.flags & END_STREAM
    assert expected in answer.payload
    assert (await peer.read()).code == frames.NO_ERROR
    assert running.receivers == []


# --- flow control ---


async def test_data_beyond_the_streams_window(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, TransportLimits(stream_window_bytes=100_000, high_water_bytes=1))
    peer = await connect(running)
    peer.open(1)
    receiver = await running.receiver()
    receiver.stream.send(bytes(100_000))  # waits for a window, so that we grant no more of ours
    for _ in range(8):
        peer.data(1, bytes(15_995))
    ended = await peer.find(RST_STREAM)
    assert (ended.stream, ended.code) == (1, frames.FLOW_CONTROL_ERROR)
    await peer.pong()


async def test_data_beyond_the_connections_window(start_http2: Start, connect: Connect) -> None:
    """All of it in one batch of frames: between batches the window is granted anew."""
    running = await start_http2(silent, TransportLimits(connection_window_bytes=65_535, max_frame_bytes=65_536))
    connection = await connect(running)
    connection.open(1)
    connection.open(3, block=head(first=False))
    await connection.pong()
    protocol = next(iter(running.server.live))  # type: ignore[attr-defined]
    part = frame(DATA, 0, 1, b"\0" + struct.pack(">I", 40_000) + bytes(40_000))
    protocol.data_received(part + part[:5] + b"\0\0\0\3" + part[9:])
    assert await connection.goaway() == frames.FLOW_CONTROL_ERROR


async def test_windows_are_granted_in_bulk_while_requests_are_read(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, TransportLimits(stream_window_bytes=100_000, connection_window_bytes=200_000))
    peer = await connect(running)
    peer.open(1)
    granted = {0: 0, 1: 0}
    for _ in range(20):
        peer.data(1, bytes(15_995))
        peer.write(frame(PING, 0, 0, bytes(8)))
        while (found := await peer.read()).kind != PING:
            assert found.kind == WINDOW_UPDATE
            granted[found.stream] += found.code
    assert 20 * 16_000 - 100_000 <= granted[1] <= 20 * 16_000
    assert 20 * 16_000 - 200_000 <= granted[0] <= 20 * 16_000


async def test_answers_keep_to_the_peers_windows_and_frame_size(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 10}))
    await peer.find(SETTINGS)
    peer.open(1)
    wire = b"\0" + struct.pack(">I", 100_000) + b"0123456789" * 10_000
    peer.write(frame(DATA, 0, 1, wire[:60_000]), frame(DATA, END_STREAM, 1, wire[60_000:]))
    got = (await peer.find(DATA)).payload
    assert len(got) == 10
    peer.write(frame(PING, 0, 0, b"12345678"))
    assert (await peer.read()).kind == PING
    peer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 1_000}))  # 990 more
    assert (await peer.find(SETTINGS)).flags == ACK
    found = await peer.find(DATA)
    assert len(found.payload) == 990
    got += found.payload
    peer.write(frames.window_update(1, 2**20))
    while len(got) < 65_535:  # now the connection's window ends it
        found = await peer.find(DATA)
        assert len(found.payload) <= 16_384
        got += found.payload
    assert len(got) == 65_535
    peer.write(frames.window_update(0, 2**20))
    while len(got) < 100_005:
        got += (await peer.find(DATA)).payload
    assert got[5:] == b"0123456789" * 10_000
    assert (await peer.find(HEADERS)).flags & END_STREAM


async def test_a_negative_window_is_waited_out(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1)
    peer.data(1, bytes(995))
    assert len((await peer.find(DATA)).payload) == 1_000
    peer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))  # the stream's window is now -1,000
    peer.data(1, b"x")
    peer.write(frames.window_update(1, 1_000))
    await peer.find(SETTINGS)
    await peer.pong()
    peer.write(frames.window_update(1, 6))
    assert (await peer.find(DATA)).payload == GRPC_DATA


async def test_waiting_streams_share_the_connections_window(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    for number in (1, 3, 5):
        peer.open(number, block=head(first=number == 1))
        peer.data(number, bytes(60_000))
    await asyncio.sleep(0.05)
    peer.write(frames.window_update(0, 60_000))
    got = {1: 0, 3: 0, 5: 0}
    while sum(got.values()) < 125_535:
        found = await peer.find(DATA)
        got[found.stream] += len(found.payload)
    assert min(got.values()) >= 16_384  # one frame in turn


# --- slow and silent peers ---

HASTE = TransportLimits(handshake_s=0.2, stall_s=0.2, keepalive_s=0.2, high_water_bytes=10_000)


@pytest.mark.parametrize(
    "opening", [b"", frames.PREFACE[:10], frames.PREFACE], ids=["nothing", "half a preface", "no SETTINGS"]
)
async def test_a_handshake_that_takes_too_long(start_http2: Start, connect: Connect, opening: bytes) -> None:
    running = await start_http2(limits=HASTE)
    peer = await connect(running, greet=False)
    peer.write(opening)
    assert await peer.goaway() == frames.SETTINGS_TIMEOUT


async def test_settings_that_are_never_acknowledged(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(limits=HASTE)
    peer = await connect(running, greet=False)
    peer.write(frames.PREFACE, frames.settings({}))
    assert await peer.goaway() == frames.SETTINGS_TIMEOUT


@pytest.mark.parametrize(
    "part", [frames.head(DATA, 0, 1, 100) + b"abc", b"\0\0"], ids=["half a frame", "half a frame head"]
)
async def test_a_frame_that_is_never_finished(start_http2: Start, connect: Connect, part: bytes) -> None:
    running = await start_http2(silent, HASTE)
    peer = await connect(running)
    peer.open(1)
    peer.write(part)
    assert await peer.goaway() == frames.ENHANCE_YOUR_CALM


async def test_a_header_block_that_is_never_finished(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, HASTE)
    peer = await connect(running)
    peer.write(frame(HEADERS, 0, 1, head()))
    assert await peer.goaway() == frames.ENHANCE_YOUR_CALM


async def test_a_message_that_is_never_finished_ends_its_stream(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, HASTE)
    peer = await connect(running)
    peer.open(1)
    peer.write(frame(DATA, 0, 1, b"\0\0\0\1\0half"))
    answer = await peer.find(HEADERS)
    assert b"grpc-status\x014" in answer.payload
    await peer.pong()
    assert running.server.partial_bytes == 0  # type: ignore[attr-defined]


async def test_a_window_that_never_opens_ends_its_stream(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(limits=HASTE)
    peer = await connect(running)
    peer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    peer.open(1)
    peer.data(1, b"x", END_STREAM)
    ended = await peer.find(RST_STREAM)
    assert (ended.stream, ended.code) == (1, frames.CANCEL)
    receiver = await running.receiver()
    assert receiver.events[-1] == "closed"
    await peer.pong()


async def test_a_peer_that_reads_nothing_is_cut_off_with_little_memory(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(limits=HASTE)
    peer = await connect(running)
    peer.write(frames.settings({frames.INITIAL_WINDOW_SIZE: 2**31 - 1}), frames.window_update(0, 2**30))
    peer.reader._transport.pause_reading()  # type: ignore[attr-defined]
    before = psutil.Process().memory_info().rss
    message = b"\0" + struct.pack(">I", 16_000) + bytes(16_000)

    def request(n: int) -> bytes:
        return opened(2 * n + 1, head(first=n == 0)) + frame(DATA, 0, 2 * n + 1, message)

    sending = asyncio.ensure_future(flood(peer, request, 4_000))
    await until(lambda: running.server.connections == 0)
    sending.cancel()
    assert psutil.Process().memory_info().rss - before < 60_000_000
    assert running.server.streams == 0


async def test_a_silent_peer_with_streams_is_asked_and_cut_off(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, HASTE)
    peer = await connect(running)
    peer.open(1)
    ping = await peer.find(PING)
    peer.write(frame(PING, ACK, 0, ping.payload))  # it lives: another question follows
    await peer.find(PING)
    await until(lambda: running.receivers[0].events == ["closed"])
    assert running.server.connections == 0


async def test_idle_and_old_connections_are_drained(start_http2: Start, connect: Connect) -> None:
    for limits in (TransportLimits(idle_s=0.2), TransportLimits(max_age_s=0.2, window_s=0.4)):
        running = await start_http2(limits=limits)
        peer = await connect(running)
        assert (await peer.find(GOAWAY)).code == frames.NO_ERROR
        ping = await peer.find(PING)
        peer.write(frame(PING, ACK, 0, ping.payload))
        assert await peer.goaway() == frames.NO_ERROR


async def test_unfinished_messages_together_are_bounded(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, TransportLimits(max_partial_bytes=100_000))
    peer = await connect(running)
    for number in range(1, 21, 2):
        peer.open(number, block=head(first=number == 1))
        peer.write(frame(DATA, 0, number, b"\0\0\1\0\0" + bytes(16_000)))
    answer = await peer.find(HEADERS)
    assert (answer.stream, b"grpc-status\x018" in answer.payload) == (13, True)
    await peer.pong()
    assert running.server.partial_bytes <= 100_000  # type: ignore[attr-defined]


async def test_an_answer_queue_beyond_the_connections_bound_ends_it(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(limits=TransportLimits(max_connection_buffer_bytes=200_000))
    peer = await connect(running)
    for number in range(1, 21, 2):
        peer.open(number, block=head(first=number == 1))
        peer.data(number, bytes(60_000))
    assert await peer.goaway() == frames.ENHANCE_YOUR_CALM


# --- legal, but rare ---


async def test_padding_priority_and_continuation_are_understood(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    block = head()
    prioritized = b"\x02" + b"\0\0\0\0\x10" + block[:10] + b"\0\0"
    peer.write(
        frame(HEADERS, PADDED | PRIORITIZED, 1, prioritized),
        frame(CONTINUATION, 0, 1, block[10:20]),
        frame(CONTINUATION, END_HEADERS, 1, block[20:]),
        frame(PRIORITY, 0, 99, b"\0\0\0\1\x10"),
        frame(0xFA, 0xFF, 1, b"unknown"),
        frame(DATA, PADDED, 1, b"\4\0\0\0" + b"\0\0\0\0"),
        frame(DATA, PADDED | END_STREAM, 1, b"\0\0\2hi"),
    )
    assert (await peer.find(DATA)).payload == b"\0\0\0\0\2hi"
    assert running.receivers[0].events[:2] == ["message", "half_closed"]


async def test_a_reserved_bit_is_ignored(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1 | 2**31)
    peer.data(1 | 2**31, b"x")
    assert (await peer.find(DATA)).payload == GRPC_DATA


async def test_trailers_end_a_request(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1)
    peer.data(1, b"x")
    peer.write(frame(HEADERS, END_HEADERS | END_STREAM, 1, b"\0" + text("x-end") + text("yes")))
    assert (await peer.find(DATA)).payload == GRPC_DATA
    assert (await peer.find(HEADERS)).flags & END_STREAM
    assert running.receivers[0].events == ["message", "half_closed", "closed"]


async def test_messages_split_and_joined_at_every_byte(start_http2: Start, connect: Connect) -> None:
    wire = b"".join(b"\0" + struct.pack(">I", size) + bytes(range(size)) for size in (0, 3, 1, 0, 7))
    running = await start_http2(silent)
    peer = await connect(running)
    number = -1
    for cut in range(len(wire) + 1):
        number += 2
        peer.open(number, block=head(first=number == 1))
        peer.write(frame(DATA, 0, number, wire[:cut]), frame(DATA, END_STREAM, number, wire[cut:]))
        receiver = await running.receiver(cut)
        await until(lambda receiver=receiver: "half_closed" in receiver.events)
        assert [len(message) for message in receiver.messages] == [0, 3, 1, 0, 7]
        receiver.stream.finish()
    assert running.server.partial_bytes == 0  # type: ignore[attr-defined]


async def test_bytes_one_by_one(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    await peer.pong()
    protocol = next(iter(running.server.live))  # type: ignore[attr-defined]
    wire = frame(HEADERS, END_HEADERS, 1, head()) + frame(DATA, END_STREAM, 1, GRPC_DATA)
    for position in range(len(wire)):
        protocol.data_received(wire[position : position + 1])
    assert (await peer.find(DATA)).payload == GRPC_DATA


async def test_grpc_timeout_is_kept(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent)
    peer = await connect(running)
    peer.open(1, block=head(METHOD, ("grpc-timeout", "50m")))
    assert b"grpc-status\x014" in (await peer.find(HEADERS)).payload
    assert running.receivers[0].events == ["closed"]


async def test_two_goaways_and_streams_between_them(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1)
    draining = asyncio.ensure_future(running.server.drain(10))
    first = await peer.find(GOAWAY)
    assert struct.unpack(">II", first.payload[:8]) == (2**31 - 1, frames.NO_ERROR)
    ping = await peer.find(PING)
    peer.open(3, block=head(first=False))  # it was on its way
    peer.write(frame(PING, ACK, 0, ping.payload))
    second = await peer.find(GOAWAY)
    assert struct.unpack(">II", second.payload[:8]) == (3, frames.NO_ERROR)
    peer.open(5, block=head(first=False))
    peer.data(5, b"ignored", END_STREAM)
    for number in (1, 3):
        peer.data(number, b"x", END_STREAM)
        assert (await peer.find(DATA)).stream == number
    await draining
    assert [receiver.events[-1] for receiver in running.receivers] == ["closed"] * 2


async def test_drain_does_not_wait_for_ever_for_an_answer_to_its_ping(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    await asyncio.wait_for(running.server.drain(10 * PATIENCE), PATIENCE)
    assert await peer.goaway() == frames.NO_ERROR


async def test_a_client_that_says_goaway_is_served_to_its_end(start_http2: Start, connect: Connect) -> None:
    running = await start_http2()
    peer = await connect(running)
    peer.open(1)
    peer.write(frames.goaway(0, frames.NO_ERROR))
    peer.data(1, b"x", END_STREAM)
    assert (await peer.find(DATA)).payload == GRPC_DATA
    await peer.goaway()


async def test_remembered_blocks_stay_bounded(start_http2: Start, connect: Connect) -> None:
    running = await start_http2(silent, TransportLimits(max_concurrent_streams=20_000))
    memory = running.server.memory  # type: ignore[attr-defined]
    peer = await connect(running)
    for number in range(1, 12_001, 2):
        peer.open(number, block=head(METHOD, ("traceparent", f"00-{number:032x}-01"), first=number == 1))
    await peer.pong()
    assert running.server.streams == 6_000
    assert len(memory.heads) <= 1_024
    assert len(memory._fields) <= 4_096
    found = running.receivers[-1].stream.metadata
    assert found["traceparent"] == f"00-{11_999:032x}-01"


async def test_echo_works_with_a_padded_flow(start_http2: Start, connect: Connect) -> None:
    """Padding counts for flow control, not for content-length."""
    running = await start_http2(echo)
    peer = await connect(running)
    peer.open(1, block=head(METHOD, ("content-length", "6")))
    peer.write(frame(DATA, PADDED | END_STREAM, 1, b"\5" + GRPC_DATA + bytes(5)))
    assert (await peer.find(DATA)).payload == GRPC_DATA
