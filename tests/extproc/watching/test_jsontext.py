"""Arguments of tools are judged as their reader reads them, and stay JSON when they are masked."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.watching.jsontext import Edit, decode
from tests.linear import assert_linear

CARD = "4111 1111 1111 1111"
TEXTS = st.text(st.sampled_from('ab" \\/{}[]:,\n\t\x00é🙂\u2028"1'), max_size=8) | st.sampled_from(
    [CARD, f"my {CARD}!"]
)
VALUES: Any = st.recursive(
    st.none() | st.booleans() | st.integers(-10, 10**18) | st.floats(allow_nan=False, allow_infinity=False) | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=8,
)


def escaped(value: Any, how: int) -> str:
    """JSON text, with more or fewer escapes than it needs."""
    text = json.dumps(value, ensure_ascii=how % 2 == 0)
    if how > 1:  # a digit may be escaped, too
        text = re.sub(r'"(?:[^"\\]|\\.)*"', lambda found: found.group().replace("4111", r"\u0034\u003111"), text)
    return text


def masked(raw: str, edits: list[Edit]) -> str:
    parts, done = [], 0
    for start, end, new in edits:
        assert done <= start <= end <= len(raw)
        parts += [raw[done:start], new]
        done = end
    return "".join((*parts, raw[done:]))


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [one for key, inner in value.items() for one in (key, *strings(inner))]
    if isinstance(value, list):
        return [one for inner in value for one in strings(inner)]
    return [value] if isinstance(value, str) else [json.dumps(value)]


@given(VALUES, st.integers(0, 3))
def test_every_string_is_read_as_it_will_be(value: Any, how: int) -> None:
    text = decode(escaped(value, how)).text
    for one in strings(value):
        assert one in text


@given(VALUES, st.integers(0, 3), st.lists(st.integers(0, 60), max_size=6))
def test_any_span_may_be_masked(value: Any, how: int, borders: list[int]) -> None:
    raw = escaped(value, how)
    read = decode(raw)
    places = sorted({place % (len(read.text) + 1) for place in borders})
    spans = [(start, end, "[x]") for start, end in zip(places[::2], places[1::2], strict=False)]
    got = json.loads(masked(raw, read.edits(spans)))
    if not spans:
        assert got == json.loads(raw)


@given(VALUES, st.integers(0, 3))
def test_a_card_is_gone_and_the_rest_stays(value: Any, how: int) -> None:
    raw = escaped({"before": "x", "it": value, "n": 4111111111111111, "after": [1, "y"]}, how)
    read = decode(raw)
    found = re.finditer(r"4111(?: ?1111){3}", read.text)
    got = json.loads(masked(raw, read.edits([(*one.span(), "[card]") for one in found])))
    assert (got["before"], got["n"], got["after"]) == ("x", "[card]", [1, "y"])
    assert not any(CARD in one for one in strings(got))

    def expected(given: Any) -> Any:
        if isinstance(given, str):
            return given.replace(CARD, "[card]")
        if isinstance(given, dict):
            return {expected(key): expected(inner) for key, inner in given.items()}
        return [expected(inner) for inner in given] if isinstance(given, list) else given

    assert got["it"] == json.loads(json.dumps(expected(value)))


@given(VALUES, st.integers(0, 3), st.integers(0, 200), st.integers(0, 200))
def test_a_text_in_two_pieces_reads_as_one(value: Any, how: int, first: int, second: int) -> None:
    raw = escaped(value, how)
    one, two = sorted((first % (len(raw) + 1), second % (len(raw) + 1)))
    whole = decode(raw)
    lead = whole.lead(one)
    assert len(lead) <= 12
    assert decode(raw[:one]).lead(one) == lead
    begun, rest = decode(raw[:one]), decode(raw[one:], lead)
    assert begun.text + rest.text == whole.text
    assert rest.lead(two - one) == whole.lead(two)
    assert rest.inside(two - one) == whole.inside(two)
    for at in range(len(rest.text)):
        assert rest.raw(at) == max(0, whole.raw(len(begun.text) + at) - one)
    assert rest.raw(len(rest.text)) == len(raw) - one


@given(VALUES, st.integers(0, 3), st.integers(0, 200))
def test_the_rest_of_what_has_gone_out_may_be_masked(value: Any, how: int, place: int) -> None:
    raw = escaped(value, how)
    place %= len(raw) + 1
    rest = decode(raw[place:], decode(raw).lead(place))
    json.loads(raw[:place] + masked(raw[place:], rest.edits([(0, len(rest.text), "[x]")])))


def test_masks() -> None:
    raw = r'{"card": 4111111111111111, "note": "caf\u00e9 4111", "ok": true, "q": "a \"b\""}'
    read = decode(raw)
    assert read.text == '{"card": 4111111111111111, "note": "café 4111", "ok": true, "q": "a "b""}'
    assert masked(raw, read.edits([(0, len(read.text), "[masked]")])) == (
        '{"[masked]": "[masked]", "[masked]": "[masked]", "[masked]": "[masked]", "[masked]": "[masked]"}'
    )
    at = read.text.index("41111")
    assert masked(raw, read.edits([(at + 2, at + 5, '["]')])).startswith(r'{"card": "[\"]", "note"')
    at = read.text.index("é 4")
    assert r'"caf[x]111"' in masked(raw, read.edits([(at, at + 3, "[x]")]))


def test_what_is_no_json_is_masked_too() -> None:
    raw = "{email: a@b.com, 'card': 4111"
    read = decode(raw)
    spans = [(read.text.index(one), read.text.index(one) + len(one), "[x]") for one in ("a@b.com", "4111")]
    assert masked(raw, read.edits(spans)) == """{email: "[x]", 'card': "[x]\""""


def test_an_escape_that_has_not_ended_waits() -> None:
    for end in ("\\", "\\u", "\\u00", "\\u00e", r"\ud83d", r"\ud83d" + "\\", r"\ud83d\ud", r"\ud83d\ude0"):
        read = decode('{"a": "x' + end)
        assert read.text == '{"a": "x'
        assert read.lead(8 + len(end)) == '"' + end
    assert decode(r"\ude00z", '"' + r"\ud83d").text == "😀z"
    assert decode('"' + r"\ud83d!").text == '"\N{REPLACEMENT CHARACTER}!'


@pytest.mark.parametrize(
    ("begun", "raw", "gets"),
    [
        ("[41", "11]", "[41]"),
        ("[1.", "5]", "[1.0]"),
        ("[-", "5]", "[-0]"),
        ("[1e", "5]", "[1e0]"),
        ("[tr", "ue]", "[true]"),
    ],
)
def test_a_number_whose_beginning_is_gone_stays_a_number(begun: str, raw: str, gets: str) -> None:
    read = decode(raw, decode(begun).lead(len(begun)))
    assert begun + masked(raw, read.edits([(0, len(read.text), "[x]")])) == gets


def test_the_work_is_linear() -> None:
    def run(raw: str) -> None:
        read = decode(raw)
        read.edits([(at, at + 1, "[x]") for at in range(0, len(read.text), 2)])
        read.lead(len(raw) // 2)

    assert_linear(lambda size: '{"a": "' + r"\u00e9" * size, run, 1 << 17)
    assert_linear(lambda size: "1" * size, run, 1 << 17)
    assert_linear(lambda size: '"a",' * size, run, 1 << 17)
    assert_linear(lambda size: "1," * size, run, 1 << 17)
