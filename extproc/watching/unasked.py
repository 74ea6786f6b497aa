"""Takes out of a stream what its client did not ask for: the usage that we had its server say (OpenAI's
`stream_options.include_usage`).

The server then sends one more chunk at the end, with the usage and no choices, and has `usage: null` in all others.
https://platform.openai.com/docs/api-reference/chat/create (`stream_options`)
"""

from __future__ import annotations

from typing import Final

from extproc.watching.sse import Events
from upstream.usage import unasked

LIMIT: Final = 2**20
"""Bytes of one event; a stream with a longer one goes on as it comes from there."""


class Unasked:
    """One stream. What goes on is every byte as it came, but for the usage."""

    def __init__(self) -> None:
        self._events: Events | None = Events(LIMIT)

    def feed(self, data: bytes, end: bool) -> bytes:
        """Takes the next piece of the stream, `end` with the last one; gives what may go on."""
        events = self._events
        if events is None:
            return data
        free = 0 if events.waiting else _free(data)
        released = [data[:free]]
        try:
            released += [unasked(event.raw, event.data) for event in events.feed(data[free:])]
        except ValueError:
            self._events = None
            released.append(events.rest())
        if end:
            released.append(events.rest())
        return b"".join(released)


def _free(data: bytes) -> int:
    """How many bytes at the beginning of `data`, where an event begins, are whole events that say nothing of a usage:
    most pieces of most streams, which need not be taken apart. 0 where line ends are not plain line feeds."""
    if b"\r" in data:
        return 0
    word = data.find(b'"usage"')
    last = data.rfind(b"\n\n", 0, word) if word >= 0 else data.rfind(b"\n\n")
    return last + 2 if last >= 0 else 0
