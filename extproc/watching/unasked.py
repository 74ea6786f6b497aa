"""Takes out of a stream what its client did not ask for: the usage that we had its server say (OpenAI's
`stream_options.include_usage`).

The server then sends one more chunk at the end, with the usage and no choices, and has `usage: null` in all others.
https://platform.openai.com/docs/api-reference/chat/create (`stream_options`)
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from extproc.edit import Draft
from extproc.watching.sse import Event, Events, encode

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
            released = b"".join([_without(event) for event in events.feed(data)])
        except ValueError:
            self._events = None
            return events.rest()
        return released + events.rest() if end else released


def _without(event: Event) -> bytes:
    """The event without its usage; b'' where there is nothing else in it."""
    if b'"usage"' not in event.data:
        return event.raw
    try:
        fields: Any = orjson.loads(event.data)
    except orjson.JSONDecodeError:
        return event.raw
    if not isinstance(fields, dict) or "usage" not in fields or not isinstance(fields.get("choices"), list):
        return event.raw
    if fields["usage"] is not None:  # a server that says it beside a choice says it unasked
        return event.raw if fields["choices"] or not isinstance(fields["usage"], dict) else b""
    draft = Draft(event.data, fields)
    draft.remove("usage")
    if event.raw.count(event.data) == 1:
        return event.raw.replace(event.data, draft.text)
    return encode(event.name, draft.text)  # its data came in several lines
