"""A trained network judges every draft."""

from __future__ import annotations

from stepwise.policy import GOAL, CalibrationRow, PolicyFailed, StepPolicy, Vector
from stepwise.strategy import (
    KEPT,
    AnswerContext,
    Draft,
    Judgement,
    NoJudgement,
    Run,
    StepJudge,
    Strategy,
    StrategyKind,
    Wanted,
)
from upstream.tokens import TOP


class PolicyStrategy(Strategy):
    """A trained network: keep when P(keep) >= kappa (Si, Lee and Bastani, arXiv 2605.06116).

    Where `row` has thresholds for it and the large model gives marks, the large model is asked in between.
    """

    name = "policy"
    needs_top = TOP

    def __init__(self, policy: StepPolicy, row: CalibrationRow) -> None:
        self.policy = policy
        self.row = row
        self.asks = policy.card.marks if row.ask is not None else None
        self.limits, self.token_budget = policy.card.steps, policy.card.token_budget

    def close(self) -> None:
        self.policy.close()

    def begin(self, context: AnswerContext) -> Run:
        return _PolicyRun(self.policy, self.row, context.marks)


class _PolicyRun(StepJudge):
    def __init__(self, policy: StepPolicy, row: CalibrationRow, marks: bool) -> None:
        self._policy = policy
        self._kappa = row.kappa
        self._ask = row.ask if marks else None
        self._hidden: Vector | None = None
        policy.answers += 1

    async def judge(self, draft: Draft) -> Judgement:
        try:
            keep, self._hidden = await self._policy.keep(draft.vector, self._hidden)
        except PolicyFailed as error:
            raise NoJudgement(error.reason, str(error)) from error
        if self._ask is not None and keep >= self._ask.low:
            return Judgement(True, keep, None if keep >= self._ask.high else self._ask.mark)
        return Judgement(self._ask is None and keep >= self._kappa, keep)

    async def running(self, draft: Draft) -> Judgement:
        try:
            keep, _ = await self._policy.keep(draft.vector, self._hidden)
        except PolicyFailed:
            return KEPT  # whoever judges its end will notice
        return Judgement(keep >= (self._kappa if self._ask is None else self._ask.low), keep)

    def close(self) -> None:
        self._policy.answers -= 1


def _make(wanted: Wanted) -> Strategy:
    assert wanted.policy is not None
    policy = StepPolicy(wanted.policy, device=wanted.device)
    try:
        return PolicyStrategy(policy, policy.card.of_pair(wanted.small, wanted.large).row(wanted.target or GOAL))
    except ValueError:
        policy.close()
        raise


KIND = StrategyKind("policy", _make, takes=frozenset({"policy", "target", "device"}), loops=True)
