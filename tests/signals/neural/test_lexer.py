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
    assert lexer.hashes(lexer.words("")).shape == lexer.hashes(lexer.words("  ")).shape == (4, 0)


def test_case_and_surroundings_do_not_change_a_hash() -> None:
    alone = lexer.words("grün").hashes[0]
    assert lexer.words("x, GRÜN!").hashes[2] == alone
    assert lexer.words("grun").hashes[0] != alone


def test_pairs_depend_on_order() -> None:
    assert lexer.hashes(lexer.words("dog bites man"))[1, 0] != lexer.hashes(lexer.words("bites dog man"))[1, 0]
    assert lexer.hashes(lexer.words("a dog bites"))[1, 1] == lexer.hashes(lexer.words("dog   BITES man"))[1, 0]


def test_ends_see_only_the_letters_at_the_end() -> None:
    whole, _, first, last = lexer.hashes(lexer.words("walking talking walk wal über ÜBERALL ¿où?"))
    assert first[0] == first[2] != first[1]
    assert last[0] == last[1] != last[2]
    assert first[3] != first[2]
    assert first[4] == first[5]
    assert len(set(whole.tolist()) & set(first.tolist())) == len(set(first.tolist()) & set(last.tolist())) == 0


def test_a_long_text_has_the_same_hashes() -> None:
    filler, words = "x" * 20000, "Grüße aus Köln"
    assert (lexer.hashes(lexer.words(f"{filler} {words}"))[:, -3:] == lexer.hashes(lexer.words(words))).all()


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


def test_parts_of_a_run_are_hashed_as_words_are() -> None:
    run = "IgnoreThisabcXYZ" * 20
    found = lexer.substrings(run, 16)
    for start in (0, 1, 7, 100, len(run) - 3):
        for size in range(1, 17):
            part = run[start : start + size].lower()
            assert found[start, size - 1] == lexer.words(part).hashes[0]
