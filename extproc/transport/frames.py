"""HTTP/2 frames (RFC 9113 section 4 and 6) and the constant bytes of gRPC replies."""

from __future__ import annotations

import struct
from typing import Final

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

# `Final` with a literal: mypyc compiles these names to the numbers themselves, anything else to a look-up for each use.
DATA: Final = 0
HEADERS: Final = 1
PRIORITY: Final = 2
RST_STREAM: Final = 3
SETTINGS: Final = 4
PUSH_PROMISE: Final = 5
PING: Final = 6
GOAWAY: Final = 7
WINDOW_UPDATE: Final = 8
CONTINUATION: Final = 9

ACK: Final = 0x1
END_STREAM: Final = 0x1
END_HEADERS: Final = 0x4
PADDED: Final = 0x8
PRIORITIZED: Final = 0x20

HEADER_TABLE_SIZE: Final = 1
ENABLE_PUSH: Final = 2
MAX_CONCURRENT_STREAMS: Final = 3
INITIAL_WINDOW_SIZE: Final = 4
MAX_FRAME_SIZE: Final = 5
MAX_HEADER_LIST_SIZE: Final = 6

NO_ERROR: Final = 0x0
PROTOCOL_ERROR: Final = 0x1
FLOW_CONTROL_ERROR: Final = 0x3
SETTINGS_TIMEOUT: Final = 0x4
STREAM_CLOSED: Final = 0x5
FRAME_SIZE_ERROR: Final = 0x6
REFUSED_STREAM: Final = 0x7
CANCEL: Final = 0x8
COMPRESSION_ERROR: Final = 0x9
ENHANCE_YOUR_CALM: Final = 0xB

MAX_WINDOW: Final = 2_147_483_647  # 2**31 - 1
MAX_ID: Final = 2_147_483_647

read_head = struct.Struct(">IBI").unpack_from  # length << 8 | type, flags, stream id
read_prefix = struct.Struct(">BI").unpack_from  # of a gRPC message: compressed flag, length
read_setting = struct.Struct(">HI").iter_unpack
_pack_head = struct.Struct(">IBI").pack


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """One whole frame."""
    return _pack_head(len(payload) << 8 | kind, flags, stream) + payload


def head(kind: int, flags: int, stream: int, size: int) -> bytes:
    """The nine bytes before a payload of `size`."""
    return _pack_head(size << 8 | kind, flags, stream)


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, increment.to_bytes(4, "big"))


def rst_stream(stream: int, code: int) -> bytes:
    return frame(RST_STREAM, 0, stream, code.to_bytes(4, "big"))


def goaway(last_stream: int, code: int, debug: str = "") -> bytes:
    return frame(GOAWAY, 0, 0, struct.pack(">II", last_stream, code) + debug.encode())


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", *item) for item in values.items()))


def _literal(name: bytes, value: bytes) -> bytes:
    """A header field without indexing and without Huffman coding (RFC 7541 section 6.2.2)."""
    return b"\x00" + _string(name) + _string(value)


def _string(text: bytes) -> bytes:
    size = len(text)
    if size < 127:
        return bytes((size,)) + text
    out = bytearray((127,))
    size -= 127
    while size >= 128:
        out.append(size & 0x7F | 0x80)
        size >>= 7
    out.append(size)
    return bytes(out) + text


TABLE_SIZE_0 = b"\x20"  # our encoder keeps no table, whatever the peer allows: it says so in its first block

_OK = b"\x88"  # :status 200, from the static table
_GRPC = _literal(b"content-type", b"application/grpc") + _literal(b"grpc-accept-encoding", b"identity")

REPLY = _OK + _GRPC
"""Header block before the first message of an answer."""


def http_error(status: int, allow: str = "") -> bytes:
    """Header block that answers what is not gRPC."""
    extra = _literal(b"allow", allow.encode()) if allow else b""
    return _literal(b":status", b"%d" % status) + extra


def trailers(status: int, message: str = "") -> bytes:
    """Header block that ends an answer: grpc-status, and grpc-message percent-encoded (gRPC over HTTP/2, Responses)."""
    block = _literal(b"grpc-status", b"%d" % status)
    if not message:
        return block
    text = message.encode("utf-8", "replace")[:1024]
    safe = b"".join(b"%c" % byte if 0x20 <= byte <= 0x7E and byte != 0x25 else b"%%%02X" % byte for byte in text)
    return block + _literal(b"grpc-message", safe)


def trailers_only(status: int, message: str = "") -> bytes:
    """Header block of an answer without any message."""
    return REPLY + trailers(status, message)


_reply_and_data = struct.Struct(f">IBI{len(REPLY)}sIBIBI").pack
_REPLY_WORD = len(REPLY) << 8 | HEADERS


def reply_and_data(stream: int, size: int) -> bytes:
    """What goes before the first message of an answer: the HEADERS frame, the DATA frame's head and the gRPC prefix."""
    return _reply_and_data(_REPLY_WORD, END_HEADERS, stream, REPLY, (size + 5) << 8, 0, stream, 0, size)


data_and_prefix = struct.Struct(">IBIBI").pack  # (size + 5) << 8, 0, stream, 0, size

END_OK = trailers(0)
_end_ok = struct.Struct(f">IBI{len(END_OK)}s").pack
_END_OK_WORD = len(END_OK) << 8 | HEADERS


def end_ok(stream: int) -> bytes:
    """The HEADERS frame with grpc-status 0 that ends a stream."""
    return _end_ok(_END_OK_WORD, END_HEADERS | END_STREAM, stream, END_OK)
