"""The loop: one answer, written step by step by two models.

One streaming request to the small model stays open. At each step end found in its stream the strategy is asked. *Keep*
does nothing. *Redo* closes the stream, has the large model write this step after the same prefix, and opens the small
model again on the new prefix. *Hand over* lets the large model write the rest.

A draft reaches the client only once it is kept. *Ask* leaves that to the large model's mark, and the small model goes
on drafting meanwhile, at most one step. The session is pulled: it reads from a model only while somebody waits for
`next`, owns no task (but the requests of `aside`), and `close` frees everything at any moment. Whose turn it is is in
`course`, what was written in `transcript`, what may still be taken in `allowance`.
"""

from __future__ import annotations

import asyncio
import math
import zlib
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from stepwise import features
from stepwise.asking.continuation import Continuation, began, build
from stepwise.asking.pair import PairModel, Setup
from stepwise.features import State
from stepwise.loop.allowance import Allowance
from stepwise.loop.aside import Aside
from stepwise.loop.course import Course
from stepwise.loop.passage import Opened, Passage
from stepwise.loop.transcript import Loops, Record, Text, Transcript
from stepwise.steps import End, Step
from stepwise.strategy import KEPT, REJECTED, AnswerContext, Draft, Judgement, NoJudgement, Run, Turn
from upstream.books import Books, Open
from upstream.client import Delta, UpstreamError
from upstream.endpoint import JSON
from upstream.tokens import TOP, Token, estimate
from upstream.writer import MOST_TOLD, Call


class Failed(Exception):
    """Neither model could go on. `status` and `body` are the HTTP answer, when nothing was sent yet."""

    def __init__(self, message: str, status: int, body: bytes = b"") -> None:
        super().__init__(message)
        self.status = status
        self.body = body


class Marking(NamedTuple):
    """A draft that the large model is marking. `state`: what is known without the draft; `mark`: what it will say."""

    step: Step
    verdict: Judgement
    state: State
    mark: asyncio.Task[float]


class Session:
    """One answer under way. `open` it, take what `next` gives until None, and `close` it in any case."""

    def __init__(self, setup: Setup, call: Call) -> None:
        """`call`: an eligible chat completion."""
        request = call.body
        self.finish: str | None = None  # the finish_reason, once the answer is complete
        self._setup = setup
        self._call = call
        self._top = max(TOP, request.get("top_logprobs") or 0) if request.get("logprobs") else TOP
        self._state = State(token_budget=setup.token_budget, difficulty=call.difficulty)
        ends = {model.name: model.upstream.endpoint for model in (setup.small, setup.large)}
        self._books = Books(ends, lambda: estimate(str(request["messages"])))
        limit: int | None = request.get("max_completion_tokens") or request.get("max_tokens")
        self._allowance = Allowance(setup, self._books, limit)
        apart = any(model.capability.thoughts == "field" for model in (setup.small, setup.large))
        self._transcript = Transcript(setup.metrics, apart=apart)
        self._aside = Aside(setup, call, self._books, self._transcript)
        key = zlib.crc32(repr(request["messages"]).encode("utf-8", "surrogatepass"))
        self._run: Run = setup.strategy.begin(AnswerContext(key, self._aside.verify, setup.marks is not None))
        self._course = Course(self._run.turn(self._state), setup.max_redos)
        self._loops = Loops()
        self._dead: dict[str, UpstreamError] = {}
        self._model = setup.small  # the one that writes
        self._opened: Opened | None = None
        self._passage = Passage(setup.limits)
        self._again = False  # the next stream goes on with the step under way
        self._asked: Marking | None = None  # the step before the one under way
        self._closed = False

    @property
    def records(self) -> list[Record]:
        """Who wrote what so far."""
        return self._transcript.records

    @property
    def redos(self) -> int:
        """Drafts that the large model wrote anew, one by one; a hand-over is none."""
        return self._course.redos

    async def open(self) -> None:
        """Has a model begin its answer. Raises Failed and DeadlineError."""
        while self._opened is None and self.finish is None:
            await self._advance()

    async def next(self) -> Text | None:
        """The next text for the client, or None when the answer is complete. Raises Failed and DeadlineError."""
        out = self._transcript.out
        while not out:
            if self.finish is not None:
                self._transcript.end(self._model)
                return out.popleft() if out else None
            await self._advance()
        return out.popleft()

    def close(self) -> None:
        """Frees everything, at any moment, any number of times. Never waits."""
        if self._closed:
            return
        self._closed = True
        self._drop()
        self._aside.close()
        self._run.close()
        metrics = self._setup.metrics
        for name, account in self._books.accounts.items():
            metrics.requests[name] += account.requests
            metrics.tokens[name, "discarded"] += account.discarded
        for record in self.records:
            metrics.tokens[record.model, "kept"] += record.tokens
        if settled := self._course.settled:
            metrics.settled[settled] += 1
        if self._call.charge is not None:
            self._call.charge(self._books.spent()._replace(course=self._course_told(MOST_TOLD)))

    def usage(self) -> JSON:
        """Tokens of both models, rejected ones included, in OpenAI's shape, with ours under `pointsman`."""
        return self._books.usage(self._course_told(), self._told())

    def _course_told(self, most: int | None = None) -> JSON:
        """How the answer came about: the first `most` of its steps, or all."""
        return {
            "strategy": self._setup.strategy.name,
            "steps": [record.to_json(index) for index, record in enumerate(self.records[:most])],
            "redos": self.redos,
            "settled": self._course.settled,
            **({} if most is None else {"count": len(self.records)}),
        }

    # --- one move ----------------------------------------------------------------------------------------------------

    async def _advance(self) -> None:
        """Opens the stream that the turn needs, or takes one piece from it."""
        setup = self._setup
        try:
            course, told = self._course, self._told()
            if self._allowance.exhausted(self._transcript.tokens, told):
                self._drop()
                self.finish = "length"
            elif course.turn is Turn.LARGE_REST and self._goes_on(setup.small) and self._allowance.overspent(told):
                self._drop()
                course.settle("money")
            elif self._opened is None:
                await self._open()
            elif (piece := await self._pull()) is None:
                await self._conclude()
            elif course.turn is Turn.DRAFT:
                await self._draft(piece.tokens)
            else:
                self._flow(piece.tokens)
        except UpstreamError as error:
            self._fail(error)

    async def _open(self) -> None:
        """Asks the turn's model to go on from the answer so far."""
        setup = self._setup
        self._model = model = setup.small if self._course.small else setup.large
        capability = model.capability
        prefix = self._transcript.text
        stop = setup.limits.stop if self._course.turn is Turn.LARGE and capability.stop_reason else None
        stop = None if self._again else stop
        if not self._again:
            self._passage = Passage(setup.limits, prefix)
        self._again = False
        how = Continuation(
            max_tokens=self._allowance.left(self._transcript.tokens),
            stop=() if stop is None else (stop,),
            top_logprobs=self._top if capability.logprobs else -1,
            running_usage=capability.running_usage,
            template=model.template,
        )
        asked = build(capability.mode, self._call.body, prefix, how)
        self._books.asked(model.name)
        stream = await model.upstream.open(*asked, self._call.forwarded, self._call.deadline)
        self._opened = Opened(model.name, stream, self._transcript, stop, began(asked, prefix))

    async def _pull(self) -> Delta | None:
        """The open request's next piece; None at the end."""
        assert self._opened is not None
        piece = await self._opened.next()
        if piece is not None and piece.reasoning:
            # Thoughts in a field of their own, which come only where no chat template is known with which another model
            # could continue them: they just pass.
            self._transcript.out.append(Text(self._model, reasoning=piece.reasoning))
        return piece

    async def _draft(self, tokens: list[Token]) -> None:
        """The small model goes on with its draft."""
        course, setup = self._course, self._setup
        if self._asked is not None and self._asked.mark.done() and not await self._heard():
            return
        for place, token in enumerate(tokens):
            for step in self._passage.feed(token):
                if course.turn is Turn.SMALL_REST:
                    self._accept(step, "rest", KEPT)
                elif not await self._decide(step) or self._opened is None:
                    return
                self._passage.fresh = True
            if course.turn is Turn.SMALL_REST:
                self._flow(tokens[place + 1 :])
                return
            rejected = None
            if self._passage.fresh and not self._glance():
                rejected = REJECTED
            elif self._passage.due(setup.verdict_tokens) and self._unjudged() is None:
                rejected = await self._so_far()
            if rejected is not None:
                if await self._heard():
                    self._reject("redo", rejected, self._passage.size)
                return

    def _glance(self) -> bool:
        """Shows the strategy the draft's first token, once it has come."""
        first = next((token for token in self._passage.unfinished if token.logprob is not None), None)
        if first is None:
            return True
        self._passage.fresh = False
        return self._unjudged() is not None or self._run.glance(first, self._state)

    async def _so_far(self) -> Judgement | None:
        """The strategy's verdict on the draft so far, where that is enough to reject it."""
        step = Step(self._passage.unfinished, End.CAP, self._passage.thought)
        vector, _ = features.draft(step, self._state)
        verdict = await self._run.running(Draft(step, vector, self._state))
        return None if verdict.keep else verdict

    def _flow(self, tokens: Iterable[Token]) -> None:
        """A model goes on with text that nobody will reject: it is said as it comes."""
        said: list[Token] = []
        for token in tokens:
            for step in self._passage.feed(token):
                said += self._passage.rest(step)
                if self._course.turn is Turn.LARGE:  # what came after its step is dropped
                    self._say(said)
                    self._complete(step)
                    self._follow(self._run.turn(self._state))
                    return
                self._complete(step)
        # While a blank line may yet turn out to be the step's end, what follows it is held back.
        if self._course.turn is not Turn.LARGE or not self._passage.waiting:
            said += self._passage.show()
        self._say(said)
        if self._loops.endless:
            self._drop()
            self.finish = "length"

    async def _conclude(self) -> None:
        """The open stream is complete."""
        request = self._opened
        assert request is not None
        ended = request.ended or Delta(finish="stop")
        if request.stop is not None and ended.stop_reason == request.stop:
            if request.used or self._passage.unfinished:
                self._flow([Token(request.stop, size=0)])
            if self._course.turn is Turn.LARGE and self._opened is not None:
                self._say(self._passage.show())
                self._drop()
                self._again = True  # this blank line ends no step: go on without a stop
            return
        if not await self._heard():
            return
        last = self._passage.finish()
        if last is not None and self._course.turn is Turn.DRAFT:
            if last.text.isspace():
                self._say(last.tokens)
            elif ended.finish not in ("stop", "length"):  # a filter at the server has spoken: nothing to judge
                self._accept(last, "rest", KEPT)
            elif not (await self._decide(last) and await self._heard()):
                return
        elif last is not None:
            self._say(self._passage.rest(last))
            if not last.text.isspace():
                self._complete(last)
        self._drop()
        self.finish = ended.finish

    # --- decisions ---------------------------------------------------------------------------------------------------

    async def _decide(self, step: Step) -> bool:
        """Judges a draft: True when it is kept, or when the large model has been asked about it."""
        if not await self._heard():
            return False
        if reason := self._unjudged():
            self._accept(step, "rest", KEPT)
            self._course.settle(reason)
            return True
        vector, after = features.draft(step, self._state)
        verdict, action = REJECTED, "redo"
        if self._loops.caught(self._state.repeats(step)):
            action = "loop"
        else:
            try:
                verdict = await self._run.judge(Draft(step, vector, self._state))
            except NoJudgement as error:
                action = "unjudged"
                self._setup.metrics.safe_side[error.reason] += 1
        if verdict.ask is not None:
            self._asked = Marking(step, verdict, after, self._aside.mark(step))
            self._state = after.kept(step)
            return True
        self._state = after
        if not verdict.keep:
            self._reject(action, verdict, step.size)
            return False
        self._accept(step, "keep", verdict)
        self._follow(self._run.turn(self._state))
        if verdict.score is not None and verdict.score < (self._setup.warm_below or -math.inf):
            self._aside.warm()
        return True

    async def _heard(self) -> bool:
        """Waits for the mark of the draft that the large model was asked about, if there is one.

        False when the open stream does not go on: the draft was bad, and what came after it is dropped, too.
        """
        asked, self._asked = self._asked, None
        if asked is None:
            return True
        metrics, verdict, least = self._setup.metrics, asked.verdict, asked.verdict.ask or 0.0
        self._state, action, outcome = asked.state, "redo", "rejected"
        try:
            mark = await asked.mark
            verdict = verdict._replace(mark=mark, keep=mark >= least)
        except NoJudgement as error:
            verdict, action, outcome = verdict._replace(keep=False), "unjudged", "failed"
            metrics.safe_side[error.reason] += 1
        metrics.asks["kept" if verdict.keep else outcome] += 1
        if not verdict.keep:
            self._reject(action, verdict, asked.step.size)
            return False
        self._accept(asked.step, "keep", verdict)
        self._follow(self._run.turn(self._state))
        return self._opened is not None

    def _accept(self, step: Step, action: str, verdict: Judgement) -> None:
        """The small model's draft becomes part of the answer."""
        self._loops.count(self._state.repeats(step))
        self._state = self._state.kept(step)
        self._record(step.size, len(step.text), action, verdict)
        self._say(step.tokens)

    def _reject(self, action: str, verdict: Judgement, tokens: int) -> None:
        """The draft is dropped, and the large model writes this step, or all that is left."""
        setup = self._setup
        setup.metrics.steps[setup.small.name, "rejected"] += 1
        self._drop()
        self._course.reject(action, tokens, verdict, final=setup.small.capability.mode is None)

    def _complete(self, step: Step) -> None:
        """A step that nobody judged is in the answer."""
        self._loops.count(self._state.repeats(step))
        course = self._course
        self._record(step.size, len(step.text), course.why, course.verdict)
        small = self._model is self._setup.small
        self._state = self._state.kept(step) if small else self._state.redone(course.rejected, step)
        course.complete()

    def _follow(self, turn: Turn) -> None:
        """The strategy has said who writes the next step: the open stream goes on if it is the right one."""
        if not self._course.follow(turn):
            self._drop()

    def _fail(self, error: UpstreamError) -> None:
        """The model that was writing failed: the other one writes the rest. Raises Failed when it has failed too."""
        setup, model = self._setup, self._model
        setup.metrics.upstream_errors[model.name, error.kind] += 1
        model.suspect = model.suspect or error.kind == "restart"
        if error.broken:
            model.failed(str(error))
        if cut := self._passage.shown:
            self._record(sum(token.size for token in cut), sum(len(token.text) for token in cut), "cut")
        self._drop()
        if self._asked is not None:
            self._asked.mark.cancel()
            self._state, self._asked = self._asked.state, None
        self._again = False
        self._dead[model.name] = error
        small = model is setup.large
        other = setup.small if small else setup.large
        if other.name in self._dead:
            raise _failed(self._dead)
        self._course.take_over(small)

    def _unjudged(self) -> str | None:
        """Which budget has ended judging, if one has."""
        return self._allowance.unjudged(self._state.index, self._transcript.tokens, self._told())

    def _goes_on(self, model: PairModel) -> bool:
        """Could this model go on from here?"""
        return model.capability.mode is not None and model.name not in self._dead

    # --- books -------------------------------------------------------------------------------------------------------

    def _say(self, tokens: Iterable[Token]) -> None:
        """Text becomes part of the answer, and goes to the client."""
        size = self._transcript.say(self._model, tokens)
        if self._opened is not None:
            self._opened.used += size

    def _record(self, tokens: int, characters: int, action: str, verdict: Judgement = KEPT) -> None:
        self._transcript.record(Record(self._model.name, action, tokens, verdict.score, characters, verdict.mark))

    def _drop(self) -> None:
        """Closes the open stream, if there is one, and enters what it cost."""
        request, self._opened = self._opened, None
        if request is not None:
            request.stream.close()
            self._books.stream(request.tell(), request.used, request.stream.counts)

    def _told(self) -> Open | None:
        """What the books are to know of the open request."""
        return None if self._opened is None else self._opened.tell()


def _failed(dead: Mapping[str, UpstreamError]) -> Failed:
    """What the client is told when both models failed: the first one's own words if it refused the request."""
    errors = list(dead.values())
    first = errors[0]
    if all(400 <= error.status < 500 for error in errors):
        return Failed(str(first), first.status, first.body)
    status = 504 if all(error.kind == "timeout" for error in errors) else 502
    reasons = "; ".join(f"{name} {error.told}" for name, error in dead.items())
    return Failed(f"Neither model could answer: {reasons}.", status)
