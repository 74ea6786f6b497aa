"""The loop: one answer, written step by step by two models.

One streaming request to the small model stays open. At each step end found in its stream the strategy is asked. *Keep*
does nothing. *Redo* closes the stream, has the large model write this step after the same prefix, and opens the small
model again on the new prefix. *Hand over* lets the large model write the rest.

A draft reaches the client only once it is kept. The session is pulled: it reads from a model only while somebody waits
for `next`, owns no task (but an optional warm-up request), and `close` frees everything at any moment.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from stepwise import features, verify
from stepwise.continuation import CHAT_PATH, build
from stepwise.features import State
from stepwise.metrics import Metrics
from stepwise.passage import Opened, Passage
from stepwise.probe import Capability
from stepwise.steps import Limits, Step
from stepwise.strategy import Context, Draft, NoVerdict, Run, Strategy, Turn, Verdict
from upstream.books import Books, Open
from upstream.client import DeadlineError, Piece, Upstream, UpstreamError
from upstream.endpoint import JSON
from upstream.tokens import TOP, Token, estimate
from upstream.usage import Counts, read
from upstream.writer import Call

_BLANK = "\n\n"
_LOOP_DRAFTS = 2  # a draft that repeats earlier steps this often in a row is rejected
_STEP_TOKENS = 128  # what a step of the large model is taken to cost before it is asked for
_LOOP_STEPS = 4  # an answer that repeats earlier steps this often in a row is ended


class Failed(Exception):
    """Neither model could go on. `status` and `body` are the HTTP answer, when nothing was sent yet."""

    def __init__(self, message: str, status: int, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


@dataclass(slots=True)
class Model:
    """One of the pair: its name in the configuration, its server, and what the probe found."""

    name: str
    upstream: Upstream
    capability: Capability
    suspect: bool = False  # it did not do what its capability says: probe it again
    asked: float | None = None  # when it was last probed, by the monotonic clock
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Budget(NamedTuple):
    """Limits of one answer. The first three end judging (whoever writes then writes the rest); tokens end the answer.

    `steps`; `seconds` of wall clock; `money` in the unit of the prices, for everything spent; `tokens` written by both
    models, rejected ones included.
    """

    steps: int = 30
    seconds: float = 120.0
    money: float | None = None
    tokens: int = 16384


@dataclass(frozen=True, slots=True)
class Setup:
    """What all answers of a stepwise decision share."""

    small: Model
    large: Model
    strategy: Strategy
    limits: Limits = field(default_factory=Limits)
    budget: Budget = field(default_factory=Budget)
    max_redos: int = 8
    token_budget: int = 4096  # `State.token_budget`
    warm_below: float | None = None  # scores under this warm the large model's prefix cache
    metrics: Metrics = field(default_factory=Metrics)


class Text(NamedTuple):
    """Something for the client. `entries`: the upstream's log probabilities of its tokens."""

    model: Model
    content: str = ""
    reasoning: str = ""
    entries: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """Who wrote what: one step of the answer.

    `action`: keep (a draft that was kept), redo (the large model's, for a rejected draft), loop (likewise, because the
    draft repeated earlier steps), unjudged (likewise, because the strategy failed), large (the strategy asked for it
    outright), handover, takeover (the other model failed), rest (written without being judged), cut (a beginning that
    the other model finished).
    """

    model: str
    action: str
    tokens: int
    score: float | None = None

    def to_json(self, index: int) -> JSON:
        score = {} if self.score is None else {"score": round(self.score, 4)}
        return {"index": index, "model": self.model, "action": self.action, "tokens": self.tokens, **score}


class Session:
    """One answer under way. `open` it, take what `next` gives until None, and `close` it in any case."""

    def __init__(self, setup: Setup, call: Call) -> None:
        """`call`: an eligible chat completion."""
        request = call.body
        self.finish: str | None = None  # the finish_reason, once the answer is complete
        self.records: list[Record] = []
        self.redos = 0  # drafts that the large model wrote anew, one by one; a hand-over is none
        self.settled: str | None = None  # why judging ended
        self._setup = setup
        self._call = call
        self._started = asyncio.get_running_loop().time()
        self._limit: int | None = request.get("max_completion_tokens") or request.get("max_tokens")
        self._top = max(TOP, request.get("top_logprobs") or 0) if request.get("logprobs") else TOP
        self._state = State(token_budget=setup.token_budget, difficulty=call.difficulty)
        key = zlib.crc32(repr(request["messages"]).encode("utf-8", "surrogatepass"))
        self._run: Run = setup.strategy.begin(Context(key, self._verify))
        self._turn = self._run.turn(self._state)
        ends = {model.name: model.upstream.endpoint for model in (setup.small, setup.large)}
        self._books = Books(ends, lambda: estimate(str(request["messages"])))
        self._dead: dict[str, UpstreamError] = {}
        self._parts: list[str] = []  # the answer so far: what the client has been or is being given
        self._written = 0  # its tokens
        self._out: deque[Text] = deque()
        self._model = setup.small  # the one that writes
        self._opened: Opened | None = None
        self._passage = Passage(setup.limits)
        self._again = False  # the next stream goes on with the step under way
        self._draft_tokens = 0  # of the draft that the large model replaces
        self._why = "large" if self._turn is Turn.LARGE else "rest"  # action of the next steps that are not drafts
        self._score: float | None = None
        self._repeats = 0  # accepted steps in a row that repeated an earlier one
        self._warming: asyncio.Task[None] | None = None
        self._closed = False

    async def open(self) -> None:
        """Has a model begin its answer. Raises Failed and DeadlineError."""
        while self._opened is None and self.finish is None:
            await self._advance()

    async def next(self) -> Text | None:
        """The next text for the client, or None when the answer is complete. Raises Failed and DeadlineError."""
        while not self._out:
            if self.finish is not None:
                return None
            await self._advance()
        return self._out.popleft()

    def close(self) -> None:
        """Frees everything, at any moment, any number of times. Never waits."""
        if self._closed:
            return
        self._closed = True
        self._drop()
        if self._warming is not None:
            self._warming.cancel()
        self._run.close()
        metrics = self._setup.metrics
        for name, account in self._books.accounts.items():
            metrics.requests[name] += account.requests
            metrics.tokens[name, "discarded"] += account.discarded
        for record in self.records:
            metrics.tokens[record.model, "kept"] += record.tokens
        if self.settled:
            metrics.settled[self.settled] += 1
        if self._call.charge is not None:
            self._call.charge(self._books.cost())

    def usage(self) -> JSON:
        """Tokens of both models, rejected ones included, in OpenAI's shape, with ours under `pointsman`."""
        ours = {
            "strategy": self._setup.strategy.name,
            "steps": [record.to_json(index) for index, record in enumerate(self.records)],
            "redos": self.redos,
            "settled": self.settled,
        }
        return self._books.usage(ours, self._told())

    # --- one move ----------------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        """Opens the stream that the turn needs, or takes one piece from it."""
        try:
            if self._exhausted():
                self._drop()
                self.finish = "length"
            elif self._overspent():
                self._drop()
                self._turn, self._why, self.settled = Turn.SMALL_REST, "rest", "money"
            elif self._opened is None:
                await self._open()
            elif (piece := await self._pull()) is None:
                await self._conclude()
            elif self._turn is Turn.DRAFT:
                await self._draft(piece.tokens)
            else:
                self._flow(piece.tokens)
        except UpstreamError as error:
            self._fail(error)

    async def _open(self) -> None:
        """Asks the turn's model to go on from the answer so far."""
        setup = self._setup
        self._model = model = setup.small if self._turn in (Turn.DRAFT, Turn.SMALL_REST) else setup.large
        capability = model.capability
        prefix = "".join(self._parts)
        stopped = self._turn is Turn.LARGE and capability.stop_reason and not self._again
        if not self._again:
            self._passage = Passage(setup.limits, prefix)
        self._again = False
        path, body = build(
            capability.mode,
            self._call.body,
            prefix,
            max_tokens=None if self._limit is None else self._limit - self._written,
            stop=(_BLANK,) if stopped else (),
            top_logprobs=self._top if capability.logprobs else -1,
            running_usage=capability.running_usage,
            template=model.upstream.endpoint.template,
        )
        self._books.asked(model.name)
        stream = await model.upstream.open(path, body, self._call.forwarded, self._call.deadline)
        self._opened = Opened(model.name, stream, prefix, stopped)

    async def _pull(self) -> Piece | None:
        """The open request's next piece; None at the end."""
        assert self._opened is not None
        piece = await self._opened.next()
        if piece is not None and piece.reasoning:
            # Thoughts in a field of their own: no other model could continue them, so they just pass.
            self._out.append(Text(self._model, reasoning=piece.reasoning))
        return piece

    async def _draft(self, tokens: list[Token]) -> None:
        """The small model goes on with its draft."""
        for place, token in enumerate(tokens):
            for step in self._passage.feed(token):
                if self._turn is Turn.SMALL_REST:
                    self._accept(step, "rest", None)
                elif not await self._decide(step) or self._opened is None:
                    return
                self._passage.fresh = True
            if self._turn is Turn.SMALL_REST:
                self._flow(tokens[place + 1 :])
                return
            if self._passage.fresh and not self._glance():
                self._reject("redo", None, sum(token.size for token in self._passage.unfinished))
                return

    def _glance(self) -> bool:
        """Shows the strategy the draft's first token, once it has come."""
        first = next((token for token in self._passage.unfinished if token.logprob is not None), None)
        if first is None:
            return True
        self._passage.fresh = False
        return self._unjudged() is not None or self._run.glance(first, self._state)

    def _flow(self, tokens: Iterable[Token]) -> None:
        """A model goes on with text that nobody will reject: it is said as it comes."""
        said: list[Token] = []
        for token in tokens:
            for step in self._passage.feed(token):
                said += self._passage.rest(step)
                if self._turn is Turn.LARGE:  # what came after its step is dropped
                    self._say(said)
                    self._complete(step)
                    self._follow(self._run.turn(self._state))
                    return
                self._complete(step)
        # While a blank line may yet turn out to be the step's end, what follows it is held back.
        if self._turn is not Turn.LARGE or not self._passage.waiting:
            said += self._passage.show()
        self._say(said)
        if self._repeats >= _LOOP_STEPS:
            self._drop()
            self.finish = "length"

    async def _conclude(self) -> None:
        """The open stream is complete."""
        request = self._opened
        assert request is not None
        ended = request.ended or Piece(finish="stop")
        if request.stopped and ended.stop_reason == _BLANK:
            if request.used or self._passage.unfinished:
                self._flow([Token(_BLANK, size=0)])
            if self._turn is Turn.LARGE and self._opened is not None:
                self._say(self._passage.show())
                self._drop()
                self._again = True  # this blank line ends no step: go on without a stop
            return
        last = self._passage.finish()
        if last is not None and self._turn is Turn.DRAFT:
            if last.text.isspace():
                self._say(last.tokens)
            elif ended.finish not in ("stop", "length"):  # a filter at the server has spoken: nothing to judge
                self._accept(last, "rest", None)
            elif not await self._decide(last):
                return
        elif last is not None:
            self._say(self._passage.rest(last))
            if not last.text.isspace():
                self._complete(last)
        self._drop()
        self.finish = ended.finish

    # --- decisions ---------------------------------------------------------------------------------------------------

    async def _decide(self, step: Step) -> bool:
        """Judges a draft: True when it is kept."""
        if reason := self._unjudged():
            self._accept(step, "rest", None)
            self.settled, self._turn = reason, Turn.SMALL_REST
            return True
        vector, after = features.draft(step, self._state)
        verdict, action = Verdict(False), "redo"
        if self._state.repeats(step) and self._repeats + 1 >= _LOOP_DRAFTS:
            action = "loop"
        else:
            try:
                verdict = await self._run.judge(Draft(step, vector, self._state))
            except NoVerdict as error:
                action = "unjudged"
                self._setup.metrics.safe_side[error.reason] += 1
        self._state = after
        if not verdict.keep:
            self._reject(action, verdict.score, step.size)
            return False
        self._accept(step, "keep", verdict.score)
        self._follow(self._run.turn(self._state))
        if verdict.score is not None and verdict.score < (self._setup.warm_below or -math.inf):
            self._warm()
        return True

    def _accept(self, step: Step, action: str, score: float | None) -> None:
        """The small model's draft becomes part of the answer."""
        self._count_repeats(step)
        self._state = self._state.kept(step)
        self._record(step.size, action, score)
        self._say(step.tokens)

    def _reject(self, action: str, score: float | None, tokens: int) -> None:
        """The draft is dropped, and the large model writes this step, or all that is left."""
        setup = self._setup
        setup.metrics.steps[setup.small.name, "rejected"] += 1
        self._drop()
        self._draft_tokens, self._score = tokens, score
        if self.redos >= setup.max_redos or setup.small.capability.mode is None:
            self._turn, self._why, self.settled = Turn.LARGE_REST, "handover", "redos"
        else:
            self._turn, self._why = Turn.LARGE, action
            self.redos += 1

    def _complete(self, step: Step) -> None:
        """A step that nobody judged is in the answer."""
        self._count_repeats(step)
        self._record(step.size, self._why, self._score)
        small = self._model is self._setup.small
        self._state = self._state.kept(step) if small else self._state.redone(self._draft_tokens, step)
        self._draft_tokens, self._score = 0, None

    def _follow(self, turn: Turn) -> None:
        """The strategy has said who writes the next step: the open stream goes on if it is the right one."""
        if turn is self._turn is Turn.DRAFT:
            return
        if self._turn is Turn.DRAFT and turn is Turn.SMALL_REST:
            self._turn = turn
        else:
            self._turn = turn
            self._drop()
        self._why = "large" if turn is Turn.LARGE else "rest"

    def _fail(self, error: UpstreamError) -> None:
        """The model that was writing failed: the other one writes the rest. Raises Failed when it has failed too."""
        setup, model = self._setup, self._model
        setup.metrics.upstream_errors[model.name, error.kind] += 1
        model.suspect = model.suspect or error.kind == "restart"
        if (cut := self._passage.cut) is not None:
            self._record(cut, "cut")
        self._drop()
        self._again = False
        self._dead[model.name] = error
        small = model is setup.large
        other = setup.small if small else setup.large
        if other.name in self._dead:
            raise _failed(list(self._dead.values()))
        self._turn = Turn.SMALL_REST if small else Turn.LARGE_REST
        self._why, self._score, self.settled = "takeover", None, "upstream"

    def _unjudged(self) -> str | None:
        """Which budget has ended judging, if one has."""
        budget = self._setup.budget
        if self._state.index >= budget.steps:
            return "steps"
        if asyncio.get_running_loop().time() - self._started >= budget.seconds:
            return "seconds"
        if budget.money is not None:
            large = self._setup.large
            prompt = self._books.prompt_tokens(large.name, sum(map(len, self._parts)))
            if self._spent() + large.upstream.endpoint.cost(prompt, _STEP_TOKENS) > budget.money:
                return "money"
        return None

    def _exhausted(self) -> bool:
        """Is there nothing left to write with?"""
        request = self._opened
        spent = self._books.written + (0 if request is None else request.stream.received)
        return spent >= self._setup.budget.tokens or (
            self._limit is not None and request is None and self._written >= self._limit
        )

    def _overspent(self) -> bool:
        """Has the large model, writing the rest, used up the money, while the small one could go on?"""
        setup = self._setup
        return (
            self._turn is Turn.LARGE_REST
            and setup.budget.money is not None
            and self._spent() >= setup.budget.money
            and setup.small.capability.mode is not None
            and setup.small.name not in self._dead
        )

    # --- the other requests ------------------------------------------------------------------------------------------

    async def _verify(self, step: Step) -> float:
        """The large model's opinion of a draft, 0..1, from one token. Raises NoVerdict."""
        body = verify.request(self._call.body["messages"], "".join(self._parts), step.text)
        try:
            answer = await self._ask_large(CHAT_PATH, body)
        except UpstreamError as error:
            self._setup.metrics.upstream_errors[self._setup.large.name, error.kind] += 1
            raise NoVerdict("verify_failed", str(error)) from error
        return verify.mark(answer)

    def _warm(self) -> None:
        """Has the large model read the prefix, in the background, because it may soon be needed."""
        if self._warming is not None and not self._warming.done():
            return
        model, prefix = self._setup.large, "".join(self._parts)

        async def warm() -> None:
            try:
                template = model.upstream.endpoint.template
                path, body = build(model.capability.mode, self._call.body, prefix, max_tokens=1, template=template)
                del body["stream"], body["stream_options"]
                await self._ask_large(path, body)
            except (UpstreamError, DeadlineError):
                self._setup.metrics.upstream_errors[model.name, "warm"] += 1

        self._warming = asyncio.create_task(warm())

    async def _ask_large(self, path: str, body: JSON) -> JSON:
        """A request whose answer is no part of the text; its tokens count as discarded."""
        large = self._setup.large
        self._books.asked(large.name)
        answer = await large.upstream.ask(path, body, self._call.forwarded, self._call.deadline)
        given = answer.get("usage")
        if given and not isinstance(given, dict):
            raise UpstreamError("garbage", f"{large.name} sent a malformed usage")
        said = read(given)
        self._books.aside(large.name, Counts(said.prompt or 0, said.completion or 1))
        return answer

    # --- books -------------------------------------------------------------------------------------------------------

    def _say(self, tokens: Iterable[Token]) -> None:
        """Text becomes part of the answer, and goes to the client."""
        tokens = list(tokens)
        size = sum(token.size for token in tokens)
        self._written += size
        if self._opened is not None:
            self._opened.used += size
        if text := "".join(token.text for token in tokens):
            self._parts.append(text)
            self._out.append(Text(self._model, text, entries=tuple(token.raw for token in tokens if token.raw)))

    def _record(self, tokens: int, action: str, score: float | None = None) -> None:
        self.records.append(Record(self._model.name, action, tokens, score))
        self._setup.metrics.steps[self._model.name, action] += 1

    def _count_repeats(self, step: Step) -> None:
        self._repeats = self._repeats + 1 if self._state.repeats(step) else 0

    def _drop(self) -> None:
        """Closes the open stream, if there is one, and enters what it cost."""
        request, self._opened = self._opened, None
        if request is not None:
            request.stream.close()
            self._books.stream(request.tell(), request.used, request.stream.counts)

    def _told(self) -> Open | None:
        """What the books are to know of the open request."""
        return None if self._opened is None else self._opened.tell()

    def _spent(self) -> float:
        """Money so far, the open stream included."""
        return self._books.cost(self._told())


def _failed(errors: list[UpstreamError]) -> Failed:
    """What the client is told when both models failed: the first one's own words if it refused the request."""
    first = errors[0]
    if all(400 <= error.status < 500 for error in errors):
        return Failed(str(first), first.status, first.body)
    status = 504 if all(error.kind == "timeout" for error in errors) else 502
    return Failed("Neither model could answer: " + "; ".join(error.kind for error in errors) + ".", status)
