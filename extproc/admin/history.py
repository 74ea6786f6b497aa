"""What the counts of the metrics were in the last minutes, and what they say, for `/outcomes` and the console.

Nothing is counted here: every few seconds the metrics are looked at, and what has been added since is kept.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final, NamedTuple

from extproc.records.metrics import FAMILIES, Snapshot

EVERY_S: Final = 5.0
KEPT: Final = 180
"""Points in time: a quarter of an hour."""
MOST: Final = 64
"""The largest series of a family are kept apart in a point; the others are its `other`."""
SHARES: Final = (0.5, 0.9, 0.99)


class _Look(NamedTuple):
    time: float
    counts: Snapshot


class History:
    """`clock` is the time in seconds since the epoch."""

    def __init__(self, clock: Callable[[], float] = time.time) -> None:
        self._clock = clock
        self._last: _Look | None = None
        self._points: deque[dict[str, Any]] = deque(maxlen=KEPT)

    def add(self, counts: Snapshot) -> None:
        """Keep what has been added to the counts since the last time."""
        now = self._clock()
        if self._last is not None and now > self._last.time:
            seconds = round(now - self._last.time, 3)
            self._points.append({"time": now, "seconds": seconds, **summary(counts, self._last.counts)})
        self._last = _Look(now, counts)

    def as_object(self, counts: Snapshot, after: float = 0.0) -> dict[str, Any]:
        """The object of `/outcomes`: what was counted since the router began, and in each of the last points in time
        that are later than `after`."""
        return {
            "time": self._clock(),
            "total": summary(counts, {}),
            "now": {
                "streams": _sum(counts, "pointsman_streams_inflight"),
                "workers": _sum(counts, "pointsman_workers"),
                "budgets": {labels[0]: value for labels, value in _plain(counts, "pointsman_budget_remaining")},
            },
            "points": [point for point in self._points if point["time"] > after],
        }


def summary(counts: Snapshot, before: Snapshot) -> dict[str, Any]:
    """What the counts say has happened since they were those `before`.

    Money is in the policy's own, times in seconds. Times have the shares of `SHARES` below them (`p50`), estimated from
    a histogram; None where nothing was counted.
    """

    def rows(name: str) -> list[dict[str, Any]]:
        family = FAMILIES[name]
        return [
            {**dict(zip(family.labels, labels, strict=True)), "count": value}
            for labels, value in _largest(_added(counts, before, name), len(family.labels))
        ]

    decisions = rows("pointsman_decisions_total")
    return {
        "requests": sum(row["count"] for row in decisions),
        "decisions": decisions,
        "refused": rows("pointsman_failures_total"),
        "fallbacks": rows("pointsman_fallback_total"),
        "unknown": rows("pointsman_signal_unknown_total"),
        "observed": rows("pointsman_observed_total"),
        "answers": rows("pointsman_answer_decisions_total"),
        "cache": rows("pointsman_cache_total"),
        "choices": rows("pointsman_selection_total"),
        "candidate": rows("pointsman_candidate_total"),
        "models": _models(counts, before),
        "saved": _total(counts, before, "pointsman_saved_total") - _total(counts, before, "pointsman_overspent_total"),
        "decision_seconds": _times(counts, before, "pointsman_decision_duration_seconds").get((), _shares((), ())),
    }


def _models(counts: Snapshot, before: Snapshot) -> list[dict[str, Any]]:
    models: dict[str, dict[str, Any]] = {}

    def model(name: str) -> dict[str, Any]:
        empty = {"requests": 0.0, "answers": 0.0, "errors": 0.0, "money": 0.0, "tokens": {}}
        return models.setdefault(name, {"model": name, **empty})

    for (_, name, _), count in _added(counts, before, "pointsman_decisions_total").items():
        if name:
            model(name)["requests"] += count
    for (name, _, status), count in _added(counts, before, "pointsman_answers_total").items():
        if name:
            model(name)["answers"] += count
            model(name)["errors"] += count if status[:1] in ("4", "5") else 0
    for (name, kind), count in _added(counts, before, "pointsman_answer_tokens_total").items():
        if name:
            model(name)["tokens"][kind] = count
    for (name,), money in _added(counts, before, "pointsman_answer_cost_total").items():
        if name:
            model(name)["money"] += money
    for key, family in (("first_byte", "pointsman_first_byte_seconds"), ("seconds", "pointsman_answer_seconds")):
        for (name,), shares in _times(counts, before, family).items():
            if name:
                model(name)[key] = shares
    return sorted(models.values(), key=lambda each: -each["requests"])[:MOST]


def _plain(counts: Snapshot, name: str) -> Iterable[tuple[tuple[str, ...], float]]:
    return ((labels, value) for labels, value in counts.get(name, ()) if isinstance(value, int | float))


def _sum(counts: Snapshot, name: str) -> float:
    return sum(value for _, value in _plain(counts, name))


def _added(counts: Snapshot, before: Snapshot, name: str) -> dict[tuple[str, ...], float]:
    """What was added to each series of a counter. A killed worker takes its last second with it: never below 0."""
    old = dict(_plain(before, name))
    new = ((tuple(labels), value - old.get(labels, 0.0)) for labels, value in _plain(counts, name))
    return {labels: value for labels, value in new if value > 0}


def _total(counts: Snapshot, before: Snapshot, name: str) -> float:
    return sum(_added(counts, before, name).values())


def _largest(added: Mapping[tuple[str, ...], float], labels: int) -> list[tuple[tuple[str, ...], float]]:
    ranked = sorted(added.items(), key=lambda each: (-each[1], each[0]))
    if len(ranked) > MOST:
        rest = sum(value for _, value in ranked[MOST:])
        ranked = [*ranked[:MOST], (("other",) * labels, rest)]
    return ranked


def _times(counts: Snapshot, before: Snapshot, name: str) -> dict[tuple[str, ...], dict[str, float | None]]:
    """The shares of each series of a histogram that has counted something."""
    bounds = FAMILIES[name].bounds
    old = {tuple(labels): value[0] for labels, value in before.get(name, ()) if not isinstance(value, int | float)}
    found = {}
    for labels, value in counts.get(name, ()):
        assert not isinstance(value, int | float)
        zero = [0] * len(value[0])
        added = [max(0, new - was) for new, was in zip(value[0], old.get(tuple(labels), zero), strict=True)]
        if any(added):
            found[tuple(labels)] = _shares(bounds, added)
    return found


def _shares(bounds: tuple[float, ...], counts: Iterable[int]) -> dict[str, float | None]:
    """As Prometheus's `histogram_quantile` estimates them: linear within a bucket, the last bound beyond it."""
    counts = list(counts)
    total = sum(counts)
    found: dict[str, float | None] = {}
    for share in SHARES:
        seen, at = 0, None
        for index, count in enumerate(counts if total else ()):
            if seen + count >= share * total:
                low = bounds[index - 1] if index else 0.0
                high = bounds[min(index, len(bounds) - 1)]
                at = low + (high - low) * (share * total - seen) / count
                break
            seen += count
        found[f"p{share * 100:g}"] = at
    return found
