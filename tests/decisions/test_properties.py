"""Lazy evaluation against an eager reference that shares no code with it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from random import Random
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from decisions.decision import Trace
from decisions.engine import Clause, Engine
from decisions.named import RuleSignal
from decisions.rule import ALWAYS, All, AnyOf, AtLeastOf, Leaf, NamedRule, Not, Rule
from signals.kinds.score import Score, ScoreParams
from signals.reading import FALSE, TRUE, Reading, Unavailable, unknown
from signals.signal import Cost, Shared, Signal
from tests.decisions.fakes import LARGE, SMALL, Fake, Sum, engine, name_rules, request
from tests.volume import few_and_many

# The reference: Kleene's logic on numbers (false 0, Unknown 1, true 2), so that all is min, any is max, not is 2 - x.


def leaf_value(leaf: Leaf, reading: Reading) -> int:
    if reading.matched is None:
        return 1
    if leaf.label is None and leaf.at_least is None and leaf.at_most is None:
        return 2 if reading.matched else 0
    if leaf.label is not None and leaf.label != reading.label:
        return 0
    if leaf.at_least is None and leaf.at_most is None:
        return 2
    if reading.score is None:
        return 1
    low = reading.score if leaf.at_least is None else leaf.at_least
    high = reading.score if leaf.at_most is None else leaf.at_most
    return 2 if low <= reading.score <= high else 0


def value(rule: Rule, readings: Mapping[str, Reading]) -> int:
    if isinstance(rule, Leaf):
        return leaf_value(rule, readings[rule.signal])
    if isinstance(rule, NamedRule):
        return value(rule.of, readings)
    if isinstance(rule, Not):
        return 2 - value(rule.of, readings)
    values = sorted((value(child, readings) for child in rule.of), reverse=True)
    if isinstance(rule, All):
        return min(values, default=2)
    return values[0 if isinstance(rule, AnyOf) else rule.count - 1]


def sureness(rule: Rule, readings: Mapping[str, Reading]) -> float:
    if isinstance(rule, Leaf):
        reading = readings[rule.signal]
        if reading.score is None or not 0 <= reading.score <= 1:
            return 1.0 if value(rule, readings) == 2 else 0.0
        return reading.score
    if isinstance(rule, NamedRule):
        return sureness(rule.of, readings)
    if isinstance(rule, Not):
        return 1 - sureness(rule.of, readings)
    result = value(rule, readings)
    deciding = [c for c in rule.of if value(c, readings) == result] or list(rule.of)
    sure = sorted((sureness(c, readings) for c in deciding), reverse=True)
    if not sure:
        return 1.0
    if isinstance(rule, All):
        return min(sure)
    if isinstance(rule, AnyOf) or result != 2:
        return max(sure)
    return sure[rule.count - 1]


Outcome = tuple[str | None, str, str | None, str | None]


def outcome(name: str | None, action: str, model: Any = None, fallback: str | None = None) -> Outcome:
    return name, action, model.key if model else None, fallback


def reference(clauses: Sequence[Clause], readings: Mapping[str, Reading], best: bool, named: bool) -> Outcome:
    heads = [at for at, c in enumerate(clauses) if not c.tied]
    rank = {c.name: max(head for head in heads if head <= at) for at, c in enumerate(clauses)}
    if named:
        clauses = [c for c in clauses if c.action == "respond" or c.override]
    if best:
        clauses = [c for c in clauses if c.action == "respond"] + [c for c in clauses if c.action != "respond"]
    candidates: list[tuple[float, Clause]] = []
    for c in clauses:
        if candidates and not best and rank[c.name] != rank[candidates[0][1].name]:
            break
        result = value(c.when, readings)
        if result == 1 and c.on_unknown == "fail":
            return outcome(None, "default", SMALL, "on_unknown")
        if result == 2 or (result == 1 and c.on_unknown == "match"):
            if c.action == "respond":
                return outcome(c.name, c.action, c.target)
            candidates.append((sureness(c.when, readings) if result == 2 else 0.0, c))
    if candidates:
        top = max(sure for sure, _ in candidates)
        chosen = next(c for sure, c in candidates if sure == top)
        return outcome(chosen.name, chosen.action, chosen.target)
    return outcome(None, "route", LARGE) if named else outcome(None, "default", SMALL)


def shown(trace: Trace) -> Outcome:
    decision = trace.decision
    return outcome(decision.name, decision.action, decision.model, decision.fallback)


# Random policies

NAMES = ("a", "b", "c", "d", "sum")
SCORES = (0.0, 0.3, 0.5, 0.9, 1.0, 7.0)
readings_of = st.builds(
    Reading,
    st.sampled_from((True, False, None)),
    st.sampled_from((None, *SCORES)),
    st.sampled_from((None, "x", "y")),
)
bounds = st.none() | st.sampled_from((0.3, 0.5, 0.9))
leaf = st.one_of(
    st.builds(Leaf, st.sampled_from(NAMES)),
    st.builds(Leaf, st.sampled_from(NAMES), bounds, bounds, st.sampled_from((None, "x"))),
)


def _counted(children: list[Rule]) -> st.SearchStrategy[Rule]:
    return st.builds(AtLeastOf, st.integers(1, len(children)), st.just(tuple(children)))


def rules_of(leaf: st.SearchStrategy[Any]) -> st.SearchStrategy[Rule]:
    return st.recursive(
        leaf,
        lambda below: st.one_of(
            st.builds(Not, below),
            st.builds(All, st.lists(below, min_size=1, max_size=3).map(tuple)),
            st.builds(AnyOf, st.lists(below, min_size=1, max_size=3).map(tuple)),
            st.lists(below, min_size=1, max_size=4).flatmap(_counted),
        ),
        max_leaves=8,
    )


rules = rules_of(leaf)


@st.composite
def named_rules(draw: st.DrawFn, leaf: st.SearchStrategy[Any], most: int = 3) -> list[NamedRule]:
    """Named rules that may build on each other."""
    made: list[NamedRule] = []
    for index in range(draw(st.integers(0, most))):
        below = leaf | st.sampled_from(made) if made else leaf
        made.append(NamedRule(f"r{index}", draw(rules_of(below))))
    return made


@st.composite
def clause_lists(draw: st.DrawFn, rule: st.SearchStrategy[Rule], most: int = 5) -> list[Clause]:
    clauses = []
    for index in range(draw(st.integers(0, most))):
        target = draw(st.sampled_from((None, SMALL, LARGE)))
        clauses.append(
            Clause(
                f"d{index}",
                draw(rule | st.just(ALWAYS)) if draw(st.booleans()) else draw(rule),
                "respond" if target is None else "route",
                target,
                draw(st.sampled_from(("skip", "match", "fail"))),
                status=403 if target is None else None,
                override=draw(st.booleans()),
                tied=bool(clauses and target and clauses[-1].target) and draw(st.booleans()),
            )
        )
    return clauses


def untied(clauses: Sequence[Clause]) -> list[Clause]:
    """`clauses`, none of which is compared with another."""
    return [replace(clause, tied=False) for clause in clauses]


COSTS = st.sampled_from(tuple(Cost))


@st.composite
def cases(draw: st.DrawFn) -> tuple[Engine, bool, dict[str, Any], dict[str, Reading], bool]:
    """An engine and whether it takes the best, what its signals say or how they fail, the readings that follow, and
    whether the model is named."""
    fakes = [Fake(name, draw(COSTS)) for name in NAMES[:4]]
    signals: list[Signal] = [*fakes, Sum("sum", fakes[:2])]
    said: dict[str, Any] = {}
    readings: dict[str, Reading] = {}
    for signal in fakes:
        readings[signal.name] = said[signal.name] = draw(readings_of)
        failure = draw(st.sampled_from((None, None, None, Unavailable("overloaded"), RuntimeError("broken"))))
        if failure is not None:
            said[signal.name] = failure
            reason = failure.reason if isinstance(failure, Unavailable) else "error"
            readings[signal.name] = Reading(None, None, None, reason)
    scores = [readings[name].score for name in ("a", "b")]
    if None in scores:
        readings["sum"] = Reading(None, None, None, "input_unknown")
    else:
        total = sum(score for score in scores if score is not None)
        readings["sum"] = Reading(total >= 1.0, total)
    named = draw(named_rules(leaf))
    leaves: st.SearchStrategy[Any] = leaf
    if named:  # a signal that combines the last of them
        every = {signal.name: signal for signal in signals}
        for each in named:
            name_rules(each, every)
        signals = [*every.values(), Sum("mix", (every[named[-1].name], fakes[0]))]
        leaves = leaf | st.sampled_from(named) | st.just(Leaf("mix"))
        for each in named:
            readings[each.name] = (FALSE, unknown("input_unknown"), TRUE)[value(each, readings)]
        both = [readings[name].score for name in (named[-1].name, "a")]
        total = sum(score for score in both if score is not None)
        readings["mix"] = unknown("input_unknown") if None in both else Reading(total >= 1.0, total)
    best = draw(st.booleans())
    made = engine(signals, draw(clause_lists(rules_of(leaves))), best=best)
    return made, best, said, readings, draw(st.booleans())


@pytest.mark.no_cover
@pytest.mark.slow
@few_and_many(20, 600)
def test_lazy_evaluation_decides_as_eager_evaluation_does(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(cases(), st.booleans(), st.booleans())
    def holds(
        case: tuple[Engine, bool, dict[str, Any], dict[str, Reading], bool], everything: bool, detail: bool
    ) -> None:
        made, best, said, readings, named = case
        asked = request(said, "large" if named else "auto")
        trace = asyncio.run(made.decide(asked, everything=everything, detail=detail))
        assert shown(trace) == reference(made.clauses, readings, best, named)
        for name, reading in trace.readings.items():
            assert reading == readings[name]
        for name, result in trace.results.items():
            c = next(c for c in made.clauses if c.name == name)
            eager = (False, None, True)[value(c.when, readings)]
            # None may also stand for a rule left open, when what it would end as makes no difference.
            alike = {"skip": (None, False), "match": (None, True), "fail": (None,)}[c.on_unknown]
            assert result is eager or (result is None and eager in alike)
        if everything:
            assert trace.readings.keys() == readings.keys()
        fetched = [name for name, _ in asked.fields.get("fetched", ())]
        assert len(fetched) == len(set(fetched)), "a slow input was fetched twice"
        assert (trace.timings is not None) == detail

    holds()


# Nothing needless: rules that name each signal once, so that a leaf that is still open can change the rule. A decision
# that falls back by `on_unknown: fail` is an outcome of its own, though the answer is that of any other that does: the
# trace says which it was.


@st.composite
def read_once(draw: st.DrawFn, names: tuple[str, ...] = ("a", "b", "c")) -> Rule:
    chosen = draw(st.lists(st.sampled_from(names), min_size=1, max_size=3, unique=True))

    def build(parts: list[Rule]) -> Rule:
        if len(parts) == 1:
            rule = parts[0]
        else:
            cut = draw(st.integers(1, len(parts) - 1))
            pair = (build(parts[:cut]), build(parts[cut:]))
            flat = tuple(parts)
            kinds: list[Rule] = [All(pair), AnyOf(pair), AtLeastOf(draw(st.integers(1, len(flat))), flat)]
            rule = draw(st.sampled_from(kinds))
        if draw(st.booleans()):
            rule = NamedRule(f"rule {rule}", rule)  # each rule has a name of its own
        return Not(rule) if draw(st.booleans()) else rule

    return build([Leaf(name) for name in chosen])


VALUES = (Reading(True), Reading(False), Reading(None))
REFUSE = Clause("d0", ALWAYS, "respond", None, "fail", status=403)


def settled(clauses: Sequence[Clause], readings: Mapping[str, Reading], named: bool) -> Outcome | str:
    """The outcome, or the decision that fell back."""
    for c in clauses:
        if named and c.action != "respond" and not c.override:
            continue
        if c.on_unknown == "fail" and value(c.when, readings) == 1:
            return c.name
        if (found := reference([c], readings, False, named))[0] is not None:
            return found
    return reference([], readings, False, named)


@pytest.mark.no_cover
@pytest.mark.slow
@few_and_many(80, 400)
def test_a_slow_signal_is_fetched_only_if_it_can_change_the_outcome_or_which_decision_falls_back(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        st.tuples(COSTS, COSTS, COSTS),
        clause_lists(read_once(), most=3),
        st.tuples(*[st.sampled_from(VALUES)] * 3),
        st.booleans(),
    )
    @example(  # whatever `a` is, one of the two falls back; which of them hangs on it
        (Cost.NEURAL, Cost.INSTANT, Cost.INSTANT),
        [
            replace(REFUSE, when=Not(All((Not(All((Leaf("a"), Leaf("c")))), Leaf("b"))))),
            replace(REFUSE, name="d1", when=Leaf("c")),
        ],
        (Reading(True), Reading(True), Reading(None)),
        False,
    )
    def holds(
        costs: tuple[Cost, Cost, Cost], clauses: list[Clause], said: tuple[Reading, Reading, Reading], named: bool
    ) -> None:
        clauses = untied(clauses)
        names = ("a", "b", "c")
        made = engine([Fake(name, cost) for name, cost in zip(names, costs, strict=True)], clauses)
        asked = request(dict(zip(names, said, strict=True)), "large" if named else "auto")
        trace = asyncio.run(made.decide(asked))
        for name, known in asked.fields.get("fetched", ()):
            others = [other for other in names if other not in known and other != name]
            assert any(
                len({settled(clauses, {**known, **rest, name: one}, named) for one in VALUES}) > 1
                for chosen in product(VALUES, repeat=len(others))
                for rest in [dict(zip(others, chosen, strict=True))]
            ), f"{name} was fetched although the outcome was settled"
        slow = {name for name, cost in zip(names, costs, strict=True) if cost >= Cost.NEURAL}
        assert slow & trace.readings.keys() <= {name for name, _ in asked.fields.get("fetched", ())}

    holds()


# Many named rules: their readings are those of an earlier request that was alike.

MATCHES = (Reading(True), Reading(False), Reading(None))
BANDS: dict[str, Any] = {"low": {"below": 0.3}, "high": {}}


@st.composite
def many_rules(draw: st.DrawFn) -> list[NamedRule]:
    """Ten rules over three signals, a sum of what matches, and each other."""
    made: list[NamedRule] = []
    band = st.sampled_from((Leaf("count", label="low"), Leaf("count", at_least=0.5), Leaf("count")))
    for index in range(10):
        below = st.sampled_from([Leaf("a"), Leaf("b"), Leaf("c"), *made]) | band
        made.append(NamedRule(f"r{index}", draw(rules_of(below))))
    return made


@pytest.mark.no_cover
@pytest.mark.slow
@few_and_many(6, 40)
def test_rules_say_the_same_of_each_request_that_is_alike(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.data(), many_rules(), st.randoms())
    def holds(data: st.DataObject, named: list[NamedRule], random: Random) -> None:
        clauses = data.draw(clause_lists(st.sampled_from(named), most=4))
        clauses.append(Clause("every", AtLeastOf(len(named), tuple(named)), "route", LARGE))
        count = Score("count", ScoreParams(sum={"a": 0.2, "b": 0.4}, of="matches", bands=BANDS), Shared())
        made = engine([*(Fake(name) for name in "abc"), count], clauses)
        asked = [*product(MATCHES, repeat=3)] * 2
        random.shuffle(asked)
        for said in asked:
            readings = dict(zip("abc", said, strict=True))
            total = round(0.2 * bool(said[0].matched) + 0.4 * bool(said[1].matched), 9)
            band = Reading(True, total, "low" if total < 0.3 else "high")
            if None in (said[0].matched, said[1].matched):
                band = unknown("input_unknown")
            everything = {**readings, "count": band}
            trace = made.settle(request(readings))
            assert isinstance(trace, Trace)
            assert shown(trace) == reference(made.clauses, everything, False, False)
            for name, reading in trace.readings.items():
                if name in everything:
                    assert reading == everything[name]
                else:
                    rule = made.signals[name]
                    assert isinstance(rule, RuleSignal)
                    assert reading.matched is (False, None, True)[value(rule.rule, everything)]

    holds()


def test_a_request_like_an_earlier_one_takes_all_its_readings_at_once() -> None:
    names = [f"r{index}" for index in range(10)]
    rules: list[Rule] = [NamedRule(name, All((Leaf("a"), Not(Leaf("b"))))) for name in names]
    made = engine([Fake("a"), Fake("b")], [Clause(f"d{n}", rule, "route", LARGE) for n, rule in enumerate(rules)])
    for _ in range(3):
        trace = made.settle(request({"a": Reading(True), "b": FALSE}))
        assert isinstance(trace, Trace)
        assert trace.decision.name == "d0"
        assert made.settle(request({"a": FALSE, "b": Reading(None)})).decision.name is None
    assert trace.readings.keys() == {"a", "b", "r0"}  # taken before anything else could be
    detailed = made.settle(request({"a": FALSE, "b": FALSE}), detail=True)
    assert isinstance(detailed, Trace)
    assert detailed.readings.keys() == {"a", *names}
