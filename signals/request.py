"""The parsed call of a language model: the only thing that signals look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

Api = Literal["chat", "completions", "embeddings", "responses", "messages"]
"""chat: OpenAI /v1/chat/completions; messages: Anthropic /v1/messages; the others by their OpenAI path."""

Scope = Literal["user", "conversation", "system", "tools", "all"]
"""Which text a signal reads: the last user message; every message but system ones; system and developer messages;
tool results; everything."""

_SYSTEM = ("system", "developer")


class Message(NamedTuple):
    """One message of a conversation. `text` joins its text parts with newlines; the counters count other parts."""

    role: str
    text: str
    images: int = 0
    audio: int = 0
    files: int = 0
    tool_calls: int = 0


@dataclass(slots=True)
class Request:
    """One call, parsed once.

    `body` stays the bytes that came; `fields` is the decoded JSON object. `headers` are lower-case and hold the
    pseudo-headers (`:path`, `:method`). `attributes` is Envoy's filter metadata, by namespace (JWT claims and the
    like): trusted, since only Envoy's own filters write it. `received` is seconds since the epoch.
    """

    api: Api
    body: bytes
    fields: dict[str, Any]
    model: str | None
    messages: tuple[Message, ...]
    headers: Mapping[str, str] = field(default_factory=dict)
    attributes: Mapping[str, Any] = field(default_factory=dict)
    received: float = 0.0
    _texts: dict[str, str] = field(default_factory=dict, repr=False, compare=False)

    def text(self, scope: Scope = "user") -> str:
        """The text of `scope`, its messages joined with newlines; '' where there is none. Computed once a scope."""
        text = self._texts.get(scope)
        if text is None:
            text = self._texts[scope] = self._join(scope)
        return text

    def _join(self, scope: Scope) -> str:
        messages = self.messages
        if scope == "user":
            for message in reversed(messages):
                if message.role == "user":
                    return message.text
            return ""
        if scope == "all":
            return "\n".join([m.text for m in messages])
        if scope == "conversation":
            return "\n".join([m.text for m in messages if m.role not in _SYSTEM])
        if scope == "system":
            return "\n".join([m.text for m in messages if m.role in _SYSTEM])
        return "\n".join([m.text for m in messages if m.role == "tool"])
