from __future__ import annotations

import time
from typing import Any

import pytest

from panel.extract import EXTRACTORS, WholeText, boxed, called, field, groups, same
from tests.linear import assert_linear, spent
from upstream.toolcalls import tool_calls


@pytest.mark.parametrize(
    ("how", "text", "answer"),
    [
        ("number", "First 3 + 4 = 7.\n\nAnswer: 7", "7"),
        ("number", "The answer is 1,200.50 dollars", "1200.5"),
        ("number", "Answer: 12\n\nI checked it 3 times.", "12"),
        ("number", "so we get -5.0", "-5"),
        ("number", "1e3", "1000"),
        ("number", "no idea", None),
        ("number", "Answer: -0", "0"),
        ("choice", "A is wrong, so the answer is (C).", "C"),
        ("choice", "It must be B", "B"),
        ("choice", "I don't know", None),
        ("boxed", r"so \boxed{\frac{1}{2}} it is", r"\frac{1}{2}"),
        ("boxed", r"\boxed{1} no, \boxed{ 2.0 }", "2"),
        ("boxed", r"\boxed{never closed", None),
        ("text", "Yes, it is!", "yes it is"),
        ("text", " ... ", None),
        ("auto", r"the answer is 3, I mean \boxed{4}", "4"),
        ("auto", "The answer is D.", "D"),
        ("auto", "Bonjour le monde", "bonjour le monde"),
    ],
)
def test_the_final_answer(how: str, text: str, answer: str | None) -> None:
    assert EXTRACTORS[how](text) == answer


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ('{"total": {"sum": 7.0}}', "7"),
        ('Here:\n```json\n{"total": {"sum": 7}}\n```', "7"),
        ('I say {"total": {"sum": [1, "b"]}} so', '[1,"b"]'),
        ('{"total": 3}', None),
        ("{", None),
    ],
)
def test_a_field_of_json(text: str, answer: str | None) -> None:
    assert field(["total", "sum"])(text) == answer


def test_which_answers_are_one() -> None:
    one = WholeText("the committee met on monday and agreed on the plan")
    assert same(one, WholeText(one.replace("agreed on", "agreed to")))
    assert not same(one, WholeText("nobody knows what the committee did last week at all"))
    assert not same(WholeText("it costs 12 dollars in the shop"), WholeText("it costs 13 dollars in the shop"))
    assert not same("4", "5")
    assert groups(["4", None, "5", "4"]) == [[0, 3], [2]]


def test_hostile_texts_take_no_longer_than_others() -> None:
    """Whatever a member writes is read in the event loop."""
    began = time.process_time()
    for text in (
        "answer" * 200_000,
        "\\boxed{" * 100_000,
        "{" * 600_000,
        "1," * 300_000,
        "answer is " * 100_000,
        "```" * 90_000,
    ):
        for how in EXTRACTORS.values():
            how(text)
        field(["a"])(text)
    assert time.process_time() - began < 30


def test_a_fence_that_is_never_closed_is_read_once() -> None:
    def fenced(lines: int) -> str:
        return "```" + "\n" * lines

    assert spent(field(["a"]), fenced(16_000)) < 40 * max(spent(field(["a"]), fenced(1_000)), 1e-4)


def test_only_whole_texts_say_the_same_when_they_are_alike() -> None:
    one, other = r"\boxed{\frac{x+1}{y+22222222}}", r"\boxed{\frac{x-1}{y+22222222}}"
    assert groups([boxed(one), boxed(other)]) == [[0], [1]]
    read = field(["where"])
    assert groups([read('{"where": "on the northern side"}'), read('{"where": "on the southern side"}')]) == [[0], [1]]


def test_tools_say_the_same_when_they_are_called_with_the_same_arguments() -> None:
    def call(*pieces: str, name: str = "look") -> str | None:
        first, *rest = pieces
        parts = [{"index": 0, "id": "1", "function": {"name": name, "arguments": first}}]
        return called([*parts, *({"index": 0, "function": {"arguments": piece}} for piece in rest)])

    whole = call('{"a": 1, "b": "a long enough text"}')
    assert whole == call('{"b":"a long ', 'enough text", "a":1}')
    assert len(groups([whole, call('{"a": 1, "b": "a long enough text"}'), call("{}"), call("{", name="see")])) == 3
    assert called([]) is None


def test_json_of_more_levels_than_can_be_written_is_taken_as_it_stands() -> None:
    deep = '{"a": ' + "[" * 300 + "]" * 300 + "}"
    assert called([{"index": 0, "function": {"name": "look", "arguments": deep}}]) == f"look {deep}"
    assert field(["a"])(deep) is None


def test_pieces_of_tool_calls_are_put_together_in_linear_time() -> None:
    def pieces(count: int) -> list[dict[str, Any]]:
        return [{"index": 0, "function": {"arguments": "12345678"}}] * count

    assert_linear(pieces, tool_calls)
    assert tool_calls(pieces(3)) == [("", "", "12345678" * 3)]


def test_a_new_id_begins_a_call_where_all_have_one_index() -> None:
    parts = [
        {"id": "a", "function": {"name": "look", "arguments": "{"}},
        {"id": "a", "function": {"arguments": "}"}},
        {"id": "b", "function": {"name": "see", "arguments": "{}"}},
    ]
    assert tool_calls(parts) == [("a", "look", "{}"), ("b", "see", "{}")]
