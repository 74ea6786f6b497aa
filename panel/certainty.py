"""How sure a model was of the answer that it wrote, from the probabilities of its tokens.

The measures are those of the literature on cascades: FrugalGPT (Chen et al., arXiv 2305.05176) and AutoMix (Aggarwal et
al., arXiv 2310.12963) stop at the first answer that is sure enough; "Language Model Cascades: Token-Level Uncertainty
and Beyond" (Gupta et al., arXiv 2404.10136) finds low quantiles of the tokens' probabilities better than their mean.

A measure is a number from 0 to 1, but no probability of being right: `Curve` makes one of it, from answers whose
rightness is known.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple, Self

import orjson

from signals import files
from upstream.tokens import FLOOR, Token


class Surety:
    """What is known of an answer's tokens so far; one for each answer, fed as they come."""

    __slots__ = ("digits", "least", "logprobs", "margins", "product", "tokens")

    def __init__(self) -> None:
        self.tokens = 0  # whose probability is known
        self.logprobs = 0.0  # their sum
        self.margins = 1.0  # the least one
        self.least = 0.0  # log probability
        self.digits = 0.0  # the least log probability of a token that has a digit
        self.product = 0.0  # the sum of those of all tokens that have one

    def feed(self, token: Token) -> None:
        """The answer's next token."""
        if token.logprob is None:
            return
        logprob = max(token.logprob, FLOOR)
        self.tokens += 1
        self.logprobs += logprob
        self.least = min(self.least, logprob)
        if token.certainty is not None:
            self.margins = min(self.margins, token.certainty[1])
        if any(character.isdigit() for character in token.text):
            self.digits = min(self.digits, logprob)
            self.product += logprob


class Measure(NamedTuple):
    """One measure: what it is, how it is read, and whether it can only fall while an answer grows."""

    about: str
    read: Callable[[Surety], float]
    falls: bool


MEASURES: Final[Mapping[str, Measure]] = {
    "mean": Measure(
        "the geometric mean of the tokens' probabilities", lambda seen: math.exp(seen.logprobs / seen.tokens), False
    ),
    "least": Measure("the probability of the least probable token", lambda seen: math.exp(seen.least), True),
    "digits": Measure(
        "the same, of the tokens that have a digit: for answers that are computed",
        lambda seen: math.exp(seen.digits),
        True,
    ),
    "product": Measure(
        "the probability of all tokens that have a digit together: that every one of them is right",
        lambda seen: math.exp(seen.product),
        True,
    ),
    "margin": Measure(
        "the least lead of a token's probability over the second most probable one's", lambda seen: seen.margins, True
    ),
}


@dataclass(frozen=True, slots=True)
class Curve:
    """Which share of the answers was right at least, of those whose measure is at or over a threshold.

    `thresholds` rise; `right[i]` belongs to `thresholds[i]` and rises, too. `by` names the measure, `model` the model's
    name at its server, `verifier` that of the model whose probabilities were measured, where it is another one.
    """

    by: str
    model: str
    thresholds: Sequence[float]
    right: Sequence[float]
    verifier: str = ""

    @classmethod
    def read(cls, path: Path) -> Self:
        """The curve in a file. Raises ValueError when it is none."""
        try:
            said = orjson.loads(files.read(path, files.POLICY))
            thresholds = tuple(float(pair[0]) for pair in said["curve"])
            right = tuple(float(pair[1]) for pair in said["curve"])
            made = cls(str(said["by"]), str(said["model"]), thresholds, right, str(said.get("verifier", "")))
        except OSError as error:
            raise ValueError(f"the calibration cannot be read: {error}") from None
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise ValueError(f"the calibration in {path} is damaged ({error!r}): make it anew") from None
        rises = all(list(side) == sorted(side) for side in (thresholds, right))
        if not thresholds or not rises or not all(0 <= number <= 1 for number in (*thresholds, *right)):
            raise ValueError(f"the calibration in {path} is damaged: its curve does not rise from 0 to 1")
        return made

    def threshold(self, sure: float) -> float | None:
        """The lowest threshold that keeps the promise that a share `sure` of what is released is right; None where no
        threshold keeps it."""
        at = bisect_left(self.right, sure)
        return self.thresholds[at] if at < len(self.thresholds) else None


_EXPECTED: Final = 5
"""The usual condition for the normal approximation of a share."""


def calibrated(
    by: str, model: str, seen: Sequence[tuple[float, bool]], delta: float = 0.05, verifier: str = ""
) -> Curve:
    """The curve of answers `seen`: their measure, and whether they were right.

    The promise is of as many answers to come, not of the expectation alone: a threshold's share is what its answers
    had, less what chance may make of two samples of that size (normal approximation, one-sided at `delta`). A
    threshold promises no more than leaves `_EXPECTED` wrong ones to be expected among its answers: with fewer the
    approximation does not hold, and the best of many small sets is good by chance.
    """
    z = {0.1: 1.2816, 0.05: 1.6449, 0.01: 2.3263}[delta]
    ranked = sorted(seen, reverse=True)
    right = 0
    found: dict[float, float] = {}
    for count, (value, good) in enumerate(ranked, start=1):
        right += good
        if count < len(ranked) and ranked[count][0] == value:
            continue
        share = (right + 1) / (count + 2)
        bound = right / count - z * math.sqrt(2 * share * (1 - share) / count)
        found[value] = max(0.0, min(bound, 1 - _EXPECTED / count))
    thresholds = sorted(found)
    shares: list[float] = []
    for value in thresholds:  # a higher threshold promises no less than a lower one does
        shares.append(max(found[value], shares[-1] if shares else 0.0))
    step = max(1, len(thresholds) // 200)
    kept = sorted({*range(0, len(thresholds), step), len(thresholds) - 1})
    return Curve(by, model, [thresholds[at] for at in kept], [round(shares[at], 6) for at in kept], verifier)
