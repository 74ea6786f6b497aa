"""The large model marks every draft."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from stepwise.steps import Step
from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy, StrategyKind
from upstream.writer import WriterParameter


class Verify(Strategy):
    """The large model scores every draft with one token; kept from `threshold` on (after arXiv 2504.07891)."""

    name = "verify"
    needs_marks = True

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold

    def begin(self, context: AnswerContext) -> Run:
        return _VerifyRun(self.threshold, context.verify)


class _VerifyRun(StepJudge):
    def __init__(self, threshold: float, verify: Callable[[Step], Awaitable[float]]) -> None:
        self._threshold = threshold
        self._verify = verify

    async def judge(self, draft: Draft) -> Judgement:
        score = await self._verify(draft.step)
        return Judgement(score >= self._threshold, score)


KIND = StrategyKind(
    "verify",
    lambda wanted: Verify(wanted.number("threshold", 0.7)),
    {"threshold": WriterParameter(float, "`verify`: score from 0 to 1 (0.7).")},
)
