"""Metrics of one worker: plain counters on the hot path, families and labels only when somebody asks.

Every label value comes from the policy or from a closed set of ours, and each family keeps at most `MAX_SERIES` series
(further ones are counted under `other`), so neither clients nor reloads can make it grow.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from config.writers import WRITERS
from decisions.engine import Engine
from decisions.outcome import Outcome
from signals.metrics import Histogram, MetricSample
from signals.neural.service import BATCH_BOUNDS
from signals.neural.service import SECONDS as INFERENCE_SECONDS
from signals.state.tally import Tally

MAX_SERIES = 2_000

Labels = tuple[str, ...]
Sample = tuple[Labels, "float | tuple[list[int], float]"]
"""A number, or a histogram's bucket counts (one more than its bounds) and its sum."""
Snapshot = Mapping[str, list[Sample]]
"""Samples by family name: what one process has counted, ready to be sent, merged and exposed."""

SECONDS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 1e-2, 2e-2, 5e-2, 0.1, 0.25, 1.0)
ANSWER_SECONDS = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 51.2, 102.4, 204.8, 409.6)
BYTES = (256.0, 1024.0, 4096.0, 16384.0, 65536.0, 262144.0, 1048576.0, 4194304.0, 16777216.0, 67108864.0)


@dataclass(frozen=True, slots=True)
class Family:
    """One metric: Prometheus name, kind, help, label names, and a histogram's upper bounds. Of several
    processes' values the sum counts, or the `least`, or their `mean`."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    labels: tuple[str, ...] = ()
    bounds: tuple[float, ...] = ()
    least: bool = False
    mean: bool = False


FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (
        Family("pointsman_decisions_total", "counter", "Requests decided.", ("decision", "model", "action")),
        Family("pointsman_decision_duration_seconds", "histogram", "Time to reach a decision.", (), SECONDS),
        Family(
            "pointsman_signal_duration_seconds",
            "histogram",
            "Time of one signal's reading, in the sampled requests.",
            ("signal",),
            SECONDS,
        ),
        Family("pointsman_signal_unknown_total", "counter", "Readings that were Unknown.", ("signal", "reason")),
        Family("pointsman_fallback_total", "counter", "Default model taken because something failed.", ("reason",)),
        Family("pointsman_answers_total", "counter", "Answers that were looked at.", ("model", "decision", "status")),
        Family(
            "pointsman_answer_tokens_total", "counter", "Tokens of these answers and their requests.", ("model", "kind")
        ),
        Family("pointsman_answer_cost_total", "counter", "Money that these answers took.", ("model",)),
        Family("pointsman_saved_total", "counter", "Money less than the reference model takes.", ("decision",)),
        Family("pointsman_overspent_total", "counter", "Money more than the reference model takes.", ("decision",)),
        Family("pointsman_cache_total", "counter", "Requests that may take a kept answer.", ("decision", "result")),
        Family("pointsman_cache_bytes", "gauge", "Bytes of the answers that are kept in the workers' memory."),
        Family("pointsman_cache_entries", "gauge", "Answers that are kept in the workers' memory."),
        Family("pointsman_cache_evicted_total", "counter", "Kept answers that had to make room."),
        Family(
            "pointsman_first_byte_seconds", "histogram", "Time to the head of an answer.", ("model",), ANSWER_SECONDS
        ),
        Family("pointsman_answer_seconds", "histogram", "Time to the end of an answer.", ("model",), ANSWER_SECONDS),
        Family(
            "pointsman_answer_decisions_total",
            "counter",
            "Answers on which a decision has acted, and how.",
            ("decision", "action"),
        ),
        Family("pointsman_observed_total", "counter", "Requests that a guard would have stopped.", ("decision",)),
        Family("pointsman_selection_total", "counter", "Models chosen, and why.", ("selector", "model", "why")),
        *(
            Family(f"pointsman_selection_{name}_total", "counter", help, ("decision", "model"))
            for name, help in (
                ("grades", "Grades of answers of models that were chosen."),
                ("grade_sum", "Sum of these grades."),
                ("grade_weight", "Sum of the weights of these grades, each 1 / propensity of its choice."),
                ("weighted_grade_sum", "Sum of these grades times their weights."),
            )
        ),
        Family(
            "pointsman_selection_standing",
            "gauge",
            "Quality of a candidate by the grades that count now.",
            ("decision", "model"),
            mean=True,
        ),
        Family("pointsman_failures_total", "counter", "Requests refused or broken before a decision.", ("reason",)),
        Family("pointsman_body_bytes", "histogram", "Size of the request bodies decided on.", (), BYTES),
        *(Family(name, "counter", help, labels) for kind in WRITERS for name, help, labels in kind.families),
        Family("pointsman_inference_batch_size", "histogram", "Texts run together.", ("model",), BATCH_BOUNDS),
        Family("pointsman_inference_queue_seconds", "histogram", "Wait for a model.", ("model",), INFERENCE_SECONDS),
        Family("pointsman_inference_run_seconds", "histogram", "Time of a model's run.", ("model",), INFERENCE_SECONDS),
        Family(
            "pointsman_inference_refused_total", "counter", "Texts that a model did not answer.", ("model", "reason")
        ),
        Family("pointsman_streams_inflight", "gauge", "Live ext_proc streams."),
        Family("pointsman_connections", "gauge", "Live connections on the ext_proc port."),
        Family("pointsman_open_body_bytes", "gauge", "Bytes of the request bodies that are held now."),
        Family("pointsman_policy_info", "gauge", "1 for each worker that runs this policy.", ("hash",)),
        Family("pointsman_config_reloads_total", "counter", "Policy reloads tried.", ("result",)),
        Family("pointsman_candidate_total", "counter", "Decisions compared with the candidate's.", ("outcome",)),
        Family("pointsman_decision_log_dropped", "gauge", "Lines of the decision log that were dropped."),
        Family(
            "pointsman_decision_log_restarts_total",
            "counter",
            "Times that the decision log's writer was started again.",
        ),
        Family(
            "pointsman_decision_log_content_errors_total",
            "counter",
            "Lines of the decision log without the content that they should have had.",
        ),
        Family(
            "pointsman_budget_remaining",
            "gauge",
            "The least share of the limit that any payer has left.",
            ("scope",),
            least=True,
        ),
        Family("pointsman_store_down", "gauge", "Workers for which the state store does not answer."),
        Family("pointsman_store_failures", "gauge", "Calls of the state store that failed."),
        Family("pointsman_store_pending", "gauge", "Amounts that wait to be written to the state store."),
        Family("pointsman_store_dropped", "gauge", "Amounts that could not be kept for the state store."),
        Family("pointsman_config_last_reload_successful", "gauge", "1 when the last reload was accepted, else 0."),
        Family(
            "pointsman_models_perhaps_without_route",
            "gauge",
            "Models that were not in the policy that a worker began with, all workers added up.",
        ),
        Family("pointsman_workers", "gauge", "Live workers."),
        Family("pointsman_worker_restarts_total", "counter", "Workers that died and were started again."),
        Family("pointsman_build_info", "gauge", "1; the version is in the label.", ("version",)),
    )
}


class Counts(dict[Labels, float]):
    """A counter with labels, of at most `MAX_SERIES` series."""

    def add(self, key: Labels, amount: float = 1) -> None:
        try:
            self[key] += amount
        except KeyError:
            if len(self) >= MAX_SERIES:
                key = ("other",) * len(key)
            self[key] = self.get(key, 0) + amount


class Times(dict[str, Histogram]):
    """Histograms of seconds by one label, of at most `MAX_SERIES` series."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        super().__init__()
        self.bounds = bounds

    def observe(self, label: str, seconds: float) -> None:
        histogram = self.get(label)
        if histogram is None:
            if len(self) >= MAX_SERIES:
                label = "other"
            histogram = self.setdefault(label, Histogram(self.bounds))
        histogram.observe(seconds)


class Metrics:
    """What one worker counts. `record` and `failed` are on the hot path of every request."""

    def __init__(self) -> None:
        self.decisions = Counts()
        self.unknown = Counts()
        self.fallbacks = Counts()
        self.observed = Counts()
        self.selections = Counts()
        self.failures = Counts()
        self.reloads = Counts()
        self.candidates = Counts()
        self.duration = Histogram(SECONDS)
        self.body = Histogram(BYTES)
        self.signals = Times(SECONDS)
        self.answers = Counts()
        self.acted = Counts()
        self.tokens = Counts()
        self.costs = Counts()
        self.saved = Counts()
        self.overspent = Counts()
        self.cached = Counts()
        self.first_byte = Times(ANSWER_SECONDS)
        self.answer = Times(ANSWER_SECONDS)
        self.last_reload_successful = True

    def record(self, outcome: Outcome) -> None:
        """Count one decided request, for the model that really answered."""
        trace, model = outcome.trace, outcome.model
        decision = trace.decision
        self.decisions.add((decision.name or "", model.key if model is not None else "", decision.action))
        self.duration.observe(trace.microseconds * 1e-6)
        self.body.observe(outcome.body_bytes)
        if decision.fallback is not None:
            self.fallbacks.add((decision.fallback,))
        for guard in trace.observed:
            self.observed.add((guard,))
        if (choice := trace.choice) is not None:
            self.selections.add((choice.by, choice.model.key, choice.why))
        for name, reading in trace.telling.items():
            if reading.matched is None:
                self.unknown.add((name, reading.error or "unknown"))
        for name, microseconds in trace.timings.items() if trace.timings else ():
            self.signals.observe(name, microseconds * 1e-6)
        if outcome.cache is not None:
            self.cached.add((decision.name or "", outcome.cache))
        for acted in outcome.acted:
            self.acted.add(acted)
        if outcome.money is not None:
            self._answered(outcome, outcome.money)

    def _answered(self, outcome: Outcome, money: float) -> None:
        """Count what the answer took, of which somebody has looked at the body."""
        model = outcome.model.key if outcome.model is not None else ""
        decision = outcome.trace.decision.name or ""
        self.answers.add((model, decision, str(outcome.status or "")))
        for kind, tokens in (
            ("input", outcome.prompt),
            ("output", outcome.completion),
            ("cached", outcome.cached),
            ("cache_write", outcome.written),
            ("reasoning", outcome.reasoning),
        ):
            if tokens:
                self.tokens.add((model, kind), tokens)
        if money:
            self.costs.add((model,), money)
        if outcome.reference is not None:  # always both, so that one can be taken from the other
            less = outcome.reference - money
            self.saved.add((decision,), max(less, 0.0))
            self.overspent.add((decision,), max(-less, 0.0))
        if outcome.first_byte is not None:
            self.first_byte.observe(model, outcome.first_byte)
        if outcome.seconds is not None:
            self.answer.observe(model, outcome.seconds)

    def failed(self, reason: str) -> None:
        """Count a request that was refused or broken before a decision; `reason` comes from a closed set."""
        self.failures.add((reason,))

    def reloaded(self, result: Literal["accepted", "rejected"]) -> None:
        """Count a policy reload."""
        self.reloads.add((result,))
        self.last_reload_successful = result == "accepted"

    def compared(self, outcome: str) -> None:
        """Count a comparison of the candidate with the policy in force: `agree`, `differ`, `skipped`, `error`."""
        self.candidates.add((outcome,))

    def snapshot(self) -> dict[str, list[Sample]]:
        """Everything counted so far."""

        def histograms(items: Iterable[tuple[Labels, Histogram]]) -> list[Sample]:
            return [(labels, (list(each.counts), each.sum)) for labels, each in items]

        def times(by_label: Times) -> list[Sample]:
            return histograms(((label,), each) for label, each in by_label.items())

        def counters(counts: Counts) -> list[Sample]:
            return [(labels, float(count)) for labels, count in counts.items()]

        return {
            "pointsman_decisions_total": counters(self.decisions),
            "pointsman_decision_duration_seconds": histograms([((), self.duration)]),
            "pointsman_signal_duration_seconds": times(self.signals),
            "pointsman_signal_unknown_total": counters(self.unknown),
            "pointsman_fallback_total": counters(self.fallbacks),
            "pointsman_answers_total": counters(self.answers),
            "pointsman_answer_decisions_total": counters(self.acted),
            "pointsman_answer_tokens_total": counters(self.tokens),
            "pointsman_answer_cost_total": counters(self.costs),
            "pointsman_saved_total": counters(self.saved),
            "pointsman_overspent_total": counters(self.overspent),
            "pointsman_cache_total": counters(self.cached),
            "pointsman_first_byte_seconds": times(self.first_byte),
            "pointsman_answer_seconds": times(self.answer),
            "pointsman_observed_total": counters(self.observed),
            "pointsman_selection_total": counters(self.selections),
            "pointsman_failures_total": counters(self.failures),
            "pointsman_body_bytes": histograms([((), self.body)]),
            "pointsman_config_reloads_total": counters(self.reloads),
            "pointsman_candidate_total": counters(self.candidates),
        }


def gauge(value: float, *labels: str) -> list[Sample]:
    """The samples of a gauge with one series."""
    return [(labels, value)]


def selections(engine: Engine, tally: Tally) -> Snapshot:
    """What is known of choices that learn from grades: of each candidate its grades, and its quality by them."""
    named = [
        (name, key, quality)
        for name, each in engine.selectors.items()
        if each.standing is not None
        for key, (_, quality) in each.summary(each.standing.all()).items()
    ]
    grades = list(tally)
    names = ("grades", "grade_sum", "grade_weight", "weighted_grade_sum")
    return {
        "pointsman_selection_standing": [((name, key), quality) for name, key, quality in named],
        **{
            f"pointsman_selection_{each}_total": [(labels, sums[at]) for labels, sums in grades]
            for at, each in enumerate(names)
        },
    }


def labelled(
    samples: Iterable[MetricSample],
) -> dict[str, list[Sample]]:
    """What the writers and the models' services count, as samples of our families."""
    found: dict[str, list[Sample]] = {}
    for name, labels, value in samples:
        key = tuple(labels[label] for label in FAMILIES[name].labels)
        found.setdefault(name, []).append((key, value))
    return found


def merge(snapshots: Iterable[Snapshot]) -> dict[str, list[Sample]]:
    """The sum of several processes' snapshots, series by series; gauges are sums too (streams of all workers), or the
    least value or the mean where the family says so."""
    sums: dict[str, dict[Labels, Any]] = {}
    counts_of: Counter[tuple[str, Labels]] = Counter()
    for snapshot in snapshots:
        for name, samples in snapshot.items():
            family = sums.setdefault(name, {})
            for labels, value in samples:
                key = tuple(labels)
                if FAMILIES[name].mean:
                    counts_of[name, key] += 1
                before = family.get(key)
                if before is None:
                    family[key] = value
                elif FAMILIES[name].least:
                    family[key] = min(before, value)
                elif isinstance(value, (int, float)):
                    family[key] = before + value
                else:
                    counts = [a + b for a, b in zip(before[0], value[0], strict=True)]
                    family[key] = (counts, before[1] + value[1])
    for (name, key), count in counts_of.items():
        sums[name][key] /= count
    return {name: list(family.items()) for name, family in sums.items()}


def counted(snapshot: Snapshot) -> dict[str, list[Sample]]:
    """The part of a snapshot that outlives its process: counters and histograms, no gauges."""
    return {name: samples for name, samples in snapshot.items() if FAMILIES[name].kind != "gauge"}
