"""Boolean rules over readings, in Kleene's strong three-valued logic (S. C. Kleene, 1938).

A rule is plain data (`Leaf`, `All`, `AnyOf`, `Not`, `AtLeast`). `compiled` turns one into a `Test` that evaluates it
as far as the readings taken so far allow: True, False, None (Unknown), or `PENDING` when its value still depends on a
signal whose slow inputs were not fetched. `PENDING` is an Unknown that may still become known, so a rule is
settled as soon as no pending leaf can change it, and lazy evaluation cannot change a result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Final, TypeAlias

from signals.facts import Facts
from signals.gather import read, ready
from signals.reading import Reading
from signals.signal import Cost, Signal


class Pending(Enum):
    """The value of a rule that still depends on a signal not read yet."""

    PENDING = "pending"


PENDING: Final = Pending.PENDING
Result: TypeAlias = bool | Pending | None


@dataclass(frozen=True, slots=True)
class Leaf:
    """A signal's own verdict, or a test of its score or label when one of the bounds is given."""

    signal: str
    at_least: float | None = None
    at_most: float | None = None
    label: str | None = None

    @property
    def plain(self) -> bool:
        return self.at_least is None and self.at_most is None and self.label is None

    def judge(self, reading: Reading) -> bool | None:
        """The leaf's value under `reading`; a bound on a score that is not there is Unknown."""
        if self.plain or reading.matched is None:
            return reading.matched
        if self.label is not None and reading.label != self.label:
            return False
        if self.at_least is None and self.at_most is None:
            return True
        if reading.score is None:
            return None
        return (self.at_least is None or reading.score >= self.at_least) and (
            self.at_most is None or reading.score <= self.at_most
        )


@dataclass(frozen=True, slots=True)
class All:
    of: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class AnyOf:
    of: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class Not:
    of: Rule


@dataclass(frozen=True, slots=True)
class AtLeast:
    count: int
    of: tuple[Rule, ...]


Rule: TypeAlias = Leaf | All | AnyOf | Not | AtLeast
ALWAYS: Final = All(())
"""The rule of a decision without `when`: true for every request."""


def leaves(rule: Rule) -> Iterator[Leaf]:
    """The leaves of `rule`, left to right."""
    match rule:
        case Leaf():
            yield rule
        case Not(of=child):
            yield from leaves(child)
        case _:
            for child in rule.of:
                yield from leaves(child)


def text(rule: Rule) -> str:
    """`rule` as a policy writes it, on one line."""
    match rule:
        case Leaf() if rule.plain:
            return rule.signal
        case Leaf():
            tests = {"at_least": rule.at_least, "at_most": rule.at_most, "is": rule.label}
            given = "".join(f", {key}: {value}" for key, value in tests.items() if value is not None)
            return f"{{signal: {rule.signal}{given}}}"
        case Not(of=child):
            return f"{{not: {text(child)}}}"
    children = f"[{', '.join(map(text, rule.of))}]"
    match rule:
        case All():
            return f"{{all: {children}}}"
        case AnyOf():
            return f"{{any: {children}}}"
        case AtLeast(count=count):
            return f"{{at_least: {{count: {count}, of: {children}}}}}"


def evaluate(rule: Rule, readings: Mapping[str, Reading]) -> Result:
    """The value of `rule` as far as `readings` settle it; never `PENDING` when every signal it names has been read."""
    match rule:
        case Leaf():
            reading = readings.get(rule.signal)
            return PENDING if reading is None else rule.judge(reading)
        case Not(of=child):
            return negated(evaluate(child, readings))
        case All(of=children):
            count = len(children)
        case AnyOf():
            count = 1
        case AtLeast(count=count):
            pass
    values = [evaluate(child, readings) for child in rule.of]
    true = values.count(True)
    if true >= count:
        return True
    if len(values) - values.count(False) < count:
        return False
    return PENDING if PENDING in values else None


def negated(value: Result) -> Result:
    return value if value is None or value is PENDING else not value


def confidence(rule: Rule, readings: Mapping[str, Reading]) -> float:
    """How sure the rule's result is, 0 to 1: all = min, any = max, not = 1 - c, of the children that decided it.

    A leaf's confidence is its reading's score; a score outside 0..1 is a measurement, not a probability, and counts
    as certain. `at_least: n` takes the n-th best of the children that hold.
    """
    match rule:
        case Leaf():
            reading = readings[rule.signal]
            if reading.score is not None and 0.0 <= reading.score <= 1.0:
                return reading.score
            return 1.0 if rule.judge(reading) else 0.0
        case Not(of=child):
            return 1.0 - confidence(child, readings)
    count = len(rule.of) if isinstance(rule, All) else 1 if isinstance(rule, AnyOf) else rule.count
    result = evaluate(rule, readings)
    deciding = [child for child in rule.of if evaluate(child, readings) is result] or list(rule.of)
    ranked = sorted((confidence(child, readings) for child in deciding), reverse=True)
    if not ranked:
        return 1.0
    if result is True:
        return ranked[min(count, len(ranked)) - 1]
    # False: an `all` fell by its weakest child, an `any` by even its strongest.
    return ranked[-1] if isinstance(rule, All) else ranked[0]


def cost(rule: Rule, signals: Mapping[str, Signal]) -> Cost:
    """The most expensive class of signals that evaluating `rule` may need."""
    return max((signals[leaf.signal].cost for leaf in leaves(rule)), default=Cost.INSTANT)


class Test(ABC):
    """A rule made ready to run: cheapest children first, readings taken as they are needed.

    `plain` lists the signals, by name, of a rule that is true when any of them is and that can all be read at once.
    """

    plain: tuple[tuple[str, Signal], ...] | None = None

    @abstractmethod
    def run(self, facts: Facts) -> Result:
        """The rule's value as far as it is known."""

    @abstractmethod
    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        """The unread signals that still decide whether the rule ends as `goal`; for a derived signal, those that it
        combines. Empty when that is settled, which can be so while the rule itself is pending: `all` of an Unknown
        and an unread signal will never be true.
        """


def compiled(rule: Rule, signals: Mapping[str, Signal]) -> Test:
    """`rule` made ready to run over `signals`."""
    match rule:
        case Leaf():
            return _Leaf(rule, signals)
        case Not(of=child):
            return _Not(compiled(child, signals))
    children = tuple(compiled(child, signals) for child in sorted(rule.of, key=lambda child: cost(child, signals)))
    match rule:
        case All():
            return _All(children, len(children))
        case AnyOf():
            return _Any(children, 1)
        case AtLeast(count=count):
            return _Count(children, count)


def take(signal: Signal, signals: Mapping[str, Signal], facts: Facts) -> Reading | None:
    """`signal`'s reading, taken now if it can be; None while it, or what it combines, waits for slow inputs."""
    reading = facts.readings.get(signal.name)
    if reading is None:
        for name in signal.inputs:
            if take(signals[name], signals, facts) is None:
                return None
        if signal.slow and not ready(signal, facts):
            return None
        reading = read(signal, facts)
    return reading


def unread(name: str, signals: Mapping[str, Signal], facts: Facts) -> set[str]:
    """The signals with slow inputs to fetch before `name` can be read."""
    if name in facts.readings:
        return set()
    signal = signals[name]
    below = {deeper for source in signal.inputs for deeper in unread(source, signals, facts)}
    return below if below or not signal.slow or ready(signal, facts) else {name}


class _Leaf(Test):
    def __init__(self, leaf: Leaf, signals: Mapping[str, Signal]) -> None:
        self._leaf = leaf
        self._name = leaf.signal
        self._signal = signals[leaf.signal]
        self._signals = signals
        if leaf.plain and not self._signal.slow and not self._signal.inputs:
            self.plain = ((self._name, self._signal),)

    def run(self, facts: Facts) -> Result:
        reading = facts.readings.get(self._name)
        if self.plain is not None:
            return (read(self._signal, facts) if reading is None else reading).matched
        if reading is None:
            reading = take(self._signal, self._signals, facts)
            if reading is None:
                return PENDING
        return self._leaf.judge(reading)

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        return unread(self._name, self._signals, facts)


class _Not(Test):
    def __init__(self, child: Test) -> None:
        self._child = child

    def run(self, facts: Facts) -> Result:
        return negated(self._child.run(facts))

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        return self._child.waiting(facts, not goal)


class _Several(Test):
    """True when `count` of the children are."""

    def __init__(self, children: tuple[Test, ...], count: int) -> None:
        self._children = children
        self._runs = tuple(child.run for child in children)
        self._count = count

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        needed = self._count if goal else len(self._children) - self._count + 1
        there = 0
        hopes: list[set[str]] = []
        for child in self._children:
            value = child.run(facts)
            if value is goal:
                there += 1
            elif value is PENDING and (below := child.waiting(facts, goal)):
                hopes.append(below)
        settled = there >= needed or there + len(hopes) < needed
        return set() if settled else set().union(*hopes)


class _All(_Several):
    def run(self, facts: Facts) -> Result:
        result: Result = True
        for run in self._runs:
            value = run(facts)
            if value is False:
                return False
            if value is not True and result is not PENDING:
                result = value
        return result


class _Any(_Several):
    def __init__(self, children: tuple[Test, ...], count: int) -> None:
        super().__init__(children, count)
        if all(child.plain is not None for child in children):
            self.plain = tuple(pair for child in children for pair in child.plain or ())

    def run(self, facts: Facts) -> Result:
        result: Result = False
        for run in self._runs:
            value = run(facts)
            if value is True:
                return True
            if value is not False and result is not PENDING:
                result = value
        return result


class _Count(_Several):
    def run(self, facts: Facts) -> Result:
        true = pending = 0
        possible = len(self._runs)
        for run in self._runs:
            value = run(facts)
            if value is True:
                true += 1
                if true >= self._count:
                    return True
            elif value is False:
                possible -= 1
                if possible < self._count:
                    return False
            elif value is PENDING:
                pending += 1
        return PENDING if pending else None
