"""What one worker keeps of its decisions: counts, the newest outcomes, lines of the decision log, spans."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping
from typing import Final, Protocol

from decisions.outcome import Outcome
from extproc.records.masking import BEYOND, SHOWN
from extproc.records.metrics import Metrics
from extproc.transport.seam import Stream
from signals.request import Request

TIMED_EVERY: Final = 64  # requests: in one of them every signal is timed, for the metrics
LONGEST_ID: Final = 256  # characters kept of a request's id, which a client may have written
KEPT_DECISIONS: Final = 256  # behind /debug/decisions, for each worker
LONGEST_TEXT: Final = SHOWN + BEYOND  # characters kept of what a user has said, where the operator wants to see it


_now: Final = time.time


class Log(Protocol):
    """extproc.records.decisionlog.DecisionLog"""

    @property
    def content(self) -> bool: ...

    def record(self, outcome: Outcome, request: Request) -> None: ...


class Spans(Protocol):
    """extproc.records.tracing.Tracing"""

    def record(self, outcome: Outcome, request: Request, metadata: Mapping[str, str]) -> None: ...


class Recorder:
    """On the hot path of every request. `outcomes` holds (seconds since the epoch, request id, outcome, the beginning
    of what the user says last), oldest first; that text only with `content`, else None.

    `recorded` is how many there were. `keeps`: requests must keep their bodies until they are recorded.
    """

    def __init__(self, metrics: Metrics, log: Log | None, spans: Spans | None, *, content: bool = False) -> None:
        self.metrics = metrics
        self.outcomes: deque[tuple[float, str | None, Outcome, str | None]] = deque(maxlen=KEPT_DECISIONS)
        self.recorded = 0
        self.keeps = content or (log is not None and log.content)
        self._content = content
        self._log = log
        self._spans = spans
        self._requests = 0

    def record(self, outcome: Outcome, request: Request, stream: Stream) -> None:
        """A request that was decided is over."""
        self.metrics.record(outcome)
        id: str | None = request.headers.get("x-request-id")
        self.recorded += 1
        text = request.text("user")[:LONGEST_TEXT] if self._content else None
        self.outcomes.append((_now(), id if id is None else id[:LONGEST_ID], outcome, text))
        if self._log is not None:
            self._log.record(outcome, request)
        if self._spans is not None:
            self._spans.record(outcome, request, stream.metadata)

    def timed(self) -> bool:
        """Whether to time the signals of the next request."""
        self._requests += 1
        return self._requests % TIMED_EVERY == 1
