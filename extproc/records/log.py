"""Structured logs: one JSON object or one console line per event, on stderr. Never prompt text.

Modules log with the standard library: `log.info("policy_loaded", extra={"policy": "sha256:…"})`. The message is the
event's name and `extra` its fields. A text of a field is shown up to 4,096 characters, on one line.
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any, Literal

import orjson

from extproc.records import shown

LONGEST = 4_096  # characters of one text
TRACEBACK = 16_384  # characters of a traceback
Format = Literal["json", "console"]

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    return {name: _shown(value) for name, value in vars(record).items() if name not in _STANDARD}


def _shown(value: Any) -> Any:
    if isinstance(value, str):
        return shown.word(value, LONGEST)
    return [_shown(item) for item in value] if isinstance(value, (list, tuple)) else value


def _traceback(text: str) -> str:
    """A traceback; of a very long one only the end, since an exception may quote what a client has sent."""
    return "\n".join(_shown(line) for line in text[-TRACEBACK:].split("\n"))


class JsonFormatter(logging.Formatter):
    """`{"time", "level", "logger", "event", …fields, "error"}`; the traceback of an exception is in `error`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": _shown(record.getMessage()),
            "pid": record.process,
        }
        line.update(_fields(record))
        if record.exc_info:
            line["error"] = _traceback(self.formatException(record.exc_info))
        return orjson.dumps(line, default=str).decode()


class ConsoleFormatter(logging.Formatter):
    """`12:34:56.789 info event key=value …`, the traceback on the lines below."""

    def format(self, record: logging.LogRecord) -> str:
        clock = self.formatTime(record, "%H:%M:%S") + f".{int(record.msecs):03d}"
        fields = "".join(f" {name}={value}" for name, value in _fields(record).items())
        line = f"{clock} {record.levelname.lower():7} {_shown(record.getMessage())}{fields}"
        return f"{line}\n{_traceback(self.formatException(record.exc_info))}" if record.exc_info else line


def setup(format: Format, level: str = "info") -> None:
    """Send every log record of the process to stderr in `format`, from `level` up; times are UTC in JSON."""
    formatter: logging.Formatter
    if format == "json":
        formatter = JsonFormatter()
        formatter.converter = time.gmtime
    else:
        formatter = ConsoleFormatter()
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
