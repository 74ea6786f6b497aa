"""Server-sent events (WHATWG HTML, 9.2.6 "Interpreting an event stream"): cut out of a stream as they came, written.

Sans-IO: bytes go in as they come, events come out. The work is linear in the bytes, and one event is bounded.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from extproc.watching.runs import Alike, EventRun
from upstream.endpoint import JSON
from upstream.events import event as written

_LINE_END: Final = rb"(?:\r\n|\n|\r(?=[^\n]))"  # a carriage return at the end may become CRLF: the next byte tells
_BLANK: Final = re.compile(_LINE_END + _LINE_END)
_PLAIN: Final = re.compile(rb"(?:event: ([^\r\n]*)\n)?data: ([^\r\n]*)\n\n")
"""An event as servers write it."""
_OVERLAP: Final = 4
"""Bytes of an event's end that may have come already while the rest of it has not."""
NAME: Final = re.compile("[a-z_.]{0,64}")
"""Names of events; they cannot tell a reader anything."""
BOM: Final = b"\xef\xbb\xbf"
"""What a stream may begin with."""


class Event(NamedTuple):
    """One event of a stream, or a comment of its own."""

    raw: bytes
    """Exactly as it came, with its blank line. Line ends before the event belong to it."""
    name: str
    """Of its `event:` line; '' without."""
    data: bytes
    """Its `data:` lines, joined by line feeds; b'' for comments and whatever else has none."""
    other: bytes = b""
    """Its other lines (comments, ids, unknown fields), joined by line feeds: clients ignore them, but a reader of the
    bytes sees them."""


class Events:
    """The events of one stream, wherever its pieces were cut: any split gives the same events.

    `limit`: bytes that one event may have.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._data = b""  # of the last piece, and of what was held before it
        self._at = 0  # where the next event begins there
        self._held = bytearray()
        self._searched = 0
        self._begun = False
        self._over = False

    def feed(self, data: bytes) -> list[Event]:
        """Takes the next piece; gives the events that it completed.

        Raises ValueError once an event is longer than the limit. The events before it are still given, so the error
        may come with the next call, or with `end`. Nothing is lost: `rest` has the bytes.
        """
        self.put(data)
        found: list[Event] = []
        try:
            while (event := self.next()) is not None:
                found.append(event)
        except ValueError:
            if not found:
                raise
        return found

    def put(self, data: bytes) -> None:
        """Takes the next piece, whose events `next` and `run` give; all of the one before must have been taken.

        Raises ValueError once an event is longer than the limit.
        """
        held = self._held
        if held or self._over:
            held += data
            if self._over:
                raise self._too_long()
            if _BLANK.search(held, self._searched) is None:
                self._wait()
                return
            data = bytes(held)
            held.clear()
        self._data, self._at = data, 0

    def next(self) -> Event | None:
        """The next event that is whole; None where none is. Raises ValueError when it is longer than the limit."""
        data, start = self._data, self._at
        if start == len(data):
            return None
        plain = _PLAIN.match(data, start)
        match = _BLANK.search(data, start) if plain is None else plain
        if match is None or match.end() - start > self._limit:
            self._held += data[start:]
            self._data, self._at = b"", 0
            self._wait()
            return None
        self._at = end = match.end()
        raw = data[start:end]
        if plain is None:
            return self._read(raw)
        self._begun = True
        name, text = plain.groups()
        return Event(raw, name.decode(errors="replace") if name else "", text)

    def run(self, like: Alike) -> EventRun | None:
        """The next events, as long as they are whole and alike; None where the next one is not."""
        run = like.read(self._data, self._at, self._limit)
        if run is not None:
            self._at += len(run.raw)
        return run

    @property
    def held(self) -> bytearray:
        """What has come of an event whose end has not; not to be changed."""
        return self._held

    @property
    def waiting(self) -> bool:
        """Whether some of an event has come whose end has not, or one was too long."""
        return bool(self._held) or self._over

    def _wait(self) -> None:
        """Looks at what is left of the piece. Raises ValueError when it is longer than the limit."""
        left = len(self._held)
        self._searched = max(0, left - _OVERLAP)
        if left > self._limit:
            self._over = True
            raise self._too_long()

    def end(self) -> Event | None:
        """What has come of an event when the stream ends; None without any. Clients that read line by line show it.

        Raises ValueError when an event was too long.
        """
        if self._over:
            raise self._too_long()
        return self._read(self.rest()) if self._held else None

    def rest(self) -> bytes:
        """Takes the bytes that were not given, which at the end of a piece are those of no whole event."""
        rest = self._data[self._at :] + self._held
        self._data, self._at = b"", 0
        self._held.clear()
        self._searched = 0
        return rest

    def written(self, event: Event, fields: JSON | None, other: bytes) -> bytes:
        """The event with `fields` (None: with the data that it has) and `other` in place of its other lines."""
        name = event.name if NAME.fullmatch(event.name) else ""
        lead = other + b"\n" if other else b""
        if fields is not None:
            return lead + encode(name, fields)
        return lead + (encode(name, event.data) if event.data else b"")

    def _too_long(self) -> ValueError:
        return ValueError(f"an event of the answer is longer than {self._limit} bytes")

    def _read(self, raw: bytes) -> Event:
        text = raw
        if not self._begun:
            self._begun = True
            text = raw.removeprefix(BOM)
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        name = b""
        data: list[bytes] = []
        other: list[bytes] = []
        for line in text.split(b"\n"):
            field, _, value = line.partition(b":")
            if value.startswith(b" "):
                value = value[1:]
            if field == b"data":
                data.append(value)
            elif field == b"event":
                name = value
            elif line:
                other.append(line)
        return Event(raw, name.decode(errors="replace"), b"\n".join(data), b"\n".join(other))


def encode(name: str, fields: JSON | bytes) -> bytes:
    """One event: `fields` as JSON, or the data itself; `name` '' for an event without."""
    if not isinstance(fields, bytes):
        return written(fields, name or None)
    lines = b"data: " + fields.replace(b"\n", b"\ndata: ") + b"\n\n"
    return b"event: " + name.encode() + b"\n" + lines if name else lines
