"""The answer to a request that was sent on to a model, on its way back through Envoy: the Exchange's second half.

What the client is told with it, and what it took and cost. An answer whose text a decision watches is handed over to us
(FULL_DUPLEX_STREAMED) and given back as far as it was judged, its headers with the first piece; any other goes on as it
comes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from decisions.decision import Trace
from decisions.engine import Engine
from decisions.watching import OBSERVED, Judge
from extproc import wire
from extproc.apis.registry import BY_NAME
from extproc.apis.shape import EVENTS, JSON
from extproc.chains import Chains, IdFinder
from extproc.keeping.keeper import Keeping
from extproc.meter import Meter, Tail, spent
from extproc.refusal import Refusal
from extproc.requests.head import Head, media_type, number
from extproc.told import FALLBACK, response_headers
from extproc.watching.shapes import ARRAYS, SHAPES, asks_json
from extproc.watching.unasked import Unasked
from extproc.watching.watch import Watch
from extproc.wire import EnvoyMessage, Headers, Kind, Mode, Pairs
from signals.request import Request
from upstream.usage import Spent

T = TypeVar("T")
_UNKNOWN = Request("chat", b"", {}, None, ())
"""Stands for a request that could not be read."""


class ReplyContext(Protocol):
    """What an answer needs from the service: a part of `extproc.exchange.Context`."""

    @property
    def meter(self) -> Meter | None: ...

    @property
    def chains(self) -> Chains: ...

    async def apart(self, work: Callable[[], T]) -> T: ...

    def failed(self, reason: str) -> None: ...


class Reply:
    """One answer. `request` is None where the request could not be read and went to the default model all the same.

    `model` is the one that answers: the decision's, or the fallback that took its place. `status` is the answer's (0:
    none came), `first_byte` the time at which its head came, in seconds since the epoch. `bill` is what a writer has
    taken within this exchange, where that is counted, and `course` how it came to its answer; a plain answer may follow
    where the writer failed.
    """

    __slots__ = (
        "_bodiless",
        "_context",
        "_ended",
        "_engine",
        "_judge",
        "_keeping",
        "_request",
        "_strange",
        "_tail",
        "_trace",
        "_unasked",
        "_waiting",
        "bill",
        "course",
        "first_byte",
        "model",
        "status",
        "trailers",
        "watch",
    )

    def __init__(self, engine: Engine, context: ReplyContext, request: Request | None, trace: Trace) -> None:
        self.model = trace.decision.model
        self.status = 0
        self.first_byte = time.time()
        self.bill: Spent | None = None
        self.course: Mapping[str, Any] | None = None
        self._engine = engine
        self._context = context
        self._request = request
        self._trace = trace
        self._keeping: Keeping | None = None  # whoever wants to give the answer again
        self._unasked: Unasked | None = None
        self._tail: Tail | None = None  # of an answer whose usage somebody wants to know
        self._judge: Judge | None = None
        self._waiting: tuple[Pairs, Sequence[str]] | None = None  # the changes of headers that are held
        self._strange = False  # the body is nothing that can be read
        self._bodiless = False
        self._ended = False  # all was given back
        self.trailers = False  # the answer has trailers, which follow its last piece
        self.watch: Watch | None = None  # of an answer whose text is judged

    def charge(self, bill: Spent) -> None:
        """A writer's answer is over, and has taken this."""
        self.course = bill.course
        if self._engine.metered:
            self.bill = bill

    def begun(self, status: int, model: str | None) -> None:
        """The head of a writer's answer is sent; `model` as the writer calls the one that writes it."""
        self.status = status
        self.first_byte = time.time()
        self.model = self._engine.models.get(model or "", self.model)
        if self.bill is None and self._engine.metered:
            self.bill = Spent(0, 0, 0.0)  # until the writer says what it has taken

    def head(self, headers: Headers, own: Sequence[str], asked: Head) -> tuple[Pairs, Sequence[str]]:
        """The answer's headers came. Gives the headers to set, and the names to remove; `own` are those that only we
        may set and that the answer has, `asked` is the request's head.
        """
        engine, trace = self._engine, self._trace
        watched = asked.response_mode != Mode.NONE  # Envoy shows us the body, too
        self.status = number(headers.get(":status", ""))
        chosen = self.model
        written = trace.decision.writer is not None
        if written:  # it comes from our own service, which knows better who wrote it: for an agent's request one model
            self.model = engine.models.get(headers.get("x-pointsman-model", ""), chosen)
        elif chosen is not None and chosen.fallback and (name := headers.get(FALLBACK, "")):
            self.model = next((other for other in chosen.fallback if other.key == name), chosen)
        request, meter = self._request, self._context.meter
        if chosen is not None and request is None and meter is not None:
            meter.given_up(chosen)  # nobody knows when it came
        if chosen is not None and request is not None:
            if meter is not None:
                # Whoever answers in its place, the model that was sent the request has failed.
                failed = not written and self.model is not chosen
                meter.first_byte(chosen, request, 503 if failed else self.status)
            gradable = engine.grading is not None and trace.choice is not None and watched
            finder = (
                IdFinder(request.session, gradable, BY_NAME[request.api].kept_ids)
                if request.stored or gradable
                else None
            )
            if finder is not None or (engine.metered and watched):
                self._tail = Tail(finder)
            if engine.metered and not watched:  # the gateway was rendered for a policy that wanted to know less
                self._context.failed("answer_unseen")
        if asked.counted and "content-encoding" not in headers and _type(headers) == EVENTS:
            self._unasked = Unasked()
            own = [*own, "content-length"]
        shown = response_headers(trace, self.model) if engine.settings.response_headers else ()
        if (keeping := asked.keeping) is not None:
            self._keeping = keeping
            keeping.begin(self.status, _type(headers), "content-encoding" in headers, self.model)
            shown += keeping.told() if engine.settings.response_headers else ()
        if written:
            return tuple(pair for pair in shown if pair[0] not in own), ()
        return shown, [name for name in own if name not in dict(shown)] if own else own

    def watched(self, headers: Headers, begun: bool = False) -> Watch | None:
        """The watch of this answer, where a decision watches it; `headers` are the answer's. `begun`: they are on their
        way to the client already. An answer that cannot be read is so from the beginning."""
        engine, request = self._engine, self._request
        if engine.watches != "text":
            return None
        request = request or _UNKNOWN
        shape = SHAPES.get(request.api)
        judge = None if shape is None or request.operation else engine.judge(self._trace, request)
        if shape is None or judge is None:
            return None
        kind = _type(headers)
        streamed = kind == EVENTS
        if request.framing == "array" and kind == JSON:
            shape, streamed = ARRAYS[request.api], True
        if not streamed:  # more of a stream would come meanwhile than may be held
            judge.apart = self._context.apart
        self._judge = judge
        self.watch = watch = Watch(shape, judge, streamed, json=asks_json(request.fields))
        watch.begun = begun
        coding = headers.get("content-encoding", "identity").strip().lower()
        plain = streamed or kind == JSON or kind.endswith("+json")
        self._strange = coding not in ("", "identity") or not plain
        return watch

    def hold(self, shown: Pairs, own: Sequence[str], bodiless: bool) -> None:
        """Keep the answer's headers back, with these changes, until there is something to release. `bodiless`: nothing
        follows them."""
        self._waiting = shown, own
        self._bodiless = bodiless

    def feed(self, data: bytes, end: bool) -> bytes:
        """The next piece of a watched answer: what may be released."""
        watch = self.watch
        assert watch is not None
        out = b""
        if self._strange and not self._bodiless:
            self._strange = False
            out = watch.unreadable()
        return out + watch.feed(data, end)

    def given(self, out: bytes) -> Iterator[bytes]:
        """The messages that release `out`, and what else can go with it."""
        watch = self.watch
        assert watch is not None
        done = watch.done
        if self._ended or not (out or done):
            return
        if self._waiting is not None:
            shown, own = self._waiting
            self._waiting = None
            yield wire.reply(Kind.RESPONSE_HEADERS, shown + self.told(), [*own, "content-length"])
        self._ended = done
        if done and self._keeping is not None:
            self._keeping.judged(bool(self.acted))
        if self._bodiless:
            return
        trailers = done and self.trailers
        pieces = list(wire.chunks(Kind.RESPONSE_BODY, out, done and not trailers)) if out or not trailers else []
        if trailers:
            pieces.append(wire.trailers(Kind.RESPONSE_TRAILERS))
        if done and (acted := wire.texts(self._acted())):
            pieces[-1] += wire.metadata(acted, None, {})
        yield from pieces

    def told(self) -> Pairs:
        """The response header that names the decisions on the answer that have acted so far."""
        names = [name for name, action in self.acted if action != OBSERVED]
        if not names or not self._engine.settings.response_headers:
            return ()
        return (("x-pointsman-answer", ", ".join(names)),)

    def _acted(self) -> Pairs:
        acted = self.acted
        return (("answer_decision", acted[0][0]), ("answer_action", acted[0][1])) if acted else ()

    @property
    def acted(self) -> tuple[tuple[str, str], ...]:
        """The decisions on the answer that have acted, with what they did."""
        return () if self._judge is None else tuple(self._judge.acted)

    def refusal(self) -> Refusal | None:
        """What takes the place of the answer, where a decision says so."""
        verdict = None if self.watch is None else self.watch.responds
        if verdict is None:
            return None
        self.status = verdict.status or 403
        text = verdict.message or "The answer was withheld by policy."
        return Refusal(self.status, text, "policy_refusal", headers=self.told())

    def take(self, message: EnvoyMessage) -> bytes | None:
        """A piece of the answer, of which only the end is kept, to read from it what the answer cost. Gives what the
        client gets (None: what came)."""
        tail = self._tail
        if self._keeping is not None:  # a watched answer is whole once it is judged
            self._keeping.take(message.body, message.end and self.watch is None)
        if tail is None:
            return None
        tail.take(message.body)
        if tail.finder is not None and (found := tail.finder.take(message.body)) is not None:
            request, grading = self._request, self._engine.grading
            if request is not None and request.stored and found.startswith(tail.finder.begins):
                self._context.chains.learn(self._engine, found, tail.finder.session)
            if request is not None and grading is not None and tail.finder.any:
                grading.answered(self._trace, request, found)
        return None if self._unasked is None else self._unasked.feed(message.body, message.end)

    def rest(self) -> bytes:
        """Trailers have come, so that the body is over: what was held back of it, for the client or for its watch."""
        if self._keeping is not None and self.watch is None:
            self._keeping.take(b"", True)
        return b"" if self._unasked is None else self._unasked.feed(b"", True)

    @property
    def counted(self) -> bool:
        """Whether the body must be looked at, for what it took."""
        return self._tail is not None

    def spent(self) -> Spent | None:
        """What the answer took, whole or as far as it came; None where its body was not looked at."""
        tail, model, bill = self._tail, self.model, self.bill
        if tail is None or model is None:
            return bill
        request = self._request
        written = request is not None and not request.operation and BY_NAME[request.api].generates
        took = spent(self._trace, model, tail, written and self.status < 400)
        return took if bill is None else _both(took, bill)


def _type(headers: Headers) -> str:
    return media_type(headers.get("content-type", ""))


def _both(one: Spent, other: Spent) -> Spent:
    return Spent(
        one.prompt + other.prompt,
        one.completion + other.completion,
        one.money + other.money,
        _sum(one.cached, other.cached),
        _sum(one.reasoning, other.reasoning),
        _sum(one.written, other.written),
    )


def _sum(one: int | None, other: int | None) -> int | None:
    return one if other is None else other if one is None else one + other
