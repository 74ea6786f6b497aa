"""What a signal said about one request."""

from __future__ import annotations

from typing import Final, NamedTuple


class Reading(NamedTuple):
    """One signal's verdict on one request.

    `matched` is True, False or None; None is *Unknown*: the detector could not say, and `error` names why in a few
    words from a closed set (it becomes a metric label). `score` is the detector's own figure, 0 to 1 unless its kind
    documents another unit; `label` the class it chose; `evidence` short, content-free hints (a pattern's index, a
    count), never prompt text.
    """

    matched: bool | None
    score: float | None = None
    label: str | None = None
    error: str | None = None
    evidence: tuple[str, ...] = ()


TRUE = Reading(True, 1.0)
FALSE = Reading(False, 0.0)


def of(matched: bool) -> Reading:
    """The shared Reading of a detector that is simply on or off (score 1.0 or 0.0)."""
    return TRUE if matched else FALSE


def unknown(reason: str) -> Reading:
    """An Unknown reading; `reason` must come from a small closed set, since it labels a metric."""
    return Reading(None, None, None, reason)


MASKED: Final = "masked"
"""The label of what policies look for in words of their own, of which a client learns nothing, and of a text that could
not be read."""


class Span(NamedTuple):
    """Characters `start` to `end` of a text are what a signal looks for; `label` says what they are, in a word that a
    client may see."""

    start: int
    end: int
    label: str


class Unavailable(Exception):
    """A derived input cannot be had (late, overloaded, broken); `reason` becomes the Unknown reading's error."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
