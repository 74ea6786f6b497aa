"""The tokens and the cost of answers, and the models' gauges for `load`."""

from __future__ import annotations

import time
from typing import Final

from decisions.decision import Trace
from decisions.model import Model
from extproc.chains import IdFinder
from signals.request import Request
from signals.state.gauges import Loads
from upstream import usage
from upstream.usage import Spent

KEPT: Final = 64 * 1024
"""Bytes of the end of an answer that are kept; an answer's usage stands within the last few hundred."""

_EVENT: Final = b"data:"


class Tail:
    """The end of an answer's body (`kept`), and what is needed to guess its tokens when it does not say them.

    `finder` finds the answer's id, where somebody wants to know it.
    """

    __slots__ = ("_gone", "finder", "kept", "size")

    def __init__(self, finder: IdFinder | None = None) -> None:
        self.finder = finder
        self.kept = bytearray()
        self.size = 0
        self._gone = 0  # events of a stream that are not kept

    def take(self, piece: bytes) -> None:
        """The next piece of the body."""
        self.size += len(piece)
        self.kept += piece
        if len(self.kept) > 2 * KEPT:
            stop = len(self.kept) - KEPT
            self._gone += self.kept.count(_EVENT, 0, stop + len(_EVENT) - 1)
            del self.kept[:stop]

    @property
    def events(self) -> int:
        """How many events of a stream have come; 0 for an answer that is none."""
        return self._gone + self.kept.count(_EVENT)


class Meter:
    """Counts for the requests of one policy in force."""

    def __init__(self, loads: Loads) -> None:
        self._loads = loads

    def started(self, model: Model) -> None:
        """A request was sent to `model`."""
        self._loads.of(model.key).started()

    def first_byte(self, model: Model, request: Request, status: int) -> None:
        """The answer's headers came."""
        self._loads.of(model.key).ended(max(0.0, time.time() - request.received), status >= 500)

    def given_up(self, model: Model) -> None:
        """The exchange ended before an answer came: the client left, which says nothing about the model."""
        self._loads.of(model.key).ended(None, False)


def spent(trace: Trace, model: Model, tail: Tail, guess: bool = True) -> Spent:
    """What an answer of `model` took, by its `tail`.

    `guess`: estimate the tokens of an answer that does not state its usage (False for errors, and for calls that only
    count tokens, since these cost nothing).
    """
    end = bytes(tail.kept)
    used, money = usage.last(end, trace.decision.writer is not None)
    prompt, completion = used.prompt, used.completion
    if prompt is None:
        prompt = (trace.estimated_input_tokens or 0) if guess else 0
    if completion is None:  # a token is about an event of a stream, or four bytes of a whole answer
        completion = (tail.events or tail.size // 4) if guess and used.prompt is None else 0
    cached = None if used.cached is None else min(used.cached, prompt)
    written = None if used.written is None else min(used.written, prompt - (cached or 0))
    if money is None:  # a writer says its own: that of several models with a price each
        money = model.cost(prompt, completion, cached or 0, written or 0)
    return Spent(prompt, completion, money, cached, used.reasoning, written)
