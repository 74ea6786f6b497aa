"""What holds for every kind that works at once, whatever it is asked to read."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from bench.signals import SIGNALS
from bench.signals import build as instance
from signals.facts import Facts
from signals.gather import read
from signals.reading import Reading
from signals.registry import KINDS
from signals.request import Message, Request
from signals.signal import Shared
from tests.signals.help import build

EVERYTHING = ["email", "phone", "iban", "card", "ssn", "nin", "passport", "ip", "mac", "crypto", "secret"]
shared = Shared()
signals = [instance(shared, name) for name in SIGNALS]
signals += [
    build("pii", shared, called="all pii", types=EVERYTHING),
    build("keyword", shared, called="ngram", any=["a b", "é"], ngram={"at_least": 0.5}),
    build("keyword", shared, called="bm25", any=["a b", "é"], bm25={"at_least": 0.5}),
    build("structure", shared, called="density", density={"keywords": ["x", "ab"]}, at_least=1),
    build("structure", shared, called="sequence", sequence=["code_fences", "questions"]),
]
shared.freeze()

json: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False) | st.text("aé", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("metadata", "tools", "messages", "input", "prompt", "response_format", "text", "user", "stream")
texts = st.text("aA1 09.-:@/\n?`#漢かกé\u0301\ud800İß🙂;,()+=_<>", max_size=120)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant", "tool", "system"]), texts, st.integers(0, 2)), max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), json),
    st.sampled_from(["chat", "completions", "responses", "messages"]),
)
def test_nothing_makes_a_detector_fail(turns: list[tuple[str, str, int]], fields: dict[str, Any], api: Any) -> None:
    messages = tuple(Message(role, text, tool_calls=calls) for role, text, calls in turns)
    attributes = {"envoy.filters.http.jwt_authn": fields}
    facts = Facts(Request(api, b"{}", fields, "auto", messages, {"x-tenant-tier": "gold"}, attributes))
    facts.readings.update({name: Reading(True, 1.0) for name in ("tokens", "language")})
    for signal in signals:
        reading = read(signal, facts)
        assert reading.error != "error", signal.name
        assert (reading.matched is None) == (reading.error is not None)


def test_every_parameter_is_described() -> None:
    missing = []
    for kind in KINDS:
        schema = kind.Parameters.model_json_schema(by_alias=True)
        for model in (schema, *schema.get("$defs", {}).values()):
            missing += [
                (kind.kind, key) for key, field in model.get("properties", {}).items() if not field.get("description")
            ]
    assert missing == []
