"""Who writes the next step: our policy, the published handcrafted rules, and the plain baselines, behind one interface.

A `Strategy` belongs to a decision and lives as long as it does; a `Run` belongs to one answer. `Run.turn` says how the
next step begins; `Run.glance` may reject a draft at its first token, `Run.judge` at its end.
"""

from __future__ import annotations

import bisect
import math
import random
from collections import deque
from collections.abc import Awaitable, Callable
from enum import StrEnum
from typing import NamedTuple, Protocol

from stepwise import features
from stepwise.features import State
from stepwise.policy import Policy, PolicyFailed, Vector
from stepwise.steps import Step, Token


class Turn(StrEnum):
    """How the next step is written."""

    DRAFT = "draft"  # by the small model, and judged
    LARGE = "large"  # by the large model
    SMALL_REST = "small_rest"  # this and all that follow by the small model, unjudged
    LARGE_REST = "large_rest"  # likewise by the large model


class Draft(NamedTuple):
    """A step that the small model has just written: what it is, what the policy sees of it, what was before it."""

    step: Step
    vector: Vector
    state: State


class Verdict(NamedTuple):
    """`score`: the strategy's own measure, higher for keep; P(keep) for a policy."""

    keep: bool
    score: float | None = None


class NoVerdict(Exception):
    """The strategy could not judge. The draft is rejected (the large model is the safe side) and `reason` counted."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Context(NamedTuple):
    """What a run may use of its answer. `verify`: the large model's score for a step, 0..1 (may raise NoVerdict).

    `key` is the same for the same question.
    """

    key: int
    verify: Callable[[Step], Awaitable[float]]


class Run(Protocol):
    """One answer's strategy."""

    def turn(self, state: State) -> Turn:
        """Who writes the step after `state`."""

    def glance(self, token: Token, state: State) -> bool:
        """False rejects a draft at its first token, before the rest is written."""

    async def judge(self, draft: Draft) -> Verdict:
        """Keep this draft? Raises NoVerdict."""

    def close(self) -> None:
        """The answer is over, whatever came of it."""


class Strategy(Protocol):
    """A rule, with its parameters and whatever it learns from answer to answer (bounded)."""

    @property
    def name(self) -> str: ...

    @property
    def needs_top(self) -> int:
        """Top log probabilities that the small model's server must give: -1 none at all, 0 the written token's own."""

    def begin(self, context: Context) -> Run: ...


class _Judge:
    """The parts of a run that most strategies do not need."""

    def turn(self, state: State) -> Turn:
        return Turn.DRAFT

    def glance(self, token: Token, state: State) -> bool:
        return True

    async def judge(self, draft: Draft) -> Verdict:
        return Verdict(True)

    def close(self) -> None:
        return None


class PolicyStrategy:
    """A trained network: keep when P(keep) >= kappa (Si, Lee and Bastani, arXiv 2605.06116)."""

    name = "policy"
    needs_top = features.TOP

    def __init__(self, policy: Policy, kappa: float) -> None:
        self.policy = policy
        self.kappa = kappa

    def begin(self, context: Context) -> Run:
        return _PolicyRun(self.policy, self.kappa)


class _PolicyRun(_Judge):
    def __init__(self, policy: Policy, kappa: float) -> None:
        self._policy = policy
        self._kappa = kappa
        self._hidden: Vector | None = None
        policy.answers += 1

    async def judge(self, draft: Draft) -> Verdict:
        try:
            keep, self._hidden = await self._policy.keep(draft.vector, self._hidden)
        except PolicyFailed as error:
            raise NoVerdict(error.reason, str(error)) from error
        return Verdict(keep >= self._kappa, keep)

    def close(self) -> None:
        self._policy.answers -= 1


class Glimpse:
    """Rejects a draft at its first token when that token's entropy (nats) is above `threshold` (arXiv 2601.05110)."""

    name = "glimpse"
    needs_top = features.TOP

    def __init__(self, threshold: float = 0.5) -> None:
        self.threshold = threshold

    def begin(self, context: Context) -> Run:
        return _GlimpseRun(self.threshold)


class _GlimpseRun(_Judge):
    def __init__(self, threshold: float) -> None:
        self._threshold = threshold

    def glance(self, token: Token, state: State) -> bool:
        return features.entropy(token.top) <= self._threshold


class Quantile:
    """Where a value lies among the last `_WINDOW` of its kind."""

    _WINDOW = 512

    def __init__(self) -> None:
        self._order: deque[float] = deque()
        self._sorted: list[float] = []

    def __len__(self) -> int:
        return len(self._order)

    def rank(self, value: float) -> float:
        """Share of the values seen that are below `value` (half of those equal to it), then `value` is one of them."""
        below = bisect.bisect_left(self._sorted, value)
        equal = bisect.bisect_right(self._sorted, value) - below
        rank = (below + equal / 2) / len(self._sorted) if self._sorted else 0.5
        if len(self._order) == self._WINDOW:
            del self._sorted[bisect.bisect_left(self._sorted, self._order.popleft())]
        self._order.append(value)
        bisect.insort(self._sorted, value)
        return rank


_ENOUGH = 32  # values before a quantile is trusted
_MEAN_LOGPROB = features.NAMES.index("mean_logprob")
_NUMBER_MIN = features.NAMES.index("number_min_logprob")
_MIN_MARGIN = features.NAMES.index("min_margin")
_FIRST_ENTROPY = features.NAMES.index("first_entropy")


class Confidence:
    """Rejects the `share` of steps with the least mean log probability, by a running quantile (after arXiv 2511.06190).

    Until 32 steps were seen, those under `cold` (natural log).
    """

    name = "confidence"
    needs_top = 0

    def __init__(self, share: float = 0.2, cold: float = -0.35) -> None:
        self.share = share
        self.cold = cold
        self.seen = Quantile()

    def begin(self, context: Context) -> Run:
        return _ConfidenceRun(self)


class _ConfidenceRun(_Judge):
    def __init__(self, rule: Confidence) -> None:
        self._rule = rule

    async def judge(self, draft: Draft) -> Verdict:
        rule = self._rule
        value = float(draft.vector[_MEAN_LOGPROB])
        warm = len(rule.seen) >= _ENOUGH
        rank = rule.seen.rank(value)
        return Verdict(rank >= rule.share if warm else value >= rule.cold, value)


class ColdStart:
    """For pairs of models without a trained policy: rejects the `share` of steps that look worst.

    Four signs of doubt (mean log probability, least log probability among digits and operators, least margin, entropy
    of the first token) are turned into ranks among the last steps, so that no scale has to be known, and averaged.
    Until 32 steps were seen, a step is rejected when its digits or its words are improbable outright.
    """

    name = "cold-start"
    needs_top = features.TOP

    def __init__(self, share: float = 0.2) -> None:
        self.share = share
        self.signs = [Quantile() for _ in range(4)]
        self.doubt = Quantile()

    def begin(self, context: Context) -> Run:
        return _ColdRun(self)


class _ColdRun(_Judge):
    def __init__(self, rule: ColdStart) -> None:
        self._rule = rule

    async def judge(self, draft: Draft) -> Verdict:
        vector, rule = draft.vector, self._rule
        signs = (vector[_MEAN_LOGPROB], vector[_NUMBER_MIN], vector[_MIN_MARGIN], -vector[_FIRST_ENTROPY])
        score = sum(seen.rank(float(sign)) for seen, sign in zip(rule.signs, signs, strict=True)) / len(signs)
        warm = len(rule.doubt) >= _ENOUGH
        rank = rule.doubt.rank(score)
        if warm:
            return Verdict(rank >= rule.share, score)
        return Verdict(bool(signs[0] >= -0.35 and signs[1] >= math.log(0.5)), score)


class Verify:
    """The large model scores every draft with one token; kept from `threshold` on (after arXiv 2504.07891)."""

    name = "verify"
    needs_top = -1

    def __init__(self, threshold: float = 0.7) -> None:
        self.threshold = threshold

    def begin(self, context: Context) -> Run:
        return _VerifyRun(self.threshold, context.verify)


class _VerifyRun(_Judge):
    def __init__(self, threshold: float, verify: Callable[[Step], Awaitable[float]]) -> None:
        self._threshold = threshold
        self._verify = verify

    async def judge(self, draft: Draft) -> Verdict:
        score = await self._verify(draft.step)
        return Verdict(score >= self._threshold, score)


class Random:
    """Rejects each draft with probability `p`; the same choices for the same question and `seed`."""

    name = "random"
    needs_top = -1

    def __init__(self, p: float = 0.2, seed: int = 0) -> None:
        self.p = p
        self.seed = seed

    def begin(self, context: Context) -> Run:
        return _RandomRun(self.p, random.Random(f"{self.seed}:{context.key}"))


class _RandomRun(_Judge):
    def __init__(self, p: float, rng: random.Random) -> None:
        self._p = p
        self._rng = rng

    async def judge(self, draft: Draft) -> Verdict:
        return Verdict(self._rng.random() >= self._p)


class Fixed:
    """The large model writes the first `n` steps, then the small one the rest; or one of them everything."""

    needs_top = -1

    def __init__(self, name: str, n: int, rest: Turn) -> None:
        self.name = name
        self.n = n
        self.rest = rest

    @classmethod
    def first_n(cls, n: int = 1) -> Fixed:
        return cls("first-n", n, Turn.SMALL_REST)

    @classmethod
    def always_small(cls) -> Fixed:
        return cls("always-small", 0, Turn.SMALL_REST)

    @classmethod
    def always_large(cls) -> Fixed:
        return cls("always-large", 0, Turn.LARGE_REST)

    def begin(self, context: Context) -> Run:
        return _FixedRun(self.n, self.rest)


class _FixedRun(_Judge):
    def __init__(self, n: int, rest: Turn) -> None:
        self._n = n
        self._rest = rest

    def turn(self, state: State) -> Turn:
        return Turn.LARGE if state.index < self._n else self._rest
