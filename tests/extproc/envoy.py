"""Envoy's side of one ext_proc stream, in memory: says what Envoy would say, and reads what the Exchange answers.

Messages are built and read with envoy-data-plane's classes, so that nothing of ours judges itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from decisions.catalogue import Catalogue
from decisions.decision import Decision, Trace
from decisions.engine import Clause, Engine, Ruleset, Settings
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.rule import ALWAYS, Leaf, Rule
from extproc.bodies.holder import Bodies
from extproc.chains import Chains
from extproc.exchange import Answerer, Exchange
from extproc.keeping.keeper import Keeper
from extproc.makers import Makers
from extproc.meter import Meter
from extproc.transport.seam import Stream
from signals.facts import Facts
from signals.reading import Reading
from signals.request import Request
from signals.signal import Signal
from tests.proto import oracle
from tests.proto.oracle import core, ext_proc

BUFFERED = oracle.filters.ProcessingModeBodySendMode.BUFFERED
DUPLEX = oracle.filters.ProcessingModeBodySendMode.FULL_DUPLEX_STREAMED
STREAMED = oracle.filters.ProcessingModeBodySendMode.STREAMED
PARTIAL = oracle.filters.ProcessingModeBodySendMode.BUFFERED_PARTIAL
NONE = oracle.filters.ProcessingModeBodySendMode.NONE

SMALL = Model("small", "Qwen/Qwen3-8B")
LARGE = Model("large", "Qwen/Qwen3-72B")


class Says(Signal):
    """A signal for tests: `read` is the given function of the request's text."""

    kind = "says"
    scored = True

    def __init__(self, name: str, says: Callable[[Request], Reading]) -> None:
        self.name = name
        self._says = says

    def read(self, facts: Facts) -> Reading:
        return self._says(facts.request)


def word(name: str) -> Says:
    """A signal that is true when its own name is in the request's text."""
    return Says(name, lambda request: Reading(name in request.text("all"), float(name in request.text("all"))))


def clause(name: str, when: str | None, action: str, **more: Any) -> Clause:
    rule: Rule = ALWAYS if when is None else Leaf(when)
    target = None if action == "respond" else more.pop("target", LARGE)
    return Clause(name, rule, action, target, **more)  # type: ignore[arg-type]


def engine(*clauses: Clause, signals: Iterable[Signal] = (), **settings: Any) -> Engine:
    """A policy with the models small (the default) and large."""
    return Engine(
        "sha256:" + "0" * 64,
        Catalogue({"small": SMALL, "large": LARGE}, "small"),
        Ruleset(clauses, {signal.name: signal for signal in signals}),
        Settings(**settings),
    )


def decided(trace: Trace, request: Request) -> Outcome:
    """The outcome of a request of which no more is known than what was decided."""
    return Outcome(trace, trace.decision.model, request.size, trace.decision.status)


@dataclass
class Service:
    """The Context of an Exchange; remembers what it was told."""

    engine: Engine
    answerer: Answerer | None = None
    outcomes: list[Outcome] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    meter: Meter | None = None
    bodies: Bodies = field(default_factory=lambda: Bodies(lambda seconds, call: None))
    makers: Makers = field(default_factory=Makers)
    keeper: Keeper = field(default_factory=Keeper)
    chains: Chains = field(default_factory=Chains)
    unheard: list[tuple[str, str, str]] = field(default_factory=list)

    open: list[Exchange] = field(default_factory=list)
    follow: None = None
    keeps: bool = False

    def record(self, outcome: Outcome, request: Request, stream: Stream) -> None:
        self.engine.record(outcome, request)
        self.outcomes.append(outcome)

    @property
    def traces(self) -> list[Trace]:
        """What was decided, for requests that are over and for those that are not."""
        under_way = [exchange._trace for exchange in self.open if exchange._request is not None]
        return [outcome.trace for outcome in self.outcomes] + [trace for trace in under_way if trace is not None]

    def choose(self, request: Request) -> Engine:
        return self.engine

    def timed(self) -> bool:
        return False

    async def apart(self, work: Callable[[], Any]) -> Any:
        return await asyncio.to_thread(work)

    def unread(self, reason: str, method: str, path: str) -> None:
        self.unheard.append((reason, method, path))

    def failed(self, reason: str) -> None:
        self.failures.append(reason)

    @property
    def decision(self) -> Decision:
        assert len(self.traces) == 1, self.traces
        return self.traces[0].decision


class Envoy:
    """One gRPC stream to an Exchange; also the Stream that the Exchange answers on."""

    def __init__(self, service: Service, mode: Any = BUFFERED, **terms: Any) -> None:
        self.metadata: Mapping[str, str] = {}
        self.sent: list[ext_proc.ProcessingResponse] = []
        self.finished: tuple[int, str] | None = None
        self.gone = False
        self.waits = 0
        self._observing = terms.pop("observing", False)
        self._terms: Any = ext_proc.ProtocolConfiguration(request_body_mode=mode, **terms)
        self.exchange = Exchange(service, self)
        service.open.append(self.exchange)

    # The Stream

    def send(self, message: bytes) -> None:
        assert self.finished is None, "a message after the end of the stream"
        self.sent.append(ext_proc.ProcessingResponse.parse(message))

    def finish(self, status: int = 0, message: str = "") -> None:
        if self.finished is None:
            self.finished = (status, message)

    async def drain(self) -> None:
        self.waits += 1
        await asyncio.sleep(0)
        if self.gone:
            raise ConnectionError("cancelled")

    # What Envoy says

    def say(self, **message: Any) -> list[ext_proc.ProcessingResponse]:
        """Send one message; the answers that came at once."""
        before = len(self.sent)
        request = ext_proc.ProcessingRequest(protocol_config=self._terms, observability_mode=self._observing, **message)
        self._terms = None
        self.exchange.message(bytes(request))
        return self.sent[before:]

    def headers(self, path: str = "/v1/chat/completions", end: bool = False, **more: Any) -> Any:
        """Request headers of a POST with a JSON body; `more` names headers, with _ for -."""
        method = more.pop("method", "POST")
        metadata = more.pop("metadata_context", None)
        fields = {":authority": "api", ":path": path, ":method": method, ":scheme": "http"}
        fields |= {"content-type": "application/json", "x-request-id": "7c7f0b9c"}
        fields |= {name.replace("_", "-"): value for name, value in more.items()}
        listed = [core.HeaderValue(key=k, raw_value=v.encode()) for k, v in fields.items() if v is not None]
        part = ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed), end_of_stream=end)
        return self.say(request_headers=part, metadata_context=metadata)

    def body(self, body: bytes, end: bool = True) -> list[ext_proc.ProcessingResponse]:
        return self.say(request_body=ext_proc.HttpBody(body=body, end_of_stream=end))

    def trailers(self) -> list[ext_proc.ProcessingResponse]:
        return self.say(request_trailers=ext_proc.HttpTrailers(trailers=core.HeaderMap()))

    def response(self, status: int = 200, **more: str) -> list[ext_proc.ProcessingResponse]:
        """Response headers; `more` names them, with _ for -."""
        fields = {":status": str(status)} | {name.replace("_", "-"): value for name, value in more.items()}
        listed = [core.HeaderValue(key=key, raw_value=value.encode()) for key, value in fields.items()]
        return self.say(response_headers=ext_proc.HttpHeaders(headers=core.HeaderMap(headers=listed)))

    def request(self, body: bytes, path: str = "/v1/chat/completions", **headers: Any) -> list[Any]:
        """A whole request in the stream's mode, the body in two chunks where it is streamed; every answer."""
        streamed = self._terms.request_body_mode in (DUPLEX, STREAMED)
        self.headers(path, **headers)
        if self.sent and self.sent[-1].immediate_response is not None:
            return self.sent
        if streamed:
            self.body(body[:10], False)
            self.body(body[10:], False)
            self.body(b"", True)
        else:
            self.body(body)
        return self.sent

    async def settled(self) -> None:
        """Wait for the exchange's task, if it has one."""
        while (task := self.exchange._task) is not None:
            await asyncio.wait([task])

    # What the exchange said

    def upstream_body(self) -> bytes:
        """The body that full-duplex mode gave back; checks that it ends once, at its end, in chunks of 62 kB."""
        parts = [m.request_body.response.body_mutation.streamed_response for m in self.sent if m.request_body]
        assert [part.end_of_stream for part in parts] == [False] * (len(parts) - 1) + [True]
        assert all(len(part.body) <= 62_000 for part in parts)
        return b"".join(part.body for part in parts)


def chat(text: str = "hi", **fields: Any) -> bytes:
    """A chat completion's body."""
    return orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **fields})


def set_headers(mutation: Any) -> dict[str, str]:
    """The headers that a mutation sets; each overwrites and is set once."""
    if mutation is None:
        return {}
    action = core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD
    assert all(option.append_action == action for option in mutation.set_headers)
    pairs = [(option.header.key, option.header.raw_value.decode()) for option in mutation.set_headers]
    assert len(dict(pairs)) == len(pairs)
    return dict(pairs)


def metadata(message: ext_proc.ProcessingResponse) -> dict[str, Any]:
    """Our dynamic metadata."""
    assert message.dynamic_metadata is not None
    fields: dict[str, Any] = oracle.from_struct(message.dynamic_metadata)["pointsman"]
    return fields


def expect_route(message: ext_proc.ProcessingResponse, model: str, phase: str = "request_body", **headers: str) -> Any:
    """The message sends the request to `model` and lets the route be chosen again; returns its CommonResponse."""
    part = getattr(message, phase)
    assert part is not None, message
    common = part.response
    given = set_headers(common.header_mutation)
    wanted = {"x-pointsman-route": model} | {name.replace("_", "-"): value for name, value in headers.items()}
    assert {name: value for name, value in given.items() if name != "content-length"} == wanted
    assert common.clear_route_cache is True
    assert metadata(message)["model"] == model
    if common.body_mutation is not None and common.body_mutation.body is not None:
        assert given["content-length"] == str(len(common.body_mutation.body))
    return common


def expect_continue(message: ext_proc.ProcessingResponse, phase: str, remove: Iterable[str] = ()) -> None:
    """The message lets `phase` go on, changing nothing but the headers it removes."""
    part = getattr(message, phase)
    assert part is not None, message
    common = part.response or ext_proc.CommonResponse()
    assert common.body_mutation is None
    assert common.clear_route_cache is False
    mutation = common.header_mutation or ext_proc.HeaderMutation()
    assert mutation.set_headers == []
    assert sorted(mutation.remove_headers) == sorted(remove)


def expect_refusal(message: ext_proc.ProcessingResponse, status: int, code: str | None = None) -> dict[str, Any]:
    """The message answers the client with a JSON error; returns its object."""
    reply = message.immediate_response
    assert reply is not None, message
    assert int(reply.status.code) == status
    given = set_headers(reply.headers)
    assert given["content-type"] == "application/json"
    assert given["x-pointsman-policy"].startswith("sha256:")
    shown: dict[str, Any] = orjson.loads(reply.body)
    if code is not None:
        assert shown["error"]["code"] == code
        assert reply.details == f"pointsman_{code}"
    return shown
