"""Which conversation a request belongs to: one definition for stickiness, budgets, stepwise and sampling.

Agents name their sessions themselves, each in its own place (found by reading the programs: Claude Code 2.1, Codex
0.171, opencode 1.18). Where a request names none, the beginning of its conversation identifies it, without what agents
write anew into every call: a nonce, a date, a billing line, a block about the environment. No state is kept.
"""

from __future__ import annotations

import calendar
import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from signals.facts import Facts
from signals.path import look_up
from signals.request import Request
from signals.text.wrappers import TAGS, TITLE

SESSION_HEADER: Final = "x-session-id"

HEADERS: Final = (
    SESSION_HEADER,
    "x-claude-code-session-id",
    "session-id",  # Codex
    "session_id",  # Codex, earlier
    "conversation_id",  # Codex, earlier still
    "x-session-affinity",  # opencode
    "x-opencode-session-id",
    "x-opencode-session",
    "x-qwen-code-session-id",
)
"""Request headers that name the session. The first one that a request has counts; after them the body's fields."""

_FIELDS: Final = frozenset(
    ("metadata", "session_id", "prompt_cache_key", "conversation", "previous_response_id", "thread", "user")
)
"""The body's fields that may name it (`_told`, and `user`)."""
_USER: Final = re.compile(r"user_.*_session_([0-9A-Za-z-]{8,64})", re.DOTALL)
"""Claude Code's `metadata.user_id` before 2.1: `user_HASH_account_UUID_session_UUID`; since then it is JSON."""

_WRAPPER: Final = re.compile(f"<({'|'.join(TAGS)})>")
"""Blocks that agents put beside what the user says."""

_READ: Final = 8192  # characters of a system prompt that are looked at
_SYSTEM: Final = 512  # characters that are kept of it
_SAID: Final = 4096  # characters of the user's first words
_EDGES: Final = "\"'`*_()[]{}<>.,;:!?-–—#“”„«»…"
_SPACE: Final = re.compile(r"[\s。，、！？；：（）「」]+")
_WORD: Final = re.compile(r"[^\W\d_]+(?:['’-][^\W\d_]+)*")
_ASCII: Final = re.compile(r"(?![a-fA-F]{4,}\Z)(?:[A-Z]?[a-z]+|[A-Z]+)(?:['-](?:[A-Z]?[a-z]+|[A-Z]+))*")
"""A word that is neither hexadecimal nor of mixed case."""
_LABELS: Final = ("nonce", "id", "uuid", "date", "time", "seed", "hash", "token", "session", "request", "header", "now")
_DAYS: Final = frozenset(
    name.lower()
    for names in (calendar.day_name, calendar.day_abbr, calendar.month_name, calendar.month_abbr, ("am", "pm"))
    for name in names
)


@dataclass(frozen=True, slots=True, eq=False)
class Sessions:
    """How a policy finds the session of a request: by the usual names, and by headers and fields of its own
    (`settings.session`).

    `own` are ("header", name in lower case) and ("field", path in the body). A quick input: the key of a request is
    computed once.
    """

    own: tuple[tuple[str, tuple[str | int, ...]], ...] = ()

    def key(self, request: Request) -> str:
        """The same 32 hexadecimal digits for every request of one conversation; '' where nothing names it.

        They are a hash (BLAKE2b), so that a name has the same length whatever the client sent, and cannot be read.
        """
        if request.session:
            return request.session
        name = self.name(request) or _beginning(request)
        return _digest(name) if name else ""

    def name(self, request: Request) -> str:
        """The name of the session of `request`; '' where nothing names it."""
        return next(self._names(request.headers, request.fields), "")

    def unnamed(self, fields: Mapping[str, Any]) -> bool:
        """Whether no body with these fields names a session: none of the fields is there that may. It costs little."""
        return not self.own and _FIELDS.isdisjoint(fields)

    def named(self, headers: Mapping[str, str]) -> str:
        """The key of the session that `headers` name, for requests without a body; '' where they name none."""
        name = next(self._names(headers, {}), "")
        return _digest(name) if name else ""

    def compute(self, facts: Facts) -> str:
        return self.key(facts.request)

    def _names(self, headers: Mapping[str, str], fields: Mapping[str, Any]) -> Iterator[str]:
        """The names of the session that a request gives, the one that counts first."""
        for header in HEADERS:
            if value := headers.get(header):
                yield value
        if not _FIELDS.isdisjoint(fields):
            yield from _told(fields)
        for kind, path in self.own:
            own = headers.get(str(path[0])) if kind == "header" else look_up(fields, path)
            if own and type(own) in (str, int):
                yield str(own)
        user = fields.get("user")
        if type(user) is str and user:
            yield user


USUAL: Final = Sessions()
"""Sessions as everybody names them."""
session_key: Final = USUAL.key


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(errors="surrogatepass"), digest_size=16).hexdigest()


def _told(fields: Mapping[str, Any]) -> Iterator[str]:
    """The session in those fields of the body in which agents and APIs write it."""
    metadata = fields.get("metadata")
    if type(metadata) is dict:
        yield from _text(metadata.get("session_id"))
        yield from _text(_of_user(metadata.get("user_id")))
    yield from _text(fields.get("session_id"))  # OpenRouter
    yield from _text(fields.get("prompt_cache_key"))
    conversation = fields.get("conversation")
    yield from _text(conversation.get("id") if type(conversation) is dict else conversation)
    yield from _text(fields.get("previous_response_id"))
    thread = fields.get("thread")  # Anthropic's, which the upstream keeps
    yield from _text(thread.get("previous_message_id") if type(thread) is dict else None)


def _text(value: Any) -> Iterator[str]:
    if type(value) is str and value:
        yield value


def _of_user(user: Any) -> str | None:
    """The session in Claude Code's `metadata.user_id`; None where that is only a user's name."""
    if type(user) is not str or len(user) > 4096:
        return None
    if user.startswith("{"):
        try:
            inner = orjson.loads(user)
        except ValueError:
            return None
        return inner.get("session_id") if type(inner) is dict else None
    found = _USER.fullmatch(user)
    return None if found is None else found[1]


def _beginning(request: Request) -> str:
    """The system prompt before the first turn and the user's first words, which stay while a conversation grows."""
    system: list[str] = []
    said = ""
    for message in request.messages:
        if message.role in ("system", "developer"):
            system.append(message.text)
        elif message.role == "user":
            said = _said(message.text)
            if said or message.images or message.audio or message.files:
                break
    told = _constant("\n".join(system)[:_READ])
    return f"\0{told}\0{said}" if told or said else ""


def _said(text: str) -> str:
    """The beginning of what the user says in `text`, without the blocks that the agent puts beside it."""
    said = ""
    at = 0
    while len(said) < _SAID:
        opened = _WRAPPER.search(text, at)
        end = -1 if opened is None else text.find(f"</{opened[1].split()[0]}", opened.end())
        if opened is None or end < 0:
            said += text[at:]
            break
        said += text[at : opened.start()]
        at = text.find(">", end) + 1 or len(text)
    return TITLE.sub("", said[:_SAID], count=1).strip()


def _constant(text: str) -> str:
    """The first words of a system prompt that do not change from call to call.

    Left out are all that hold digits, signs or letters of mixed case (nonces, versions, paths, numbers), hexadecimal
    words, names of days and months, and what follows a label such as `Request id:`.
    """
    words: list[str] = []
    size = 0
    for line in text.splitlines():
        for token in line.split() if line.isascii() else _SPACE.split(line):
            if token.endswith((":", "=")) and token.rstrip(":=").lower().endswith(_LABELS):
                break
            word = token.strip(_EDGES)
            plain = _ASCII if word.isascii() else _WORD
            if plain.fullmatch(word) and word.lower() not in _DAYS:
                words.append(word)
                size += len(word)
                if size >= _SYSTEM:
                    return " ".join(words)
    return " ".join(words)
