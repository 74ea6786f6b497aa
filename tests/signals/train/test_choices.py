"""What is trained from outcomes: a model that joins with a few graded questions is judged by how hard they were."""

from __future__ import annotations

import numpy as np

from signals.train.choices import _filled


def _outcomes(seed: int) -> np.ndarray:
    """800 questions, 10 models of different ability; what is hard for one is hard for all."""
    chance = np.random.default_rng(seed)
    hard, able = chance.normal(0.0, 2.0, (800, 1)), np.linspace(-1.0, 1.5, 10)
    found: np.ndarray = (chance.random((800, 10)) < 1 / (1 + np.exp(hard - able))).astype(float)
    return found


def test_a_model_that_joins_is_judged_by_how_hard_its_questions_were() -> None:
    raw, filled = [], []
    for seed in range(6):
        whole, chance = _outcomes(seed), np.random.default_rng(seed)
        for at in range(10):
            grades = whole.copy()
            tried = chance.choice(len(grades), 50, replace=False)
            grades[np.setdiff1d(np.arange(len(grades)), tried), at] = np.nan
            truth = whole[:, at].mean()
            raw.append(abs(np.nanmean(grades[:, at]) - truth))
            filled.append(abs(_filled(grades)[:, at].mean() - truth))
    assert np.mean(filled) < 0.8 * np.mean(raw)
    assert np.mean(filled) < 0.04


def test_what_was_graded_stays_as_it_was() -> None:
    grades = _outcomes(1)
    assert (_filled(grades) == grades).all()
    grades[5:, 3] = np.nan
    grades[700] = np.nan
    found = _filled(grades)
    known = ~np.isnan(grades)
    assert (found[known] == grades[known]).all()
    assert ((found >= 0) & (found <= 1)).all()
