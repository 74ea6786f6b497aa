"""Where signals have found something: what is masked there is gone, and nothing else is."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from signals.facts import Facts
from signals.gather import read
from signals.reading import Span, Unavailable
from signals.request import ANSWER, Message, Request
from signals.signal import Shared, Signal
from signals.text.automaton import Automaton, Keyword
from tests.linear import assert_linear
from tests.signals.help import build
from tests.volume import few_and_many

KINDS = {
    "keyword": {"any": ["secret plan", "Straße", "한국"], "in": "answer"},
    "exact": {"any": ["secret plan", "Straße", "한국"], "in": "answer", "exact": True},
    "cased": {"any": ["NASA", "Élan"], "in": "answer", "case_sensitive": True},
    "parts": {"any": ["plan", "an"], "in": "answer", "whole_words": False},
    "regex": {"any": [r"AK-\d{4,6}", "don’t"], "in": "answer"},
    "pii": {"types": ["card", "iban", "email", "ip", "secret"], "in": "answer"},
}
SIGNALS = {}
for name, params in KINDS.items():
    shared = Shared()
    SIGNALS[name] = build(name if name in ("keyword", "regex", "pii") else "keyword", shared, **params)
    shared.freeze()

PIECES = [
    *(
        "secret plan",
        "SECRET \n plan",
        "secretplan",
        "secret",
        "strasse",
        "Stra\u00dfe",
        "STRAẞE",
        "한국",
        "한국어",
        "\u1112\u1161\u11ab국",
    ),
    *("NASA", "nasa", "Élan", "E\u0301lan", "élan", "plans", "AK-1234", "AK-１２３４", "AK-12", "don't", "don’t"),
    *("4111 1111 1111 1111", "4111-1111-1111-1112", "DE89 3704 0044 0532 0130 00", "ann@corp.example.org", "10.1.2.3"),
    *(
        "AKIAQ7J4M2XW5RT3HPLK",
        "４111 1111 1111 1111",
        "sec\u200bret plan",
        "ѕecret plan",
        "ﬁn",
        "x\u0301",
        "\u2028",
        "\ufdfa",
    ),
]
JOINTS = [" ", "  ", "\n", ", ", "é ", "。", " \u200b", " \u0130 "]
TEXTS = st.lists(st.tuples(st.sampled_from(PIECES), st.sampled_from(JOINTS)), min_size=1, max_size=8).map(
    lambda pairs: "".join(piece + joint for piece, joint in pairs)
)


def facts(text: str) -> Facts:
    return Facts(Request("chat", b"", {}, None, (Message(ANSWER, text),)))


def masked(text: str, spans: list[Span]) -> str:
    """The text without what the spans cover."""
    covered = [False] * len(text)
    for start, end, _ in spans:
        assert 0 <= start < end <= len(text)
        covered[start:end] = [True] * (end - start)
    out = []
    for place, char in enumerate(text):
        if not covered[place]:
            out.append(char)
        elif not place or not covered[place - 1]:
            out.append("[*]")
    return "".join(out)


@pytest.mark.parametrize("signal", SIGNALS.values(), ids=SIGNALS)
@few_and_many(30, 150)
def test_what_is_found_has_a_place_and_is_gone_when_it_is_masked(signal: Signal, examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(text=TEXTS)
    def holds(text: str) -> None:
        given = facts(text)
        matched = read(signal, given).matched
        spans = signal.spans(given) if matched else []
        assert bool(spans) == matched
        assert read(signal, facts(masked(text, spans))).matched is False

    holds()


@pytest.mark.parametrize(
    ("kind", "text", "found"),
    [
        ("keyword", "my SECRET \n plan, in the STRASSE", ["SECRET \n plan", "STRASSE"]),
        ("keyword", "é secret   plan é", ["secret   plan"]),
        ("keyword", "secretplan", []),
        ("keyword", "한국어", ["한국"]),
        ("keyword", "a ѕec\u200bret plan", ["ѕec\u200bret plan"]),
        ("exact", "a ѕec\u200bret plan", []),
        ("cased", "NASA and nasa and E\u0301lan", ["NASA", "E\u0301lan"]),
        ("parts", "plans", ["plan", "an"]),
        ("regex", "AK-1234, AK-１２３４5", ["AK-1234", "AK-１２３４5"]),
        ("regex", "I don't and don’t", ["don't", "don’t"]),
        ("pii", "日本 4111 1111 1111 1111 本", ["4111 1111 1111 1111"]),
        ("pii", "４111 1111 1111 1111", ["４111 1111 1111 1111"]),
    ],
)
def test_the_places(kind: str, text: str, found: list[str]) -> None:
    given = facts(text)
    spans = SIGNALS[kind].spans(given) if read(SIGNALS[kind], given).matched else []
    assert sorted({text[start:end] for start, end, _ in spans}) == sorted(found)


def test_labels_tell_a_client_nothing_of_the_policy() -> None:
    given = facts("secret plan, AK-1234, ann@corp.example.org")
    labels = [{span.label for span in SIGNALS[kind].spans(given)} for kind in ("keyword", "regex", "pii")]
    assert labels == [{"masked"}, {"masked"}, {"email"}]


@pytest.mark.parametrize(
    ("kind", "params", "longest"),
    [
        ("keyword", {"any": ["ab", "abcdef"], "all": ["abc"]}, 6),
        ("regex", {"any": ["a{2,7}", "b*"]}, 7),
        ("regex", {"any": ["b*"]}, None),
        ("regex", {"any": [r"\pL{3}"]}, None),
        ("pii", {"types": ["card", "iban", "email"]}, 42),
        ("pii", {"types": ["secret"]}, None),
    ],
)
def test_the_most_that_is_found(kind: str, params: dict[str, object], longest: int | None) -> None:
    assert build(kind, Shared(), **params).params.longest() == longest


def test_keywords_of_other_signals_are_not_found() -> None:
    automaton = Automaton()
    one, other = (1 << automaton.add(Keyword(word, True, False)) for word in ("one", "two"))
    automaton.freeze()
    assert automaton.places("one two", one) == [(0, 3)]
    assert automaton.places("one two", other) == [(4, 7)]
    assert automaton.places("one two", one | other) == [(0, 3), (4, 7)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["keyword", "regex", "pii"])
@pytest.mark.parametrize(
    "unit", ["secret plan ", "secret  plan é ", "한국", "AK-1234 ", "ann@corp.example.org ", "x\u0301", " "]
)
def test_places_are_found_in_linear_time(kind: str, unit: str) -> None:
    def run(given: Facts) -> None:
        signal = SIGNALS[kind]
        if read(signal, given).matched:
            with suppress(Unavailable):  # on a quick machine the text grows to more places than are told
                signal.spans(given)

    assert_linear(lambda size: facts((unit * (size // len(unit) + 1))[:size]), run)
