"""The table of `stepwise.loop.course`: whose turn follows which."""

from __future__ import annotations

import pytest

from stepwise.loop.course import Course
from stepwise.strategy import REJECTED, Judgement, Turn


@pytest.mark.parametrize("turn", Turn)
def test_the_first_turn_is_the_strategys(turn: Turn) -> None:
    course = Course(turn, max_redos=1)
    assert (course.turn, course.small) == (turn, turn in (Turn.DRAFT, Turn.SMALL_REST))
    assert course.why == ("large" if turn is Turn.LARGE else "rest")
    assert (course.settled, course.redos) == (None, 0)


@pytest.mark.parametrize("turn", Turn)
@pytest.mark.parametrize("before", [Turn.DRAFT, Turn.LARGE])
def test_the_open_stream_goes_on_where_the_small_model_keeps_the_turn(before: Turn, turn: Turn) -> None:
    course = Course(before, max_redos=1)
    assert course.follow(turn) == (before is Turn.DRAFT and turn in (Turn.DRAFT, Turn.SMALL_REST))
    assert course.turn is turn
    assert course.why == ("large" if turn is Turn.LARGE else "rest")
    assert course.settled is None


def test_rejected_drafts_are_written_anew_until_the_redos_are_used_up() -> None:
    course = Course(Turn.DRAFT, max_redos=1)
    course.reject("loop", 7, Judgement(False, 0.25), final=False)
    assert (course.turn, course.why, course.rejected) == (Turn.LARGE, "loop", 7)
    assert course.verdict.score == 0.25
    course.complete()
    assert (course.rejected, course.verdict) == (0, REJECTED)
    assert not course.follow(Turn.DRAFT)
    course.reject("redo", 5, REJECTED, final=False)
    assert (course.turn, course.why, course.settled) == (Turn.LARGE_REST, "handover", "redos")
    assert course.redos == 1  # a hand-over is none


def test_a_small_model_that_cannot_continue_hands_over_at_once() -> None:
    course = Course(Turn.DRAFT, max_redos=9)
    course.reject("redo", 5, REJECTED, final=True)
    assert (course.turn, course.settled, course.redos) == (Turn.LARGE_REST, "redos", 0)


@pytest.mark.parametrize("before", [Turn.DRAFT, Turn.LARGE_REST])
def test_a_budget_leaves_the_rest_to_the_small_model(before: Turn) -> None:
    course = Course(before, max_redos=1)
    course.settle("money")
    assert (course.turn, course.why, course.settled) == (Turn.SMALL_REST, "rest", "money")


@pytest.mark.parametrize("before", Turn)
@pytest.mark.parametrize("small", [True, False])
def test_where_a_model_fails_the_other_one_writes_the_rest(before: Turn, small: bool) -> None:
    course = Course(before, max_redos=1)
    course.take_over(small)
    assert course.turn is (Turn.SMALL_REST if small else Turn.LARGE_REST)
    assert (course.why, course.settled, course.verdict) == ("takeover", "upstream", REJECTED)
