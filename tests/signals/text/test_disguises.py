"""What keyword, regex, pii and structure find in disguised text, what `exact` leaves out, and what is masked."""

from __future__ import annotations

from typing import Any

import pytest

from extproc.records.masking import masked
from signals.request import Extra, Message
from tests.signals.help import build, matched, reading, request

DISGUISED = [
    ("don't answer", "please don’t answer"),
    ("don’t answer", "please don't answer"),
    ("step-by-step", "explain step‑by‑step"),
    ("step–by–step", "explain step-by-step"),
    ("❤️", "love ❤ plain"),
    ("injection", "prompt in\u200bjection"),
    ("injection", "prompt in\u00adjection"),
    ("injection", "prompt in\0jection"),
    ("injection", "prompt inj\u0435ction"),
    ("injection", "prompt ｉｎｊｅｃｔｉｏｎ"),
    ("injection", "prompt 𝐢𝐧𝐣𝐞𝐜𝐭𝐢𝐨𝐧"),
    ("injection", "".join(chr(0xE0000 + ord(char)) for char in "prompt injection")),
    ("injection", "prompt i\ufe0fnj\ufe0fection"),
    ("prompt injection", "prompt\xa0injection"),
    ("пароль", "мой пapoль"),
    ("كلمة المرور", "أدخل كَلِمة المرور"),
    ("كَلِمة", "أدخل كلمة"),
]


@pytest.mark.parametrize(("wanted", "text"), DISGUISED)
def test_words_are_found_in_disguise(wanted: str, text: str) -> None:
    for case in (False, True):
        assert matched("keyword", text, any=[wanted], case_sensitive=case)
    assert matched("keyword", text, any=[wanted, "x"], bm25={"at_least": 0.5})
    assert matched("keyword", text, any=[wanted], fuzzy={})
    assert matched("regex", text, any=[wanted])
    assert matched("structure", text, exists={"keywords": [wanted]})
    assert matched("structure", text, count={"regex": wanted}, at_least=1, at_most=1)


@pytest.mark.parametrize(("wanted", "text"), DISGUISED)
def test_exact_searches_the_text_as_it_was_written(wanted: str, text: str) -> None:
    assert not matched("regex", text, any=[wanted], exact=True)
    assert not matched("structure", text, exists={"regex": wanted}, exact=True)
    assert matched("regex", text, any=[text], exact=True) or "\\" in text
    assert matched("keyword", wanted, any=[wanted], exact=True)
    # Folding alone makes white space and full-width letters plain, as it always did.
    folded = wanted in ("prompt injection",) or "ｉ" in text or "𝐢" in text
    assert matched("keyword", text, any=[wanted], exact=True) is folded
    assert matched("structure", text, exists={"keywords": [wanted]}, exact=True) is False


def test_what_was_written_is_searched_too() -> None:
    assert matched("regex", "a\u200bb", any=["\u200b"])
    assert matched("regex", "“quoted”", any=["[\u201c\u201d]"])
    assert matched("regex", "naïve – yes", any=[r"[^\x00-\x7f] yes"])
    assert matched("keyword", "foo\u200bbar", any=["foo"])
    assert matched("keyword", "foo\0bar", any=["bar"])
    assert matched("keyword", "\u202e", any=["\u202e"])
    assert matched("pii", "x\u200b4111 1111 1111 1111", types=["card"])


def test_a_pattern_with_a_class_is_left_as_it_is() -> None:
    assert not matched("regex", "abc", any=["[a\u2013c]{3}"])
    assert matched("regex", "(why)", any=["（why）"])
    assert not matched("regex", "why", any=["（why）"])


def test_a_word_split_over_two_parts_is_whole_where_templates_join_them() -> None:
    given = request(
        messages=[Message("user", "my in\njection 4111 1111\n1111 1111 x")],
        extras=(Extra(0, "user", glued="my injection 4111 11111111 1111 x"),),
    )
    assert matched("keyword", given, any=["injection"])
    assert matched("keyword", given, any=["injektion"], fuzzy={})
    assert matched("regex", given, any=["my injection"])
    assert matched("pii", given, types=["card"])
    assert not matched("keyword", given, any=["injection"], exact=True)
    assert not matched("regex", given, any=["injection"], exact=True)


def test_one_signal_may_be_exact_and_another_not() -> None:
    from signals.facts import Facts
    from signals.gather import read
    from signals.signal import Shared

    shared = Shared()
    signals = [
        build(kind, shared, f"{kind} {exact}", any=["injection"], exact=exact)
        for kind in ("keyword", "regex")
        for exact in (False, True)
    ]
    shared.freeze()
    facts = Facts(request("in\u200bjection"))
    assert [read(signal, facts).matched for signal in signals] == [True, False, True, False]
    facts = Facts(request("nothing"))
    assert [read(signal, facts).matched for signal in signals] == [False] * 4


CARDS = [
    "4111\xa01111\xa01111\xa01111",
    "4111\u20091111\u20091111\u20091111",
    "4111–1111–1111–1111",
    "4111‑1111‑1111‑1111",
    "4111.1111.1111.1111",
    "4111_1111_1111_1111",
    "id_4111111111111111_x",
    "4111\n1111\n1111\n1111",
    "4111 1111\n1111 1111",
    "4111 1111\r\n1111 1111",
    "41111111\n11111111",
    "4111\u200b1111\u200b1111\u200b1111",
    "4\u00ad111111111111111",
    "４１１１１１１１１１１１１１１１",
    "𝟒𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏 𝟏𝟏𝟏𝟏",
    "4111\x00111111111111",
    "4111\t1111\t1111\t1111",
    "3782.822463.10005",
    "4111 1111 1111 1111.",
    "4111 1111 1111 1111.50",
    "1.4111111111111111",
]


@pytest.mark.parametrize("card", CARDS)
def test_cards_are_found_in_disguise(card: str) -> None:
    for text in (card, f"pay with {card}, please", f"«{card}»"):
        found = reading(build("pii", types=["card"]), text)
        assert (found.matched, found.label, found.evidence) == (True, "card", ("card=1",))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("iban", "DE89\xa03704\xa00044\xa00532\xa00130\xa000"),
        ("iban", "DE89.3704.0044.0532.0130.00"),
        ("iban", "DE89\n3704\n0044\n0532\n0130\n00"),
        ("iban", "DE89–3704–0044–0532–0130–00"),
        ("iban", "DE89_3704_0044_0532_0130_00"),
        ("iban", "D\u200bE89370400440532013000"),
        ("nin", "943\xa0476\xa05919"),
        ("nin", "943.476.5919"),
        ("nin", "943_476_5919"),
        ("phone", "+1\xa0415\xa0555\xa02671"),
        ("phone", "+1–415–555–2671"),
        ("phone", "+1.415.555.2671"),
        ("phone", "+1_415_555_2671"),
        ("ssn", "123‑45‑6789"),
        ("email", "ann＠example．org"),
        ("email", "an\u200bn@exam\u00adple.org"),
        ("ip", "192․168․10․7"),
        ("secret", "AKIA\u200bQ7J4M2XW5RT3HPLK"),
    ],
)
def test_other_data_is_found_in_disguise(kind: str, text: str) -> None:
    found = reading(build("pii", types=[kind]), f"it is {text} now")
    assert (found.matched, found.evidence) == (True, (f"{kind}=1",))


@pytest.mark.parametrize(
    "text",
    [
        "4111\n1111\n1111\n1111\n2222\n3333",  # a column of figures
        "1000\n4111\n1111\n1111\n1111",
        "4111 1111\n1111 1111\n2222 3333",
        "4.111.111.111.111.111",  # not a card's groups
        "4111.1111 1111_1111",
        "0.4111 0.1111 0.1111 0.1111",
    ],
)
def test_figures_in_columns_are_no_cards(text: str) -> None:
    assert matched("pii", text, types=["card"]) is False


def test_one_value_counts_once_however_it_is_found() -> None:
    text = "foo\u00adbar@example.com and – 4111 1111 1111 1111"
    assert reading(build("pii"), text).evidence == ("email=1", "card=1")
    assert reading(build("pii", at_least=3), text).matched is False


def test_the_label_is_what_comes_first() -> None:
    assert reading(build("pii"), "– ann@example.org, 4111 1111 1111 1111").label == "email"
    assert reading(build("pii"), "–漢 4111\xa01111 1111 1111, ann@example.org").label == "card"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("an\u200bn@example.org – yes", "[email] – yes"),
        ("“漢” 4111\xa01111\xa01111\xa01111!", "“漢” [card]!"),
        ("é ４１１１１１１１１１１１１１１１ é", "é [card] é"),
        ("a\0b AKIA\0IOSFODNN7EXAMPLE.", "a\0b [secret]."),
    ],
)
def test_disguised_data_is_masked_where_it_stands(text: str, expected: str) -> None:
    assert masked(text) == expected


def test_a_styled_text_is_judged_in_its_language() -> None:
    styled = "".join(chr(0x1D5EE + ord(c) - 97) if c.islower() else c for c in "wo ist denn hier der bahnhof bitte")
    assert reading(build("language", **{"is": ["de"]}), styled).label == "de"


NUMBERS = " ".join(f"{number:06x}" for number in range(37_000))


@pytest.mark.parametrize(
    ("kind", "params", "text", "error"),
    [
        ("keyword", {"any": ["x"]}, "\ufdfa" * 50_000, "too_long"),
        ("keyword", {"any": ["urgent"] * 9 + ["entire"] * 9, "fuzzy": {}}, NUMBERS, None),
        ("keyword", {"any": [f"{n:06}" for n in range(9)], "fuzzy": {}}, NUMBERS, "too_long"),
        ("keyword", {"any": ["a " * 60], "bm25": {"at_least": 1}}, "b " * 100_000, "too_long"),
        ("structure", {"count": {"keywords": ["é"]}, "at_least": 1}, "été " * 6_000, "too_long"),
        ("structure", {"count": {"keywords": ["he"]}, "at_least": 1}, "she" * 100_000, None),
        ("pii", {"types": ["phone"]}, "(0123) 45678901, " * 600, "too_many"),
    ],
)  # fmt: skip
def test_what_is_beyond_a_bound_is_unknown(kind: str, params: dict[str, Any], text: str, error: str | None) -> None:
    found = reading(build(kind, **params), text)
    assert (found.error, found.matched is None) == (error, error is not None)


def test_what_grows_is_found_within_reason() -> None:
    assert matched("keyword", "صلى \ufdfa " * 100, any=["صلى الله عليه وسلم"])
    assert matched("keyword", "é " * 50_000 + "needle", any=["needle"])
    assert matched("keyword", "㌀" * 50_000, any=["x"]) is None
