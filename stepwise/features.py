"""What a policy knows about a step: one float32 vector, the same in training and in the service.

Everything is computed from the drafted step's tokens and a small running state of the answer so far, by pure
functions. Nothing is normalised here: the statistics are in the ONNX file (see docs/stepwise.md), so that the service
and the training cannot use different ones.

Log probabilities are natural; entropies are in nats; probabilities, margins and shares are in 0..1. "Uncertain" means
that the token written had a probability under one half. Where a step has no token of a kind (no log probabilities, no
digits), its statistics are those of a step about which the model was certain.

Sources: first-token entropy, GlimpRouter (arXiv 2601.05110); mean log probability, STEER (arXiv 2511.06190); margins
over digits and operators, and the running statistics, are ours.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stepwise.steps import Step
from upstream.tokens import FLOOR, Token, certainty

VERSION = 1
"""Changes whenever a feature's meaning, unit or place changes. Stored in every policy file."""

_STATS = ("mean_logprob", "min_logprob", "p10_logprob", "mean_margin", "min_margin", "uncertain_share")

NAMES: tuple[str, ...] = (
    "first_entropy",  # nats; of the first token: its top probabilities and one bucket for the rest
    "first_margin",  # probability of the best token minus that of the second, at the first token
    "mean_entropy",  # nats; over the step's tokens
    "max_entropy",  # nats
    *_STATS,  # over the step's tokens; margins as above
    "perplexity",  # exp(-mean_logprob), at most 1000
    "number_share",  # share of tokens that hold a digit or an operator
    *(f"number_{name}" for name in _STATS),  # the same statistics over those tokens only
    "step_tokens",  # tokens in this step
    "step_index",  # steps accepted before this one
    "small_tokens",  # tokens the small model wrote before this step, rejected drafts included
    "large_tokens",  # tokens the large model wrote before this step
    "budget_left",  # share of the answer's token budget still left before this step
    "running_min_logprob",  # least mean_logprob of any draft so far, this one included
    "ema_logprob",  # moving average of the drafts' mean_logprob (weight of the newest 0.3), this one included
    "slope_logprob",  # least-squares slope of the drafts' mean_logprob over their number, this one included
    "redos",  # steps the large model wrote so far
    "since_redo",  # steps accepted since the last of them, or since the beginning
    "repeated",  # 1 when the same step (white space and case aside) was accepted before
    "corrections",  # self-correction words in this step ("wait", "but", ...), at most 8
    "answer_present",  # 1 when the step states a final answer
    "difficulty",  # the request's difficulty signal, 0..1; 0.5 when unknown
    "thought",  # 1 when the step is one of the thoughts before the answer
)
"""Feature names in the order of the vector. New ones come last: a policy sees those that it was trained with."""

WIDTH = len(NAMES)
FIRST = NAMES.index("thought")
"""How many there were when the first policies were trained."""

_EMA = 0.3
_UNCERTAIN = math.log(0.5)
_MAX_PERPLEXITY = 1000.0
_MAX_CORRECTIONS = 8
_MAX_SEEN = 64
_NUMBER = re.compile(r"[0-9+\-*/=<>^%×÷·√≤≥≠]")
_CORRECTION = re.compile(
    r"\b(?:wait|but|however|actually|hmm+|oops|mistake|incorrect|instead|re-?check|double-check|let me check)\b", re.I
)
_ANSWER = re.compile(r"\\boxed\{|####|\banswer(?:\s+is|\s*[:=])", re.I)


@dataclass(frozen=True, slots=True)
class State:
    """What is known of an answer before its next step. A state never changes: each event gives a new one."""

    token_budget: int = 4096
    difficulty: float = 0.5
    index: int = 0
    small_tokens: int = 0
    large_tokens: int = 0
    written: int = 0  # tokens of the accepted steps
    redos: int = 0
    since_redo: int = 0
    drafts: int = 0
    sum_y: float = 0.0  # of the drafts' mean log probabilities, for the slope
    sum_xy: float = 0.0
    min_logprob: float = 0.0
    ema_logprob: float = 0.0
    seen: frozenset[int] = frozenset()  # checksums of accepted steps' normalised text, at most `_MAX_SEEN`

    def drafted(self, mean_logprob: float) -> State:
        """The small model has drafted a step with this mean log probability (whatever becomes of it)."""
        first = self.drafts == 0
        return replace(
            self,
            drafts=self.drafts + 1,
            sum_y=self.sum_y + mean_logprob,
            sum_xy=self.sum_xy + self.drafts * mean_logprob,
            min_logprob=mean_logprob if first else min(self.min_logprob, mean_logprob),
            ema_logprob=mean_logprob if first else self.ema_logprob + _EMA * (mean_logprob - self.ema_logprob),
        )

    def kept(self, step: Step) -> State:
        """The small model's step was accepted."""
        return self._accepted(step, small_tokens=self.small_tokens + step.size, since_redo=self.since_redo + 1)

    def redone(self, draft_tokens: int, step: Step) -> State:
        """A draft of `draft_tokens` tokens was rejected (0: there was none), and the large model's step accepted."""
        return self._accepted(
            step,
            small_tokens=self.small_tokens + draft_tokens,
            large_tokens=self.large_tokens + step.size,
            redos=self.redos + 1,
            since_redo=0,
        )

    def repeats(self, step: Step) -> bool:
        """Whether the same text, apart from white space and case, was accepted before."""
        return _fingerprint(step.text) in self.seen

    def _accepted(self, step: Step, **changes: int) -> State:
        seen = self.seen if len(self.seen) >= _MAX_SEEN else self.seen | {_fingerprint(step.text)}
        return replace(self, index=self.index + 1, written=self.written + step.size, seen=seen, **changes)

    @property
    def slope_logprob(self) -> float:
        """Least-squares slope of the drafts' mean log probability over their number; 0 with fewer than two."""
        n = self.drafts
        if n < 2:
            return 0.0
        # Sums of 0..n-1 and of their squares, in closed form.
        sum_x = n * (n - 1) / 2
        spread = n * (n * n - 1) / 12
        return (self.sum_xy - sum_x * self.sum_y / n) / spread


def draft(step: Step, state: State) -> tuple[NDArray[np.float32], State]:
    """The vector [WIDTH] float32 for a step that the small model has just drafted, and the state that saw it."""
    known = [token for token in step.tokens if token.logprob is not None]
    certainties = [token.certainty or certainty(token.logprob, token.top) for token in known]
    pairs = [(token, margin) for token, (_, margin) in zip(known, certainties, strict=True)]
    stats = _stats(pairs)
    after = state.drafted(stats[0])
    numbers = [pair for pair in pairs if _NUMBER.search(pair[0].text)]
    entropies = [value for token, (value, _) in zip(known, certainties, strict=True) if token.top]
    vector = np.array(
        (
            *(certainties[0] if known else (0.0, 1.0)),
            sum(entropies) / len(entropies) if entropies else 0.0,
            max(entropies, default=0.0),
            *stats,
            min(math.exp(-stats[0]), _MAX_PERPLEXITY),
            len(numbers) / len(known) if known else 0.0,
            *_stats(numbers),
            step.size,
            state.index,
            state.small_tokens,
            state.large_tokens,
            max(0.0, 1.0 - state.written / state.token_budget),
            after.min_logprob,
            after.ema_logprob,
            after.slope_logprob,
            state.redos,
            state.since_redo,
            state.repeats(step),
            min(len(_CORRECTION.findall(step.text)), _MAX_CORRECTIONS),
            _ANSWER.search(step.text) is not None,
            state.difficulty,
            step.thought,
        ),
        dtype=np.float32,
    )
    return vector, after


def _stats(pairs: Sequence[tuple[Token, float]]) -> tuple[float, float, float, float, float, float]:
    """`_STATS` of tokens that all have a log probability, each with its margin."""
    if not pairs:
        return 0.0, 0.0, 0.0, 1.0, 1.0, 0.0
    logprobs = sorted(max(token.logprob, FLOOR) for token, _ in pairs if token.logprob is not None)
    margins = [value for _, value in pairs]
    n = len(logprobs)
    return (
        sum(logprobs) / n,
        logprobs[0],
        logprobs[(n - 1) // 10],
        sum(margins) / n,
        min(margins),
        sum(value < _UNCERTAIN for value in logprobs) / n,
    )


def _fingerprint(text: str) -> int:
    return zlib.crc32(" ".join(text.casefold().split()).encode("utf-8", "surrogatepass"))
