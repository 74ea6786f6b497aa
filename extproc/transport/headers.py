"""Request header blocks: HPACK (RFC 7541) decoding with a bounded memory, and what a gRPC server reads from them.

A peer that has acknowledged HEADER_TABLE_SIZE 0 sends blocks that each decode alone, so equal bytes mean equal headers:
whole blocks are remembered, and single fields too, for blocks that differ only in a trace id. Until then its blocks go
through a `hpack.Decoder` of the connection.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from types import MappingProxyType

from hpack import Decoder, HPACKError, OversizedHeaderListError

from extproc.transport import frames
from extproc.transport.faults import CompressionError, Malformed, TooLarge
from extproc.transport.seam import Handler

_BLOCKS = 1_024  # remembered, each of at most _BLOCK_BYTES; the memory is emptied when full
_BLOCK_BYTES = 2_048
_FIELDS = 4_096
_FIELD_BYTES = 512

_NAME = re.compile(rb":?[!#$%&'*+\-.^_`|~0-9a-z]+")  # RFC 9113 section 8.2.1, which allows no upper case
_BAD_VALUE = re.compile(rb"[\0\r\n]|^[ \t]|[ \t]$")
_CONNECTION_FIELDS = frozenset((b"connection", b"proxy-connection", b"keep-alive", b"transfer-encoding", b"upgrade"))
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}

Field = tuple[bytes, bytes]


class RequestHead:
    """What a server reads from a request's headers. Shared between streams: never changed after it is made."""

    def __init__(self, fields: list[Field], handlers: Mapping[str, Handler]) -> None:
        """Raises Malformed."""
        pseudo, text = _check(fields)
        self._fields = fields
        self.handler: Handler | None = None
        self.refusal = b""  # the header block to answer with, where there is no handler
        self.timeout: float | None = None
        self.length: int | None = None
        method = pseudo.get(b":method")
        path = pseudo.get(b":path")
        if method is None or (method != b"CONNECT" and (not path or b":scheme" not in pseudo)):
            raise Malformed("a pseudo-header is missing")
        if b"content-length" in text:
            length = text[b"content-length"]
            if not length.isdigit() or len(length) > 15:
                raise Malformed("content-length is not a number")
            self.length = int(length)
        kind = text.get(b"content-type", b"").partition(b";")[0].strip()
        if method != b"POST" or path is None:
            self.refusal = frames.http_error(405, "POST")
        elif kind not in (b"application/grpc", b"application/grpc+proto"):
            self.refusal = frames.http_error(415)
        else:
            self._grpc(path.decode("utf-8", "replace"), text.get(b"grpc-timeout"), handlers)

    def _grpc(self, path: str, timeout: bytes | None, handlers: Mapping[str, Handler]) -> None:
        if timeout is not None:
            match = _TIMEOUT.fullmatch(timeout)
            if match is None:
                self.refusal = frames.trailers_only(13, "grpc-timeout cannot be read")
                return
            self.timeout = int(match[1]) * _UNITS[match[2]]
        self.handler = handlers.get(path)
        if self.handler is None:
            self.refusal = frames.trailers_only(12, f"no such method: {path[:200]}")

    @cached_property
    def metadata(self) -> Mapping[str, str]:
        """As `Stream.metadata`; pseudo-headers are left out."""
        merged: dict[str, list[str]] = {}
        for name, value in self._fields:
            if name[0] != 0x3A:
                merged.setdefault(name.decode("ascii"), []).append(value.decode("utf-8", "replace"))
        return MappingProxyType({name: ",".join(values) for name, values in merged.items()})


def check_trailers(fields: Iterable[Field]) -> None:
    """Raises Malformed where a request's trailers may not be such."""
    if _check(fields)[0]:
        raise Malformed("a pseudo-header in trailers")


def _check(fields: Iterable[Field]) -> tuple[dict[bytes, bytes], dict[bytes, bytes]]:
    """Pseudo-headers and the rest, by name."""
    pseudo: dict[bytes, bytes] = {}
    text: dict[bytes, bytes] = {}
    for name, value in fields:
        if name[0] == 0x3A:
            if text or name in pseudo or name not in (b":method", b":scheme", b":path", b":authority"):
                raise Malformed("pseudo-headers in disorder")
            pseudo[name] = value
        else:
            if name in _CONNECTION_FIELDS or (name == b"te" and value != b"trailers"):
                raise Malformed("a connection-specific header")
            if name == b"content-length" and text.get(name, value) != value:
                raise Malformed("content-length twice")
            text[name] = value
    return pseudo, text


def _valid(name: bytes, value: bytes) -> None:
    if _NAME.fullmatch(name) is None or _BAD_VALUE.search(value) is not None:
        raise Malformed("a header name or value with a forbidden character")


class BlockMemory:
    """Decoded blocks and fields of all connections of a server. A block found in `heads` is valid as it is."""

    def __init__(self, handlers: Mapping[str, Handler], max_bytes: int) -> None:
        self._handlers = handlers
        self._max_bytes = max_bytes
        self._decoder = new_decoder(max_bytes)
        self._decoder.header_table_size = self._decoder.max_allowed_table_size = 0
        self._fields: dict[bytes, Field] = {}
        self.heads: dict[bytes, RequestHead] = {}

    def head(self, block: bytes) -> RequestHead:
        """Raises CompressionError, TooLarge, Malformed."""
        head = RequestHead(self.fields(block), self._handlers)
        if len(block) <= _BLOCK_BYTES:
            if len(self.heads) >= _BLOCKS:
                self.heads.clear()
            self.heads[block] = head
        return head

    def fields(self, block: bytes) -> list[Field]:
        """The fields of a block that refers to no dynamic table. Raises as `head`."""
        known = self._fields
        found: list[Field] = []
        size = 0
        malformed: Malformed | None = None
        for raw in _split(block):
            field = known.get(raw)
            if field is None:
                field = decode(self._decoder, raw)[0]
                try:
                    _valid(*field)
                except Malformed as error:  # the rest must still decode: a compression error counts for more
                    malformed = error
                    continue
                if len(raw) <= _FIELD_BYTES:
                    if len(known) >= _FIELDS:
                        known.clear()
                    known[raw] = field
            size += len(field[0]) + len(field[1]) + 32
            if size > self._max_bytes:
                raise TooLarge
            found.append(field)
        if malformed is not None:
            raise malformed
        return found

    def head_of(self, fields: list[Field]) -> RequestHead:
        """The head of what a connection's own decoder made of a block. Raises Malformed."""
        for name, value in fields:
            _valid(name, value)
        return RequestHead(fields, self._handlers)


class Blocks:
    """The header blocks of one connection: HPACK's state, and the block whose CONTINUATION frames are still to come."""

    def __init__(self, memory: BlockMemory, max_bytes: int) -> None:
        self.memory = memory
        self.decoder: Decoder | None = new_decoder(max_bytes)  # None: from here on every block decodes alone
        self.acknowledged = False  # the peer has our SETTINGS
        self.part: bytearray | None = None
        self.number = 0  # the stream of `part`, the flags of its HEADERS, and when they came
        self.flags = 0
        self.since = 0.0

    def acknowledge(self) -> None:
        """The peer's blocks may refer to no table any more, and the next one has to say so."""
        self.acknowledged = True
        if self.decoder is not None:
            self.decoder.max_allowed_table_size = 0

    def head(self, block: bytes) -> RequestHead:
        """A request's head. Raises CompressionError, TooLarge, Malformed."""
        if self.decoder is None:
            return self.memory.heads.get(block) or self.memory.head(block)
        return self.memory.head_of(self.fields(block))

    def fields(self, block: bytes) -> list[Field]:
        """What any block says. Raises CompressionError, TooLarge, Malformed."""
        decoder = self.decoder
        if decoder is None:
            return self.memory.fields(block)
        fields = decode(decoder, block)
        if decoder.header_table_size == 0 and self.acknowledged:
            self.decoder = None
        return fields


def new_decoder(max_bytes: int) -> Decoder:
    """For the blocks of a connection whose peer has not yet heard that we keep no table."""
    return Decoder(max_header_list_size=max_bytes)


def decode(decoder: Decoder, block: bytes) -> list[Field]:
    """All of `block`. Raises CompressionError and TooLarge."""
    try:
        return [(bytes(name), bytes(value)) for name, value in decoder.decode(block, raw=True)]
    except OversizedHeaderListError:
        raise TooLarge from None
    except HPACKError as error:
        raise CompressionError(str(error)) from None


def _split(block: bytes) -> list[bytes]:
    """Cut a block into its field representations (RFC 7541 section 6). Raises CompressionError.

    Only what finds the next field is checked here; an index without an entry is found where the field is decoded.
    """
    out: list[bytes] = []
    position, end = 0, len(block)
    while position < end and block[position] & 0xE0 == 0x20:  # a size update can only say 0
        if block[position] != 0x20:
            raise CompressionError("a table size above the announced one")
        position += 1
    try:
        while position < end:
            start = position
            first = block[position]
            if first & 0x80:  # indexed; 62 static entries take one byte
                if first > 0xBD:
                    raise CompressionError("an index beyond the static table")
                position += 1
            else:
                mask = 0x3F if first & 0x40 else 0x0F
                if first & 0xE0 == 0x20:
                    raise CompressionError("a size update after a field")
                position += 1
                if first & mask == mask:
                    position = _integer(block, position, mask)[1]
                if not first & mask:
                    position = _after_string(block, position)
                position = _after_string(block, position)
            if position > end:
                raise CompressionError("a field ends outside its block")
            out.append(block[start:position])
    except IndexError:
        raise CompressionError("a field ends outside its block") from None
    return out


def _after_string(block: bytes, position: int) -> int:
    size = block[position] & 0x7F
    position += 1
    if size == 0x7F:
        size, position = _integer(block, position, 0x7F)
    return position + size


def _integer(block: bytes, position: int, value: int) -> tuple[int, int]:
    shift = 0
    while True:
        byte = block[position]
        position += 1
        value += (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, position
        if shift > 28:
            raise CompressionError("an integer too long")
