"""How a client's API is read as a chat completion, which is what models are asked, and how an answer is written in it.

One file for each API. The rest of a writer speaks of chat completions alone.
"""

from __future__ import annotations

import time
import uuid
from typing import Any, Final, NamedTuple

from upstream.client import UpstreamError
from upstream.endpoint import JSON
from upstream.toolcalls import ToolCall, ToolParts

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


class ItemManuscript(Manuscript):
    """The answer in an API where it is a list of items, each with its beginning and its end: thoughts, a text,
    the tools that it calls. An answer that says nothing has a text without characters."""

    def __init__(self, body: JSON, models: str) -> None:
        super().__init__(body, models)
        self.parts: Final = ToolParts()
        self._open: int | None = None  # the call that is being written, by its place; `_TEXT`, `_THOUGHTS`
        self._begun = -1  # the last call that was begun

    def piece(self, spoken: Spoken) -> bytes:
        """Raises UpstreamError where a call goes on that has ended, since that cannot be said in these APIs."""
        out: list[bytes] = []
        for place, text in ((_THOUGHTS, spoken.reasoning), (_TEXT, spoken.text)):
            if text:
                out += (self._turn(place), self.text(text))
        for part in spoken.tools:
            out.append(self._turn(self.parts.feed(part)))
            if arguments := (part.get("function") or {}).get("arguments"):
                out.append(self.arguments(arguments))
        return b"".join(out)

    def close(self) -> bytes:
        """The end of the last item."""
        begun = self._turn(_TEXT) if self._open is None else b""
        return begun + self._ended()

    def _turn(self, place: int) -> bytes:
        if place == self._open:
            return b""
        ended = b"" if self._open is None else self._ended()
        self._open = place
        if place < 0:
            return ended + self.begin_text()
        if place <= self._begun:
            raise UpstreamError("garbage", "the calls of several tools are mixed")
        self._begun = place
        return ended + self.begin_call(place, self.named(place))

    def _ended(self) -> bytes:
        return self.end_text() if self._open is not None and self._open < 0 else self.end_call()

    @property
    def thinks(self) -> bool:
        """Whether the text that is being written is thoughts."""
        return self._open == _THOUGHTS

    def named(self, place: int) -> ToolCall:
        """The call at this place, as far as it has come, with an id in any case."""
        call = self.parts.call(place)
        return call if call.id else call._replace(id=f"call_{self.id}_{place}")

    def calls(self, spoken: list[Spoken]) -> list[ToolCall]:
        """All calls of a whole answer."""
        for said in spoken:
            for part in said.tools:
                self.parts.feed(part)
        return [self.named(place) for place in range(len(self.parts))]

    def begin_text(self) -> bytes:
        """The events with which a text begins, or thoughts do (`thinks`)."""
        raise NotImplementedError

    def text(self, text: str) -> bytes:
        """The event of a piece of text."""
        raise NotImplementedError

    def end_text(self) -> bytes:
        """The events with which it ends."""
        raise NotImplementedError

    def begin_call(self, place: int, call: ToolCall) -> bytes:
        """The events with which a call of a tool begins."""
        raise NotImplementedError

    def arguments(self, text: str) -> bytes:
        """The event of a piece of its arguments."""
        raise NotImplementedError

    def end_call(self) -> bytes:
        """The events with which it ends."""
        raise NotImplementedError


_TEXT: Final = -1
_THOUGHTS: Final = -2


class ClientApi:
    """One API, by its name (see `extproc.requests.paths`). `objects`: the arguments of a tool's call are a JSON object
    there."""

    name: str
    objects = False

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
