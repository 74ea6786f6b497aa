"""Models are asked to think as their API allows it, and see no thoughts of other models."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.chat import CHAT
from extproc.apis.messages import MESSAGES
from extproc.apis.responses import RESPONSES
from extproc.makers import MOST, Makers
from extproc.requests import rewriting
from signals.request import Message, Request
from signals.state.session import Sessions
from tests.extproc.requests.test_rewriting import parse

CLAUDE = Model("claude", "served", thinking="anthropic")
ADAPTIVE = Model("claude", "served", thinking="adaptive")
QUESTION = {"role": "user", "content": "prove it"}
THOUGHT = {"type": "thinking", "thinking": "hm", "signature": "c2ln"}
HIDDEN = {"type": "redacted_thinking", "data": "ZGF0YQ=="}
USE = {"type": "tool_use", "id": "t", "name": "f", "input": {"n": 1.0}}
RESULT = {"type": "tool_result", "tool_use_id": "t", "content": "ok"}


def turns(*contents: Any) -> list[dict[str, Any]]:
    """Messages of the user and the assistant by turns."""
    return [{"role": ("user", "assistant")[at % 2], "content": content} for at, content in enumerate(contents)]


def sent(
    fields: dict[str, Any], model: Model = CLAUDE, api: Any = "messages", foreign: int = 0, **changes: Any
) -> dict[str, Any]:
    request = parse(api, {"max_tokens": 32_000, "messages": [QUESTION]} | fields)
    result: dict[str, Any] = orjson.loads(rewriting.changed(request, model, Changes(**changes), foreign))
    return result


LOOP = turns("prove it", [USE], [RESULT])
THOUGHTFUL = turns("prove it", [THOUGHT, USE], [RESULT])
FORBIDDEN = [
    {"tool_choice": {"type": "tool", "name": "f"}},
    {"tool_choice": {"type": "any"}},
    {"top_p": 0.5},
    {"top_p": 0},
    {"messages": turns("prove it", "{")},
    {"messages": turns("prove it", [{"type": "text", "text": "{"}])},
    {"messages": LOOP},
    {"messages": turns("a", "b", "prove it", [USE], [RESULT, {"type": "text", "text": "Go on."}])},
    {"messages": turns("prove it", [{"type": "text", "text": "First"}, THOUGHT, USE], [RESULT])},
    {"messages": turns("prove it", [THOUGHT, USE], [RESULT], [USE], [RESULT])},
]


@pytest.mark.parametrize("fields", FORBIDDEN)
@pytest.mark.parametrize("changes", [{"reasoning_effort": "high"}, {"thinking": True}, {"thinking_budget": 2000}])
def test_thinking_is_not_begun_where_the_api_forbids_it(fields: dict[str, Any], changes: dict[str, Any]) -> None:
    given = {"max_tokens": 32_000, "messages": [QUESTION], "temperature": 0.3} | fields
    assert sent(given, **changes) == given | {"model": "served"}
    off = given | {"thinking": {"type": "disabled"}}
    assert sent(off, **changes) == off | {"model": "served"}
    assert sent(given, Model("m", "served"), **changes) == given | {"model": "served"}


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"tool_choice": {"type": "auto"}},
        {"tool_choice": {"type": "none"}},
        {"top_p": 0.95},
        {"top_p": 1},
        {"messages": THOUGHTFUL},
        {"messages": turns("prove it", [HIDDEN, USE], [RESULT])},
        {"messages": turns("a", [USE], [RESULT], "done", "prove it")},
        {"thinking": {"type": "disabled"}},
    ],
)
def test_thinking_is_begun_where_the_api_allows_it(fields: dict[str, Any]) -> None:
    result = sent(fields | {"temperature": 0.3, "top_k": 5}, reasoning_effort="low")
    assert result["thinking"] == {"type": "enabled", "budget_tokens": 2048}
    assert "temperature" not in result
    assert "top_k" not in result


@pytest.mark.parametrize("fields", FORBIDDEN[:5])
def test_adaptive_thinking_is_not_begun_there_either(fields: dict[str, Any]) -> None:
    given = {"max_tokens": 32_000, "messages": [QUESTION]} | fields
    wanted = {"model": "served", "output_config": {"effort": "high"}}
    assert sent(given, ADAPTIVE, reasoning_effort="high") == given | wanted


@pytest.mark.parametrize(
    ("name", "budget"),
    [
        ("claude-3-7-sonnet-20250219", True),
        ("claude-opus-4-20250514", True),
        ("claude-opus-4-1", True),
        ("claude-haiku-4-5-20251001", True),
        ("anthropic.claude-sonnet-4-6", True),
        ("claude-opus-4-7", False),
        ("anthropic/claude-opus-4.8", False),
        ("us.anthropic.claude-sonnet-5", False),
        ("claude-haiku-5-5", False),
        ("claude-mythos-preview", False),
        ("claude-fable-5-1", False),
        ("claude-opus-10", False),
    ],
)
@pytest.mark.parametrize("family", ["anthropic", "reasoning_effort"])
def test_a_model_that_takes_no_budget_is_told_an_effort(name: str, budget: bool, family: Any) -> None:
    model = Model("m", name, thinking=family)
    result = sent({}, model, reasoning_effort="high")
    if budget:
        assert result["thinking"] == {"type": "enabled", "budget_tokens": 24_576}
        assert "output_config" not in result
    else:
        assert (result["thinking"], result["output_config"]) == ({"type": "adaptive"}, {"effort": "high"})
        assert "thinking" not in sent({"tool_choice": {"type": "any"}}, model, reasoning_effort="high")


def test_thinking_that_cannot_be_switched_off_is_made_small() -> None:
    for name in ("claude-fable-5", "anthropic.claude-mythos-5-1", "claude-mythos-preview"):
        model = Model("m", name, thinking="adaptive")
        given = {"messages": THOUGHTFUL}
        assert sent(given, model, reasoning_effort="none") == sent(given, model) | {"output_config": {"effort": "low"}}
        own = given | {"thinking": {"type": "adaptive"}}
        assert sent(own, model, thinking=False)["thinking"] == {"type": "adaptive"}
    assert sent({}, Model("m", "claude-opus-5"), reasoning_effort="none")["thinking"] == {"type": "disabled"}


CLEARING = {"type": "clear_thinking_20251015", "keep": "all"}
USES = {"type": "clear_tool_uses_20250919"}


@pytest.mark.parametrize(("edits", "left"), [([CLEARING, USES], [USES]), ([CLEARING], []), ([USES], [USES])])
def test_thoughts_are_not_cleared_where_there_are_none(edits: list[Any], left: list[Any]) -> None:
    clearing = {"context_management": {"edits": edits, "n": 1}}
    own = clearing | {"thinking": {"type": "enabled", "budget_tokens": 2000}}
    adaptive = clearing | {"thinking": {"type": "adaptive"}}
    for result in (
        sent(own, reasoning_effort="none"),
        sent(adaptive, ADAPTIVE, reasoning_effort="none"),
        sent(own, max_tokens=900),
        sent(own | {"messages": THOUGHTFUL}, foreign=3),
    ):
        assert result["thinking"] == {"type": "disabled"}
        assert result["context_management"] == {"edits": left, "n": 1}
    assert sent(own, reasoning_effort="high")["context_management"]["edits"] == edits
    assert sent(adaptive, foreign=3)["context_management"]["edits"] == edits


def test_a_turn_that_began_in_what_the_upstream_keeps_is_not_known() -> None:
    thread = {"thread": {"type": "continue", "previous_message_id": "msg_1"}}
    result = {"role": "user", "content": [RESULT]}
    assert "thinking" not in sent(thread | {"messages": [result]}, reasoning_effort="high")
    assert sent(thread, reasoning_effort="high")["thinking"]["type"] == "enabled"
    assert sent({"thread": {"type": "create"}, "messages": [result]}, reasoning_effort="high")["thinking"]


def test_a_budget_is_below_the_limit_of_a_chat_completion() -> None:
    given = {"max_tokens": None, "max_completion_tokens": 3000}
    assert sent(given, api="chat", reasoning_effort="high")["thinking"]["budget_tokens"] == 2999
    assert sent(given | {"max_tokens": 2000}, api="chat", reasoning_effort="high")["thinking"]["budget_tokens"] == 1999


@pytest.mark.parametrize("family", ["enable_thinking", "thinking", "anthropic", "adaptive", "reasoning_effort"])
def test_a_family_s_field_stands_only_where_the_api_has_a_place_for_it(family: Any) -> None:
    model = Model("m", "served", thinking=family)
    gemini: Any = {"max_tokens": None, "messages": None, "contents": [{"parts": [{"text": "x"}]}]}
    config = sent(gemini, model, "gemini", reasoning_effort="low")
    assert config == gemini | {"generationConfig": {"thinkingConfig": {"thinkingBudget": 2048}}}
    prompt: Any = {"messages": None, "prompt": "x"}
    assert sent(prompt, model, "completions", reasoning_effort="low") == sent(prompt, model, "completions")
    response = sent({"messages": None, "input": "x"}, model, "responses", reasoning_effort="low")
    if family in ("enable_thinking", "thinking"):
        assert response["chat_template_kwargs"] == {family: True}
    else:
        assert response["reasoning"] == {"effort": "low"}
        assert "thinking" not in response


def test_a_client_s_own_budget_is_changed_in_place() -> None:
    own = {"type": "enabled", "budget_tokens": 20_000, "display": "omitted"}
    result = sent({"messages": LOOP, "thinking": own}, reasoning_effort="minimal")
    assert result["thinking"] == own | {"budget_tokens": 1024}


@pytest.mark.parametrize("kind", ["adaptive", "between_tools"])
@pytest.mark.parametrize("model", [CLAUDE, ADAPTIVE, Model("m", "served")])
def test_a_client_s_adaptive_thinking_stays(kind: str, model: Model) -> None:
    given = {"max_tokens": 9000, "thinking": {"type": kind}, "output_config": {"effort": "low", "format": {"n": 1}}}
    result = sent(given, model, reasoning_effort="xhigh")
    assert result["thinking"] == {"type": kind}
    assert result["output_config"] == {"effort": "xhigh", "format": {"n": 1}}
    assert sent(given, model, thinking=True)["output_config"] == given["output_config"]
    assert sent(given, model, reasoning_effort="none")["thinking"] == {"type": "disabled"}


def test_no_message_asks_for_another_effort_than_the_policy_s() -> None:
    asks: dict[str, Any] = {"role": "system", "output_config": {"effort": "max"}}
    nothing = {"role": "system", "content": "x", "output_config": {}}
    said = {"role": "assistant", "content": "42"}
    own: list[dict[str, Any]] = [QUESTION, asks, said, QUESTION, {**asks, "content": "Be brief."}, nothing]
    result = sent({"messages": own}, ADAPTIVE, reasoning_effort="low")
    assert result["output_config"] == {"effort": "low"}
    low = {"output_config": {"effort": "low"}}
    assert result["messages"] == [own[0], own[1] | low, *own[2:4], own[4] | low, own[5]]
    assert sent({"messages": own}, ADAPTIVE, thinking=True)["messages"] == own, "the policy asks for none"


@pytest.mark.parametrize(
    ("effort", "told"),
    [("minimal", "low"), ("low", "low"), ("medium", "medium"), ("high", "high"), ("xhigh", "xhigh"), ("max", "max")],
)
def test_a_family_that_finds_its_budget_itself_is_told_an_effort(effort: str, told: str) -> None:
    result = sent({"temperature": 1}, ADAPTIVE, reasoning_effort=effort)
    assert (result["thinking"], result["output_config"]) == ({"type": "adaptive"}, {"effort": told})
    assert "temperature" not in result
    assert sent({"messages": LOOP}, ADAPTIVE, reasoning_effort=effort)["thinking"] == {"type": "adaptive"}


@pytest.mark.parametrize("effort", ["xhigh", "max"])
def test_the_highest_efforts(effort: str) -> None:
    gpt = Model("gpt", "served")
    assert sent({}, gpt, "chat", reasoning_effort=effort)["reasoning_effort"] == effort
    assert sent({"input": "x", "messages": None}, gpt, "responses", reasoning_effort=effort)["reasoning"] == {
        "effort": effort
    }
    budget = {"xhigh": 32_768, "max": 65_536}[effort]
    assert sent({"max_tokens": 100_000}, reasoning_effort=effort)["thinking"]["budget_tokens"] == budget
    assert sent({"max_tokens": 30_000}, reasoning_effort=effort)["thinking"]["budget_tokens"] == 29_999


def test_thinking_that_ends_within_a_turn_takes_its_thoughts_along() -> None:
    given = {"messages": THOUGHTFUL, "thinking": {"type": "enabled", "budget_tokens": 2000}}
    result = sent(given, thinking=False)
    assert result["thinking"] == {"type": "disabled"}
    assert result["messages"] == LOOP
    over = turns("a", [THOUGHT, {"type": "text", "text": "b"}], "prove it")
    assert sent({"messages": over}, thinking=False)["messages"] == over


def test_a_cap_leaves_room_for_the_client_s_own_budget() -> None:
    own = {"type": "enabled", "budget_tokens": 20_000}
    assert sent({"thinking": own}, max_tokens=5000)["thinking"] == own | {"budget_tokens": 4999}
    assert sent({"thinking": own}, max_tokens=20_001)["thinking"] == own
    assert sent({"thinking": own}, max_tokens=1000)["thinking"] == {"type": "disabled"}
    interleaved = {"max_tokens": 8000, "thinking": own}
    assert sent(interleaved, max_tokens=5000)["thinking"] == own
    adaptive = {"thinking": {"type": "adaptive"}}
    assert sent(adaptive, max_tokens=1000)["thinking"] == {"type": "adaptive"}


# The limit of reasoning models


@pytest.mark.parametrize(
    ("name", "family", "completion"),
    [
        ("gpt-5", None, True),
        ("gpt-5-mini-2025-08-07", None, True),
        ("gpt-5.2", None, True),
        ("gpt-6-sol", None, True),
        ("openai/gpt-6.2-astra", None, True),
        ("openai/o3-mini", None, True),
        ("o1", None, True),
        ("gpt-4o", None, False),
        ("gpt-50", None, False),
        ("gpt-oss-120b", None, False),
        ("o10x", None, False),
        ("solo1", None, False),
        ("mine", "max_completion_tokens", True),
        ("gpt-5", "max_tokens", False),
    ],
)
def test_the_limit_has_the_field_of_its_family(name: str, family: Any, completion: bool) -> None:
    model = Model("m", name, family=family)
    field = "max_completion_tokens" if completion else "max_tokens"
    assert limits(sent({"max_tokens": None}, model, "chat", max_tokens=100)) == {field: 100}
    assert limits(sent({"max_tokens": 50}, model, "chat", max_tokens=100)) == {field: 50}
    assert limits(sent({"max_tokens": 500}, model, "chat", max_tokens=100)) == {field: 100}
    both = {"max_tokens": 500, "max_completion_tokens": 70}
    wanted = {"max_completion_tokens": 70} if completion else {"max_completion_tokens": 70, "max_tokens": 100}
    assert limits(sent(both, model, "chat", max_tokens=100)) == wanted
    assert sent({}, model, "messages", max_tokens=100)["max_tokens"] == 100
    assert limits(sent({"prompt": "x", "messages": None}, model, "completions", max_tokens=100)) == {"max_tokens": 100}


def limits(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name.startswith("max_") and value is not None}


# Thoughts of another model


@pytest.mark.parametrize(
    ("api", "key", "given", "wanted"),
    [
        (
            "messages",
            "messages",
            turns("a", [THOUGHT, HIDDEN, {"type": "text", "text": "b"}], "c", [THOUGHT], "d"),
            [*turns("a", [{"type": "text", "text": "b"}], "c"), {"role": "user", "content": "d"}],
        ),
        ("messages", "messages", turns("a", "b", "c"), turns("a", "b", "c")),
        ("messages", "messages", turns([THOUGHT], "b", "c"), turns([THOUGHT], "b", "c")),
        (
            "chat",
            "messages",
            [QUESTION, {"role": "assistant", "reasoning_content": "hm", "content": "so", "reasoning": "hm", "n": 1}],
            [QUESTION, {"role": "assistant", "content": "so", "n": 1}],
        ),
        (
            "responses",
            "input",
            [
                QUESTION,
                {"type": "reasoning", "id": "rs_1", "summary": [], "encrypted_content": "e"},
                {"type": "reasoning", "id": "rs_2", "summary": []},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            ],
            [
                QUESTION,
                {"type": "reasoning", "id": "rs_2", "summary": []},
                {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            ],
        ),
    ],
)
def test_thoughts_of_another_model_are_left_out(api: Any, key: str, given: Any, wanted: Any) -> None:
    assert sent({key: given}, api=api, foreign=len(given))[key] == wanted
    assert sent({key: given}, api=api)[key] == given


def test_every_other_byte_of_such_a_message_stays() -> None:
    body = (
        b'{"messages" : [ {"role":"user","content":"\\u0061"},\n {"content":[ {"type":"thinking","thinking":"t",'
        b'"signature":"s"} , {"type":"tool_use","id":"t","name":"f","input":{"n": 1.00}} ], "role" : "assistant"} ]}'
    )
    request = Request("messages", body, orjson.loads(body), None, ())
    assert rewriting.changed(request, CLAUDE, None, 2) == (
        b'{"model":"served","messages" : [ {"role":"user","content":"\\u0061"},\n {"content":['
        b' {"type":"tool_use","id":"t","name":"f","input":{"n": 1.00}} ], "role" : "assistant"} ]}'
    )


def test_only_messages_before_the_model_took_part_lose_their_thoughts() -> None:
    given = turns("a", [THOUGHT, {"type": "text", "text": "b"}], "c", [THOUGHT, {"type": "text", "text": "d"}], "e")
    wanted = turns("a", [{"type": "text", "text": "b"}], "c", [THOUGHT, {"type": "text", "text": "d"}], "e")
    assert sent({"messages": given}, foreign=3)["messages"] == wanted


def test_thinking_rests_for_a_turn_whose_beginning_is_another_model_s() -> None:
    own = {"thinking": {"type": "enabled", "budget_tokens": 2000}, "messages": THOUGHTFUL}
    result = sent(own, foreign=3)
    assert result["messages"] == LOOP
    assert result["thinking"] == {"type": "disabled"}
    adaptive = own | {"thinking": {"type": "adaptive"}}
    assert sent(adaptive, foreign=3)["thinking"] == {"type": "adaptive"}
    over = [*THOUGHTFUL, {"role": "assistant", "content": "Done."}, QUESTION]
    assert sent(own | {"messages": over}, foreign=3)["thinking"] == own["thinking"]
    beside = [*THOUGHTFUL, QUESTION]  # the API joins the question to the results before it
    assert sent(own | {"messages": beside}, foreign=3)["thinking"] == {"type": "disabled"}


def test_a_turn_begins_with_what_the_user_says() -> None:
    assert MESSAGES.closed(THOUGHTFUL) == 1
    assert MESSAGES.closed(turns("a", "b", "c")) == 3
    assert CHAT.closed([{"role": "assistant", "content": "a"}]) == 0
    assert RESPONSES.closed([QUESTION, {"type": "function_call"}, {"type": "function_call_output"}]) == 1


# Who made them


def talk(session: str | None, first: str = "a", header: str = "x-session-id") -> Request:
    headers = {} if session is None else {header: session}
    return Request("messages", b"", {}, None, (Message("user", first),), headers)


def foreign(makers: Makers, request: Request, model: str, length: int) -> int | None:
    return makers.foreign(Sessions().named(request.headers), request, model, length)


@pytest.mark.parametrize("header", ["x-session-id", "x-claude-code-session-id", "session_id"])
def test_a_conversation_s_older_messages_are_another_model_s_after_a_change(header: str) -> None:
    makers = Makers()
    request = talk("s", header=header)
    assert foreign(makers, request, "a", 1) is None
    assert foreign(makers, request, "a", 3) == 0
    assert foreign(makers, request, "b", 5) == 5
    assert foreign(makers, request, "b", 7) == 5
    assert foreign(makers, request, "b", 3) == 3
    assert foreign(makers, request, "a", 9) == 9


def test_conversations_of_one_session_are_told_apart() -> None:
    makers = Makers()
    assert foreign(makers, talk("s", "the task"), "a", 1) is None
    assert foreign(makers, talk("s", "a title for it"), "b", 1) is None
    assert foreign(makers, talk("s", "the task"), "a", 3) == 0
    assert foreign(makers, talk("other", "the task"), "b", 3) is None


def test_without_a_session_nothing_is_known_and_little_is_remembered() -> None:
    makers = Makers()
    for _ in range(2):
        assert foreign(makers, talk(None), "a", 1) is None
    for number in range(MOST + 1):
        foreign(makers, talk(str(number)), "a", 1)
    assert foreign(makers, talk("0"), "b", 1) is None
    assert foreign(makers, talk(str(MOST)), "b", 1) == 1


# Siblings


def test_messages_of_the_user_that_follow_each_other_are_one_turn() -> None:
    """The API joins them, so that a text after the results of tools is no new turn for it."""
    given = [*LOOP, {"role": "user", "content": "Go on."}]
    assert MESSAGES.closed(given) == 1
    assert "thinking" not in sent({"messages": given}, reasoning_effort="high")
    assert sent({"messages": [*THOUGHTFUL, given[-1]]}, reasoning_effort="high")["thinking"]["type"] == "enabled"
    assert MESSAGES.closed([QUESTION, QUESTION]) == 2
    assert MESSAGES.closed([*LOOP, {"role": "assistant", "content": "a"}, QUESTION]) == 5
    assert MESSAGES.closed([]) == 0


def test_thoughts_in_the_fields_and_parts_of_other_gateways_are_left_out_too() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    text = {"type": "text", "text": "so"}
    given = [
        QUESTION,
        {"role": "assistant", "content": "so", "thinking_blocks": [THOUGHT], "reasoning_opaque": "e"},
        QUESTION,
        {"role": "assistant", "content": [THOUGHT, text]},
        QUESTION,
        {"role": "assistant", "content": [THOUGHT]},
        QUESTION,
        {"role": "assistant", "content": [THOUGHT], "tool_calls": [call]},
    ]
    wanted = [
        QUESTION,
        {"role": "assistant", "content": "so"},
        QUESTION,
        {"role": "assistant", "content": [text]},
        QUESTION,
        QUESTION,
        {"role": "assistant", "content": None, "tool_calls": [call]},
    ]
    assert sent({"messages": given}, api="chat", foreign=len(given))["messages"] == wanted
    assert sent({"messages": given}, api="chat")["messages"] == given
