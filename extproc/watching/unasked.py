"""Takes out of a stream what its client did not ask for: the usage that we had its server say (OpenAI's
`stream_options.include_usage`).

The server then sends one more chunk at the end, with the usage and no choices, and has `usage: null` in all others.
https://platform.openai.com/docs/api-reference/chat/create (`stream_options`)
"""

from __future__ import annotations

from typing import Final

import orjson

from extproc.watching.sse import Events
from upstream.usage import unasked

LIMIT: Final = 2**20
"""Bytes of one event; a stream with a longer one goes on as it comes from there."""
_SHORT: Final = 16 * 1024
_USAGE: Final = b'"usage"'


class Unasked:
    """One stream. What goes on is every byte as it came, but for the usage."""

    def __init__(self) -> None:
        self._events: Events | None = Events(LIMIT)
        self._open = False  # an event has gone on of which the blank line has not come

    def feed(self, data: bytes, end: bool) -> bytes:
        """Takes the next piece of the stream, `end` with the last one; gives what may go on."""
        events = self._events
        if events is None:
            return data
        released = []
        if self._open:
            rest = data.lstrip(b"\r\n")
            released.append(data[: len(data) - len(rest)])
            data, self._open = rest, not rest
        waiting = events.waiting
        free = 0 if waiting else _free(data)
        if free == len(data) and not (waiting or released):  # whole events, as from most servers
            return data
        released.append(data[:free])
        try:
            released += [unasked(event.raw, event.data) for event in events.feed(data[free:])]
        except ValueError:
            self._events = None
            released.append(events.rest())
        if end or _told(events.held):
            released.append(events.rest())
            self._open = True
        return b"".join(released)


def _told(held: bytearray) -> bool:
    """Whether an event whose blank line has not come goes on as it is. Should trailers come instead, nothing can be
    added to the stream any more."""
    if not held.endswith(b"\n"):
        return held.startswith(b"data: [DONE]")
    if len(held) > _SHORT:  # it is looked at with every piece
        return False
    event = bytes(held)
    data = b"".join([line[5:] for line in event.splitlines() if line.startswith(b"data:")])
    try:
        return unasked(event, data) == event and (data.strip() == b"[DONE]" or orjson.loads(data) is not None)
    except orjson.JSONDecodeError:
        return False


def _free(data: bytes) -> int:
    """How many bytes at the beginning of `data`, where an event begins, are whole events that say nothing of a usage:
    most pieces of most streams, which need not be taken apart. 0 where line ends are not plain line feeds."""
    if b"\r" in data:
        return 0
    word = data.rfind(_USAGE)  # Python searches three times as fast from the end
    if word >= 0:
        word = data.find(_USAGE)
    last = data.rfind(b"\n\n", 0, word) if word >= 0 else data.rfind(b"\n\n")
    return last + 2 if last >= 0 else 0
