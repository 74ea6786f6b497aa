"""One answer on its way to the client, gathered so that it can be given again.

Sans-IO. Only an answer that is whole, in every sense, comes out: status 200, in the API's own form, ended by the model
itself. The work is linear in what comes, and what is held is bounded.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from extproc.bodies.jsonbody import dicts
from extproc.watching.shape import Assembly, says_twice
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import Event, Events

ENDS: Final = {
    "chat": frozenset(("stop", "tool_calls", "function_call")),
    "completions": frozenset(("stop",)),
    "messages": frozenset(("end_turn", "tool_use", "stop_sequence")),
    "responses": frozenset(("completed",)),
}
"""Why a model ends an answer of its own accord, in the words of each API; answers of other APIs are not kept. A limit
of tokens, a filter or a pause leaves a part of an answer."""

_CLOSED_BY_DONE: Final = frozenset(("chat", "completions"))
"""APIs whose streams end with `[DONE]`; without it a choice may have gone missing."""


def ended(api: str, final: dict[str, Any]) -> bool:
    """Whether `final`, an answer of the API of this name, was ended by the model itself."""
    ends = ENDS[api]
    if final.get("error") is not None:
        return False
    if api == "messages":
        return final.get("type") == "message" and final.get("stop_reason") in ends
    if api == "responses":
        return final.get("status") in ends and final.get("incomplete_details") is None
    choices = dicts(final, "choices")
    return bool(choices) and all(choice.get("finish_reason") in ends for choice in choices)


class Capture:
    """Gathers the answer of the API `api`, of at most `limit` bytes; `streamed` tells in which form it comes. `lost`:
    it is not to be kept, whatever comes."""

    def __init__(self, api: str, streamed: bool, limit: int) -> None:
        self._api = api
        self._limit = limit
        self._whole = bytearray()
        self._events: Events | None = Events(limit) if streamed else None
        self._assembly: Assembly = SHAPES[api].assembly(limit)
        self.lost = False
        self._closed = api not in _CLOSED_BY_DONE or not streamed

    def take(self, data: bytes) -> None:
        """The next piece."""
        if self.lost or not data:
            return
        if self._events is None:
            self._whole += data
            if len(self._whole) > self._limit:
                self._lose()
            return
        try:
            self._add(self._events.feed(data))
        except (ValueError, TypeError, KeyError, AttributeError):  # no such stream as the API has
            self._lose()

    def end(self) -> bytes | None:
        """The whole answer has come: the JSON text of its object, or None where it is not to be kept."""
        if self.lost:
            return None
        try:
            if self._events is None:
                body = bytes(self._whole)
                final = orjson.loads(body)
                if says_twice(body, final):  # what is not read here is not judged when it is given again
                    raise ValueError("a key stands twice")
            else:
                last = self._events.end()
                self._add([] if last is None else [last])
                final = self._assembly.final()
                body = b"" if final is None else orjson.dumps(final)
            good = self._closed and isinstance(final, dict) and len(body) <= self._limit and ended(self._api, final)
        except (ValueError, TypeError, KeyError, AttributeError):
            good = False
        self._lose()
        return body if good else None

    def _add(self, events: list[Event]) -> None:
        for event in events:
            if event.data.strip() == b"[DONE]":
                self._closed = True
            elif event.data:
                fields = orjson.loads(event.data)
                if fields.get("error") is not None or event.name == "error":
                    raise ValueError("an error within the stream")
                self._assembly.add(fields)

    def _lose(self) -> None:
        self.lost = True
        self._whole = bytearray()
