"""The two models of a stepwise decision, and what all answers that it writes share."""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field
from typing import NamedTuple

from stepwise.asking.probe import Capability
from stepwise.metrics import StepwiseMetrics
from stepwise.policy import Marks
from stepwise.steps import StepLimits
from stepwise.strategy import Strategy
from upstream.client import ModelClient

log = logging.getLogger("pointsman.stepwise")


@dataclass(slots=True)
class PairModel:
    """One of the pair: its name in the configuration, its server, and what the probe found."""

    name: str
    upstream: ModelClient
    capability: Capability
    suspect: bool = False  # it did not do what its capability says: probe it again
    failure: str | None = None  # why its server does not work, as far as is known
    asked: float | None = None  # when it was last probed, by the monotonic clock
    hung: float | None = None  # since when its server gives no mark in time, or was last asked in vain whether it does
    probing: asyncio.Lock = field(default_factory=asyncio.Lock)

    @property
    def template(self) -> str | None:
        """The chat template of its model, as far as it is known: what the policy says, else the server's own."""
        return self.upstream.endpoint.template or self.capability.template

    def failed(self, why: str) -> None:
        """Its server does not work: that is logged once, until it works again."""
        if self.failure is None:
            self.failure = why
            log.error("stepwise_model_down", extra={"model": self.name, "why": why})

    def works(self) -> None:
        """Its server has answered the probe."""
        if self.failure is not None:
            self.failure = None
            log.info("stepwise_model_up", extra={"model": self.name})

    def hangs(self) -> None:
        """Its server gives no marks in time: no answer asks for any until it has given one again."""
        if self.hung is None:
            log.error("stepwise_marks_hang", extra={"model": self.name})
        self.hung = time.monotonic()

    def marks_again(self) -> None:
        """Its server has said whether it gives marks."""
        if self.hung is not None:
            self.hung = None
            log.info("stepwise_marks_again", extra={"model": self.name})


class AnswerBudget(NamedTuple):
    """Limits of one answer. The first three end judging (whoever writes then writes the rest); tokens end the answer.

    `steps`; `seconds` of wall clock; `money` in the unit of the prices, for everything spent; `tokens` written by both
    models, rejected ones included.
    """

    steps: int = 30
    seconds: float = 120.0
    money: float | None = None
    tokens: int = 16384


@dataclass(frozen=True, slots=True)
class Setup:
    """What all answers of a stepwise decision share."""

    small: PairModel
    large: PairModel
    strategy: Strategy
    limits: StepLimits = field(default_factory=StepLimits)
    budget: AnswerBudget = field(default_factory=AnswerBudget)
    max_redos: int = 8
    token_budget: int = 4096  # `State.token_budget`
    verdict_tokens: int = 64  # an unfinished draft is judged whenever it has grown by so many
    warm_below: float | None = None  # scores under this warm the large model's prefix cache
    marks: Marks | None = None  # those that the strategy may ask for, if the large model gives them
    metrics: StepwiseMetrics = field(default_factory=StepwiseMetrics)
