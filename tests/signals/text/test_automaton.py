"""The automaton finds what a search for each keyword alone finds; folding and word bounds are Unicode's."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signals.text import automaton
from signals.text.automaton import Automaton, Keyword, fold

ALPHABET = "aAbBßẞsSiIİı éÉe\u0301_-+'.,\n\t 1漢字かなカ한글ไทยĐđΣσςﬁＡ"


def find(text: str, *keywords: Keyword) -> set[int]:
    machine = Automaton()
    numbers = [machine.add(keyword) for keyword in keywords]
    machine.freeze()
    hits = machine.scan(text)
    return {i for i, number in enumerate(numbers) if hits >> number & 1}


def found(keyword: str, text: str, whole: bool = True, exact: bool = False) -> bool:
    return find(text, Keyword(keyword, whole, exact)) == {0}


def naive(keyword: Keyword, text: str) -> bool:
    """The definition, character by character, with no automaton and no bytes."""

    def form(part: str) -> str:
        folded = unicodedata.normalize("NFC", part) if keyword.exact else fold(part)
        spaced = "".join(" " if c in "\t\n\v\f\r" else c for c in folded)
        while "  " in spaced:
            spaced = spaced.replace("  ", " ")
        return spaced

    def clings(char: str) -> bool:
        return automaton._clings(char) if ord(char) > 127 else char.isalnum() or char == "_"

    inside, wanted = form(text), form(" ".join(keyword.text.split()))
    for start in range(len(inside) - len(wanted) + 1):
        end = start + len(wanted)
        if inside[start:end] != wanted:
            continue
        left = start > 0 and clings(inside[start - 1]) and clings(inside[start])
        right = end < len(inside) and clings(inside[end]) and clings(inside[end - 1])
        if not keyword.whole or not (left or right):
            return True
    return False


words = st.text(ALPHABET, min_size=1, max_size=4).filter(lambda word: word.strip()) | st.sampled_from(
    ["a  b", "s\tß", "B a"]
)
keywords = st.builds(Keyword, words, st.booleans(), st.just(False))


@given(st.lists(keywords, min_size=1, max_size=6), st.text(ALPHABET, max_size=40))
def test_it_finds_what_a_naive_search_finds(listed: list[Keyword], text: str) -> None:
    # An overlapping run of spaces in a text without phrases is not squeezed; neither matters to a single word.
    assert find(text, *listed) == {i for i, keyword in enumerate(listed) if naive(keyword, text)}


@given(
    st.lists(st.builds(Keyword, words, st.booleans(), st.just(True)), min_size=1, max_size=4),
    st.text("aAbBiI ", max_size=30),
)
def test_case_sensitive_keywords_are_found_as_written(listed: list[Keyword], text: str) -> None:
    assert find(text, *listed) == {i for i, keyword in enumerate(listed) if naive(keyword, text)}


@given(st.text(ALPHABET, max_size=30))
def test_folding_twice_changes_nothing(text: str) -> None:
    assert fold(fold(text)) == fold(text)


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("straße", "In der STRASSE"),
        ("STRASSE", "eine Straße!"),
        ("istanbul", "İSTANBUL'da"),
        ("İstanbul", "istanbul"),
        ("café", "the cafe\u0301 is open"),
        ("ﬁne", "FINE"),
        ("pdf", "このＰＤＦを"),
        ("ΟΔΟΣ", "οδος"),
        ("c++", "in C++11, really"),
        (".net", "ASP .NET core"),
        ("python", "用Python写"),
        ("天気", "今日の天気は"),
        ("파이썬", "파이썬을 배우다"),
        ("stack trace", "a stack \n   trace here"),
        ("don", "don't"),
        ("हिन्दी", "मेरी हिन्दी अच्छी"),
    ],
)
def test_these_are_found(keyword: str, text: str) -> None:
    assert found(keyword, text)


@pytest.mark.parametrize(
    ("keyword", "text"),
    [
        ("art", "party"),
        ("art", "art_work"),
        ("art", "artés"),
        ("i", "İstanbul"),
        ("हिन", "हिन्दी"),  # a vowel sign or virama goes on with the word
        ("éta", "étage"),
        ("stack trace", "stacktrace"),
    ],
)
def test_parts_of_words_are_not(keyword: str, text: str) -> None:
    assert not found(keyword, text)
    assert found(keyword.strip(), text, whole=False) or keyword == "stack trace" or keyword == "i"


def test_case_matters_only_when_asked() -> None:
    assert found("US", "us or them")
    assert not found("US", "us or them", exact=True)
    assert found("US", "them or US", exact=True)
    assert find("us, US", Keyword("US", True, True), Keyword("us", True, False)) == {0, 1}
    assert find("The Usual", Keyword("US", True, True), Keyword("us", False, False)) == {1}


def test_long_texts_are_searched_in_chunks_without_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "x" * 50 + " needle " + "y" * 50
    for chunk in range(1, 70):
        monkeypatch.setattr(automaton, "_CHUNK", chunk)
        assert found("needle", text)
        assert not found("needles", text)


@pytest.mark.slow
@pytest.mark.no_cover
def test_a_repetitive_text_takes_no_memory() -> None:
    import tracemalloc

    text = "aaaa " * 20_000  # 200,000 overlapping matches, 20 MB if they were all listed
    machine = Automaton()
    for size in range(1, 5):
        machine.add(Keyword("a" * size, False, False))
    machine.add(Keyword("zz", True, False))
    machine.freeze()
    tracemalloc.start()
    machine.scan(text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8e6


def test_no_keywords_find_nothing() -> None:
    machine = Automaton()
    machine.freeze()
    assert machine.scan("anything") == 0


def test_a_lone_surrogate_is_not_an_error() -> None:
    assert found("ok", "\ud800 ok")


def test_an_empty_keyword_is_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        Automaton().add(Keyword(" \t", True, False))


def test_a_heap_of_combining_marks_is_folded_in_linear_time() -> None:
    # Unbroken, 200,000 marks in alternating classes would take minutes to sort.
    text = "a" + "\u0301\u0316" * 100_000 + " needle"
    assert found("needle", text)
    assert found("needle", text, exact=True)
    assert found("ạ\u0301b", "ẠB ạ\u0301b")
