"""A named rule of a policy (`rules:`), as a signal that others combine: it stands wherever a signal's name stands."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from decisions.rule import Rule, RuleNode, compiled, cost, mentions
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
        self._node = RuleNode(name, compiled(rule, signals))
        self.lazily = self._node

    def read(self, facts: Facts) -> Reading:
        """The reading, once `lazily` has one."""
        return facts.readings[self.name]
