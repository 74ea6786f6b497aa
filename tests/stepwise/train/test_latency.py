"""Marks and times from models behind addresses, through the serving loop."""

from __future__ import annotations

import pytest

pytest.importorskip("torch", reason="training needs `pip install -e .[train]`")
pytest.importorskip("pyarrow", reason="training needs `pip install -e .[train]`")

import numpy as np

from stepwise.steps import StepLimits
from stepwise.strategies.fixed import Fixed
from stepwise.strategies.verify import Verify
from stepwise.strategy import NoJudgement, Strategy
from stepwise.train.endpoints import EndpointWriter
from stepwise.train.evaluate import Comparison, Figures, Point, chosen, report
from stepwise.train.latency import Latency, measure
from stepwise.train.project import ProjectSettings
from stepwise.train.tree import Question
from tests.stepwise.fakes import FakeModel, Fault, writer

STEPS = ["first we add the two numbers up", "then we take the one away again", "Answer: 7"]
QUESTIONS = [Question(str(i), f"What is {i}?", "7") for i in range(3)]
SETTINGS = ProjectSettings("tiny", "huge")


@pytest.fixture
async def pair():
    small, large = FakeModel("tiny", writer(STEPS)), FakeModel("huge", writer(STEPS), delay=0.02)
    await small.start()
    await large.start()
    async with EndpointWriter(small.endpoint(), large.endpoint(), SETTINGS.limits) as served:
        yield small, large, served
    await small.stop()
    await large.stop()


async def test_times_are_those_of_the_serving_loop(pair) -> None:
    _, _, served = pair
    strategies: dict[str, Strategy] = {
        "always-small": Fixed.always_small(),
        "always-large": Fixed.always_large(),
        "first-n": Fixed.first_n(1),
        "verify": Verify(0.5),
    }
    found = await measure(served.models, SETTINGS, strategies, QUESTIONS, max_redos=8)
    tokens = sum(len(step.split()) for step in STEPS)
    for name, wait in found.items():
        assert len(wait.first) == len(wait.whole) == 3, name
        assert all(first <= whole for first, whole in zip(wait.first, wait.whole, strict=True))
    # The large model takes 20 ms for a token, whatever this machine does.
    assert min(found["always-large"].whole) > 0.02 * tokens
    assert min(found["first-n"].first) >= 0.02
    # This large model gives no marks, so nothing can be said of `verify`.
    assert found["verify"].unjudged > 0
    assert found["verify"].cells() == ("–", "–")
    assert found["always-small"].cells()[0].endswith(")")


async def test_an_answer_that_fails_is_no_measurement(pair) -> None:
    small, large, served = pair
    small.faults[-2] = large.faults[-2] = Fault("kill", 9)
    with pytest.raises(ValueError, match="question 0 was not answered: Neither model could answer"):
        await measure(served.models, SETTINGS, {"s": Fixed.always_small()}, QUESTIONS, max_redos=8)


async def test_a_mark_is_asked_for_as_in_serving_and_its_reading_counted() -> None:
    large = FakeModel(
        "huge", lambda prefix, n: "7" if "digit" in large.requests[-1]["messages"][-1]["content"] else "x"
    )
    small = FakeModel("tiny", writer(STEPS))
    await small.start()
    await large.start()
    async with EndpointWriter(small.endpoint(), large.endpoint(), StepLimits()) as served:
        score, read = await served.verify(QUESTIONS[0], "", STEPS[0])
        assert score == pytest.approx(7 / 9, abs=0.05)
        assert read > 0
        assert large.requests[0]["max_tokens"] == 1
        large.write = lambda prefix, n: "Well"
        with pytest.raises(NoJudgement):
            await served.verify(QUESTIONS[1], "", STEPS[0])
        large.faults[-2] = Fault("status")
        with pytest.raises(NoJudgement, match="500"):
            await served.verify(QUESTIONS[2], "", STEPS[0])
    await small.stop()
    await large.stop()


def point(parameter: float, right: list[bool], large: float) -> Point:
    return Point(parameter, np.array(right), np.full(len(right), large), np.full(len(right), large))


def test_the_parameter_that_is_timed_closes_the_gap_cheaply() -> None:
    points = [
        point(0, [False] * 4, 1),
        point(1, [True] * 4, 9),
        point(2, [True] * 4, 5),
        point(3, [True, False] * 2, 2),
    ]
    assert chosen(points, 0.0, 1.0) == 2
    assert chosen([points[0], points[3]], 0.0, 1.0) == 1


def test_the_table_says_whether_times_were_taken() -> None:
    row = Figures(
        "mine", (0.5, 0.4, 0.6), {50: (0.1, 0.1, 0.1), 80: (0.2, 0.2, 0.2), 95: (0.3, 0.3, 0.3)}, (0.4, 0.4, 0.4)
    )
    one = point(0, [True], 1)
    seen = Comparison({"mine": [one]}, one, one, np.ones(1))
    text = report([row], seen, 1.0, "t")
    assert "Times were not measured" in text
    waits = {"mine": Latency([0.1], [0.2]), "always-small": Latency([0.05], [0.1])}
    text = report([row], seen, 1.0, "t", waits)
    assert "| 100 (100) | 200 (200) |" in text
    assert "| always-small | – | – | – | – | – | 50 (50) | 100 (100) |" in text
    assert "of 1 questions" in text
