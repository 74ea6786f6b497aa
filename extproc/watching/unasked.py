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
        try:
            released = b"".join([unasked(event.raw, event.data) for event in events.feed(data)])
        except ValueError:
            self._events = None
            return events.rest()
        return released + events.rest() if end else released
