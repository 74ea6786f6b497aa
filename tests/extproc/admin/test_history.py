"""`/outcomes`: what the counts of the metrics say, in all and in each of the last points in time."""

from __future__ import annotations

import pytest

from extproc.admin.history import KEPT, MOST, History, summary
from extproc.records.metrics import Metrics, Snapshot


def _counts(**families: dict[tuple[str, ...], float]) -> Snapshot:
    return {f"pointsman_{name}": list(series.items()) for name, series in families.items()}


def test_a_point_holds_what_was_added_since_the_last():
    now = [100.0]
    history = History(lambda: now[0])
    first = {("code", "large", "route"): 3.0, ("", "small", "default"): 1.0}
    history.add(_counts(decisions_total=first))
    now[0] = 105.0
    later = _counts(
        decisions_total={**first, ("code", "large", "route"): 5.0, ("no", "", "respond"): 1.0},
        failures_total={("invalid_json",): 2.0},
        answers_total={("large", "code", "200"): 4.0, ("large", "code", "503"): 1.0},
        answer_tokens_total={("large", "input"): 50.0},
        answer_cost_total={("large",): 0.25},
        saved_total={("code",): 2.0},
        overspent_total={("code",): 0.5},
    )
    history.add(later)
    found = history.as_object(later)
    (point,) = found["points"]
    assert (point["time"], point["seconds"], point["requests"]) == (105.0, 5.0, 3.0)
    assert point["decisions"] == [
        {"decision": "code", "model": "large", "action": "route", "count": 2.0},
        {"decision": "no", "model": "", "action": "respond", "count": 1.0},
    ]
    assert point["refused"] == [{"reason": "invalid_json", "count": 2.0}]
    (model,) = point["models"]
    assert {key: model[key] for key in ("model", "requests", "answers", "errors", "money", "tokens")} == {
        **{"model": "large", "requests": 2.0, "answers": 5.0, "errors": 1.0, "money": 0.25, "tokens": {"input": 50.0}}
    }
    assert point["saved"] == 1.5
    assert found["total"]["requests"] == 7.0
    assert history.as_object(later, after=105.0)["points"] == []


def test_points_are_bounded_and_a_killed_worker_s_loss_counts_nothing():
    now = [0.0]
    history = History(lambda: now[0])
    for step in range(KEPT + 10):
        now[0] += 5.0
        history.add(_counts(decisions_total={("a", "b", "route"): 100.0 - step}))
    points = history.as_object({})["points"]
    assert len(points) == KEPT
    assert {point["requests"] for point in points} == {0}


def test_of_many_series_the_largest_are_kept_apart():
    many = {(f"reason{index:03}",): float(index) for index in range(1, MOST + 11)}
    found = summary(_counts(failures_total=many), {})["refused"]
    assert len(found) == MOST + 1
    assert found[-1] == {"reason": "other", "count": float(sum(range(1, 11)))}
    assert sum(each["count"] for each in found) == sum(many.values())


def test_times_are_estimated_as_prometheus_does():
    metrics = Metrics()
    for _ in range(100):
        metrics.duration.observe(1.5e-5)  # in the bucket from 10 to 20 microseconds
    found = summary(metrics.snapshot(), {})["decision_seconds"]
    assert found == pytest.approx({"p50": 1.5e-5, "p90": 1.9e-5, "p99": 1.99e-5})
    metrics.duration.observe(50.0)  # beyond the last bound
    before = metrics.snapshot()
    metrics.duration.observe(50.0)
    assert summary(metrics.snapshot(), before)["decision_seconds"]["p50"] == 1.0
    assert summary(metrics.snapshot(), metrics.snapshot())["decision_seconds"] == dict.fromkeys(("p50", "p90", "p99"))
