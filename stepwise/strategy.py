"""Who writes the next step: what every strategy is, and what it is built from.

A `Strategy` belongs to a decision and lives as long as it does; a `Run` belongs to one answer. `Run.turn` says how the
next step begins; `Run.glance` may reject a draft at its first token, `Run.running` now and then in its middle,
`Run.judge` at its end. Each strategy is one file in `strategies/` and one line in `stepwise.registry`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar, NamedTuple, Protocol

from pydantic import Field

from stepwise.features import State
from stepwise.policy import Device, Marks, PolicyTarget, Vector
from stepwise.steps import Step, StepLimits
from upstream.tokens import Token
from upstream.writer import WriterParameter

Share = Annotated[float, Field(ge=0, le=1)]


class Turn(StrEnum):
    """How the next step is written."""

    DRAFT = "draft"  # by the small model, and judged
    LARGE = "large"  # by the large model
    SMALL_REST = "small_rest"  # this and all that follow by the small model, unjudged
    LARGE_REST = "large_rest"  # likewise by the large model


class Draft(NamedTuple):
    """A step that the small model has just written, with its features and the state before it."""

    step: Step
    vector: Vector
    state: State


class Judgement(NamedTuple):
    """`score`: the strategy's own measure, higher for keep; P(keep) for a policy.

    `ask`: the strategy leaves it to the large model's mark, and the draft is kept from this one on; `keep` says nothing
    then. `mark`: that mark, once it is there.
    """

    keep: bool
    score: float | None = None
    ask: float | None = None
    mark: float | None = None


KEPT, REJECTED = Judgement(True), Judgement(False)
"""Judgements of nobody: no score was given."""


class NoJudgement(Exception):
    """The strategy could not judge. To be safe, the draft is rejected and the large model writes the step; `reason` is
    counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class AnswerContext(NamedTuple):
    """What a run may use of its answer. `verify`: the large model's score for a step, 0..1 (may raise NoJudgement).

    `key` is the same for the same question. `marks`: whether a judgement may ask for the large model's mark.
    """

    key: int
    verify: Callable[[Step], Awaitable[float]]
    marks: bool = False


class Run(Protocol):
    """One answer's strategy."""

    def turn(self, state: State) -> Turn:
        """Who writes the step after `state`."""

    def glance(self, token: Token, state: State) -> bool:
        """False rejects a draft at its first token, before the rest is written."""

    async def running(self, draft: Draft) -> Judgement:
        """What is to be said of a draft whose end has not come yet: one that is rejected is not written to its end.

        It costs no request and changes nothing: at its end the draft is judged as ever.
        """

    async def judge(self, draft: Draft) -> Judgement:
        """Whether to keep this draft. Raises NoJudgement."""

    def close(self) -> None:
        """The answer is over, complete or not."""


class Strategy(ABC):
    """A rule, with its parameters and whatever it learns from answer to answer (bounded)."""

    name: str
    needs_top: int = -1
    """How many top log probabilities the small model's server must give; 0: the written token's own; -1: none."""
    needs_marks: ClassVar[bool] = False
    """Whether the large model must give marks (`Context.verify`)."""
    asks: Marks | None = None
    """Which marks its judgements ask for where the large model gives them; None: they never ask."""
    judges: ClassVar[bool] = True
    """Whether drafts are judged, so that the large model may have to write any step."""
    alone: bool = False
    """Whether one of the models writes everything, whatever the other can do."""
    limits: StepLimits | None = None
    """The sizes of steps that it was trained with; None: any will do."""
    token_budget: int = 4096
    """`State.token_budget`."""

    @abstractmethod
    def begin(self, context: AnswerContext) -> Run:
        """The strategy of one answer."""

    def close(self) -> None:
        """The decision is over, and every run with it."""
        return None


class StepJudge:
    """Defaults for the methods of a run: the small model drafts, and every draft is kept."""

    def turn(self, state: State) -> Turn:
        return Turn.DRAFT

    def glance(self, token: Token, state: State) -> bool:
        return True

    async def running(self, draft: Draft) -> Judgement:
        return KEPT

    async def judge(self, draft: Draft) -> Judgement:
        return Judgement(True)

    def close(self) -> None:
        return None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the block of a decision says about its strategy.

    `values`: the strategy's own parameters, as far as given. `target`: the target to keep, None when none is given.
    `policy`: the network's file, None without one; `device`: where it runs. `small`, `large`: the models' names at
    their servers.
    """

    values: Mapping[str, float]
    target: PolicyTarget | None
    policy: Path | None
    device: Device
    small: str
    large: str

    def number(self, name: str, default: float) -> float:
        return self.values.get(name, default)


SHARE = WriterParameter(Share, "`confidence`, `cold-start`: share of the steps to be written by the large model (0.2).")


@dataclass(frozen=True, slots=True)
class StrategyKind:
    """One strategy, by its name in the policy.

    `make` builds it, and may raise ValueError. `parameters` are its own keys; `takes` those keys of the block that only
    some strategies take (`policy`, `target`, `device`). `loops`: it may choose for the requests of an agent's loop too.
    """

    name: str
    make: Callable[[Wanted], Strategy]
    parameters: Mapping[str, WriterParameter] = field(default_factory=dict)
    takes: frozenset[str] = frozenset()
    loops: bool = False

    @property
    def keys(self) -> frozenset[str]:
        """The keys that this strategy takes and some others do not."""
        return self.takes | self.parameters.keys()
