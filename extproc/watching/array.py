"""The elements of one JSON array that comes piece by piece: how Google's `streamGenerateContent` answers without
`alt=sse`.

Sans-IO, as `extproc.watching.sse`, and in the same terms: each element is an event.
"""

from __future__ import annotations

import re
from typing import Final

import orjson

from extproc.watching.sse import Event, Events
from upstream.endpoint import JSON

_OUTSIDE: Final = re.compile(rb'["{}\[\]]')
_INSIDE: Final = re.compile(rb'["\\]')
_BETWEEN: Final = b" \t\r\n[,"
"""What stands before an element."""


class Elements(Events):
    """The elements of one stream, wherever its pieces were cut: any split gives the same. What stands before an element
    belongs to it. An object that comes in place of the array is its only element."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        self._start = 0  # where the next element begins, in what is held
        self._looked = 0  # what is looked at next there
        self._first = -1  # where the element begins, if it has
        self._depth = 0
        self._quoted = False  # within a string
        self._opened = False  # the array has begun

    def put(self, data: bytes) -> None:
        self._held += data
        if self._over:
            raise self._too_long()

    def next(self) -> Event | None:
        """As `Events.next`. Raises ValueError too when what comes is no array of objects."""
        held, start, at = self._held, self._start, self._looked
        while True:
            mark = (_INSIDE if self._quoted else _OUTSIDE).search(held, at)
            if mark is None:
                at = len(held)
                break
            place, at = mark.start(), mark.end()
            byte = held[place]
            if self._quoted:
                if byte == 0x22:
                    self._quoted = False
                elif at == len(held):  # what the backslash escapes has not come
                    at = place
                    break
                else:
                    at += 1
            elif byte == 0x22:
                self._quoted = self._depth > 0
            elif byte == 0x7B or byte == 0x5B:
                if self._depth == 0:
                    if byte == 0x5B and not self._opened:
                        self._opened = True
                        continue
                    self._first = place
                self._depth += 1
            elif self._depth > 0:
                self._depth -= 1
                if self._depth == 0:
                    if at - start > self._limit:
                        break
                    if held[start : self._first].strip(_BETWEEN):
                        raise ValueError("the answer is no array of objects")
                    self._start = self._looked = at
                    return Event(bytes(held[start:at]), "", bytes(held[self._first : at]))
        del held[:start]
        self._start, self._looked, self._first = 0, at - start, self._first - start
        self._wait()
        return None

    def end(self) -> Event | None:
        """What stands behind the last element; None without any. Raises ValueError where an element has not ended."""
        if self._over:
            raise self._too_long()
        if self._depth or self._held.strip(b" \t\r\n[]"):
            raise ValueError("the answer broke off")
        return Event(self.rest(), "", b"") if self._held else None

    def rest(self) -> bytes:
        del self._held[: self._start]
        self._start, self._looked, self._depth, self._quoted = 0, 0, 0, False
        return super().rest()

    def written(self, event: Event, fields: JSON | None, other: bytes) -> bytes:
        """The element as it was, with `fields`."""
        return event.raw[: len(event.raw) - len(event.data)] + (orjson.dumps(fields) if event.data else b"")
