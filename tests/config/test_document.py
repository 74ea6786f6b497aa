"""YAML with positions: YAML 1.2 scalars, and everything a policy must not use."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.document import MAX_DEPTH, parse


def data(text):
    document = parse(text, "p.yaml")
    assert document.problems == []
    return document.data


@pytest.mark.parametrize(
    ("typed", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("yes", "yes"),
        ("y", "y"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("null", None),
        ("~", None),
        ("", None),
        ("010", 10),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("2026-11-22", "2026-11-22"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("-.inf", float("-inf")),
        ("=", "="),
        ("'true'", "true"),
        ('"010"', "010"),
        ("!!str x", "x"),
    ],
)
def test_scalars_follow_yaml_1_2(typed, value):
    assert data(f"key: {typed}") == {"key": value}


def test_nan_is_a_float():
    assert data("key: .nan")["key"] != data("key: .nan")["key"]


def test_what_was_typed_is_remembered_for_plain_scalars_only():
    document = parse("a: 010\nb: '010'\n", "p.yaml")
    assert document.typed == {("a",): "010"}


def test_positions_of_keys_and_values_count_from_one():
    document = parse("a:\n  - x: 1\n    yy:   two\n", "p.yaml")
    assert document.keys[("a", 0, "yy")] == (3, 5)
    assert document.values[("a", 0, "yy")] == (3, 11)
    assert document.values[("a", 0)] == (2, 5)


@pytest.mark.parametrize(
    ("text", "code", "line", "column"),
    [
        ("a: 1\na: 2\n", "Y002", 2, 1),
        ("a: {b: 1, b: {c: [1]}, d: 2}\n", "Y002", 1, 11),
        ("a: &x 1\nb: *x\n", "Y003", 1, 4),
        ("a: {<<: {b: 1}}\n", "Y003", 1, 5),
        ("a: !!python/object:os.system x\n", "Y003", 1, 4),
        ("a: !secret x\n", "Y003", 1, 4),
        ("? [a, {b: c}]\n: 1\nd: 2\n", "Y003", 1, 3),
        ("? {a: 1}\n: 1\n", "Y003", 1, 3),
        ("a: [1, 2\nb: 3\n", "Y001", 2, 2),
        ("a: 1\n\tb: 2\n", "Y001", 2, 1),
        ("a: 1\nb: \x07\n", "Y001", 2, 4),
        ("a: 1\n---\nb: 2\n", "Y003", 2, 1),
        ("", "P102", 1, 1),
        ("# only a comment\n", "P102", 1, 1),
    ],
)
def test_what_a_policy_must_not_use_is_reported_where_it_stands(text, code, line, column):
    problems = parse(text, "p.yaml").problems
    assert (code, line, column) in [(p.code, p.line, p.column) for p in problems]


def test_a_duplicate_key_keeps_the_first_value_and_its_position():
    document = parse("a: {b: 1}\na: {b: 2, c: 3}\n", "p.yaml")
    assert document.data == {"a": {"b": 1}}
    assert document.values[("a", "b")] == (1, 8)
    assert ("a", "c") not in document.keys


def test_nesting_is_bounded():
    deep = "[" * 500 + "]" * 500
    problems = parse(f"a: {deep}\nb: 1\n", "p.yaml").problems
    assert [p.message for p in problems] == [f"nested deeper than {MAX_DEPTH} levels"]


@pytest.mark.no_cover
@pytest.mark.slow
def test_a_huge_file_is_refused_without_building_it():
    problems = parse("a: [" + "1," * 250_000 + "]", "p.yaml").problems
    assert "too large" in problems[0].message


def test_a_huge_number_stays_text():
    assert data("a: " + "9" * 5000)["a"] == "9" * 5000


@pytest.mark.no_cover
@pytest.mark.slow
@given(st.text(max_size=200))
def test_no_text_makes_the_parser_raise(text):
    document = parse(text, "p.yaml")
    assert all(problem.line >= 1 and problem.column >= 1 for problem in document.problems)
