"""Kleene's logic, score tests, confidence, and what a rule still waits for."""

from __future__ import annotations

import asyncio

import pytest

from decisions.named import RuleSignal
from decisions.rule import (
    ALWAYS,
    PENDING,
    All,
    AnyOf,
    AtLeastOf,
    Leaf,
    NamedRule,
    Not,
    Rule,
    compiled,
    cost,
    evaluate,
    leaves,
    take,
    text,
    unread,
)
from signals.facts import Facts
from signals.reading import FALSE, TRUE, Reading, unknown
from signals.signal import Cost, Shared, Signal
from tests.decisions.fakes import Fake, Sum, clause, engine, request

READINGS = {"t": TRUE, "f": FALSE, "u": unknown("down"), "s": Reading(True, 0.8, "math")}
T, F, U = Leaf("t"), Leaf("f"), Leaf("u")


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Not(T), False),
        (Not(F), True),
        (Not(U), None),
        (All((T, U)), None),
        (All((F, U)), False),
        (All((T, T)), True),
        (AnyOf((T, U)), True),
        (AnyOf((F, U)), None),
        (AnyOf((F, F)), False),
        (AtLeastOf(2, (T, U, F)), None),
        (AtLeastOf(2, (T, T, U)), True),
        (AtLeastOf(2, (T, F, F)), False),
        (ALWAYS, True),
        (Leaf("missing"), PENDING),
        (All((F, Leaf("missing"))), False),
        (All((T, Leaf("missing"))), PENDING),
        (Not(Leaf("missing")), PENDING),
    ],
)
def test_rules_follow_kleenes_tables(rule: Rule, expected: object) -> None:
    assert evaluate(rule, READINGS) is expected


@pytest.mark.parametrize(
    ("leaf", "expected"),
    [
        (Leaf("s", at_least=0.8), True),
        (Leaf("s", at_least=0.81), False),
        (Leaf("s", at_most=0.8), True),
        (Leaf("s", at_most=0.79), False),
        (Leaf("s", label="math"), True),
        (Leaf("s", label="law"), False),
        (Leaf("s", at_least=0.5, label="law"), False),
        (Leaf("s", at_least=0.5, label="math"), True),
        (Leaf("u", at_least=0.0), None),
    ],
)
def test_a_leaf_may_test_score_and_label(leaf: Leaf, expected: object) -> None:
    assert evaluate(leaf, READINGS) is expected


def test_a_bound_on_a_score_that_is_not_there_is_unknown() -> None:
    assert evaluate(Leaf("x", at_least=0.1), {"x": Reading(True)}) is None


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        (Leaf("a"), 0.9),
        (Not(Leaf("a")), 0.1),
        (All((Leaf("a"), Leaf("b"))), 0.6),
        (AnyOf((Leaf("a"), Leaf("b"))), 0.9),
        (AtLeastOf(2, (Leaf("a"), Leaf("b"), Leaf("c"))), 0.6),
        (AnyOf((Leaf("b"), Leaf("c"))), 0.6),
        (All((Leaf("a"), Leaf("c"))), 0.2),
        (AtLeastOf(3, (Leaf("a"), Leaf("c"), Leaf("c"))), 0.2),
        (All((Leaf("a"), Leaf("c"), Leaf("d"))), 0.1),
        (AnyOf((Leaf("d"), Leaf("c"))), 0.2),
        (Leaf("count"), 1.0),
        (Not(Leaf("none")), 1.0),
        (ALWAYS, 1.0),
    ],
)
def test_confidence_comes_from_the_children_that_decided(rule: Rule, expected: float) -> None:
    readings = {
        "a": Reading(True, 0.9),
        "b": Reading(True, 0.6),
        "c": Reading(False, 0.2),
        "d": Reading(False, 0.1),
        "count": Reading(True, 42.0),
        "none": Reading(False),
    }
    facts = Facts(request())
    facts.readings.update(readings)
    test = compiled(rule, {name: Fake(name) for name in readings})
    assert test.confidence(facts) == pytest.approx(expected)


def test_a_rule_is_written_as_the_policy_writes_it() -> None:
    rule = All(
        (T, AnyOf((F, Not(U))), AtLeastOf(2, (T, Leaf("s", at_least=0.7, label="math"), Leaf("s", at_most=0.9))))
    )
    assert text(rule) == (
        "{all: [t, {any: [f, {not: u}]}, {at_least: {count: 2, of: [t, {signal: s, at_least: 0.7, is: math}, "
        "{signal: s, at_most: 0.9}]}}]}"
    )
    assert [leaf.signal for leaf in leaves(rule)] == ["t", "f", "u", "t", "s", "s"]


def test_cheap_children_run_first() -> None:
    signals = {"slow": Fake("slow", Cost.NEURAL), "fast": Fake("fast", Cost.FAST), "now": Fake("now")}
    rule = AnyOf((Leaf("slow"), Leaf("fast"), Leaf("now")))
    facts = Facts(request({"now": TRUE, "fast": TRUE}))
    assert compiled(rule, signals).run(facts) is True
    assert list(facts.readings) == ["now"]
    assert cost(rule, signals) == Cost.NEURAL
    assert cost(ALWAYS, signals) == Cost.INSTANT


@pytest.mark.parametrize(
    ("rule", "for_true", "for_false"),
    [
        (Leaf("a"), {"a"}, {"a"}),
        (Not(Leaf("a")), {"a"}, {"a"}),
        (All((Leaf("u"), Leaf("a"))), set(), {"a"}),
        (AnyOf((Leaf("u"), Leaf("a"))), {"a"}, set()),
        (Not(All((Leaf("u"), Leaf("a")))), {"a"}, set()),
        (AtLeastOf(2, (Leaf("t"), Leaf("a"), Leaf("b"))), {"a", "b"}, {"a", "b"}),
        (AnyOf((All((Leaf("u"), Leaf("a"))), Leaf("b"))), {"b"}, {"a", "b"}),
        (Leaf("t"), set(), set()),
    ],
)
def test_a_rule_waits_only_for_what_can_bring_it_to_the_goal(
    rule: Rule, for_true: set[str], for_false: set[str]
) -> None:
    signals = {name: Fake(name, Cost.NEURAL) for name in "ab"} | {name: Fake(name) for name in "tu"}
    test = compiled(rule, signals)
    facts = Facts(request({"t": TRUE, "u": unknown("down")}))
    assert test.waiting(facts, True) == for_true
    assert test.waiting(facts, False) == for_false


def test_a_combined_signal_waits_for_what_it_combines() -> None:
    slow, now = Fake("slow", Cost.NEURAL), Fake("now")
    signals = {"slow": slow, "now": now, "sum": Sum("sum", [slow, now])}
    test = compiled(Leaf("sum"), signals)
    facts = Facts(request({"now": TRUE}))
    assert test.run(facts) is PENDING
    assert test.waiting(facts, True) == {"slow"}


@pytest.mark.parametrize("rule", [All((Leaf("a"), Leaf("b"))), AnyOf((Leaf("a"), Leaf("b")))])
def test_an_unknown_part_does_not_hide_a_pending_one(rule: Rule) -> None:
    signals = {"a": Fake("a", Cost.NEURAL), "b": Fake("b", Cost.REMOTE)}
    facts = Facts(request())
    facts.readings["b"] = unknown("down")
    assert compiled(rule, signals).run(facts) is PENDING


# Named rules


def test_a_named_rule_is_evaluated_once_and_remembered() -> None:
    fakes = {"a": Fake("a"), "b": Fake("b")}
    signals: dict[str, Signal] = dict(fakes)
    rule = NamedRule("r", AnyOf((Leaf("a"), Leaf("b"))))
    signals["r"] = RuleSignal("r", rule.of, signals, Shared())
    test = compiled(All((rule, Not(Not(rule)))), signals)
    facts = Facts(request({"a": FALSE, "b": TRUE}))
    assert test.run(facts) is True
    assert facts.request.fields["read"] == ["a", "b"]
    assert facts.readings["r"] is TRUE
    assert facts.telling["r"] is TRUE
    facts = Facts(request())
    facts.stub({"r": unknown("stubbed")})
    assert test.run(facts) is None
    assert "read" not in facts.request.fields


def test_a_named_rule_that_nothing_can_settle_any_more_is_unknown_for_whoever_combines_it() -> None:
    signals: dict[str, Signal] = {"u": Fake("u"), "slow": Fake("slow", Cost.REMOTE)}
    # Neither value is possible, whatever the slow signal says.
    rule = NamedRule("r", All((AnyOf((Leaf("u"), Leaf("slow"))), Leaf("u"))))
    signals["r"] = RuleSignal("r", rule.of, signals, Shared())
    facts = Facts(request({"u": unknown("down")}))
    assert take(signals["r"], signals, facts) == unknown("input_unknown")
    assert unread("r", signals, facts) == set()


def entangled(depth: int, first: Rule) -> NamedRule:
    """A rule of so many names that 2 to the power of `depth` leaves would stand in it, written out."""
    rule = NamedRule("r0", first)
    for index in range(1, depth):
        rule = NamedRule(f"r{index}", AnyOf((All((rule, Leaf("t"))), All((rule, Not(Leaf("t")))), Not(Not(rule)))))
    return rule


@pytest.mark.parametrize("first", [Leaf("slow"), Leaf("t")])
def test_rules_that_build_on_each_other_cost_no_more_than_they_are_long(first: Leaf) -> None:
    rule = entangled(60, first)
    assert [leaf.signal for leaf in leaves(rule)].count("t") == (59 * 2 if first.signal == "slow" else 59 * 2 + 1)
    made = engine([Fake("t"), Fake("slow", Cost.REMOTE)], [clause("d", rule, on_unknown="fail")], best=True)
    trace = asyncio.run(made.decide(request({"t": TRUE, "slow": TRUE})))
    assert trace.decision.name == "d"
    assert trace.readings["r59"] is TRUE
    assert list(trace.readings).index("r0") < list(trace.readings).index("r59")
    readings = {"t": TRUE} if first.signal == "slow" else {}
    assert evaluate(rule, readings) is PENDING
    assert evaluate(rule, {"t": TRUE, "slow": FALSE}) is (first.signal == "t")
    assert made.clauses[0].when == NamedRule("r59", ALWAYS)  # equal by name
    assert text(rule) == "r59"
