"""`weighted`: shares, who moves when a model comes, what a share is worth."""

from __future__ import annotations

from collections import Counter

import pytest

from decisions.model import Model
from decisions.selectors.selector import Selector
from decisions.selectors.weighted import SHARE, Weighted
from signals.signal import Shared
from tests.decisions.fakes import pick
from tests.decisions.selectors.help import LARGE, OPEN, SMALL, facts, selector


def spread(selector: Selector, count: int = 4000) -> Counter[str]:
    return Counter(selector.choose(facts(headers={"x-request-id": str(n)})).model.key for n in range(count))


def test_shares_are_the_weights() -> None:
    shares = spread(selector(Weighted, SMALL, LARGE, weights={"small": 9.0, "large": 1.0}))
    assert 0.08 < shares["large"] / 4000 < 0.12
    even = spread(selector(Weighted, SMALL, LARGE))
    assert 0.46 < even["large"] / 4000 < 0.54


def test_a_weight_of_zero_gets_nothing() -> None:
    assert spread(selector(Weighted, SMALL, LARGE, weights={"small": 0.0}), 200) == {"large": 200}


def test_adding_a_model_moves_only_what_must_move() -> None:
    before = selector(Weighted, SMALL, LARGE)
    after = selector(Weighted, SMALL, LARGE, OPEN)
    for n in range(500):
        asked = facts(headers={"x-request-id": str(n)})
        assert after.choose(asked).model in (before.choose(asked).model, OPEN)


def test_sticky_keeps_a_conversation_on_its_model() -> None:
    choice = pick(Weighted, [SMALL, LARGE], sticky=True)
    sticky = Weighted(choice, choice.params, Shared())
    chosen = {sticky.choose(facts(headers={"x-session-id": "one", "x-request-id": str(n)})).model for n in range(50)}
    assert len(chosen) == 1
    several = {sticky.choose(facts(headers={"x-session-id": str(n)})).model for n in range(50)}
    assert len(several) == 2


@pytest.mark.parametrize(
    ("weights", "shares"),
    [
        ({}, {"small": 0.5, "large": 0.5}),
        ({"small": 9.0}, {"small": 0.9, "large": 0.1}),
        ({"small": 0.0, "large": 0.3}, {"large": 1.0}),
        ({"small": 1.5e308, "large": 1.5e308}, {"small": 0.5, "large": 0.5}),
    ],
)
def test_the_propensity_is_the_share(weights: dict[str, float], shares: dict[str, float]) -> None:
    made = selector(Weighted, SMALL, LARGE, weights=weights)
    choices = [made.choose(facts(headers={"x-request-id": str(n)})) for n in range(100)]
    assert {choice.model.key: choice.propensity for choice in choices} == pytest.approx(shares)
    assert {(choice.why, choice.by) for choice in choices} == {(SHARE, "weighted")}


def test_the_propensity_is_the_share_among_those_that_can() -> None:
    blind = Model("blind", "b", capabilities=frozenset())
    made = selector(Weighted, blind, SMALL, LARGE, weights={"blind": 6.0, "large": 3.0})
    choices = [made.among([SMALL, LARGE], facts(headers={"x-request-id": str(n)})) for n in range(100)]
    assert {choice.model.key: choice.propensity for choice in choices} == {"small": 0.25, "large": 0.75}


def test_a_model_that_stands_there_twice_has_one_share() -> None:
    choices = {selector(Weighted, SMALL, LARGE, SMALL).choose(facts(body=str(n).encode())) for n in range(50)}
    assert {choice.propensity for choice in choices} == {0.5}


def test_where_only_models_of_weight_0_can_they_share_alike() -> None:
    made = selector(Weighted, SMALL, LARGE, OPEN, weights={"small": 0.0, "large": 0.0})
    choices = {made.among([SMALL, LARGE], facts(body=str(n).encode())) for n in range(50)}
    assert {(choice.model.key, choice.propensity) for choice in choices} == {("small", 0.5), ("large", 0.5)}
