"""Calls of tools, as chat completions have them: whole ones, and the pieces of which streams make them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import orjson

from upstream.endpoint import JSON


class ToolCall(NamedTuple):
    """A call of a tool; `arguments` is JSON as the model wrote it, which may be none."""

    id: str
    name: str
    arguments: str

    def chat(self) -> JSON:
        """The call in a message of a chat completion."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


class ToolParts:
    """Whole tool calls from the pieces of a stream, in the order in which they began.

    A piece belongs to the call of its `index`. Some servers give every call the same one; there a new id begins a call.
    """

    def __init__(self) -> None:
        self._places: dict[int, int] = {}  # by index
        self._ids: list[str] = []
        self._names: list[str] = []
        self._arguments: list[list[str]] = []

    def feed(self, part: JSON) -> int:
        """Takes the next piece; the place of its call."""
        index, id_, said = part.get("index") or 0, part.get("id") or "", part.get("function") or {}
        place = self._places.get(index)
        if place is None or (id_ and self._ids[place] not in ("", id_)):
            place = self._places[index] = len(self._ids)
            self._ids.append("")
            self._names.append("")
            self._arguments.append([])
        self._ids[place] = id_ or self._ids[place]
        self._names[place] = said.get("name") or self._names[place]
        self._arguments[place].append(said.get("arguments") or "")
        return place

    def call(self, place: int) -> ToolCall:
        """What has come of the call at this place."""
        return ToolCall(self._ids[place], self._names[place], "".join(self._arguments[place]))

    def __len__(self) -> int:
        """How many calls have begun."""
        return len(self._ids)


def tool_calls(parts: Iterable[JSON]) -> list[ToolCall]:
    """Whole tool calls from the pieces of a stream."""
    found = ToolParts()
    for part in parts:
        found.feed(part)
    return [found.call(place) for place in range(len(found))]


def json_object(text: str) -> JSON | None:
    """The JSON object that the arguments of a tool's call are; without any text, an empty one. None where they are
    something else, or have more levels than can be written again."""
    try:
        value = orjson.loads(text or "{}")
        orjson.dumps(value)
    except (orjson.JSONDecodeError, orjson.JSONEncodeError):
        return None
    return value if isinstance(value, dict) else None
