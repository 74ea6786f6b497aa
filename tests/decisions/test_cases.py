"""Policy test cases: stubs, comparison, coverage."""

from __future__ import annotations

import pytest
from pydantic import Field

from decisions.cases import Coverage, Expect, Stub, mismatches, stub
from decisions.decision import Changes, Decision, Trace
from decisions.rule import Leaf
from signals.reading import FALSE, TRUE, Reading, unknown
from signals.signal import Params
from tests.decisions.fakes import LARGE, Fake, clause, engine, request


class Bounded(Params):
    at_least: float | None = None
    at_most: float | None = None
    is_: list[str] | None = Field(None, alias="is")


class Named(Params):
    is_: str = Field(alias="is")


def signal(params: Params) -> Fake:
    made = Fake("s")
    made.params = params
    return made


@pytest.mark.parametrize(
    ("value", "reading"),
    [
        (True, TRUE),
        (False, FALSE),
        ("unknown", unknown("stubbed")),
        (Stub(matched="unknown", score=0.5), unknown("stubbed")),
        (Stub(matched=False, score=0.9), Reading(False, 0.9)),
        (Stub(score=0.7), Reading(True, 0.7)),
        (Stub(score=0.69), Reading(False, 0.69)),
        (Stub(score=0.91), Reading(False, 0.91)),
        (Stub(label="law"), Reading(False, None, "law")),
        (Stub(label="math", score=0.8), Reading(True, 0.8, "math")),
        (Stub(), Reading(True)),
    ],
)
def test_a_stub_matches_as_its_signal_would(value: bool | str | Stub, reading: Reading) -> None:
    bounded = signal(Bounded.model_validate({"at_least": 0.7, "at_most": 0.9, "is": ["math"]}))
    assert stub(bounded, value) == reading


def test_a_stub_of_a_signal_without_bounds_matches() -> None:
    assert stub(signal(Params()), Stub(score=0.1, label="any")) == Reading(True, 0.1, "any")
    count = signal(Bounded(at_least=2))
    count.scored = False  # type: ignore[misc]
    assert stub(count, Stub(score=0.5)).matched is True
    named = signal(Named.model_validate({"is": "math"}))
    assert stub(named, Stub(label="math")).matched is True
    assert stub(named, Stub(label="law")).matched is False


def test_only_what_is_expected_is_compared() -> None:
    decision = Decision("one", "route", LARGE, changes=Changes(headers={"x-a": "b"}))
    headers = {"X-A": "b"}
    assert mismatches(Expect(decision="one", headers={"x-a": "b"}), decision, headers) == []
    assert mismatches(Expect(model="large", action="route", status=None), decision, headers) == []
    assert mismatches(Expect(decision=None, model="small", fallback="x", headers={"x-a": "c"}), decision, headers) == [
        "decision: expected none, got 'one'",
        "model: expected 'small', got 'large'",
        "fallback: expected 'x', got none",
        "header x-a: expected 'c', got 'b'",
    ]
    refused = Decision("g", "respond", None, 403)
    assert mismatches(Expect(status=401, model=None), refused, {}) == ["status: expected 401, got 403"]


def test_coverage_counts_decisions_and_signals() -> None:
    made = engine([Fake("a"), Fake("b")], [clause("one", Leaf("a")), clause("two", Leaf("b"))])
    coverage = Coverage(made)
    for said in ({"a": TRUE}, {"a": TRUE}):
        trace = made.settle(request(said))
        assert isinstance(trace, Trace)
        coverage.add(trace)
    assert coverage.report() == [
        "decisions taken: 1 of 2 (50.0 %)",
        "  never taken: two",
        "signals read: 1 of 2 (50.0 %)",
        "  never read: b",
    ]
    assert Coverage(engine([], [])).report()[0] == "decisions taken: 0 of 0 (100.0 %)"
