"""Text is cut into words whose hashes do not depend on case, position or neighbours."""

# ruff: noqa: E501  example texts

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from signals.neural import lexer


def cut(text: str) -> list[str]:
    found = lexer.words(text)
    return [text[start : start + length] for start, length in zip(found.starts, found.lengths, strict=True)]


def test_words_digits_signs_and_scripts_are_told_apart() -> None:
    assert cut("Hello, fooBar don't né!! 12,345 x") == ["Hello", ",", "foo", "Bar", "don", "'", "t", "né", "!!", "12", ",", "345", "x"]  # fmt: skip
    assert cut("日本語 привет हिन्दी") == ["日", "本", "語", "привет", "हिन्दी"]
    assert cut("a😀b") == ["a", "😀", "b"]


def test_a_text_without_words_has_none() -> None:
    assert cut("") == cut(" \n\t") == []
    assert len(lexer.pairs(lexer.words(""))) == len(lexer.ends(lexer.words(""), 4, True)) == 0


def test_case_and_surroundings_do_not_change_a_hash() -> None:
    alone = lexer.words("grün").hashes[0]
    assert lexer.words("x, GRÜN!").hashes[2] == alone
    assert lexer.words("grun").hashes[0] != alone


def test_pairs_depend_on_order() -> None:
    assert lexer.pairs(lexer.words("dog bites man"))[0] != lexer.pairs(lexer.words("bites dog man"))[0]


def test_ends_see_only_the_letters_at_the_end() -> None:
    words = lexer.words("walking talking walk")
    assert lexer.ends(words, 4, False)[0] == lexer.ends(words, 4, False)[2] != lexer.ends(words, 4, False)[1]
    assert lexer.ends(words, 4, True)[0] == lexer.ends(words, 4, True)[1]


@given(st.text())
def test_words_cover_all_but_white_space_in_order(text: str) -> None:
    found = lexer.words(text)
    ends = found.starts + found.lengths
    assert (found.lengths > 0).all()
    assert (found.starts[1:] >= ends[:-1]).all()
    covered = np.zeros(len(text), bool)
    for start, end in zip(found.starts, ends, strict=True):
        covered[start:end] = True
    assert all(ok or c.isspace() or ord(c) < 32 for c, ok in zip(text, covered, strict=True))


@given(st.lists(st.text("abcäж日1!", min_size=1, max_size=8), max_size=20))
def test_the_same_word_has_the_same_hash_everywhere(pieces: list[str]) -> None:
    seen: dict[str, int] = {}
    text = " ".join(pieces)
    for word, value in zip(cut(text), lexer.words(text).hashes.tolist(), strict=True):
        assert seen.setdefault(word, value) == value
