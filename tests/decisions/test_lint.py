"""The linter against brute force over all readings, and its words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from decisions.engine import Clause
from decisions.lint import Finding, lint
from decisions.named import RuleParams
from decisions.rule import ALWAYS, All, AnyOf, AtLeastOf, Leaf, NamedRule, Not, Rule, parts
from decisions.selectors.weighted import Weighted
from signals.kinds.score import ScoreParams
from signals.reading import Reading
from signals.signal import Params
from stepwise.spec import StepwiseSpec
from tests.decisions.fakes import LARGE, MODELS, SMALL, clause, pick
from tests.decisions.test_properties import clause_lists, named_rules, reference, rules_of, untied
from tests.decisions.test_rule import entangled
from tests.volume import few_and_many

A, B, C = Leaf("a"), Leaf("b"), Leaf("c")


class Plain(Params):
    """Parameters of a signal, perhaps one that combines others."""

    of: tuple[str, ...] = ()

    def inputs(self) -> tuple[str, ...]:
        return self.of


class Measure(Params):
    """Parameters of a signal that is but a bound on a quantity."""

    of: str
    at_least: float | None = None
    at_most: float | None = None

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, self.at_most


def signals(names: Iterable[str]) -> dict[str, tuple[str, Params]]:
    return {name: ("plain", Plain()) for name in names}


def found(clauses: Sequence[Clause], best: bool = False) -> list[Finding]:
    """Findings about decisions."""
    known = signals(["a", "b", "c", "d", "t", "slow"])
    for part in (part for one in clauses for part in parts(one.when)):
        if isinstance(part, NamedRule):
            known[part.name] = ("rule", RuleParams(rule=part.of))
    every = lint(clauses, known, MODELS, default="small", best=best)
    return [finding for finding in every if finding.path[0] == "decisions"]


def codes(clauses: Sequence[Clause], best: bool = False) -> list[tuple[int | str, str, bool]]:
    return [(finding.path[1], finding.code, finding.warning) for finding in found(clauses, best)]


# Brute force

SCORES = (None, 0.2, 0.3, 0.4, 0.5, 0.6, 0.9, 0.95)
READINGS = [Reading(None), *(Reading(m, s, x) for m, s, x in product((True, False), SCORES, (None, "x")))]

bounds = st.none() | st.sampled_from((0.3, 0.5, 0.9))
leaf = st.sampled_from((A, B)) | st.builds(
    Leaf, st.sampled_from("ab"), bounds, bounds, st.sampled_from((None, None, "x"))
)
rules: st.SearchStrategy[Rule] = st.recursive(
    leaf,
    lambda below: st.one_of(
        st.builds(Not, below),
        st.builds(All, st.lists(below, min_size=1, max_size=3).map(tuple)),
        st.builds(AnyOf, st.lists(below, min_size=1, max_size=3).map(tuple)),
        st.lists(below, min_size=3, max_size=4).map(lambda of: AtLeastOf(2, tuple(of))),
    ),
    max_leaves=5,
)


def reachable(clauses: Sequence[Clause], best: bool) -> set[str | None]:
    reached: set[str | None] = set()
    for a, b in product(READINGS, repeat=2):
        for named in (False, True):
            reached.add(reference(clauses, {"a": a, "b": b}, best, named)[0])
    return reached


@pytest.mark.no_cover
@few_and_many(15, 60)
def test_what_is_reported_unreachable_is_exactly_what_no_reading_reaches(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(clause_lists(rules, most=4))
    def holds(clauses: list[Clause]) -> None:
        clauses = untied(clauses)
        reached = reachable(clauses, False)
        reported = {index for index, _, warning in codes(clauses) if not warning}
        assert reported == {index for index, c in enumerate(clauses) if c.name not in reached}

    holds()


@pytest.mark.no_cover
@few_and_many(10, 40)
def test_nothing_is_reported_that_can_be_reached_where_confidence_counts(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(clause_lists(rules, most=4), st.booleans())
    def holds(clauses: list[Clause], best: bool) -> None:
        reached = reachable(clauses, best)
        reported = {index for index, _, warning in codes(clauses, best=best) if not warning}
        assert reported <= {index for index, c in enumerate(clauses) if c.name not in reached}

    holds()


def written_out(rule: Rule) -> Rule:
    """`rule` without names."""
    match rule:
        case Leaf():
            return rule
        case NamedRule(of=child):
            return written_out(child)
        case Not(of=child):
            return Not(written_out(child))
    return replace(rule, of=tuple(map(written_out, rule.of)))


@st.composite
def lists_with_names(draw: st.DrawFn) -> list[Clause]:
    named = draw(named_rules(leaf, most=2))
    return draw(clause_lists(rules_of(leaf | st.sampled_from(named) if named else leaf), most=4))


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(10, 100)
def test_rules_with_names_have_the_problems_of_rules_that_are_written_out(examples: int) -> None:
    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(lists_with_names(), st.booleans())
    def holds(clauses: list[Clause], best: bool) -> None:
        assert codes(clauses, best) == codes([replace(c, when=written_out(c.when)) for c in clauses], best)

    holds()


def test_rules_that_build_on_each_other_are_no_larger_than_they_are_long() -> None:
    rule = entangled(60, Leaf("slow"))
    never = All((rule, Not(Leaf("slow")), Leaf("t")))
    assert codes([clause("one", rule), clause("two", All((rule, A))), clause("three", never)]) == [
        (1, "L302", False),
        (2, "L301", False),
    ]


def test_a_conflict_in_a_named_rule_says_where_it_is() -> None:
    inner = NamedRule("inner", All((A, Not(A), B)))
    outer = NamedRule("outer", All((inner, C)))
    assert only([clause("x", outer)]).message == (
        "decision 'x' can never match: in `outer`: in `inner`: `a` and `{not: a}` cannot hold together"
    )
    assert only([clause("x", All((NamedRule("some", AnyOf((A, B))), Not(A), Not(B))))]).message == (
        "decision 'x' can never match: `some`, `{not: a}` and `{not: b}` cannot hold together"
    )
    assert (
        "`inner` cannot hold; and `c` and `{not: c}`" in only([clause("x", AnyOf((inner, All((C, Not(C))))))]).message
    )


# Words


def only(clauses: Sequence[Clause]) -> Finding:
    (finding,) = found(clauses)
    return finding


def test_a_contradiction_shows_its_smallest_conflict() -> None:
    finding = only([clause("x", All((C, AnyOf((A, B)), Not(A), Leaf("d"), Not(B))))])
    assert (finding.path, finding.code, finding.warning) == (("decisions", 0, "when"), "L301", False)
    assert finding.message == (
        "decision 'x' can never match: `{any: [a, b]}`, `{not: a}` and `{not: b}` cannot hold together"
    )


def test_a_contradiction_inside_every_branch_is_shown_for_each() -> None:
    finding = only([clause("x", AnyOf((All((A, Not(A))), All((B, C, Not(B))))))])
    assert "`a` and `{not: a}` cannot hold together; and `b` and `{not: b}` cannot hold together" in finding.message


def test_bounds_of_one_score_conflict() -> None:
    finding = only([clause("x", All((Leaf("a", at_least=0.9), All((B, Leaf("a", at_most=0.5))))))])
    assert "`{signal: a, at_least: 0.9}` and `{signal: a, at_most: 0.5}` cannot hold together" in finding.message


def test_a_signal_has_one_label() -> None:
    assert only([clause("x", All((Leaf("a", label="x"), Leaf("a", label="y"))))]).code == "L301"
    assert found([clause("x", AnyOf((Leaf("a", label="x"), Leaf("a", label="y"))))]) == []


def test_a_leaf_that_cannot_hold_is_its_own_conflict() -> None:
    message = only([clause("x", All((B, Leaf("a", at_least=0.9, at_most=0.1))))]).message
    assert message.endswith("`{signal: a, at_least: 0.9, at_most: 0.1}` cannot hold")


def test_a_contradiction_that_matches_on_unknown_is_a_warning() -> None:
    finding = only([clause("x", All((A, Not(A))), on_unknown="match")])
    assert (finding.code, finding.warning) == ("L301", True)
    assert "only when 'a' cannot be read" in finding.message


def test_a_shadowed_decision_names_who_takes_its_requests() -> None:
    finding = only([clause("one", A), clause("two", All((A, B)))])
    assert (finding.path, finding.code) == (("decisions", 1), "L302")
    assert "every request that matches it is one that 'one' takes first" in finding.message
    together = only(
        [
            clause("one", All((A, B))),
            clause("no", C),
            clause("two", All((A, Not(B)))),
            clause("x", All((A, AnyOf((B, Not(B)))))),
        ]
    )
    assert "'one' and 'two' together take first" in together.message


def test_a_higher_bound_is_shadowed_by_a_lower_one() -> None:
    assert codes([clause("one", Leaf("a", at_least=0.7)), clause("two", Leaf("a", at_least=0.9))]) == [
        (1, "L302", False)
    ]
    assert found([clause("one", Leaf("a", at_least=0.9)), clause("two", Leaf("a", at_least=0.7))]) == []


def test_after_a_catch_all_nothing_is_reached() -> None:
    finding = only([clause("all", ALWAYS), clause("two", A)])
    assert "'all' takes every request before it" in finding.message


def test_a_guard_behind_a_catch_all_still_guards_requests_that_name_a_model() -> None:
    for late in (clause("guard", A, None), clause("forced", A, override=True)):
        finding = only([clause("all", ALWAYS), late])
        assert (finding.code, finding.warning) == ("L302", True)
        assert "only take requests that name a model" in finding.message
    assert codes([clause("all", ALWAYS, override=True), clause("guard", A, None)]) == [(1, "L302", False)]


def test_equal_rules_are_duplicates_however_they_are_written() -> None:
    finding = only([clause("one", Not(AnyOf((A, B)))), clause("two", All((Not(B), Not(A))))])
    assert (finding.code, finding.warning) == ("L303", False)
    assert finding.message == "decision 'two' has the same rule as 'one', which always takes first"


def test_a_duplicate_that_waits_for_unknown_is_a_warning() -> None:
    assert codes([clause("one", A), clause("two", A, on_unknown="match")]) == [(1, "L303", True)]
    assert codes([clause("one", A, on_unknown="match"), clause("two", A)]) == [(1, "L303", False)]


def test_on_unknown_decides_who_is_in_the_way() -> None:
    # `not a` is Unknown where `a` is, so the pair leaves those requests over.
    assert found([clause("one", A), clause("two", Not(A)), clause("rest", ALWAYS)]) == []
    covering = [clause("one", A), clause("two", Not(A), on_unknown="match"), clause("rest", ALWAYS)]
    assert codes(covering) == [(2, "L302", False)]
    failing = [clause("one", A, on_unknown="fail"), clause("two", Not(A)), clause("rest", ALWAYS)]
    assert codes(failing) == [(2, "L302", False)]


def test_a_rule_that_is_always_true() -> None:
    finding = only([clause("x", AnyOf((A, Not(A))))])
    assert (finding.code, finding.warning) == ("L306", True)
    assert "always true unless 'a' cannot be read" in finding.message


@pytest.mark.parametrize(
    ("clauses", "expected"),
    [
        ([clause("one", A), clause("two", All((A, B)))], []),
        ([clause("one", A), clause("two", A)], [(1, "L303", False)]),
        ([clause("all", ALWAYS), clause("two", A)], [(1, "L302", False)]),
        ([clause("route", ALWAYS), clause("guard", A, None)], []),
        ([clause("route", A), clause("guard", A, None)], [(0, "L303", False)]),
        ([clause("route", A), clause("fails", A, on_unknown="fail")], [(1, "L303", False)]),
    ],
)
def test_best_compares_routes_and_puts_guards_first(clauses: list[Clause], expected: list[Any]) -> None:
    assert codes(clauses, best=True) == expected


def test_unused_signals_and_models_are_warnings() -> None:
    known = {name: ("plain", Plain(of=of)) for name, of in (("a", ()), ("b", ()), ("sum", ("b",)), ("spare", ("a",)))}
    models = {**MODELS, "extra": SMALL, "other": LARGE}
    clauses = [clause("x", Leaf("sum"), pick(Weighted, [SMALL])), clause("g", Leaf("sum", at_least=0.1), None)]
    findings = lint(clauses, known, models, default="other")
    assert [(f.path, f.code, f.warning, f.at_key) for f in findings] == [
        (("signals", "a"), "L304", True, True),
        (("signals", "spare"), "L304", True, True),
        (("models", "large"), "L305", True, True),
        (("models", "extra"), "L305", True, True),
    ]


def test_models_of_stepwise_decisions_are_used() -> None:
    step = Clause("s", A, "stepwise", LARGE, writer=StepwiseSpec(small="small", large="large"))
    assert lint([step], signals("a"), MODELS, default="large") == []


def test_counts_are_encoded_exactly() -> None:
    of = tuple(Leaf(name) for name in "abcd")
    assert found([clause("x", All((AtLeastOf(2, of), Not(AnyOf(of[:2])))))]) == []
    assert only([clause("x", All((AtLeastOf(3, of), Not(AnyOf(of[:2])))))]).code == "L301"
    assert codes([clause("x", AtLeastOf(2, of)), clause("y", AtLeastOf(3, of))]) == [(1, "L302", False)]


def test_hundreds_of_decisions_are_no_trouble() -> None:
    clauses = [clause(f"d{n}", All((Leaf(f"s{n}"), Not(Leaf(f"s{n + 1}"))))) for n in range(200)]
    known = signals(f"s{n}" for n in range(201))
    assert [f for f in lint(clauses, known, MODELS, default="large") if f.code != "L305"] == []


def test_signals_that_bound_one_quantity_imply_each_other() -> None:
    known: dict[str, tuple[str, Params]] = {
        "long": ("tokens", Measure(of="x", at_least=8000)),
        "huge": ("tokens", Measure(of="x", at_least=100_000)),
        "short": ("tokens", Measure(of="x", at_most=500)),
        "other": ("tokens", Measure(of="y", at_least=100_000)),
    }
    long, huge, short, other = map(Leaf, known)

    def codes_of(*rules: Rule) -> list[tuple[str | int, str]]:
        clauses = [clause(f"d{n}", rule) for n, rule in enumerate(rules)]
        findings = lint(clauses, known, MODELS, default="large")
        return [(f.path[1], f.code) for f in findings if f.path[0] == "decisions"]

    assert codes_of(long, huge) == [(1, "L302")]
    assert codes_of(huge, long) == []
    assert codes_of(long, other) == []
    assert codes_of(All((huge, short))) == [(0, "L301")]
    assert codes_of(All((other, short))) == []
    assert codes_of(long, Leaf("long", at_least=9000)) == [(1, "L302")]
    assert codes_of(long, Leaf("short", at_least=8000)) == [(1, "L303")]
    assert codes_of(AnyOf((Not(short), Not(huge)))) == [(0, "L306")]
    # The other bounds may be Unknown together only.
    assert codes_of(long, Not(long), All((huge, short, Leaf("long", label="x")))) == [(2, "L301")]


def test_bands_hang_together_with_the_sum() -> None:
    bands: dict[str, Any] = {"easy": {"below": 0.3}, "mid": {"below": 0.7}, "hard": {}}
    known: dict[str, tuple[str, Params]] = {
        "a": ("plain", Plain()),
        "bounded": ("score", ScoreParams(sum={"a": 1.0}, at_least=0.8, bands=bands)),
        "effort": ("score", ScoreParams(sum={"a": 0.5}, bands=bands)),
    }

    def codes_of(*rules: Rule) -> list[tuple[str | int, str]]:
        clauses = [clause(f"d{n}", rule) for n, rule in enumerate(rules)]
        findings = lint(clauses, known, MODELS, default="large")
        return [(f.path[1], f.code) for f in findings if f.path[0] == "decisions"]

    for name in ("effort", "bounded"):
        easy, mid, hard = (Leaf(name, label=band) for band in bands)
        assert codes_of(easy, mid, hard) == []
        assert codes_of(All((easy, mid))) == [(0, "L301")]
        assert codes_of(All((mid, Leaf(name, at_least=0.7)))) == [(0, "L301")]
        assert codes_of(All((mid, Leaf(name, at_least=0.5)))) == []
        assert codes_of(Leaf(name, at_least=0.5), hard) == [(1, "L302")]
        assert codes_of(AnyOf((easy, mid, hard))) == [(0, "L306")]
        assert codes_of(Leaf(name, label="none")) == [(0, "L301")]
        assert codes_of(Leaf(name, at_least=0.7), hard) == [(1, "L303")]
    assert codes_of(All((Leaf("bounded"), Leaf("bounded", label="mid")))) == [(0, "L301")]


def test_one_score_is_there_for_all_its_bounds_or_for_none() -> None:
    low, high = Leaf("a", at_least=0.3), Leaf("a", at_least=0.9)
    split = AnyOf((All((low, high)), All((low, Not(high)))))
    assert codes([clause("one", split), clause("two", low)]) == [(1, "L303", False)]
