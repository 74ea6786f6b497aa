"""What one worker keeps of its decisions: counts, the newest traces, lines of the decision log, spans."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

from decisions.decision import Trace
from extproc.metrics import Metrics
from extproc.transport.seam import Stream
from signals.request import Request

TIMED_EVERY = 64  # requests: in one of them every signal is timed, for the metrics
LONGEST_ID = 256  # characters kept of a request's id, which a client may have written
KEPT_DECISIONS = 256  # behind /debug/decisions, for each worker


class Log(Protocol):
    """extproc.decisionlog.DecisionLog"""

    def record(self, trace: Trace, request: Request) -> None: ...


class Spans(Protocol):
    """extproc.tracing.Tracing"""

    def record(self, trace: Trace, request: Request, metadata: Mapping[str, str]) -> None: ...


class Recorder:
    """On the hot path of every request. `traces` holds (seconds since the epoch, request id, trace), oldest first."""

    def __init__(self, metrics: Metrics, log: Log | None, spans: Spans | None) -> None:
        self.metrics = metrics
        self.traces: deque[tuple[float, str | None, Trace]] = deque(maxlen=KEPT_DECISIONS)
        self._log = log
        self._spans = spans
        self._requests = 0

    def record(self, trace: Trace, request: Request, stream: Stream) -> None:
        """One request was decided."""
        self.metrics.record(trace, len(request.body))
        id: str | None = request.headers.get("x-request-id")
        self.traces.append((time.time(), id if id is None else id[:LONGEST_ID], trace))
        if self._log is not None:
            self._log.record(trace, request)
        if self._spans is not None:
            self._spans.record(trace, request, stream.metadata)

    def timed(self) -> bool:
        """Whether to time the signals of the next request."""
        self._requests += 1
        return self._requests % TIMED_EVERY == 1
