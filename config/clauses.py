"""Puts the models and decisions of a policy into the engine's terms."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from graphlib import TopologicalSorter
from typing import Literal, get_args

from config.schema import DecisionSpec, ModelSpec, PickSpec, PolicySpec, StickySpec
from decisions.arm import arm
from decisions.decision import Cache, Changes
from decisions.engine import Clause
from decisions.model import FALLBACKS, Capability, Credential, Model
from decisions.rule import Rule
from decisions.selectors.selector import Pick
from decisions.watching import Does, Watching
from signals.path import parse_path
from signals.state.session import Sessions
from upstream.writer import WriterSpec


def models(spec: PolicySpec) -> dict[str, Model]:
    """The policy's models by key. Raises graphlib.CycleError where fallbacks lead back to their model."""
    made: dict[str, Model] = {}
    for key in TopologicalSorter({key: entry.fallback for key, entry in spec.models.items()}).static_order():
        entry = spec.models[key]
        made[key] = Model(
            key,
            entry.name or key,
            entry.price.input,
            entry.price.output,
            entry.context,
            entry.thinking,
            entry.url,
            tuple(entry.aliases),
            None if entry.capabilities is None else frozenset(entry.capabilities),
            entry.quality,
            entry.max_output,
            entry.family,
            None if entry.base_path is None else entry.base_path.rstrip("/"),
            tuple(made[other] for other in _fallbacks(spec, key)),
            _credential(entry),
            bool(entry.price.model_fields_set),
            entry.price.cached_input,
            entry.price.cache_write,
            entry.stream_usage,
            entry.per_try_timeout,
            entry.health_check,
        )
    found = {key: made[key] for key in spec.models}
    for key, model in found.items() if spec.settings.fallback == "price" else ():
        if not spec.models[key].fallback:  # models come after each other in a circle, so no order of making them does
            object.__setattr__(model, "fallback", _by_price(model, found.values()))
    return found


def _by_price(model: Model, models: Iterable[Model]) -> tuple[Model, ...]:
    """The priced ones of the other `models` that can do all that `model` can, by the price of a token in and one out,
    equal ones in their order; the first few."""
    can = frozenset(get_args(Capability)) if model.capabilities is None else model.capabilities
    able = [other for other in models if other is not model and other.priced and not other.lacks(can)]
    return tuple(sorted(able, key=lambda other: other.input_price + other.output_price)[:FALLBACKS])


def reference(spec: PolicySpec, models: Mapping[str, Model]) -> Model | None:
    """The model that savings are counted against: the one that is named, or the dearest; None without prices."""
    if spec.settings.reference is not None:
        return models[spec.settings.reference]
    dearest = max(models.values(), key=lambda model: model.input_price + model.output_price)
    return dearest if dearest.input_price + dearest.output_price > 0 else None


def _fallbacks(spec: PolicySpec, key: str) -> list[str]:
    """The models that take the place of `key`: its own in their order, then theirs; the first few."""
    found = list(dict.fromkeys(spec.models[key].fallback))
    for other in found:  # which grows
        if len(found) >= FALLBACKS:
            break
        found += [one for one in dict.fromkeys(spec.models[other].fallback) if one not in found]
    return found[:FALLBACKS]


def _credential(entry: ModelSpec) -> Credential | None:
    given = entry.credential
    if given is None:
        return None
    usual = "Bearer " if given.header == "authorization" else ""
    prefix = usual if given.prefix is None else given.prefix
    source = given.source
    return Credential(given.header, prefix, source.secret or "", source.key or "", source.env or "")


def sessions(spec: PolicySpec) -> Sessions:
    """How the policy finds the session of a request."""
    return Sessions(
        tuple(
            ("header", (source.header.lower(),))
            if source.header is not None
            else ("field", parse_path(source.field or ""))
            for source in spec.settings.session
        )
    )


def clauses(
    spec: PolicySpec,
    rules: Mapping[str, Rule],
    known: Mapping[str, Model],
    writers: Mapping[str, WriterSpec],
) -> list[Clause | Watching]:
    """The policy's decisions in the engine's terms, in list order, over the models `known`.

    `writers` are those of the decisions that have one, by the decision's name.
    """
    return [
        _watching(entry, rules[entry.name])
        if entry.on == "answer"
        else _clause(entry, rules[entry.name], known, writers.get(entry.name))
        for entry in spec.decisions
    ]


def _watching(entry: DecisionSpec, rule: Rule) -> Watching:
    does: Does = "flag"
    status = message = None
    if entry.mask is not None:
        does = "mask"
    elif entry.cut is not None:
        does, message = "cut", entry.cut.message
    elif entry.respond is not None:
        does, status, message = "respond", entry.respond.status, entry.respond.message
    closes: Literal["skip", "match"] = "match" if entry.on_unknown == "match" else "skip"
    return Watching(entry.name, rule, does, closes, status, message, entry.window, entry.stride, entry.observe)


def _clause(entry: DecisionSpec, rule: Rule, known: Mapping[str, Model], writer: WriterSpec | None) -> Clause:
    clause = Clause(
        entry.name,
        rule,
        "route",
        None,
        entry.on_unknown,
        changes=Changes(**entry.set.model_dump()) if entry.set is not None else None,
        override=entry.override,
        cache=None if entry.cache is None else Cache(**dict(entry.cache)),
        tied=entry.tied,
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
    if entry.sticky is not None:
        sticky = entry.sticky if isinstance(entry.sticky, StickySpec) else StickySpec()
        clause = replace(clause, keep=sticky.until)
    if writer is not None:
        return replace(clause, action=writer.kind.name, target=known[writer.fallback], writer=writer)
    return replace(clause, target=_target(entry, known))


def arms(route: PickSpec, known: Mapping[str, Model]) -> tuple[Model, ...]:
    """The candidates of a choice."""
    return tuple(
        known[one] if isinstance(one, str) else arm(one.key, known[one.model], Changes(**one.set.model_dump()))
        for one in route.pick
    )


def _target(entry: DecisionSpec, known: Mapping[str, Model]) -> Model | Pick:
    route = entry.route
    if isinstance(route, PickSpec):
        sticky = route.sticky is not None or entry.sticky is not None
        return Pick(entry.name, arms(route, known), route.kind, route.params, sticky)
    assert route is not None, "the schema allows exactly one action"
    return known[route]
