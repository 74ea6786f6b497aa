"""Boolean rules over readings, in Kleene's strong three-valued logic (S. C. Kleene, 1938).

A rule is plain data (`Leaf`, `All`, `AnyOf`, `Not`, `AtLeastOf`, `NamedRule`). `compiled` turns one into a `Test` that
evaluates it as far as the readings taken so far allow: True, False, None (Unknown), or `PENDING` when its value still
depends on a signal whose slow inputs were not fetched. `PENDING` is an Unknown that may still become known, so a rule
is settled as soon as no pending leaf can change it, and lazy evaluation cannot change a result.

A named rule may stand in many others, so whatever walks rules visits each name once: written out, rules that build on
each other would grow exponentially.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, NamedTuple, TypeAlias

from signals.facts import Facts
from signals.gather import read, ready
from signals.reading import FALSE, TRUE, Reading, unknown
from signals.request import Request
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
class AtLeastOf:
    count: int
    of: tuple[Rule, ...]


@dataclass(frozen=True, slots=True)
class NamedRule:
    """A rule of the policy's `rules`, where its name stands. A policy has one rule of a name, so that equal names are
    equal rules."""

    name: str
    of: Rule = field(compare=False, repr=False)


Rule: TypeAlias = Leaf | All | AnyOf | Not | AtLeastOf | NamedRule
ALWAYS: Final = All(())
"""The rule of a decision without `when`: true for every request."""
_UNKNOWN: Final = unknown("input_unknown")


def parts(rule: Rule) -> Iterator[Leaf | NamedRule]:
    """The leaves and the named rules in `rule`, left to right, with what the named rules are made of; of a named rule
    that stands in several places the first."""
    return _parts(rule, set())


def _parts(rule: Rule, seen: set[str]) -> Iterator[Leaf | NamedRule]:
    match rule:
        case Leaf():
            yield rule
        case Not(of=child):
            yield from _parts(child, seen)
        case NamedRule(name=name, of=child):
            if name not in seen:
                seen.add(name)
                yield rule
                yield from _parts(child, seen)
        case _:
            for child in rule.of:
                yield from _parts(child, seen)


def names(rule: Rule) -> tuple[str, ...]:
    """The names of the signals and rules that `rule` is made of, left to right, each once."""
    return tuple(dict.fromkeys(part.signal if isinstance(part, Leaf) else part.name for part in parts(rule)))


def leaves(rule: Rule) -> Iterator[Leaf]:
    """The leaves of `rule`, left to right; those of a named rule once."""
    return (part for part in parts(rule) if isinstance(part, Leaf))


def mentions(rule: Rule) -> tuple[str, ...]:
    """The names of the signals and rules that stand in `rule` itself, each once."""
    match rule:
        case Leaf():
            return (rule.signal,)
        case NamedRule():
            return (rule.name,)
        case Not(of=child):
            return mentions(child)
    return tuple(dict.fromkeys(name for child in rule.of for name in mentions(child)))


def text(rule: Rule) -> str:
    """`rule` as a policy writes it, on one line."""
    match rule:
        case Leaf() if rule.plain:
            return rule.signal
        case NamedRule():
            return rule.name
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
        case AtLeastOf(count=count):
            return f"{{at_least: {{count: {count}, of: {children}}}}}"


def quorum(rule: All | AnyOf | AtLeastOf) -> int:
    """How many of the children must be true for `rule` to be."""
    match rule:
        case All(of=children):
            return len(children)
        case AnyOf():
            return 1
        case AtLeastOf(count=count):
            return count


def told(rule: Rule, known: Container[str] = ()) -> Test:
    """`rule` made ready to run over readings that somebody else puts into the facts; missing ones are pending. Among
    them are those of the rules whose names are `known`; other named rules follow from what they are made of."""
    nodes: dict[str, Test] = {}

    def one(part: Leaf | NamedRule) -> Test:
        if isinstance(part, Leaf):
            return _Told(part)
        node = nodes.get(part.name)
        if node is None:
            test = _Told(Leaf(part.name)) if part.name in known else RuleNode(part.name, _ready(part.of, one))
            node = nodes[part.name] = test
        return node

    return _ready(rule, one)


def evaluate(rule: Rule, readings: Mapping[str, Reading]) -> Result:
    """The value of `rule` as far as `readings` settle it; never `PENDING` when every signal it names has been read."""
    facts = Facts(Request("", b"", {}, None, ()))
    facts.readings.update(readings)
    return told(rule, readings).run(facts)


def cost(rule: Rule, signals: Mapping[str, Signal]) -> Cost:
    """The most expensive class of signals that evaluating `rule` may need."""
    return max((signals[name].cost for name in mentions(rule)), default=Cost.INSTANT)


class Glance(NamedTuple):
    """The reading of `name`, the other way round if it is `negated`; with a `label`, whether the reading has it."""

    name: str
    label: str | None = None
    negated: bool = False


class Test(ABC):
    """A rule made ready to run: cheapest children first, readings taken as they are needed.

    `plain` lists the signals, by name, of a rule that is true when any of them is and that can all be read at once.
    `glance`: the rule is but this look at one reading, so that it needs no call where that is there.
    """

    plain: tuple[tuple[str, Signal], ...] | None = None
    glance: Glance | None = None

    @abstractmethod
    def run(self, facts: Facts) -> Result:
        """The rule's value as far as it is known."""

    @abstractmethod
    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        """The unread signals that still decide whether the rule ends as `goal`; for a derived signal, those that it
        combines. Empty when that is settled, which can be so while the rule itself is pending: `all` of an Unknown
        and an unread signal will never be true.
        """

    @abstractmethod
    def confidence(self, facts: Facts) -> float:
        """How sure the rule's result is, 0 to 1, when every signal has been read: all = min, any = max, not = 1 - c, of
        the children that decided it.

        A leaf's confidence is its reading's score; a score outside 0..1 is a measurement, not a probability, and counts
        as certain. `at_least: n` takes the n-th best of the children that hold.
        """


_UNSEEN: Final = Glance("")
"""For a rule that is more than a look at one reading: no signal has this name."""


def compiled(rule: Rule, signals: Mapping[str, Signal]) -> Test:
    """`rule` made ready to run over `signals`, among which are the named rules (decisions.named)."""

    def dear(child: Rule) -> Cost:
        return cost(child, signals)

    def one(part: Leaf | NamedRule) -> Test:
        if isinstance(part, Leaf):
            return _Leaf(part, signals)
        node = signals[part.name].lazily
        assert isinstance(node, RuleNode)
        return node

    return _ready(rule, one, dear)


def _ready(rule: Rule, one: Callable[[Leaf | NamedRule], Test], order: Callable[[Rule], int] | None = None) -> Test:
    """`rule` made ready to run, with leaves and named rules as `one` makes them; children with the least `order` are
    first."""
    match rule:
        case Leaf() | NamedRule():
            return one(rule)
        case Not(of=child):
            return _Not(_ready(child, one, order))
    children = rule.of if order is None else sorted(rule.of, key=order)
    return _Several(tuple(_ready(child, one, order) for child in children), quorum(rule), isinstance(rule, All))


def take(signal: Signal, signals: Mapping[str, Signal], facts: Facts) -> Reading | None:
    """`signal`'s reading, taken now if it can be; None while it, or what it combines, waits for slow inputs."""
    reading = facts.readings.get(signal.name)
    if reading is None:
        if signal.lazily is not None:
            return signal.lazily.take(facts)
        known = facts.readings
        for name in signal.inputs:
            if name not in known and take(signals[name], signals, facts) is None:
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
    if signal.lazily is not None:
        return signal.lazily.unread(facts)
    below = {deeper for source in signal.inputs for deeper in unread(source, signals, facts)}
    return below if below or not signal.slow or ready(signal, facts) else {name}


class _Told(Test):
    """A leaf that is judged by the reading that is there, and takes none."""

    def __init__(self, leaf: Leaf) -> None:
        self._leaf = leaf
        self._name = leaf.signal
        if leaf.at_least is None and leaf.at_most is None:
            self.glance = Glance(leaf.signal, leaf.label)

    def run(self, facts: Facts) -> Result:
        reading = facts.readings.get(self._name)
        return PENDING if reading is None else self._leaf.judge(reading)

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        return set() if self._name in facts.readings else {self._name}

    def confidence(self, facts: Facts) -> float:
        reading = facts.readings[self._name]
        if reading.score is not None and 0.0 <= reading.score <= 1.0:
            return reading.score
        return 1.0 if self._leaf.judge(reading) else 0.0


class _Leaf(_Told):
    """A leaf whose signal is read when its value is asked for, if it can be."""

    def __init__(self, leaf: Leaf, signals: Mapping[str, Signal]) -> None:
        super().__init__(leaf)
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
        if child.glance is not None:
            self.glance = child.glance._replace(negated=not child.glance.negated)

    def run(self, facts: Facts) -> Result:
        value = self._child.run(facts)
        return value if value is None or value is PENDING else not value

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        return self._child.waiting(facts, not goal)

    def confidence(self, facts: Facts) -> float:
        return 1.0 - self._child.confidence(facts)


class _Several(Test):
    """True when `quorum` of the children are: `all`, `any` and `at_least` are this one rule.

    `run` is the one place where values are combined, for requests and for whoever explains what became of them.
    """

    def __init__(self, children: tuple[Test, ...], quorum: int, every: bool) -> None:
        self._children = children
        glances = [child.glance or _UNSEEN for child in children]
        self._looks = tuple((*glance, child.run) for glance, child in zip(glances, children, strict=True))
        self._quorum = quorum
        self._spare = len(children) - quorum
        self._every = every
        if quorum == 1 and all(child.plain is not None for child in children):
            self.plain = tuple(pair for child in children for pair in child.plain or ())

    def run(self, facts: Facts) -> Result:
        wanted, spare = self._quorum, self._spare  # so many must still be true, so many may still be false
        pending = False
        known = facts.readings.get
        value: Result
        for name, label, negated, run in self._looks:
            reading = known(name)
            if reading is None:
                value = run(facts)
            else:
                matched = reading.matched
                if label is not None and matched is not None:
                    matched = reading.label == label
                value = not matched if negated and matched is not None else matched
            if value is True:
                wanted -= 1
                if wanted <= 0:
                    return True
            elif value is False:
                spare -= 1
                if spare < 0:
                    return False
            elif value is PENDING:
                pending = True
        if wanted <= 0 or spare < 0:  # of no children, or of fewer than there must be
            return wanted <= 0
        return PENDING if pending else None

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        needed = self._quorum if goal else self._spare + 1
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

    def confidence(self, facts: Facts) -> float:
        result = self.run(facts)
        deciding = [child for child in self._children if child.run(facts) is result] or self._children
        ranked = sorted((child.confidence(facts) for child in deciding), reverse=True)
        if not ranked:
            return 1.0
        if result is True:
            return ranked[min(self._quorum, len(ranked)) - 1]
        # False: an `all` fell by its weakest child, an `any` by even its strongest.
        return ranked[-1] if self._every else ranked[0]


class Bundle:
    """Named rules, and signals that go `by_matches`, that follow from which of some other signals match.

    Where those have all been read, the readings of the `members` are taken at once if an earlier request was alike: a
    policy of many rules costs most requests little more than a look. `base` are the names of the others.
    """

    def __init__(self, base: Sequence[str], members: Mapping[str, Signal], signals: Mapping[str, Signal]) -> None:
        self._base = tuple((name, 1 << place, 1 << place + len(base)) for place, name in enumerate(base))
        self._names = frozenset(base)
        self._members = members
        self._signals = signals
        self._known: dict[int, tuple[dict[str, Reading], dict[str, Reading]]] = {}

    def take(self, facts: Facts) -> bool:
        """Take the readings of all members, if there is all that they follow from. It is looked for at the first,
        second, fourth, … call for a request."""
        tried = facts.tried
        if tried < 0:
            return False
        facts.tried = tried + 1
        if tried & (tried + 1) or not facts.whole(self._names):
            return False
        facts.tried = -1  # found, or about to be
        state = 0
        readings = facts.readings
        for name, true, unsure in self._base:
            matched = readings[name].matched
            if matched:
                state |= true
            elif matched is None:
                state |= unsure
        known = self._known.get(state)
        if known is None:
            for signal in self._members.values():
                take(signal, self._signals, facts)
            found = {name: readings[name] for name in self._members}
            known = found, {name: reading for name, reading in found.items() if reading is not FALSE}
            if len(self._known) >= _STATES:
                self._known.clear()
            self._known[state] = known
            return True
        readings.update(known[0])
        facts.telling.update(known[1])
        return True


_STATES: Final = 256
"""Of so many kinds of requests a bundle remembers the readings."""


class RuleNode(Test):
    """A named rule, which is evaluated once: what it says is remembered as a reading of its name.

    As long as it waits for slow signals, what is still open is remembered until more is known.
    """

    def __init__(self, name: str, test: Test) -> None:
        self._name = name
        self._test = test
        self.glance = Glance(name)
        self.bundle: Bundle | None = None

    def run(self, facts: Facts) -> Result:
        reading = facts.readings.get(self._name)
        if reading is not None:
            return reading.matched
        if facts.open is not None and self._waits(facts) is not None:
            return PENDING
        if self.bundle is not None and self.bundle.take(facts):
            return facts.readings[self._name].matched
        value = self._test.run(facts)
        if value is PENDING:
            if facts.open is None:
                facts.open = {}
            facts.open[self._name] = (facts.known, {})
        elif value is False:
            facts.readings[self._name] = FALSE
        else:
            facts.readings[self._name] = facts.telling[self._name] = TRUE if value else _UNKNOWN
        return value

    def _waits(self, facts: Facts) -> dict[bool, set[str]] | None:
        """What the rule waits for, by goal, as far as that was asked; None where more is known than when it was run."""
        found = None if facts.open is None else facts.open.get(self._name)
        return None if found is None or found[0] != facts.known else found[1]

    def waiting(self, facts: Facts, goal: bool) -> set[str]:
        if self.run(facts) is not PENDING:
            return set()
        waits = self._waits(facts)
        if waits is None:  # pragma: no cover - `run` has just said what it waits for
            return self._test.waiting(facts, goal)
        if goal not in waits:
            waits[goal] = self._test.waiting(facts, goal)
        return waits[goal]

    def take(self, facts: Facts) -> Reading | None:
        """As `signals.signal.Lazily.take`."""
        if self.run(facts) is PENDING:
            if self.unread(facts):
                return None
            facts.readings[self._name] = facts.telling[self._name] = _UNKNOWN
        return facts.readings[self._name]

    def unread(self, facts: Facts) -> set[str]:
        """As `signals.signal.Lazily.unread`."""
        return self.waiting(facts, True) | self.waiting(facts, False)

    def confidence(self, facts: Facts) -> float:
        return facts.get(self)

    def compute(self, facts: Facts) -> float:
        """The confidence; a rule that a policy's test says the value of is sure of it."""
        value = self.run(facts)
        return self._test.confidence(facts) if self._test.run(facts) is value else float(value is True)
