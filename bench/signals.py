"""Microseconds a reading, by kind, on one text: `python -m bench.signals [--bytes 1024]`.

Each kind is read alone, with everything it derives, and all of them together, with what they share derived once. The
rounds are interleaved, so that a noisy machine is noisy for all; the figure is the median of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Mapping
from typing import Any

from signals.facts import Facts
from signals.gather import read
from signals.reading import Reading
from signals.registry import BY_NAME
from signals.request import Message, Request
from signals.signal import Shared, Signal

TEXT = (
    "Please review the following function and explain why it raises an exception when the list is empty. I would also "
    "like to know whether the complexity can be reduced, and how you would test it. - first, the edge cases\n- second, "
    "the error messages? The invoice service calls it about 2,000 times a minute, so it must stay quick. "
)
SIGNALS: Mapping[str, tuple[str, dict[str, Any]]] = {
    "keyword": ("keyword", {"any": ["traceback", "refactor", "stack trace", "exception"]}),
    "keyword, 1,000 words": ("keyword", {"any": [f"word{n:04}" for n in range(1000)]}),
    "keyword, fuzzy": ("keyword", {"any": ["urgent", "deadline", "escalate"], "fuzzy": {"max_edits": 1}}),
    "regex": ("regex", {"any": [r"\bSELECT\b.+\bFROM\b", r"(?i)traceback", r"https?://\S+", r"\bdef \w+\("]}),
    "tokens": ("tokens", {"at_least": 8000}),
    "language": ("language", {"is": ["de"]}),
    "structure": ("structure", {"count": "questions", "at_least": 3}),
    "event": ("event", {"types": ["payment_failed"], "severities": ["critical", "high"], "urgent": True}),
    "conversation": ("conversation", {"tools": {"at_least": 1}}),
    "parameter": ("parameter", {"path": "metadata.tier", "equals": "gold"}),
    "header": ("header", {"name": "x-tenant-tier", "in": ["gold", "platinum"]}),
    "identity": ("identity", {"role": "admin", "groups": ["ops"]}),
    "time": ("time", {"between": ["22:00", "06:00"], "timezone": "Europe/Berlin"}),
    "pii": ("pii", {}),
    "sample": ("sample", {"percent": 5.0, "key": "user"}),
    "score": ("score", {"sum": {"tokens": 0.1, "language": 0.2}, "at_least": 0.5}),
}
SLOWER = ("keyword, fuzzy",)
"""Not instant, so not in the sum of the instant set."""


def request(size: int) -> Request:
    text = (TEXT * (size // len(TEXT) + 1))[:size]
    return Request(
        api="chat",
        body=text.encode(),
        fields={
            "user": "u-1",
            "metadata": {"tier": "gold"},
            "tools": [{"type": "function", "function": {"name": "f"}}],
        },
        model="auto",
        messages=(Message("system", "You are helpful."), Message("user", text)),
        headers={"x-tenant-tier": "gold"},
        attributes={"envoy.filters.http.jwt_authn": {"payload": {"sub": "alice", "groups": ["ops"]}}},
        received=1_780_000_000.0,
    )


def build(shared: Shared, name: str) -> Signal:
    kind, params = SIGNALS[name]
    cls = BY_NAME[kind]
    return cls(name, cls.Parameters.model_validate(params), shared)


def once(signals: list[Signal], given: Request, known: Mapping[str, Reading]) -> float:
    """Microseconds that the signals take for one request, its texts joined and everything derived anew."""
    given._texts.clear()
    facts = Facts(given)
    facts.readings.update(known)
    started = time.perf_counter_ns()
    for signal in signals:
        read(signal, facts)
    return (time.perf_counter_ns() - started) / 1000


def measure(size: int, rounds: int) -> dict[str, float]:
    """Median microseconds by name, and of the whole instant set."""
    given = request(size)
    alone: dict[str, list[Signal]] = {}
    for name in SIGNALS:
        shared = Shared()
        alone[name] = [build(shared, name)]
        shared.freeze()
    shared = Shared()
    alone["the whole instant set"] = [build(shared, name) for name in SIGNALS if name not in SLOWER]
    shared.freeze()
    known = {name: Reading(True, 1.0) for name in ("tokens", "language")}
    spent: dict[str, list[float]] = {name: [] for name in alone}
    for _ in range(rounds):
        for name, signals in alone.items():
            spent[name].append(once(signals, given, known))
    return {name: statistics.median(times) for name, times in spent.items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bytes", type=int, default=1024, help="length of the user message")
    parser.add_argument("--rounds", type=int, default=2000)
    given = parser.parse_args()
    print(f"median of {given.rounds} rounds, {given.bytes} bytes")
    for name, spent in measure(given.bytes, given.rounds).items():
        print(f"{name:24} {spent:8.2f} µs")


if __name__ == "__main__":
    main()
