"""One HTTP exchange: the state machine between Envoy's messages and a decision, one object a gRPC stream.

One machine for every body mode, by one rule: what Envoy waits for is *owed*. Messages add to what is owed; a decision
pays it off in order, with its changes in the first payment. When the body comes in one piece (BUFFERED) the headers
are paid at once and the body bears the decision. When it comes while the headers wait (FULL_DUPLEX_STREAMED, or
STREAMED with `send_body_without_waiting_for_header_response`) the headers are held and bear it, since a route can be
chosen again only there, and the body follows. When no body would come (NONE, or plain STREAMED, which shows it after
the headers are gone) the headers take the default model and ask for the body to be buffered, should Envoy allow it.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from functools import partial
from math import ceil
from typing import Any, Final, Protocol, TypeVar

from decisions.decision import Decision, Trace, made
from decisions.engine import Engine, Evaluation, tokens_of
from decisions.grading import A_MINUTE
from decisions.model import Model, UnknownModel
from decisions.outcome import Outcome
from extproc import listing, wire
from extproc.apis.registry import BY_NAME, SHAPES, spoken
from extproc.apis.shape import JSON_HEADERS, ApiShape
from extproc.bodies.holder import Bodies
from extproc.bodies.jsonbody import count, load
from extproc.chains import Chains, before
from extproc.keeping.keeper import BRIEF_S, WAIT_S, Keeper, Keeping
from extproc.makers import Makers
from extproc.meter import Meter
from extproc.records import shown
from extproc.refusal import Refusal
from extproc.relaying import again, judged
from extproc.replying import Reply
from extproc.requests import paths
from extproc.requests.body import parse
from extproc.requests.head import NO_HEAD, Head, media_type, number, too_large
from extproc.requests.paths import Target
from extproc.requests.rewriting import rewritten, unasked
from extproc.static_answer import static_answer
from extproc.told import ROUTE, metadata, request_headers, response_headers
from extproc.transport.seam import Stream
from extproc.watching.watch import Watch
from extproc.wire import EnvoyMessage, Kind, Mode, Pairs
from signals.background import rest
from signals.facts import Facts
from signals.request import Request
from signals.text.estimate import estimate
from upstream.answer import Answer
from upstream.usage import Spent
from upstream.writer import Charge

log = logging.getLogger("pointsman.exchange")

_now: Final = time.time
_monotonic: Final = time.monotonic
_UNSEEN: Final[tuple[None, None, None, None, None, None, None]] = (None, None, None, None, None, None, None)
"""Tokens and money of an answer that nobody looked at; see `Spent`."""
_WHOLE: Final = (Mode.NONE, Mode.BUFFERED, Mode.BUFFERED_PARTIAL)  # modes that send no body, or one message of it
_ENDS: Final = (Mode.BUFFERED, Mode.BUFFERED_PARTIAL, Mode.FULL_DUPLEX_STREAMED)
"""Modes in which a stream may end with the last of the request: Envoy 1.40 repeats a chunk in STREAMED."""
MAX_OWED = 65_536  # chunks of one held body that each want an answer of their own
ANSWER_LIMIT = 16 * 2**20
"""Bytes of one answer of our own. Envoy 1.40 keeps what a slow client does not read, without a limit and without
telling us to stop, so it is we who must not send without end."""
APART: Final = 272 * 1024
"""Bytes of a body from which on it is read in a thread, so that other requests need not wait for it."""
APART_SLOW: Final = 32 * 1024
"""The same where some signal is slow: beside what that takes a thread costs nothing, and calls that wait for the same
model are over, and come again, at the same moment."""
STRANGE: Final = 16 * 1024
"""The same for a body that is not all ASCII: its text takes several times as long."""
SMALL: Final = 64 * 1024
"""Bytes of a body up to which it may stay in memory while the answer comes."""
MANY: Final = 4_000
"""JSON objects from which on a body that is not small is read in a thread as well: each costs some microseconds."""
INTERNAL: Final = 13
INVALID_ARGUMENT: Final = 3


class Answerer(Protocol):
    """Answers requests whose decision has a writer."""

    async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
        """The answer, before its first byte; None when the request has to take the plain route.

        `charge` is told once what it has taken, as soon as it is over.
        """
        ...

    def elsewhere(self, trace: Trace, request: Request) -> Pairs | None:
        """The request headers with which a service behind Envoy answers it instead; none when it cannot, either.

        None: there is no such service.
        """
        ...


T = TypeVar("T")


class Context(Protocol):
    """What an exchange needs from the service that it runs in."""

    @property
    def engine(self) -> Engine:
        """The engine of the policy in force; an exchange keeps the one it began with."""
        ...

    @property
    def answerer(self) -> Answerer | None: ...

    @property
    def meter(self) -> Meter | None:
        """Who wants to know what answers take and cost."""
        ...

    @property
    def bodies(self) -> Bodies:
        """What the exchanges of this worker hold."""
        ...

    @property
    def makers(self) -> Makers:
        """Which models made the responses of sessions."""
        ...

    @property
    def chains(self) -> Chains:
        """Which sessions made responses."""
        ...

    @property
    def keeper(self) -> Keeper:
        """The answers that are kept."""
        ...

    async def apart(self, work: Callable[[], T]) -> T:
        """The result of `work`, done in a thread."""
        ...

    def unread(self, reason: str, method: str, path: str) -> None:
        """A request is no call that is understood; it goes on unread, or `reason` is the code of its refusal."""
        ...

    def timed(self) -> bool:
        """Whether to time every signal of this request (a sample; it costs the hot path something)."""
        ...

    def choose(self, request: Request) -> Engine:
        """The engine that decides `request`: that of the policy in force, or a candidate's for its share."""
        ...

    @property
    def follow(self) -> Callable[[Trace, Request], None] | None:
        """Who wants to decide each decided request as well, while its body is there: a candidate policy."""
        ...

    @property
    def keeps(self) -> bool:
        """Whether `record` wants requests with their bodies."""
        ...

    def record(self, outcome: Outcome, request: Request, stream: Stream) -> None:
        """A request that was decided is over; it may have shed its body. It came on `stream`. Budgets count from it."""
        ...

    def failed(self, reason: str) -> None:
        """A request got no trace: it was refused before it could be decided, or something broke.

        `reason` is from a closed set: the `code` of a refusal, or `body_mode`, `protocol`, `error`, `answer_broken`.
        """
        ...


_UNGRADED: Final = {
    refusal.code: refusal
    for refusal in (
        Refusal(
            400, 'The body must be {"id": an answer, "score": 0 to 1}, or "better_than": another.', "invalid_feedback"
        ),
        Refusal(404, "There is no answer of this id that you may grade; it may be older than a day.", "unknown_answer"),
        Refusal(409, "Several answers have this id: grade by the request's x-request-id.", "ambiguous_answer"),
        Refusal(409, "This answer has been graded already.", "graded_already"),
        Refusal(429, f"No more than {A_MINUTE} grades are taken in a minute.", "too_many_grades"),
        Refusal(503, "Grades cannot be taken at the moment; try again.", "store_down"),
    )
}
"""Why a grade is not taken."""


class Phase:
    START: Final = 0
    PASSING: Final = 1  # none of our business: everything goes on as it is
    COLLECTING: Final = 2  # the body is on its way
    LATE: Final = 3  # the headers went on with the default model; a buffered body may still come
    DECIDING: Final = 4
    ROUTED: Final = 5
    ANSWERED: Final = 6  # the model's answer has begun to come
    OVER: Final = 7  # answered by us, or by Envoy itself: the request side takes no more replies


class _Mute:
    """Stands for the stream when Envoy only observes: nothing is answered."""

    def __init__(self, stream: Stream) -> None:
        self.metadata = stream.metadata
        self.finish = stream.finish
        self.drain = stream.drain

    def send(self, message: bytes) -> None:
        pass


class Exchange:
    """The Receiver of one gRPC stream. Everything it holds is released in `closed`."""

    __slots__ = (
        "_body",
        "_context",
        "_engine",
        "_half_closed",
        "_head",
        "_owed",
        "_phase",
        "_reply",
        "_request",
        "_stream",
        "_task",
        "_trace",
    )

    def __init__(self, context: Context, stream: Stream) -> None:
        self._context = context
        self._engine = context.engine
        self._stream = stream
        self._phase: int = Phase.START
        self._head = NO_HEAD
        self._body = bytearray()
        self._owed: list[int] = []
        self._request: Request | None = None
        self._trace: Trace | None = None
        self._task: asyncio.Task[None] | None = None
        self._half_closed = False
        self._reply: Reply | None = None  # the model's answer, once it comes

    # The transport's side

    def message(self, data: bytes) -> None:
        try:
            message = wire.decode(data)
        except ValueError:
            message = None
        if message is None:
            self._context.failed("protocol")
            self._stream.finish(INVALID_ARGUMENT, "not a message of ext_proc that this service knows")
            return
        try:
            self._take(message)
        except Exception as error:  # noqa: BLE001 - whatever breaks here, the request takes the default model
            self._recover(error)

    def half_closed(self) -> None:
        self._half_closed = True
        if self._task is None:
            self._stream.finish()

    def closed(self) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            if self._reply is not None:  # a writer says what it has taken once it has stopped
                task.add_done_callback(self._release)
                return
        self._release()

    def _release(self, _: object = None) -> None:
        """The end: everything is counted and let go."""
        self._context.bodies.release(self)
        if self._phase == Phase.LATE:
            self._context.failed("body_mode")
        elif self._phase == Phase.ROUTED:
            model, meter = self._model(), self._context.meter
            if model is not None and meter is not None:
                meter.given_up(model)
        try:
            self._tell()
        except Exception as error:  # noqa: BLE001 - the transport has other streams to close
            _log(error)
            self._context.failed("error")
        if (keeping := self._head.keeping) is not None:
            keeping.end()
        self._phase = Phase.OVER
        self._request = self._trace = self._reply = None
        self._head = NO_HEAD
        self._body = bytearray()
        self._owed = []

    def _tell(self) -> None:
        """What became of the request, for everybody who counts."""
        trace, request, reply = self._trace, self._request, self._reply
        if trace is None or request is None:
            return
        seconds = _now() - request.received
        model, status, first_byte, took = trace.decision.model, trace.decision.status, None, None
        if reply is not None:
            if reply.status:
                model, status, first_byte = reply.model, reply.status, reply.first_byte - request.received
            try:
                took = reply.spent()
            except Exception as error:  # noqa: BLE001 - what an answer says of its usage must not lose the rest
                _log(error)
                self._context.failed("error")
        tenant = self._tenant()
        prompt, completion, money, cached, reasoning, written, _ = _UNSEEN if took is None else took
        compared, reference = self._engine.settings.reference, None
        if compared is not None and prompt is not None and completion is not None:
            reference = compared.cost(prompt, completion, cached or 0, written or 0)
        kept = None
        if (keeping := self._head.keeping) is not None:
            kept = keeping.result
            reference = keeping.reference(compared) if kept == "hit" else reference
        found = (
            trace, model, request.size, status, first_byte, seconds, prompt, completion, money, cached, reasoning,
            reference, tenant, written, kept, () if reply is None else reply.acted,
            None if reply is None else reply.course,
        )  # fmt: skip
        outcome = made(Outcome, found)
        self._context.record(outcome, request, self._stream)

    def _tenant(self) -> str | None:
        """Who asks, where the policy says how that is told."""
        name, request = self._engine.settings.tenant, self._request
        if name is None or request is None or name not in request.headers:
            return None
        return shown.word(request.headers[name])

    # Messages

    def _take(self, message: EnvoyMessage) -> None:
        kind = message.kind
        if kind == Kind.REQUEST_HEADERS:
            self._request_headers(message)
        elif kind == Kind.REQUEST_BODY:
            self._request_body(message)
        elif kind == Kind.REQUEST_TRAILERS:
            self._request_trailers(message)
        else:
            self._response(message)

    def _request_headers(self, message: EnvoyMessage) -> None:
        self._open(message)
        self._owed.append(Kind.REQUEST_HEADERS)
        headers, head = message.headers, self._head
        path = headers.get(":path", "")
        target = head.target = paths.read(path)
        try:
            if target is None:
                self._unknown(path, headers.get(":method", ""))
            elif target.operation == "feedback" and self._engine.grading is None:
                head.target = None
                self._unknown(path, headers.get(":method", ""))
            elif target.api is None and target.operation != "feedback":
                head.bodiless(message.end)
                self._bodiless(target)
            else:
                head.call()
                if number(headers.get("content-length", "")) > self._engine.settings.max_body:
                    self._refuse_size()
                elif message.end:
                    self._decide(b"")
                else:
                    self._collect()
        except Refusal as refusal:
            self._refuse(refusal)

    def _unknown(self, path: str, method: str) -> None:
        """A path that is no API's: it is opened by the policy, or refused, or passed on unread."""
        try:
            opened = paths.unread(self._head.headers, self._engine.settings)
        except Refusal as refusal:
            self._context.unread(refusal.code, method, path)
            raise
        if opened is not None:
            self._pass(((ROUTE, opened.to),))
            return
        self._context.failed("passed_unread")
        self._context.unread("passed_unread", method, path)
        self._pass()

    def _bodiless(self, target: Target) -> None:
        """The model list, which we answer, and stored responses, which the upstream has."""
        if target.operation == "models":
            self._list(target.model)
        else:
            maker = self._context.makers.of(self._head.session(self._engine.sessions))
            route = ((ROUTE, maker),) if maker in self._engine.models else ()
            self._pass(route + _plain_path(target))

    def _open(self, message: EnvoyMessage) -> None:
        """What the first message of a stream announces."""
        if self._phase != Phase.START or self._head is not NO_HEAD:
            raise RuntimeError("a second message of request headers")
        self._head = Head(message)
        if self._head.observing:
            self._stream = _Mute(self._stream)

    def _collect(self) -> None:
        """Wait for the body, in the way of its mode."""
        head = self._head
        mode = head.mode
        self._phase = Phase.COLLECTING
        if head.held:
            self._hold(0)  # its time begins
            return
        if mode in _WHOLE and mode != Mode.NONE:
            self._stream.send(wire.reply(self._owed.pop(), (), head.headers.own()))
            return
        self._phase = Phase.LATE
        route = ((ROUTE, self._engine.default.key),)
        self._stream.send(wire.reply(self._owed.pop(), route, head.headers.own(), True) + wire.BUFFERING)

    def _request_body(self, message: EnvoyMessage) -> None:
        phase = self._phase
        if phase == Phase.START:  # the filter is set to skip request headers: there is no path to go by
            self._open(message)
            self._context.failed("body_mode")
            self._phase = phase = Phase.PASSING
        if phase == Phase.COLLECTING or phase == Phase.LATE:
            self._gather(message)
        elif phase in (Phase.PASSING, Phase.ROUTED, Phase.ANSWERED):
            self._echo(message, self._head.mode)

    def _gather(self, message: EnvoyMessage) -> None:
        mode, held = self._head.mode, self._head.held
        if mode != Mode.FULL_DUPLEX_STREAMED and not self._head.observing:
            self._owed.append(Kind.REQUEST_BODY)
        if self._phase == Phase.LATE and not message.end:
            # A stream of chunks after all. The first are past us already, so there is nothing to decide.
            self._context.failed("body_mode")
            self._pass()
        elif len(self._body) + len(message.body) > self._engine.settings.max_body or len(self._owed) > MAX_OWED:
            self._refuse_size()
        elif held and not message.end and not self._hold(len(message.body)):
            self._refuse(_full())
        elif mode == Mode.BUFFERED_PARTIAL and not message.end:
            self._refuse(Refusal(413, "The request body is larger than the proxy's buffer.", "too_large"))
        elif held and not message.end:
            self._body += message.body
        else:
            self._decide(bytes(self._body) + message.body if self._body else message.body)

    def _request_trailers(self, message: EnvoyMessage) -> None:
        if self._phase == Phase.START:
            self._open(message)
            self._phase = Phase.PASSING
        if self._phase == Phase.OVER:
            return
        self._owed.append(Kind.REQUEST_TRAILERS)
        if self._phase == Phase.COLLECTING:
            self._decide(bytes(self._body))
        elif self._phase != Phase.DECIDING:
            self._stream.send(wire.trailers(self._owed.pop()))

    def _response(self, message: EnvoyMessage) -> None:
        # A reply of our own comes by here too, with the headers that we gave it; every other answer is somebody else's.
        ours = self._phase == Phase.OVER
        if self._phase == Phase.START:
            self._open(message)
        if self._phase in (Phase.START, Phase.COLLECTING, Phase.DECIDING):
            # Envoy answered before we did (413 at its buffer limit, a timeout): a reply now would be spurious.
            if self._task is not None:
                self._task.cancel()
                self._task = None
            self._phase = Phase.OVER
        head, reply = self._head, self._reply
        if message.kind == Kind.RESPONSE_HEADERS:
            # An upstream's copies of our headers are no more to be believed than a client's.
            shown: Pairs = ()
            own: Sequence[str] = [] if ours else message.headers.own()
            watching = b""
            if self._phase == Phase.ROUTED and self._trace is not None:
                self._phase = Phase.ANSWERED
                before, reply = reply, Reply(self._engine, self._context, self._request, self._trace)
                self._reply = reply
                reply.bill = None if before is None else before.bill  # of a writer that failed
                shown, own = reply.head(message.headers, own, head)
                handed = head.response_mode == Mode.FULL_DUPLEX_STREAMED
                if reply.watched(message.headers, not handed) is not None:
                    if handed:
                        reply.hold(shown, own, message.end)
                        self._watched(reply, b"", message.end)
                        return
                    head.response_mode = Mode.FULL_DUPLEX_STREAMED
                    own, watching = [*own, "content-length"], wire.HANDING_OVER
                elif head.response_mode == Mode.NONE and reply.counted:
                    watching = wire.WATCHING
            self._stream.send(wire.reply(message.kind, shown, own, extra=watching))
            if not watching and head.response_mode == Mode.NONE and self._phase != Phase.PASSING and self._task is None:
                self._stream.finish()  # nothing more to say: a long answer need not keep the stream
        elif message.kind == Kind.RESPONSE_BODY:
            given = None if reply is None else reply.take(message)
            if reply is not None and reply.watch is not None:
                self._watched(reply, message.body if given is None else given, message.end)
            else:
                self._echo(message, head.response_mode, given)
        else:
            rest = b"" if reply is None else reply.rest()
            if reply is not None and reply.watch is not None:
                reply.trailers = True
                self._watched(reply, rest, True)
                return
            if rest and head.response_mode == Mode.FULL_DUPLEX_STREAMED:  # elsewhere a body is given only for a body
                for chunk in wire.chunks(Kind.RESPONSE_BODY, rest, False):
                    self._stream.send(chunk)
            self._stream.send(wire.trailers(message.kind))

    def _watched(self, reply: Reply, data: bytes, end: bool) -> None:
        """The next piece of an answer whose text is judged; goes on as far as it may."""
        watch = reply.watch
        assert watch is not None
        self._hand_on(reply, reply.feed(data, end))
        if watch.waiting and self._task is None and not self._head.observing:
            self._task = asyncio.get_running_loop().create_task(self._judge(reply, watch))

    def _hand_on(self, reply: Reply, out: bytes) -> None:
        """Give the client what may be released of its answer, or what takes the answer's place."""
        watch = reply.watch
        if watch is not None and watch.error is not None:
            error, watch.error = watch.error, None
            self._broke(error)
        refusal = reply.refusal()
        if refusal is not None:
            if self._phase != Phase.OVER:
                self._refuse(refusal, self._trace)
            return
        if out or (watch is not None and watch.done):
            for part in reply.given(out):
                self._stream.send(part)

    def _broke(self, error: Exception) -> None:
        """Something of ours broke while an answer was judged; what it means for the answer is the watch's business."""
        _log(error)
        self._context.failed("error")

    async def _judge(self, reply: Reply, watch: Watch) -> None:
        """Judge what takes long, as long as there is something to judge."""
        try:
            while watch.waiting:
                self._hand_on(reply, await watch.judged(_monotonic() + self._engine.settings.deadline))
        except Exception as error:  # noqa: BLE001 - nothing more of the answer may go on unjudged
            self._recover(error)
        self._rest()

    def _model(self) -> Model | None:
        """The model that the request went to."""
        return None if self._trace is None else self._trace.decision.model

    def _echo(self, message: EnvoyMessage, mode: int, body: bytes | None = None) -> None:
        """Let a piece of body go on, as `body` (None: as it is)."""
        kind = message.kind
        if mode == Mode.FULL_DUPLEX_STREAMED:
            for chunk in wire.chunks(kind, message.body if body is None else body, message.end):
                self._stream.send(chunk)
        elif body is None or body == message.body:
            self._stream.send(wire.reply(kind))
        elif mode == Mode.STREAMED:
            self._stream.send(wire.replace(kind, body) if body else wire.clear(kind))
        else:
            self._stream.send(wire.reply(kind, body=body))

    # Deciding

    def _decide(self, body: bytes) -> None:
        self._phase = Phase.DECIDING
        self._context.bodies.arrived(self)
        target = self._head.target
        try:
            if target is not None and target.operation == "feedback":
                self._begin(self._grade(body), len(body))
                return
            if is_long(body, slow=self._engine.slow) or self._head.coding is not None:
                self._begin(self._decide_later(body), len(body))
                return
            request = self._request = self._read(body)
            if before(self._engine, request):
                self._begin(self._decide_later(body, request), len(body))
                return
            engine = self._engine = self._context.choose(request)
            deadline = _monotonic() + engine.settings.deadline
            settled = engine.settle(request, deadline, detail=self._context.timed())
            if isinstance(settled, Trace):
                self._act(settled)
            else:
                self._begin(self._finish(settled), len(body))
        except UnknownModel as error:
            self._refuse(self._shape().unknown_model(error.model))
        except Refusal as refusal:
            self._refuse(refusal)

    async def _grade(self, body: bytes) -> None:
        """What a user thinks of an answer."""
        try:
            try:
                if len(body) > SMALL:
                    raise too_large(SMALL)
                head, grading = self._head, self._engine.grading
                fields = load(head.decoded(body, SMALL), SMALL)
                request = Request("feedback", body, fields, None, (), head.headers)
                taken = "unknown_answer" if grading is None else await grading.take(request)
                self._task = None
                if taken != "taken":
                    self._refuse(_UNGRADED[taken])
                else:
                    self._over(wire.immediate(200, JSON_HEADERS, b'{"taken":true}', "pointsman_feedback"))
            except Refusal as refusal:
                self._task = None
                self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 - as in `message`; a grade must not go to a model
            _log(error)
            self._refuse(Refusal(500, "The grade could not be taken.", "error"))
        self._rest()

    def _begin(self, work: Coroutine[Any, Any, None], size: int) -> None:
        """Go on in a task; a body of `size` bytes is held as long. What is counted of it already is not counted again:
        a request may be decided in one task, and its kept answer be looked for in the next."""
        if not self._hold(max(0, size - self._context.bodies.size(self))):
            work.close()
            self._refuse(_full())
            return
        self._context.bodies.arrived(self)
        self._task = asyncio.get_running_loop().create_task(work)

    def _read(self, body: bytes) -> Request:
        """The call in `body`. Raises `Refusal` when it is none."""
        head = self._head
        target, message = head.target, head.message
        assert target is not None
        settings = self._engine.settings
        body = head.decoded(body, settings.max_body)
        try:
            return parse(target, head.headers, message.attributes(), body, settings.max_values)
        except Refusal as refusal:
            raise head.unreadable(refusal) from None

    def _read_long(self, body: bytes) -> tuple[Request, int | None]:
        """`_read`, and the estimate of the call's tokens, which takes a moment too."""
        request = self._read(body)
        rest()
        return request, tokens_of(Facts(request))

    async def _decide_later(self, body: bytes, request: Request | None = None) -> None:
        """Decide what cannot be decided at once: a call that goes on from a response, whose session is asked for, and
        a body that takes long to read (`request` None): the parser and the signals of its text run in a thread.
        """
        long = request is None
        try:
            try:
                tokens: int | None = None
                if request is None:
                    read, tokens = await self._context.apart(partial(self._read_long, body))
                    request = self._request = read
                    if not self._hold(max(0, len(request.body) - len(body))):  # what an encoding made of it
                        raise _full()
                if before(self._engine, request):
                    await self._context.chains.follow(self._engine, request)
                engine = self._engine = self._context.choose(request)
                deadline = _monotonic() + engine.settings.deadline
                evaluation = engine.begin(request, deadline, detail=self._context.timed())
                if long:
                    if tokens is not None:
                        evaluation.facts.put(estimate, tokens)
                    await evaluation.read_ahead(self._context.apart)
            except UnknownModel as error:
                self._refuse(self._shape().unknown_model(error.model))
            except Refusal as refusal:
                self._refuse(refusal)
            else:
                await self._finish(evaluation)
                return
        except Exception as error:  # noqa: BLE001 - as in `message`
            self._recover(error)
        self._rest()

    async def _finish(self, evaluation: Evaluation) -> None:
        try:
            try:
                trace = await evaluation.finish()
                self._task = None
                self._act(trace)
            except Refusal as refusal:
                self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 - as in `message`
            self._recover(error)
        self._rest()

    def _rest(self) -> None:
        """The end of a task: a peer that has said everything is waiting for the end of the stream."""
        if self._task is asyncio.current_task():
            self._task = None
        if self._half_closed and self._task is None:
            self._stream.finish()

    def _act(self, trace: Trace) -> None:
        self._trace = trace
        request, follow = self._request, self._context.follow
        assert request is not None
        self._go(trace, request)
        if follow is not None:
            follow(trace, request)

    def _go(self, trace: Trace, request: Request) -> None:
        decision = trace.decision
        if decision.action == "respond":
            waits = self._engine.renewed(trace, request.received) if self._engine.shared.metered else None
            self._refuse(_refusal(decision, waits), trace)
            return
        if decision.cache is not None and not self._head.observing:
            keeping = self._head.keeping = self._context.keeper.ask(self._engine, trace, request)
            if keeping.result == "miss":
                self._begin(self._kept(trace, request, keeping), len(request.body))
                return
        self._forward(trace, request)

    async def _kept(self, trace: Trace, request: Request, keeping: Keeping) -> None:
        """Answer with what was kept, or else go on."""
        try:
            try:
                wait = WAIT_S if self._head.mode == Mode.FULL_DUPLEX_STREAMED else BRIEF_S
                found = await keeping.find(self._context.apart, wait)
                self._task = None
                if found is None:
                    self._forward(trace, request)
                else:
                    told = response_headers(trace) + keeping.told() if self._engine.settings.response_headers else ()
                    reply = self._reply = Reply(self._engine, self._context, request, trace)
                    reply.begun(200, None)
                    reply.bill = Spent(0, 0, 0.0)
                    answer = wire.immediate(200, (("content-type", found[0]), *told), found[1], "pointsman_kept")
                    self._over(answer + metadata(trace, self._tenant()))
            except Refusal as refusal:
                self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 - as in `message`
            self._recover(error)
        self._rest()

    def _forward(self, trace: Trace, request: Request) -> None:
        decision = trace.decision
        if decision.writer is not None:
            answerer = self._context.answerer
            if answerer is not None and self._can_stream():
                self._task = asyncio.get_running_loop().create_task(self._answer(answerer, trace))
                return
            sent = None if answerer is None else answerer.elsewhere(trace, request)
            if sent:
                self._route(trace, request, sent)
                return
            reason = "no_answerer" if answerer is None else "body_mode" if sent is None else "ineligible"
            trace = _plain(trace, request, reason)
        self._route(trace, request)

    def _can_stream(self) -> bool:
        return self._head.mode == Mode.FULL_DUPLEX_STREAMED and not self._head.observing

    def _route(self, trace: Trace, request: Request, more: Pairs = ()) -> None:
        """Send the request to the decision's model, its body changed only where it must be; `more` are headers."""
        head, model = self._head, trace.decision.model
        path = None if head.target is None else head.target.sent(None if model is None else model.name)
        if model is not None and model.credential is not None:
            path = paths.keyless(head.headers.get(":path", "") if path is None else path) or path
        if path is not None:
            more = (*more, (":path", path))
        if (self._engine.chained or self._engine.watches != "none") and "accept-encoding" in head.headers:
            more = (*more, ("accept-encoding", "identity"))  # nobody here reads an answer that is compressed
        if not head.json:
            more = (*more, *JSON_HEADERS)  # a form, say, has another meaning to whoever reads forms
        self._trace = trace
        foreign = self._foreign(request, model)
        seen = self._engine.metered and head.response_mode != Mode.NONE and not head.observing
        head.counted = seen and unasked(request, trace.decision)
        if is_long(request.body):
            rewrite = partial(rewritten, request, trace.decision, foreign, head.counted)
            self._task = asyncio.get_running_loop().create_task(self._route_apart(trace, rewrite, more))
        else:
            self._send_on(trace, rewritten(request, trace.decision, foreign, head.counted), more)

    def _foreign(self, request: Request, model: Model | None) -> int:
        """How many of the call's first messages are another model's, whose thoughts `model` would not take.

        Known is what this worker has seen of a session that headers or the body name. Where it has seen nothing, and
        the call names one model and goes to another, the turns that are over count as the former's: an answer does
        without their thoughts. Otherwise nothing is known, and nothing foreign: 0.
        """
        if model is None or request.operation:
            return 0
        sessions = self._engine.sessions
        session = "" if self._head.usual and sessions.unnamed(request.fields) else sessions.name(request)
        if not session and len(request.messages) <= 2:  # a prompt and a question: there is no answer yet
            return 0
        shape = BY_NAME[request.api]
        given = shape.turns(request.fields)
        if not given:
            return 0
        if session:
            foreign = self._context.makers.foreign(session, request, model.key, len(given))
            if foreign is not None:
                return foreign
        named = self._engine.catalogue.named(request)
        return shape.closed(given) if named is not None and named is not model else 0

    async def _route_apart(self, trace: Trace, rewrite: Callable[[], bytes | None], more: Pairs) -> None:
        """`_route` for a body that takes long to write again."""
        try:
            try:
                self._send_on(trace, await self._context.apart(rewrite), more)
            except Refusal as refusal:
                self._refuse(refusal)
        except Exception as error:  # noqa: BLE001 - as in `message`
            self._recover(error)
        self._rest()

    def _send_on(self, trace: Trace, body: bytes | None, more: Pairs) -> None:
        """Pay what is owed with the decision of `trace`; `body` None: as it came."""
        request = self._request
        assert request is not None
        if body is None and self._head.coding is not None:
            body = request.body
        model = trace.decision.model
        if (grading := self._engine.grading) is not None:
            grading.sent(trace, request)
        if model is not None:
            if BY_NAME[request.api].stored:
                self._context.makers.note(self._head.session(self._engine.sessions), model.key)
            self._context.chains.mark(self._engine, request)
        self._pay(request_headers(trace.decision) + more, body, metadata(trace, self._tenant()))
        if len(request.body) <= SMALL:
            self._context.bodies.release(self)
        elif self._engine.watches == "none" and not self._context.keeps:  # nobody needs it while the answer comes
            self._request = request.shed()
            self._context.bodies.release(self)

    def _pay(self, headers: Pairs, body: bytes | None, extra: bytes = b"") -> None:
        """Answer everything that is owed: `headers` and `extra` with the first answer, `body` (None: as it came)."""
        owed, self._owed = self._owed, []
        ended = self._phase == Phase.DECIDING  # otherwise the rest of the body is still to come, and is passed on
        self._phase = Phase.ROUTED
        model, meter = self._model(), self._context.meter
        if model is not None and meter is not None:
            meter.started(model)
        send = self._stream.send
        head = self._head
        coded = [] if body is None or head.coding is None else ["content-encoding"]
        for index, kind in enumerate(owed):
            if kind == Kind.REQUEST_HEADERS:
                own = _without(head.headers.own(), headers) + coded
                send(wire.reply(kind, headers, own, bool(headers), None, extra))
                if head.mode == Mode.FULL_DUPLEX_STREAMED:
                    self._give_back(body, ended and Kind.REQUEST_TRAILERS not in owed)
            elif kind == Kind.REQUEST_TRAILERS:
                send(wire.trailers(kind))
            elif index == 0:
                send(wire.reply(kind, headers, coded, bool(headers), body, extra))
            elif body is None:
                send(wire.reply(kind))
            else:  # chunks of a held STREAMED body: the first makes way for the new body, the others for nothing
                send(wire.replace(kind, body) if index == 1 else wire.clear(kind))
        self._body = bytearray()
        if ended and not self._engine.sees_answers and head.mode in _ENDS:
            self._stream.finish()  # a stream that is over does not take its request along when its router dies

    def _give_back(self, body: bytes | None, end: bool) -> None:
        """The body that full-duplex mode handed over: `body`, or what came."""
        if body is None:
            body = bytes(self._body) if self._request is None else self._request.body
        if body or end:
            for chunk in wire.chunks(Kind.REQUEST_BODY, body, end):
                self._stream.send(chunk)

    def _pass(self, headers: Pairs = ()) -> None:
        """Let the whole request go on as it is, but for headers that only we may set, and with `headers`."""
        self._phase = Phase.PASSING
        self._context.bodies.release(self)
        for kind in self._owed:
            if kind == Kind.REQUEST_HEADERS:
                own = _without(self._head.headers.own(), headers)
                self._stream.send(wire.reply(kind, headers, own, bool(headers)))
            else:
                self._stream.send(wire.reply(kind))
        self._owed = []
        if self._head.mode in _WHOLE or self._head.message.end:
            # Ending the stream tells Envoy to go on without us, so it buffers nothing more on our behalf. Only before
            # any streamed body: Envoy 1.40 then sends the last chunk twice. (To override the mode to NONE instead
            # leaves it waiting when the body was over its buffer limit already.)
            self._stream.finish()

    # Answers of our own

    def _list(self, model: str | None) -> None:
        engine = self._engine
        shape = spoken(self._head.headers)
        try:
            body = listing.models(engine, model, shape)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        headers = (*JSON_HEADERS, ("x-pointsman-policy", engine.policy))
        self._over(wire.immediate(200, headers, body, "pointsman_models"))

    def _refuse_size(self) -> None:
        self._refuse(too_large(self._engine.settings.max_body))

    def late(self) -> None:
        """The body has not come in time (extproc.bodies.holder.Holder)."""
        if self._phase == Phase.COLLECTING:
            seconds = self._engine.settings.body_timeout
            self._refuse(Refusal(408, f"The request body did not come within {seconds:g} seconds.", "body_timeout"))

    def _refuse(self, refusal: Refusal, trace: Trace | None = None) -> None:
        headers: Pairs = (("x-pointsman-policy", self._engine.policy),)
        extra = b""
        if trace is None:
            self._trace = None
            self._context.failed(refusal.code)
        else:
            headers = response_headers(trace)
            extra = metadata(trace, self._tenant())
            if refusal.status == 200 and self._request is not None:
                given = static_answer(self._request, refusal.text)
                if given is not None:
                    headers = (("content-type", given.content_type), *headers, *refusal.headers)
                    self._over(wire.immediate(200, headers, given.body, "pointsman_answer") + extra)
                    return
            if refusal.status == 200:  # the call has no answer in words
                refusal = Refusal(403, refusal.text, refusal.code, headers=refusal.headers)
        # A trace without a request is that of something broken, and what the path says may be what broke.
        shape = SHAPES[0] if self._request is None and trace is not None else self._shape()
        body = shape.error(refusal)
        headers = (*JSON_HEADERS, *headers, *refusal.headers)
        self._over(wire.immediate(refusal.status, headers, body, f"pointsman_{refusal.code}") + extra)

    def _shape(self) -> ApiShape:
        """The API that the client expects an error of."""
        target = self._head.target
        api = None if target is None else target.api
        return spoken(self._head.headers) if api is None else BY_NAME[api]

    def _over(self, answer: bytes) -> None:
        self._phase = Phase.OVER
        self._owed = []
        self._body = bytearray()
        self._context.bodies.release(self)
        self._stream.send(answer)

    async def _answer(self, answerer: Answerer, trace: Trace) -> None:
        """Answer the client piece by piece; a request that cannot be answered so goes to the large model."""
        request = self._request
        assert request is not None
        try:
            answer = None
            reason = "ineligible"
            reply = self._reply = Reply(self._engine, self._context, request, trace)
            try:
                answer = await answerer.answer(trace, request, reply.charge)
            except Exception as error:  # noqa: BLE001 - the request has a plain route, and takes it
                _log(error)
                reason = "answerer_error"
            if answer is None:
                self._route(_plain(trace, request, reason), request)
            else:
                async with answer:
                    await self._send_answer(answer, trace)
        except Refusal as refusal:
            self._refuse(refusal)
        except ConnectionError:
            pass  # the client is gone, and with it the stream
        except Exception as error:  # noqa: BLE001 - as in `message`
            self._recover(error)
        self._rest()

    async def _send_answer(self, answer: Answer, trace: Trace) -> None:
        ours = (pair for pair in response_headers(trace) if pair[0] not in answer.headers)
        headers = (*answer.headers.items(), *ours)
        left = ANSWER_LIMIT
        reply = self._reply
        assert reply is not None
        reply.begun(answer.status, answer.headers.get("x-pointsman-model"))
        watch = reply.watched(wire.headers_of(answer.headers.items()))
        keeping = self._head.keeping
        if keeping is not None:
            keeping.begin(answer.status, media_type(answer.headers.get("content-type", "")), False, reply.model)
            headers += keeping.told()
        pieces = answer.body
        try:
            if watch is not None:
                pieces = judged(reply, pieces, self._engine.settings.deadline, self._broke)
                first = await anext(pieces, b"")
                if (refusal := reply.refusal()) is not None:
                    self._refuse(refusal, trace)
                    return
                headers, pieces = headers + reply.told(), again(first, pieces)
            self._over(wire.stream_headers(answer.status, headers) + metadata(trace, self._tenant()))
            async for piece in pieces:
                left -= len(piece)
                if left < 0:
                    raise OverflowError("an answer without end")
                if keeping is not None:
                    keeping.take(piece, False)
                for at in range(0, len(piece), wire.CHUNK):
                    await self._stream.drain()
                    self._stream.send(wire.stream_body(piece[at : at + wire.CHUNK], False))
        except ConnectionError:
            raise
        except Exception as error:  # noqa: BLE001 - the client sees its connection reset, not a whole answer
            _log(error)
            self._context.failed("answer_broken")
            self._stream.finish(INTERNAL, "the answer broke off")
            return
        if keeping is not None:
            keeping.judged(bool(reply.acted))
        self._stream.send(wire.stream_body(b"", True))

    # Failing

    def _recover(self, error: Exception) -> None:
        """Something of ours broke: the request fails closed or takes the default model, unless it is on its way."""
        _log(error)
        reply = self._reply
        if self._phase == Phase.ANSWERED and reply is not None and reply.watch is not None:
            # Nothing more of it may go on unjudged. Where a part has gone already, Envoy breaks the answer off.
            self._context.failed("error")
            self._refuse(Refusal(502, "The answer could not be judged.", "answer_broken"), self._trace)
            return
        if not self._owed and self._phase in (Phase.PASSING, Phase.ROUTED, Phase.ANSWERED, Phase.OVER):
            self._context.failed("error")
            return
        trace = self._engine.failed("error")
        self._trace = trace
        if trace.decision.action == "respond":
            self._refuse(_refusal(trace.decision), trace)
        else:
            self._pay(request_headers(trace.decision), None, metadata(trace, self._tenant()))
        if self._request is None:
            self._context.failed("error")

    # Small things

    def _hold(self, size: int) -> bool:
        """Count `size` more bytes of this request's body; False where the worker holds too many."""
        settings = self._engine.settings
        return self._context.bodies.hold(self, size, settings.max_open_bodies, settings.body_timeout)


def _refusal(decision: Decision, waits: float | None = None) -> Refusal:
    """The refusal of a decision; `waits` are the seconds until its budget begins anew."""
    text, headers = decision.message or "Refused by policy.", decision.headers
    if waits is not None and all(name != "retry-after" for name, _ in headers):
        headers = (*headers, ("retry-after", str(ceil(waits))))
    return Refusal(decision.status or 403, text, "policy_refusal", headers=headers)


def _plain(trace: Trace, request: Request, reason: str) -> Trace:
    """The plain route of a decision that has a writer. Raises `Refusal` where its model must not see the request."""
    writer = trace.decision.writer
    if writer is not None and writer.bars(request.headers):
        raise Refusal(403, f"This request cannot be answered within its trust domain ({reason}).", "trust")
    return trace._replace(decision=replace(trace.decision, action="route", writer=None, fallback=reason))


def is_long(body: bytes, *, slow: bool = False) -> bool:
    """Whether `body` takes so long to read that others would notice; `slow` says that slow signals will read it."""
    size = len(body)
    if size <= STRANGE:
        return False
    return size > (APART_SLOW if slow else APART) or not body.isascii() or (size > SMALL and count(body, b"{") > MANY)


def _full() -> Refusal:
    text = "This gateway holds too many request bodies at the moment; try again."
    return Refusal(503, text, "too_many_bodies", headers=(("retry-after", "1"),))


def _plain_path(target: Target) -> Pairs:
    return () if target.path is None else ((":path", target.path),)


def _without(names: list[str], headers: Pairs) -> list[str]:
    """Those of `names` that `headers` do not set."""
    return [name for name in names if name not in dict(headers)] if names else names


def _log(error: Exception) -> None:
    """Where it broke, without the exception's own text: that could quote a prompt."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{last[0].filename}:{last[0].lineno}" if last else "?"
    log.error("%s at %s", type(error).__name__, where)
