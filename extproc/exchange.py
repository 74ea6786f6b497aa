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
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any, Final, Protocol, TypeVar

from decisions.decision import Decision, Trace
from decisions.engine import Engine, Evaluation
from decisions.model import Model, UnknownModel
from extproc import encoding, listing, openai, paths, wire
from extproc.bodies import Bodies
from extproc.body import parse
from extproc.chains import Chains, before
from extproc.jsonbody import count
from extproc.makers import Makers
from extproc.meter import Meter, Tail
from extproc.paths import Target
from extproc.refusal import Refusal
from extproc.static_answer import static_answer
from extproc.thinking import messages, turn
from extproc.transport.seam import Stream
from extproc.wire import Headers, Kind, Message, Mode, Pairs, Terms
from signals.request import Request
from signals.state.session import HEADERS

log = logging.getLogger("pointsman.exchange")

ROUTE = "x-pointsman-route"
_WHOLE = (Mode.NONE, Mode.BUFFERED, Mode.BUFFERED_PARTIAL)  # modes that send no body, or one message of it
MAX_OWED = 65_536  # chunks of one held body that each want an answer of their own
ANSWER_LIMIT = 16 * 2**20
"""Bytes of one answer of our own. Envoy 1.40 keeps what a slow client does not read, without a limit and without
telling us to stop, so it is we who must not send without end."""
APART = 272 * 1024
"""Bytes of a body from which on it is read in a thread, so that other requests need not wait for it."""
STRANGE = 64 * 1024
"""The same for a body that is not all ASCII: its text takes several times as long."""
SMALL = 64 * 1024
"""Bytes of a body up to which it may stay in memory while the answer comes."""
MANY = 4_000
"""JSON objects from which on a body that is not small is read in a thread as well: each costs some microseconds."""
INTERNAL = 13
INVALID_ARGUMENT = 3


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer to the client that is sent as it is made. `body` is closed when the client is gone."""

    status: int
    headers: Mapping[str, str]
    body: AsyncGenerator[bytes, None]


class Answerer(Protocol):
    """Answers requests whose decision is `stepwise`."""

    async def answer(self, trace: Trace, request: Request) -> Answer | None:
        """The answer, before its first byte; None when the request cannot be answered step by step."""
        ...

    def elsewhere(self, trace: Trace, request: Request) -> Pairs | None:
        """The request headers with which a service behind Envoy answers it instead; none when it cannot, either.

        None: there is no such service.
        """
        ...


NAMING = frozenset(name.encode() for name in HEADERS)
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

    def record(self, trace: Trace, request: Request, stream: Stream) -> None:
        """A request that came on `stream` was decided (its trace tells of fallbacks)."""
        ...

    def failed(self, reason: str) -> None:
        """A request got no trace: it was refused before it could be decided, or something broke.

        `reason` is from a closed set: the `code` of a refusal, or `body_mode`, `protocol`, `error`, `answer_broken`.
        """
        ...


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


_UNKNOWN = Terms(Mode.NONE, Mode.NONE, False, False)


class Exchange:
    """The Receiver of one gRPC stream. Everything it holds is released in `closed`."""

    __slots__ = (
        "_body",
        "_context",
        "_engine",
        "_first",
        "_half_closed",
        "_owed",
        "_phase",
        "_request",
        "_stream",
        "_tail",
        "_task",
        "_trace",
    )

    def __init__(self, context: Context, stream: Stream) -> None:
        self._context = context
        self._engine = context.engine
        self._stream = stream
        self._phase: int = Phase.START
        self._first: Message | None = None  # the request headers, unless the filter is set to skip them
        self._body = bytearray()
        self._owed: list[int] = []
        self._request: Request | None = None
        self._trace: Trace | None = None
        self._task: asyncio.Task[None] | None = None
        self._half_closed = False
        self._tail: Tail | None = None  # of an answer that Envoy shows us

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
        self._context.bodies.release(self)
        if self._phase == Phase.LATE:
            self._context.failed("body_mode")
        elif self._phase == Phase.ROUTED:
            model, meter = self._model(), self._context.meter
            if model is not None and meter is not None:
                meter.given_up(model)
        if self._tail is not None:  # the answer broke off, or its client left: what was seen of it has its price
            try:
                self._charge(self._tail)
            except Exception as error:  # noqa: BLE001 - the transport has other streams to close
                _log(error)
                self._context.failed("error")
        self._phase = Phase.OVER
        self._first = self._request = self._trace = self._tail = None
        self._body = bytearray()
        self._owed = []

    # Messages

    def _take(self, message: Message) -> None:
        kind = message.kind
        if kind == Kind.REQUEST_HEADERS:
            self._request_headers(message)
        elif kind == Kind.REQUEST_BODY:
            self._request_body(message)
        elif kind == Kind.REQUEST_TRAILERS:
            self._request_trailers(message)
        else:
            self._response(message)

    def _request_headers(self, message: Message) -> None:
        self._open(message)
        self._owed.append(Kind.REQUEST_HEADERS)
        headers = message.headers
        path, method = headers.get(":path", ""), headers.get(":method", "")
        target = paths.read(path)
        try:
            if target is None:
                self._unknown(path, method)
            elif target.api is None:
                _no_socket(headers, method)
                self._bodiless(target, method, message.end)
            else:
                _callable(headers, method)
                if _number(headers.get("content-length", "")) > self._engine.settings.max_body:
                    self._refuse_size()
                elif message.end:
                    self._decide(b"")
                else:
                    self._collect()
        except Refusal as refusal:
            self._refuse(refusal)

    def _unknown(self, path: str, method: str) -> None:
        """A path that is no API's: it is opened by the policy, or refused, or passed on unread."""
        settings = self._engine.settings
        opened = paths.opening(path, settings.openings)
        if opened is not None:
            self._pass(((ROUTE, opened.to),))
        elif settings.pass_unread:
            self._context.failed("passed_unread")
            self._context.unread("passed_unread", method, path)
            self._pass()
        else:
            self._context.unread("unknown_path", method, path)
            raise Refusal(404, paths.NOT_SERVED, "unknown_path")

    def _bodiless(self, target: Target, method: str, end: bool) -> None:
        """The model list, which we answer, and stored responses, which the upstream has."""
        if target.operation == "models":
            if method not in ("GET", "HEAD"):
                raise _method("GET, HEAD")
            self._list(target.model)
        elif method not in ("GET", "HEAD", "DELETE", "POST"):
            raise _method("GET, DELETE, POST")
        elif not end:
            raise Refusal(400, "A request for a stored response has no body.", "unexpected_body")
        else:
            maker = self._context.makers.of(self._session())
            route = ((ROUTE, maker),) if maker in self._engine.models else ()
            self._pass(route + _plain_path(target))

    def _open(self, message: Message) -> None:
        """What the first message of a stream announces."""
        if self._phase != Phase.START or self._first is not None:
            raise RuntimeError("a second message of request headers")
        self._first = message
        if self._terms.observing:
            self._stream = _Mute(self._stream)

    def _collect(self) -> None:
        """Wait for the body, in the way of its mode."""
        mode = self._terms.request_body
        self._phase = Phase.COLLECTING
        if self._held():
            self._hold(0)  # its time begins
            return
        if mode in _WHOLE and mode != Mode.NONE:
            self._stream.send(wire.reply(self._owed.pop(), (), self._own()))
            return
        self._phase = Phase.LATE
        route = ((ROUTE, self._engine.default.key),)
        self._stream.send(wire.reply(self._owed.pop(), route, self._own(), True) + wire.BUFFERING)

    def _request_body(self, message: Message) -> None:
        phase = self._phase
        if phase == Phase.START:  # the filter is set to skip request headers: there is no path to go by
            self._open(message)
            self._context.failed("body_mode")
            self._phase = phase = Phase.PASSING
        if phase == Phase.COLLECTING or phase == Phase.LATE:
            self._gather(message)
        elif phase in (Phase.PASSING, Phase.ROUTED, Phase.ANSWERED):
            self._echo(message, self._terms.request_body)

    def _gather(self, message: Message) -> None:
        mode = self._terms.request_body
        if mode != Mode.FULL_DUPLEX_STREAMED and not self._terms.observing:
            self._owed.append(Kind.REQUEST_BODY)
        if self._phase == Phase.LATE and not message.end:
            # A stream of chunks after all. The first are past us already, so there is nothing to decide.
            self._context.failed("body_mode")
            self._pass()
        elif len(self._body) + len(message.body) > self._engine.settings.max_body or len(self._owed) > MAX_OWED:
            self._refuse_size()
        elif self._held() and not message.end and not self._hold(len(message.body)):
            self._refuse(_full())
        elif mode == Mode.BUFFERED_PARTIAL and not message.end:
            self._refuse(Refusal(413, "The request body is larger than the proxy's buffer.", "too_large"))
        elif self._held() and not message.end:
            self._body += message.body
        else:
            self._decide(bytes(self._body) + message.body if self._body else message.body)

    def _request_trailers(self, message: Message) -> None:
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

    def _response(self, message: Message) -> None:
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
        if message.kind == Kind.RESPONSE_HEADERS:
            trace = self._trace
            shown: Pairs = ()
            if self._phase == Phase.ROUTED and trace is not None and self._engine.settings.response_headers:
                shown = response_headers(trace)
            # An upstream's copies of our headers are no more to be believed than a client's.
            own = [] if ours else message.headers.own()
            if self._phase == Phase.ROUTED and trace is not None and trace.decision.action == "stepwise":
                # It comes from our own service, which knows better who wrote it.
                shown, own = tuple(pair for pair in shown if pair[0] not in own), []
            self._answered(message)
            watching = wire.WATCHING if self._tail is not None and self._terms.response_body == Mode.NONE else b""
            own = [name for name in own if name not in dict(shown)]
            self._stream.send(wire.reply(message.kind, shown, own, extra=watching))
            if watching:
                pass
            elif self._terms.response_body == Mode.NONE and self._phase != Phase.PASSING and self._task is None:
                self._stream.finish()  # nothing more to say: a long answer need not keep the stream
        elif message.kind == Kind.RESPONSE_BODY:
            self._meter_body(message)
            self._echo(message, self._terms.response_body)
        else:
            self._stream.send(wire.trailers(message.kind))

    def _answered(self, message: Message) -> None:
        """The headers of an answer: the model's, if the request was sent to one."""
        if self._phase != Phase.ROUTED:
            return
        self._phase = Phase.ANSWERED
        model, meter, request = self._model(), self._context.meter, self._request
        if model is not None and request is not None:
            if meter is not None:
                meter.first_byte(model, request, _number(message.headers.get(":status", "")))
            head = self._context.chains.begun(request)
            if head is not None or (self._engine.metered and self._terms.response_body != Mode.NONE):
                self._tail = Tail(head)
        if self._trace is not None and self._trace.decision.action == "stepwise":
            chosen = self._engine.models.get(message.headers.get("x-pointsman-model", ""))
            if chosen is not None:  # for an agent's request: its price counts
                self._trace.decision = replace(self._trace.decision, model=chosen)

    def _meter_body(self, message: Message) -> None:
        """A piece of the answer, of which only the end is kept, to read from it what the answer cost."""
        tail = self._tail
        if tail is None:
            return
        tail.take(message.body)
        if tail.head is not None and (found := tail.head.take(message.body)) is not None:
            self._context.chains.learn(self._engine, found, tail.head.session)
        if message.end:
            self._charge(tail)

    def _charge(self, tail: Tail) -> None:
        self._tail = None
        model, meter = self._model(), self._context.meter
        trace, request, engine = self._trace, self._request, self._engine
        if model is not None and meter is not None and trace is not None and request is not None and engine.metered:
            meter.spent(engine, trace, request, model, tail)

    def _model(self) -> Model | None:
        """The model that the request went to."""
        return None if self._trace is None else self._trace.decision.model

    def _echo(self, message: Message, mode: int) -> None:
        """Let a piece of body go on as it is."""
        if mode == Mode.FULL_DUPLEX_STREAMED:
            for chunk in wire.chunks(message.kind, message.body, message.end):
                self._stream.send(chunk)
        else:
            self._stream.send(wire.reply(message.kind))

    # Deciding

    def _decide(self, body: bytes) -> None:
        self._phase = Phase.DECIDING
        self._context.bodies.arrived(self)
        try:
            if (len(body) > SMALL and _long(body)) or self._coding() is not None:
                self._begin(self._decide_apart(body), len(body))
                return
            request = self._request = self._read(body)
            if before(self._engine, request):
                self._begin(self._decide_chained(request), len(body))
                return
            engine = self._engine = self._context.choose(request)
            deadline = time.monotonic() + engine.settings.deadline
            settled = engine.settle(request, deadline, detail=self._context.timed())
            if isinstance(settled, Trace):
                self._act(settled)
            else:
                self._begin(self._finish(settled), len(body))
        except UnknownModel as error:
            self._refuse(openai.unknown_model(error.model))
        except Refusal as refusal:
            self._refuse(refusal)

    def _begin(self, work: Coroutine[Any, Any, None], size: int) -> None:
        """Go on in a task; a body of `size` bytes is held as long."""
        if not self._hold(max(0, size - len(self._body))):
            work.close()
            self._refuse(_full())
            return
        self._context.bodies.arrived(self)
        self._task = asyncio.get_running_loop().create_task(work)

    def _read(self, body: bytes) -> Request:
        """The call in `body`. Raises `Refusal` when it is none."""
        first, target = self._first, self._target()
        assert first is not None
        assert target is not None
        settings = self._engine.settings
        coding = self._coding()
        if coding is not None:
            body = encoding.decoded(coding, body, settings.max_body)
        try:
            return parse(target, first.headers, first.attributes(), body, settings.max_values)
        except Refusal as refusal:
            content_type = first.headers.get("content-type", "")
            if refusal.code not in ("invalid_json", "empty_body") or encoding.says_json(content_type):
                raise
            text = "The request body must be a JSON object; no other content type is read here."
            raise Refusal(415, text, "unsupported_content_type") from None

    async def _decide_apart(self, body: bytes) -> None:
        """Decide what takes long to read: the parser and the signals of its text run in a thread."""
        try:
            try:
                request = self._request = await self._context.apart(partial(self._read, body))
                if not self._hold(max(0, len(request.body) - len(body))):  # what an encoding made of it
                    raise _full()
                if before(self._engine, request):
                    await self._context.chains.follow(self._engine, request)
                engine = self._engine = self._context.choose(request)
                deadline = time.monotonic() + engine.settings.deadline
                evaluation = engine.begin(request, deadline, detail=self._context.timed())
                await self._context.apart(evaluation.warm)
            except UnknownModel as error:
                self._refuse(openai.unknown_model(error.model))
            except Refusal as refusal:
                self._refuse(refusal)
            else:
                await self._finish(evaluation)
                return
        except Exception as error:  # noqa: BLE001 - as in `message`
            self._recover(error)
        self._rest()

    async def _decide_chained(self, request: Request) -> None:
        """Decide a call that goes on from a response, of which the session is asked for."""
        try:
            try:
                await self._context.chains.follow(self._engine, request)
                engine = self._engine = self._context.choose(request)
                deadline = time.monotonic() + engine.settings.deadline
                evaluation = engine.begin(request, deadline, detail=self._context.timed())
            except UnknownModel as error:
                self._refuse(openai.unknown_model(error.model))
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
        request = self._request
        assert request is not None
        decision = trace.decision
        if decision.action == "respond":
            self._refuse(_refusal(decision), trace)
            self._context.record(trace, request, self._stream)
            return
        if decision.action == "stepwise":
            answerer = self._context.answerer
            if answerer is not None and self._can_stream():
                self._task = asyncio.get_running_loop().create_task(self._answer(answerer, trace))
                return
            sent = None if answerer is None else answerer.elsewhere(trace, request)
            if sent:
                self._route(trace, request, sent)
                self._context.record(trace, request, self._stream)
                return
            _plain(trace, "no_answerer" if answerer is None else "body_mode" if sent is None else "ineligible")
        self._route(trace, request)
        self._context.record(trace, request, self._stream)

    def _can_stream(self) -> bool:
        return self._terms.request_body == Mode.FULL_DUPLEX_STREAMED and not self._terms.observing

    def _route(self, trace: Trace, request: Request, more: Pairs = ()) -> None:
        """Send the request to the decision's model, its body changed only where it must be; `more` are headers."""
        target = self._target()
        if target is not None and target.path is not None:
            more = (*more, (":path", target.path))
        if self._first is not None and not encoding.plainly_json(self._first.headers.get("content-type", "")):
            more = (*more, *openai.JSON_HEADERS)  # a form, say, has another meaning to whoever reads forms
        self._trace = trace
        foreign = self._foreign(request, trace.decision.model)
        if len(request.body) > SMALL and _long(request.body):
            rewrite = partial(rewritten, request, trace.decision, foreign)
            self._task = asyncio.get_running_loop().create_task(self._route_apart(trace, rewrite, more))
        else:
            self._send_on(trace, rewritten(request, trace.decision, foreign), more)

    def _foreign(self, request: Request, model: Model | None) -> int:
        """How many of the call's first messages are another model's, whose thoughts `model` would not take.

        Known is what this worker has seen of a session that a header names. Where it has seen nothing, and the call
        names one model and goes to another, the turns that are over count as the former's: an answer does without
        their thoughts. Otherwise nothing is known, and nothing foreign: 0.
        """
        if model is None or request.operation:
            return 0
        session = self._session()
        if not session and len(request.messages) <= 2:  # a prompt and a question: there is no answer yet
            return 0
        given = messages(request.api, request.fields)
        if not given:
            return 0
        if session:
            foreign = self._context.makers.foreign(session, request, model.key, len(given))
            if foreign is not None:
                return foreign
        named = self._engine.named(request)
        return turn(given) if named is not None and named is not model else 0

    def _session(self) -> str:
        """The session that the headers name, as `signals.state.session` does; '' where they name none."""
        first, sessions = self._first, self._engine.sessions
        if first is None or (not sessions.own and first.headers.lacks(NAMING)):
            return ""
        return sessions.named(first.headers)

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
        if body is None and self._coding() is not None:
            body = request.body
        model = trace.decision.model
        if request.api == "responses" and model is not None:
            self._context.makers.note(self._session(), model.key)
            self._context.chains.mark(self._engine, request)
        self._pay(request_headers(trace.decision) + more, body, _metadata(trace))
        if len(request.body) <= SMALL:
            self._context.bodies.release(self)
        elif not self._engine.metered:  # nobody needs it while the answer comes
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
        coded = [] if body is None or self._coding() is None else ["content-encoding"]
        for index, kind in enumerate(owed):
            if kind == Kind.REQUEST_HEADERS:
                own = [name for name in self._own() if name not in dict(headers)] + coded
                send(wire.reply(kind, headers, own, bool(headers), None, extra))
                if self._terms.request_body == Mode.FULL_DUPLEX_STREAMED:
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
                own = [name for name in self._own() if name not in dict(headers)]
                self._stream.send(wire.reply(kind, headers, own, bool(headers)))
            else:
                self._stream.send(wire.reply(kind))
        self._owed = []
        if self._terms.request_body in _WHOLE or (self._first is not None and self._first.end):
            # Ending the stream tells Envoy to go on without us, so it buffers nothing more on our behalf. Only before
            # any streamed body: Envoy 1.40 then sends the last chunk twice. (To override the mode to NONE instead
            # leaves it waiting when the body was over its buffer limit already.)
            self._stream.finish()

    # Answers of our own

    def _list(self, model: str | None) -> None:
        engine = self._engine
        first = self._first
        anthropic = first is not None and "anthropic-version" in first.headers
        try:
            body = listing.models(engine, model, anthropic)
        except Refusal as refusal:
            self._refuse(refusal)
            return
        headers = (*openai.JSON_HEADERS, ("x-pointsman-policy", engine.policy))
        self._over(wire.immediate(200, headers, body, "pointsman_models"))

    def _refuse_size(self) -> None:
        limit = self._engine.settings.max_body
        self._refuse(Refusal(413, f"The request body is larger than {limit} bytes.", "too_large"))

    def late(self) -> None:
        """The body has not come in time (extproc.bodies.Holder)."""
        if self._phase == Phase.COLLECTING:
            seconds = self._engine.settings.body_timeout
            self._refuse(Refusal(408, f"The request body did not come within {seconds:g} seconds.", "body_timeout"))

    def _refuse(self, refusal: Refusal, trace: Trace | None = None) -> None:
        headers: Pairs = (("x-pointsman-policy", self._engine.policy),)
        extra = b""
        if trace is None:
            self._context.failed(refusal.code)
        else:
            headers = response_headers(trace)
            extra = _metadata(trace)
            if refusal.status == 200 and self._request is not None:
                given = static_answer(self._request, refusal.text)
                if given is not None:
                    headers = (("content-type", given.content_type), *headers, *refusal.headers)
                    self._over(wire.immediate(200, headers, given.body, "pointsman_answer") + extra)
                    return
            if refusal.status == 200:  # the call has no answer in words
                refusal = Refusal(403, refusal.text, refusal.code, headers=refusal.headers)
        api = None if self._request is None else self._request.api
        if self._request is None and trace is None:
            # Otherwise it is the trace of something broken: what the path says may be what broke.
            target = self._target()
            api = None if target is None else target.api
            if api is None and self._first is not None and "anthropic-version" in self._first.headers:
                api = "messages"
        body = openai.error(api, refusal)
        headers = (*openai.JSON_HEADERS, *headers, *refusal.headers)
        self._over(wire.immediate(refusal.status, headers, body, f"pointsman_{refusal.code}") + extra)

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
            try:
                answer = await answerer.answer(trace, request)
            except Exception as error:  # noqa: BLE001 - the request has a plain route, and takes it
                _log(error)
                reason = "answerer_error"
            if answer is None:
                _plain(trace, reason)
                self._route(trace, request)
                self._context.record(trace, request, self._stream)
            else:
                self._context.record(trace, request, self._stream)
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
        async with aclosing(answer.body) as body:
            self._over(wire.stream_headers(answer.status, headers) + _metadata(trace))
            try:
                async for piece in body:
                    left -= len(piece)
                    if left < 0:
                        raise OverflowError("an answer without end")
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
            self._stream.send(wire.stream_body(b"", True))

    # Failing

    def _recover(self, error: Exception) -> None:
        """Something of ours broke: the request fails closed or takes the default model, unless it is on its way."""
        _log(error)
        if not self._owed and self._phase in (Phase.PASSING, Phase.ROUTED, Phase.ANSWERED, Phase.OVER):
            self._context.failed("error")
            return
        trace = self._engine.failed("error")
        if trace.decision.action == "respond":
            self._refuse(_refusal(trace.decision), trace)
        else:
            self._trace = trace
            self._pay(request_headers(trace.decision), None, _metadata(trace))
        if self._request is None:
            self._context.failed("error")
        else:
            self._context.record(trace, self._request, self._stream)

    # Small things

    @property
    def _terms(self) -> Terms:
        return _UNKNOWN if self._first is None else self._first.terms()

    def _target(self) -> Target | None:
        return None if self._first is None else paths.read(self._first.headers.get(":path", ""))

    def _coding(self) -> str | None:
        """The encoding of the request body. Raises `Refusal` (415) for one that is not understood."""
        given = "" if self._first is None else self._first.headers.get("content-encoding", "")
        return encoding.coding(given) if given else None

    def _hold(self, size: int) -> bool:
        """Count `size` more bytes of this request's body; False where the worker holds too many."""
        settings = self._engine.settings
        return self._context.bodies.hold(self, size, settings.max_open_bodies, settings.body_timeout)

    def _held(self) -> bool:
        """Whether the body comes without an answer to the headers."""
        terms = self._terms
        return terms.request_body == Mode.FULL_DUPLEX_STREAMED or terms.no_wait or terms.observing

    def _own(self) -> list[str]:
        return self._first.headers.own() if self._first is not None else []


@lru_cache(maxsize=1024)
def request_headers(decision: Decision) -> Pairs:
    """The request headers that a decision sets."""
    if decision.model is None:
        return ()
    route = (ROUTE, decision.model.key)
    return (route,) if decision.changes is None else (route, *decision.changes.headers.items())


def response_headers(trace: Trace) -> Pairs:
    """The response headers that tell the client what was decided."""
    return _told(trace.decision, trace.policy)


@lru_cache(maxsize=1024)
def _told(decision: Decision, policy: str) -> Pairs:
    told = []
    if decision.name is not None:
        told.append(("x-pointsman-decision", decision.name))
    if decision.model is not None:
        told.append(("x-pointsman-model", decision.model.key))
    return (*told, ("x-pointsman-policy", policy))


@lru_cache(maxsize=1024)
def _texts(decision: Decision, policy: str) -> bytes:
    texts: list[tuple[str, str]] = [("action", decision.action), ("policy", policy)]
    if decision.name is not None:
        texts.append(("decision", decision.name))
    if decision.model is not None:
        texts.append(("model", decision.model.key))
    if decision.fallback is not None:
        texts.append(("fallback", decision.fallback))
    return wire.texts(tuple(texts))


def _metadata(trace: Trace) -> bytes:
    return wire.metadata(_texts(trace.decision, trace.policy), trace.estimated_input_tokens, trace.telling)


def _refusal(decision: Decision) -> Refusal:
    text = decision.message or "Refused by policy."
    return Refusal(decision.status or 403, text, "policy_refusal", headers=decision.headers)


def _plain(trace: Trace, reason: str) -> None:
    """Turn a stepwise decision into its plain route."""
    trace.decision = replace(trace.decision, action="route", stepwise=None, fallback=reason)


def rewritten(request: Request, decision: Decision, foreign: int = 0) -> bytes | None:
    """The body that the decision's model gets, its first `foreign` messages without their thoughts; None: as it came.

    Raises `Refusal` where it cannot be written again.
    """
    model, changes = decision.model, decision.changes
    if model is not None and (foreign or (changes is not None and changes.body)):
        return openai.changed(request, model, changes, foreign)
    # An Azure path names the model, which the plain form of the path does not.
    name = request.model if model is None else model.name
    return openai.with_model(request, name) if name is not None and request.fields.get("model") != name else None


def _long(body: bytes) -> bool:
    """Whether `body`, which is not small, takes so long to read that others would notice."""
    return len(body) > APART or (len(body) > STRANGE and not body.isascii()) or count(body, b"{") > MANY


def _callable(headers: Headers, method: str) -> None:
    """Raises `Refusal` where headers say that the body of a call cannot be read."""
    _no_socket(headers, method)
    if method != "POST":
        raise _method("POST")
    if (given := headers.get("content-encoding", "")) != "":
        encoding.coding(given)
    content_type = headers.get("content-type", "")
    if content_type != "application/json" and not encoding.in_utf8(content_type):
        raise Refusal(415, "The request body must be JSON in UTF-8.", "unsupported_charset")


def _no_socket(headers: Headers, method: str) -> None:
    """Raises `Refusal` (426) where a WebSocket is asked for: what goes through it nobody would read."""
    if method == "CONNECT" or (
        "upgrade" in headers and (method != "POST" or "websocket" in headers["upgrade"].lower())
    ):
        text = "WebSockets are not served here; send the call with POST."
        raise Refusal(426, text, "websocket_refused", headers=(("upgrade", "HTTP/1.1"),))


def _method(allowed: str) -> Refusal:
    text = f"This path takes {allowed} only."
    return Refusal(405, text, "method_not_allowed", headers=(("allow", allowed),))


def _full() -> Refusal:
    text = "This gateway holds too many request bodies at the moment; try again."
    return Refusal(503, text, "too_many_bodies", headers=(("retry-after", "1"),))


def _plain_path(target: Target) -> Pairs:
    return () if target.path is None else ((":path", target.path),)


def _number(text: str) -> int:
    return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else 0


def _log(error: Exception) -> None:
    """Where it broke, without the exception's own text: that could quote a prompt."""
    last = traceback.extract_tb(error.__traceback__)[-1:]
    where = f"{last[0].filename}:{last[0].lineno}" if last else "?"
    log.error("%s at %s", type(error).__name__, where)
