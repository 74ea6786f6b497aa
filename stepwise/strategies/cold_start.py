"""For pairs of models for which no policy was trained."""

from __future__ import annotations

import math

from stepwise import features
from stepwise.quantile import ENOUGH, Quantile
from stepwise.strategy import SHARE, AnswerContext, Draft, Judgement, Run, StepJudge, Strategy, StrategyKind, Wanted
from upstream.tokens import TOP

_MEAN_LOGPROB = features.NAMES.index("mean_logprob")
_NUMBER_MIN = features.NAMES.index("number_min_logprob")
_MIN_MARGIN = features.NAMES.index("min_margin")
_FIRST_ENTROPY = features.NAMES.index("first_entropy")


class ColdStart(Strategy):
    """For pairs of models without a trained policy: rejects the `share` of steps that look worst.

    Four signs of doubt (mean log probability, least log probability among digits and operators, least margin, entropy
    of the first token) are turned into ranks among the last steps, so that no scale has to be known, and averaged.
    Until 32 steps were seen, a step is rejected when its digits or its words are below fixed probabilities.
    """

    name = "cold-start"
    needs_top = TOP

    def __init__(self, share: float = 0.2) -> None:
        self.share = share
        self.signs = [Quantile() for _ in range(4)]
        self.doubt = Quantile()

    def begin(self, context: AnswerContext) -> Run:
        return _ColdRun(self)


class _ColdRun(StepJudge):
    def __init__(self, rule: ColdStart) -> None:
        self._rule = rule

    async def judge(self, draft: Draft) -> Judgement:
        said = await self.running(draft)
        for seen, sign in zip(self._rule.signs, _signs(draft), strict=True):
            seen.rank(sign)
        self._rule.doubt.rank(said.score or 0.0)
        return said

    async def running(self, draft: Draft) -> Judgement:
        rule, signs = self._rule, _signs(draft)
        score = sum(seen.look(sign) for seen, sign in zip(rule.signs, signs, strict=True)) / len(signs)
        if len(rule.doubt) >= ENOUGH:
            return Judgement(rule.doubt.look(score) >= rule.share, score)
        return Judgement(signs[0] >= -0.35 and signs[1] >= math.log(0.5), score)


def _signs(draft: Draft) -> tuple[float, float, float, float]:
    """The signs of doubt, each lower for more of it."""
    vector = draft.vector
    return (
        float(vector[_MEAN_LOGPROB]),
        float(vector[_NUMBER_MIN]),
        float(vector[_MIN_MARGIN]),
        -float(vector[_FIRST_ENTROPY]),
    )


def _make(wanted: Wanted) -> Strategy:
    # The block allows no other target than a cost, which here is the large model's share of the steps.
    return ColdStart(wanted.number("share", 0.2 if wanted.target is None else wanted.target.value))


KIND = StrategyKind("cold-start", _make, {"share": SHARE}, takes=frozenset({"target"}), loops=True)
