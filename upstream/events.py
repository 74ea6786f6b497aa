"""Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html): read, and written.

Sans-IO: bytes go in as they come, lines and events come out. The work is linear in the bytes.
"""

from __future__ import annotations

import orjson

from upstream.endpoint import JSON

DONE = b"data: [DONE]\n\n"
"""What ends a stream of OpenAI's APIs."""

_SILENT = (b":", b"event:", b"id:", b"retry:")  # comments, and fields that carry no data


class Lines:
    """The whole lines of a stream, wherever its pieces were cut."""

    def __init__(self) -> None:
        self._rest = bytearray()

    @property
    def waiting(self) -> int:
        """Bytes of the line that has not ended yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next piece; gives the lines that it completed, each with its line feed."""
        self._rest += data
        if b"\n" not in data:
            return []
        *lines, rest = bytes(self._rest).split(b"\n")
        self._rest = bytearray(rest)
        return [line + b"\n" for line in lines]

    def flush(self) -> bytes:
        """What has come of the last line."""
        rest, self._rest = bytes(self._rest), bytearray()
        return rest


def payload(line: bytes) -> bytes | None:
    """The data in one line; None when it carries none. Raises ValueError for a line of no event stream."""
    if line.startswith(b"data:"):
        return line[5:].strip()
    if line.strip() and not line.startswith(_SILENT):
        raise ValueError("this is no event stream")
    return None


def event(data: JSON, name: str | None = None) -> bytes:
    """One event with `data` in it, and its type's name where it has one."""
    line = b"data: " + orjson.dumps(data) + b"\n\n"
    return line if name is None else b"event: " + name.encode() + b"\n" + line


def comment(data: JSON) -> bytes:
    """A comment, which no client shows: a note for the proxies that the stream passes."""
    return b": " + orjson.dumps(data) + b"\n\n"
