"""Selectors that learn from grades: they find the better model, follow a change, and say how likely a choice was."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from decisions.model import Model
from decisions.selectors.bandit import Bandit
from decisions.selectors.pinned import built
from decisions.selectors.registry import BY_NAME
from decisions.selectors.selector import Graded, Selector
from signals.signal import Shared
from signals.text.frame import frame, style
from tests.decisions.fakes import pick
from tests.decisions.selectors.help import facts

MODELS = [Model(key, key, price, price) for key, price in (("a", 1.0), ("b", 2.0), ("c", 9.0))]
KINDS = ("bandit", "ema", "pheromone", "elo")
MATHS = "Solve this step by step.\nQuestion: what is {} + 3?\nAnswer:"
STORY = "Write a story about number {}. Make it long, with many turns and a happy end for everybody in it."


def made(kind: str, *models: Model, shared: Shared | None = None, **params: Any) -> Selector:
    return built(pick(BY_NAME[kind], models or MODELS, **params), shared or Shared())


def lesson(selector: Selector, text: str, number: int, worth: dict[str, float], chance: np.random.Generator) -> str:
    """One request, its answer graded at once: the model that took it."""
    asked = facts(text.format(number), headers={"x-request-id": f"{text[:3]}{number}"})
    choice = selector.choose(asked)
    assert 0 < choice.propensity <= 1
    context = selector.context(asked)
    selector.grade(Graded(choice.model.key, context), float(chance.random() < worth[choice.model.key]))
    return choice.model.key


@pytest.mark.parametrize("kind", KINDS)
def test_the_better_model_is_found(kind: str) -> None:
    selector, chance = made(kind), np.random.default_rng(1)
    worth = {"a": 0.3, "b": 0.8, "c": 0.5}
    taken = [lesson(selector, MATHS, number, worth, chance) for number in range(600)]
    assert Counter(taken[300:])["b"] > 240


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_request_finds_its_own(kind: str) -> None:
    params = {} if kind == "bandit" else {"per": "template"}
    selector, chance = made(kind, **params), np.random.default_rng(2)
    taken: dict[str, list[str]] = {MATHS: [], STORY: []}
    for number in range(600):
        taken[MATHS].append(lesson(selector, MATHS, number, {"a": 0.9, "b": 0.3, "c": 0.3}, chance))
        taken[STORY].append(lesson(selector, STORY, number, {"a": 0.3, "b": 0.3, "c": 0.9}, chance))
    assert Counter(taken[MATHS][300:])["a"] > 240
    assert Counter(taken[STORY][300:])["c"] > 240


@pytest.mark.parametrize("kind", KINDS)
def test_a_new_model_is_tried_and_what_was_learned_of_the_others_stays(kind: str) -> None:
    shared, chance = Shared(), np.random.default_rng(3)
    worth = {"a": 0.6, "b": 0.4, "c": 0.95}
    before = made(kind, *MODELS[:2], shared=shared)
    for number in range(300):
        lesson(before, MATHS, number, worth, chance)
    after = made(kind, *MODELS, shared=shared)
    taken = [lesson(after, MATHS, number, worth, chance) for number in range(1000, 1500)]
    assert Counter(taken[:200])["b"] < 60, "what was learned of b still counts"
    assert Counter(taken[200:])["c"] > 200


@pytest.mark.parametrize("kind", KINDS)
def test_price_counts_against_quality(kind: str) -> None:
    selector, chance = made(kind, cost=0.6), np.random.default_rng(4)
    worth = {"a": 0.7, "b": 0.7, "c": 0.9}
    taken = [lesson(selector, MATHS, number, worth, chance) for number in range(800)]
    assert Counter(taken[400:])["c"] < 60


@pytest.mark.no_cover
@pytest.mark.parametrize("kind", KINDS)
def test_propensities_are_how_often_it_happens(kind: str) -> None:
    selector, chance = made(kind), np.random.default_rng(5)
    for number in range(60):
        lesson(selector, MATHS, number, {"a": 0.6, "b": 0.5, "c": 0.5}, chance)
    asked = [facts(MATHS.format(1), headers={"x-request-id": f"p{number}"}) for number in range(4000)]
    choices = [selector.choose(each) for each in asked]
    shares = Counter(choice.model.key for choice in choices)
    for choice in set(choices):
        assert shares[choice.model.key] / 4000 == pytest.approx(choice.propensity, abs=0.03)
    assert sum({choice.model.key: choice.propensity for choice in choices}.values()) == pytest.approx(1, abs=0.05)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_lessons_give_the_same_choices(kind: str) -> None:
    runs = []
    for _ in range(2):
        selector, chance = made(kind), np.random.default_rng(6)
        runs.append([lesson(selector, STORY, n, {"a": 0.6, "b": 0.5, "c": 0.5}, chance) for n in range(100)])
    assert runs[0] == runs[1]


@pytest.mark.parametrize("kind", KINDS)
def test_models_that_lack_something_are_no_choice(kind: str) -> None:
    blind = [Model("a", "a", capabilities=frozenset()), *MODELS[1:]]
    selector = made(kind, *blind)
    tools = [{"type": "function", "function": {"name": "f"}}]
    taken = {selector.choose(facts(headers={"x-request-id": str(n)}, tools=tools)).model.key for n in range(50)}
    assert "a" not in taken


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("context", [None, 3, "a long context", [[99, 1.0]], [["x", 1.0]], [[0, 1e9]]])
def test_what_is_no_context_teaches_nothing(kind: str, context: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        made(kind).grade(Graded("a", context), 1.0)


def test_comparisons_move_ratings_towards_each_other_s_difference() -> None:
    selector = made("elo")
    for _ in range(200):
        selector.compare(Graded("b", ""), Graded("a", ""))
        selector.compare(Graded("b", ""), Graded("c", ""))
        selector.compare(Graded("c", ""), Graded("b", ""))
    known = selector.known(facts())  # type: ignore[attr-defined]
    rating = {key: selector.rating("", key, known) for key in "abc"}  # type: ignore[attr-defined]
    assert rating["b"] > rating["a"] + 200
    assert abs(rating["b"] - rating["c"]) < 60


def test_the_frame_tells_templates_apart_and_not_what_they_hold() -> None:
    assert frame(MATHS.format(1)) == frame(MATHS.format(99))
    assert frame(MATHS.format(1)) != frame(STORY.format(1))
    assert frame("Pick one.\nA. red\nB. blue\n") != frame("Pick one.\nA. red\nB. blue\nC. green\n")
    assert frame("") == frame(" \n")
    assert all(abs(value) <= 2.5 for text in ("", "9" * 5000, "\ud800", "Ä!" * 99) for value in style(text))


async def test_a_bandit_solves_beside_the_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    threads = []
    solved = Bandit._solved

    def seen(self: Bandit, learned: Any) -> Any:
        threads.append(threading.current_thread())
        return solved(self, learned)

    selector = made("bandit", explore=0.0)
    monkeypatch.setattr(Bandit, "_solved", seen)
    asked = facts(MATHS.format(1), headers={"x-request-id": "r"})
    for _ in range(20):
        selector.grade(Graded("a", selector.context(asked)), 0.0)
        selector.grade(Graded("c", selector.context(asked)), 1.0)
        assert selector.choose(asked).model.key == "a", "nothing has been solved yet"
    await selector.settle()
    assert selector.choose(asked).model.key == "c"
    assert threads
    assert threading.main_thread() not in threads


@pytest.mark.parametrize("hours", [1e-320, 1e-9])
def test_a_half_life_is_time_enough_to_count_with(hours: float) -> None:
    with pytest.raises(ValidationError, match="half_life"):
        BY_NAME["ema"].Parameters.model_validate({"half_life": hours})
