"""What stepwise answers count. Plain numbers; whoever exports them asks for `samples`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from signals.metrics import MetricSample
from upstream.writer import WriterMetrics


@dataclass(slots=True)
class StepwiseMetrics(WriterMetrics):
    """Counters of one stepwise decision (or of many: they only ever add up)."""

    steps: Counter[tuple[str, str]] = field(default_factory=Counter)  # model, action
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)  # model, kept or discarded
    requests: Counter[str] = field(default_factory=Counter)  # model
    answers: Counter[str] = field(default_factory=Counter)  # outcome
    upstream_errors: Counter[tuple[str, str]] = field(default_factory=Counter)  # model, kind
    safe_side: Counter[str] = field(default_factory=Counter)  # why a strategy could not judge
    choices: Counter[tuple[str, str]] = field(default_factory=Counter)  # per request: model or effort, reason
    settled: Counter[str] = field(default_factory=Counter)  # why judging ended before the answer did
    asks: Counter[str] = field(default_factory=Counter)  # what became of drafts that the large model was asked about

    def samples(self) -> Iterator[MetricSample]:
        """Every counter as it stands."""
        for (model, action), value in self.steps.items():
            yield MetricSample("pointsman_stepwise_steps_total", {"model": model, "action": action}, value)
        for (model, fate), value in self.tokens.items():
            yield MetricSample("pointsman_stepwise_tokens_total", {"model": model, "fate": fate}, value)
        for (model, kind), value in self.upstream_errors.items():
            yield MetricSample("pointsman_stepwise_upstream_errors_total", {"model": model, "kind": kind}, value)
        for (chosen, reason), value in self.choices.items():
            yield MetricSample("pointsman_stepwise_choices_total", {"chosen": chosen, "reason": reason}, value)
        for name, label, counter in (
            ("requests", "model", self.requests),
            ("answers", "outcome", self.answers),
            ("ineligible", "reason", self.ineligible),
            ("safe_side", "reason", self.safe_side),
            ("settled", "reason", self.settled),
            ("asks", "outcome", self.asks),
        ):
            for key, value in counter.items():
                yield MetricSample(f"pointsman_stepwise_{name}_total", {label: key}, value)
