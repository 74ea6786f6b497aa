"""Chains of stored responses are sessions: a call that goes on from a response belongs to the session that made it.

A call of the Responses API may name the response before it, in `previous_response_id`, instead of repeating the
conversation, and one of Anthropic's messages the answer before it, in `thread`. Nothing else in it tells the session,
so the ids of answers are remembered in the policy's state store.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import re
from typing import Final

from decisions.engine import Engine
from extproc.apis.registry import BY_NAME
from signals.reading import Unavailable
from signals.request import Request
from signals.state.store import first_text

TTL_S: Final = 86_400.0
"""How long an id is remembered; as long as a sticky choice without a request."""
AGAIN_S: Final = 0.05
"""After how long an id that is not known is looked up once more."""
LOOKED_AT: Final = 16 * 1024
"""Bytes of the beginning of an answer in which its id is looked for. It stands in the first event of a stream."""

_ID: Final = re.compile(rb"[A-Za-z0-9_.:=+/-]{1,512}")
RESPONSE: Final = ("resp_", "resp-")
"""How the ids of stored responses begin."""
_KEYS: Final = (b"id", b"responseId")
_PLACES: Final = ([None], [None, b"response"], [None, b"message"])
_MARK: Final = re.compile(rb'["{}\[\]:,]')
"""What gives JSON its structure, outside of strings."""
_STRING: Final = re.compile(rb'[^"\\]*(?:\\.[^"\\]*)*("?)', re.DOTALL)
"""The rest of a string, as far as it has come; the group is the quote that ends it."""


class IdFinder:
    """The beginning of an answer, until its id has been found; `session` is the key of the call's session. `begins` is
    how the id begins that is looked for; `any`: however it begins.

    It is looked for where the API puts it: as the answer's own, or, in an event, as that of its `response` or
    `message`. What a client sent and the server says again (metadata, tools) may hold anything elsewhere. Each byte is
    looked at once.
    """

    __slots__ = ("_at", "_begun", "_kept", "_key", "_last", "_path", "any", "begins", "session")

    def __init__(self, session: str, anyone: bool = False, begins: tuple[str, ...] = RESPONSE) -> None:
        self.session = session
        self.any = anyone
        self.begins = begins
        self._kept: bytearray | None = bytearray()
        self._at = 0
        self._begun = -1  # where a string began that has not ended
        self._last: bytes | None = None  # the string before
        self._key: bytes | None = None  # of the value that is to come
        self._path: list[bytes | None] = []  # the keys of what it is in, the outermost first (None: it has none)

    def take(self, piece: bytes) -> str | None:
        """The id, once: with the piece in which it ends."""
        kept = self._kept
        if kept is None:
            return None
        kept += piece[: LOOKED_AT - len(kept)]
        found = self._look(kept)
        if found is not None or len(kept) >= LOOKED_AT:
            self._kept = None
        return found

    def _look(self, kept: bytearray) -> str | None:
        while self._at < len(kept):
            if self._begun >= 0:
                rest = _STRING.match(kept, self._at)
                assert rest is not None, "it matches anything"
                self._at = rest.end()
                if not rest[1]:
                    break
                self._last = bytes(kept[self._begun : self._at - 1])
                self._begun = -1
                if self._key in _KEYS and self._path in _PLACES and _ID.fullmatch(self._last):
                    found = self._last.decode()
                    if self.any or found.startswith(self.begins):
                        return found
                continue
            mark = _MARK.search(kept, self._at)
            if mark is None:
                self._at = len(kept)
                break
            self._at = mark.end()
            self._mark(mark[0])
        return None

    def _mark(self, mark: bytes) -> None:
        if mark == b'"':
            self._begun = self._at
        elif mark == b":":
            self._key = self._last if self._path else None  # else it is the name of an event's field
        elif mark == b",":
            self._key = None
        elif mark in b"{[":
            self._path.append(self._key)
            self._key = None
        elif self._path:
            self._path.pop()
            self._key = None


class Chains:
    """One per worker. What is remembered is in the store of the policy that has decided a call."""

    def __init__(self) -> None:
        self._writing: set[asyncio.Task[None]] = set()

    def mark(self, engine: Engine, request: Request) -> None:
        """A call is sent on: keep the key of its session, where somebody may ask for the session of its answer."""
        if engine.chained and not request.operation and BY_NAME[request.api].keeps(request.fields):
            request.session = request.session or engine.sessions.key(request)
            request.stored = True

    def learn(self, engine: Engine, response: str, session: str) -> None:
        """The response of this id is one of the session. The first to say so is right. Never raises."""
        task = asyncio.get_running_loop().create_task(_pin(engine, response, session))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def follow(self, engine: Engine, request: Request) -> None:
        """Give `request` the session of the response that it continues, where that is known."""
        key = _key(before(engine, request))
        try:
            found = await first_text(engine.store, [key], AGAIN_S)
        except Unavailable:  # as if it were not known: it is a session of its own
            found = None
        request.session = found or ""


def before(engine: Engine, request: Request) -> str:
    """The response that `request` continues; '' where there is none, or where something else names its session."""
    given = BY_NAME[request.api].continued(request.fields) if engine.chained else None
    return given if type(given) is str and engine.sessions.name(request) == given else ""


async def _pin(engine: Engine, response: str, session: str) -> None:
    with contextlib.suppress(Unavailable):  # the next call is then a session of its own
        await engine.store.pin(_key(response), session, TTL_S)


def _key(response: str) -> str:
    return f"response:{hashlib.blake2b(response.encode(errors='surrogatepass'), digest_size=16).hexdigest()}"
