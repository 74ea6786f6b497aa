"""Strategies that judge nothing: which model writes which step is fixed in advance."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from stepwise.features import State
from stepwise.strategy import AnswerContext, Run, StepJudge, Strategy, StrategyKind, Turn
from upstream.writer import WriterParameter


class Fixed(Strategy):
    """The large model writes the first `n` steps, then the small one the rest; or one of them everything."""

    judges = False

    def __init__(self, name: str, n: int, rest: Turn) -> None:
        self.name = name
        self.n = n
        self.rest = rest
        self.alone = name != "first-n"

    @classmethod
    def first_n(cls, n: int = 1) -> Fixed:
        return cls("first-n", n, Turn.SMALL_REST)

    @classmethod
    def always_small(cls) -> Fixed:
        return cls("always-small", 0, Turn.SMALL_REST)

    @classmethod
    def always_large(cls) -> Fixed:
        return cls("always-large", 0, Turn.LARGE_REST)

    def begin(self, context: AnswerContext) -> Run:
        return _FixedRun(self.n, self.rest)


class _FixedRun(StepJudge):
    def __init__(self, n: int, rest: Turn) -> None:
        self._n = n
        self._rest = rest

    def turn(self, state: State) -> Turn:
        return Turn.LARGE if state.index < self._n else self._rest


FIRST_N = StrategyKind(
    "first-n",
    lambda wanted: Fixed.first_n(int(wanted.number("n", 1))),
    {"n": WriterParameter(Annotated[int, Field(ge=0)], "`first-n`: steps written by the large model (1).")},
)
ALWAYS_SMALL = StrategyKind("always-small", lambda wanted: Fixed.always_small())
ALWAYS_LARGE = StrategyKind("always-large", lambda wanted: Fixed.always_large())
