"""What one worker keeps of its decisions: counts, the newest traces, lines of the decision log, spans."""

from __future__ import annotations

import time
from collections import deque

from decisions.decision import Trace
from extproc.decisionlog import DecisionLog
from extproc.metrics import Metrics
from extproc.tracing import Tracing
from extproc.transport.seam import Stream
from signals.request import Request

TIMED_EVERY = 64  # requests: in one of them every signal is timed, for the metrics
KEPT_DECISIONS = 256  # behind /debug/decisions, for each worker


class Recorder:
    """On the hot path of every request. `traces` holds (seconds since the epoch, request id, trace), oldest first."""

    def __init__(self, metrics: Metrics, log: DecisionLog | None, tracing: Tracing | None) -> None:
        self.metrics = metrics
        self.traces: deque[tuple[float, str | None, Trace]] = deque(maxlen=KEPT_DECISIONS)
        self.log = log
        self.tracing = tracing
        self._requests = 0

    def record(self, trace: Trace, request: Request, stream: Stream) -> None:
        """One request was decided."""
        self.metrics.record(trace, len(request.body))
        self.traces.append((time.time(), request.headers.get("x-request-id"), trace))
        if self.log is not None:
            self.log.record(trace, request)
        if self.tracing is not None:
            self.tracing.record(trace, request, stream.metadata)

    def timed(self) -> bool:
        """Whether to time the signals of the next request."""
        self._requests += 1
        return self._requests % TIMED_EVERY == 1
