from __future__ import annotations

from typing import Any

import pytest

from signals.registry import BY_NAME
from tests.signals.help import build, complaint, matched, reading, request

ALL: dict[str, Any] = {
    "types": ["payment_failed", "login failure"],
    "severities": ["critical", "high"],
    "codes": ["TXN_DECLINE"],
    "urgent": True,
}


@pytest.mark.parametrize(
    ("text", "evidence", "score", "label"),
    [
        ('{"event": "payment_failed", "level": "high"}', ("types", "severities"), 0.75, "high"),
        ("PAYMENT_FAILED txn_decline CRITICAL high, please look asap", tuple(ALL), 1.0, "critical"),
        ("a Login  Failure", ("types",), 0.625, None),
        ("Code TXN_DECLINE.", ("codes",), 0.625, None),
        ("this is time-sensitive", ("urgent",), 0.625, None),
        ("раyment_failed", ("types",), 0.625, None),  # the first two letters are Cyrillic
    ],
)
def test_what_is_found_and_how_much_of_it(
    text: str, evidence: tuple[str, ...], score: float, label: str | None
) -> None:
    found = reading(build("event", **ALL), text)
    assert (found.matched, found.evidence, found.label) == (True, evidence, label)
    assert found.score == pytest.approx(score)


@pytest.mark.parametrize("text", ["", "a payment_failed_twice", "highly critically", "TXN_DECLINED", "nowhere"])
def test_only_whole_words_count(text: str) -> None:
    assert reading(build("event", **ALL), text) == reading(build("event", **ALL), "nothing")
    assert matched("event", text, **ALL) is False


def test_metadata_counts_value_by_value() -> None:
    given = request("what happened?", fields={"metadata": {"kind": "Payment_Failed", "level": "HIGH ", "n": 3}})
    found = reading(build("event", **ALL), given)
    assert (found.evidence, found.label) == (("types", "severities"), "high")
    part = request("what happened?", fields={"metadata": {"note": "a payment_failed event"}})
    assert reading(build("event", **ALL), part).matched is False
    for odd in (None, [], "critical", {"a": ["critical"]}):
        assert matched("event", request("x", fields={"metadata": odd}), **ALL) is False


def test_match_all_needs_something_of_each_list() -> None:
    params = {"types": ["alert"], "severities": ["high"], "match": "all"}
    assert matched("event", "an alert, severity high", **params) is True
    assert matched("event", "an alert, severity low", **params) is False
    given = request("an alert", fields={"metadata": {"severity": "high"}})
    assert matched("event", given, **params) is True


def test_wrong_parameters_are_explained() -> None:
    assert "one of types, severities, codes, urgent" in complaint("event")
    assert "a name is empty" in complaint("event", types=[" "])
    assert BY_NAME["event"].finds
