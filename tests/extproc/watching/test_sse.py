"""Events come out of a stream as they went in, wherever it was cut."""

from __future__ import annotations

import contextlib
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai._streaming import SSEDecoder

from extproc.watching.sse import Event, Events, encode
from tests.linear import assert_linear

ENDS = st.sampled_from([b"\n", b"\r\n", b"\r"])
LINES = st.sampled_from(
    [
        b"",
        b"",
        b'data: {"a":1}',
        b"data:x",
        b"data",
        b"data:  two spaces",
        "data: Grüße 🙂".encode(),
        b"event: message_start",
        b"event:",
        b": a comment",
        b":",
        b"id: 7",
        b"retry: 10",
        b"unknown: field",
        b"no field",
        b"data: [DONE]",
    ]
)
STREAMS = st.tuples(
    st.sampled_from([b"", b"\xef\xbb\xbf"]), st.lists(st.tuples(LINES, ENDS).map(b"".join), max_size=12).map(b"".join)
).map(b"".join)


def events(pieces: list[bytes], limit: int = 1 << 20) -> list[Event]:
    reader = Events(limit)
    found = [one for piece in pieces for one in reader.feed(piece)]
    last = reader.end()
    assert reader.rest() == b""
    return found if last is None else [*found, last]


def split(stream: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in itertools.pairwise(borders)]


@given(STREAMS, st.lists(st.integers(0, 1000), max_size=8))
def test_any_split_gives_the_same_events(stream: bytes, places: list[int]) -> None:
    whole = events([stream])
    assert b"".join(one.raw for one in whole) == stream
    assert events(split(stream, places)) == whole
    assert events([bytes([byte]) for byte in stream]) == whole


@given(STREAMS)
def test_events_are_what_a_client_reads(stream: bytes) -> None:
    body = stream.removeprefix(b"\xef\xbb\xbf") + b"\n\n"
    client = [(one.event or "", one.data) for one in SSEDecoder().iter_bytes(iter([body])) if one.data]
    ours = [(one.name, one.data.decode()) for one in events([stream + b"\n\n"]) if one.data]
    assert ours == client


def test_one_event() -> None:
    raw = b': hello\r\nid: 4\r\nevent: delta\r\ndata: {"a":\r\ndata:  1}\r\n\r\n'
    assert events([raw]) == [Event(raw, "delta", b'{"a":\n 1}', b": hello\nid: 4")]


def test_what_is_left_is_an_event_for_those_who_read_line_by_line() -> None:
    reader = Events(100)
    assert reader.feed(b"data: a\n\ndata: b\ny") == [Event(b"data: a\n\n", "", b"a")]
    assert reader.end() == Event(b"data: b\ny", "", b"b", b"y")
    assert reader.end() is None


def test_a_carriage_return_waits_for_its_line_feed() -> None:
    reader = Events(100)
    assert reader.feed(b"data: a\r\n\r") == []
    assert reader.feed(b"\n") == [Event(b"data: a\r\n\r\n", "", b"a")]
    assert reader.feed(b"data: b\r\r") == []
    assert reader.end() == Event(b"data: b\r\r", "", b"b")


def test_an_event_that_is_too_long_loses_nothing() -> None:
    for pieces in ([b"data: a\n\ndata: " + b"x" * 30], [b"data: a\n", b"\ndata: xxxx", b"x" * 26]):
        reader = Events(20)
        found = [one for piece in pieces[:-1] for one in reader.feed(piece)]
        with contextlib.suppress(ValueError):
            found += reader.feed(pieces[-1])
        assert [one.data for one in found] == [b"a"]
        with pytest.raises(ValueError, match="an event of the answer is longer than 20 bytes"):
            reader.feed(b"")
        with pytest.raises(ValueError, match="longer than 20"):
            reader.end()
        assert reader.rest() == b"data: " + b"x" * 30


def test_a_whole_event_that_is_too_long_is_one_too() -> None:
    long, short = b"data: " + b"x" * 20 + b"\n\n", b"data: " + b"x" * 12 + b"\n\n"
    for stream, readable in ((long, 0), (short, 1), (short + long, 1)):
        for pieces in ([stream], [bytes([byte]) for byte in stream]):
            reader = Events(20)
            found = []
            with contextlib.suppress(ValueError):
                for piece in pieces:
                    found += reader.feed(piece)
            assert len(found) == readable


def test_encode() -> None:
    assert encode("", {"a": "é"}) == 'data: {"a":"é"}\n\n'.encode()
    assert encode("ping", {"a": 1}) == b'event: ping\ndata: {"a":1}\n\n'
    assert events([encode("x", b"one\ntwo")])[0][1:] == ("x", b"one\ntwo", b"")


def test_the_work_is_linear() -> None:
    assert_linear(lambda size: [b"data: ", *[b"x"] * size, b"\n\n"], events, 1 << 18)
    assert_linear(lambda size: [b"\r" * size], events, 1 << 18)
    assert_linear(lambda size: [b"data: x\n\n" * size], events, 1 << 18)
    assert_linear(lambda size: [b"data: x\n" * size + b"\n"], events, 1 << 18)
