"""What is masked before a request is kept, and what stays."""

import json
import time

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.records.masking import BEYOND, SHOWN, beginning, masked, masked_json
from tests.linear import assert_linear
from tests.volume import few_and_many


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("write to ann@example.org, please", "write to [email], please"),
        ("card 4111 1111 1111 1111 and 4111 1111 1111 1112", "card [card] and 4111 1111 1111 1112"),
        ("pay DE89 3704 0044 0532 0130 00, now", "pay [iban], now"),
        ("from 192.168.10.7 to Grüße", "from [ip] to Grüße"),
        ("key AKIAIOSFODNN7EXAMPLE.", "key [secret]."),
        ("two: a@b.io c@d.io", "two: [email] [email]"),
        ("nothing to see", "nothing to see"),
        ("", ""),
    ],
)
def test_findings_are_replaced_by_their_type(text, expected):
    assert masked(text) == expected


def test_too_many_candidates_mask_the_whole_text():
    assert masked("4111111111111112 " * 3000) == "[masked]"


@pytest.mark.parametrize("at", range(SHOWN - 20, SHOWN + 2))
def test_what_begins_in_the_beginning_of_a_text_is_masked_wherever_it_ends(at):
    shown = beginning(f"{'a' * at} 4111 1111 1111 1111 {'a' * 9_000}"[: SHOWN + BEYOND])
    assert "4111" not in shown
    assert shown.startswith("a" * 1_900)
    assert len(shown) < SHOWN + 20


def test_a_beginning_that_masking_makes_shorter_shows_nothing_of_what_was_cut():
    mails = "a-long-name-of-somebody@mail.example.org " * 90
    shown = beginning(f"{mails:x<{SHOWN + BEYOND - 15}} 4111 1111 1111 1111"[: SHOWN + BEYOND])
    assert shown.startswith("[email] [email]")
    assert "4111" not in shown
    assert beginning("short") == "short"
    assert beginning("4111111111111112 " * 3000) == "[masked]"


@given(st.text(max_size=300))
def test_no_text_breaks_it(text):
    assert isinstance(masked(text), str)


FOREVER = float("inf")


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b'{"a":"ann@example.org"}', b'{"a":"[email]"}'),
        (b'{"ann@example.org":1}', b'{"[email]":1}'),
        (b'{"a":4111111111111111,"b":4111111111111112}', b'{"a":"[card]","b":4111111111111112}'),
        (b'{"a":0.4111111111111111,"b":41111111111111.11}', b'{"a":0.4111111111111111,"b":41111111111111.11}'),
        (b'{"a":"ann\\u0040example.org \\"x\\""}', b'{"a":"[email] \\"x\\""}'),
        (b'{"a":"\\\\","b":"ann@example.org"}', b'{"a":"\\\\","b":"[email]"}'),
        (b'{\n\r  "a": "x\\ny"\n}', b'{      "a": "x\\ny" }'.replace(b"{      ", b"{    ")),
        ('{"a":"Grüße an ann@example.org"}'.encode(), '{"a":"Grüße an [email]"}'.encode()),
        (b'{"a":["ann@", "example.org"]}', b'{"a":["ann@", "example.org"]}'),
        (b"{}", b"{}"),
    ],
)
def test_json_is_masked_where_it_stands(body, expected):
    assert masked_json(body, FOREVER) == expected
    json.loads(expected)


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.just(4111111111111111)
    | st.just(-4111111111111111)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=30,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("4111 1111 1111 1111 5500 0000 0000 0004", "[card] [card]"),
        ("DE89 3704 0044 0532 0130 00 and 4111 1111 1111 1111", "[iban] and [card]"),
        ("DE89370400440532013000 DE89370400440532013000", "[iban] [iban]"),
        ("DE89 3704 0044 0532 0130 00 is GB82 WEST 1234 5698 7654 32.", "[iban] is [iban]."),
    ],
)
def test_one_number_right_after_another_is_masked_too(text, expected):
    assert masked(text) == expected


KEY = (
    "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\n\n"
    + "MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQDf\n" * 20
)


@pytest.mark.parametrize("end", ["AbCd==\n-----END RSA PRIVATE KEY-----", "AbCd==", ""])
def test_of_a_private_key_nothing_is_left(end):
    key = f"{KEY}{end}".rstrip()
    assert masked(f"it is\n{key}\nso keep it") == "it is\n[secret]\nso keep it"
    assert masked(f"it is {key} ok".replace("\n", "\\n")) == "it is [secret] ok"
    assert masked("A key begins with -----BEGIN PRIVATE KEY----- and that is all.") == (
        "A key begins with [secret] and that is all."
    )


@pytest.mark.no_cover
@pytest.mark.slow
@few_and_many(30, 200)
def test_json_is_masked_as_its_parsed_values_would_be(examples):
    @settings(max_examples=examples)
    @given(st.dictionaries(st.text(), VALUES), st.booleans())
    def holds(value, pretty):
        body = orjson.dumps(value, option=orjson.OPT_INDENT_2 if pretty else 0)
        assert orjson.loads(masked_json(body, FOREVER)) == _each(value)

    holds()


def _each(value):
    """Masked as the parsed object would be: every string by itself."""
    if isinstance(value, str):
        return masked(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 10**10 and masked(str(value)) != str(value):
        return masked(str(value))
    if isinstance(value, dict):
        return {masked(key): _each(item) for key, item in value.items()}
    return [_each(item) for item in value] if isinstance(value, list) else value


def test_masking_ends_when_its_time_is_over():
    with pytest.raises(TimeoutError):
        masked_json(orjson.dumps({"a": ["some words"] * 100_000}), time.monotonic() + 0.01)


@pytest.mark.volume
@pytest.mark.parametrize(
    "unit",
    ["1234567890123 ", "a", "ann@example.org ", "DE89 3704 0044 0532 0130 01 ", "a:", "\\n", "-", "0", "é", "sk-"],
)
@pytest.mark.parametrize("form", ["one text", "many texts", "deep"])
def test_masking_is_linear_in_the_body(unit, form):
    def body(size):
        if form == "deep":
            return b'{"a":' + b"[" * size + orjson.dumps(unit * 10) + b"]" * size + b"}"
        return orjson.dumps({"a": unit * size if form == "one text" else [unit * 10] * (size // 10)})

    assert_linear(body, lambda data: masked_json(data, FOREVER))
