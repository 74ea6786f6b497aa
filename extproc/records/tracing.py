"""OpenTelemetry: one span per decision (the `otel` extra; standard OTEL_* variables). No prompt content.

The parent is the request's `traceparent` (W3C Trace Context), else the one that Envoy puts into the gRPC metadata. Of
the GenAI attributes only those are used that keep their names in the ongoing renaming; all else is under `pointsman.`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from decisions.outcome import Outcome
from extproc.apis.registry import BY_NAME
from extproc.records import shown
from signals.request import Request
from signals.state.session import SESSION_HEADER

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider


class Tracing:
    """Makes spans. Build it in the worker: the exporter has a thread of its own."""

    def __init__(self, provider: TracerProvider | None = None) -> None:
        """`provider` is for tests; the default exports over OTLP as the OTEL_* variables say.

        Raises ValueError when the `otel` extra is not installed.
        """
        try:
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.propagate import extract
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.trace import SpanKind, Status, StatusCode
        except ImportError:
            raise ValueError("traces need the otel extra: pip install 'pointsman[otel]'") from None
        if provider is None:
            provider = TracerProvider(resource=Resource.create({"service.name": "pointsman"}))
            provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._provider = provider
        self._tracer = provider.get_tracer("pointsman")
        self._extract = extract
        self._kind = SpanKind.INTERNAL
        self._error = Status(StatusCode.ERROR)

    def record(self, outcome: Outcome, request: Request, metadata: Mapping[str, str]) -> None:
        """One decided request; `metadata` is the gRPC stream's. The span is as long as it took to decide it."""
        trace = outcome.trace
        headers = request.headers
        carrier = headers if "traceparent" in headers else metadata
        begun = int(request.received * 1e9)
        span = self._tracer.start_span(
            f"decide {request.api}",
            context=self._extract({name: carrier[name] for name in ("traceparent", "tracestate") if name in carrier}),
            kind=self._kind,
            start_time=begun,
        )
        decision = trace.decision
        attributes: dict[str, str | float] = {
            "gen_ai.operation.name": BY_NAME[request.api].telemetry,
            "pointsman.action": decision.action,
            "pointsman.policy": trace.policy,
        }
        if request.model is not None:
            attributes["gen_ai.request.model"] = shown.word(request.model)
        if outcome.model is not None:
            attributes["pointsman.model"] = outcome.model.key
        if decision.name is not None:
            attributes["pointsman.decision"] = decision.name
        if outcome.tenant is not None:
            attributes["pointsman.tenant"] = outcome.tenant
        for name, value in (
            ("gen_ai.usage.input_tokens", outcome.prompt),
            ("gen_ai.usage.output_tokens", outcome.completion),
            ("pointsman.cost", outcome.money),
            ("pointsman.reference_cost", outcome.reference),
        ):
            if value is not None:
                attributes[name] = value
        if outcome.acted:
            attributes["pointsman.answer.decision"], attributes["pointsman.answer.action"] = outcome.acted[0]
        if SESSION_HEADER in headers:
            attributes["gen_ai.conversation.id"] = shown.word(headers[SESSION_HEADER])
        if decision.fallback is not None:
            attributes["error.type"] = decision.fallback
            span.set_status(self._error)
        if (choice := trace.choice) is not None:
            attributes["pointsman.selector"] = choice.by
            attributes["pointsman.choice"] = choice.why
            attributes["pointsman.propensity"] = choice.propensity
        for name, reading in trace.readings.items():
            attributes[f"pointsman.signal.{name}"] = (
                "unknown" if reading.matched is None else str(reading.matched).lower()
            )
        span.set_attributes(attributes)
        span.end(begun + max(1, int(trace.microseconds * 1000)))

    def close(self) -> None:
        """Export what is waiting."""
        self._provider.shutdown()
