"""What panels count. Plain numbers; whoever exports them asks for `samples`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from signals.metrics import MetricSample
from upstream.writer import WriterMetrics


@dataclass(slots=True)
class PanelMetrics(WriterMetrics):
    """Counters of all panels."""

    answers: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, outcome
    calls: Counter[tuple[str, str]] = field(default_factory=Counter)  # model, why
    released: Counter[tuple[str, str]] = field(default_factory=Counter)  # kind, model
    tokens: Counter[tuple[str, str]] = field(default_factory=Counter)  # model, kept or discarded
    upstream_errors: Counter[tuple[str, str]] = field(default_factory=Counter)  # model, kind
    unjudged: Counter[str] = field(default_factory=Counter)  # reason

    def samples(self) -> Iterator[MetricSample]:
        """Every counter as it stands."""
        pairs = (
            ("answers", ("kind", "outcome"), self.answers),
            ("calls", ("model", "why"), self.calls),
            ("released", ("kind", "model"), self.released),
            ("tokens", ("model", "fate"), self.tokens),
            ("upstream_errors", ("model", "kind"), self.upstream_errors),
        )
        for name, labels, counter in pairs:
            for values, value in counter.items():
                yield MetricSample(f"pointsman_panel_{name}_total", dict(zip(labels, values, strict=True)), value)
        for reason, value in self.ineligible.items():
            yield MetricSample("pointsman_panel_ineligible_total", {"reason": reason}, value)
        for reason, value in self.unjudged.items():
            yield MetricSample("pointsman_panel_unjudged_total", {"reason": reason}, value)
