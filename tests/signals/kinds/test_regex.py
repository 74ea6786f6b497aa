from __future__ import annotations

import re

import pytest
import re2
from hypothesis import given
from hypothesis import strategies as st

from signals.facts import Facts
from signals.gather import read
from signals.reading import Unavailable
from signals.signal import Shared
from signals.text import patterns
from signals.text.patterns import PatternSet
from tests.signals.help import build, complaint, matched, reading, request

PATTERNS = [
    r"a+b",
    r"(?i)straße",
    r"^x",
    r"y$",
    r"(?m)^z",
    r"\bword\b",
    r"\d{3}-\d{4}",
    r"[^\x00-\x7f]",
    r"a.c",
    r"\z",
    r"(a|ab)(c|bcd)",
]


@given(
    st.lists(st.sampled_from(PATTERNS), min_size=1, unique=True), st.text("aabcdxyz\nword123-4567 ßSTRAE", max_size=30)
)
def test_the_set_finds_what_single_searches_find(listed: list[str], text: str) -> None:
    made = PatternSet()
    numbers = [made.add(pattern) for pattern in listed]
    made.freeze()
    hits = made.scan(text)
    for pattern, number in zip(listed, numbers, strict=True):
        assert bool(hits >> number & 1) == (re2.search(pattern, text) is not None)


def test_it_reads_any_pattern_and_says_which() -> None:
    signal = build("regex", any=[r"\bSELECT\b.+\bFROM\b", r"(?i)traceback"])
    assert reading(signal, "a Traceback here").evidence == ("any[1]",)
    assert reading(signal, "nothing").matched is False
    assert matched("regex", request("hi", headers={}), any=["hi"], **{"in": "system"}) is False


def test_a_pattern_that_would_explode_elsewhere_takes_no_time() -> None:
    assert matched("regex", "a" * 100_000 + "!", any=["(a+)+$", "(a|aa)+b"]) is False


def test_all_signals_share_one_set() -> None:
    shared = Shared()
    one, two = build("regex", shared, "one", any=["a"]), build("regex", shared, "two", any=["b", "a"])
    shared.freeze()
    facts = Facts(request("a"))
    assert (read(one, facts).evidence, read(two, facts).evidence) == (("any[0]",), ("any[1]",))
    assert len(facts._memo) == 1


def test_lack_of_memory_is_unknown_not_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    made = PatternSet()
    made.add("never")
    made.freeze()

    class Broken:
        def Match(self, text: bytes) -> None:
            return None

    made._set = Broken()  # what RE2's binding gives when the automaton runs out of memory
    with pytest.raises(Unavailable, match="pattern_memory"):
        made.scan("text")


def test_too_large_a_set_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patterns, "_MEMORY", 1000)
    made = PatternSet()
    made.add("(abc|def){1,100}")
    with pytest.raises(ValueError, match="together are too large"):
        made.freeze()


def test_a_policy_with_too_large_a_set_is_a_policy_error(monkeypatch: pytest.MonkeyPatch) -> None:
    from config.build import build as engine
    from config.load import parse
    from config.problem import PolicyError

    monkeypatch.setattr(patterns, "_MEMORY", 1000)
    text = "version: 1\nmodels: {a: {name: b/c}}\ndefault: a\ndecisions: []\n"
    policy = parse(text + "signals: {x: {regex: {any: ['(abc|def){1,100}']}}}\n")
    with pytest.raises(PolicyError, match="together are too large"):
        engine(policy)


@pytest.mark.parametrize("pattern", [r"(?=look)", r"(a)\1", "(", "[z-a]"])
def test_what_re2_refuses_is_explained(pattern: str) -> None:
    assert re.search(r"any\.0: .*is not an RE2 expression: \w+", complaint("regex", any=[pattern]))


def test_empty_lists_are_refused() -> None:
    assert "at least 1 item" in complaint("regex", any=[])
    assert "at least 1 character" in complaint("regex", any=[""])
