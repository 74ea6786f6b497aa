"""The decision log: one JSON line per decided request, sampled, masked, in a form that `pointsman replay` reads back.

Without content a line says what was decided and why, and nothing of the request is kept for it. With content
(`--decision-log-content`) it also holds the request as `replay` reads it, with credentials left out and personal data
masked; content that cannot be masked is left out, and the line says so (`content_error`).
"""

from __future__ import annotations

import logging
import random
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import orjson

from decisions.outcome import Outcome, as_object
from extproc.records import shown
from extproc.records.masking import masked, masked_json
from signals.background import background
from signals.credentials import credential
from signals.request import Request

log = logging.getLogger("pointsman.decisionlog")

CAPACITY = 10_000  # lines waiting to be written; more are dropped and counted
BUFFER: Final = 64 * 2**20
"""Bytes that wait to be written, in each worker; more are dropped and counted."""
OVERHEAD = 256  # bytes that a waiting line takes beside its text and its request's body
PIECE = 2**20  # bytes given to the disk at once
PAUSE_S = 0.2
MASKING_S = 5.0  # for one request's content
LINE_KEYS: Final = frozenset(
    (
        "time",
        "id",
        "policy",
        "decision",
        "action",
        "model",
        "fallback",
        "us",
        "rules",
        "signals",
        "observed",
        "status",
        "kept",
        "lacking",
        "choice",
        "chosen",
        "tenant",
        "cache",
        "answer",
        "content_error",
    )
)  # what a line has beside the request
KEPT_HEADERS: Final = ("content-type", "user-agent", "x-request-id", "traceparent")

Waiting = tuple[bytes, str, bytes | None]
"""A line without its end, and the path and the body that are still to be masked; None for a line without content."""


@dataclass(frozen=True, slots=True)
class LogOptions:
    """`path` is a file, or `-` for standard output; `sample` the share of decisions that is logged, 0 to 1.

    `headers` names further request headers to keep (identity headers that the policy reads, say); `buffer` is how many
    bytes may wait to be written, bodies included. Raises ValueError for a header that carries a credential.
    """

    path: str
    sample: float = 1.0
    content: bool = False
    headers: tuple[str, ...] = ()
    buffer: int = BUFFER

    def __post_init__(self) -> None:
        for name in self.headers:
            if credential(name):
                raise ValueError(f"--decision-log-header {name}: it carries a credential, which is never logged")

    def try_it(self) -> None:
        """Open the file once. Raises ValueError where it cannot be written."""
        if self.path != "-":
            try:
                with open(self.path, "ab"):
                    pass
            except OSError as error:
                raise ValueError(f"--decision-log {self.path}: it cannot be written: {error.strerror}") from None


class DecisionLog:
    """Writes lines from a thread of its own, so that a slow disk does not delay requests.

    The file is opened anew for every batch: a log rotation needs no signal.
    """

    def __init__(self, options: LogOptions, chance: Callable[[], float] = random.random) -> None:
        self.dropped = 0
        self.restarts = 0  # of the writer
        self.content_errors = 0
        self._options = options
        self._chance = chance
        self._headers = frozenset((*KEPT_HEADERS, *(name.lower() for name in options.headers)))
        self._state = threading.Condition()  # guards all below, and `dropped`
        self._waiting: list[Waiting] = []
        self._held = 0  # bytes that wait or are being written
        self._closing = False
        self._thread: threading.Thread | None = None

    @property
    def content(self) -> bool:
        """Whether lines hold the requests' bodies."""
        return self._options.content

    def record(self, outcome: Outcome, request: Request) -> None:
        """Log a decision, if the sample takes it. Never waits for the disk, never raises."""
        if self._chance() >= self._options.sample:
            return
        path, body = "", None
        if self._options.content:
            path, body = shown.path(request.headers.get(":path", "/v1/chat/completions")), request.body
        try:
            line = orjson.dumps(self.line(time.time(), outcome, request), default=str)[:-1]
        except Exception as error:  # noqa: BLE001 - the request goes on whatever becomes of its line
            log.error("decision_log_failed", extra={"path": self._options.path, "why": type(error).__name__})
            with self._state:
                self.dropped += 1
            return
        item = (line, path, body)
        size = _size(item)
        with self._state:
            if self._held + size > self._options.buffer or len(self._waiting) >= CAPACITY:
                self.dropped += 1
                return
            self._held += size
            self._waiting.append(item)
            if self._thread is None:  # not in __init__: workers are forked after that
                self._start()
            self._state.notify()

    def _start(self) -> None:
        self._closing = False
        thread = threading.Thread(target=self._run, name="decision-log", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # no more threads just now: the next line asks for one again
            log.error("decision_log_failed", extra={"path": self._options.path, "why": str(error)})
        else:
            self._thread = thread

    def close(self) -> None:
        """Write what is waiting, for two seconds at most."""
        with self._state:
            thread, self._thread = self._thread, None
            self._closing = True
            self._state.notify()
        if thread is None:
            return
        thread.join(2.0)
        if thread.is_alive():  # the disk takes nothing: what waits is lost, and stopping must not fail over it
            log.error("decision_log_failed", extra={"path": self._options.path, "why": "not written in time"})

    def line(self, when: float, outcome: Outcome, request: Request) -> dict[str, Any]:
        """One decision as the object that is written, without the content of its request."""
        headers = request.headers
        id = headers.get("x-request-id")
        line = {"time": when, "id": None if id is None else shown.word(id), **as_object(outcome)}
        line["us"] = round(line["us"], 1)
        for signal in line["signals"].values():
            del signal["evidence"]
        if self._options.content:
            line["headers"] = {name: shown.word(headers[name], 4_096) for name in self._headers if name in headers}
        return line

    def _run(self) -> None:
        """Write until the log is closed, whatever happens on the way."""
        while True:
            try:
                self._write()
                return
            except Exception:
                self.restarts += 1
                log.exception("decision_log_restarted", extra={"path": self._options.path})
                time.sleep(PAUSE_S)

    def _write(self) -> None:
        while True:
            with self._state:
                while not self._waiting and not self._closing:
                    self._state.wait()
            if not self._closing:
                time.sleep(PAUSE_S)
            with self._state:
                batch, self._waiting = self._waiting, []
                if not batch and self._closing:
                    return
            try:
                self._write_batch(batch)
            finally:
                with self._state:
                    self.dropped += len(batch)  # what is left of it: nothing, unless writing broke
                    self._held -= sum(map(_size, batch))

    def _write_batch(self, batch: list[Waiting]) -> None:
        """Write the lines and take them from `batch`, so that their memory is free as soon as it can be."""
        batch.reverse()
        while batch:
            taken: list[Waiting] = []
            pieces: list[bytes] = []
            size = 0
            while batch and size < PIECE:
                taken.append(batch.pop())
                pieces.append(self._whole(*taken[-1]))
                size += len(pieces[-1])
            try:
                self._append(b"".join(pieces))
            except BaseException as error:
                with self._state:
                    self.dropped += len(taken)
                if not isinstance(error, OSError):
                    raise
                log.error("decision_log_failed", extra={"path": self._options.path, "why": str(error)})
            finally:
                with self._state:
                    self._held -= sum(map(_size, taken))

    def _whole(self, line: bytes, path: str, body: bytes | None) -> bytes:
        """The line to its end, with the masked content or with the reason why it has none."""
        if body is None:
            return line + b"}\n"
        try:
            line += b',"path":' + orjson.dumps(masked(path))
            content = background(lambda: masked_json(body, time.monotonic() + MASKING_S))
            if content.lstrip()[:1] != b"{":
                raise ValueError("not a JSON object")
        except Exception as error:  # noqa: BLE001 - no request ends the log, and none is written unmasked
            self.content_errors += 1
            reason = "took too long to mask" if isinstance(error, TimeoutError) else type(error).__name__
            return line + b',"content_error":' + orjson.dumps(reason) + b"}\n"
        return line + b',"request":' + content + b"}\n"

    def _append(self, data: bytes) -> None:
        if self._options.path == "-":
            sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        with open(self._options.path, "ab") as file:
            file.write(data)


def _size(item: Waiting) -> int:
    """Bytes that a waiting line keeps."""
    line, path, body = item
    return OVERHEAD + len(line) + len(path) + (0 if body is None else len(body))
