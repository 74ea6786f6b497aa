"""The decision log: one JSON line a decided request, sampled, masked, in a form that `pointsman replay` reads back.

Without content a line says what was decided and why. With content (`--decision-log-content`) it also holds the request
as `replay` wants it, with credentials left out and personal data masked.
"""

from __future__ import annotations

import logging
import queue
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from decisions.decision import Trace
from signals.masking import masked
from signals.request import Request

log = logging.getLogger("pointsman.decisionlog")

CAPACITY = 10_000  # lines waiting to be written; more are dropped and counted
PAUSE_S = 0.2
LINE_KEYS: Final = frozenset(
    ("time", "id", "policy", "decision", "action", "model", "fallback", "us", "rules", "signals")
)  # what a line has beside the request
KEPT_HEADERS: Final = ("content-type", "user-agent", "x-request-id", "traceparent")


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`path` is a file, or `-` for standard output; `sample` the share of decisions that is logged, 0 to 1.

    `headers` names further request headers to keep (identity headers that the policy reads, say).
    """

    path: str
    sample: float = 1.0
    content: bool = False
    headers: tuple[str, ...] = ()


class DecisionLog:
    """Writes lines from a thread of its own, so that a slow disk costs no request anything.

    The file is opened anew for every batch: a log rotation needs no signal.
    """

    def __init__(self, options: LogOptions, chance: Callable[[], float] = random.random) -> None:
        self.dropped = 0
        self._options = options
        self._chance = chance
        self._headers = frozenset((*KEPT_HEADERS, *(name.lower() for name in options.headers)))
        self._lines: queue.Queue[tuple[float, Trace, Request] | None] = queue.Queue(CAPACITY)
        self._thread: threading.Thread | None = None

    def record(self, trace: Trace, request: Request) -> None:
        """Log a decision, if the sample takes it. Never blocks."""
        if self._chance() >= self._options.sample:
            return
        if self._thread is None:  # not in __init__: workers are forked after that
            self._thread = threading.Thread(target=self._write, name="decision-log", daemon=True)
            self._thread.start()
        try:
            self._lines.put_nowait((time.time(), trace, request))
        except queue.Full:
            self.dropped += 1

    def close(self) -> None:
        """Write what is waiting, for two seconds at most."""
        thread, self._thread = self._thread, None
        if thread is None:
            return
        try:
            self._lines.put(None, timeout=2.0)
        except queue.Full:  # the disk takes nothing: what waits is lost, and stopping must not fail over it
            log.error("decision_log_failed", extra={"path": self._options.path, "why": "not written in time"})
            return
        thread.join(2.0)

    def line(self, when: float, trace: Trace, request: Request) -> dict[str, Any]:
        """One decision as the object that is written."""
        decision = trace.decision
        line: dict[str, Any] = {
            "time": when,
            "id": request.headers.get("x-request-id"),
            "policy": trace.policy,
            "decision": decision.name,
            "action": decision.action,
            "model": decision.model.key if decision.model is not None else None,
            "fallback": decision.fallback,
            "us": round(trace.microseconds, 1),
            "rules": [{"decision": name, "result": result} for name, result in trace.results.items()],
            "signals": {
                name: {"matched": r.matched, "score": r.score, "label": r.label, "error": r.error}
                for name, r in trace.readings.items()
            },
        }
        if self._options.content:
            line["path"] = request.headers.get(":path", "/v1/chat/completions")
            line["headers"] = {name: request.headers[name] for name in self._headers if name in request.headers}
            line["request"] = _masked(request.fields)
        return line

    def _write(self) -> None:
        last = False
        while not last:
            batch = [self._lines.get()]
            time.sleep(PAUSE_S if batch[0] is not None else 0.0)
            while not self._lines.empty():
                batch.append(self._lines.get_nowait())
            last = None in batch
            try:
                self._append(b"".join(orjson.dumps(self.line(*item)) + b"\n" for item in batch if item is not None))
            except (OSError, TypeError) as error:
                self.dropped += len(batch)
                log.error("decision_log_failed", extra={"path": self._options.path, "why": str(error)})

    def _append(self, data: bytes) -> None:
        if self._options.path == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        with open(self._options.path, "ab") as file:
            file.write(data)


def _masked(value: Any) -> Any:
    """`value` with personal data masked in every text."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, dict):
        return {key: _masked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_masked(item) for item in value]
    return value
