"""One answer of a panel under way: who was asked what, what it has taken, and how it is ended.

A sitting owns every call and every task of its answer. `close` frees them all at once and never waits: that is what
stops the models when the client has gone, or when an answer is decided.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from panel.certainty import Surety
from panel.metrics import PanelMetrics
from signals.state.store import Store
from upstream.apis.shape import Spoken
from upstream.books import Books, Open
from upstream.client import CompletionStream, DeadlineError, ModelClient, UpstreamError
from upstream.endpoint import JSON
from upstream.tokens import TOP, Token, estimate
from upstream.toolcalls import json_object, tool_calls
from upstream.usage import TokenCounts, counts
from upstream.writer import MOST_TOLD, Call

CHAT_PATH: Final = "/v1/chat/completions"
LONGEST: Final = 1 << 20
"""Characters of one member's answer, the arguments of tools included; what is longer counts as garbage, since it is
held in memory."""


class NoAnswer(Exception):
    """No answer can be given any more. `status` and `body` are the HTTP answer, when nothing was sent yet."""

    def __init__(self, message: str, status: int, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


@dataclass(frozen=True, slots=True)
class PanelLimits:
    """PanelLimits of one answer: see `PanelBudget`."""

    calls: int
    seconds: float
    each: float
    money: float | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """One model of a panel, by its key in the policy. `trust`: the domains whose requests it may see."""

    name: str
    upstream: ModelClient
    quality: float = 1.0
    trust: frozenset[str] = frozenset()
    about: str = ""


@dataclass(frozen=True, slots=True)
class Room:
    """What all answers of one panel share."""

    kind: str
    members: Mapping[str, Member]
    limits: PanelLimits
    metrics: PanelMetrics
    store: Store


@dataclass(slots=True)
class Wish:
    """How a member is asked beside the client's own words: `why` is told in the trace and counted. `messages` stand in
    the place of the client's, `more` are fields of the request. `sure`: log probabilities are needed. `bare`: none
    of the client's parameters hold, since the call is not its answer but about others'; its log probabilities are kept
    where they are needed."""

    why: str
    messages: list[JSON] | None = None
    more: JSON = field(default_factory=dict)
    sure: bool = False
    bare: bool = False


class MemberCall:
    """One call of a member. Read it with `next` until None, or as a whole with `all`; `close` it then or earlier."""

    def __init__(self, sitting: Sitting, member: Member, wish: Wish, limit: float) -> None:
        self.member = member
        self.why = wish.why
        self.said: list[Spoken] = []
        self.finish: str | None = None
        self.error: UpstreamError | None = None
        self.released = False
        self.surety = Surety()
        self.counts: TokenCounts | None = None
        self.received = 0  # tokens, by our own count
        self._sitting = sitting
        self._wish = wish
        self._limit = limit  # on the loop's clock; after it the member counts as failed
        self._stream: CompletionStream | None = None
        self._size = 0
        self._closed = False
        self._began: float | None = None  # on the loop's clock, as `_ended`
        self._ended = 0.0

    @property
    def text(self) -> str:
        """What it has said so far, thoughts left out."""
        return "".join(piece.text for piece in self.said)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self._closed

    @property
    def complete(self) -> bool:
        """Whether the answer came to an end of its own, with something said."""
        return self.error is None and self.finish in ("stop", "tool_calls", "function_call") and bool(self.said)

    @property
    def cut(self) -> bool:
        """Whether the answer ended at a limit of its length, with something said."""
        return self.error is None and self.finish == "length" and bool(self.said)

    async def next(self) -> Spoken | None:
        """The next piece, or None at the end. Raises UpstreamError and DeadlineError (the answer's own is over)."""
        sitting = self._sitting
        try:
            if self._stream is None:
                if self._closed:
                    return None
                body = sitting.body(self._wish)
                self._began = asyncio.get_running_loop().time()
                sitting.books.asked(self.member.name)
                upstream = self.member.upstream
                self._stream = await upstream.open(CHAT_PATH, body, sitting.call.forwarded, self._limit)
            piece = await self._stream.next()
        except DeadlineError:
            raise self._late() from None
        except UpstreamError as error:
            raise self._failed(error) from error
        except BaseException:
            self.close()
            raise
        if piece is None:
            if sitting.objects and not self.released and not self.cut and not _objects(self.said):
                raise self._failed(UpstreamError("garbage", f"{self.member.name} called a tool with no JSON object"))
            self.close()
            return None
        for token in piece.tokens:
            self.surety.feed(token)
        self.finish = piece.finish or self.finish
        text = "".join(token.text for token in piece.tokens)
        self._size += len(text) + len(piece.reasoning) + sum(_length(part) for part in piece.tools)
        if self._size > LONGEST:
            raise self._failed(UpstreamError("garbage", f"{self.member.name} wrote over {LONGEST} characters"))
        kept = self._wish.sure if self._wish.bare else sitting.entries
        spoken = Spoken(text, piece.reasoning, tuple(piece.tools), _entries(piece.tokens) if kept else ())
        if spoken != _NOTHING:
            self.said.append(spoken)
        return spoken

    async def whole(self) -> JSON | None:
        """The answer in one object, as a chat completion that is not streamed: it is about another's text, and never
        goes to the client. None where it fails. Raises DeadlineError, where the answer's own time is over."""
        sitting, upstream = self._sitting, self.member.upstream
        body = {key: value for key, value in sitting.body(self._wish).items() if key not in _STREAM}
        self._began = asyncio.get_running_loop().time()
        sitting.books.asked(self.member.name)
        try:
            answer = await upstream.ask(CHAT_PATH, body, sitting.call.forwarded, self._limit)
            self.counts = counts(answer.get("usage"))
        except DeadlineError:
            self._late()
            return None
        except UpstreamError as error:
            self._failed(error)
            return None
        finally:
            self.close()
        if self.counts is not None:
            sitting.books.aside(self.member.name, self.counts)
        return answer

    async def all(self) -> None:
        """Reads it to its end. A failure is in `error`; only the end of the answer's own time is raised
        (DeadlineError)."""
        try:
            while await self.next() is not None:
                pass
        except UpstreamError:
            pass

    def close(self) -> None:
        """Ends the call, and enters what it took. At any moment, any number of times; never waits."""
        if self._closed:
            return
        self._closed = True
        self._ended = asyncio.get_running_loop().time()
        if self._stream is None:  # nothing came of it: nobody has counted anything
            return
        self.counts, self.received = self._stream.counts, self._stream.received
        self._stream.close()
        used = self.received if self.released else 0
        self._sitting.books.stream(Open(self.member.name, 0, self.received), used, self.counts)

    def release(self) -> None:
        """What it says goes to the client."""
        self.released = True
        if self._stream is not None:  # what limits a call is for those that the client does not see
            self._stream.deadline = self._sitting.deadline
        if self._closed:  # its tokens were entered as thrown away
            self._sitting.books.accounts[self.member.name].discarded -= self.received
        metrics = self._sitting.room.metrics
        metrics.released[self._sitting.room.kind, self.member.name] += 1

    def to_json(self) -> JSON:
        """What the trace tells of it: nothing of its text."""
        prompt, completion = self._took()
        endpoint = self.member.upstream.endpoint
        cached, written = (self.counts.cached, self.counts.written) if self.counts is not None else (0, 0)
        told: JSON = {
            "model": self.member.name,
            "why": self.why,
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "cost": round(endpoint.cost(prompt, completion, cached, written), 9),
            "released": self.released,
        }
        if self._began is not None:
            until = self._ended if self._closed else asyncio.get_running_loop().time()
            told |= {"began": round(self._began - self._sitting.began, 4), "seconds": round(until - self._began, 4)}
        if self.error is not None:
            told["error"] = self.error.kind
        return told

    def _took(self) -> tuple[int, int]:
        """Prompt and completion tokens so far."""
        counted = self.counts or (None if self._stream is None else self._stream.counts)
        if counted is not None:
            return counted.prompt, counted.completion
        if self._stream is None:
            return 0, 0
        return self._sitting.books.prompt_tokens(self.member.name, 0), self._stream.received

    def _late(self) -> UpstreamError:
        """The failure of a member whose time is over. Raises DeadlineError, where that of the whole answer is."""
        if asyncio.get_running_loop().time() >= self._sitting.deadline:
            self.close()
            raise DeadlineError("the answer's deadline has passed")
        return self._failed(UpstreamError("timeout", f"{self.member.name} took too long"))

    def _failed(self, error: UpstreamError) -> UpstreamError:
        self.error = error
        self.close()
        self._sitting.room.metrics.upstream_errors[self.member.name, error.kind] += 1
        return error


_NOTHING: Final = Spoken()


class Sitting:
    """One answer. `question` is the client's call as a chat completion."""

    def __init__(
        self, room: Room, call: Call, question: JSON, members: Mapping[str, Member], objects: bool = False
    ) -> None:
        """`members`: those that may see this request, in the room's order. `objects`: the client's API has the
        arguments of a tool's call as a JSON object, so that an answer with anything else is no answer."""
        now = asyncio.get_running_loop().time()
        until = now + room.limits.seconds
        self.began = now
        self.room = room
        self.call = call
        self.question = question
        self.members = members
        self.objects = objects
        self.deadline = until if call.deadline is None else min(until, call.deadline)
        self.asked: list[MemberCall] = []
        self.entries = bool(question.get("logprobs"))  # the client wants to see log probabilities
        self.finish: str | None = None  # the finish_reason, once the answer is complete
        messages = question["messages"]
        ends = {name: member.upstream.endpoint for name, member in members.items()}
        self.books = Books(ends, lambda: estimate(str(messages)))
        self._tasks: list[asyncio.Task[None]] = []
        self._closed = False

    @property
    def spent(self) -> bool:
        """Whether the budget allows no further call."""
        limits = self.room.limits
        if len(self.asked) >= limits.calls or asyncio.get_running_loop().time() >= self.deadline:
            return True
        return limits.money is not None and self.books.cost() >= limits.money

    def ask(self, member: Member, wish: Wish, patient: bool = False) -> MemberCall:
        """A call of `member`, which begins when it is read. `patient`: it may take as long as the whole answer."""
        now = asyncio.get_running_loop().time()
        limit = self.deadline if patient else min(self.deadline, now + self.room.limits.each)
        made = MemberCall(self, member, wish, limit)
        self.asked.append(made)
        self.room.metrics.calls[member.name, wish.why] += 1
        return made

    def begin(self, asked: MemberCall) -> asyncio.Task[None]:
        """Reads a call to its end beside others."""
        task = asyncio.create_task(self._read(asked))
        self._tasks.append(task)
        return task

    async def _read(self, asked: MemberCall) -> None:
        try:
            await asked.all()
        except DeadlineError:
            asked.error = asked.error or UpstreamError("timeout", "the time of the answer is over")

    def body(self, wish: Wish) -> JSON:
        """The request of a call."""
        question = self.question
        body: JSON = {} if wish.bare else {key: value for key, value in question.items() if key not in _OURS}
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        if (self.entries and not wish.bare) or wish.sure:
            top = question.get("top_logprobs") or 0
            body |= {"logprobs": True, "top_logprobs": max(TOP, top) if wish.sure else top}
        if wish.messages is not None:
            body["messages"] = wish.messages
        return {**body, **wish.more}

    def give_up(self) -> NoAnswer:
        """What the client is told when no member could answer: the first one's own words if all refused the request."""
        errors = [asked.error for asked in self.asked if asked.error is not None]
        if errors and all(400 <= error.status < 500 for error in errors):
            return NoAnswer(str(errors[0]), errors[0].status, errors[0].body)
        late = asyncio.get_running_loop().time() >= self.deadline or {error.kind for error in errors} == {"timeout"}
        why = "; ".join(error.kind for error in errors) or ("time is up" if late else "no call was allowed")
        return NoAnswer(f"No member of the panel could answer: {why}.", 504 if late else 502)

    def usage(self) -> JSON:
        """Tokens of all members, thrown-away ones included, in OpenAI's shape, with ours under `pointsman`."""
        return self.books.usage({"panel": self.room.kind, "calls": [asked.to_json() for asked in self.asked]})

    def close(self) -> None:
        """Frees everything, at any moment, any number of times. Never waits."""
        if self._closed:
            return
        self._closed = True
        for task in self._tasks:
            task.cancel()
        for asked in self.asked:
            asked.close()
        tokens = self.room.metrics.tokens
        for name, account in self.books.accounts.items():
            tokens[name, "discarded"] += account.discarded
            tokens[name, "kept"] += account.completion - account.discarded
        if self.call.charge is not None:
            calls = [asked.to_json() for asked in self.asked[:MOST_TOLD]]
            course = {"panel": self.room.kind, "calls": calls, "count": len(self.asked)}
            self.call.charge(self.books.spent()._replace(course=course))


_OURS: Final = frozenset(("model", "stream", "stream_options", "n", "store", "metadata", "logprobs", "top_logprobs"))


_STREAM: Final = frozenset(("stream", "stream_options"))


def _entries(tokens: list[Token]) -> tuple[object, ...]:
    return tuple(token.raw for token in tokens if token.raw is not None)


def _length(part: JSON) -> int:
    """Characters of a piece of a tool's call."""
    return len((part.get("function") or {}).get("arguments") or "")


def _objects(said: list[Spoken]) -> bool:
    """Whether the arguments of every tool's call are a JSON object."""
    calls = tool_calls(part for piece in said for part in piece.tools)
    return all(json_object(call.arguments) is not None for call in calls)
