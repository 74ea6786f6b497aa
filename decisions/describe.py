"""A policy in force in plain values, for scripts and the console: its models, signals and decisions."""

from __future__ import annotations

from typing import Any

from decisions.engine import Clause, Engine
from decisions.explain import does
from decisions.named import RuleSignal
from decisions.rule import Rule, names, text
from decisions.watching import Watching


def as_object(engine: Engine) -> dict[str, Any]:
    """The object of `/policy?form=json`. Nothing in it is a secret: a credential is named by where it is found."""
    users = _users(engine)
    return {
        "policy": engine.policy,
        "default": engine.default.key,
        "auto": list(engine.catalogue.auto),
        "metered": engine.metered,
        "reference": None if engine.settings.reference is None else engine.settings.reference.key,
        "models": [
            {
                "name": model.key,
                "served": model.name,
                "input_price": model.input_price,
                "output_price": model.output_price,
                "priced": model.priced,
                "context": model.context,
                "quality": model.quality,
                "capabilities": None if model.capabilities is None else sorted(model.capabilities),
                "fallback": [other.key for other in model.fallback],
            }
            for model in engine.models.values()
        ],
        "signals": [
            {
                "name": name,
                "kind": signal.kind,
                "cost": signal.cost.name.lower(),
                "inputs": list(signal.inputs),
                "on": "request" if name in engine.asked else "answer",
                "used_by": users.get(name, []),
                **({"rule": text(signal.rule)} if isinstance(signal, RuleSignal) else {}),
            }
            for name, signal in engine.signals.items()
        ],
        "decisions": [*(_clause(engine, clause) for clause in engine.clauses), *map(_watching, _watched(engine))],
    }


def _clause(engine: Engine, clause: Clause) -> dict[str, Any]:
    selector = engine.selectors.get(clause.name)
    return {
        "name": clause.name,
        "on": "request",
        "rule": _text(clause.when),
        "action": clause.action,
        "does": does(clause, selector),
        "models": [model.key for model in (*clause.candidates, *clause.instead)],
        "selector": None if selector is None else selector.name,
        "on_unknown": clause.on_unknown,
        "observe": clause.observe,
        "signals": list(names(clause.when)),
    }


def _watching(watching: Watching) -> dict[str, Any]:
    return {
        "name": watching.name,
        "on": "answer",
        "rule": _text(watching.when),
        "action": watching.does,
        "does": watching.does,
        "models": [],
        "selector": None,
        "on_unknown": watching.on_unknown,
        "observe": watching.observe,
        "signals": list(names(watching.when)),
    }


def _watched(engine: Engine) -> tuple[Watching, ...]:
    return () if engine.watched is None else engine.watched.watching


def _text(rule: Rule) -> str | None:
    """The rule on one line; None for one that holds for every request."""
    return text(rule) if names(rule) else None


def _users(engine: Engine) -> dict[str, list[str]]:
    """By the name of a signal or a named rule: the decisions whose rules, or the named rules in them, name it."""
    rules = {clause.name: clause.when for clause in engine.clauses}
    rules |= {watching.name: watching.when for watching in _watched(engine)}
    users: dict[str, list[str]] = {}
    for decision, rule in rules.items():
        for name in names(rule):
            users.setdefault(name, []).append(decision)
    return users
