"""The answer to a request that was sent on to a model, on its way back through Envoy: the Exchange's second half.

What the client is told with it, and what it took and cost. Today nothing of an answer is held back: its pieces go on
as they come.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Protocol

from decisions.decision import Trace
from decisions.engine import Engine
from extproc.apis.registry import BY_NAME
from extproc.apis.shape import EVENTS
from extproc.chains import Chains, IdFinder
from extproc.head import Head, number
from extproc.keeping.keeper import Keeping
from extproc.meter import Meter, Tail, spent
from extproc.told import FALLBACK, response_headers
from extproc.watching.unasked import Unasked
from extproc.wire import Headers, Message, Mode, Pairs
from signals.request import Request
from upstream.usage import Spent


class Context(Protocol):
    """What an answer needs from the service: a part of `extproc.exchange.Context`."""

    @property
    def meter(self) -> Meter | None: ...

    @property
    def chains(self) -> Chains: ...

    def failed(self, reason: str) -> None: ...


class Reply:
    """One answer. `request` is None where the request could not be read and went to the default model all the same.

    `model` is the one that answers: the decision's, or the fallback that took its place. `status` is the answer's (0:
    none came), `first_byte` the time at which its head came, in seconds since the epoch. `bill` is what a writer has
    taken within this exchange; a plain answer may follow where the writer failed.
    """

    __slots__ = (
        "_context",
        "_engine",
        "_keeping",
        "_request",
        "_tail",
        "_trace",
        "_unasked",
        "bill",
        "first_byte",
        "model",
        "status",
    )

    def __init__(self, engine: Engine, context: Context, request: Request | None, trace: Trace) -> None:
        self.model = trace.decision.model
        self.status = 0
        self.first_byte = time.time()
        self.bill: Spent | None = None
        self._engine = engine
        self._context = context
        self._request = request
        self._trace = trace
        self._keeping: Keeping | None = None  # whoever wants to give the answer again
        self._unasked: Unasked | None = None
        self._tail: Tail | None = None  # of an answer whose usage somebody wants to know

    def charge(self, bill: Spent) -> None:
        """A writer's answer is over, and has taken this."""
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
            finder = IdFinder(request.session) if request.stored else None
            if finder is not None or (engine.metered and watched):
                self._tail = Tail(finder)
            if engine.metered and not watched:  # the gateway was rendered for a policy that wanted to know less
                self._context.failed("answer_unseen")
        streamed = headers.get("content-type", "").lower().startswith(EVENTS)
        if asked.counted and streamed and "content-encoding" not in headers:
            self._unasked = Unasked()
            own = [*own, "content-length"]
        shown = response_headers(trace, self.model) if engine.settings.response_headers else ()
        if (keeping := asked.keeping) is not None:
            self._keeping = keeping
            keeping.begin(self.status, headers.get("content-type", ""), "content-encoding" in headers, self.model)
            shown += keeping.told() if engine.settings.response_headers else ()
        if written:
            return tuple(pair for pair in shown if pair[0] not in own), ()
        return shown, [name for name in own if name not in dict(shown)] if own else own

    def take(self, message: Message) -> bytes | None:
        """A piece of the answer, of which only the end is kept, to read from it what the answer cost. Gives what the
        client gets (None: what came)."""
        tail = self._tail
        if self._keeping is not None:
            self._keeping.take(message.body, message.end)
        if tail is None:
            return None
        tail.take(message.body)
        if tail.finder is not None and (found := tail.finder.take(message.body)) is not None:
            self._context.chains.learn(self._engine, found, tail.finder.session)
        return None if self._unasked is None else self._unasked.feed(message.body, message.end)

    @property
    def watched(self) -> bool:
        """Whether the body must be looked at."""
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
