"""What one worker keeps of its decisions: counts, the newest outcomes, lines of the decision log, spans."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from decisions.outcome import Outcome
from extproc.metrics import Metrics
from signals.request import Request

TIMED_EVERY = 64  # requests: in one of them every signal is timed, for the metrics
LONGEST_ID = 256  # characters kept of a request's id, which a client may have written
KEPT_DECISIONS = 256  # behind /debug/decisions, for each worker
_GONE = Request("", b"", {}, None, ())


class Log(Protocol):
    """extproc.decisionlog.DecisionLog"""

    @property
    def content(self) -> bool: ...

    def record(self, outcome: Outcome) -> None: ...


class Spans(Protocol):
    """extproc.tracing.Tracing"""

    def record(self, outcome: Outcome) -> None: ...


class Recorder:
    """On the hot path of every request. `outcomes` holds (seconds since the epoch, request id, outcome), oldest first.

    `keeps`: requests are wanted with their bodies.
    """

    def __init__(self, metrics: Metrics, log: Log | None, spans: Spans | None) -> None:
        self.metrics = metrics
        self.outcomes: deque[tuple[float, str | None, Outcome]] = deque(maxlen=KEPT_DECISIONS)
        self.keeps = log is not None and log.content
        self._log = log
        self._spans = spans
        self._requests = 0

    def record(self, outcome: Outcome) -> None:
        """One request is over that was decided."""
        self.metrics.record(outcome)
        if self._log is not None:
            self._log.record(outcome)
        if self._spans is not None:
            self._spans.record(outcome)
        id: str | None = outcome.request.headers.get("x-request-id")
        # Without the request, whose headers and body would be held for as long as this is.
        self.outcomes.append((time.time(), id if id is None else id[:LONGEST_ID], outcome._replace(request=_GONE)))

    def timed(self) -> bool:
        """Whether to time the signals of the next request."""
        self._requests += 1
        return self._requests % TIMED_EVERY == 1
