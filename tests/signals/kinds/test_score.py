from __future__ import annotations

from typing import Any

import pytest

from signals.facts import Facts
from signals.gather import read
from signals.reading import Reading, unknown
from tests.signals.help import build, complaint, request


def score(readings: dict[str, Reading], **params: Any) -> Reading:
    facts = Facts(request())
    facts.readings.update(readings)
    return read(build("score", **params), facts)


HARD, LONG = Reading(False, 0.5), Reading(True, None)


def test_the_weighted_sum_counts() -> None:
    found = score({"hard": HARD, "long": LONG}, sum={"hard": 0.4, "long": 0.2}, at_least=0.4)
    assert (found.matched, found.score) == (True, pytest.approx(0.4))
    assert score({"hard": HARD, "long": LONG}, sum={"hard": 0.4, "long": -0.2}, at_most=0.0).matched is True
    assert score({"long": Reading(False)}, sum={"long": 1.0}, at_least=0.1).score == 0.0


@pytest.mark.parametrize(("value", "label"), [(0.1, None), (0.2, "low"), (0.5, "mid"), (0.9, "high")])
def test_bands(value: float, label: str | None) -> None:
    bands = {"high": 0.9, "low": 0.2, "mid": 0.5}
    assert score({"x": Reading(True, value)}, sum={"x": 1.0}, at_least=0.5, bands=bands).label == label


def test_an_unknown_input_makes_the_sum_unknown() -> None:
    for readings in ({"hard": HARD}, {"hard": HARD, "long": unknown("deadline")}):
        assert score(readings, sum={"hard": 1.0, "long": 1.0}, at_least=0.0).error == "input_unknown"


def test_it_names_its_inputs() -> None:
    assert build("score", sum={"b": 1.0, "a": 1.0}, at_least=1.0).inputs == ("b", "a")


def test_wrong_parameters_are_explained() -> None:
    assert "one of at_least, at_most" in complaint("score", sum={"a": 1.0})
    assert "one of at_least, at_most" in complaint("score", sum={"a": 1.0}, bands={"low": 0.0})
    assert "greater than" in complaint("score", sum={"a": 1.0}, at_least=2, at_most=1)
    assert "a weight is 0" in complaint("score", sum={"a": 0.0}, at_least=1)
    assert "two bands" in complaint("score", sum={"a": 1.0}, at_least=1, bands={"a": 1.0, "b": 1.0})
    assert "at least 1 item" in complaint("score", sum={}, at_least=1)
