"""`per: request`: one request of an agent's loop, sent on to the model (or with the effort) that was chosen for it.

The answer passes as it comes. It passes through here, and not on a plain route, because its usage settles the session's
budget.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

import orjson

from signals.state.session import SESSION_HEADER
from stepwise.agent import Agent, Choice, prompt_tokens
from stepwise.answer import Answer, Body, forwarded, problem, whole
from stepwise.continuation import CHAT_PATH
from stepwise.steps import CHARS_PER_TOKEN
from stepwise.upstream import HOP, JSON, DeadlineError, Relay, UpstreamError

SESSION = "x-pointsman-session"
"""Request header with the key of the session (signals.state.session) whose budget it is; the processor sets it."""

_KEPT = 4 << 20  # bytes of an answer that are looked through for its usage
_EVENT_END = re.compile(rb"\r?\n\r?\n")


def unfit(body: JSON, headers: Mapping[str, str]) -> str | None:
    """Why a request cannot be relayed, in one fixed word for counting; None when it can."""
    messages = body.get("messages")
    if HOP in headers:
        return "hop"
    return None if isinstance(messages, list) and messages else "not_chat"


async def relay(
    agent: Agent,
    body: JSON,
    headers: Mapping[str, str],
    *,
    deadline: float | None = None,
    difficulty: float = 0.5,
    charge: Callable[[float], None] | None = None,
    note: bool = False,
) -> Answer | None:
    """Answers a chat completion through the model chosen for it; None for what is none, or has come from here before.

    `headers` are the client's, in lower case, and `SESSION`; `deadline` is on the running loop's clock; `difficulty`:
    0..1. `charge` is told once what the answer has cost. `note`: see `stepwise.answer.answer`.
    """
    if reason := unfit(body, headers):
        agent.metrics.ineligible[reason] += 1
        return None
    session = headers.get(SESSION) or headers.get(SESSION_HEADER)
    choice = await agent.choose(body, session, difficulty=difficulty)
    agent.metrics.choices[choice.effort or choice.model or "-", choice.reason] += 1
    if choice.reason == "budget_unknown":
        return whole(503, problem("What this session has spent is not known right now.", "budget_unknown"), {})
    if choice.model is None:
        return whole(429, problem("The budget of this session is used up.", "budget_exhausted"), {})
    asked = dict(body)
    if choice.effort is not None:
        asked["reasoning_effort"] = choice.effort
    if choice.max_tokens is not None:
        asked["max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"] = choice.max_tokens
    options = body.get("stream_options") or {}
    if body.get("stream"):
        asked["stream_options"] = {**options, "include_usage": True}
    head = {"x-pointsman-model": choice.model}
    if choice.effort is not None:
        head["x-pointsman-effort"] = choice.effort
    agent.metrics.requests[choice.model] += 1
    try:
        stream = await agent.upstreams[choice.model].relay(CHAT_PATH, asked, forwarded(headers), deadline)
    except (UpstreamError, DeadlineError) as error:
        kind = error.kind if isinstance(error, UpstreamError) else "deadline"
        agent.metrics.upstream_errors[choice.model, kind] += 1
        if session is not None:
            agent.settle(session, choice, 0, 0)
        late = kind in ("deadline", "timeout")
        return whole(504 if late else 502, problem(f"The model could not answer: {kind}.", "upstream_error"), head)
    quiet = bool(body.get("stream")) and not options.get("include_usage")
    prompt = prompt_tokens(body)
    given = _Relayed(stream, agent, choice, session, prompt, quiet=quiet, note=note, charge=charge)
    return Answer(stream.status, {**head, "content-type": stream.content_type}, given)


class _Relayed(Body):
    """The model's bytes. At their end the budget is settled; without an end, or a usage, what was reserved is spent."""

    def __init__(
        self,
        stream: Relay,
        agent: Agent,
        choice: Choice,
        session: str | None,
        prompt: int,
        *,
        quiet: bool,
        note: bool,
        charge: Callable[[float], None] | None,
    ) -> None:
        """`prompt`: its tokens, estimated, should the model not count them. `quiet`: the client asked for no usage, so
        the event that we asked for is taken out again, or with `note` becomes a comment."""
        self._stream = stream
        self._agent = agent
        self._choice = choice
        self._session = session
        self._prompt = prompt
        self._quiet = quiet
        self._note = note
        self._charge = charge
        self._size = 0  # bytes of the answer so far
        self._said = 0  # its events
        self._events = stream.content_type.lower().startswith("text/event-stream")
        self._buffer = b""
        self._usage: tuple[int, int] | None = None
        self._over = False

    async def __anext__(self) -> bytes:
        while not self._over:
            try:
                data = await self._stream.next()
            except (UpstreamError, DeadlineError) as error:
                kind = error.kind if isinstance(error, UpstreamError) else "deadline"
                self._agent.metrics.upstream_errors[self._choice.model or "-", kind] += 1
                self._end("failed")
                if not self._events:
                    raise
                return b"data: " + problem(f"The model broke off: {kind}.", "upstream_error") + b"\n\ndata: [DONE]\n\n"
            except BaseException:
                await self.aclose()
                raise
            if data is None:
                self._end("complete")
                if self._events and self._buffer:
                    return self._buffer
                break
            if passed := self._pass(data):
                return passed
        raise StopAsyncIteration

    async def aclose(self) -> None:
        if not self._over:
            self._end("cancelled")

    def _end(self, outcome: str) -> None:
        self._over = True
        self._agent.metrics.answers[outcome] += 1
        self._stream.close()
        refused = self._stream.status >= 400  # the model wrote nothing
        if outcome == "complete" and not self._events and len(self._buffer) <= _KEPT:
            self._take(_object(self._buffer))
        if outcome == "complete" and self._session is not None and (self._usage is not None or refused):
            self._agent.settle(self._session, self._choice, *(self._usage or (0, 0)))
        if self._charge is not None and not refused:
            # Without a usage, a token is about an event of a stream, or four bytes of a whole answer.
            guess = self._prompt, self._said if self._events else self._size // CHARS_PER_TOKEN
            self._charge(self._agent.cost(self._choice, *(self._usage or guess)))

    def _pass(self, data: bytes) -> bytes:
        """What of the bytes so far can go out."""
        self._buffer += data
        self._size += len(data)
        if not self._events:
            self._buffer = self._buffer[: _KEPT + 1]
            return data
        passed, start = b"", 0
        for end in _EVENT_END.finditer(self._buffer):
            event = self._buffer[start : end.end()]
            start = end.end()
            self._said += 1
            if self._counts(event) and self._quiet:
                event = b": " + event[5:].lstrip() if self._note else b""
            passed += event
        self._buffer = self._buffer[start:]
        if len(self._buffer) > _KEPT:  # no event is that long: whatever it is, it is not ours to hold back
            passed, self._buffer = passed + self._buffer, b""
        return passed

    def _counts(self, event: bytes) -> bool:
        """Takes the usage from an event; True when the event holds nothing else."""
        if b'"usage"' not in event or not event.startswith(b"data:"):
            return False
        found = _object(event[5:])
        self._take(found)
        return isinstance(found.get("usage"), dict) and not found.get("choices")

    def _take(self, found: JSON) -> None:
        usage: Any = found.get("usage")
        if isinstance(usage, dict):
            prompt, completion = usage.get("prompt_tokens"), usage.get("completion_tokens")
            if isinstance(prompt, int) and isinstance(completion, int):
                self._usage = prompt, completion


def _object(data: bytes) -> JSON:
    try:
        found = orjson.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
