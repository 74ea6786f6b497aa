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
            chosen = joining.Newcomers(others, categories, np.delete(PRICES, at)).questions(30, price, seed)
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


def test_questions_that_tell_nobody_apart_are_not_chosen() -> None:
    whole, _ = outcomes(3)
    newcomers = joining.Newcomers(whole, [""] * 600, np.full(12, math.nan))
    newcomers._needs[:300] = 0.01  # hard or easy, but for all alike
    assert (newcomers.questions(40, math.nan) >= 300).all()


def test_without_prices_or_categories_it_is_done_all_the_same() -> None:
    whole, _ = outcomes(9)
    none = np.full(12, math.nan)
    grades = whole.copy()
    grades[40:, 5] = math.nan
    grades[500] = math.nan
    found = joining.filled(grades, [""] * 600, none)
    assert abs(found[:, 5].mean() - whole[:, 5].mean()) < 0.1
    assert len(joining.Newcomers(whole, [""] * 600, none).questions(700, math.nan)) == 600


def test_few_models_tell_nothing_of_another() -> None:
    whole, categories = outcomes(1)
    whole[50:, 5:] = math.nan
    with pytest.raises(ValueError, match="at least 6 models"):
        joining.Newcomers(whole, categories, PRICES)
