"""Bytes to plain things and back, each reply read by two implementations: upb and envoy-data-plane."""

from __future__ import annotations

import tracemalloc
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc import wire
from extproc.wire import Kind, Mode
from proto import ext_proc_pb2
from signals.reading import Reading
from tests.extproc.envoy import metadata, set_headers
from tests.proto import oracle
from tests.proto.oracle import core, ext_proc

NAME = st.text("abcdefghijklmnopqrstuvwxyz-0123456789", min_size=1, max_size=40)
# What an HTTP header field value may hold (RFC 9110, section 5.5): no CR, LF or NUL, no space or tab at the ends.
VALUE = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\0"), max_size=300).map(str.strip)
PAIRS = st.lists(st.tuples(NAME, VALUE), max_size=20)
BODY = st.binary(max_size=300)


def read(reply: bytes) -> ext_proc.ProcessingResponse:
    """The reply as envoy-data-plane reads it, after upb has read it without unknown fields."""
    ours = ext_proc_pb2.ProcessingResponse.FromString(reply)
    again = ext_proc_pb2.ProcessingResponse.FromString(ours.SerializeToString())
    again.DiscardUnknownFields()
    assert again == ours
    return ext_proc.ProcessingResponse.parse(reply)


def request_headers(pairs: list[tuple[str, str]], raw: bool = True) -> bytes:
    listed = [core.HeaderValue(key=k, **({"raw_value": v.encode()} if raw else {"value": v})) for k, v in pairs]
    part = ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed), end_of_stream=True)
    return bytes(ext_proc.ProcessingRequest(request_headers=part))


@settings(max_examples=60, deadline=None)
@given(PAIRS, st.booleans(), NAME)
def test_headers_are_found_whether_in_value_or_raw_value(pairs: list[Any], raw: bool, absent: str) -> None:
    message = wire.decode(request_headers(pairs, raw))
    assert message is not None
    wanted: dict[str, str] = {}
    for name, value in pairs:
        wanted[name] = f"{wanted[name]},{value}" if name in wanted else value
    assert dict(message.headers) == wanted
    assert len(message.headers) == len(wanted)
    assert message.headers.get(absent) == wanted.get(absent)
    assert (absent in message.headers) == (absent in wanted)
    assert message.end


def test_a_long_header_value_is_whole() -> None:
    for size in (127, 128, 16_383, 16_384, 60_000):
        message = wire.decode(request_headers([("a", "x"), ("cookie", "y" * size), ("b", "z")]))
        assert message is not None
        assert message.headers["cookie"] == "y" * size
        assert message.headers["b"] == "z"


def test_a_name_inside_a_value_is_no_header() -> None:
    message = wire.decode(request_headers([("x-note", "x-tenant-tier gold x-tenant-tier"), ("x-tenant-tier2", "no")]))
    assert message is not None
    assert "x-tenant-tier" not in message.headers
    with pytest.raises(KeyError):
        message.headers["x-tenant-tier"]


def test_bytes_that_are_no_utf_8_do_not_fail() -> None:
    listed = [core.HeaderValue(key="x", raw_value=b"caf\xe9")]
    part = ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed))
    message = wire.decode(bytes(ext_proc.ProcessingRequest(request_headers=part)))
    assert message is not None
    assert message.headers["x"] == "caf\ufffd"


def entry(*fields: bytes) -> bytes:
    """A HeaderMap with one header of these fields."""
    size = len(b"".join(fields))
    return b"\x0a" + bytes([size] if size < 128 else [size & 127 | 128, size >> 7]) + b"".join(fields)


NAME_A, VALUE_1, VALUE_2, RAW_3 = b"\x0a\x01a", b"\x12\x011", b"\x12\x012", b"\x1a\x013"


@pytest.mark.parametrize(
    ("raw", "wanted"),
    [
        (entry(), {"": ""}),
        (entry(NAME_A), {"a": ""}),
        (entry(RAW_3), {"": "3"}),
        (entry(NAME_A, VALUE_1, RAW_3), {"a": "1"}),
        (entry(RAW_3, NAME_A), {"a": "3"}),
        (entry(NAME_A, VALUE_1, VALUE_2), {"a": "2"}),
        (entry(NAME_A, RAW_3, b"\x1a\x014"), {"a": "4"}),
        (entry(b"\x0a\x01z", NAME_A, RAW_3), {"a": "3"}),
        (entry(NAME_A, RAW_3, b"\x22\x01?"), {"a": "3"}),  # a field that nobody knows yet
        (entry(NAME_A, b"\x1a\xc8\x01" + b"x" * 200), {"a": "x" * 200}),
        (entry(NAME_A, RAW_3) + entry(NAME_A, VALUE_1), {"a": "3,1"}),
    ],
)
def test_headers_in_shapes_that_envoy_does_not_write(raw: bytes, wanted: dict[str, str]) -> None:
    inner = b"\x0a" + bytes([len(raw)] if len(raw) < 128 else [len(raw) & 127 | 128, len(raw) >> 7]) + raw
    size = bytes([len(inner)] if len(inner) < 128 else [len(inner) & 127 | 128, len(inner) >> 7])
    message = wire.decode(b"\x12" + size + inner)
    assert message is not None
    assert dict(message.headers) == wanted


def test_headers_that_break_off_or_are_no_text_are_refused() -> None:
    whole = request_headers([("a", "b"), ("content-type", "application/json")])
    for end in range(3, len(whole)):
        with pytest.raises(ValueError, match="ProcessingRequest"):
            wire.decode(whole[:end])
    broken = entry(b"\x0a\x01\xff", RAW_3)
    with pytest.raises(ValueError, match="ProcessingRequest"):
        wire.decode(b"\x12" + bytes([len(broken) + 2]) + b"\x0a" + bytes([len(broken)]) + broken)


def test_showing_headers_shows_no_values() -> None:
    message = wire.decode(request_headers([("authorization", "Bearer secret")]))
    assert message is not None
    assert repr(message.headers) == "Headers(['authorization'])"


def test_our_own_headers_are_told_apart() -> None:
    message = wire.decode(
        request_headers([("x-pointsman-route", "a"), ("x-other", "x-pointsman-"), ("x-pointsman-z", "")])
    )
    assert message is not None
    assert message.headers.own() == ["x-pointsman-route", "x-pointsman-z"]


def test_bodies_and_trailers() -> None:
    message = wire.decode(bytes(ext_proc.ProcessingRequest(request_body=ext_proc.HttpBody(b"abc", True))))
    assert message is not None
    assert (message.kind, message.body, message.end) == (Kind.REQUEST_BODY, b"abc", True)
    trailers = ext_proc.HttpTrailers(core.HeaderMap(headers=[core.HeaderValue("a", "b")]))
    message = wire.decode(bytes(ext_proc.ProcessingRequest(response_trailers=trailers)))
    assert message is not None
    assert (message.kind, dict(message.headers), message.end) == (Kind.RESPONSE_TRAILERS, {"a": "b"}, True)


def test_what_the_first_message_announces() -> None:
    terms = ext_proc.ProtocolConfiguration(
        request_body_mode=oracle.filters.ProcessingModeBodySendMode.STREAMED,
        response_body_mode=oracle.filters.ProcessingModeBodySendMode.BUFFERED,
        send_body_without_waiting_for_header_response=True,
    )
    raw = ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(), protocol_config=terms, observability_mode=True
    )
    message = wire.decode(bytes(raw))
    assert message is not None
    assert message.terms() == (Mode.STREAMED, Mode.BUFFERED, True, True)
    message = wire.decode(bytes(ext_proc.ProcessingRequest(request_headers=ext_proc.HttpHeaders())))
    assert message is not None
    assert message.terms() == (Mode.NONE, Mode.NONE, False, False)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(st.text(max_size=5), JSON, max_size=3))
def test_filter_metadata_becomes_plain_values(claims: dict[str, Any]) -> None:
    raw = ext_proc.ProcessingRequest(
        request_headers=ext_proc.HttpHeaders(),
        metadata_context=core.Metadata(filter_metadata={"envoy.filters.http.jwt_authn": oracle.struct(claims)}),
        attributes={"envoy.filters.http.ext_proc": oracle.struct({"source.address": "1.2.3.4"})},
    )
    message = wire.decode(bytes(raw))
    assert message is not None
    assert message.attributes() == {
        "envoy.filters.http.jwt_authn": claims,
        "envoy.filters.http.ext_proc": {"source.address": "1.2.3.4"},
    }


@pytest.mark.parametrize("data", [b"\xff", b"\x12\x05", b"\x12\x7f" + b"\0" * 20, b"*\x03\n\x05a" + b"x" * 9])
def test_broken_bytes_are_a_value_error(data: bytes) -> None:
    with pytest.raises(ValueError, match="ProcessingRequest"):
        wire.decode(data)


@pytest.mark.parametrize("data", [b"", b"\x50\x01"])
def test_a_message_without_a_known_kind_is_none(data: bytes) -> None:
    assert wire.decode(data) is None


NAMES = {kind: name.lower() for name, kind in vars(Kind).items() if isinstance(kind, int)}
KINDS = [Kind.REQUEST_HEADERS, Kind.RESPONSE_HEADERS, Kind.REQUEST_BODY, Kind.RESPONSE_BODY]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.tuples(NAME, VALUE), max_size=4, unique_by=lambda pair: pair[0]),
    st.lists(NAME, max_size=3),
    st.booleans(),
    st.none() | BODY,
)
def test_replies_say_what_they_were_told_to(
    kind: int, headers: list[tuple[str, str]], remove: list[str], reroute: bool, body: bytes | None
) -> None:
    headers = [pair for pair in headers if pair[0] != "content-length"]
    message = read(wire.reply(kind, tuple(headers), remove, reroute, body))
    common = getattr(message, NAMES[kind]).response or ext_proc.CommonResponse()
    mutation = common.header_mutation or ext_proc.HeaderMutation()
    given_headers = set_headers(mutation)
    if body is not None:
        assert given_headers.pop("content-length") == str(len(body))
        assert common.body_mutation.body == body
    else:
        assert common.body_mutation is None
    assert given_headers == dict(headers)
    assert mutation.remove_headers == remove
    assert common.clear_route_cache is reroute


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 200_000), st.booleans())
def test_chunks_give_a_body_back_in_order(size: int, end: bool) -> None:
    body = bytes(index % 251 for index in range(size))
    parts = [
        read(chunk).request_body.response.body_mutation.streamed_response
        for chunk in wire.chunks(Kind.REQUEST_BODY, body, end)
    ]
    assert b"".join(part.body for part in parts) == body
    assert [part.end_of_stream for part in parts] == [False] * (len(parts) - 1) + [end]
    assert all(len(part.body) <= wire.CHUNK for part in parts)
    assert len(parts) == max(1, -(-size // wire.CHUNK))


@given(BODY)
def test_streamed_bodies_are_cleared_and_replaced(body: bytes) -> None:
    assert read(wire.clear(Kind.REQUEST_BODY)).request_body.response.body_mutation.clear_body is True
    assert read(wire.replace(Kind.REQUEST_BODY, body)).request_body.response.body_mutation.body == body


def test_trailers_go_on() -> None:
    assert read(wire.trailers(Kind.REQUEST_TRAILERS)).request_trailers is not None
    assert read(wire.trailers(Kind.RESPONSE_TRAILERS)).response_trailers is not None


def test_buffering_is_added_to_a_header_reply() -> None:
    message = read(wire.reply(Kind.REQUEST_HEADERS) + wire.BUFFERING)
    assert message.request_headers is not None
    assert message.mode_override.request_body_mode == oracle.filters.ProcessingModeBodySendMode.BUFFERED
    assert message.mode_override.response_header_mode == oracle.filters.ProcessingModeHeaderSendMode.SEND


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([200, 400, 403, 404, 413, 429, 500]), VALUE, BODY)
def test_immediate_answers(status: int, value: str, body: bytes) -> None:
    message = read(wire.immediate(status, (("x", value),), body, "pointsman_why"))
    answer = message.immediate_response
    assert (int(answer.status.code), answer.body, answer.details) == (status, body, "pointsman_why")
    assert set_headers(answer.headers) == {"x": value}


@settings(max_examples=30, deadline=None)
@given(VALUE, BODY, st.booleans())
def test_streamed_answers(value: str, body: bytes, end: bool) -> None:
    part = read(wire.stream_headers(200, (("x", value),), end)).streamed_immediate_response.headers_response
    assert oracle.headers_of(part.headers) == {":status": "200", "x": value}
    assert part.end_of_stream is end
    chunk = read(wire.stream_body(body, end)).streamed_immediate_response.body_response
    assert (chunk.body, chunk.end_of_stream) == (body, end)


@settings(max_examples=40, deadline=None)
@given(
    st.dictionaries(NAME.filter(lambda n: n != "signals"), VALUE, max_size=4),
    st.none() | st.integers(0, 10**9),
    st.dictionaries(NAME, st.none() | st.floats(allow_nan=False), max_size=5),
)
def test_dynamic_metadata_is_added_to_any_reply(
    texts: dict[str, str], tokens: int | None, scores: dict[str, float | None]
) -> None:
    readings = {name: Reading(True, score) for name, score in scores.items()}
    extra = wire.metadata(wire.texts(tuple(texts.items())), tokens, readings)
    wanted: dict[str, Any] = dict(texts)
    if tokens is not None:
        wanted["estimated_input_tokens"] = float(tokens)
    if known := {name: score for name, score in scores.items() if score is not None}:
        wanted["signals"] = known
    for reply in (wire.reply(Kind.REQUEST_BODY, (("a", "b"),), (), True), wire.stream_headers(200, ())):
        message = read(reply + extra)
        assert metadata(message) == wanted
        assert message.request_body is not None or message.streamed_immediate_response is not None


@pytest.mark.slow
@pytest.mark.no_cover
def test_what_clients_make_up_is_remembered_within_a_few_megabytes() -> None:
    def fill(size: int) -> int:
        tracemalloc.start()
        for number in range(5_000):
            path = f"/v1/chat/completions?{number:0{size}}"
            wire.reply(Kind.REQUEST_HEADERS, (("x-pointsman-route", "small"), (":path", path)), (), True)
            wire.reply(Kind.REQUEST_BODY, ((":path", path),), (), True, b"{}")
            wire.headers_of([(f"x-{number:0{size}}", "")]).own()
        held, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return held

    assert fill(16_000) < 2**20
    assert fill(1_900) < 12 * 2**20
    assert fill(10) < 4 * 2**20


def test_each_signal_has_its_score_where_several_share_a_reading() -> None:
    shared, other, without = Reading(False, 0.5), Reading(True, 0.75), Reading(True)
    readings = {"a": shared, "b": shared, "c": without, "d": without, "e": other, "f": shared}
    extra = wire.metadata(b"", None, readings)
    told = metadata(read(wire.reply(Kind.REQUEST_BODY) + extra))
    assert told["signals"] == {"a": 0.5, "b": 0.5, "e": 0.75, "f": 0.5}
