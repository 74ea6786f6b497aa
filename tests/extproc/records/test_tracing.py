"""One span a decision, its parent, and no text of the request."""

import json

import pytest

from config.build import build
from config.load import parse
from extproc.records.tracing import Tracing
from extproc.requests.body import parse as parse_request
from extproc.requests.paths import Target
from tests.extproc.envoy import decided

pytest.importorskip("opentelemetry.sdk", reason="the otel extra is not installed")
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

POLICY = """\
version: 1
models: {small: {}}
default: small
signals: {gold: {header: {name: x-tier, in: [gold]}}}
decisions:
  - {name: gold, when: gold, route: small}
"""
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319d-b7ad6b7169203332-01"


@pytest.fixture
def spans():
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)

    def record(headers, metadata, fallback=None):
        engine = build(parse(POLICY))
        body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "secret words"}]}).encode()
        request = parse_request(Target("chat"), headers, {}, body)
        trace = engine.settle(request) if fallback is None else engine.failed(fallback)
        tracing.record(decided(trace, request), request, metadata)
        return exporter.get_finished_spans()[-1]

    yield record
    tracing.close()


def test_a_span_says_what_was_decided(spans):
    span = spans({"x-tier": "gold", "x-session-id": "s1"}, {})
    assert span.name == "decide chat"
    assert span.attributes["gen_ai.operation.name"] == "chat"
    assert span.attributes["gen_ai.request.model"] == "auto"
    assert span.attributes["gen_ai.conversation.id"] == "s1"
    assert span.attributes["pointsman.decision"] == "gold"
    assert span.attributes["pointsman.signal.gold"] == "true"
    assert span.end_time > span.start_time
    assert "secret" not in str(span.to_json())


def test_a_choice_of_models_is_said(spans, monkeypatch):
    assert not any(name.startswith("pointsman.choice") for name in spans({"x-tier": "gold"}, {}).attributes)
    monkeypatch.setattr(
        f"{__name__}.POLICY", "version: 1\nmodels: {a: {}}\ndefault: a\ndecisions: [{name: d, route: {pick: [a]}}]"
    )
    attributes = spans({}, {}).attributes
    assert (attributes["pointsman.selector"], attributes["pointsman.choice"]) == ("weighted", "its share")
    assert attributes["pointsman.propensity"] == 1.0


def test_the_parent_is_the_requests_own_else_the_streams(spans):
    assert f"{spans({'traceparent': PARENT}, {'traceparent': OTHER}).parent.trace_id:032x}" == PARENT[3:35]
    assert f"{spans({}, {'traceparent': OTHER}).parent.trace_id:032x}" == OTHER[3:35]
    assert spans({}, {}).parent is None


def test_a_fallback_is_an_error(spans):
    span = spans({}, {}, fallback="deadline")
    assert span.attributes["error.type"] == "deadline"
    assert not span.status.is_ok
