"""A trace as an object and as a drawing."""

from __future__ import annotations

from typing import Any

import pytest

from config.build import build
from config.load import parse
from decisions import describe
from decisions.decision import Decision, Trace
from decisions.explain import as_object, outcome, tree
from decisions.rule import ALWAYS, All, AnyOf, AtLeastOf, Leaf, NamedRule, Not
from decisions.selectors.weighted import Weighted
from signals.reading import FALSE, TRUE, Reading, unknown
from signals.signal import Cost
from stepwise.spec import StepwiseSpec
from tests.decisions.fakes import LARGE, SMALL, Fake, clause, engine, pick, request
from tests.linear import spent

A, B, C = Leaf("a"), Leaf("b"), Leaf("c")


STEPS = StepwiseSpec(small="small", large="large")


def run(made: Any, asked: Any, **more: Any) -> Trace:
    trace = made.settle(asked, **more)
    assert isinstance(trace, Trace)
    return trace


def test_the_object_has_every_signal_and_the_rules_in_order() -> None:
    made = engine([Fake("a"), Fake("b"), Fake("c")], [clause("one", A, SMALL), clause("two", B), clause("x", C)])
    trace = run(made, request({"a": unknown("down"), "b": Reading(True, 0.75, "math")}), detail=True)
    shown = as_object(made, trace)
    assert shown.pop("us") > 0
    times = {name: signal.pop("us") for name, signal in shown["signals"].items()}
    assert times["a"] > 0
    assert times["c"] == 0.0
    assert shown == {
        "decision": "two",
        "model": "large",
        "action": "route",
        "status": None,
        "signals": {
            "a": {"matched": None, "score": None, "label": None, "evaluated": True, "error": "down"},
            "b": {"matched": True, "score": 0.75, "label": "math", "evaluated": True, "error": None},
            "c": {"matched": None, "score": None, "label": None, "evaluated": False, "error": None},
        },
        "rules": [{"decision": "one", "result": None}, {"decision": "two", "result": True}],
        "policy": "sha256:0",
    }


def test_a_named_rule_is_a_node_of_its_own_and_drawn_once() -> None:
    rule = NamedRule("worth", AnyOf((A, B)))
    made = engine([Fake("a"), Fake("b"), Fake("c")], [clause("one", All((rule, C))), clause("two", Not(Not(rule)))])
    trace = run(made, request({"a": TRUE, "b": TRUE, "c": FALSE}))
    assert tree(made, trace, named=False).splitlines() == [
        "false    one  → route large",
        "  └─ all: false",
        "     ├─ worth: true",
        "     │  └─ any: true",
        "     │     ├─ a: true, score 1",
        "     │     └─ b: not evaluated, `any` is true without it",
        "     └─ c: false, score 0",
        "true     two  → route large",
        "  └─ not: true",
        "     └─ not: false",
        "        └─ worth: true (shown above)",
    ]
    shown = as_object(made, trace)["signals"]
    assert shown["worth"] == {"matched": True, "score": 1.0, "label": None, "evaluated": True, "us": 0.0, "error": None}
    assert shown["b"]["evaluated"] is False


def test_the_tree_shows_what_each_leaf_read_and_what_was_not_looked_at() -> None:
    rule = All((AnyOf((A, Leaf("b", at_least=0.9))), Not(C), AtLeastOf(1, (C, A))))
    signals = [Fake("a"), Fake("b"), Fake("c")]
    clauses = [clause("unsure", C, None, on_unknown="skip"), clause("hit", rule), clause("late", ALWAYS)]
    made = engine(signals, clauses)
    trace = run(made, request({"a": FALSE, "b": Reading(True, 0.5, "x"), "c": unknown("down")}))
    assert tree(made, trace, named=False).splitlines() == [
        "unknown  unsure  → respond 403  (on_unknown: skip)",
        "  └─ c: unknown, error down",
        "false    hit  → route large",
        "  └─ all: false",
        "     ├─ any: false",
        "     │  ├─ a: false, score 0",
        "     │  └─ {signal: b, at_least: 0.9}: false (the signal: true, score 0.5, label x)",
        "     ├─ not: unknown",
        "     │  └─ c: unknown, error down",
        "     └─ at_least 1: unknown",
        "        ├─ c: unknown, error down",
        "        └─ a: false, score 0",
        "true     late  → route large",
    ]


def test_the_tree_says_why_something_was_not_evaluated() -> None:
    clauses = [
        clause("one", All((A, AnyOf((B, C)))), SMALL),
        clause("two", Not(A), pick(Weighted, [SMALL, LARGE])),
        clause("three", B),
    ]
    made = engine([Fake("a"), Fake("b", Cost.NEURAL), Fake("c", Cost.NEURAL)], clauses)
    trace = run(made, request({"a": FALSE}), detail=True)
    trace = trace._replace(timings={"a": 2.0})
    assert tree(made, trace, named=False).splitlines() == [
        "false    one  → route small",
        "  └─ all: false",
        "     ├─ a: false, score 0, 2.0 µs",
        "     └─ any: not evaluated",
        "        ├─ b: not evaluated, `all` is false without it",
        "        └─ c: not evaluated, `all` is false without it",
        "true     two  → route weighted of small, large",
        "  └─ not: true",
        "     └─ a: false, score 0, 2.0 µs",
        "–        three  → route large  (not evaluated: 'two' decided)",
    ]


def test_the_tree_of_a_request_that_names_its_model() -> None:
    made = engine([Fake("a")], [clause("route", A), clause("guard", A, None), clause("forced", A, override=True)])
    trace = run(made, request({"a": TRUE}, model="large"))
    assert tree(made, trace, named=True).splitlines() == [
        "–        route  → route large  (not evaluated: the request names its model)",
        "true     guard  → respond 403",
        "  └─ a: true, score 1",
        "–        forced  → route large  (not evaluated: 'guard' decided)",
    ]


def test_the_tree_after_a_failure() -> None:
    made = engine([Fake("a")], [clause("one", A, on_unknown="fail"), clause("two", A)])
    drawn = tree(made, run(made, request({"a": unknown("down")})), named=False)
    assert "unknown  one  → route large  (on_unknown: fail)" in drawn
    assert "two  → route large  (not evaluated: the decision above failed)" in drawn


@pytest.mark.parametrize(
    ("decision", "phrase"),
    [
        (Decision("a", "route", LARGE), "route to large (org/large)"),
        (Decision("a", "respond", None, 403, "no"), "respond 403: no"),
        (
            Decision("a", "stepwise", LARGE, writer=STEPS),
            "stepwise, or to large (org/large) where steps cannot be taken",
        ),
        (Decision(None, "default", SMALL), "default, to small (org/small): no decision matched"),
        (
            Decision(None, "default", SMALL, fallback="error"),
            "default, to small (org/small), because of a failure: error",
        ),
        (Decision(None, "route", LARGE), "route to large (org/large): the request names its model"),
        (Decision(None, "route", None), "passed on as it came"),
    ],
)
def test_an_outcome_in_one_phrase(decision: Decision, phrase: str) -> None:
    assert outcome(decision) == phrase


def test_a_stepwise_clause_says_what_it_does() -> None:
    from decisions.engine import Clause

    step = Clause("s", ALWAYS, "stepwise", LARGE)
    made = engine([], [step])
    assert tree(made, run(made, request()), named=False) == "true     s  → stepwise large"


def test_a_policy_is_described_in_time_linear_in_its_rules() -> None:
    """The admin port does so in the event loop."""

    def made(count: int) -> Any:
        rules = "".join(f"  r{at}: {{any: [code, {{not: code}}, {{all: [code, code]}}]}}\n" for at in range(count))
        names = ", ".join(f"r{at}" for at in range(count))
        head = "version: 1\nmodels: {small: {}, large: {}}\ndefault: small\nsignals: {code: {tokens: {at_least: 9}}}\n"
        return build(parse(f"{head}rules:\n{rules}decisions: [{{name: d, when: {{any: [{names}]}}, route: large}}]\n"))

    assert describe.as_object(made(2))["signals"][1]["used_by"] == ["d"]
    assert spent(describe.as_object, made(400)) < 9 * spent(describe.as_object, made(100))
