"""The engine: who is asked, in which order, and what failures become."""

from __future__ import annotations

import asyncio
import logging
import time

import pytest

from decisions.decision import Changes, Trace
from decisions.engine import Evaluation
from decisions.model import UnknownModel
from decisions.rule import ALWAYS, All, AnyOf, Leaf, NamedRule, Not, Rule
from decisions.selectors.weighted import Weighted
from signals.reading import FALSE, TRUE, Reading, Unavailable, unknown
from signals.signal import Cost
from tests.decisions.fakes import LARGE, SMALL, Fake, clause, engine, pick, request

A, B = Leaf("a"), Leaf("b")


def settled(made, asked, **more) -> Trace:
    trace = made.settle(asked, **more)
    assert isinstance(trace, Trace)
    return trace


def test_the_first_match_wins() -> None:
    made = engine([Fake("a"), Fake("b")], [clause("one", A, SMALL), clause("two", B), clause("three", ALWAYS)])
    assert settled(made, request({"a": TRUE, "b": TRUE})).decision.name == "one"
    assert settled(made, request({"a": FALSE, "b": TRUE})).decision.name == "two"
    trace = settled(made, request({"a": FALSE, "b": FALSE}))
    assert trace.decision.name == "three"
    assert trace.results == {"one": False, "two": False, "three": True}


def test_nothing_matched_takes_the_default() -> None:
    made = engine([Fake("a")], [clause("one", A)])
    decision = settled(made, request({"a": FALSE})).decision
    assert (decision.name, decision.action, decision.model, decision.fallback) == (None, "default", SMALL, None)


def test_no_decisions_at_all_is_legal() -> None:
    assert settled(engine([], []), request()).decision.action == "default"


@pytest.mark.parametrize(
    ("on_unknown", "name", "action", "fallback"),
    [("skip", "next", "route", None), ("match", "one", "route", None), ("fail", None, "default", "on_unknown")],
)
def test_on_unknown(on_unknown: str, name: str | None, action: str, fallback: str | None) -> None:
    made = engine([Fake("a")], [clause("one", A, on_unknown=on_unknown), clause("next", ALWAYS)])
    decision = settled(made, request({"a": unknown("down")})).decision
    assert (decision.name, decision.action, decision.fallback) == (name, action, fallback)


def test_a_detector_that_raises_is_unknown_and_logged_without_its_text(caplog: pytest.LogCaptureFixture) -> None:
    made = engine([Fake("a")], [clause("guard", A, None, on_unknown="match")])
    with caplog.at_level(logging.ERROR):
        trace = settled(made, request({"a": RuntimeError("the secret prompt")}))
    assert trace.decision.status == 403
    assert trace.readings["a"].error == "error"
    assert "RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_named_model_is_kept_but_guards_and_overrides_apply() -> None:
    clauses = [clause("guard", A, None), clause("plain", ALWAYS), clause("forced", B, SMALL, override=True)]
    made = engine([Fake("a"), Fake("b")], clauses)
    kept = settled(made, request({"a": FALSE, "b": FALSE}, model="large")).decision
    assert (kept.name, kept.action, kept.model) == (None, "route", LARGE)
    assert settled(made, request({"a": TRUE, "b": FALSE}, model="org/large")).decision.name == "guard"
    assert settled(made, request({"a": FALSE, "b": TRUE}, model="large")).decision.name == "forced"
    assert made.catalogue.asks(request(model="auto"))
    assert made.catalogue.asks(request(model=None))
    assert not made.catalogue.asks(request(model="large"))


def test_unknown_models_are_refused_or_passed() -> None:
    with pytest.raises(UnknownModel) as caught:
        engine([], []).settle(request(model="gpt-nope"))
    assert caught.value.model == "gpt-nope"
    passed = settled(engine([], [], pass_unknown=True), request(model="gpt-nope")).decision
    assert (passed.name, passed.action, passed.model) == (None, "route", None)


def test_auto_names_are_the_policys() -> None:
    made = engine([], [clause("all", ALWAYS)], auto=("router",))
    assert settled(made, request(model="router")).decision.name == "all"
    with pytest.raises(UnknownModel):
        made.settle(request(model="auto"))


async def test_a_slow_signal_is_asked_only_when_needed() -> None:
    made = engine([Fake("a"), Fake("b", Cost.NEURAL)], [clause("one", AnyOf((B, A))), clause("two", B, SMALL)])
    asked = request({"a": TRUE, "b": TRUE})
    assert settled(made, asked).decision.name == "one"
    assert "fetched" not in asked.fields
    asked = request({"a": FALSE, "b": TRUE})
    evaluation = made.settle(asked)
    assert isinstance(evaluation, Evaluation)
    assert (await evaluation.finish()).decision.name == "one"
    assert [name for name, _ in asked.fields["fetched"]] == ["b"]


async def test_the_cheapest_class_is_fetched_first() -> None:
    made = engine([Fake("a", Cost.REMOTE), Fake("b", Cost.NEURAL)], [clause("both", All((A, B)))])
    asked = request({"a": TRUE, "b": FALSE})
    assert (await made.decide(asked)).decision.name is None
    assert [name for name, _ in asked.fields["fetched"]] == ["b"]
    asked = request({"a": TRUE, "b": TRUE})
    assert (await made.decide(asked)).decision.name == "both"
    assert [name for name, _ in asked.fields["fetched"]] == ["b", "a"]


async def test_an_unknown_that_cannot_be_saved_saves_the_fetch() -> None:
    for on_unknown, fetched in (("skip", 0), ("match", 1), ("fail", 1)):
        made = engine([Fake("a"), Fake("b", Cost.NEURAL)], [clause("one", All((A, B)), on_unknown=on_unknown)])
        asked = request({"a": unknown("down"), "b": TRUE})
        trace = await made.decide(asked)
        assert len(asked.fields.get("fetched", ())) == fetched
        assert trace.results == {"one": None}


async def test_after_the_deadline_guards_refuse_and_routes_fall_through() -> None:
    clauses = [clause("route", B, LARGE), clause("guard", A, None, on_unknown="match")]
    made = engine([Fake("a", Cost.NEURAL), Fake("b", Cost.REMOTE)], clauses)
    never = asyncio.Event()
    trace = await made.decide(request({"a": never, "b": never}), time.monotonic() + 0.02)
    assert trace.decision.name == "guard"
    assert {reading.error for reading in trace.readings.values()} == {"deadline"}
    assert list(trace.results.items()) == [("route", None), ("guard", None)]


def test_what_guards_read_is_read_ahead_first_and_the_quick_before_the_slow() -> None:
    made = [Fake("a", Cost.NEURAL), Fake("b", Cost.FAST), Fake("c", Cost.NEURAL), Fake("d")]
    for signal in made:
        signal.reads = ("all",)
    refusal = clause("guard", AnyOf((Leaf("c"), Leaf("d"))), None)
    assert [signal.name for signal in engine(made, [clause("one", AnyOf((A, B))), refusal]).ahead] == list("dcba")


async def test_what_was_not_read_ahead_in_time_is_unknown() -> None:
    text, counted, instant, slow = Fake("a"), Fake("b", Cost.FAST), Fake("c"), Fake("d", Cost.NEURAL)
    text.reads = slow.reads = ("all",)
    clauses = [clause("one", AnyOf((A, B))), clause("two", AnyOf((Leaf("c"), Leaf("d"))))]
    made = engine([text, counted, instant, slow], clauses)
    asked = request({"a": FALSE, "b": FALSE, "c": TRUE, "d": TRUE})
    in_time = made.begin(asked, time.monotonic() + 60)
    assert in_time.warm()
    assert list(in_time.facts.readings) == ["a", "b"]
    past = made.begin(asked, time.monotonic())
    assert not past.warm()
    assert past.facts.readings == {}
    begun = past.facts
    past.late()
    trace = past.advance()
    assert trace is not None
    assert trace.decision.name == "two"
    assert trace.results == {"one": None, "two": True}
    assert {name: reading.error for name, reading in trace.readings.items()} == {
        "a": "deadline", "b": "deadline", "d": "deadline", "c": None
    }  # fmt: skip
    assert set(trace.telling) == {"a", "b", "c", "d"}
    assert begun.readings == {}  # what a thread may still add to


async def test_a_failing_slow_input_is_unknown_with_its_reason() -> None:
    made = engine([Fake("a", Cost.NEURAL), Fake("b", Cost.NEURAL)], [clause("one", AnyOf((A, B)))])
    trace = await made.decide(request({"a": Unavailable("overloaded"), "b": ValueError("x")}))
    assert {name: reading.error for name, reading in trace.readings.items()} == {"a": "overloaded", "b": "error"}


async def test_a_cancelled_request_cancels_its_fetches() -> None:
    made = engine([Fake("a", Cost.NEURAL)], [clause("one", A)])
    task = asyncio.ensure_future(made.decide(request({"a": asyncio.Event()})))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(asyncio.all_tasks()) == 1


async def test_everything_reads_what_no_decision_needs() -> None:
    made = engine([Fake("a"), Fake("b", Cost.NEURAL)], [clause("one", A)])
    trace = await made.decide(request({"a": TRUE, "b": FALSE}), detail=True, everything=True)
    assert trace.readings == {"a": TRUE, "b": FALSE}
    assert trace.timings is not None
    assert trace.timings.keys() == {"a", "b"}
    assert trace.decision.name == "one"


def test_stubs_stand_for_signals() -> None:
    made = engine([Fake("a", Cost.NEURAL)], [clause("one", A)])
    trace = made.stubbed(request(), {"a": TRUE}).advance()
    assert trace is not None
    assert trace.decision.name == "one"


@pytest.mark.parametrize(
    ("scores", "winner"), [((0.6, 0.9), "two"), ((0.9, 0.6), "one"), ((0.7, 0.7), "one"), ((None, 0.2), "two")]
)
def test_best_takes_the_most_confident_match(scores: tuple[float | None, float], winner: str) -> None:
    made = engine([Fake("a"), Fake("b")], [clause("one", A), clause("two", B, SMALL)], best=True)
    said = {name: Reading(None if s is None else True, s) for name, s in zip("ab", scores, strict=True)}
    assert settled(made, request(said)).decision.name == winner


@pytest.mark.parametrize(
    ("scores", "winner"),
    [
        ((0.2, 0.9, 0.4, 0.9), "first"),  # a rank above
        ((None, 0.6, 0.9, 0.9), "three"),
        ((None, 0.9, 0.9, 0.1), "two"),  # of equals the first
        ((None, None, None, 0.1), "last"),
    ],
)
def test_of_tied_decisions_the_most_confident_match_is_taken(scores: tuple[float | None, ...], winner: str) -> None:
    clauses = [clause("first", A), clause("two", B), clause("three", Leaf("c"), tied=True), clause("last", Leaf("d"))]
    made = engine([Fake(name) for name in "abcd"], clauses)
    said = {name: Reading(s is not None, s or 0.0) for name, s in zip("abcd", scores, strict=True)}
    assert settled(made, request(said)).decision.name == winner


async def test_only_tied_decisions_are_read_whole() -> None:
    rule = AnyOf((A, B))
    clauses = [clause("one", rule), clause("two", Leaf("c")), clause("three", rule, tied=True)]
    made = engine([Fake("a"), Fake("b", Cost.NEURAL), Fake("c")], clauses)
    assert (await made.decide(request({"a": TRUE}))).readings.keys() == {"a"}
    sure = {"a": FALSE, "b": Reading(True, 0.9), "c": Reading(True, 0.8)}
    assert (await made.decide(request(sure))).decision.name == "one"


async def test_with_best_guards_still_come_first() -> None:
    clauses = [clause("sure", B), clause("guard", A, None)]
    made = engine([Fake("a"), Fake("b", Cost.NEURAL)], clauses, best=True)
    asked = request({"a": TRUE, "b": TRUE})
    assert (await made.decide(asked)).decision.name == "guard"
    assert "fetched" not in asked.fields


async def test_best_reads_what_the_confidence_depends_on() -> None:
    made = engine([Fake("a"), Fake("b", Cost.NEURAL)], [clause("one", AnyOf((A, B))), clause("two", A)], best=True)
    trace = await made.decide(request({"a": Reading(True, 0.5), "b": Reading(True, 0.9)}))
    assert trace.decision.name == "one"
    assert trace.readings.keys() == {"a", "b"}


async def test_best_fetches_what_tells_a_sure_match_from_an_unknown_one() -> None:
    clauses = [clause("one", AnyOf((A, B)), on_unknown="match"), clause("two", Leaf("c"), SMALL)]
    made = engine([Fake("a"), Fake("b", Cost.NEURAL), Fake("c")], clauses, best=True)
    said = {"a": unknown("down"), "b": Reading(True, 0.9), "c": Reading(True, 0.5)}
    assert (await made.decide(request(said))).decision.name == "one"
    assert (await made.decide(request(said | {"b": FALSE}))).decision.name == "two"


def test_best_with_on_unknown() -> None:
    signals = [Fake("a"), Fake("b")]
    said = {"a": unknown("down"), "b": Reading(True, 0.4)}
    failing = engine(signals, [clause("one", A, on_unknown="fail"), clause("two", B)], best=True)
    assert settled(failing, request(said)).decision.fallback == "on_unknown"
    matching = engine(signals, [clause("one", A, on_unknown="match"), clause("two", B)], best=True)
    assert settled(matching, request(said)).decision.name == "two"
    alone = engine(signals, [clause("one", A, on_unknown="match"), clause("two", Not(B))], best=True)
    assert settled(alone, request(said | {"b": TRUE})).decision.name == "one"


def test_a_decision_carries_what_is_needed_to_act() -> None:
    changes = Changes(max_tokens=5, headers={"x-a": "b"})
    made = engine([], [clause("one", ALWAYS, pick(Weighted, [SMALL, LARGE], weights={"small": 0.0}), changes=changes)])
    decision = settled(made, request()).decision
    assert (decision.model, decision.changes) == (LARGE, changes)
    assert changes.body
    assert not Changes(headers={"x-a": "b"}).body


def test_failures_have_a_decision_too() -> None:
    made = engine([], [])
    trace = made.failed("error")
    assert (trace.decision.model, trace.decision.fallback) == (SMALL, "error")
    assert made.fallback("error") is trace.decision
    made.close()


def test_every_trace_estimates_the_input_tokens(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine([], [clause("all", ALWAYS)])
    assert (settled(made, request()).estimated_input_tokens or 0) > 0

    def broken(facts: object) -> int:
        raise ValueError("the secret prompt")

    monkeypatch.setattr("signals.text.estimate.Estimate.compute", lambda self, facts: broken(facts))
    trace = settled(made, request())
    assert (trace.decision.name, trace.estimated_input_tokens) == ("all", None)
    assert "ValueError" in caplog.text
    assert "secret" not in caplog.text


def test_a_guard_that_observes_is_told_and_does_nothing() -> None:
    clauses = [clause("watch", A, None, observe=True, on_unknown="match"), clause("plain", B)]
    for best in (False, True):
        made = engine([Fake("a"), Fake("b")], clauses, best=best)
        trace = settled(made, request({"a": TRUE, "b": TRUE}))
        assert (trace.decision.name, trace.observed) == ("plain", ("watch",))
        trace = settled(made, request({"a": unknown("x"), "b": FALSE}))
        assert (trace.decision.name, trace.observed) == (None, ("watch",))
        assert settled(made, request({"a": FALSE, "b": TRUE})).observed == ()
        assert made.failed("error").decision.action == "default"


def test_a_guard_that_observes_and_would_fail_does_not() -> None:
    made = engine([Fake("a"), Fake("b")], [clause("watch", A, None, observe=True, on_unknown="fail"), clause("b", B)])
    trace = settled(made, request({"a": unknown("x"), "b": TRUE}))
    assert (trace.decision.name, trace.observed) == ("b", ())


class _Spent(Fake):
    """A budget that is spent until it begins anew in a minute."""

    def renewed(self, when: float) -> tuple[float, Reading]:
        return 60.0, FALSE


@pytest.mark.parametrize("rule", [A, NamedRule("spent", A), NamedRule("out", Not(Not(NamedRule("spent", A))))])
def test_a_refusal_for_a_budget_says_when_it_begins_anew_however_its_rule_is_written(rule: Rule) -> None:
    made = engine([_Spent("a"), Fake("b")], [clause("out of money", rule, None)])
    assert made.renewed(settled(made, request({"a": TRUE})), 0.0) == 60.0
    made = engine([_Spent("a"), Fake("b")], [clause("out of money", AnyOf((All((B, rule)), B)), None)])
    assert made.renewed(settled(made, request({"a": TRUE, "b": TRUE})), 0.0) is None
