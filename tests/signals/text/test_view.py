"""Disguises come off, ordinary text stays, and every place of the view is known in the text."""

from __future__ import annotations

import re
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signals.text import view as module
from signals.text.view import SLICE, Origin, slices, view
from tests.linear import spent


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("in\u200bjection", "injection"),
        ("in\u00adjection", "injection"),
        ("in\0jec\x1ftion\x7f", "injection"),
        ("in\0jection, fünf", "injection, fünf"),
        ("in\u2060\ufeff\u200d\ufe0f\U000e0101\u034fjection", "injection"),
        ("a\u202eb\u202c\u2066c\u2069", "abc"),
        ("".join(chr(0xE0000 + ord(char)) for char in "Hidden words!") + "\U000e007f", "Hidden words!"),
        ("ign\u043ere", "ignore"),
        ("\u0430dmin p\u0430ssw\u043erd", "admin password"),
        ("the \u0440\u0430\u0455\u0455 is here", "the pass is here"),
        ("αdmin, ρassword", "admin, password"),
        ("pr\u0585mpt", "prompt"),
        ("cлово в cистеме", "слово в системе"),
        ("Привет, это пapoль", "Привет, это пароль"),
        ("κoσμoς", "κοσμος"),
        ("ｉｇｎｏｒｅ　１２３！", "ignore 123!"),
        ("𝐢𝒈𝓃𝖔𝗋𝚎 𝟙𝟚", "ignore 12"),
        ("ⓘⓖⓝ ①② 🅐🅱", "ign 12 AB"),
        ("ɪɢɴᴏʀᴇ ᵃᵇ ₐₑ ﬁﬃ Ⅻ", "ignore ab ae fiffi XII"),
        ("a\xa0b\u2009c\u3000d\u2028e\x85f", "a b c d\ne\nf"),
        ("don’t ‘say’ “it” „so“", 'don\'t \'say\' "it" "so"'),
        ("step‐by‑step‒by–step—by―step−1", "step-by-step-by-step-by-step-1"),
        ("كَلِمَةُ الـــمرور", "كلمة المرور"),
        ("i̶g̶n̷o̸r̵e", "ignore"),
        ("i\u0301g\u0301n\u0301o\u0316\u0301\u0302\u0303\u0304\u0305", "íǵńó\u0316\u0302"),
        ("cafe\u0301 и\u0306 ガ", "café й ガ"),
        ("па\u0301роль", "пароль"),
        ("ｶﾞｷﾞ", "ガギ"),
        ("\u1112\u1161\u11ab", "한"),
        ("love ❤️", "love ❤"),
    ],
)
def test_a_disguise_comes_off(text: str, plain: str) -> None:
    assert view(text) == plain


@pytest.mark.parametrize(
    "text",
    [
        "Plain English, with (punctuation) - and\ttabs\r\nand lines; 100% of it.",
        "Der Vektor x₁ und H₂O, 5 m², Straße, größer als 10 €",
        "L'été, où le cœur naïf «chante»",
        "Привет, как дела? Сегодня мы едем в Москву: USB-порт, Wi-Fi, №5, «да»",
        "Подъезд ещё жёлтый, мой чай",
        "Сорок осетров в реке: рост, сон, нос, хор, тест, ром",
        "Η γρήγορη αλεπού πηδάει, και το νερό τρέχει",
        "今日はいい天気ですね。明日も晴れるでしょう。ガギグゲゴ",
        "你好。世界「很大」",
        "한국어 문장입니다",
        "मेरी हिन्दी अच्छी है",
        "ภาษาไทยไม่มีช่องว่าง ที่นี่",
        "שָׁלוֹם עולם",
        "مرحبا بالعالم، كيف الحال؟",
        "Tiếng Việt có dấu",
        "Մարդ հայերեն",
        "emoji 🙂 and 👍🏽 stay",
        "",
    ],
)
def test_ordinary_text_is_the_same_object(text: str) -> None:
    assert view(text) is text


@pytest.mark.parametrize("size", [10, module._SMALL, module._SMALL + 1, 3 * module.SLICE])
@pytest.mark.parametrize("char", [*map(chr, (*range(9), *range(14, 32))), "\x7f"])
def test_control_characters_go_wherever_they_are(size: int, char: str) -> None:
    text = "a" * (size // 2) + "\t\n\v\f\r" + "b" * (size // 2)
    assert view(text) is text
    for place in (0, size // 2, len(text)):
        assert view(text[:place] + char + text[place:]) == text


def test_every_character_of_the_class_has_a_form() -> None:
    every = "".join(map(chr, range(sys.maxunicode + 1)))
    assert {ord(char) for char in re.findall(module._ONE, every)} == module._FORMS.keys()
    for form in module._FORMS.values():
        assert len(form) <= 5
        assert not any(unicodedata.category(char) in ("Cf", "Cc") and char != "\n" for char in form)


PIECES = (
    *("a", "Z", "é", "e\u0301", "e\u0301\u0302\u0316\u0317\u0318", "\u0301", "\u200b", "\0", "\u00ad", "ﬃ", "㌀", "ﷺ"),
    *("𝐢", "Ａ", "ｶﾞ", "ガ", "漢", "한", "\u1112\u1161\u11ab", "\u1161", "о", "п", "сор", "σ", "ο"),
    *("ö", " ", "\n", "\xa0", "1", "①", ".", "_", "\ud800", "’", "–", "كَ", "\u0653", "ا\u0653", "ـ", "ि"),
    *("हिन्दी", "🙂", "👩\u200d👧", "\U000e0041"),
)
texts = st.lists(st.sampled_from(PIECES), max_size=40).map("".join)


@given(texts)
def test_a_view_is_its_own_view(text: str) -> None:
    plain = view(text)
    assert view(plain) in (plain, view(view(plain)))
    assert "\u200b" not in plain
    assert "\0" not in plain


@given(texts, st.integers(5, 40))
def test_every_place_of_the_view_is_one_of_the_text(text: str, size: int) -> None:
    plain = "".join(map(view, slices(text, size)))
    origin = Origin(text, size)
    before = 0
    for at in range(len(plain)):
        start, end = origin.span(at, at + 1)
        assert before <= start < end <= len(text)
        # A character that stays is where it was.
        if end - start == 1 and ord(plain[at]) not in LOOK_ALIKES:
            assert plain[at] == text[start] or plain[at] in view(text[start])
        before = start
    if plain:
        assert origin.span(0, len(plain)) == (origin.span(0, 1)[0], origin.span(len(plain) - 1, len(plain))[1])


LOOK_ALIKES = {*module._TO_LATIN, *module._TO_CYRILLIC, *module._TO_GREEK}


def test_places_around_what_is_gone() -> None:
    text = "x\u200b se\u00adcret\u2011word ﬃ ｶﾞ y"
    plain = view(text)
    assert plain == "x secret-word ffi ガ y"
    origin = Origin(text)

    def part(words: str) -> str:
        at = plain.index(words)
        start, end = origin.span(at, at + len(words))
        return text[start:end]

    assert part("secret-word") == "se\u00adcret\u2011word"
    assert part("ff") == "ﬃ"
    assert part("ガ") == "ｶﾞ"
    assert part("y") == "y"
    assert part("x ") == "x\u200b "


@given(texts, st.integers(1, 30))
def test_slices_are_the_text(text: str, size: int) -> None:
    parts = list(slices(text, size))
    assert "".join(parts) == text
    assert all(0 < len(part) <= size for part in parts) or not text


def test_a_long_text_is_seen_as_a_short_one_is() -> None:
    piece = "in\u200bjection – „so“ и\u0306 e\u0301 \n"
    assert view(piece * 20_000) == view(piece) * 20_000
    assert view("a\u0301" * 100_000) == "á" * 100_000


@pytest.mark.parametrize("pair", ["\u3099\u0301", "\u0f72\u0316", "\u05b0\u0301", "\u0301\u0316"])
def test_marks_of_two_kinds_in_turn_are_sorted_in_linear_time(pair: str) -> None:
    """Within a slice of the text, since a slice is looked at in one go."""
    few, many = ("x" + pair * count for count in (1000, 8000))
    assert len(many) < SLICE
    assert min(spent(view, many, 1) / spent(view, few) for _ in range(5)) < 20
    assert "\u034f" not in view(many)
