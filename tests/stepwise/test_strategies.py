"""The handcrafted rules."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest

from stepwise import features
from stepwise.features import State
from stepwise.quantile import Quantile
from stepwise.steps import End, Step
from stepwise.strategies.chance import Random
from stepwise.strategies.cold_start import ColdStart
from stepwise.strategies.confidence import Confidence
from stepwise.strategies.fixed import Fixed
from stepwise.strategy import KEPT, AnswerContext, Draft, Strategy, Turn
from upstream.tokens import Token


async def never(step: Step) -> float:
    raise AssertionError("nobody asked for a verification")


def a_draft(p: float) -> Draft:
    tokens = tuple(Token(text, math.log(p), (math.log(p), math.log((1 - p) / 2))) for text in ("so", " 4", "\n\n"))
    step = Step(tokens, End.BLANK)
    return Draft(step, features.draft(step, State())[0], State())


async def kept(strategy: Strategy, p: float, key: int = 0) -> bool:
    run = strategy.begin(AnswerContext(key, never))
    try:
        return (await run.judge(a_draft(p))).keep
    finally:
        run.close()


def test_a_rank_is_the_share_of_the_last_values_that_are_smaller() -> None:
    seen = Quantile()
    rng = random.Random(1)
    values = [round(rng.random(), 2) for _ in range(1500)]
    for i, value in enumerate(values):
        window = values[max(0, i - 512) : i]
        expected = sum((other < value) + (other == value) / 2 for other in window) / len(window) if window else 0.5
        assert seen.rank(value) == pytest.approx(expected)
    assert len(seen) == 512


@pytest.mark.parametrize("make", [Confidence, ColdStart])
async def test_running_quantiles_reject_about_the_share_asked_for(make: type[Confidence] | type[ColdStart]) -> None:
    strategy = make(share=0.25)
    rng = random.Random(2)
    for _ in range(200):
        await kept(strategy, rng.uniform(0.3, 0.99))
    rejected = [not await kept(strategy, rng.uniform(0.3, 0.99)) for _ in range(1000)]
    assert 0.18 < sum(rejected) / len(rejected) < 0.32
    assert not await kept(strategy, 0.25)
    assert await kept(strategy, 0.995)


@pytest.mark.parametrize("make", [Confidence, ColdStart])
async def test_before_anything_was_seen_doubtful_steps_are_rejected_outright(
    make: type[Confidence] | type[ColdStart],
) -> None:
    assert await kept(make(), 0.95)
    assert not await kept(make(), 0.4)


async def test_random_choices_repeat_for_the_same_question_and_seed() -> None:
    async def row(seed: int, key: int) -> list[bool]:
        run = Random(0.5, seed).begin(AnswerContext(key, never))
        return [(await run.judge(a_draft(0.9))).keep for _ in range(40)]

    assert await row(1, 7) == await row(1, 7)
    assert await row(1, 7) != await row(1, 8)
    assert await row(1, 7) != await row(2, 7)


def test_first_n_begins_large_and_ends_small() -> None:
    run = Fixed.first_n(2).begin(AnswerContext(0, never))
    turns = [run.turn(State(index=index)) for index in range(4)]
    assert turns == [Turn.LARGE, Turn.LARGE, Turn.SMALL_REST, Turn.SMALL_REST]


def test_the_vector_s_places_are_those_of_the_names() -> None:
    draft = a_draft(0.5)
    assert draft.vector[features.NAMES.index("mean_logprob")] == np.float32(math.log(0.5))


@pytest.mark.parametrize("make", [Confidence, ColdStart])
async def test_a_look_at_a_running_draft_says_what_its_end_would_and_teaches_nothing(
    make: type[Confidence] | type[ColdStart],
) -> None:
    rng = random.Random(3)
    run = make().begin(AnswerContext(0, never))
    verdicts = set()
    for _ in range(100):
        draft = a_draft(rng.uniform(0.3, 0.99))
        looked = [await run.running(draft) for _ in range(3)]
        judged = await run.judge(draft)
        assert looked == [judged] * 3
        verdicts.add(judged.keep)
    assert verdicts == {True, False}
    assert await Fixed.always_small().begin(AnswerContext(0, never)).running(draft) == KEPT
