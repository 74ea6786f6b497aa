"""Content encodings of request bodies (RFC 9110, 8.4): undone, so that what the upstream gets is what was read.

Every decoder is bounded by the size of its result, whatever the size of what came: a few kilobytes can hold gigabytes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from typing import Final

from extproc.refusal import Refusal

_CHARSET: Final = re.compile(r"charset\s{0,8}=\s{0,8}\"?([^\s;,\"]{1,40})", re.IGNORECASE)
_UTF8: Final = frozenset(("utf-8", "utf8", "us-ascii", "ascii"))
_PLAIN: Final = re.compile(r"application/json(; ?charset=utf-8)?", re.IGNORECASE)
_JSON: Final = re.compile(r"application/([a-z0-9.+-]{1,80}\+)?json", re.IGNORECASE)


def coding(value: str) -> str | None:
    """The one encoding that a `content-encoding` header names, None for none. Raises `Refusal` (415) for any other."""
    names = [name for part in value.lower().split(",") if (name := part.strip()) not in ("", "identity")]
    if not names:
        return None
    if len(names) > 1 or names[0] not in _DECODERS:
        text = f"The request body must be sent plain or with one of {', '.join(_DECODERS)} as its content-encoding."
        raise Refusal(415, text, "unsupported_encoding")
    return names[0]


def decoded(name: str, body: bytes, most: int) -> bytes:
    """`body` without its encoding, of at most `most` bytes. Raises `Refusal`: 400 when broken, 413 when larger."""
    try:
        result = _DECODERS[name](body, most)
    except _Broken:
        raise Refusal(400, f"The request body is not valid {name}.", "invalid_encoding") from None
    if len(result) > most:
        raise Refusal(413, f"The request body is larger than {most} bytes once it is decoded.", "too_large")
    return result


def in_utf8(content_type: str) -> bool:
    """Whether a body of this type is in UTF-8, the one encoding of JSON between systems (RFC 8259, 8.1)."""
    return all(name.lower() in _UTF8 for name in _CHARSET.findall(content_type))


def plainly_json(content_type: str) -> bool:
    """Whether every reader takes a body of this type for JSON in UTF-8."""
    return content_type == "application/json" or _PLAIN.fullmatch(content_type) is not None


def says_json(content_type: str) -> bool:
    """Whether a body of this type is meant to be JSON, as one without a type is."""
    return not content_type.strip() or _JSON.search(content_type) is not None


class _Broken(Exception):
    pass


def _zlib(window: int) -> Callable[[bytes, int], bytes]:
    def decode(body: bytes, most: int) -> bytes:
        found = bytearray()
        for _ in range(_MEMBERS):
            decoder = zlib.decompressobj(window)
            try:
                found += decoder.decompress(body, most + 1 - len(found))
            except zlib.error:
                raise _Broken from None
            if len(found) > most:
                return bytes(found)
            if not decoder.eof:
                raise _Broken
            body = decoder.unused_data
            if not body:
                return bytes(found)
            if window != _GZIP:  # only gzip has members that follow one another (RFC 1952, 2.2)
                break
        raise _Broken

    return decode


_MEMBERS: Final = 64
"""The most members or frames of one body, since each costs a copy of what follows it."""
_GZIP: Final = 16 + zlib.MAX_WBITS


def _deflate(body: bytes, most: int) -> bytes:
    # "deflate" is the zlib format (RFC 9110, 8.4.1.2), but some senders leave its frame out.
    framed = len(body) >= 2 and body[0] & 0x0F == 8 and (body[0] << 8 | body[1]) % 31 == 0
    return _zlib(zlib.MAX_WBITS if framed else -zlib.MAX_WBITS)(body, most)


def _brotli(body: bytes, most: int) -> bytes:
    import brotli

    decoder = brotli.Decompressor()
    try:
        found = decoder.process(body, output_buffer_limit=most + 1)
        while len(found) <= most and not decoder.is_finished():
            more = decoder.process(b"", output_buffer_limit=most + 1 - len(found))
            if not more:
                raise _Broken
            found += more
    except brotli.error:
        raise _Broken from None
    return bytes(found)


def _zstd(body: bytes, most: int) -> bytes:
    import zstandard

    found = bytearray()
    view = memoryview(body)
    at = 0
    for _ in range(_MEMBERS):
        if at == len(body):
            return bytes(found)
        # A window is memory that the sender asks for; 8 MiB is what RFC 8878 (3.1.1.1.2) asks a decoder to support.
        decoder = zstandard.ZstdDecompressor(max_window_size=8 * 2**20).decompressobj()
        try:
            # A block (RFC 8878, 3.1.1.2) gives 128 KiB at most, and takes three bytes at least: this bounds the excess.
            while at < len(body) and not decoder.eof:
                piece = view[at : at + 64]
                found += decoder.decompress(piece)
                at += len(piece)
                if len(found) > most:
                    return bytes(found)
        except zstandard.ZstdError:
            raise _Broken from None
        if not decoder.eof:
            raise _Broken
        at -= len(decoder.unused_data)
    raise _Broken


_DECODERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _zlib(_GZIP),
    "x-gzip": _zlib(_GZIP),
    "deflate": _deflate,
    "br": _brotli,
    "zstd": _zstd,
}
