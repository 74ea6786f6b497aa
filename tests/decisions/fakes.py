"""Signals that say what the request tells them to, and small builders."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from decisions.catalogue import Catalogue
from decisions.engine import Clause, Engine, Ruleset
from decisions.model import Model
from decisions.named import RuleSignal
from decisions.rule import All, AnyOf, AtLeastOf, NamedRule, Not, Rule
from decisions.selectors.pinned import built
from decisions.selectors.selector import Pick, Selector
from signals.facts import Facts
from signals.reading import Reading, Unavailable
from signals.request import Message, Request
from signals.signal import Cost, Params, Shared, Signal

SMALL = Model("small", "org/small", 1.0, 2.0, 1000)
LARGE = Model("large", "org/large", 10.0, 20.0, 8000)
MODELS = {"small": SMALL, "large": LARGE}


class Source:
    """A slow input: the request's `said` has its value, an exception to raise, or an event to wait for."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def fetch(self, facts: Facts) -> Reading:
        facts.request.fields.setdefault("fetched", []).append((self.name, dict(facts.readings)))
        await asyncio.sleep(0)
        said = facts.request.fields["said"][self.name]
        if isinstance(said, asyncio.Event):
            await said.wait()
        if isinstance(said, Exception):
            raise said
        return said


class Fake(Signal):
    """Says what the request's `said` has for it: a reading, or an exception to raise."""

    kind = "fake"
    Parameters = Params
    scored = True
    labelled = True

    def __init__(self, name: str, cost: Cost = Cost.INSTANT) -> None:
        super().__init__(name, Params(), Shared())
        self.cost = cost
        self._source = Source(name)
        self.slow = (self._source,) if cost >= Cost.NEURAL else ()

    def read(self, facts: Facts) -> Reading:
        facts.request.fields.setdefault("read", []).append(self.name)
        said = facts.got(self._source) if self.slow else facts.request.fields["said"][self.name]
        if isinstance(said, Exception):
            raise said
        return said


class Sum(Signal):
    """Matches when the scores of its inputs add up to 1; Unknown when one of them is missing."""

    kind = "sum"
    Parameters = Params
    scored = True

    def __init__(self, name: str, inputs: Sequence[Signal]) -> None:
        super().__init__(name, Params(), Shared())
        self.inputs = tuple(signal.name for signal in inputs)
        self.cost = max(signal.cost for signal in inputs)

    def read(self, facts: Facts) -> Reading:
        scores = [facts.readings[name].score for name in self.inputs]
        if None in scores:
            raise Unavailable("input_unknown")
        total = sum(score for score in scores if score is not None)
        return Reading(total >= 1.0, total)


def request(said: Mapping[str, Any] | None = None, model: str | None = "auto", **fields: Any) -> Request:
    return Request("chat", b"{}", {"said": said or {}, **fields}, model, (Message("user", "hi"),))


def clause(name: str, when: Rule, target: Any = LARGE, **more: Any) -> Clause:
    if target is None:
        return Clause(name, when, "respond", None, status=403, message="no", **more)
    return Clause(name, when, "route", target, **more)


def pick(kind: type[Selector], models: Sequence[Model], sticky: bool = False, **params: Any) -> Pick:
    return Pick("d", tuple(models), kind, kind.Parameters(**params), sticky)


def selectors(clauses: Sequence[Clause], shared: Shared | None = None) -> dict[str, Selector]:
    picks = {clause.name: clause.target for clause in clauses}
    return {name: built(pick, shared or Shared()) for name, pick in picks.items() if isinstance(pick, Pick)}


def name_rules(rule: Rule, signals: dict[str, Signal]) -> None:
    """Put the named rules in `rule` among `signals`."""
    match rule:
        case NamedRule(name=name, of=child):
            if name not in signals:
                name_rules(child, signals)
                signals[name] = RuleSignal(name, child, signals, Shared())
        case Not(of=child):
            name_rules(child, signals)
        case All(of=children) | AnyOf(of=children) | AtLeastOf(of=children):
            for child in children:
                name_rules(child, signals)


def engine(signals: Sequence[Signal], clauses: Sequence[Clause], best: bool = False, **names: Any) -> Engine:
    """`names`: how clients ask for models (`Catalogue`)."""
    named = {signal.name: signal for signal in signals}
    for each in clauses:
        name_rules(each.when, named)
    rules = Ruleset(clauses, named, selectors(clauses), best=best)
    return Engine("sha256:0", Catalogue(MODELS, "small", **names), rules)
