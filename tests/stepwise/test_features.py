"""What the policy sees of a step."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stepwise.features import NAMES, WIDTH, State, draft
from stepwise.steps import End, Step
from upstream.tokens import TOP, Token, certainty, entropy


def token(text: str, p: float, second: float = 0.0) -> Token:
    tops = tuple(math.log(value) for value in (p, second) if value > 0)
    return Token(text, math.log(p), tops)


def step(*tokens: Token) -> Step:
    return Step(tokens, End.BLANK)


def named(vector: np.ndarray) -> dict[str, float]:
    return dict(zip(NAMES, map(float, vector), strict=True))


def test_names_are_one_for_each_number_and_none_twice() -> None:
    vector, _ = draft(step(token("x", 0.5)), State())
    assert vector.shape == (WIDTH,) == (len(NAMES),)
    assert vector.dtype == np.float32
    assert len(set(NAMES)) == WIDTH


def test_entropy_counts_what_the_list_leaves_over_as_one_more_outcome() -> None:
    assert entropy([math.log(0.5), math.log(0.25)]) == pytest.approx(1.5 * math.log(2))
    assert entropy([math.log(0.5), math.log(0.5)]) == pytest.approx(math.log(2))
    assert entropy([0.0]) == pytest.approx(0.0, abs=1e-6)
    assert entropy([0.0, -9999.0]) == pytest.approx(0.0, abs=1e-6)


def test_a_certainty_worked_out_before_changes_nothing_and_is_not_worked_out_again() -> None:
    tokens = [token(" so", 0.9, 0.05), token(" 12", 0.4, 0.3), Token("x", math.log(0.7)), token("\n\n", 1.0)]
    known = [one._replace(certainty=certainty(one.logprob, one.top)) for one in tokens]
    assert draft(step(*known), State())[0].tolist() == draft(step(*tokens), State())[0].tolist()
    other = draft(step(known[0]._replace(certainty=(0.25, 0.125)), *known[1:]), State())[0]
    assert (named(other)["first_entropy"], named(other)["first_margin"]) == (0.25, 0.125)


@given(st.lists(st.floats(-60, 0), min_size=1, max_size=8))
def test_entropy_is_finite_and_never_negative(values: list[float]) -> None:
    assert 0.0 <= entropy(sorted(values, reverse=True)) <= math.log(TOP + 1) + 1e-9


def test_statistics_are_over_all_tokens_and_again_over_numbers() -> None:
    tokens = [token(" so", 0.9, 0.05), token(" 12", 0.4, 0.3), token("+", 0.8, 0.1), token("\n\n", 1.0)]
    seen = named(draft(step(*tokens), State())[0])
    logs = [math.log(value) for value in (0.9, 0.4, 0.8, 1.0)]
    assert seen["mean_logprob"] == pytest.approx(sum(logs) / 4)
    assert seen["min_logprob"] == pytest.approx(math.log(0.4))
    assert seen["p10_logprob"] == pytest.approx(math.log(0.4))
    assert seen["perplexity"] == pytest.approx(math.exp(-sum(logs) / 4))
    assert seen["mean_margin"] == pytest.approx((0.85 + 0.1 + 0.7 + 1.0) / 4)
    assert seen["min_margin"] == pytest.approx(0.1)
    assert seen["uncertain_share"] == pytest.approx(0.25)
    assert seen["number_share"] == pytest.approx(0.5)
    assert seen["number_mean_logprob"] == pytest.approx((math.log(0.4) + math.log(0.8)) / 2)
    assert seen["number_uncertain_share"] == pytest.approx(0.5)
    assert seen["first_margin"] == pytest.approx(0.85)
    assert seen["first_entropy"] == pytest.approx(entropy(tokens[0].top))


def test_a_step_without_log_probabilities_looks_certain_and_is_finite() -> None:
    vector, _ = draft(step(Token("text 12", size=3)), State())
    seen = named(vector)
    assert np.isfinite(vector).all()
    assert (seen["mean_logprob"], seen["min_margin"], seen["step_tokens"]) == (0.0, 1.0, 3.0)


def test_impossible_tokens_do_not_make_infinite_features() -> None:
    vector, _ = draft(step(Token("a", float("-inf"), (0.0, float("-inf"))), Token("b", -9999.0, (-9999.0,))), State())
    assert np.isfinite(vector).all()


def test_the_running_state_counts_who_wrote_what() -> None:
    state = State(token_budget=100)
    good, bad = step(token("fine 1", 0.9)), step(token("bad 2", 0.3), token("x", 0.3))
    _, state = draft(good, state)
    state = state.kept(good)
    _, state = draft(bad, state)
    state = state.redone(bad.size, step(*[token("large", 0.9)] * 5))
    seen = named(draft(good, state)[0])
    assert (seen["step_index"], seen["small_tokens"], seen["large_tokens"]) == (2.0, 3.0, 5.0)
    assert (seen["redos"], seen["since_redo"]) == (1.0, 0.0)
    assert seen["budget_left"] == pytest.approx(0.94)
    assert seen["repeated"] == 1.0
    assert seen["running_min_logprob"] == pytest.approx(math.log(0.3))
    assert seen["ema_logprob"] == pytest.approx(0.7 * (0.7 * math.log(0.9) + 0.3 * math.log(0.3)) + 0.3 * math.log(0.9))


@given(st.lists(st.floats(-5, 0), min_size=2, max_size=12))
def test_the_slope_is_that_of_least_squares(values: list[float]) -> None:
    state = State()
    for value in values:
        state = state.drafted(value)
    assert state.slope_logprob == pytest.approx(np.polyfit(range(len(values)), values, 1)[0], abs=1e-6)


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("Wait, but that is wrong. Hmm.", "corrections", 3.0),
        ("The waiter was butter.", "corrections", 0.0),
        ("wait " * 50, "corrections", 8.0),
        ("Answer: 42", "answer_present", 1.0),
        ("so \\boxed{42}", "answer_present", 1.0),
        ("#### 42", "answer_present", 1.0),
        ("they answered 42 times", "answer_present", 0.0),
    ],
)
def test_words_are_found(text: str, name: str, value: float) -> None:
    assert named(draft(step(token(text, 0.9)), State())[0])[name] == value


def test_the_same_step_again_is_found_white_space_and_case_aside() -> None:
    state = State().kept(step(token("Two  and\ntwo", 0.9)))
    assert state.repeats(step(token("two and TWO \n\n", 0.9)))
    assert not state.repeats(step(token("two and three", 0.9)))


def test_a_state_is_never_changed_and_survives_pickling() -> None:
    state = State().kept(step(token("a", 0.9)))
    copy = pickle.loads(pickle.dumps(state))
    draft(step(token("b", 0.1)), state)
    state.redone(1, step(token("c", 0.9)))
    assert copy == state


def test_only_the_first_top_log_probabilities_count() -> None:
    many = Token("x", math.log(0.5), tuple(math.log(value) for value in (0.5, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05)))
    few = many._replace(top=many.top[:TOP])
    assert np.array_equal(draft(step(many), State())[0], draft(step(few), State())[0])
