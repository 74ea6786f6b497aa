from __future__ import annotations

import pytest

from signals.facts import Facts
from signals.gather import read
from signals.request import Message
from signals.signal import Cost, Shared
from tests.signals.help import build, complaint, matched, reading, request


def test_any_all_none() -> None:
    params = {"any": ["alpha", "beta"], "all": ["gamma"], "none": ["delta"]}
    assert matched("keyword", "beta gamma", **params)
    assert not matched("keyword", "gamma", **params)
    assert not matched("keyword", "alpha beta", **params)
    assert not matched("keyword", "alpha gamma delta", **params)
    assert matched("keyword", "nothing of it", none=["delta"])


def test_evidence_names_places_and_never_text() -> None:
    found = reading(build("keyword", any=["secret-project", "beta"], all=["gamma"]), "beta gamma")
    assert (found.score, found.evidence) == (1.0, ("any[1]", "all[0]"))


def test_each_scope_is_searched() -> None:
    given = request(
        messages=[
            Message("system", "sys"),
            Message("user", "first"),
            Message("tool", "result"),
            Message("user", "last"),
        ]
    )
    found = {
        scope: {
            word
            for word in ("sys", "first", "result", "last")
            if matched("keyword", given, any=[word], **{"in": scope})
        }
        for scope in ("user", "conversation", "system", "tools", "all")
    }
    assert found == {
        "user": {"last"},
        "conversation": {"first", "result", "last"},
        "system": {"sys"},
        "tools": {"result"},
        "all": {"sys", "first", "result", "last"},
    }


def test_signals_share_one_automaton_and_one_pass() -> None:
    shared = Shared()
    signals = [build("keyword", shared, name, any=[word]) for name, word in (("a", "alpha"), ("b", "beta"))]
    shared.freeze()
    facts = Facts(request("alpha only"))
    assert [read(signal, facts).matched for signal in signals] == [True, False]
    assert len(facts._memo) == 1


@pytest.mark.parametrize(("text", "expected"), [("urgnet", True), ("urgemt", True), ("argemt", False), ("urge", False)])
def test_fuzzy_finds_misspelled_words(text: str, expected: bool) -> None:
    assert matched("keyword", f"this is {text}, please", any=["urgent"], fuzzy={"max_edits": 1}) is expected


def test_fuzzy_compares_phrases_and_spares_short_words() -> None:
    assert matched("keyword", "the stak trace says", any=["stack trace"], fuzzy={"max_edits": 2})
    assert not matched("keyword", "to be", any=["do"], fuzzy={"max_edits": 1})
    found = reading(build("keyword", any=["kubernetes"], fuzzy={"max_edits": 2}), "my kubernets cluster")
    assert found.score == pytest.approx(0.9)


def test_fuzzy_applies_to_all_and_none() -> None:
    assert not matched("keyword", "a pasword", none=["password"], fuzzy={"max_edits": 1})
    assert matched("keyword", "a pasword", all=["password"], fuzzy={"max_edits": 1})


def test_ngram_finds_words_with_the_same_letters() -> None:
    params = {"any": ["authentication"], "ngram": {"at_least": 0.6}}
    found = reading(build("keyword", **params), "the authentification fails")
    assert found.matched
    assert 0.6 <= (found.score or 0) < 1
    assert not matched("keyword", "the author fails", **params)


def test_bm25_weighs_keywords() -> None:
    signal = build("keyword", any=["invoice", "refund", "credit note"], bm25={"at_least": 2.0})
    one, two = reading(signal, "where is my invoice"), reading(signal, "the invoice and the refund and a credit note")
    assert (one.matched, two.matched) == (False, True)
    assert one.score is not None
    assert two.score is not None
    repeated = reading(signal, "invoice " * 50)
    assert one.score < two.score
    assert (repeated.score or 0) < 2.2  # one keyword alone never exceeds k1 + 1


def test_inexact_modes_cost_more_and_refuse_huge_texts() -> None:
    signal = build("keyword", any=["urgent"], fuzzy={"max_edits": 1})
    assert signal.cost == Cost.FAST
    assert build("keyword", any=["urgent"]).cost == Cost.INSTANT
    assert reading(signal, "word " * 60_000).error == "too_long"


def test_wrong_parameters_are_explained() -> None:
    assert "one of any, all, none" in complaint("keyword")
    assert "a keyword is empty" in complaint("keyword", any=["ok", " "])
    assert "fuzzy and ngram exclude" in complaint("keyword", any=["a"], fuzzy={}, ngram={"at_least": 0.5})
    assert "bm25 weighs" in complaint("keyword", all=["a"], bm25={"at_least": 1.0})
    assert "whole words" in complaint("keyword", any=["a"], fuzzy={}, case_sensitive=True)
    assert "Extra inputs" in complaint("keyword", any=["a"], colour="red")
