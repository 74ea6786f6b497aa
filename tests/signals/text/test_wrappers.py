"""What agents put beside the user's words is no question of the user's."""

from __future__ import annotations

from typing import Any

import pytest

from signals.request import Message, Request
from signals.state.session import session_key
from signals.text.wrappers import TAGS, apart, said
from tests.extproc.requests.test_rewriting import parse
from tests.linear import assert_linear
from tests.signals.help import matched

REMINDER = "<system-reminder>\nThe list of to-dos is empty. Refactor nothing.\n</system-reminder>"
PLACE = "<environment_context>\n  <cwd>/repo</cwd>\n</environment_context>"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("hello", "hello"),
        (" hello </p>\n", " hello </p>\n"),
        (REMINDER, ""),
        (f"{REMINDER}\n{REMINDER}\nplease refactor", "please refactor"),
        (f"please refactor\n{REMINDER}", "please refactor"),
        (f"  {PLACE}\n\nfix it \n\n{REMINDER}\n<environment_details>\n# Tabs\n</environment_details> ", "fix it"),
        (f"what does {REMINDER} mean?", f"what does {REMINDER} mean?"),
        ("<system-reminder>never closed, and a </b>", "<system-reminder>never closed, and a </b>"),
        ("never opened</system-reminder>", "never opened</system-reminder>"),
        ("<system-reminder>a</system-reminder>b</system-reminder>", "b</system-reminder>"),
        ("<user_instructions>be brief</user_instructions>", ""),
        ("<permissions instructions>none</permissions instructions>hi", "hi"),
        ("# AGENTS.md instructions for /repo\n\n<INSTRUCTIONS>\nbe brief\n</INSTRUCTIONS>", ""),
        ("# AGENTS.md instructions are where?", "# AGENTS.md instructions are where?"),
        ("# A title\n<INSTRUCTIONS>\nbe brief\n</INSTRUCTIONS>", "# A title"),
        ("<ide_opened_file>The user opened a.py.</ide_opened_file>\nfix it", "fix it"),
        ("<local-command-caveat>Not to be answered.</local-command-caveat>", ""),
        ("<skills_instructions>\n- pdf\n</skills_instructions>\n<collaboration_mode>x</collaboration_mode>", ""),
        ("<task>do it</task>", "<task>do it</task>"),
        ("<SYSTEM-REMINDER>x</SYSTEM-REMINDER>", "<SYSTEM-REMINDER>x</SYSTEM-REMINDER>"),
    ],
)
def test_the_user_s_own_words(text: str, wanted: str) -> None:
    assert said(text) == wanted


@pytest.mark.parametrize("tag", TAGS)
def test_a_tag_is_known_to_scopes_and_to_sessions(tag: str) -> None:
    def request(now: str) -> Request:
        return parse("chat", {"messages": [{"role": "user", "content": f"<{tag}>\n{now}\n</{tag}>\n\nfix it"}]})

    assert request("Monday").text("user") == "fix it"
    assert session_key(request("Monday")) == session_key(request("Tuesday"))


@pytest.mark.parametrize(
    "unit",
    [
        "<system-reminder></system-reminder>",
        "<system-reminder>",
        "</system-reminder>",
        " </",
        "<environment_context></system-reminder>",
    ],
)
def test_finding_them_takes_linear_time(unit: str) -> None:
    assert_linear(lambda size: unit * (size // len(unit)), said)
    assert_linear(lambda size: "x" + unit * (size // len(unit)), said)


def loop(*parts: dict[str, Any], question: Any = "please refactor the parser") -> Request:
    """A call of /v1/messages that goes on after a tool's result, beside which stand `parts`."""
    result = {"type": "tool_result", "tool_use_id": "t", "content": "two files"}
    return parse(
        "messages",
        {
            "max_tokens": 9,
            "messages": [
                {"role": "user", "content": question},
                {"role": "assistant", "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {}}]},
                {"role": "user", "content": [result, *parts]},
            ],
        },
    )


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def test_a_reminder_beside_a_result_is_no_new_question() -> None:
    request = loop(text(REMINDER))
    assert request.text("user") == "please refactor the parser"
    assert request.text("latest") == f"two files\nt\n{REMINDER}"  # the id of the call, too
    assert REMINDER in request.text("all")
    assert request.text("tools") == "two files\nt"
    assert request.text("conversation").count(REMINDER) == 1


def test_words_beside_a_result_are_a_new_question() -> None:
    assert loop(text("stop, do this instead"), text(REMINDER)).text("user") == "stop, do this instead"
    assert loop({"type": "image", "source": {"type": "base64", "data": "AA=="}}, text(REMINDER)).text() == REMINDER


def test_blocks_around_a_question_are_no_part_of_it() -> None:
    request = loop(question=[text(REMINDER), text("fix "), text("it"), text(PLACE)])
    assert request.text("user") == "fix \nit"
    assert request.glued("user") == "fix it"
    assert [spelling for spelling, _ in request.spellings("user")] == ["fix \nit", "fix it"]


def test_blocks_in_a_call_of_their_own_are_all_there_is_to_read() -> None:
    request = Request("chat", b"{}", {}, None, (Message("user", PLACE), Message("user", REMINDER)))
    assert request.text("user") == REMINDER
    first = Request("chat", b"{}", {}, None, (Message("user", "fix it"), Message("user", REMINDER)))
    assert first.text("user") == "fix it"


def test_a_loop_of_tools_goes_on_beside_a_reminder() -> None:
    request = loop(text(REMINDER))
    assert matched("conversation", request, tool_loop=True, turns={"at_most": 1})
    assert not matched("conversation", loop(text("stop")), tool_loop=True)
    assert matched("conversation", loop(text("stop")), turns={"at_least": 2})


@pytest.mark.parametrize(
    ("text", "words", "blocks"),
    [
        ("hello", "hello", ""),
        (f"{REMINDER}\nfix it\n{PLACE}", "fix it", "The list of to-dos is empty. Refactor nothing.|<cwd>/repo</cwd>"),
        (REMINDER, "", "The list of to-dos is empty. Refactor nothing."),
        ("# AGENTS.md instructions: obey me\n<INSTRUCTIONS>\nbe brief\n</INSTRUCTIONS>", "",
         "# AGENTS.md instructions: obey me|be brief"),
        ("<env><system-reminder>a</system-reminder>b</env>c", "c", "a|b"),
        (f"what does {REMINDER} mean?", f"what does {REMINDER} mean?", ""),
    ],
)  # fmt: skip
def test_nothing_is_lost_between_what_is_said_and_the_blocks(text: str, words: str, blocks: str) -> None:
    found, rest = apart(text)
    assert found == words
    assert [line.strip() for line in rest.split("\n") if line.strip()] == ([] if not blocks else blocks.split("|"))
