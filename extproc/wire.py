"""Envoy's external processing messages, to and from bytes. The only file that touches generated protobuf code.

Requests are decoded by protobuf (upb) into small plain things. Replies on the hot path are assembled by hand from
remembered pieces: a protobuf message is the concatenation of its fields, so the bytes of a policy's header changes are
built once and only lengths and bodies are put together for each request. The tests decode every kind of reply with
two independent implementations.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from struct import Struct as Packed
from typing import Any, Final, NamedTuple

from google.protobuf.message import DecodeError
from google.protobuf.struct_pb2 import Struct, Value

from proto import ext_proc_pb2
from signals.reading import Reading
from signals.state.session import HEADERS as SESSION_HEADERS

Pairs = tuple[tuple[str, str], ...]
"""Header names (lower-case) and values, or other short texts, in order."""

OWN: Final = "x-pointsman-"
"""Prefix of the headers that only we may set."""
_OWN: Final = OWN.encode()
_ASIDE: Final = frozenset((
    b"x-original-url", b"x-rewrite-url", b"x-http-method", b"x-http-method-override", b"x-method-override",
))  # fmt: skip
"""Headers that some servers follow instead of the request's own path and method, by which we decide."""
_RARE: Final = _ASIDE | {name.encode() for name in SESSION_HEADERS} | {b"content-encoding", b"upgrade"}
"""Headers that few requests have and that need a closer look."""

CHUNK: Final = 62_000
"""Bytes of body in one message of a streamed body: Envoy's limit for a chunk is just above 62 kB."""


class Kind:
    """What a message carries: its field number in ProcessingRequest; the reply's is one less.

    Plain numbers, like `Mode`: Python 3.11 takes 70 ns to look up an enum's member, which happens thirty times per
    request.
    """

    REQUEST_HEADERS: Final = 2
    RESPONSE_HEADERS: Final = 3
    REQUEST_BODY: Final = 4
    RESPONSE_BODY: Final = 5
    REQUEST_TRAILERS: Final = 6
    RESPONSE_TRAILERS: Final = 7


class Mode:
    """envoy.extensions.filters.http.ext_proc.v3.ProcessingMode.BodySendMode"""

    NONE: Final = 0
    STREAMED: Final = 1
    BUFFERED: Final = 2
    BUFFERED_PARTIAL: Final = 3
    FULL_DUPLEX_STREAMED: Final = 4
    GRPC: Final = 5


class Terms(NamedTuple):
    """What Envoy announces in the first message of a stream. `no_wait`: bodies come before headers are answered.
    `observing`: Envoy ignores replies, so none must be sent."""

    request_body: int
    response_body: int
    no_wait: bool
    observing: bool


class Headers(Mapping[str, str]):
    """The headers of one message. The place of each value is found once; a value is decoded only when it is read.

    Names are lower-case; the values of a repeated name are joined with `,`.
    """

    __slots__ = ("_again", "_at", "_names", "_raw", "_read", "plain")

    def __init__(self, raw: bytes) -> None:
        """`raw` is a serialized HeaderMap, its fields in order. Raises ValueError or IndexError when it is not one.

        `plain` says that all is as Envoy writes it: values in `raw_value`, which may hold any bytes, and ASCII names.
        """
        self._raw = raw
        self._read: dict[str, str] = {}  # what was asked for
        # Where the fields after a name begin, and the same for names that have been there already.
        found: dict[bytes, int] = {}
        self._at = found
        self._again: dict[bytes, list[int]] = {}
        self.plain = True
        at = 0
        end = len(raw)
        while at < end:
            # A short name with a short value, as nearly all are: each length is then one byte.
            here = at + 4 + (raw[at + 3] if at + 4 <= end else end)
            stop = at + 2 + raw[at + 1]
            name = raw[at + 4 : here]
            usual = here + 1 < stop <= end and raw[here] == 0x1A and here + 2 + raw[here + 1] == stop
            if usual and name not in found and raw[at] == 0x0A and raw[at + 2] == 0x0A:
                found[name] = here
                at = stop
            else:
                at = self._walk(at)
        if at != end:
            raise ValueError("a map of headers that breaks off")
        self._names = b"\n".join(found)
        if not self._names.isascii():
            self.plain = False

    def _walk(self, at: int) -> int:
        """Finds the name and the value of the header at `at`, in whatever form; returns where it ends."""
        raw = self._raw
        known = raw[at] == 0x0A
        size, at = _length_at(raw, at + 1)
        stop = at + size
        name = b""
        if at < stop and raw[at] == 0x0A:
            size, start = _length_at(raw, at + 1)
            at = start + size
            name = raw[start:at]
        if name in self._at:
            self._again.setdefault(name, []).append(at)
        else:
            self._at[name] = at
        values = 0
        while at < stop:
            tag = raw[at]
            size, at = _length_at(raw, at + 1)
            at += size
            values += 1
            if tag != 0x1A or values > 1:
                self.plain = False
                known = known and (tag == 0x12 or tag == 0x1A)
        if at != stop or not known:
            raise ValueError("not a map of headers")
        return stop

    def get(self, name: str, default: Any = None) -> Any:
        value = self._read.get(name)
        if value is not None:
            return value
        key = name.encode()
        at = self._at.get(key, -1)
        if at < 0:
            return default
        value = _value(self._raw, at)
        if self._again and (again := self._again.get(key)) is not None:
            value = ",".join((value, *[_value(self._raw, at) for at in again]))
        self._read[name] = value
        return value

    def __getitem__(self, name: str) -> str:
        value: str | None = self.get(name)
        if value is None:
            raise KeyError(name)
        return value

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and name.encode() in self._at

    def usual(self) -> bool:
        """Whether none of the rare headers is there that need a closer look."""
        return self._judged()[0]

    def own(self) -> list[str]:
        """The names in the message that only we may set, and those of headers that name another path or method."""
        return list(self._judged()[1])

    def _judged(self) -> tuple[bool, tuple[str, ...]]:
        """What the names tell. A gateway's requests have the same few sets of names, so this is remembered."""
        names = self._names
        judged = _JUDGED.get(names)
        if judged is None:
            own = [name.decode() for name in self._at if name in _ASIDE or name.startswith(_OWN)]
            judged = _RARE.isdisjoint(self._at), tuple(own)
            if len(names) <= _LONGEST:
                if len(_JUDGED) >= _SETS:  # a client may have made them up
                    _JUDGED.clear()
                _JUDGED[names] = judged
        return judged

    def __iter__(self) -> Iterator[str]:
        return iter([name.decode() for name in self._at])

    def __len__(self) -> int:
        return len(self._at)

    def __repr__(self) -> str:
        return f"Headers({list(self)})"  # names only: values may be secret


def headers_of(pairs: Iterable[tuple[str, str]]) -> Headers:
    """The headers of a message with these names and values, as Envoy sends them."""
    return Headers(_header_map(pairs))


def _header_map(pairs: Iterable[tuple[str, str]]) -> bytes:
    return b"".join(_field(0x0A, _field(0x0A, n.encode()) + _field(0x1A, v.encode())) for n, v in pairs)


_JUDGED: Final[dict[bytes, tuple[bool, tuple[str, ...]]]] = {}
_SETS: Final = 1024  # sets of headers, or of their names, that are remembered
_LONGEST: Final = 2048  # bytes of one of them


def _value(raw: bytes, at: int) -> str:
    """The text of the field at `at`: `value` (field 2) or `raw_value` (field 3); '' where another header begins."""
    if at == len(raw) or raw[at] == 0x0A:
        return ""
    size = raw[at + 1]
    at += 2
    if size > 127:
        size, at = _length_at(raw, at - 1)
    value = raw[at : at + size]
    return value.decode() if value.isascii() else value.decode("utf-8", "replace")


def _length_at(raw: bytes, at: int) -> tuple[int, int]:
    """The number that begins at `at`, and where it ends. IndexError when the bytes end before it does."""
    number = shift = 0
    while True:
        byte = raw[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7


class EnvoyMessage:
    """One decoded message. `headers` is empty but for headers and trailers; `end` says that no more follows."""

    __slots__ = ("_around", "_beside", "body", "end", "headers", "kind")

    def __init__(self, kind: int, headers: Headers, body: bytes, end: bool, around: bytes) -> None:
        self.kind = kind
        self.headers = headers
        self.body = body
        self.end = end
        self._around = around  # a ProcessingRequest with what stands beside headers or body
        self._beside: tuple[Terms, Mapping[str, Any]] | None = None  # the same, once it was asked for

    def terms(self) -> Terms:
        """What was announced; all zero unless this is the stream's first message."""
        return self._read()[0]

    def attributes(self) -> Mapping[str, Any]:
        """What Envoy itself knows: filter metadata by namespace, and the attributes it was told to send."""
        return self._read()[1]

    def _read(self) -> tuple[Terms, Mapping[str, Any]]:
        beside = self._beside
        if beside is None:
            around = self._around
            # Attributes differ from request to request: there is no use in remembering those.
            beside = self._beside = (_announced if len(around) <= _SHORT else _announced.__wrapped__)(around)
        return beside


_SHORT: Final = 64
"""Bytes beside headers or body up to which they are remembered: without attributes they are always the same few."""


@lru_cache(maxsize=64)
def _announced(around: bytes) -> tuple[Terms, Mapping[str, Any]]:
    message = ext_proc_pb2.ProcessingRequest.FromString(around)
    if message.WhichOneof("request") is not None:
        raise DecodeError("a second of the kinds in one message")
    config = message.protocol_config
    terms = Terms(
        config.request_body_mode,
        config.response_body_mode,
        config.send_body_without_waiting_for_header_response,
        message.observability_mode,
    )
    found = {name: _plain(value) for name, value in message.attributes.items()}
    if message.HasField("metadata_context"):
        found |= {name: _plain(value) for name, value in message.metadata_context.filter_metadata.items()}
    return terms, found


_NO_HEADERS: Final = Headers(b"")
NO_MESSAGE: Final = EnvoyMessage(0, _NO_HEADERS, b"", False, b"")
"""Stands for a message before there is one."""
_KINDS: Final = {name.lower(): kind for name, kind in vars(Kind).items() if isinstance(kind, int)}
_LEADS: Final = {kind << 3 | 2: kind for kind in _KINDS.values()}
"""Kinds by the tag that a message begins with when fields are in order, as Envoy's are."""


def decode(data: bytes) -> EnvoyMessage | None:
    """The message in `data`; None for a kind that is not known here. Raises ValueError when the bytes are broken."""
    try:
        usual = _usual(data)
    except (IndexError, ValueError, DecodeError):
        usual = None
    return _any(data) if usual is None else usual


def _usual(data: bytes) -> EnvoyMessage | None:
    """A message of the shape that Envoy writes, cut out of its bytes; None for any other."""
    kind = _LEADS.get(data[0])
    if kind is None:
        return None
    size, start = data[1], 2
    if size > 127:
        size, start = _length_at(data, 1)
    stop = start + size
    if size < 2 or stop > len(data) or data[start] != 0x0A:
        return None
    size = data[start + 1]
    if size < 128:
        start += 2
    else:
        size, start = _length_at(data, start + 1)
    if start + size > stop:  # compiled, a slice that ends before it begins is an error
        return None
    inner = data[start : start + size]
    rest = data[start + size : stop]
    around = data[stop:]
    if len(around) > _SHORT:
        return None
    if around:
        _announced(around)
    if kind == Kind.REQUEST_BODY or kind == Kind.RESPONSE_BODY:
        return EnvoyMessage(kind, _NO_HEADERS, inner, rest != b"", around) if rest in _BODY_ENDS else None
    if kind > Kind.RESPONSE_HEADERS or rest not in _HEADER_ENDS:
        return None
    headers = Headers(inner)
    return EnvoyMessage(kind, headers, b"", rest != b"", around) if headers.plain else None


_BODY_ENDS: Final = (b"", b"\x10\x01")
_HEADER_ENDS: Final = (b"", b"\x18\x01")


def _any(data: bytes) -> EnvoyMessage | None:
    try:
        raw = ext_proc_pb2.ProcessingRequest.FromString(data)
    except DecodeError as error:
        raise ValueError("not an ext_proc ProcessingRequest") from error
    which = raw.WhichOneof("request")
    if which is None:
        return None
    kind = _KINDS[which]
    part = getattr(raw, which)
    part.DiscardUnknownFields()
    headers, body, end = _NO_HEADERS, b"", True
    if kind == Kind.REQUEST_BODY or kind == Kind.RESPONSE_BODY:
        body, end = part.body, part.end_of_stream
    elif kind == Kind.REQUEST_HEADERS or kind == Kind.RESPONSE_HEADERS:
        headers, end = Headers(part.headers.SerializeToString()), part.end_of_stream
    else:
        headers = Headers(part.trailers.SerializeToString())
    raw.ClearField(which)
    return EnvoyMessage(kind, headers, body, end, raw.SerializeToString())


def _plain(value: Struct | Value) -> Any:
    if isinstance(value, Struct):
        return {key: _plain(item) for key, item in value.fields.items()}
    kind = value.WhichOneof("kind")
    if kind == "struct_value":
        return _plain(value.struct_value)
    if kind == "list_value":
        return [_plain(item) for item in value.list_value.values]
    return None if kind in (None, "null_value") else getattr(value, kind)


# Replies. Tags are written out: field number << 3 | wire type (2: length-delimited, 0: varint, 1: 64 bits).


_SMALL: Final = [
    *(bytes((number,)) for number in range(128)),
    *(bytes((number & 127 | 128, number >> 7)) for number in range(128, 4096)),
]
"""Small numbers as varints; those under 128, as all tags are, are one byte."""


def _varint(number: int) -> bytes:
    if number < 4096:
        return _SMALL[number]
    out = bytearray()
    while number > 127:
        out.append(number & 127 | 128)
        number >>= 7
    out.append(number)
    return bytes(out)


def _field(tag: int, payload: bytes) -> bytes:
    return b"%b%b%b" % (_SMALL[tag], _varint(len(payload)), payload)


def _opening(tags: bytes, size: int) -> bytes:
    """The tags and lengths of fields inside each other, the outermost first, around `size` bytes."""
    opening = b""
    for tag in reversed(tags):
        opening = b"%b%b%b" % (_SMALL[tag], _varint(len(opening) + size), opening)
    return opening


def _option(name: str, value: str) -> bytes:
    """One set_headers entry: overwrite (append_action 2), the text in raw_value."""
    header = _field(0x0A, name.encode()) + _field(0x1A, value.encode())
    return _field(0x0A, _field(0x0A, header) + b"\x18\x02")


def _options(headers: Pairs) -> bytes:
    made = _MADE.get(headers)
    if made is None:
        made = b"".join(_option(name, value) for name, value in headers)
        if len(made) <= _LONGEST:
            if len(_MADE) >= _SETS:
                _MADE.clear()
            _MADE[headers] = made
    return made


@lru_cache(maxsize=4096)
def _length(size: int) -> bytes:
    return _option("content-length", str(size))


def _common(kind: int, common: bytes) -> bytes:
    return _field((kind - 1) << 3 | 2, _field(0x0A, common) if common else b"")


def _with_body(kind: int, head: bytes, body: bytes, after: bytes = b"") -> bytes:
    """A CommonResponse whose last field opens in `head` and holds `body`, which is copied once; `after` follows."""
    size = len(head) + len(body)
    length = _varint(size)
    return b"%b%b\x0a%b%b%b%b" % (
        _SMALL[(kind - 1) << 3 | 2], _varint(size + len(length) + 1), length, head, body, after
    )  # fmt: skip


def _setting(kind: int, headers: Pairs, reroute: bool) -> bytes:
    key = (kind, headers, reroute)
    made = _SET.get(key)
    if made is None:
        mutation = _field(0x12, _options(headers)) if headers else b""
        made = _common(kind, mutation + (b"\x28\x01" if reroute else b""))
        if len(made) <= _LONGEST:
            if len(_SET) >= _SETS:
                _SET.clear()
            _SET[key] = made
    return made


# Some of what is set is a client's: a path in its plain form. So what is remembered is bounded in bytes, too.
_MADE: dict[Pairs, bytes] = {}
_SET: dict[tuple[int, Pairs, bool], bytes] = {}


def reply(  # noqa: PLR0913
    kind: int,
    headers: Pairs = (),
    remove: Sequence[str] = (),
    reroute: bool = False,
    body: bytes | None = None,
    extra: bytes = b"",
) -> bytes:
    """The answer to one message of headers or body: go on, with these changes; `extra` is more of the answer.

    Every header is overwritten, never appended. `reroute` drops Envoy's cached choice of route, which it heeds only
    when a header changes too. `body` replaces a buffered body and sets `content-length` to match: without it Envoy
    answers 500.
    """
    if body is None and not remove:
        return _setting(kind, headers, reroute) + extra
    mutation = _options(headers)
    if body is not None:
        mutation += _length(len(body))
    if remove:
        mutation += b"".join(_field(0x12, name.encode()) for name in remove)
    common = b"\x12%b%b%b" % (_varint(len(mutation)), mutation, b"\x28\x01" if reroute else b"")
    if body is None:
        return _common(kind, common) + extra
    length = _varint(len(body))
    head = b"%b\x1a%b\x0a%b" % (common, _varint(len(body) + len(length) + 1), length)
    return _with_body(kind, head, body, extra)


def clear(kind: int) -> bytes:
    """The answer to one streamed body message: drop its bytes."""
    return _common(kind, b"\x1a\x02\x10\x01")


def replace(kind: int, body: bytes) -> bytes:
    """The answer to one streamed body message: put these bytes in its place."""
    return _with_body(kind, _opening(b"\x1a\x0a", len(body)), body)


def chunks(kind: int, body: bytes, end: bool) -> Iterator[bytes]:
    """The messages that give `body` back in full-duplex mode; the last one ends the body when `end` is set."""
    last = max(len(body) - 1, 0) // CHUNK
    for index in range(last + 1):
        chunk = body[index * CHUNK : (index + 1) * CHUNK]
        lead = _lead(chunk, end and index == last)
        yield _with_body(kind, _opening(b"\x1a\x1a", len(lead) + len(chunk)) + lead, chunk)


def _lead(chunk: bytes, end: bool) -> bytes:
    """A StreamedBodyResponse up to the bytes of its chunk."""
    return (b"\x10\x01" if end else b"") + (_opening(b"\x0a", len(chunk)) if chunk else b"")


def trailers(kind: int) -> bytes:
    """The answer to trailers: go on."""
    return _field((kind - 1) << 3 | 2, b"")


BUFFERING = ext_proc_pb2.ProcessingResponse(
    mode_override=ext_proc_pb2.ProcessingMode(
        response_header_mode=ext_proc_pb2.ProcessingMode.SEND, request_body_mode=ext_proc_pb2.ProcessingMode.BUFFERED
    )
).SerializeToString()
"""To be added to an answer to request headers: asks Envoy to send this request's body in one piece after all.

Heeded only where the filter sets `allow_mode_override`; response headers keep coming.
"""
WATCHING = ext_proc_pb2.ProcessingResponse(
    mode_override=ext_proc_pb2.ProcessingMode(
        response_header_mode=ext_proc_pb2.ProcessingMode.SEND, response_body_mode=ext_proc_pb2.ProcessingMode.STREAMED
    )
).SerializeToString()
"""To be added to the answer to response headers: asks Envoy to show this answer's body. Heeded like `BUFFERING`."""
HANDING_OVER = ext_proc_pb2.ProcessingResponse(
    mode_override=ext_proc_pb2.ProcessingMode(
        response_header_mode=ext_proc_pb2.ProcessingMode.SEND,
        response_body_mode=ext_proc_pb2.ProcessingMode.FULL_DUPLEX_STREAMED,
        response_trailer_mode=ext_proc_pb2.ProcessingMode.SEND,
    )
).SerializeToString()
"""The same for an answer that goes on only as we give it back: its text is watched."""


def immediate(status: int, headers: Pairs, body: bytes, details: str) -> bytes:
    """An answer of our own to the client, whole. `details` shows in Envoy's access log (RESPONSE_CODE_DETAILS)."""
    parts = (
        _field(0x0A, b"\x08" + _varint(status)),
        _field(0x12, _options(headers)),
        _field(0x1A, body),
        _field(0x2A, details.encode()),
    )
    return _field(0x3A, b"".join(parts))


def stream_headers(status: int, headers: Pairs, end: bool = False) -> bytes:
    """The start of an answer of our own that is sent piece by piece."""
    fields = ((":status", str(status)), *headers)
    return _field(0x5A, _field(0x0A, _field(0x0A, _header_map(fields)) + (b"\x18\x01" if end else b"")))


def stream_body(chunk: bytes, end: bool) -> bytes:
    """One piece of such an answer, of at most CHUNK bytes."""
    lead = _lead(chunk, end)
    return b"".join((_opening(b"\x5a\x12", len(lead) + len(chunk)), lead, chunk))


_DOUBLE: Final = Packed("<d").pack


@lru_cache(maxsize=4096)
def _number(name: str) -> bytes:
    """A Struct's field up to the eight bytes of its number."""
    key = _field(0x0A, name.encode())
    return b"\x0a" + _varint(len(key) + 11) + key + b"\x12\x09\x11"


def _member(name: str, value: bytes) -> bytes:
    return _field(0x0A, _field(0x0A, name.encode()) + _field(0x12, value))


def texts(pairs: Pairs) -> bytes:
    """The part of `metadata` that is the same for every request of a decision."""
    return b"".join(_member(name, _field(0x1A, value.encode())) for name, value in pairs)


_NAMESPACE: Final = _field(0x0A, b"pointsman")
_SIGNALS: Final = _field(0x0A, b"signals")


def metadata(fixed: bytes, tokens: int | None, readings: Mapping[str, Reading]) -> bytes:
    """To be added to any answer: dynamic metadata in the namespace `pointsman`.

    `fixed` comes from `texts`. `tokens` becomes `estimated_input_tokens`, the scores of `readings` a struct `signals`.
    """
    struct = fixed
    if tokens is not None:
        struct += _number("estimated_input_tokens") + _DOUBLE(tokens)
    scores = []
    last, packed = None, b""
    for name, one in readings.items():
        if one is not last:  # one reading may be that of many signals
            last, packed = one, b"" if one.score is None else _DOUBLE(one.score)
        if packed:
            scores.append(_number(name) + packed)
    if scores:
        inner = b"".join(scores)
        value = b"%b%b%b" % (_SIGNALS, _opening(b"\x12\x2a", len(inner)), inner)
        struct += _opening(b"\x0a", len(value)) + value
    # DynamicMetadata is a Struct (8) of fields (1), each with a key (1) and a Value (2) that holds a Struct (5).
    size = len(struct)
    length = _varint(size)
    value = b"%b\x12%b\x2a%b" % (_NAMESPACE, _varint(size + len(length) + 1), length)
    size += len(value)
    length = _varint(size)
    return b"\x42%b\x0a%b%b%b" % (_varint(size + len(length) + 1), length, value, struct)
