"""Judges every draft by its first token."""

from __future__ import annotations

from stepwise.features import State
from stepwise.strategy import AnswerContext, Run, StepJudge, Strategy, StrategyKind
from upstream.tokens import TOP, Token, entropy
from upstream.writer import WriterParameter


class Glimpse(Strategy):
    """Rejects a draft at its first token when that token's entropy (nats) is above `threshold` (arXiv 2601.05110)."""

    name = "glimpse"
    needs_top = TOP

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def begin(self, context: AnswerContext) -> Run:
        return _GlimpseRun(self.threshold)


class _GlimpseRun(StepJudge):
    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def glance(self, token: Token, state: State) -> bool:
        return entropy(token.top) <= self._threshold


KIND = StrategyKind(
    "glimpse",
    lambda wanted: Glimpse(wanted.number("threshold", 0.5)),
    {"threshold": WriterParameter(float, "`glimpse`: entropy in nats (0.5).")},
)
