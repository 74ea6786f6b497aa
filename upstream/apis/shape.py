"""How a client's API is read as a chat completion, which is what models are asked, and how an answer is written in it.

One file for each API. The rest of a writer speaks of chat completions alone.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from upstream.endpoint import JSON

Unfit = str
"""Why a call cannot be answered, in one fixed word for counting."""


class Spoken(NamedTuple):
    """A piece of the answer for the client. `tools`: pieces of tool calls, as OpenAI's API streams them. `entries`: log
    probabilities as the server gave them, where the client asked for some. `model`: who says it, by the served name;
    '' for all whom the answer is by."""

    text: str = ""
    reasoning: str = ""
    tools: tuple[JSON, ...] = ()
    entries: tuple[object, ...] = ()
    model: str = ""


class Manuscript:
    """The answer of one call, in the client's API, as it is written. Call `start`, `piece` for each piece and `end`, or
    `whole` for all of it. `models`: whom the answer is by, as its `model` field says."""

    def __init__(self, body: JSON, models: str) -> None:
        self.body = body
        self.models = models
        self.id: Final = uuid.uuid4().hex
        self.created: Final = int(time.time())

    def start(self) -> bytes:
        """The first events."""
        return b""

    def piece(self, spoken: Spoken) -> bytes:
        """The events of one piece; b'' where there is nothing to show."""
        raise NotImplementedError

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        """The last events. `note`: a usage that the client has not asked for stands in a comment."""
        raise NotImplementedError

    def broken(self, message: str, code: str) -> bytes:
        """The events that end an answer which cannot go on."""
        raise NotImplementedError

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        """The answer in one object."""
        raise NotImplementedError

    def heartbeat(self) -> bytes:
        """What keeps a silent stream open, and no client shows."""
        return b": working\n\n"


class ClientApi:
    """One API, by its name (see `extproc.paths`)."""

    name: str

    def question(self, body: JSON) -> JSON | Unfit:
        """The call as a chat completion."""
        raise NotImplementedError

    def manuscript(self, body: JSON, models: str) -> Manuscript:
        """Where the answer is written."""
        raise NotImplementedError

    def error(self, status: int, message: str, code: str) -> JSON:
        """The body of an HTTP error."""
        kind = "server_error" if status >= 500 else "invalid_request_error"
        return {"error": {"message": message, "type": kind, "param": None, "code": code}}


def texts(content: object, kinds: tuple[str, ...]) -> str | None:
    """The text of a message's content: a string, or parts that are all text of one of these types. None for others."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if not isinstance(content, list):
        return None
    found: list[str] = []
    for part in content:
        if not isinstance(part, dict) or part.get("type") not in kinds or not isinstance(part.get("text"), str):
            return None
        found.append(part["text"])
    return "\n\n".join(found)


def count(value: Any) -> bool:
    """Whether this is a number of tokens, or nothing."""
    return value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)


def joined(parts: Sequence[JSON]) -> list[JSON]:
    """Whole tool calls from the pieces of a stream."""
    calls: dict[int, JSON] = {}
    for part in parts:
        call = calls.setdefault(part.get("index") or 0, {"id": "", "type": "function", "function": {}})
        call["id"] = part.get("id") or call["id"]
        said = part.get("function") or {}
        inner = call["function"]
        inner["name"] = said.get("name") or inner.get("name", "")
        inner["arguments"] = inner.get("arguments", "") + (said.get("arguments") or "")
    return [calls[at] for at in sorted(calls)]
