"""`fastest` and `factors`: what answers took, requests that wait, failures, what is left to chance, limits."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from decisions.decision import Choice, Decision, Trace
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.selectors.exploring import EXPLORED, explored
from decisions.selectors.factors import BEST, LIMITS, Factors
from decisions.selectors.fastest import LEAST, Fastest
from decisions.selectors.pinned import built
from decisions.selectors.selector import Selector
from signals.signal import Shared
from tests.decisions.fakes import pick
from tests.decisions.selectors.help import facts

QUICK = Model("quick", "q", 5.0, 5.0, quality=0.2)
SLOW = Model("slow", "s", 1.0, 1.0, quality=0.9)
NEW = Model("new", "n", 2.0, 2.0, quality=0.5)


def made(kind: type[Selector], *models: Model, shared: Shared | None = None, **params: Any) -> Selector:
    return built(pick(kind, models, **params), shared or Shared())


def tell(
    selector: Selector, model: Model, seconds: float | None, status: int | None = 200, answered: Any = ...
) -> None:
    choice = Choice(model, "", 1.0, selector.name)
    trace = Trace(Decision("d", "route", model), "", {}, {}, 0.0, choice=choice)
    model = model if answered is ... else answered
    selector.learn(Outcome(trace, model, 0, status, seconds, None if seconds is None else 10 * seconds), choice)


def taken(selector: Selector, count: int = 1) -> Counter[str]:
    return Counter(selector.choose(facts(headers={"x-request-id": str(n)})).model.key for n in range(count))


def test_the_quickest_takes_the_request() -> None:
    selector = made(Fastest, SLOW, QUICK, explore=0.0)
    tell(selector, SLOW, 2.0)
    tell(selector, QUICK, 0.5)
    assert selector.choose(facts()) == (QUICK, LEAST, 1.0, "fastest")
    for _ in range(8):
        tell(selector, QUICK, 9.0)
    assert selector.choose(facts()).model is SLOW


def test_a_model_that_nothing_is_known_of_is_tried() -> None:
    selector = made(Fastest, NEW, QUICK, explore=0.0)
    tell(selector, QUICK, 0.5)
    assert selector.choose(facts()).model is NEW, "it counts as the quickest, and stands first"


def test_whom_many_wait_for_is_expected_later() -> None:
    shared = Shared()
    selector = made(Fastest, QUICK, SLOW, shared=shared, explore=0.0)
    tell(selector, QUICK, 0.5)
    tell(selector, SLOW, 0.8)
    for _ in range(4):
        shared.services.loads.of("quick").started()
    assert selector.choose(facts()).model is QUICK
    shared.services.loads.of("quick").started()
    assert selector.choose(facts()).model is SLOW


def test_whoever_fails_quickly_is_not_quick() -> None:
    selector = made(Fastest, QUICK, SLOW, explore=0.0)
    tell(selector, SLOW, 2.0)
    for status in (500, 503, 429):
        tell(selector, QUICK, 0.01, status)
    assert selector.choose(facts()).model is SLOW
    for _ in range(9):
        tell(selector, QUICK, 0.5)
    assert selector.choose(facts()).model is QUICK, "three of twelve fail: two thirds of a second for an answer"


@pytest.mark.parametrize(
    ("seconds", "status", "answered"), [(None, None, ...), (0.01, 400, ...), (0.01, 200, SLOW), (0.01, None, ...)]
)
def test_what_says_nothing_of_the_model_teaches_nothing(
    seconds: float | None, status: int | None, answered: Any
) -> None:
    selector = made(Fastest, QUICK, SLOW, explore=0.0)
    tell(selector, QUICK, 2.0)
    tell(selector, SLOW, 1.0)
    for _ in range(20):
        tell(selector, QUICK, seconds, status, answered)
    assert selector.choose(facts()).model is SLOW


def test_the_end_of_an_answer_counts_where_it_is_wanted() -> None:
    selector = made(Fastest, QUICK, SLOW, explore=0.0, until="end")
    assert selector.watches_answers
    assert not made(Fastest, QUICK, SLOW).watches_answers
    tell(selector, QUICK, 1.0)
    tell(selector, SLOW, 2.0)
    assert selector.choose(facts()).model is QUICK


def test_a_share_goes_to_all_alike() -> None:
    selector = made(Fastest, QUICK, SLOW, NEW, explore=0.3)
    for model, seconds in ((QUICK, 0.5), (SLOW, 2.0), (NEW, 3.0)):
        tell(selector, model, seconds)
    choices = [selector.choose(facts(headers={"x-request-id": str(n)})) for n in range(6000)]
    shares = Counter(choice.model.key for choice in choices)
    assert 0.07 < shares["slow"] / 6000 < 0.13
    assert 0.07 < shares["new"] / 6000 < 0.13
    assert {(choice.why, round(choice.propensity, 9)) for choice in choices} == {(LEAST, 0.8), (EXPLORED, 0.1)}
    again = [selector.choose(facts(headers={"x-request-id": str(n)})) for n in range(6000)]
    assert again == choices, "the same request, the same choice"


@pytest.mark.parametrize(("share", "count"), [(0.0, 3), (1.0, 3), (0.2, 1)])
def test_propensities_add_up_to_one(share: float, count: int) -> None:
    found = {explored(0, count, share, facts(headers={"x-request-id": str(n)})) for n in range(500)}
    assert sum(propensity for _, propensity in found) == pytest.approx(1.0)


def test_what_was_learned_outlives_the_policy() -> None:
    shared = Shared()
    tell(made(Fastest, QUICK, SLOW, shared=shared), QUICK, 3.0)
    tell(made(Fastest, QUICK, SLOW, shared=shared), SLOW, 1.0)
    assert made(Fastest, QUICK, SLOW, shared=shared, explore=0.0).choose(facts()).model is SLOW


@pytest.mark.parametrize(
    ("params", "model"),
    [
        ({}, SLOW),
        ({"quality": 0.0, "cost": 1.0}, SLOW),
        ({"quality": 0.0, "latency": 1.0}, QUICK),
        ({"quality": 1.0, "cost": 0.2, "latency": 1.3}, NEW),
        ({"quality": 1.0, "cost": 0.2, "latency": 0.3}, SLOW),
        ({"limits": {"latency": 1.0}}, NEW),
        ({"limits": {"quality": 0.5}, "quality": 0.0, "cost": 0.0, "latency": 1.0}, NEW),
    ],
)
def test_the_best_sum_of_factors(params: dict[str, Any], model: Model) -> None:
    selector = made(Factors, QUICK, SLOW, NEW, **params)
    for one, seconds in ((QUICK, 0.5), (SLOW, 4.0), (NEW, 0.9)):
        tell(selector, one, seconds)
    assert selector.choose(facts()) == (model, BEST, 1.0, "factors")


def test_where_none_keeps_the_limits_the_best_of_all_takes_it() -> None:
    selector = made(Factors, QUICK, SLOW, limits={"quality": 0.95})
    assert selector.choose(facts()) == (SLOW, LIMITS, 1.0, "factors")


def test_requests_that_wait_count_against_a_model() -> None:
    shared = Shared()
    selector = made(Factors, QUICK, SLOW, shared=shared, quality=1.0, load=2.0)
    assert selector.choose(facts()).model is SLOW
    shared.services.loads.of("slow").started()
    assert selector.choose(facts()).model is QUICK
