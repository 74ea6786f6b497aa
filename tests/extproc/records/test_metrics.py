from __future__ import annotations

import pickle

import pytest
from prometheus_client.parser import text_string_to_metric_families

from decisions.decision import Choice, Decision, Trace
from decisions.model import Model
from decisions.outcome import Outcome
from extproc.admin.exposition import expose
from extproc.records import metrics
from extproc.records.metrics import FAMILIES, MAX_SERIES, SECONDS, Counts, Metrics, counted, gauge, merge
from signals.metrics import Histogram
from signals.reading import FALSE, TRUE, Reading

SMALL = Model("small", "Qwen/Qwen3-8B")


def _trace(**changes: object) -> Trace:
    fields: dict[str, object] = {
        "decision": Decision("code", "route", SMALL),
        "policy": "sha256:0",
        "readings": {"a": TRUE, "b": FALSE},
        "results": {"code": True},
        "microseconds": 30.0,
    }
    return Trace(**(fields | changes))  # type: ignore[arg-type]


def _outcome(trace: Trace, size: int) -> Outcome:
    return Outcome(trace, trace.decision.model, size)


def _parsed(snapshot: metrics.Snapshot) -> dict[str, float]:
    """Every exposed sample as `name{label=value,…}` → value, read by prometheus-client's own parser."""
    samples: dict[str, float] = {}
    for family in text_string_to_metric_families(expose(snapshot).decode()):
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            samples[f"{sample.name}{{{labels}}}"] = sample.value
    return samples


def test_a_decision_counts_under_its_name_model_and_action():
    counts = Metrics()
    counts.record(_outcome(_trace(), 1000))
    counts.record(_outcome(_trace(decision=Decision(None, "default", SMALL)), 10))
    counts.record(_outcome(_trace(decision=Decision("no", "respond", None, status=403)), 10))
    samples = _parsed(counts.snapshot())
    assert samples["pointsman_decisions_total{action=route,decision=code,model=small}"] == 1
    assert samples["pointsman_decisions_total{action=default,decision=,model=small}"] == 1
    assert samples["pointsman_decisions_total{action=respond,decision=no,model=}"] == 1


def test_a_choice_counts_under_its_selector_model_and_reason():
    counts = Metrics()
    chosen = _trace(choice=Choice(SMALL, "lowest price", 1.0, "cheapest"))
    for trace in (chosen, chosen, _trace()):
        counts.record(_outcome(trace, 1))
    samples = _parsed(counts.snapshot())
    assert {name: value for name, value in samples.items() if name.startswith("pointsman_selection_total")} == {
        "pointsman_selection_total{model=small,selector=cheapest,why=lowest price}": 2
    }


def test_unknown_readings_and_fallbacks_are_counted_with_their_reason():
    counts = Metrics()
    counts.record(_outcome(_trace(telling={"guard": Reading(None, error="overloaded"), "b": TRUE}), 1))
    counts.record(_outcome(_trace(decision=Decision(None, "default", SMALL, fallback="deadline")), 1))
    counts.failed("invalid_json")
    samples = _parsed(counts.snapshot())
    assert samples["pointsman_signal_unknown_total{reason=overloaded,signal=guard}"] == 1
    assert samples["pointsman_fallback_total{reason=deadline}"] == 1
    assert samples["pointsman_failures_total{reason=invalid_json}"] == 1


def test_durations_and_sizes_land_in_cumulative_buckets():
    counts = Metrics()
    for microseconds in (4.0, 30.0, 5e6):
        counts.record(_outcome(_trace(microseconds=microseconds, timings={"a": microseconds}), 300))
    samples = _parsed(counts.snapshot())
    name = "pointsman_decision_duration_seconds"
    assert samples[f"{name}_bucket{{le=5e-06}}"] == 1
    assert samples[f"{name}_bucket{{le=5e-05}}"] == 2
    assert samples[f"{name}_bucket{{le=1.0}}"] == 2
    assert samples[f"{name}_bucket{{le=+Inf}}"] == samples[f"{name}_count{{}}"] == 3
    assert samples[f"{name}_sum{{}}"] == pytest.approx(5.000034)
    assert samples["pointsman_signal_duration_seconds_count{signal=a}"] == 3
    assert samples["pointsman_body_bytes_bucket{le=1024.0}"] == 3


@pytest.mark.parametrize("value", SECONDS)
def test_a_bound_is_inclusive(value):
    histogram = Histogram(SECONDS)
    histogram.observe(value)
    assert histogram.counts[SECONDS.index(value)] == 1


def test_series_are_bounded_and_the_rest_is_counted_as_other():
    counts = Counts()
    for number in range(MAX_SERIES + 50):
        counts.add((f"decision-{number}", "m"))
    assert len(counts) == MAX_SERIES + 1
    assert counts[("other", "other")] == 50
    timed = Metrics()
    for number in range(MAX_SERIES + 50):
        timed.record(_outcome(_trace(timings={f"s{number}": 1.0}), 0))
    assert len(timed.signals) == MAX_SERIES + 1


def test_label_values_are_escaped():
    counts = Metrics()
    counts.failed('quote " backslash \\ newline \n end')
    assert _parsed(counts.snapshot())['pointsman_failures_total{reason=quote " backslash \\ newline \n end}'] == 1


def test_merging_adds_counters_histograms_and_gauges_and_survives_a_pipe():
    one, two = Metrics(), Metrics()
    for counts in (one, two, two):
        counts.record(_outcome(_trace(), 100))
    snapshots = [{**each.snapshot(), "pointsman_streams_inflight": gauge(2)} for each in (one, two)]
    merged = merge(pickle.loads(pickle.dumps(snapshot)) for snapshot in snapshots)
    samples = _parsed(merged)
    assert samples["pointsman_decisions_total{action=route,decision=code,model=small}"] == 3
    assert samples["pointsman_decision_duration_seconds_count{}"] == 3
    assert samples["pointsman_streams_inflight{}"] == 4
    assert "pointsman_streams_inflight" not in counted(merged)


def test_reload_results_are_counted():
    counts = Metrics()
    counts.reloaded("accepted")
    counts.reloaded("rejected")
    assert counts.last_reload_successful is False
    assert _parsed(counts.snapshot())["pointsman_config_reloads_total{result=rejected}"] == 1


def test_every_family_that_is_counted_is_declared():
    assert set(Metrics().snapshot()) <= set(FAMILIES)
