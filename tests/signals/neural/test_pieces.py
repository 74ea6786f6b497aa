"""Texts are cut into the longest pieces that a vocabulary has."""

from __future__ import annotations

import random

import pytest

from signals.neural.pieces import LONGEST, Vocabulary
from tests.linear import spent

PIECES = [
    " house",
    " ho",
    "house",
    "boat",
    "bo",
    "at",
    "s",
    " 19",
    "84",
    "中国",
    "中",
    "人",
    " straße",
    "ße",
    "สวัส",
    "ดี",
]
CUTTER = Vocabulary(PIECES)


def cut(text: str) -> list[str]:
    return sorted(PIECES[row] for bag in CUTTER.bags(text) for row in bag.rows)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("", []),
        ("House, HOUSE!", [" house", " house"]),
        ("houseboats", [" house", "boat"]),
        ("boathouse", ["boat", "house"]),
        ("1984", [" 19", "84"]),
        ("中国人 人", ["中国", "人", "人"]),
        ("Straße house", [" house", " straße"]),
        ("สวัสดี", ["ดี", "สวัส"]),
        ("fooHouse", ["house"]),
        ("ｈｏｕｓｅ", [" house"]),
        ("house\ud800house 😀", [" house", " house"]),
    ],
)
def test_the_longest_pieces_are_taken_from_the_beginning_of_a_word(text: str, pieces: list[str]) -> None:
    assert cut(text) == sorted(pieces)


def test_a_long_text_is_cut_like_its_parts() -> None:
    chance = random.Random(1)
    words = chance.choices(["house", "boat", "houseboats", "at", "中国人", "1984"], k=60)
    text = " ".join(words)
    assert cut(text) == sorted(piece for word in words for piece in cut(word))
    assert len(cut(text * 200)) == pytest.approx(200 * len(cut(text)), rel=0.05)


def test_letters_that_no_piece_covers_are_not_known() -> None:
    (bag,) = CUTTER.bags("house xyz")
    assert (bag.letters, bag.known) == (8, 5)
    (bag,) = CUTTER.bags("中国 12 !?")
    assert (bag.letters, bag.known) == (2, 2)


def test_a_vocabulary_of_too_long_pieces_is_none() -> None:
    for pieces in ([], [""], ["x" * (LONGEST + 1)]):
        with pytest.raises(ValueError, match="too long"):
            Vocabulary(pieces)


@pytest.mark.parametrize("text", ["א" + "\u05b0\u05b4" * 500, "\ufdfa" * 500])
def test_marks_and_letters_that_become_many_take_linear_time(text: str) -> None:
    def cut_up(text: str) -> None:
        list(CUTTER.bags(text))

    longer = text[0] + text[1:] * 8
    assert min(spent(cut_up, longer, 1) / spent(cut_up, text) for _ in range(5)) < 20
