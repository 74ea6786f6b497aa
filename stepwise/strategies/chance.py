"""Random choices: every other strategy has to be better than these."""

from __future__ import annotations

import random

from stepwise.strategy import (
    AnswerContext,
    Draft,
    Judgement,
    Run,
    Share,
    StepJudge,
    Strategy,
    StrategyKind,
)
from upstream.writer import WriterParameter


class Random(Strategy):
    """Rejects each draft with probability `p`; the same choices for the same question and `seed`."""

    name = "random"

    def __init__(self, p: float = 0.2, seed: int = 0) -> None:
        self.p = p
        self.seed = seed

    def begin(self, context: AnswerContext) -> Run:
        return _RandomRun(self.p, random.Random(f"{self.seed}:{context.key}"))


class _RandomRun(StepJudge):
    def __init__(self, p: float, rng: random.Random) -> None:
        self._p = p
        self._rng = rng

    async def judge(self, draft: Draft) -> Judgement:
        return Judgement(self._rng.random() >= self._p)


KIND = StrategyKind(
    "random",
    lambda wanted: Random(wanted.number("p", 0.2), int(wanted.number("seed", 0))),
    {
        "p": WriterParameter(Share, "`random`: probability that a draft is rejected (0.2)."),
        "seed": WriterParameter(int, "`random` (0)."),
    },
)
