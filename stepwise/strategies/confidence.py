"""Lets the large model write anew the steps whose words are the least probable."""

from __future__ import annotations

from stepwise import features
from stepwise.quantile import ENOUGH, Quantile
from stepwise.strategy import SHARE, AnswerContext, Draft, Judgement, Run, StepJudge, Strategy, StrategyKind

_MEAN_LOGPROB = features.NAMES.index("mean_logprob")


class Confidence(Strategy):
    """Rejects the `share` of steps with the least mean log probability, by a running quantile (after arXiv 2511.06190).

    Until 32 steps were seen, those under `cold` (natural log).
    """

    name = "confidence"
    needs_top = 0

    def __init__(self, share: float = 0.2, cold: float = -0.35) -> None:
        self.share = share
        self.cold = cold
        self.seen = Quantile()

    def begin(self, context: AnswerContext) -> Run:
        return _ConfidenceRun(self)


class _ConfidenceRun(StepJudge):
    def __init__(self, rule: Confidence) -> None:
        self._rule = rule

    async def judge(self, draft: Draft) -> Judgement:
        said = await self.running(draft)
        self._rule.seen.rank(float(draft.vector[_MEAN_LOGPROB]))
        return said

    async def running(self, draft: Draft) -> Judgement:
        rule = self._rule
        value = float(draft.vector[_MEAN_LOGPROB])
        warm = len(rule.seen) >= ENOUGH
        return Judgement(rule.seen.look(value) >= rule.share if warm else value >= rule.cold, value)


KIND = StrategyKind("confidence", lambda wanted: Confidence(wanted.number("share", 0.2)), {"share": SHARE})
