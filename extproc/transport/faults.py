"""What a peer can do wrong, as exceptions."""

from __future__ import annotations


class Fault(Exception):
    """A connection error (RFC 9113 section 5.4.1)."""

    def __init__(self, code: int, why: str) -> None:
        super().__init__(why)
        self.code = code
        self.why = why


class CompressionError(Exception):
    """A block that does not decode: the connection ends with COMPRESSION_ERROR."""


class TooLarge(Exception):
    """A header list beyond `TransportLimits.max_header_bytes`."""


class Malformed(Exception):
    """A request that RFC 9113 section 8.1.1 calls malformed: its stream ends with PROTOCOL_ERROR."""
