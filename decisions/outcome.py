"""What became of one request: made exactly once per exchange, when it closes. Everything is counted from it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from decisions.decision import Choice, Trace
from decisions.model import Model
from signals.reading import Reading


class Outcome(NamedTuple):
    """`model` is the one that really answered: the decision's, or the fallback that took its place.

    `body_bytes` is how large the request's body was. `status` is that of the answer's head, None where none came.
    `first_byte` and `seconds` are from the request's arrival to the answer's head and to the end of the exchange.
    `prompt`, `completion` (tokens) and `money` are what the answer said that it took, or a guess from its size; None
    where nobody looked at it; `cached` of the prompt were in the server's cache, `written` of it were put there,
    `reasoning` of the completion are no part of the answer's text. `reference` is the money that the same tokens cost
    on `settings.reference`; those of the answer that was kept, where one was given. `cache` is `hit`, `miss`, or why
    the decision's `cache` does not keep the answer (extproc.keeping). `tenant` is who asked, as `settings.tenant` says.
    `acted` are the decisions on the answer, each with what it did. `course` is how a writer came to its answer: its
    steps or calls, without their text. An outcome holds nothing else of the request.
    """

    trace: Trace
    model: Model | None
    body_bytes: int
    status: int | None = None
    first_byte: float | None = None
    seconds: float | None = None
    prompt: int | None = None
    completion: int | None = None
    money: float | None = None
    cached: int | None = None
    reasoning: int | None = None
    reference: float | None = None
    tenant: str | None = None
    written: int | None = None
    cache: str | None = None
    acted: tuple[tuple[str, str], ...] = ()
    course: Mapping[str, Any] | None = None


def as_object(outcome: Outcome) -> dict[str, Any]:
    """The outcome in plain values, without any text of the request."""
    answer: dict[str, Any] = {
        "status": outcome.status,
        "first_byte": _rounded(outcome.first_byte),
        "seconds": _rounded(outcome.seconds),
        "input_tokens": outcome.prompt,
        "output_tokens": outcome.completion,
        "cached_tokens": outcome.cached,
        "cache_write_tokens": outcome.written,
        "reasoning_tokens": outcome.reasoning,
        "cost": outcome.money,
        "reference_cost": outcome.reference,
        "course": outcome.course,
    }
    if outcome.acted:
        answer["decision"], answer["action"] = outcome.acted[0]
        if len(outcome.acted) > 1:
            answer["acted"] = [{"decision": name, "action": action} for name, action in outcome.acted]
    chosen, model = outcome.trace.decision.model, outcome.model
    found = trace_object(outcome.trace)
    found["model"] = None if model is None else model.key
    if chosen is not model and chosen is not None:
        found["chosen"] = chosen.key
    if outcome.tenant is not None:
        found["tenant"] = outcome.tenant
    if outcome.cache is not None:
        found["cache"] = outcome.cache
    answer = {key: value for key, value in answer.items() if value is not None}
    return {**found, "answer": answer} if answer else found


def trace_object(trace: Trace) -> dict[str, Any]:
    """A trace in plain values. `explain`, the decision log and the admin port show it, with more or fewer fields."""
    decision = trace.decision
    return {
        "decision": decision.name,
        "model": None if decision.model is None else decision.model.key,
        "action": decision.action,
        "status": decision.status,
        "fallback": decision.fallback,
        "signals": {name: _reading(reading) for name, reading in trace.readings.items()},
        "rules": [{"decision": name, "result": result} for name, result in trace.results.items()],
        "policy": trace.policy,
        "us": round(trace.microseconds, 3),
        **({"observed": list(trace.observed)} if trace.observed else {}),
        **({"kept": True} if trace.kept else {}),
        **({"lacking": {key: list(lacks) for key, lacks in trace.lacking.items()}} if trace.lacking else {}),
        **({} if trace.choice is None else {"choice": choice_object(trace.choice)}),
    }


def choice_object(choice: Choice) -> dict[str, Any]:
    """A selector's choice in plain values; the model by its name in the policy."""
    return {**choice._asdict(), "model": choice.model.key, "propensity": round(choice.propensity, 6)}


def _reading(reading: Reading) -> dict[str, Any]:
    return {
        "matched": reading.matched,
        "score": reading.score,
        "label": reading.label,
        "error": reading.error,
        "evidence": reading.evidence,
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 6)
