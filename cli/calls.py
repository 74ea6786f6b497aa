"""Requests without a gateway, for the commands that decide without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, NamedTuple

from cli.foreseen import Logged
from decisions.decision import Decision, Trace
from decisions.engine import Engine, Evaluation, Opening
from decisions.model import Model, UnknownModel
from extproc import listing, wire
from extproc.apis.registry import BY_NAME, spoken
from extproc.refusal import Refusal
from extproc.requests import paths
from extproc.requests.body import parse
from extproc.requests.head import Head, too_large
from signals.reading import Reading
from signals.request import Request

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Unread:
    """A request that the router decides nothing about: it goes on unread, or the router answers it itself.

    `said` says it in one phrase.
    """

    decision: Decision
    said: str


class Stubs(NamedTuple):
    """What a test case says itself: the readings of signals, and by decision what candidates are worth and how many
    seconds they take."""

    readings: Mapping[str, Reading]
    qualities: Mapping[str, Mapping[str, float]] = MappingProxyType({})
    seconds: Mapping[str, Mapping[str, float]] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class RecordedCall:
    """A request as it would come through Envoy; header names in lower case.

    `response` is what a model answered to it, where that is known: an object of its API, or plain text. `log` is what
    was chosen then, where the answer has been graded since.
    """

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = CHAT
    attributes: Mapping[str, Any] = field(default_factory=dict)
    response: str | dict[str, Any] | None = None
    log: Logged | None = None

    def request(self, engine: Engine) -> Request | Unread:
        """The parsed call. Raises `Refusal` where the router refuses it before any rule.

        The body is what `content-encoding` has been undone of, as the decision log holds it.
        """
        head = self._head()
        settings = engine.settings
        if head.target is None:
            return _opened(paths.unread(head.headers, settings), engine)
        if head.target.api is None:
            head.bodiless(not self.body)
            return _bodiless(head, engine)
        head.call()
        if len(self.body) > settings.max_body:
            raise too_large(settings.max_body)
        try:
            return parse(head.target, self._headers(), self.attributes, self.body, settings.max_values)
        except Refusal as refusal:
            raise head.unreadable(refusal) from None

    def begin(
        self,
        engine: Engine,
        *,
        detail: bool = False,
        everything: bool = False,
        stubs: Stubs | None = None,
    ) -> Trace | Evaluation:
        """How `engine` decides the call, without a deadline; refused calls have a trace like all others."""
        try:
            request = self.request(engine)
            if isinstance(request, Unread):
                return _trace(engine, request.decision)
            try:
                if stubs is not None:
                    evaluation = engine.stubbed(request, stubs.readings, everything=everything, detail=detail)
                    for name, qualities in stubs.qualities.items():
                        engine.selectors[name].stub(evaluation.facts, qualities)
                    for name, seconds in stubs.seconds.items():
                        engine.selectors[name].stub_seconds(evaluation.facts, seconds)
                    return evaluation.advance() or evaluation
                return engine.settle(request, detail=detail, everything=everything)
            except UnknownModel as error:
                raise BY_NAME[request.api].unknown_model(error.model) from None
        except Refusal as refusal:
            return _trace(engine, Decision(None, "respond", None, refusal.status, refusal.text))

    async def decide(self, engine: Engine, *, detail: bool = False, everything: bool = False) -> Trace:
        """As `begin`, but waits for slow signals."""
        begun = self.begin(engine, detail=detail, everything=everything)
        return begun if isinstance(begun, Trace) else await begun.finish()

    def sent(self, model: Model | None) -> str | None:
        """The path that the call goes on with to `model`; None: as it came."""
        target = paths.read(self.path)
        return None if target is None else target.sent(None if model is None else model.name)

    def _headers(self) -> dict[str, str]:
        return {":path": self.path, ":method": "POST", **self.headers}

    def _head(self) -> Head:
        """The call's head, read as that of a message of Envoy's is."""
        headers = wire.headers_of(self._headers().items())
        head = Head(wire.EnvoyMessage(wire.Kind.REQUEST_HEADERS, headers, b"", not self.body, b""))
        head.target = paths.read(self.path)
        return head


def _opened(opening: Opening | None, engine: Engine) -> Unread:
    if opening is None:
        return Unread(Decision(None, "route", None), "passed on unread, to the default model's route: `unread: pass`")
    model = engine.models[opening.to]
    said = f"passed on unread, to {model.key} ({model.name}): `paths` opens {opening.match}"
    return Unread(Decision(None, "route", model), said)


def _bodiless(head: Head, engine: Engine) -> Unread:
    """The model list, and what is asked about a stored response. Raises `Refusal` (404) where it is of no model."""
    target = head.target
    assert target is not None
    if target.operation == "models":
        listing.models(engine, target.model, spoken(head.headers))
        return Unread(Decision(None, "respond", None, 200, "the list of models"), "respond 200: the list of models")
    return Unread(Decision(None, "route", None), "passed on as it came, to the model that made the response")


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _trace(engine: Engine, decision: Decision) -> Trace:
    return Trace(decision, engine.policy, {}, {}, 0.0)
