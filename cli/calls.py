"""Requests without a gateway, for the commands that decide without a network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from decisions.decision import Decision, Trace
from decisions.engine import Engine, Evaluation
from decisions.model import UnknownModel
from extproc import openai, paths
from extproc.body import parse
from extproc.refusal import Refusal
from signals.reading import Reading
from signals.request import Request

CHAT = "/v1/chat/completions"


@dataclass(frozen=True, slots=True)
class Call:
    """A request as it would come through Envoy; header names in lower case."""

    body: bytes
    headers: Mapping[str, str] = field(default_factory=dict)
    path: str = CHAT
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def request(self, engine: Engine) -> Request | None:
        """The parsed call; None when its path is none that is decided about. Raises `Refusal`."""
        target = paths.read(self.path)
        if target is None or target.api is None:
            return None
        if len(self.body) > engine.settings.max_body:
            raise Refusal(413, f"The request body is larger than {engine.settings.max_body} bytes.", "too_large")
        headers = {":path": self.path, ":method": "POST", **self.headers}
        return parse(target, headers, self.attributes, self.body, engine.settings.max_values)

    def begin(
        self,
        engine: Engine,
        *,
        detail: bool = False,
        everything: bool = False,
        stubs: Mapping[str, Reading] | None = None,
    ) -> Trace | Evaluation:
        """How `engine` decides the call, without a deadline; refused calls have a trace like all others."""
        try:
            request = self.request(engine)
            if request is None:
                return _trace(engine, Decision(None, "route", None))
            if stubs is not None:
                evaluation = engine.stubbed(request, stubs)
                return evaluation.advance() or evaluation
            return engine.settle(request, detail=detail, everything=everything)
        except UnknownModel as error:
            refusal = openai.unknown_model(error.model)
        except Refusal as error:
            refusal = error
        return _trace(engine, Decision(None, "respond", None, refusal.status, refusal.text))

    async def decide(self, engine: Engine, *, detail: bool = False, everything: bool = False) -> Trace:
        """As `begin`, but waits for slow signals."""
        begun = self.begin(engine, detail=detail, everything=everything)
        return begun if isinstance(begun, Trace) else await begun.finish()


def lowered(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _trace(engine: Engine, decision: Decision) -> Trace:
    return Trace(decision, engine.policy, {}, {}, 0.0)
