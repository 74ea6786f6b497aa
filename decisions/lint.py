"""Static analysis of a policy's decisions with a SAT solver: what can never match, what nothing uses.

Every rule becomes a circuit with two literals, one for *true* and one for *false*; Unknown is neither. This is exactly
Kleene's logic, so what is reported holds for Unknown readings and for every `on_unknown` too. Of a signal's score
only the order of the tested bounds is known (a score of at least 0.9 is at least 0.7), of its label that there is only
one. Signals that are only bounds on one quantity (`Params.bounds`) are tests of that quantity.

The work is limited, since there are rules that no solver can settle in a lifetime. Beyond the limit everything counts
as possible, so that nothing false is reported, and a warning says that there may be more problems.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Final

from decisions.engine import Clause, ranks
from decisions.model import Model
from decisions.rule import (
    ALWAYS,
    All,
    AnyOf,
    AtLeastOf,
    Leaf,
    NamedRule,
    Not,
    Rule,
    evaluate,
    leaves,
    mentions,
    quorum,
    text,
)
from decisions.watching import Watching
from signals.reading import FALSE
from signals.request import ANSWER
from signals.signal import Params

_STEPS: Final = 50_000_000
"""Propagations of the solver and, weighed by the time they take, our own steps in one check: two seconds or so."""
_CONFLICTS: Final = 10_000
"""Conflicts of the solver in one check: a second or so."""
_GATE: Final = 50
"""Steps for a gate."""
_WIDE: Final = 32
"""The most inputs of a gate; more become a tree of gates, since a solver reads a long clause again and again."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing wrong with a policy; `path` is where in the document, `warning` says that the policy still works."""

    path: tuple[str | int, ...]
    code: str
    message: str
    warning: bool = False
    at_key: bool = False


def lint(
    decisions: Sequence[Clause | Watching],
    signals: Mapping[str, tuple[str, Params]],
    models: Mapping[str, Model],
    *,
    default: str,
    best: bool = False,
) -> list[Finding]:
    """What is wrong with `decisions`. `signals` has the kind and the parameters of every signal of the policy, and the
    named rules as signals of the kind `rule` (decisions.named)."""
    clauses = {at: one for at, one in enumerate(decisions) if isinstance(one, Clause)}
    asked = list(clauses.values())
    findings = _moved([*_checked(asked, signals, best), *_incapable(asked, signals)], list(clauses))
    watching = {at: one for at, one in enumerate(decisions) if isinstance(one, Watching)}
    answers = (
        _answering(signals) if watching or any(ANSWER in params.scopes() for _, params in signals.values()) else set()
    )
    for at, clause in clauses.items():
        findings += _misplaced(at, clause, answers)
    if watching:
        apart = {name: entry for name, entry in signals.items() if (entry[1].bounds() or (None, None))[1] is None}
        guards = [_guard(one, answers, apart) for one in watching.values()]
        findings += _moved(_checked(guards, apart, False, "answer"), list(watching))
        for at, one in watching.items():
            findings += _watching(at, one, signals, answers)
    return findings + list(_unused_signals(decisions, signals)) + list(_unused_models(asked, models, default))


def _checked(
    clauses: Sequence[Clause], signals: Mapping[str, tuple[str, Params]], best: bool, what: str = "request"
) -> Iterator[Finding]:
    """What the solver finds of `clauses`."""
    with _Circuit([clause.when for clause in clauses], signals) as circuit:
        yield from _Decisions(clauses, circuit, best, what).findings()
        if circuit.cut:
            message = (
                "the rules are too many or too entangled to check in full: decisions that can never match, or are "
                "never reached, may be missing from this list"
            )
            yield Finding(("decisions",), "L307", message, True, True)


def _moved(findings: Iterable[Finding], numbers: Sequence[int]) -> list[Finding]:
    """Findings about some decisions, whose `numbers` in the list of all are these."""
    return [
        replace(one, path=("decisions", numbers[int(one.path[1])], *one.path[2:])) if len(one.path) > 1 else one
        for one in findings
    ]


def _answering(signals: Mapping[str, tuple[str, Params]]) -> set[str]:
    """The signals that look at answers, themselves or by what they combine; `signals` has what others combine first."""
    found: set[str] = set()
    for name, (_, params) in signals.items():
        if ANSWER in params.scopes() or not found.isdisjoint(params.inputs()):
            found.add(name)
    return found


def _misplaced(at: int, clause: Clause, answers: set[str]) -> Iterator[Finding]:
    """A decision on requests that names a signal of answers: there is no answer yet."""
    named = next((name for name in mentions(clause.when) if name in answers), None)
    if named is not None:
        message = (
            f"decision {clause.name!r} looks at requests, and {named!r} at what the model answers: write `on: answer` "
            "there, or name a signal of the request"
        )
        yield Finding(("decisions", at, "when"), "L340", message)


def _guard(one: Watching, answers: set[str], apart: Mapping[str, object]) -> Clause:
    """A decision on answers as the solver knows decisions: those that end an answer are guards, all others observe.

    Of an answer's many texts one may have one label or a low score, and another one another: tests of them exclude
    nothing.
    """

    rules: dict[str, Rule] = {}

    def told(rule: Rule) -> Rule:
        match rule:
            case Leaf():
                tied = rule.label is None and rule.at_most is None and rule.signal in apart
                return rule if tied or rule.signal not in answers else Leaf(text(rule))
            case NamedRule(name=name, of=child):
                if name not in rules:
                    rules[name] = NamedRule(name, told(child))
                return rules[name]
            case Not(of=child):
                return Not(told(child))
            case AtLeastOf(count=count, of=children):
                return AtLeastOf(count, tuple(map(told, children)))
            case AnyOf(of=children):
                return AnyOf(tuple(map(told, children)))
            case All(of=children):
                return All(tuple(map(told, children)))

    ends = one.does in ("cut", "respond") and not one.observe
    return Clause(one.name, told(one.when), "respond", None, one.on_unknown, observe=not ends)


def _watching(
    at: int, one: Watching, signals: Mapping[str, tuple[str, Params]], answers: set[str]
) -> Iterator[Finding]:
    """What is odd about one decision on answers, beside its rule."""
    place: tuple[str | int, ...] = ("decisions", at)
    when = place if one.when == ALWAYS else (*place, "when")
    named = {leaf.signal for leaf in leaves(one.when)}
    placed = {name for name in named if name in answers and signals[name][1].placed()}
    if not named & answers and one.does in ("cut", "respond"):
        message = (
            f"decision {one.name!r} looks at nothing of the answer: a decision on the request can refuse before any "
            "model is asked"
        )
        yield Finding(when, "L341", message, warning=True)
    late = sorted(_negated(one.when) & answers)
    if late and one.does != "flag":
        mask = one.does == "mask"
        message = (
            f"that the answer does not have {late[0]!r} is known at its end only, when "
            + ("what was to be masked has been sent" if mask else "most of a streamed answer was sent")
            + (
                ": use `cut`, or `not` with signals of the request"
                if mask
                else ": only what was held back is kept away"
            )
        )
        yield Finding(when, "L342", message, warning=not mask)
    elif one.does == "mask" and evaluate(one.when, dict.fromkeys(placed, FALSE)) is not False:
        message = (
            f"mask {one.name!r} can match where nothing says what to replace: its rule must need a keyword (without "
            "fuzzy, ngram and bm25), regex or pii signal with `in: answer`; for the others use `cut`"
        )
        yield Finding(when, "L343", message)
    longest = {name: size for name in placed if (size := signals[name][1].longest()) is not None}
    for name in sorted(name for name, size in longest.items() if size > one.window and one.does != "flag"):
        message = (
            f"window: {one.window} characters are held back, and {name!r} finds up to {longest[name]}: the beginning "
            f"of what is longer gets through; write `window: {longest[name]}`"
        )
        yield Finding((*place, "window"), "L344", message, warning=True, at_key=True)


def _negated(rule: Rule) -> set[str]:
    """The signals that must not match for `rule` to be true."""
    found: set[str] = set()
    seen: set[tuple[str, bool]] = set()

    def look(rule: Rule, odd: bool) -> None:
        match rule:
            case Leaf():
                if odd:
                    found.add(rule.signal)
            case Not(of=child):
                look(child, not odd)
            case NamedRule(name=name, of=child):
                if (name, odd) not in seen:
                    seen.add((name, odd))
                    look(child, odd)
            case _:
                for child in rule.of:
                    look(child, odd)

    look(rule, False)
    return found


def _incapable(clauses: Sequence[Clause], signals: Mapping[str, tuple[str, Params]]) -> Iterator[Finding]:
    """Decisions for requests that none of their models can take, by what the models declare."""
    known: dict[str, frozenset[str]] = {}
    for index, clause in enumerate(clauses):
        if clause.guard:
            continue
        needs = _needs(clause.when, signals, known)
        if all(model.lacks(needs) for first in clause.candidates for model in (first, *first.fallback)):
            message = (
                f"decision {clause.name!r} takes requests that need {', '.join(sorted(needs))}, and none of its models "
                "and their fallbacks declares that in `capabilities`"
            )
            yield Finding(("decisions", index), "L315", message, True)


def _needs(rule: Rule, signals: Mapping[str, tuple[str, Params]], known: dict[str, frozenset[str]]) -> frozenset[str]:
    """What every request needs for which `rule` is true; `known` is that of named rules, as far as it was asked."""
    match rule:
        case Leaf():
            return signals[rule.signal][1].needs()
        case NamedRule(name=name, of=child):
            if name not in known:
                known[name] = _needs(child, signals, known)
            return known[name]
        case All(of=children):
            return frozenset().union(*(_needs(child, signals, known) for child in children))
        case AnyOf(of=children) if children:
            return frozenset.intersection(*(_needs(child, signals, known) for child in children))
    return frozenset()


def _unused_signals(
    clauses: Sequence[Clause | Watching], signals: Mapping[str, tuple[str, Params]]
) -> Iterator[Finding]:
    used: set[str] = set()
    reached = {name for clause in clauses for name in mentions(clause.when)}
    while reached:
        used |= reached
        reached = {source for name in reached for source in signals[name][1].inputs()} - used
    for name, (kind, _) in signals.items():
        if name not in used:
            what = "rule" if kind == "rule" else "signal"
            yield Finding((f"{what}s", name), "L304", f"{what} {name!r} is used by no decision", True, True)


def _unused_models(clauses: Sequence[Clause], models: Mapping[str, Model], default: str) -> Iterator[Finding]:
    used = {default, *(other.key for model in models.values() for other in model.fallback)}
    for clause in clauses:
        used |= {model.key for model in clause.candidates}
        if clause.writer is not None:
            used |= {*clause.writer.models}
    for key in models:
        if key not in used:
            message = f"model {key!r} is used by no decision: only requests that name it reach it"
            yield Finding(("models", key), "L305", message, True, True)


class _Decisions:
    """The analysis of the decision list.

    Two kinds of requests walk it: those that ask for routing see every decision, those that name a model see only
    guards (`respond`) and decisions with `override`. A decision is unreachable when neither kind can end in it.
    """

    def __init__(self, clauses: Sequence[Clause], circuit: _Circuit, best: bool, what: str) -> None:
        self._clauses = clauses
        self._what = what
        self._circuit = circuit
        self._ranks = {id(clause): rank for clause, rank in zip(clauses, ranks(clauses, best), strict=True)}

    def findings(self) -> Iterator[Finding]:
        for index, clause in enumerate(self._clauses):
            place: tuple[str | int, ...] = ("decisions", index)
            when = place if clause.when == ALWAYS else (*place, "when")
            true, false = self._circuit.rails(clause.when)
            if not self._circuit.possible([self._fires(clause)]):
                yield Finding(when, "L301", f"decision {clause.name!r} can never match: {self._conflict(clause.when)}")
                continue
            if not self._circuit.possible([true]):
                message = f"decision {clause.name!r} can match only when {self._signals(clause)} cannot be read"
                yield Finding(when, "L301", f"{message}: {self._conflict(clause.when)}", warning=True)
            elif clause.when != ALWAYS and not self._circuit.possible([false]):
                unless = f" unless {self._signals(clause)} cannot be read" if self._circuit.possible([-true]) else ""
                message = (
                    f"the rule of decision {clause.name!r} is always true{unless}: leave `when` out if that is meant"
                )
                yield Finding(when, "L306", message, warning=True)
            yield from self._reachable(index, clause, place)

    def _reachable(self, index: int, clause: Clause, place: tuple[str | int, ...]) -> Iterator[Finding]:
        asking = self._takers(index, clause, self._clauses)
        pinned = clause.guard or clause.override
        # Whoever takes a request that names a model takes one that asks for routing, too.
        takers = asking
        if asking is not None and pinned:
            takers = self._takers(index, clause, [c for c in self._clauses if c.guard or c.override])
        if asking is None:
            same = self._same(index, clause)
            if same is not None:
                message = (
                    f"decision {clause.name!r} has the same rule as {same.name!r}: it can only take {self._what}s "
                )
                yield Finding(place, "L303", message + "for which that rule is Unknown", warning=True)
        elif takers is None:
            message = f"decision {clause.name!r} can only take requests that name a model: {self._earlier(asking)}"
            yield Finding(place, "L302", message, warning=True)
        elif len(takers) == 1 and self._circuit.same(takers[0].when, clause.when):
            message = f"decision {clause.name!r} has the same rule as {takers[0].name!r}, which always takes first"
            yield Finding(place, "L303", message)
        else:
            yield Finding(place, "L302", f"decision {clause.name!r} can never be reached: {self._earlier(takers)}")

    def _same(self, index: int, clause: Clause) -> Clause | None:
        """The first decision before `clause` that has the same rule."""
        self._circuit.spend(index)
        if self._circuit.cut:
            return None
        rails, rank = self._circuit.rails(clause.when), self._ranks[id(clause)]
        earlier = (one for one in self._clauses[:index] if not one.observe and self._ranks[id(one)] < rank)
        return next((other for other in earlier if self._circuit.rails(other.when) == rails), None)

    def _takers(self, index: int, clause: Clause, among: Sequence[Clause]) -> list[Clause] | None:
        """A smallest set of the decisions in `among` that together take every request that `clause` matches."""
        self._circuit.spend(4 * len(self._clauses))
        if self._circuit.cut:
            return None
        blocking: dict[int, Clause] = {}
        earlier = {id(c) for c in self._clauses[:index]}
        for other in among:
            literal = None if other is clause or other.observe else self._blocks(other, clause, id(other) in earlier)
            if literal is not None:
                blocking.setdefault(-literal, other)
        core = self._circuit.core([self._fires(clause)], list(blocking))
        return None if core is None else [blocking[literal] for literal in core]

    def _blocks(self, other: Clause, clause: Clause, earlier: bool) -> int | None:
        """True where `other`, which may stand `earlier`, certainly keeps `clause` from being the decision."""
        rank, own = self._ranks[id(other)], self._ranks[id(clause)]
        if rank != own:
            return self._takes(other) if rank < own else None
        # Those of one rank compete by confidence, which is not known here; but equals tie, and a catch-all is certain.
        if earlier and other.when in (ALWAYS, clause.when):
            return self._takes(other)
        return self._circuit.unknown(other.when) if other.on_unknown == "fail" else None

    def _takes(self, clause: Clause) -> int:
        """True where `clause`, once looked at, ends the search."""
        true, false = self._circuit.rails(clause.when)
        return true if clause.on_unknown == "skip" else -false

    def _fires(self, clause: Clause) -> int:
        """True where the decision may be `clause`'s own."""
        true, false = self._circuit.rails(clause.when)
        return -false if clause.on_unknown == "match" else true

    def _earlier(self, takers: Sequence[Clause]) -> str:
        if not takers:  # pragma: no cover - nothing in the way means that the decision matches nothing: L301
            return "it matches nothing"
        names = _listed([repr(clause.name) for clause in takers])
        together = " together" if len(takers) > 1 else ""
        if all(clause.when == ALWAYS for clause in takers):
            return f"{names} takes every {self._what} before it"
        takes = "take" if together else "takes"
        return f"every {self._what} that matches it is one that {names}{together} {takes} first"

    def _conflict(self, rule: Rule) -> str:
        """The smallest part of `rule` that cannot be true."""
        if isinstance(rule, NamedRule):
            return f"in `{rule.name}`: {self._conflict(rule.of)}"
        if isinstance(rule, AnyOf):
            # Not into further named rules: there may be too many.
            return "; and ".join(
                dict.fromkeys(
                    f"`{child.name}` cannot hold" if isinstance(child, NamedRule) else self._conflict(child)
                    for child in rule.of
                )
            )
        if isinstance(rule, All):
            parts = {self._circuit.rails(part)[0]: part for part in _conjuncts(rule)}
            clash = [parts[literal] for literal in self._circuit.core([], list(parts)) or ()]
            if len(clash) == 1:
                return self._conflict(clash[0])
            return f"{_listed([f'`{text(part)}`' for part in clash])} cannot hold together"
        return f"`{text(rule)}` cannot hold"

    def _signals(self, clause: Clause) -> str:
        return _listed([repr(name) for name in dict.fromkeys(leaf.signal for leaf in leaves(clause.when))], "or")


def _conjuncts(rule: Rule) -> Iterator[Rule]:
    if isinstance(rule, All):
        for child in rule.of:
            yield from _conjuncts(child)
    else:
        yield rule


def _listed(words: Sequence[str], last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"


def _quantity(kind: str, params: Params) -> tuple[str, float | None, float | None] | None:
    """What a signal measures and the bounds within which it matches, if it does nothing else."""
    bounds = params.bounds()
    if bounds is None:
        return None
    return f"{kind} {params.model_dump_json(exclude={'at_least', 'at_most'})}", *bounds


class _Circuit:
    """The rules as clauses of a SAT solver (Tseitin's encoding), equal rules shared. A literal is an int, -x its
    negation."""

    def __init__(self, rules: Sequence[Rule], signals: Mapping[str, tuple[str, Params]]) -> None:
        # Imported here because only policies that are being loaded need it.
        from pysat.solvers import Minisat22

        self._solver: Any = Minisat22()
        self._last = 0
        self._rails: dict[Rule, tuple[int, int]] = {}
        # The same by identity, since a large rule's hash takes its time; the decisions keep their rules alive.
        self._known: dict[int, tuple[int, int]] = {}
        self._steps, self._conflicts, self._propagations = _STEPS, _CONFLICTS, 0
        self._measured = {name: found for name, entry in signals.items() if (found := _quantity(*entry)) is not None}
        # Where the score decides on the label.
        self._ranges = {
            self._measured.get(name, (name,))[0]: labels
            for name, (_, params) in signals.items()
            if (labels := params.ranges()) is not None
        }
        self._signals: dict[str, tuple[int, int, int]] = {}
        self._scores: dict[tuple[str, float, bool], int] = {}
        self._labels: dict[tuple[str, str], int] = {}
        self._yes = self._new()
        self._solver.add_clause([self._yes])
        self._declare(dict.fromkeys(self._measure(leaf) for rule in rules for leaf in leaves(rule)))

    def __enter__(self) -> _Circuit:
        return self

    def __exit__(self, *_: object) -> None:
        self._solver.delete()

    @property
    def cut(self) -> bool:
        """Whether the work that one check may take has been done: from now on everything counts as possible."""
        return self._steps <= 0 or self._conflicts <= 0

    def spend(self, steps: int) -> None:
        """Count work done outside the solver."""
        self._steps -= steps

    def possible(self, literals: Sequence[int]) -> bool:
        """Whether some readings make all of `literals` true, or may, as far as it could be checked."""
        self.spend(2 * len(literals))
        if self.cut:
            return True
        self._solver.conf_budget(self._conflicts)
        self._solver.prop_budget(self._steps)
        found = self._solver.solve_limited(assumptions=literals)
        done = self._solver.accum_stats()
        self.spend(done["propagations"] - self._propagations)
        self._propagations, self._conflicts = done["propagations"], _CONFLICTS - done["conflicts"]
        return found is not False

    def core(self, given: list[int], literals: list[int]) -> list[int] | None:
        """A smallest part of `literals` that cannot be true together with `given`; None when all can be."""
        if self.possible(given + literals):
            return None
        found = set(self._solver.get_core() or ())
        kept = [literal for literal in literals if literal in found]
        for literal in list(kept):
            if self.cut:
                break
            self.spend(len(kept))
            without = [other for other in kept if other != literal]
            if not self.possible(given + without):
                kept = without
        return kept

    def same(self, first: Rule, second: Rule) -> bool:
        """Whether the two rules have the same value for all readings."""
        pairs = zip(self.rails(first), self.rails(second), strict=True)
        return not any(self.possible([a, -b]) or self.possible([-a, b]) for a, b in pairs)

    def unknown(self, rule: Rule) -> int:
        true, false = self.rails(rule)
        return self._and([-true, -false])

    def rails(self, rule: Rule) -> tuple[int, int]:
        """The literals of *`rule` is true* and *`rule` is false*."""
        known = self._known.get(id(rule))
        if known is None:
            known = self._rails.get(rule)
            if known is None:
                known = self._rails[rule] = (self._new(), self._new()) if self.cut else self._encode(rule)
            self._known[id(rule)] = known
        return known

    def _encode(self, rule: Rule) -> tuple[int, int]:
        match rule:
            case Leaf():
                return self._leaf(rule)
            case NamedRule(of=child):
                return self.rails(child)
            case Not(of=child):
                true, false = self.rails(child)
                return false, true
        count = quorum(rule)
        rails = [self.rails(child) for child in rule.of]
        trues, falses = [true for true, _ in rails], [false for _, false in rails]
        return self._at_least(count, trues), self._at_least(len(rails) - count + 1, falses)

    def _measure(self, leaf: Leaf) -> Leaf:
        """A leaf whose signal is only a bound on a quantity, as a test of that quantity."""
        measured = self._measured.get(leaf.signal)
        if measured is None or (leaf.label is not None and measured[0] not in self._ranges):
            return leaf
        quantity, least, most = measured
        return Leaf(quantity, least, most) if leaf.plain else replace(leaf, signal=quantity)

    def _leaf(self, leaf: Leaf) -> tuple[int, int]:
        leaf = self._measure(leaf)
        unknown, matched, scoreless = self._signals[leaf.signal]
        if leaf.plain:
            return self._and([-unknown, matched]), self._and([-unknown, -matched])
        right = self._yes if leaf.label is None else self._label(leaf.signal, leaf.label)
        if leaf.at_least is None and leaf.at_most is None:
            return self._and([-unknown, right]), self._and([-unknown, -right])
        low = self._yes if leaf.at_least is None else self._scores[leaf.signal, leaf.at_least, False]
        high = -self._yes if leaf.at_most is None else self._scores[leaf.signal, leaf.at_most, True]
        inside = self._and([low, -high])
        true = self._and([-unknown, right, -scoreless, inside])
        false = self._and([-unknown, self._or([-right, self._and([-scoreless, -inside])])])
        return true, false

    def _label(self, signal: str, label: str) -> int:
        ranges = self._ranges.get(signal)
        if ranges is None:
            return self._labels[signal, label]
        if label not in ranges:
            return -self._yes
        low, end = ranges[label]
        reached = self._yes if low is None else self._scores[signal, low, False]
        passed = -self._yes if end is None else self._scores[signal, end, False]
        return self._and([reached, -passed])

    def _declare(self, every: Iterable[Leaf]) -> None:
        """Makes variables for what the leaves test, with what is known about them before any request."""
        bounds: dict[str, set[tuple[float, bool]]] = {}
        labels: dict[str, set[str]] = {}
        quantities = {quantity for quantity, _, _ in self._measured.values()}
        for leaf in every:
            if leaf.signal not in self._signals:
                self._signals[leaf.signal] = (self._new(), self._new(), self._new())
                if leaf.signal in quantities or leaf.signal in self._ranges:
                    self._solver.add_clause([-self._signals[leaf.signal][2]])
            tested = bounds.setdefault(leaf.signal, set())
            if leaf.at_least is not None:
                tested.add((leaf.at_least, False))  # score >= bound
            if leaf.at_most is not None:
                tested.add((leaf.at_most, True))  # score > bound
            if leaf.label is not None and leaf.signal in self._ranges:
                tested |= {(end, False) for end in self._ranges[leaf.signal].get(leaf.label, ()) if end is not None}
            elif leaf.label is not None:
                labels.setdefault(leaf.signal, set()).add(leaf.label)
        for signal, tested in bounds.items():
            chain = [self._scores.setdefault((signal, *bound), self._new()) for bound in sorted(tested)]
            for weaker, stronger in pairwise(chain):
                self._solver.add_clause([-stronger, weaker])
        for signal, names in labels.items():
            chosen = [self._labels.setdefault((signal, name), self._new()) for name in sorted(names)]
            earlier = chosen[0]
            for name in chosen[1:]:
                self._solver.add_clause([-earlier, -name])
                earlier = self._or([earlier, name])

    def _new(self) -> int:
        self._last += 1
        return self._last

    def _and(self, literals: Sequence[int]) -> int:
        if len(literals) == 1:
            return literals[0]
        if len(literals) > _WIDE:
            return self._and([self._and(literals[at : at + _WIDE]) for at in range(0, len(literals), _WIDE)])
        self.spend(_GATE)
        gate = self._new()
        for literal in literals:
            self._solver.add_clause([-gate, literal])
        self._solver.add_clause([gate, *(-literal for literal in literals)])
        return gate

    def _or(self, literals: Sequence[int]) -> int:
        return -self._and([-literal for literal in literals])

    def _at_least(self, count: int, literals: Sequence[int]) -> int:
        """True when `count` of `literals` are: the sequential counter (Sinz, CP 2005), in both directions."""
        if count <= 0:
            return self._yes
        if count > len(literals):
            return -self._yes
        if count == len(literals):
            return self._and(literals)
        if count == 1:
            return self._or(literals)
        # reached[n]: n of the literals seen so far are true.
        reached = [self._yes] + [-self._yes] * count
        for literal in literals:
            if self.cut:
                return self._new()
            reached = [
                self._yes,
                *(self._or([reached[n], self._and([literal, reached[n - 1]])]) for n in range(1, count + 1)),
            ]
        return reached[count]
