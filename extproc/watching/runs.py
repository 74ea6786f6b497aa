"""Events of one stream that differ in one text alone, as nearly all do that a model's words come in: they are cut out
together, and only their texts are read.

Sans-IO. The bytes of such an event are `head`, a text without quotation marks, `tail`.
"""

from __future__ import annotations

import orjson


class EventRun:
    """Successive events that are alike. `raw` are their bytes, `stops` where each ends there; `said` is the text of all
    of them, `sizes` how many of its characters each has."""

    __slots__ = ("raw", "said", "sizes", "stops")

    def __init__(self, raw: bytes, stops: list[int], said: str, sizes: list[int]) -> None:
        self.raw = raw
        self.stops = stops
        self.said = said
        self.sizes = sizes


class Alike:
    """What events have in common that differ in one text alone. `name` is that of their `event:` line."""

    __slots__ = ("_between", "_head", "_lead", "_tail", "_trail", "name")

    def __init__(self, name: str, around: tuple[bytes, bytes], data: tuple[bytes, bytes]) -> None:
        """`around` are the bytes of an event before its data and behind it, `data` those of it before the text and
        behind it."""
        lead, trail = around
        before, after = data
        self.name = name
        self._lead = len(lead)
        self._trail = len(trail)
        self._head = lead + before
        self._tail = after + trail
        self._between = self._tail + self._head

    def data(self, raw: bytes) -> bytes:
        """The data of such an event."""
        return raw[self._lead : len(raw) - self._trail]

    def read(self, data: bytes, at: int, limit: int) -> EventRun | None:
        """The events from `at` on, as long as they are alike, none of more than `limit` bytes; None where the first is
        not.

        What has an escaped quotation mark, or no text, is left to whoever takes events apart.
        """
        first = len(self._head)
        if data[at : at + first] != self._head:
            return None
        between, step, tail = self._between, len(self._between), len(self._tail)
        size = len(data) - at
        if step < size < 2 * step and size <= limit and data[at + size - tail :] == self._tail:
            text = data[at + first : at + size - tail]  # of one event, and nothing else, where it has no quotation mark
            said = None if b'"' in text else _plain(text)
            if said is not None:
                return EventRun(data[at:], [size], said, [len(said)])
        longest = limit - step
        texts: list[bytes] = []
        stops: list[int] = []
        start = at + first
        while True:
            stop = data.find(b'"', start)
            if stop <= start or stop - start > longest:
                break
            goes_on = data[stop : stop + step] == between
            if not goes_on and data[stop : stop + tail] != self._tail:
                break
            texts.append(data[start:stop])
            stops.append(stop + tail - at)
            if not goes_on:
                break
            start = stop + step
        if not texts:
            return None
        said = _plain(b"".join(texts))
        if said is not None:
            sizes = [len(text) for text in texts]
        else:
            read = _strings(texts)
            said, sizes = "".join(read), [len(text) for text in read]
            if not read:
                return None
            del stops[len(read) :]
        return EventRun(data[at : at + stops[-1]], stops, said, sizes)


def _plain(text: bytes) -> str | None:
    """What a string of JSON says that stands for itself; None for one that has escapes, or that is looked at closer."""
    if text.isascii():
        said = text.decode()
        if said.isprintable() and "\\" not in said:
            return said
    return None


def _strings(texts: list[bytes]) -> list[str]:
    """The strings that stand as these in JSON; only the first of them, where one is none."""
    try:
        read: list[str] = orjson.loads(b'["%b"]' % b'","'.join(texts))
        if len(read) == len(texts):
            return read
    except ValueError:
        pass
    read = []
    try:
        for text in texts:
            read.append(orjson.loads(b'"%b"' % text))
    except ValueError:
        pass
    return read
