"""A model that joins with a few dozen graded answers: which they are best of, and what they say of all questions."""

from __future__ import annotations

import math

import numpy as np
import pytest

from signals.train import joining

PRICES = np.geomspace(1, 100, 12)


def outcomes(seed: int) -> tuple[np.ndarray, list[str]]:
    """600 questions of two categories, 12 models; the dearer the better, some better at one category."""
    chance = np.random.default_rng(seed)
    category = chance.integers(0, 2, 600)
    hard, steep = chance.normal(0, 1.5, 600), chance.lognormal(0, 0.5, 600)
    able = np.log(PRICES) - 2 + chance.normal(0, 0.3, 12)
    side = chance.normal(0, 0.5, (2, 12))
    logit = steep[:, None] * (able + side[category] - hard[:, None])
    return (chance.random((600, 12)) < 1 / (1 + np.exp(-logit))).astype(float), [str(one) for one in category]


@pytest.mark.slow
def test_few_grades_with_a_price_say_more_than_their_mean() -> None:
    missed: dict[str, list[float]] = {"chosen": [], "drawn": [], "bare": []}
    for seed in range(4):
        whole, categories = outcomes(seed)
        for at in range(1, 12, 3):
            chance = np.random.default_rng(seed)
            others, price = np.delete(whole, at, 1), float(PRICES[at])
            chosen = joining.Newcomers(others, categories, np.delete(PRICES, at)).questions(
                30, joining.Newcomer(price), seed
            )
            assert len(set(chosen.tolist())) == 30
            drawn = chance.choice(600, 30, replace=False)
            for name, some in (("chosen", chosen), ("drawn", drawn)):
                grades = whole.copy()
                grades[:, at] = math.nan
                grades[some, at] = whole[some, at]
                found = joining.filled(grades, categories, PRICES)
                assert (found[~np.isnan(grades)] == grades[~np.isnan(grades)]).all()
                assert ((found >= 0) & (found <= 1)).all()
                missed[name].append(abs(found[:, at].mean() - whole[:, at].mean()))
            missed["bare"].append(abs(whole[drawn, at].mean() - whole[:, at].mean()))
    means = {name: float(np.mean(each)) for name, each in missed.items()}
    assert means["drawn"] < 0.8 * means["bare"], means
    assert means["chosen"] < 0.8 * means["bare"], means


@pytest.mark.slow
def test_grades_that_are_there_choose_the_next_questions() -> None:
    """Three rounds of ten say more of models whose price nobody says than thirty at once."""
    missed: dict[int, list[float]] = {1: [], 3: []}
    sure: list[bool] = []
    for seed in range(6):
        whole, categories = outcomes(seed)
        for at in range(0, 12, 2):
            model = joining.Newcomers(np.delete(whole, at, 1), categories, np.delete(PRICES, at))
            truth = whole[:, at].mean()
            for rounds, off in missed.items():
                newcomer = joining.Newcomer()
                for _ in range(rounds):
                    more = model.questions(30 // rounds, newcomer, seed)
                    assert not set(more.tolist()) & set(newcomer.tried.tolist())
                    tried = np.concatenate((newcomer.tried, more))
                    newcomer = joining.Newcomer(newcomer.price, tried, whole[tried, at])
                mean, doubt = model.expected(newcomer)
                off.append(abs(mean - truth))
                sure.append(abs(mean - truth) < 2 * doubt)
    assert np.mean(missed[3]) < 0.9 * np.mean(missed[1]), missed
    assert np.mean(sure) > 0.8, "what is said of the doubt is so"


def test_a_model_that_was_asked_everything_is_asked_no_more() -> None:
    whole, categories = outcomes(2)
    newcomers = joining.Newcomers(whole[:, :-1], categories, PRICES[:-1])
    newcomer = joining.Newcomer(100.0, np.arange(600), whole[:, -1])
    assert len(newcomers.questions(50, newcomer)) == 0
    assert newcomers.expected(newcomer)[0] == pytest.approx(whole[:, -1].mean())


def test_questions_that_tell_nobody_apart_are_not_chosen() -> None:
    whole, _ = outcomes(3)
    newcomers = joining.Newcomers(whole, [""] * 600, np.full(12, math.nan))
    newcomers._needs[:300] = 0.01  # hard or easy, but for all alike
    assert (newcomers.questions(40, joining.Newcomer()) >= 300).all()


def test_without_prices_or_categories_it_is_done_all_the_same() -> None:
    whole, _ = outcomes(9)
    none = np.full(12, math.nan)
    grades = whole.copy()
    grades[40:, 5] = math.nan
    grades[500] = math.nan
    found = joining.filled(grades, [""] * 600, none)
    assert abs(found[:, 5].mean() - whole[:, 5].mean()) < 0.1
    assert len(joining.Newcomers(whole, [""] * 600, none).questions(700, joining.Newcomer())) == 600


def test_few_models_tell_nothing_of_another() -> None:
    whole, categories = outcomes(1)
    whole[50:, 5:] = math.nan
    with pytest.raises(ValueError, match="at least 6 models"):
        joining.Newcomers(whole, categories, PRICES)
