"""Puts the models and decisions of a policy into the engine's terms."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from config.schema import DecisionSpec, PickSpec, PolicySpec
from decisions.decision import Changes
from decisions.engine import Clause
from decisions.model import Model
from decisions.rule import Rule
from decisions.select import Cheapest, Pinned, Selector, Weighted
from signals.store import Memory, Store

if TYPE_CHECKING:
    from stepwise.spec import StepwiseSpec


def models(spec: PolicySpec) -> dict[str, Model]:
    """The policy's models by key."""
    return {
        key: Model(
            key,
            entry.name or key,
            entry.price.input,
            entry.price.output,
            entry.context,
            entry.thinking,
            entry.url,
            entry.family,
        )
        for key, entry in spec.models.items()
    }


def clauses(
    spec: PolicySpec,
    rules: Mapping[str, Rule],
    known: Mapping[str, Model],
    blocks: Mapping[str, StepwiseSpec],
    store: Store | None = None,
) -> list[Clause]:
    """The policy's decisions in the engine's terms, in list order, over the models `known`; `store` keeps pins."""
    kept = store or Memory()
    return [_clause(entry, rules[entry.name], known, blocks.get(entry.name), kept) for entry in spec.decisions]


def _clause(
    entry: DecisionSpec, rule: Rule, known: Mapping[str, Model], block: StepwiseSpec | None, store: Store
) -> Clause:
    clause = Clause(
        entry.name,
        rule,
        "route",
        None,
        entry.on_unknown,
        changes=Changes(**entry.set.model_dump()) if entry.set is not None else None,
        override=entry.override,
    )
    if entry.respond is not None:
        given = entry.respond
        headers = tuple((name.lower(), value) for name, value in given.headers.items())
        return replace(
            clause,
            action="respond",
            status=given.status,
            message=given.message,
            headers=headers,
            observe=entry.observe,
        )
    if block is not None:
        return replace(clause, action="stepwise", target=known[block.large], stepwise=block)
    return replace(clause, target=_target(entry.route, known, store))


def _target(route: str | PickSpec | None, known: Mapping[str, Model], store: Store) -> Model | Selector:
    if isinstance(route, PickSpec):
        choice = [known[key] for key in route.pick]
        if route.by == "cheapest":
            return Pinned(Cheapest(choice), store) if route.sticky else Cheapest(choice)
        return Weighted(choice, route.weights, route.sticky == "session")
    assert route is not None, "the schema allows exactly one action"
    return known[route]
