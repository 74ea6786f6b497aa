"""A choice of models from the policy to the trace: built once, said in every view, and what a failure of it costs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from config.build import build
from config.load import check, parse
from config.problem import PolicyError
from decisions.catalogue import Catalogue
from decisions.decision import Choice, Trace
from decisions.engine import Engine, Ruleset
from decisions.explain import as_object, choice
from decisions.model import Model
from decisions.outcome import Outcome, trace_object
from decisions.selectors.registry import BY_NAME, KINDS
from decisions.selectors.selector import STANDS_IN, Selector
from signals.facts import Facts
from tests.decisions.fakes import request

POLICY = """\
version: 1
models:
  small: {{price: {{input: 1}}, capabilities: [], fallback: [spare]}}
  large: {{price: {{input: 9}}, capabilities: []}}
  spare: {{price: {{input: 5}}, capabilities: [tools]}}
default: small
decisions:
- {{name: one, route: {route}}}
"""


def engine(route: str) -> Engine:
    return build(parse(POLICY.format(route=route)))


async def decide(made: Engine, **fields: Any) -> Trace:
    return await made.decide(request(**fields))


def test_every_kind_has_a_name_of_its_own() -> None:
    assert len(BY_NAME) == len(KINDS)
    assert all(kind.about for kind in KINDS)


async def test_the_choice_is_in_every_view_of_the_trace() -> None:
    made = engine("{pick: [small, large], by: cheapest}")
    trace = await decide(made)
    said = {"model": "small", "why": "lowest price", "propensity": 1.0, "by": "cheapest"}
    assert trace_object(trace)["choice"] == as_object(made, trace)["choice"] == said
    assert choice(trace) == "small by cheapest: lowest price"


async def test_what_is_left_to_chance_is_said() -> None:
    trace = await decide(engine("{pick: [small, large], by: {weighted: {weights: {small: 0.5, large: 0}}}}"))
    assert choice(trace) == "small by weighted: its share"
    trace = await decide(engine("{pick: [small, large], weights: {small: 3, large: 3}}"))
    assert (choice(trace) or "").endswith(" by weighted: its share (probability 0.5)")
    assert trace_object(trace)["choice"]["propensity"] == 0.5


@pytest.mark.parametrize("route", ["large", "small"])
async def test_where_there_is_nothing_to_choose_nothing_is_said(route: str) -> None:
    made = engine(route)
    trace = await decide(made)
    assert made.selectors == {}
    assert (trace.choice, choice(trace)) == (None, None)
    assert "choice" not in as_object(made, trace)


async def test_a_request_that_names_its_model_has_no_choice() -> None:
    made = engine("{pick: [small, large]}")
    assert (await made.decide(request(model="large"))).choice is None


async def test_a_fallback_that_takes_the_chosen_model_s_place_says_so() -> None:
    trace = await decide(engine("{pick: [small, large], weights: {large: 0, small: 4}}"), tools=[{"type": "function"}])
    assert trace.choice is not None
    assert (trace.choice.model.key, trace.choice.why, trace.choice.propensity) == ("spare", STANDS_IN, 1.0)
    assert trace.decision.model is trace.choice.model


class Counted(Selector):
    """Counts how often it is built."""

    name = "counted"
    about = "Take the first."
    built: ClassVar[list[str]] = []

    def __init__(self, choice: Any, params: Any, shared: Any) -> None:
        super().__init__(choice, params, shared)
        self.built.append(choice.decision)

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        return Choice(models[0], "the first", 1.0, self.name)


class Broken(Counted):
    """Cannot choose."""

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        raise RuntimeError("no model today")


class Stray(Counted):
    """Chooses what it was not given."""

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        return Choice(Model("another", "another"), "made up", 1.0, self.name)


class Absent(Counted):
    """Cannot be built."""

    def __init__(self, choice: Any, params: Any, shared: Any) -> None:
        raise FileNotFoundError("votes.jsonl is not there")


def becomes(monkeypatch: pytest.MonkeyPatch, kind: type[Selector]) -> None:
    """Let `kind` stand for a kind of the registry, under its name."""
    monkeypatch.setattr(kind, "name", "cheapest")
    monkeypatch.setitem(BY_NAME, "cheapest", kind)


def test_a_selector_is_built_once_and_by_no_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Counted, "built", [])
    becomes(monkeypatch, Counted)
    text = (
        "signals: {s: {header: {name: x, exists: true}}}\n"
        + POLICY.format(route="{pick: [small, large], by: cheapest, sticky: session}, when: s")
        + "- {name: two, route: {pick: [small], by: cheapest}, sticky: session}\n"
    )
    policy, problems = check(text)
    assert policy is not None, problems
    assert Counted.built == []
    build(policy)
    assert Counted.built == ["one", "two"]


@pytest.mark.parametrize("kind", [Broken, Stray])
@pytest.mark.parametrize("best", [False, True])
async def test_a_choice_that_fails_takes_the_default_model(
    monkeypatch: pytest.MonkeyPatch, kind: type[Selector], best: bool
) -> None:
    becomes(monkeypatch, kind)
    text = POLICY.format(route="{pick: [large], by: cheapest}").replace("default:", "strategy: best\ndefault:")
    trace = await decide(build(parse(text if best else text.replace("strategy: best\n", ""))))
    decision = trace.decision
    assert decision.model is not None
    assert (decision.model.key, decision.action, decision.fallback) == ("small", "default", "selector")
    assert trace.choice is None


async def test_a_session_s_decision_whose_choice_fails_is_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    becomes(monkeypatch, Counted)
    made = engine("{pick: [large], by: cheapest}, sticky: session")
    assert [(await decide(made)).kept for _ in range(2)] == [False, True]
    monkeypatch.setattr(Counted, "among", Broken.among)
    trace = await decide(made)
    assert (trace.decision.fallback, trace.kept) == ("selector", False)


def test_an_engine_is_not_built_without_its_selectors() -> None:
    policy = parse(POLICY.format(route="{pick: [small, large]}"))
    with pytest.raises(KeyError):
        Engine("p", Catalogue(policy.models, "small"), Ruleset(policy.clauses))


def test_what_a_selector_lacks_is_an_error_at_its_place(monkeypatch: pytest.MonkeyPatch) -> None:
    becomes(monkeypatch, Absent)
    with pytest.raises(PolicyError) as caught:
        engine("{pick: [large], by: cheapest}")
    (problem,) = caught.value.problems
    assert (problem.code, problem.line, problem.column) == ("P108", 8, 15)
    assert problem.message == "the choice of decision 'one' (cheapest): votes.jsonl is not there"


def test_a_session_s_choice_makes_chains_of_responses_one() -> None:
    assert engine("{pick: [small, large], sticky: session}").chained
    assert not engine("{pick: [small, large]}").chained


def test_a_choice_that_nobody_says_how_to_make_is_by_the_first_kind() -> None:
    made = engine("{pick: [small, large]}")
    assert type(made.selectors["one"]) is KINDS[0]


async def test_a_selector_that_learns_is_told_what_became_of_its_choices_and_of_no_others() -> None:
    made = engine("{pick: [large, small], by: {fastest: {explore: 0}}}")
    for _ in range(2):
        trace = await decide(made)
        assert trace.choice is not None
        seconds = 9.0 if trace.choice.model.key == "large" else 1.0
        made.record(Outcome(trace, trace.choice.model, 0, 200, seconds, seconds), request())
    named = await made.decide(request(model="small"))
    made.record(Outcome(named, made.models["small"], 0, 200, 99.0, 99.0), request())
    trace = await decide(made)
    assert trace.choice is not None
    assert trace.choice.model.key == "small"


async def test_a_selector_that_cannot_learn_costs_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made = engine("{pick: [large, small], by: fastest}")
    trace = await decide(made)

    def learn(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(made.learning["one"], "learn", learn)
    made.record(Outcome(trace, made.models["small"], 0, 200, 1.0, 1.0), request())
    assert "learns nothing: RuntimeError" in caplog.text
    assert "secret" not in caplog.text


def test_a_choice_by_the_end_of_answers_has_them_metered_and_cannot_do_without() -> None:
    policy = POLICY.format(route="{pick: [large, small], by: {fastest: {until: end}}}")
    assert build(parse(policy)).metered
    assert not engine("{pick: [large, small], by: fastest}").metered
    with pytest.raises(PolicyError, match=r"settings\.meter: off, and yet a choice of models"):
        build(parse(policy + "settings: {meter: off}\n"))
