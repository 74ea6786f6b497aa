"""What reads a request takes four times as long for four times the input, whatever the input is."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import brotli
import orjson
import pytest
import zstandard

from decisions.decision import Changes
from decisions.engine import Opening
from decisions.model import Model
from extproc.bodies.encoding import coding, decoded, in_utf8, plainly_json, says_json
from extproc.bodies.holder import Bodies
from extproc.bodies.jsonbody import _too_many, values_at_most
from extproc.refusal import Refusal
from extproc.requests import paths, rewriting
from extproc.requests.body import parse
from extproc.requests.unread import UnreadLog
from extproc.transport.headers import RequestHead, new_decoder
from extproc.transport.headers import decode as decode_block
from extproc.wire import Headers, decode
from proto import ext_proc_pb2 as pb
from tests.linear import assert_linear

pytestmark = pytest.mark.volume

USER = {"role": "user", "content": "hi"}
MOST = 16 * 2**20


def _refused(run: Callable[[Any], object]) -> Callable[[Any], object]:
    """`run`, where a refusal is an answer like any other."""

    def refused(given: Any) -> object:
        try:
            return run(given)
        except Refusal as refusal:
            return refusal

    return refused


@pytest.mark.slow
def test_time_squared_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What this file and that of the signals rely on. Shorter times will do where the ratio is sixteen."""
    monkeypatch.setattr("tests.linear.MEASURABLE", 0.0003)
    with pytest.raises(AssertionError, match="times as long"):
        assert_linear(range, lambda numbers: [other for one in numbers for other in numbers if other == one])


# Paths


@pytest.mark.parametrize(
    "path",
    [
        lambda size: "/v1/models" + "%2F" * size + "%3F",
        lambda size: "/v1/models" + "%252F" * size,
        lambda size: "/" * size,
        lambda size: "/." * size,
        lambda size: "/.." * size,
        lambda size: "/models" * size,
        lambda size: "/responses" * size,
        lambda size: "/a;" * size + "/v1/chat/completions",
        lambda size: "/v1/chat/completions?" + "a&" * size,
        lambda size: "/openai/deployments/x/chat/completions?" + "api-version=&" * size,
        lambda size: "%" * size,
        lambda size: "\\" * size + "\0" * size,
        lambda size: "/v1/" + "é" * size,
        lambda size: "/v1/" + "%ff" * size,
        lambda size: "#" * size + "?" * size,
        lambda size: "/v1/models" + "/x" * size + ":generateContent",
        lambda size: "/x" + "/models" * size + "/x:generateContent",
        lambda size: "/x" + "/v1/responses" * size + "/x/x",
        lambda size: "/publishers/x" * size + "/models/x:generateContent",
        lambda size: "/v1/models/x" + ":" * size + "generateContent",
        lambda size: "/v1/models/x:streamGenerateContent?" + "alt&" * size,
    ],
)
def test_paths(path: Callable[[int], str]) -> None:
    """Also longer ones than are read at all."""
    assert_linear(path, paths._read.__wrapped__)
    openings = (Opening("/aaa*", "x"), Opening("/b", "y"))
    assert_linear(path, lambda given: paths.opening(given, openings))
    assert_linear(path, lambda given: UnreadLog().tell("x", given, given))


# Bodies


BODIES: list[Callable[[int], bytes]] = [
    lambda size: orjson.dumps({"messages": [{"role": "user", "content": "ab " * size}]}),
    lambda size: orjson.dumps({"messages": [USER] * size}),
    lambda size: orjson.dumps({"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}] * size}]}),
    lambda size: orjson.dumps({"messages": [{"role": "user", "content": [{"type": "file", "file": {}}] * size}]}),
    lambda size: orjson.dumps(
        {"messages": [{"role": "user", "content": [{"type": "tool_result", "content": "x"}] * size}]}
    ),
    lambda size: b'{"messages":[%b]}' % (b'{"role":"user","content":[' * size),
    lambda size: orjson.dumps({"messages": [_nested(min(size, 60))] * (size // 60 + 1)}),
    lambda size: b"{" + b'"model":"auto",' * size + b'"messages":[{"role":"user","content":"\xc3\xa9"}]}',
    lambda size: b'{"messages":[' + b'{"role":"user","role":"user","content":"x"},' * size + b"1]}",
    lambda size: orjson.dumps({"messages": [USER], **{f"k{at}": "x" for at in range(size)}}),
    lambda size: orjson.dumps({"messages": [USER], "x": [0] * size}),
    lambda size: orjson.dumps({"messages": [USER], "x": ["a"] * size}),
    lambda size: orjson.dumps({"messages": [USER], "x": [[], {}] * size}),
    lambda size: b'{"messages":[],"x":' + b"[" * size + b"]" * size + b"}",
    lambda size: (
        b'{"messages":[],"x":' + b'{"input":' * min(size, 200) + b"1" + b"}" * min(size, 200) + b" " * size + b"}"
    ),
    lambda size: b'{"messages":[{"role":"user","content":"' + b"\\u0041" * size + b'"}]}',
    lambda size: b'{"messages":[{"role":"user","content":"' + b'\\\\\\"' * size + b'"}],"\\u006dodel":"auto"}',
    lambda size: b'{"model":"auto","a":"' + b'\\"model\\":' * size + b'","messages":[{"role":"user","content":"x"}]}',
    lambda size: b'{"model"' + b" " * size + b":" + b"\n" * size + b'"auto","messages":[]}',
    lambda size: b'{"messages":[],"n":' + b"9" * size + b"}",
    lambda size: b'{"a":1,"a":1,"messages":[],"n":' + b"9" * size + b"}",
    lambda size: b" " * size,
    lambda size: b'{"messages":[{"role":"user","content":"' + b"x" * size,
    lambda size: orjson.dumps({"messages": [{"role": "user", "content": [{"type": "x", "data": "A" * 600}] * size}]}),
    lambda size: orjson.dumps({"messages": [{"role": "user", "content": [{"type": "base64", "data": "A" * size}]}]}),
    lambda size: orjson.dumps({"messages": [{"role": "user", "content": [{"data": "data:text/x," + "%41" * size}]}]}),
    lambda size: orjson.dumps({"messages": [USER], "tools": [{"name": "f", "input_schema": {"a": "b"}}] * size}),
]


def _nested(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"type": "text", "text": "x"}
    for _ in range(depth):
        part = {"type": "tool_result", "content": [part]}
    return {"role": "user", "content": [part]}


@pytest.mark.parametrize("body", BODIES, ids=range(len(BODIES)))
def test_bodies(body: Callable[[int], bytes]) -> None:
    """Read and rewritten, without the bound on values."""
    target = paths.read("/v1/chat/completions")
    assert target is not None

    def read(given: bytes) -> None:
        request = parse(target, {}, {}, given, 10**9)
        rewriting.with_model(request, "other")
        rewriting.changed(request, Model("m", "m"), Changes(system="be brief", max_tokens=5))
        for scope in ("all", "latest", "conversation", "tools"):
            request.text(scope)
            request.glued(scope)
            request.opaque(scope)

    assert_linear(body, _refused(read), 2**15)
    assert_linear(body, lambda given: _too_many(given, values_at_most(given) - 1), 2**16)


GOOGLE = "/v1beta/models/auto:generateContent"
OTHERS: list[tuple[str, Callable[[int], Any]]] = [
    ("/v1/completions", lambda size: {"prompt": ["x"] * size}),
    ("/v1/completions", lambda size: {"prompt": [1] * size}),
    ("/v1/completions", lambda size: {"prompt": [["x"], [1]] * size}),
    ("/v1/embeddings", lambda size: {"input": [{"content": [{"type": "text", "text": "x"}]}] * size}),
    ("/v1/embeddings", lambda size: {"input": [{"x": "y"}] * size}),
    ("/v1/responses", lambda size: {"input": [{"type": "function_call_output", "output": "x"}] * size}),
    ("/v1/responses", lambda size: {"input": [{"type": "mcp_call", "output": "x"}] * size}),
    ("/v1/responses", lambda size: {"input": [{"type": "newer", "x": ["y"]}] * size}),
    ("/v1/responses", lambda size: {"input": [{"id": "x"}] * size}),
    ("/v1/responses", lambda size: {"input": "x", "prompt": {"variables": {f"k{at}": "v" for at in range(size)}}}),
    ("/v1/messages", lambda size: {"system": [{"type": "text", "text": "x"}] * size, "messages": [USER]}),
    ("/v1/messages", lambda size: {"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}] * size}),
    ("/v1/responses", lambda size: {"input": [{"type": "reasoning", "encrypted_content": "A" * 600}] * size}),
    (GOOGLE, lambda size: {"contents": [{"parts": [{"text": "x"}]}] * size}),
    (GOOGLE, lambda size: {"contents": {"parts": [{"text": "x"}] * size}}),
    (
        GOOGLE,
        lambda size: {"contents": {"parts": [{"inline_data": {"mime_type": "text/plain", "data": "aA=="}}] * size}},
    ),
    (GOOGLE, lambda size: {"contents": {"parts": [{"functionResponse": {"response": {"x": "y"}}}] * size}}),
    (GOOGLE, lambda size: {"contents": _responding(size)}),
    (GOOGLE, lambda size: {"contents": {"parts": []}} | {f"k{at}": {"x": "y"} for at in range(size)}),
    (
        GOOGLE,
        lambda size: {"contents": {"role": "model", "parts": [{"text": "x", "thoughtSignature": "A" * 600}] * size}},
    ),
]


def _responding(depth: int) -> dict[str, Any]:
    part: dict[str, Any] = {"text": "x"}
    for _ in range(min(depth, 80)):  # orjson writes 254 levels
        part = {"functionResponse": {"parts": [part]}}
    return {"parts": [part] * (depth // 80 + 1)}


@pytest.mark.parametrize(("path", "fields"), OTHERS, ids=range(len(OTHERS)))
def test_bodies_of_the_other_apis(path: str, fields: Callable[[int], Any]) -> None:
    target = paths.read(path)
    assert target is not None
    read = partial(parse, target, {}, {}, most=10**9)
    assert_linear(lambda size: orjson.dumps(fields(size)), _refused(lambda given: read(body=given).text("all")), 2**15)


def test_what_is_changed_in_google_s_calls() -> None:
    target = paths.read(GOOGLE)
    assert target is not None
    parts = [{"text": "t", "thought": True}, {"functionCall": {"name": "f"}, "thought_signature": "s"}, {"text": "x"}]
    made = Changes(system="be brief", max_tokens=5, reasoning_effort="low")

    def change(given: bytes) -> None:
        request = parse(target, {}, {}, given, 10**9)
        rewriting.changed(request, Model("m", "m"), made, 10**9)

    for contents in (
        lambda size: [{"role": "model", "parts": parts}] * size,
        lambda size: [{"role": "model", "parts": parts * size}],
    ):
        assert_linear(lambda size, contents=contents: orjson.dumps({"contents": contents(size)}), change, 2**12)


# Headers


def _headers(pairs: list[tuple[str, bytes]]) -> bytes:
    return pb.HeaderMap(
        headers=[pb.HeaderValue(key=name, raw_value=value) for name, value in pairs]
    ).SerializeToString()


MAPS: list[Callable[[int], list[tuple[str, bytes]]]] = [
    lambda size: [(f"x{at}", b"v") for at in range(size)],
    lambda size: [("content-type", b"v")] * size,
    lambda size: [(name, b"v") for at in range(size) for name in (f"x{at}", f"x{at}")],
    lambda size: [("x" * 200, b"v" * 200)] * size,
    lambda size: [("x", b"v" * size)],
    lambda size: [(f"x-pointsman-{at}", b"\xff") for at in range(size)],
]


@pytest.mark.parametrize("pairs", MAPS, ids=range(len(MAPS)))
def test_headers_of_a_message(pairs: Callable[[int], list[tuple[str, bytes]]]) -> None:
    def read(raw: bytes) -> None:
        headers = Headers(raw)
        headers.own()
        dict(headers)
        headers.get("content-type")

    assert_linear(lambda size: _headers(pairs(size)), read, 2**14)

    def message(size: int) -> bytes:
        part = pb.HttpHeaders(headers=pb.HeaderMap.FromString(_headers(pairs(size))))
        return pb.ProcessingRequest(request_headers=part).SerializeToString()

    assert_linear(message, decode, 2**14)


def test_header_values() -> None:
    for value in ("gzip,", ",", " ", "identity,", "charset", "charset=utf-8;", "charset ", "application/", "a+", '"'):
        for read in (coding, in_utf8, says_json, plainly_json):
            assert_linear(lambda size, value=value: value * size, _refused(read))


@pytest.mark.parametrize(
    "fields",
    [
        lambda size: [(b"x-%d" % at, b"v") for at in range(size)],
        lambda size: [(b"x", b"v")] * size,
        lambda size: [(b"x", b"v" * size)],
        lambda size: [(b"content-length", b"1")] * size,
    ],
)
def test_headers_of_a_stream(fields: Callable[[int], list[tuple[bytes, bytes]]]) -> None:
    first = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/x"), (b"content-type", b"application/grpc")]
    assert_linear(lambda size: first + fields(size), lambda given: RequestHead(given, {}).metadata, 2**14)


@pytest.mark.parametrize("field", [b"\x00\x01a\x01b", b"\x82", b"\x40\x01a\x01b", b"\x20", b"\xbe"])
def test_header_blocks(field: bytes) -> None:
    def read(block: bytes) -> object:
        try:
            return decode_block(new_decoder(10**9), block)
        except Exception as error:  # noqa: BLE001 - a broken block is read in linear time, too
            return error

    assert_linear(lambda size: b"\x40\x01a\x01b" + field * size, read, 2**14)


# Encodings


def _zlib_raw(data: bytes) -> bytes:
    return zlib.compress(data)[2:-4]


ENCODINGS: list[tuple[str, Callable[[int], bytes]]] = [
    ("gzip", lambda size: gzip.compress(b"x" * 16 * size)),
    ("gzip", lambda size: gzip.compress(b"") * size),
    ("gzip", lambda size: gzip.compress(b"x" * size) * 64),
    ("gzip", lambda size: gzip.compress(b"x" * size) + b"\0" * size),
    ("deflate", lambda size: _zlib_raw(b"x" * 16 * size)),
    ("br", lambda size: bytes(brotli.compress(b"x" * 16 * size, quality=1))),
    ("br", lambda size: bytes(brotli.compress(b"", quality=1)) * size),
    ("zstd", lambda size: zstandard.compress(b"x" * 16 * size)),
    ("zstd", lambda size: zstandard.compress(b"x") * size),
    ("zstd", lambda size: zstandard.compress(b"x" * size) * 64),
    ("zstd", lambda size: zstandard.compress(b"x" * 16 * size)[:-1]),
    ("zstd", lambda size: zstandard.compress(bytes(at * 7 % 251 for at in range(size)), 1)),
]


@pytest.mark.parametrize(("name", "body"), ENCODINGS, ids=range(len(ENCODINGS)))
def test_encodings(name: str, body: Callable[[int], bytes]) -> None:
    assert_linear(body, _refused(lambda given: decoded(name, given, 2**30)))
    assert_linear(body, _refused(lambda given: decoded(name, given, MOST)))


# Open bodies


class Holder:
    def late(self) -> None:
        pass


def test_open_bodies() -> None:
    """Many that are held, grow, arrive and are released, or are late."""

    def held(holders: list[Holder]) -> None:
        timers: list[Callable[[], None]] = []
        bodies = Bodies(lambda seconds, call: timers.append(call))
        for holder in holders:
            for _ in range(3):
                assert bodies.hold(holder, 1, 10**9, -1.0)
        for holder in holders[::2]:
            bodies.arrived(holder)
        for holder in holders[::3]:
            bodies.release(holder)
        while timers:
            timers.pop()()
        for holder in holders:
            bodies.release(holder)
        assert bodies.total == 0

    assert_linear(lambda size: [Holder() for _ in range(size)], held)
