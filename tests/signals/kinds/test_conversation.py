from __future__ import annotations

from typing import Any

import pytest

from signals.request import Message
from tests.signals.help import build, complaint, matched, reading, request

LOOP = request(
    messages=[
        Message("system", "s"),
        Message("user", "u", images=2, audio=1),
        Message("assistant", "", tool_calls=2),
        Message("tool", "r"),
        Message("tool", "r"),
        Message("assistant", "", tool_calls=1),
        Message("tool", "r", files=1),
    ],
    fields={
        "tools": [{}, {}],
        "functions": [{}],
        "stream": True,
        "response_format": {"type": "json_schema", "json_schema": {}},
    },
)
PLAIN = request("hi", fields={"tools": None, "response_format": {"type": "json_object"}})


@pytest.mark.parametrize(
    ("params", "loop", "plain"),
    [
        ({"turns": {"at_least": 1, "at_most": 1}}, True, True),
        ({"turns": {"at_least": 2}}, False, False),
        ({"messages": {"at_least": 7}}, True, False),
        ({"messages": {"role": "tool", "at_least": 3}}, True, False),
        ({"messages": {"role": "system", "at_most": 0}}, False, True),
        ({"messages": {"role": ["assistant", "tool"], "at_least": 5, "at_most": 5}}, True, False),
        ({"tool_calls": {"at_least": 3}}, True, False),
        ({"tools": {"at_least": 3, "at_most": 3}}, True, False),
        ({"tools": True}, True, False),
        ({"tools": False}, False, True),
        ({"tool_loop": True}, True, False),
        ({"tool_loop": {"at_least": 2, "at_most": 2}}, True, False),
        ({"images": {"at_least": 2}}, True, False),
        ({"audio": True}, True, False),
        ({"files": True}, True, False),
        ({"json_schema": True}, True, False),
        ({"stream": True}, True, False),
        ({"stream": False, "json_schema": False}, False, True),
        ({"stream": True, "images": {"at_least": 3}}, False, False),
    ],
)
def test_conversation(params: dict[str, Any], loop: bool, plain: bool) -> None:
    assert matched("conversation", LOOP, **params) is loop
    assert matched("conversation", PLAIN, **params) is plain


CALL, RESULT, ASKED = Message("assistant", "", tool_calls=1), Message("tool", "r"), Message("user", "u")


@pytest.mark.parametrize(
    ("messages", "loop", "turn"),
    [
        ([ASKED, CALL, RESULT], 1, 1),
        ([ASKED, CALL, RESULT, CALL, RESULT], 2, 2),
        ([ASKED, CALL, RESULT, ASKED], 0, 1),
        ([ASKED, CALL, RESULT, CALL, RESULT, ASKED, ASKED], 0, 2),
        ([ASKED, CALL, RESULT, Message("assistant", "done"), ASKED], 0, 0),
        ([ASKED, CALL, ASKED], 0, 1),
        ([ASKED, Message("assistant", "", tool_calls=2), RESULT, Message("assistant", "so"), ASKED], 0, 1),
        ([RESULT, ASKED], 0, 1),
        ([ASKED], 0, 0),
        ([], 0, 0),
    ],
)
def test_a_turn_of_the_user_after_tool_results_belongs_to_the_loop(
    messages: list[Message], loop: int, turn: int
) -> None:
    given = request(messages=messages)
    for name, count in (("tool_loop", loop), ("tool_turn", turn)):
        assert matched("conversation", given, **{name: {"at_least": count, "at_most": count}})
        assert matched("conversation", given, **{name: True}) is (count > 0)


def test_evidence_gives_the_counts() -> None:
    assert reading(build("conversation", turns=True, images=True), LOOP).evidence == ("turns=1", "images=2")


def test_a_loop_begins_with_a_result_and_ends_with_the_user() -> None:
    done = request(messages=[*LOOP.messages, Message("user", "thanks")])
    assert matched("conversation", done, tool_loop=True) is False
    alone = request(messages=[Message("tool", "result")])
    assert matched("conversation", alone, tool_loop=True) is True
    assert matched("conversation", request(), tool_loop=True) is False


def test_json_schema_of_the_other_apis() -> None:
    wanted = {"type": "json_schema", "schema": {}}
    assert matched("conversation", request("", fields={"text": {"format": wanted}}), json_schema=True) is True
    assert matched("conversation", request("", fields={"output_format": wanted}), json_schema=True) is True
    assert matched("conversation", request("", fields={"text": {"format": "odd"}}), json_schema=True) is False


def test_wrong_parameters_are_explained() -> None:
    assert "is needed" in complaint("conversation")
    assert "one of at_least, at_most" in complaint("conversation", turns={})
    assert "greater than" in complaint("conversation", turns={"at_least": 2, "at_most": 1})
    assert "Input should be" in complaint("conversation", messages={"role": "robot", "at_least": 1})
    assert "at least 1 item" in complaint("conversation", messages={"role": [], "at_least": 1})
