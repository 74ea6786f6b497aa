"""`per: request`: one request of an agent's loop, sent on to the model (or with the effort) that was chosen for it.

The answer is passed on as it comes. It comes through the router, instead of by a plain route, because its usage decides
what the session's budget is charged.
"""

from __future__ import annotations

from typing import NamedTuple

import orjson

from stepwise.agent import Agent, LoopChoice, prompt_tokens
from stepwise.asking.continuation import CHAT_PATH
from stepwise.kind import KIND
from stepwise.metrics import StepwiseMetrics
from upstream.answer import Answer, Body, problem, whole
from upstream.client import DeadlineError, Relay, UpstreamError
from upstream.endpoint import HOP, JSON
from upstream.events import DONE, Lines, event
from upstream.tokens import CHARS_PER_TOKEN
from upstream.usage import Spent, TokenCounts, counts, unasked
from upstream.writer import Call

_KEPT = 4 << 20  # bytes of an answer that are looked through for its usage


class Loop:
    """The writer of a `stepwise:` block with `per: request`: sends each call to the model that is chosen for it."""

    kind = KIND
    by_session = True

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    @property
    def problem(self) -> str | None:
        return None  # its models are not asked what they can do

    @property
    def metrics(self) -> StepwiseMetrics:
        return self._agent.metrics

    def unfit(self, call: Call) -> str | None:
        if HOP in call.headers:
            return "hop"
        messages = call.body.get("messages")
        return None if call.api == "chat" and isinstance(messages, list) and messages else "not_chat"

    async def start(self) -> None:
        return None

    async def answer(self, call: Call) -> Answer:
        agent, body = self._agent, call.body
        session = call.session or None
        choice = await agent.choose(body, session, difficulty=call.difficulty)
        agent.metrics.choices[choice.effort or choice.model or "-", choice.reason] += 1
        if choice.reason == "budget_unknown":
            return whole(503, problem("What this session has spent is not known right now.", "budget_unknown"), {})
        if choice.model is None:
            return whole(429, problem("The budget of this session is used up.", "budget_exhausted"), {})
        head = {"x-pointsman-model": choice.model}
        if choice.effort is not None:
            head["x-pointsman-effort"] = choice.effort
        agent.metrics.requests[choice.model] += 1
        try:
            upstream = agent.upstreams[choice.model]
            stream = await upstream.relay(CHAT_PATH, _asked(body, choice), call.forwarded, call.deadline)
        except (UpstreamError, DeadlineError) as error:
            kind = error.kind if isinstance(error, UpstreamError) else "deadline"
            agent.metrics.upstream_errors[choice.model, kind] += 1
            if session is not None:
                agent.settle(session, choice, TokenCounts(0, 0))
            late = kind in ("deadline", "timeout")
            return whole(504 if late else 502, problem(_told(choice.model, error), "upstream_error"), head)
        given = _Relayed(stream, agent, call, _Sent(choice, session))
        return Answer(stream.status, {**head, "content-type": stream.content_type}, given)

    async def close(self) -> None:
        await self._agent.close()


def _asked(body: JSON, choice: LoopChoice) -> JSON:
    """The call for the chosen model: the client's, which also asks for the usage at the end of a stream."""
    asked = dict(body)
    if choice.effort is not None:
        asked["reasoning_effort"] = choice.effort
    if choice.max_tokens is not None:
        asked["max_completion_tokens" if "max_completion_tokens" in body else "max_tokens"] = choice.max_tokens
    if body.get("stream"):
        asked["stream_options"] = {**(body.get("stream_options") or {}), "include_usage": True}
    return asked


class _Sent(NamedTuple):
    """For which model a request was let through, and whose budget pays for it."""

    choice: LoopChoice
    session: str | None


class _Relayed(Body):
    """The model's bytes. At their end the budget is settled; without an end, or a usage, what was reserved is spent."""

    def __init__(self, stream: Relay, agent: Agent, call: Call, sent: _Sent) -> None:
        self._stream = stream
        self._agent = agent
        self._choice, self._session = sent
        self._prompt = prompt_tokens(call.body)  # estimated, should the model not count them
        # The client asked for no usage: the event that we asked for is taken out again, or becomes a comment.
        self._quiet = bool(call.body.get("stream")) and not (call.body.get("stream_options") or {}).get("include_usage")
        self._note = call.note
        self._charge = call.charge
        self._size = 0  # bytes of the answer so far
        self._said = 0  # its events
        self._events = stream.content_type.lower().startswith("text/event-stream")
        self._lines = Lines()
        self._event = bytearray()  # the lines of the event under way
        self._buffer = bytearray()  # the beginning of an answer that is no stream
        self._usage: TokenCounts | None = None
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
                return event(orjson.loads(problem(_told(self._choice.model, error), "upstream_error"))) + DONE
            except BaseException:
                await self.aclose()
                raise
            if data is None:
                self._end("complete")
                if self._events and (rest := bytes(self._event) + self._lines.flush()):
                    return rest
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
            self._agent.settle(self._session, self._choice, self._usage or TokenCounts(0, 0))
        if self._charge is not None and not refused:
            # Without a usage, a token is about an event of a stream, or four bytes of a whole answer.
            guess = TokenCounts(self._prompt, self._said if self._events else self._size // CHARS_PER_TOKEN)
            took = self._usage or guess
            money = self._agent.cost(self._choice, took)
            self._charge(Spent(took.prompt, took.completion, money, took.cached, None, took.written))

    def _pass(self, data: bytes) -> bytes:
        """The bytes that can be passed on: whole events."""
        self._size += len(data)
        if not self._events:
            if len(self._buffer) <= _KEPT:
                self._buffer += data
            return data
        passed = bytearray()
        for line in self._lines.feed(data):
            self._event += line
            if line in (b"\n", b"\r\n"):
                passed += self._take_event(bytes(self._event))
                self._event.clear()
        if len(self._event) + self._lines.waiting > _KEPT:  # no event is that long: it is not ours to hold back
            passed += self._event + self._lines.flush()
            self._event.clear()
        return bytes(passed)

    def _take_event(self, came: bytes) -> bytes:
        """The part of an event that is passed on."""
        self._said += 1
        if self._counts(came) and self._quiet:
            return b": " + came[5:].lstrip() if self._note else b""
        return unasked(came, came.removeprefix(b"data:")) if self._quiet else came

    def _counts(self, came: bytes) -> bool:
        """Takes the usage from an event; True when the event holds nothing else."""
        if b'"usage"' not in came or not came.startswith(b"data:"):
            return False
        found = _object(came[5:])
        self._take(found)
        return isinstance(found.get("usage"), dict) and not found.get("choices")

    def _take(self, found: JSON) -> None:
        self._usage = counts(found.get("usage")) or self._usage


def _told(model: str | None, error: UpstreamError | DeadlineError) -> str:
    """What the client is told of a model that failed."""
    said = error.told if isinstance(error, UpstreamError) else "did not answer before the request's deadline"
    return f"The model {model} {said}."


def _object(data: bytes | bytearray) -> JSON:
    try:
        found = orjson.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
