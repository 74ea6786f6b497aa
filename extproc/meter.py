"""What answers took and cost: the models' gauges for `load`, the ledgers for `budget`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from json import JSONDecodeError, JSONDecoder
from typing import Any, Final

from decisions.decision import Trace
from decisions.engine import Engine
from decisions.model import Model
from extproc.chains import Head
from signals.request import Request
from signals.state.gauges import Loads

KEPT: Final = 64 * 1024
"""Bytes of the end of an answer that are kept; an answer's usage stands within the last few hundred."""

_DECODER = JSONDecoder()


class Tail:
    """The end of an answer's body (`kept`), and what is needed to guess its tokens when it does not say them.

    `head` finds the answer's id, where somebody wants to know it.
    """

    __slots__ = ("events", "head", "kept", "size")

    def __init__(self, head: Head | None = None) -> None:
        self.head = head
        self.kept = bytearray()
        self.size = 0
        self.events = 0

    def take(self, piece: bytes) -> None:
        """The next piece of the body."""
        self.size += len(piece)
        self.events += piece.count(b"data:")
        self.kept += piece
        if len(self.kept) > 2 * KEPT:
            del self.kept[:-KEPT]


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

    def spent(self, engine: Engine, trace: Trace, request: Request, model: Model, tail: Tail) -> None:
        """The whole answer has come: charge what it cost."""
        end = bytes(tail.kept)
        if trace.decision.action == "stepwise" and (said := cost(end)) is not None:
            engine.charge(request, said)  # two models with a price each
            return
        used = usage(end)
        # Without a usage, a token is about an event of a stream, or four bytes of a whole answer.
        guessed = (trace.estimated_input_tokens or 0, tail.events or tail.size // 4)
        tokens = [given if given is not None else guess for given, guess in zip(used, guessed, strict=True)]
        engine.charge(request, model.cost(tokens[0], tokens[1]))


def usage(body: bytes) -> tuple[int | None, int | None]:
    """Input and output tokens that the end of an answer says, in any of the APIs' shapes; None for what it does not.

    The last `usage` that is an object counts: streams repeat it, and Anthropic's grows.
    """
    found: list[int | None] = [None, None]
    for value in _usages(body):
        for index, names in enumerate((("prompt_tokens", "input_tokens"), ("completion_tokens", "output_tokens"))):
            if found[index] is None:
                found[index] = next((n for name in names if (n := _count(value.get(name))) is not None), None)
        if None not in found:
            break
    return found[0], found[1]


def cost(body: bytes) -> float | None:
    """What the end of a stepwise answer says that it has cost; None when it does not."""
    for value in _usages(body):
        ours = value.get("pointsman")
        said = ours.get("cost") if isinstance(ours, dict) else None
        if isinstance(said, (int, float)) and not isinstance(said, bool) and said >= 0:
            return float(said)
    return None


def _usages(body: bytes) -> Iterator[dict[str, Any]]:
    """The `usage` objects in the end of an answer, the last one first."""
    text = body.decode(errors="replace")
    at = len(text)
    while (at := text.rfind('"usage"', 0, at)) >= 0:
        try:
            value, _ = _DECODER.raw_decode(text[at + 7 :].lstrip().removeprefix(":").lstrip())
        except (JSONDecodeError, ValueError):
            continue
        if isinstance(value, dict):
            yield value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None
