"""Our cutting of header blocks against the `hpack` library; addresses; what only time brings about."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from hpack import Decoder, Encoder, HPACKError
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.transport import address, frames, headers
from extproc.transport.faults import CompressionError, Malformed
from extproc.transport.frames import END_HEADERS, END_STREAM, frame
from extproc.transport.seam import Stream, TransportLimits
from tests.extproc.transport.conftest import METHOD, Recorder, echo, head, silent, text
from tests.extproc.transport.memory import InMemory
from tests.volume import few_and_many

NAMES = st.from_regex(rb"[a-z0-9!#$%&'*+.^_`|~-]{1,200}", fullmatch=True)
VALUES = st.from_regex(rb"([!-~\x80-\xff]([ -~\x80-\xff]{0,300}[!-~\x80-\xff])?)?", fullmatch=True)


def stateless() -> Decoder:
    decoder = Decoder()
    decoder.header_table_size = decoder.max_allowed_table_size = 0
    return decoder


@few_and_many(25, 100)
def test_what_hpack_encodes_without_a_table_is_read_back(examples: int) -> None:
    @settings(max_examples=examples)
    @given(fields=st.lists(st.tuples(NAMES, VALUES), max_size=20), huffman=st.booleans())
    def holds(fields: list[tuple[bytes, bytes]], huffman: bool) -> None:
        encoder = Encoder()
        encoder.header_table_size = 0
        memory = headers.BlockMemory({}, 65_536)
        block = encoder.encode(fields, huffman=huffman)
        for _ in range(2):  # the second time from memory
            assert memory.fields(block) == fields

    holds()


PIECES = [
    b"\x82", b"\x20", b"\x0f\x10", b"\x04\x01/", b"\0\1a\1b", b"\x40\1c\0", b"\x10\x81\x1f\0", b"\x7f", b"\xff",
]  # fmt: skip


@pytest.mark.no_cover
@given(block=st.one_of(st.binary(max_size=60), st.lists(st.sampled_from(PIECES)).map(b"".join)))
def test_any_bytes_mean_the_same_as_to_hpack(block: bytes) -> None:
    memory = headers.BlockMemory({}, 65_536)
    try:
        expected = [(bytes(name), bytes(value)) for name, value in stateless().decode(block, raw=True)]
    except HPACKError:
        expected = None
    try:
        assert memory.fields(block) == expected
    except Malformed:
        assert expected is not None
    except CompressionError:
        assert expected is None


def test_an_integer_without_end_is_refused_at_once() -> None:
    for prefix in (b"\0\x7f", b"\x0f", b"\x7f", b"\0\1a\x7f"):
        with pytest.raises(CompressionError):
            headers.BlockMemory({}, 65_536).fields(prefix + b"\xff" * 60_000)


@pytest.mark.parametrize(
    ("listen", "expected"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("[::1]:50051", ("::1", 50_051)),
        (":0", ("", 0)),
        ("unix:/run/p.sock", "/run/p.sock"),
        ("unix:///run/p.sock", "/run/p.sock"),
    ],
)
def test_addresses(listen: str, expected: object) -> None:
    assert address.parse(listen) == expected


def test_bound_sockets_are_named_as_they_are_read() -> None:
    for listen in ("127.0.0.1:0", "[::1]:0"):
        try:
            sock = address.bind(listen)
        except OSError:
            pytest.skip("no IPv6 on this machine")
        with sock:
            assert address.parse(address.name(sock)) == sock.getsockname()[:2]


def test_a_port_in_use_is_an_error_that_names_it() -> None:
    with address.bind("127.0.0.1:0") as sock:
        sock.listen()
        with pytest.raises(OSError, match=address.name(sock)):
            address.bind(address.name(sock))


def test_a_shared_port_is_for_those_who_know_of_it() -> None:
    with address.shared(address.bind("127.0.0.1:0")) as first:
        where = address.name(first)
        with address.bind(where, share=True) as second:  # as a further worker
            first.listen()
            second.listen()
        with pytest.raises(OSError, match=f"{where}: Address already in use; another process has this address"):
            address.bind(where)
        with address.bind(where, share=True) as third:  # as the successor of a dead one
            third.listen()


def test_a_unix_socket_left_behind_is_replaced_and_a_live_one_is_not(tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    address.bind(f"unix:{path}").close()
    assert path.exists()
    with address.bind(f"unix:{path}") as live:
        live.listen()
        with pytest.raises(FileExistsError, match="another process"):
            address.bind(f"unix:{path}")
    with pytest.raises(OSError, match="cannot listen"):
        address.bind(f"unix:{tmp_path}/missing/p.sock")
    path.unlink()
    path.write_text("a file")
    with pytest.raises(FileExistsError, match="not a socket"):
        address.bind(f"unix:{path}")


def connected(limits: TransportLimits | None = None, script: object = silent) -> tuple[InMemory, list[Recorder]]:
    made: list[Recorder] = []

    def handler(stream: Stream) -> Recorder:
        made.append(Recorder(stream, script))  # type: ignore[arg-type]
        return made[-1]

    running = InMemory({METHOD: handler}, limits or TransportLimits())
    running.feed(frames.PREFACE + frames.settings({}) + frame(frames.SETTINGS, frames.ACK, 0))
    running.wire.take()
    return running, made


def test_the_count_of_control_frames_begins_anew_with_each_window() -> None:
    running, _ = connected(TransportLimits(max_control_frames=100, window_s=10.0))
    running.server._swept = running.loop.now
    for _ in range(5):
        running.feed(frame(frames.PING, 0, 0, bytes(8)) * 90)
        running.loop.now += 11
        running.server._sweep()
    assert running.wire.open
    running.feed(frame(frames.PING, 0, 0, bytes(8)) * 101)
    assert running.wire.take()[-1].code == frames.ENHANCE_YOUR_CALM


def test_a_closed_connection_that_the_peer_keeps_open_is_cut() -> None:
    running, _ = connected()
    running.wire.write_eof = lambda: None  # type: ignore[method-assign]
    running.feed(frame(frames.PING, 0, 1, bytes(8)))
    assert running.wire.take()[-1].code == frames.PROTOCOL_ERROR
    running.feed(frame(frames.PING, 0, 0, bytes(8)) * 10)
    assert running.wire.take() == []
    running.loop.now += 3
    running.protocol.sweep(running.loop.now)
    assert not running.wire.open


@pytest.mark.parametrize("split", [False, True], ids=["whole", "in two frames"])
def test_a_failing_receiver_ends_with_internal_however_its_message_came(
    split: bool, caplog: pytest.LogCaptureFixture
) -> None:
    def failing(recorder: Recorder, event: str, data: bytes) -> None:
        if event == "message":
            raise RuntimeError("a bug")

    running, made = connected(script=failing)
    wire = b"\0\0\0\0\2hi"
    running.feed(frame(frames.HEADERS, END_HEADERS, 1, head()))
    for part in (wire[:3], wire[3:]) if split else (wire,):
        running.feed(frame(frames.DATA, 0, 1, part))
    sent = running.wire.take()
    assert b"grpc-status" + text("13") in sent[0].payload
    assert (sent[1].kind, sent[1].code) == (frames.RST_STREAM, frames.NO_ERROR)
    assert made[0].events == ["message", "closed"]
    running.lose()
    running.check_empty()


def test_a_stream_that_finished_takes_no_further_part_of_a_message() -> None:
    def finishing(recorder: Recorder, event: str, data: bytes) -> None:
        if event == "message":
            recorder.stream.finish()

    running, made = connected(script=finishing)
    running.feed(
        frame(frames.HEADERS, END_HEADERS, 1, head())
        + frame(frames.DATA, 0, 1, b"\0\0\0\0\1a\0\0\0\0\1b\0")
        + frame(frames.DATA, 0, 1, b"\0\0\0\1c")
        + frame(frames.DATA, END_STREAM, 1, b"\0\0\0\0\1d")
    )
    assert made[0].messages == [b"a"]
    assert [found.kind for found in running.wire.take()] == [frames.HEADERS]
    running.lose()
    running.check_empty()


def test_the_end_of_a_drain_cuts_streams_that_wait_for_a_window() -> None:
    running, made = connected(script=echo)
    running.feed(frames.settings({frames.INITIAL_WINDOW_SIZE: 0}))
    running.feed(frame(frames.HEADERS, END_HEADERS, 1, head()) + frame(frames.DATA, END_STREAM, 1, b"\0\0\0\0\1a"))
    running.connection.start_drain()
    running.connection.cut_all()
    running.loop.run()
    kinds = [found.kind for found in running.wire.take()]
    assert kinds[-3:] == [frames.GOAWAY, frames.PING, frames.RST_STREAM]
    assert not running.wire.open
    assert made[0].events[-1] == "closed"


def test_more_resets_than_are_remembered() -> None:
    running, _ = connected(TransportLimits(max_control_frames=10_000))
    for number in range(1, 4_001, 2):
        running.feed(frame(frames.HEADERS, END_HEADERS, number, b"\x20\x83"))
    assert len(running.connection.numbers.resets) <= 1_024
    running.wire.take()
    running.feed(frame(frames.DATA, 0, 3_999, bytes(5)))  # remembered: dropped
    running.feed(frame(frames.DATA, 0, 1, bytes(5)))  # forgotten: told
    assert [(found.stream, found.code) for found in running.wire.take()] == [(1, frames.STREAM_CLOSED)]


def test_the_address_of_a_socket_pair_has_no_port() -> None:
    left, right = socket.socketpair()
    with left, right:
        assert address.name(left) == "unix:"
