"""What a decision shows outside: headers on the request, headers on the answer, Envoy's dynamic metadata."""

from __future__ import annotations

from functools import lru_cache

from decisions.decision import Decision, Trace
from decisions.model import Model
from extproc import wire
from extproc.wire import Pairs

ROUTE = "x-pointsman-route"
"""The request header by which Envoy chooses the route: the key of a model."""
FALLBACK = "x-pointsman-fallback"
"""Response header of a rendered gateway: the model that has answered instead of the one that was chosen."""


@lru_cache(maxsize=1024)
def request_headers(decision: Decision) -> Pairs:
    """The request headers that a decision sets."""
    if decision.model is None:
        return ()
    route = (ROUTE, decision.model.key)
    return (route,) if decision.changes is None else (route, *decision.changes.headers.items())


def response_headers(trace: Trace, model: Model | None = None) -> Pairs:
    """The response headers that tell the client what was decided, and which model answered (None: the decision's)."""
    return _told(trace.decision, trace.policy, model or trace.decision.model)


@lru_cache(maxsize=1024)
def _told(decision: Decision, policy: str, model: Model | None) -> Pairs:
    told = []
    if decision.name is not None:
        told.append(("x-pointsman-decision", decision.name))
    if model is not None:
        told.append(("x-pointsman-model", model.key))
    return (*told, ("x-pointsman-policy", policy))


def metadata(trace: Trace, tenant: str | None = None) -> bytes:
    """The dynamic metadata of a decision (docs/serve.md), to be added to a reply to Envoy."""
    fixed = _texts(trace.decision, trace.policy)
    if tenant is not None:
        fixed += wire.texts((("tenant", tenant),))
    return wire.metadata(fixed, trace.estimated_input_tokens, trace.telling)


@lru_cache(maxsize=1024)
def _texts(decision: Decision, policy: str) -> bytes:
    texts: list[tuple[str, str]] = [("action", decision.action), ("policy", policy)]
    if decision.name is not None:
        texts.append(("decision", decision.name))
    if decision.model is not None:
        texts.append(("model", decision.model.key))
        if others := decision.model.fallback:
            texts.append(("candidates", ",".join([decision.model.key, *(other.key for other in others)])))
    if decision.fallback is not None:
        texts.append(("fallback", decision.fallback))
    return wire.texts(tuple(texts))
