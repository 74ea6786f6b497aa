"""`conversation`: what a conversation consists of: its messages, tools, attachments and answer format."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from signals.bounds import Bounds, idle, within
from signals.facts import Facts
from signals.reading import FALSE, TRUE, Reading
from signals.request import Message, Request, speaks
from signals.signal import Doubt, Params, Shared, Signal

Role = Literal["system", "developer", "user", "assistant", "tool"]
Test = bool | Bounds
"""A count's test: true (at least one), false (none), or bounds."""


class Messages(Bounds):
    """How many messages there are, of some roles or of all."""

    role: Role | Annotated[list[Role], Field(min_length=1)] | None = Field(
        None, description="Count the messages of this role only, or of these roles."
    )


class ConversationParams(Params):
    """All tests that are given must hold. A count takes true (at least one), false (none), or bounds."""

    turns: Test | None = Field(None, description="The number of user messages.")
    messages: Messages | None = Field(None, description="The number of messages, of one `role`, of several or of all.")
    tools: Test | None = Field(None, description="The number of tools that the request offers the model.")
    tool_calls: Test | None = Field(None, description="The number of calls of tools in the assistant's messages.")
    tool_loop: Test | None = Field(
        None,
        description="The request brings tool results: the number of assistant messages with tool calls "
        "since the last user message.",
    )
    tool_turn: Test | None = Field(
        None,
        description="As `tool_loop`, and also where the user's last message directly follows tool results, or where "
        "tool calls have no results yet.",
    )
    images: Test | None = Field(None, description="The number of images in the messages.")
    audio: Test | None = Field(None, description="The number of audio parts in the messages.")
    files: Test | None = Field(None, description="The number of files in the messages.")
    json_schema: bool | None = Field(
        None, description="The answer must follow a JSON schema (true) or need not (false)."
    )
    stream: bool | None = Field(None, description="The answer is to be streamed (true) or not (false).")

    @model_validator(mode="after")
    def _something(self) -> Self:
        if not self.model_fields_set:
            raise ValueError(f"one of {', '.join(type(self).model_fields)} is needed")
        return self

    def needs(self) -> frozenset[str]:
        capabilities = {"images": "vision", **{name: name for name in ("audio", "files", "tools", "json_schema")}}
        tests = {capability: getattr(self, field) for field, capability in capabilities.items()}
        return frozenset(name for name, test in tests.items() if test is not None and (_limits(test)[0] or 0) >= 1)

    def doubts(self) -> Iterator[Doubt]:
        for name in type(self).model_fields:
            test = getattr(self, name)
            if isinstance(test, Bounds):
                yield from idle(test, 0, None, name)


class Conversation(Signal):
    """Reads what the conversation consists of. The evidence is each count that was tested."""

    kind = "conversation"
    Parameters = ConversationParams
    sure = True

    def __init__(self, name: str, params: ConversationParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._tests: list[tuple[str, Callable[[Request], int], float | None, float | None]] = []
        for field, count in _COUNTS.items():
            test = getattr(params, field)
            if test is not None:
                self._tests.append((field, count, *_limits(test)))
        if params.messages is not None:
            bounds = params.messages
            roles = (bounds.role,) if isinstance(bounds.role, str) else tuple(bounds.role or ())
            self._tests.append(("messages", lambda request: _of_role(request, roles), bounds.at_least, bounds.at_most))

    def read(self, facts: Facts) -> Reading:
        request = facts.request
        evidence = []
        for name, count, least, most in self._tests:
            value = count(request)
            if not within(value, least, most):
                return FALSE
            evidence.append(f"{name}={value}")
        return Reading(True, 1.0, evidence=tuple(evidence)) if evidence else TRUE


def _limits(test: Test) -> tuple[float | None, float | None]:
    if isinstance(test, bool):
        return (1, None) if test else (None, 0)
    return test.at_least, test.at_most


def _of_role(request: Request, roles: tuple[str, ...]) -> int:
    return sum(not roles or message.role in roles for message in request.messages)


def _tool_loop(request: Request) -> int:
    messages = request.messages
    last = next((m.role for m in reversed(messages) if m.role != "user" or speaks(m)), "")
    return 0 if last != "tool" else _calls(messages)


def _calls(messages: Sequence[Message]) -> int:
    """Messages with tool calls after the last words of the user in `messages`, which end with tool results; 1 at the
    least: results whose calls the client left out are a loop all the same."""
    calls = 0
    for message in reversed(messages):
        if speaks(message):
            break
        calls += message.role == "assistant" and message.tool_calls > 0
    return max(calls, 1)


def _tool_turn(request: Request) -> int:
    """As `_tool_loop`; words of the user that directly follow the results belong to the loop."""
    messages = request.messages
    end = len(messages)
    while end and messages[end - 1].role == "user":
        end -= 1
    if end and messages[end - 1].role == "tool":
        return _calls(messages[:end])
    called = sum(message.tool_calls for message in messages if message.role == "assistant")
    return int(called > sum(message.role == "tool" for message in messages))


def _sum(attribute: str) -> Callable[[Request], int]:
    return lambda request: sum(getattr(message, attribute) for message in request.messages)


_COUNTS: dict[str, Callable[[Request], Any]] = {
    "turns": lambda request: sum(map(speaks, request.messages)),
    "tools": lambda request: request.asking.tools(request),
    "tool_calls": _sum("tool_calls"),
    "tool_loop": _tool_loop,
    "tool_turn": _tool_turn,
    "images": _sum("images"),
    "audio": _sum("audio"),
    "files": _sum("files"),
    "json_schema": lambda request: request.asking.schema(request),
    "stream": lambda request: request.asking.streams(request),
}
