from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signals.facts import Facts
from signals.gather import read
from signals.kinds.score import ScoreParams
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


def test_of_matches_adds_the_weights_of_what_matches() -> None:
    readings = {"hard": HARD, "long": LONG, "big": Reading(True, 12_000.0)}
    found = score(readings, sum={"hard": 0.4, "long": 0.1, "big": 0.7}, of="matches", at_least=0.8)
    assert (found.matched, found.score) == (True, 0.8)  # as floats, 0.1 and 0.7 are 0.7999999999999999
    assert score(readings, sum={"hard": 0.4, "long": 0.2, "big": -0.5}, of="matches", at_most=0).score == -0.3
    assert score({"long": unknown("late")}, sum={"long": 0.4}, of="matches", at_least=0).error == "input_unknown"


@pytest.mark.parametrize(("value", "label"), [(0.1, None), (0.2, "low"), (0.5, "mid"), (0.9, "high")])
def test_bands_by_lower_bounds(value: float, label: str | None) -> None:
    bands = {"high": 0.9, "low": 0.2, "mid": 0.5}
    assert score({"x": Reading(True, value)}, sum={"x": 1.0}, at_least=0.5, bands=bands).label == label


@pytest.mark.parametrize(
    ("value", "label"), [(-5.0, "easy"), (0.29, "easy"), (0.3, "mid"), (0.7, "hard"), (9.0, "hard")]
)
def test_bands_by_where_they_end(value: float, label: str) -> None:
    bands: dict[str, Any] = {"easy": {"below": 0.3}, "mid": {"below": 0.7}, "hard": {}}
    found = score({"x": Reading(True, value)}, sum={"x": 1.0}, bands=bands)
    assert (found.matched, found.label) == (True, label)
    del bands["hard"]
    found = score({"x": Reading(True, value)}, sum={"x": 1.0}, bands=bands)
    assert found.label == (None if label == "hard" else label)
    assert found.matched is (label != "hard")
    assert score({"x": Reading(True, value)}, sum={"x": 1.0}, bands=bands, at_least=100).matched is False


edges = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=4, unique=True).map(sorted)


@given(edges, st.booleans(), st.floats(-4, 4))
def test_the_ranges_of_the_bands_say_what_the_label_is(ends: list[float], below: bool, value: float) -> None:
    bands: dict[str, Any] = {f"b{n}": {"below": end} if below else end for n, end in enumerate(ends)}
    if below:
        bands["rest"] = {}
    ranges = ScoreParams(sum={"x": 1.0}, bands=bands).ranges() or {}
    fit = [
        name for name, (low, end) in ranges.items() if (low is None or value >= low) and (end is None or value < end)
    ]
    found = score({"x": Reading(True, value)}, sum={"x": 1.0}, bands=bands)
    assert [found.label] == (fit or [None])
    assert all(first[1] == second[0] for first, second in pairwise(ranges.values()))


def test_an_unknown_input_makes_the_sum_unknown() -> None:
    for readings in ({"hard": HARD}, {"hard": HARD, "long": unknown("deadline")}):
        assert score(readings, sum={"hard": 1.0, "long": 1.0}, at_least=0.0).error == "input_unknown"


def test_it_names_its_inputs() -> None:
    assert build("score", sum={"b": 1.0, "a": 1.0}, at_least=1.0).inputs == ("b", "a")


def test_wrong_parameters_are_explained() -> None:
    assert "one of at_least, at_most, bands, exclusive" in complaint("score", sum={"a": 1.0})
    assert "greater than" in complaint("score", sum={"a": 1.0}, at_least=2, at_most=1)
    assert "a weight is 0" in complaint("score", sum={"a": 0.0}, at_least=1)
    assert "two bands" in complaint("score", sum={"a": 1.0}, at_least=1, bands={"a": 1.0, "b": 1.0})
    assert "at least 1 item" in complaint("score", sum={}, at_least=1)
    assert "either all" in complaint("score", sum={"a": 1.0}, bands={"a": {"below": 1.0}, "b": 1.0})
    assert "must be the last" in complaint("score", sum={"a": 1.0}, bands={"a": {}, "b": {"below": 1.0}})
    assert "no sum is in it" in complaint("score", sum={"a": 1.0}, bands={"a": {"below": 2.0}, "b": {"below": 2.0}})


MATCHING = {
    "math": Reading(True, 0.6),
    "code": Reading(True, 0.5),
    "law": Reading(False, 0.9),
    "header": Reading(True, None),
}


def test_the_strongest_of_what_matches_is_the_label() -> None:
    found = score(MATCHING, sum={"math": 1, "code": 1, "law": 1}, exclusive="best")
    assert found == Reading(True, 0.6, "math")
    found = score(MATCHING, sum={"math": 1, "code": 1.3, "law": 1}, exclusive="best")
    assert (found.label, found.score) == ("code", pytest.approx(0.65))
    assert score(MATCHING, sum={"math": 1, "header": 0.6}, exclusive="best").label == "math"  # of equals the first
    assert score(MATCHING, sum={"law": 1}, exclusive="best") == Reading(False, 0.0, None)
    assert score(MATCHING, sum={"law": 1}, exclusive="best", default="other") == Reading(True, 0.0, "other")
    assert score(MATCHING, sum={"math": 1}, exclusive="best", at_least=0.7).matched is False
    readings = {**MATCHING, "late": unknown("deadline")}
    assert score(readings, sum={"math": 1, "late": 1}, exclusive="best").error == "input_unknown"


def test_softmax_gives_the_share_of_the_strongest() -> None:
    found = score(MATCHING, sum={"math": 1, "code": 1, "law": 1}, exclusive="softmax")
    assert (found.label, found.score) == ("math", pytest.approx(1 / (1 + math.exp(-1))))
    found = score(MATCHING, sum={"math": 1, "code": 1}, exclusive="softmax", temperature=0.01, at_least=0.99)
    assert (found.matched, found.label) == (True, "math")
    found = score(MATCHING, sum={"math": 1, "code": 1}, exclusive="softmax", temperature=1e-9)
    assert found.score == 1.0
    assert score(MATCHING, sum={"math": 1, "code": 1}, exclusive="softmax", at_least=0.8).matched is False
    assert score(MATCHING, sum={"math": 1}, exclusive="softmax").score == 1.0


def test_wrong_parameters_of_exclusive_are_explained() -> None:
    assert "goes without bands" in complaint("score", sum={"a": 1.0}, exclusive="best", bands={"a": 0.0})
    assert "goes without bands" in complaint("score", sum={"a": 1.0}, exclusive="best", of="matches")
    assert "default goes with exclusive" in complaint("score", sum={"a": 1.0}, at_least=1, default="a")
    assert "softmax` only" in complaint("score", sum={"a": 1.0}, exclusive="best", temperature=1)
