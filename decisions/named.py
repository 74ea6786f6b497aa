"""A named rule of a policy (`rules:`), as a signal that others combine: it stands wherever a signal's name stands."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from pydantic import Field

from decisions.rule import Bundle, Leaf, NamedRule, Not, Rule, RuleNode, compiled, cost, mentions
from signals.facts import Facts
from signals.reading import Reading
from signals.signal import Params, Shared, Signal


class RuleParams(Params):
    """A named rule in the place of a signal's parameters."""

    rule: Any = Field(exclude=True)

    def inputs(self) -> tuple[str, ...]:
        return mentions(self.rule)


class RuleSignal(Signal):
    """Matches where the rule is true; Unknown where the rule is. Read as lazily as any rule.

    `rule` is over `signals`, which hold whatever it names.
    """

    kind = "rule"
    Parameters = RuleParams

    def __init__(self, name: str, rule: Rule, signals: Mapping[str, Signal], shared: Shared) -> None:
        super().__init__(name, RuleParams(rule=rule), shared)
        self.rule = rule
        self.inputs = mentions(rule)
        self.cost = cost(rule, signals)
        self.node = RuleNode(name, compiled(rule, signals))
        self.lazily = self.node

    def read(self, facts: Facts) -> Reading:
        """The reading, once `lazily` has one."""
        return facts.readings[self.name]


_FEW: Final = 8
"""So few rules are as quickly evaluated as looked up."""


def bundle(signals: Mapping[str, Signal]) -> None:
    """Let the named rules among `signals`, which hold first what others combine, share their readings with later
    requests, as far as they follow from which signals match."""
    base: dict[str, None] = {}
    members: dict[str, Signal] = {}
    for name, signal in signals.items():
        pure = signal.by_matches
        if isinstance(signal, RuleSignal):
            # Of the signals that others combine a label and a score follow from what matches; of others they do not.
            own = [leaf for leaf in _own(signal.rule) if leaf.signal not in members]
            pure = all(leaf.plain for leaf in own)
        below = [source for source in signal.inputs if source not in members]
        if not pure or any(signals[each].slow or signals[each].inputs for each in below):
            continue
        members[name] = signal
        base.update(dict.fromkeys(below))
    rules = [signal for signal in members.values() if isinstance(signal, RuleSignal)]
    if len(rules) >= _FEW:
        made = Bundle(tuple(base), members, signals)
        for rule in rules:
            rule.node.bundle = made


def _own(rule: Rule) -> Iterator[Leaf]:
    """The leaves that stand in `rule` itself."""
    match rule:
        case Leaf():
            yield rule
        case NamedRule():
            return
        case Not(of=child):
            yield from _own(child)
        case _:
            for child in rule.of:
                yield from _own(child)
