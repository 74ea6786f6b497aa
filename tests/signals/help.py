"""Builders for the tests of signals: a request in a line, a reading in another."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from signals.facts import Facts
from signals.gather import read
from signals.reading import Reading
from signals.registry import BY_NAME
from signals.request import Message, Request
from signals.signal import Shared, Signal


def request(text: str | None = None, **given: Any) -> Request:
    """A chat request of one user message, or of the `messages` given."""
    messages = given.pop("messages", None)
    if messages is None:
        messages = () if text is None else (Message("user", text),)
    fields = given.pop("fields", {})
    body = given.pop("body", json.dumps(fields).encode())
    return Request(given.pop("api", "chat"), body, fields, "auto", tuple(messages), **given)


def build(kind: str, shared: Shared | None = None, called: str = "it", **params: Any) -> Signal:
    """The signal, frozen unless it shares."""
    cls = BY_NAME[kind]
    own = shared or Shared()
    signal = cls(called, cls.Parameters.model_validate(params), own)
    if shared is None:
        own.freeze()
    return signal


def reading(signal: Signal, given: Request | str) -> Reading:
    """What the signal reads, as the gatherer takes it."""
    return read(signal, Facts(request(given) if isinstance(given, str) else given))


def matched(kind: str, given: Request | str, **params: Any) -> bool | None:
    return reading(build(kind, **params), given).matched


def complaint(kind: str, **params: Any) -> str:
    """What the parameters' validation says; fails when it says nothing."""
    with pytest.raises(ValidationError) as caught:
        BY_NAME[kind].Parameters.model_validate(params)
    return "; ".join(f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in caught.value.errors())


def data(name: str) -> list[dict[str, Any]]:
    """The rows of a public data file; skips the test where POINTSMAN_DATA does not name the folder."""
    import gzip

    folder = os.environ.get("POINTSMAN_DATA")
    if not folder:
        pytest.skip("POINTSMAN_DATA does not name the folder of the public data")
    with gzip.open(Path(folder) / f"{name}.jsonl.gz", "rt") as file:
        return [json.loads(line) for line in file]
