"""Answers of a panel in each API, read by the official SDKs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai
import pytest

from panel.registry import PANELS
from panel.spec import PanelSpec
from tests.panel.fakes import calls, says, table
from tests.panel.test_all_kinds import KINDS as ALL
from tests.stepwise.fakes import Fault, served
from upstream.endpoint import Endpoint
from upstream.writer import Call, Means

TEXT = "it is four"
BLOCK = {"cascade": ["small", "large"], "until": {"sure": 0.9}}
HEADERS = {"x-pointsman-decision": "ask"}


def models(**more: Any) -> list[Any]:
    return [says("small", TEXT, **more), says("large", "IT IS FOUR")]


async def test_chat() -> None:
    ask: Any = {"model": "auto", "messages": [{"role": "user", "content": "?"}]}
    async with (
        table(models(), BLOCK) as made,
        served({"ask": made.panel}) as base,
        openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as sdk,
    ):
        whole = await sdk.chat.completions.create(**ask)
        chunks = [chunk async for chunk in await sdk.chat.completions.create(**ask, stream=True)]
    assert (whole.choices[0].message.content, whole.choices[0].finish_reason) == (TEXT, "stop")
    assert whole.usage.model_extra["pointsman"]["panel"] == "cascade"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == TEXT
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


@pytest.mark.parametrize(("finish", "status"), [("stop", "completed"), ("length", "incomplete")])
async def test_responses(finish: str, status: str) -> None:
    block = {**BLOCK, "cascade": ["large", "small"]}
    async with table(models(finish=finish), block) as made, served({"ask": made.panel}) as base:
        made.models["large"].top = -1
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as sdk:
            turns: Any = [{"role": "user", "content": [{"type": "input_text", "text": "?"}]}]
            ask: Any = {"model": "auto", "instructions": "Be brief.", "input": turns, "max_output_tokens": 90}
            whole = await sdk.responses.create(**ask)
            async with sdk.responses.stream(**ask) as stream:
                deltas = [event.delta async for event in stream if event.type == "response.output_text.delta"]
                final = await stream.get_final_response() if finish == "stop" else None
    assert (whole.output_text, whole.status, whole.usage.output_tokens > 0) == (TEXT, status, True)
    assert "".join(deltas) == TEXT
    if final is not None:
        assert (final.output_text, final.status) == (TEXT, "completed")
    (asked, *_) = made.models["small"].requests
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert asked["max_completion_tokens"] == 90


@pytest.mark.slow
@pytest.mark.parametrize(("finish", "reason"), [("stop", "end_turn"), ("length", "max_tokens")])
async def test_messages(finish: str, reason: str) -> None:
    import anthropic

    block = {**BLOCK, "cascade": ["large", "small"], "heartbeat": 0.01}
    async with table(models(finish=finish, delay=0.02), block) as made, served({"ask": made.panel}) as base:
        made.models["large"].top = -1
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", default_headers=HEADERS) as sdk:
            turns: Any = [{"role": "user", "content": [{"type": "text", "text": "?"}]}]
            ask: Any = {"model": "auto", "max_tokens": 90, "system": "Be brief.", "messages": turns}
            whole = await sdk.messages.create(**ask, stop_sequences=["zzz"])
            async with sdk.messages.stream(**ask) as stream:
                text = "".join([piece async for piece in stream.text_stream])
                final = await stream.get_final_message()
    assert (whole.content[0].text, whole.stop_reason, whole.usage.output_tokens) == (TEXT, reason, 6)
    assert (text, final.stop_reason, final.usage.output_tokens) == (TEXT, reason, 6)
    asked, _ = made.models["small"].requests
    assert asked["messages"] == [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "?"}]
    assert (asked["max_tokens"], asked["stop"]) == (90, ["zzz"])


@pytest.mark.slow
async def test_errors_are_in_the_client_s_api() -> None:
    import anthropic

    async with table(models(), BLOCK) as made, served({"ask": made.panel}) as base:
        for model in made.models.values():
            model.faults[-2] = Fault("status", status=500)
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0, default_headers=HEADERS) as sdk:
            with pytest.raises(anthropic.InternalServerError, match="No member of the panel"):
                await sdk.messages.create(model="a", max_tokens=9, messages=[{"role": "user", "content": "?"}])
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, default_headers=HEADERS) as ai:
            with pytest.raises(openai.InternalServerError, match="No member of the panel"):
                await ai.responses.create(model="a", input="?")
            with pytest.raises(openai.BadRequestError, match=r"cannot be answered as its decision says \(stored\)"):
                await ai.responses.create(model="a", input="?", previous_response_id="resp_1")


@pytest.mark.slow
async def test_a_stream_that_breaks_off_ends_in_the_client_s_api() -> None:
    import anthropic

    block = {**BLOCK, "cascade": ["large", "small"]}
    async with table(models(), block) as made, served({"ask": made.panel}) as base:
        made.models["large"].top = -1
        made.models["small"].faults[-2] = Fault("kill", 2)
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", max_retries=0, default_headers=HEADERS) as sdk:
            with pytest.raises(anthropic.APIError, match="broke off"):
                async with sdk.messages.stream(
                    model="a", max_tokens=9, messages=[{"role": "user", "content": "?"}]
                ) as stream:
                    await stream.get_final_message()
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", max_retries=0, default_headers=HEADERS) as ai:
            events = [event async for event in await ai.responses.create(model="a", input="?", stream=True)]
    assert events[-1].type == "response.failed"
    assert "broke off" in events[-1].response.error.message


# Tools

LOOK = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
HERE, THERE = ("c1", "look", '{"place": "here"}'), ("c2", "look", '{"place": "there"}')
KINDS: dict[str, dict[str, Any]] = {
    "cascade": {"cascade": ["unsure", "b"], "until": {"sure": 0.9}},  # the last member streams
    "cascade, at once": {"cascade": ["b", "unsure"], "until": {"sure": 0.9}},
    "agree": {"agree": "b", "then": ["unsure"]},
    "vote": {"vote": ["a", "b", "c"]},
    "rank": {"rank": ["a", "b", "c"], "judges": ["judge"]},  # which goes by the order, so that the majority wins
    "plan": {"plan": {"short": {"model": "b"}, "long": {"model": "b"}}, "planner": "judge"},
}


def callers() -> list[Any]:
    """Of which b and c call two tools, and a one that is another."""
    return [
        calls("a", "", ("c9", "look", '{"place": "nowhere"}')),
        calls("b", "I look.", HERE, THERE),
        calls("c", "I look.", HERE, THERE),
        says("judge", "B"),
        says("unsure", "it is ✗"),
    ]


def of(models: list[Any], block: dict[str, Any]) -> list[Any]:
    """Those of the models that a block names."""
    return [model for model in models if f"'{model.name}'" in str(block)]


@pytest.mark.parametrize("kind", KINDS)
async def test_tools_are_called_in_responses(kind: str) -> None:
    tool: Any = {"type": "function", "name": "look", "parameters": LOOK, "strict": False, "description": "Looks."}
    ask: Any = {"model": "auto", "input": "?", "tools": [tool], "tool_choice": {"type": "function", "name": "look"}}
    async with (
        table(of(callers(), KINDS[kind]), KINDS[kind]) as made,
        served({"ask": made.panel}) as base,
        openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as sdk,
    ):
        whole = await sdk.responses.create(**ask, parallel_tool_calls=True)
        async with sdk.responses.stream(**ask) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_response()
        asked = made.models["b"].requests[0]
    for answer in (whole, final):
        message, *items = answer.output
        assert (answer.status, answer.output_text, message.status) == ("completed", "I look.", "completed")
        assert [(item.type, item.call_id, item.name, item.arguments) for item in items] == [
            ("function_call", *HERE),
            ("function_call", *THERE),
        ]
        assert len({item.id for item in answer.output}) == 3
        assert (answer.tools[0].name, answer.tool_choice.name) == ("look", "look")
    told = [event.arguments for event in events if event.type == "response.function_call_arguments.done"]
    assert told == [HERE[2], THERE[2]]
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    assert "".join(event.delta for event in deltas if event.output_index == 2) == THERE[2]
    assert len(deltas) > 2
    assert [event.sequence_number for event in events] == [*range(len(events))]
    told_items = [event.item for event in events if event.type == "response.output_item.done"]
    assert [item.id for item in told_items] == [item.id for item in final.output]
    function = {"name": "look", "description": "Looks.", "parameters": LOOK, "strict": False}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert asked["tool_choice"] == {"type": "function", "function": {"name": "look"}}
    assert asked["parallel_tool_calls"] is True


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_tools_are_called_in_messages(kind: str) -> None:
    import anthropic

    tool: Any = {"name": "look", "input_schema": LOOK, "description": "Looks.", "cache_control": {"type": "ephemeral"}}
    turns: Any = [{"role": "user", "content": "?"}]
    choice: Any = {"type": "any", "disable_parallel_tool_use": False}
    ask: Any = {"model": "auto", "max_tokens": 90, "messages": turns, "tools": [tool], "tool_choice": choice}
    async with (
        table(of(callers(), KINDS[kind]), KINDS[kind]) as made,
        served({"ask": made.panel}) as base,
        anthropic.AsyncAnthropic(base_url=base, api_key="k", default_headers=HEADERS) as sdk,
    ):
        whole = await sdk.messages.create(**ask)
        async with sdk.messages.stream(**ask) as stream:
            events = [event async for event in stream]
            final = await stream.get_final_message()
        asked = made.models["b"].requests[0]
    for answer in (whole, final):
        text, *uses = answer.content
        assert (text.text, answer.stop_reason) == ("I look.", "tool_use")
        assert [(use.type, use.id, use.name, use.input) for use in uses] == [
            ("tool_use", "c1", "look", {"place": "here"}),
            ("tool_use", "c2", "look", {"place": "there"}),
        ]
    raw = [event for event in events if event.type in ("content_block_start", "content_block_stop")]
    assert [(event.type[14:], event.index) for event in raw] == [
        (what, at) for at in range(3) for what in ("start", "stop")
    ]
    assert sum(event.type == "input_json" for event in events) > 2
    function = {"name": "look", "description": "Looks.", "parameters": LOOK}
    assert asked["tools"] == [{"type": "function", "function": function}]
    assert (asked["tool_choice"], asked["parallel_tool_calls"]) == ("required", True)


@pytest.mark.slow
async def test_what_tools_gave_reaches_the_members() -> None:
    import anthropic

    chat = [
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "content": "I look.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"place":"here"}'}},
                {"id": "c2", "type": "function", "function": {"name": "look", "arguments": "{}"}},
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "a door"},
        {"role": "tool", "tool_call_id": "c2", "content": "no\n\nthing"},
        {"role": "user", "content": "Well?"},
        {
            "role": "assistant",
            "content": None,
            "tool_calls": [{"id": "c3", "type": "function", "function": {"name": "look", "arguments": "{}"}}],
        },
        {"role": "tool", "tool_call_id": "c3", "content": ""},
    ]
    said: Any = [
        {"role": "user", "content": "?"},
        {
            "role": "assistant",
            "content": [
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "c1", "name": "look", "input": {"place": "here"}},
                {"type": "tool_use", "id": "c2", "name": "look", "input": {}},
            ],
        },
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "c1", "content": "a door"},
                {
                    "type": "tool_result",
                    "tool_use_id": "c2",
                    "content": [{"type": "text", "text": "no"}, {"type": "text", "text": "thing"}],
                },
                {"type": "text", "text": "Well?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "tool_use", "id": "c3", "name": "look", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c3"}]},
    ]
    items: Any = [
        {"role": "user", "content": "?"},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "I look."}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"place":"here"}'},
        {"type": "function_call", "call_id": "c2", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "a door"},
        {
            "type": "function_call_output",
            "call_id": "c2",
            "output": [{"type": "input_text", "text": "no"}, {"type": "input_text", "text": "thing"}],
        },
        {"role": "user", "content": "Well?"},
        {"type": "function_call", "call_id": "c3", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c3", "output": ""},
    ]
    async with table(models(), BLOCK) as made, served({"ask": made.panel}) as base:
        async with anthropic.AsyncAnthropic(base_url=base, api_key="k", default_headers=HEADERS) as sdk:
            await sdk.messages.create(
                model="a", max_tokens=9, messages=said, tools=[{"name": "look", "input_schema": {"type": "object"}}]
            )
        async with openai.AsyncOpenAI(base_url=f"{base}/v1", api_key="k", default_headers=HEADERS) as ai:
            await ai.responses.create(model="a", input=items)
    assert [body["messages"] for body in made.models["small"].requests] == [chat, chat]


@pytest.mark.parametrize("api", ["responses", "messages"])
@pytest.mark.parametrize("kind", [kind.name for kind in PANELS])
def test_tools_are_for_the_kinds_that_release_a_member_s_answer(kind: str, api: str) -> None:
    panel = PanelSpec.model_validate(ALL[kind]).build(Means({name: Endpoint("", name) for name in "abc"}, Path()))
    body: Any = {"input": "?", "tools": [{"type": "function", "name": "look"}]}
    if api == "messages":
        body = {"max_tokens": 9, "messages": [{"role": "user", "content": "?"}], "tools": [{"name": "look"}]}
    assert panel.unfit(Call(body, {}, api)) == ("tools" if kind in ("merge", "rounds") else None)


async def test_a_server_that_gives_all_calls_one_index_is_understood() -> None:
    member = calls("b", "", HERE, THERE)
    member.index = 0
    async with table([member, says("c", "")], {"vote": ["b", "c"]}) as made:
        chat = await made.ask(tools=[{"type": "function", "function": {"name": "look"}}])
        tools = [{"name": "look", "input_schema": {}}]
        given = await made.ask("messages", messages=[{"role": "user", "content": "?"}], max_tokens=9, tools=tools)
    assert [call["id"] for call in chat.body["choices"][0]["message"]["tool_calls"]] == ["c1", "c2"]
    assert [part["input"] for part in given.body["content"]] == [{"place": "here"}, {"place": "there"}]


@pytest.mark.parametrize("arguments", ["[1]", '{"place":', '{"a":' * 300 + "1" + "}" * 300])
async def test_a_tool_that_is_called_with_no_object_is_no_answer_in_messages(arguments: str) -> None:
    ask: Any = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 9, "tools": [{"name": "look"}]}
    broken = calls("a", "", ("c1", "look", arguments))
    async with table([broken, calls("b", "", HERE)], {"vote": ["a", "b"]}) as made:
        given = await made.ask("messages", **ask)
        errors = dict(made.panel.metrics.upstream_errors)
    assert [part["input"] for part in given.body["content"]] == [{"place": "here"}]
    assert errors == {("a", "garbage"): 1}
    # What the client's own limit has cut is an answer where there is no other one.
    broken.finish = "length"
    async with table([broken, says("b", "", finish="length")], {"vote": ["a", "b"]}) as made:
        cut = await made.ask("messages", **ask)
    (use,) = cut.body["content"]
    assert (use["input"], cut.body["stop_reason"]) == ({}, "max_tokens")


@pytest.mark.parametrize("api", ["responses", "messages"])
async def test_calls_that_are_mixed_break_a_stream_off(api: str) -> None:
    member = calls("b", "I look.", HERE, THERE)
    member.mixed = True
    body: Any = {"input": "?", "tools": [{"type": "function", "name": "look"}]}
    if api == "messages":
        body = {"messages": [{"role": "user", "content": "?"}], "max_tokens": 9, "tools": [{"name": "look"}]}
    async with table([says("a", "it is ✗"), member], {"cascade": ["a", "b"], "until": {"sure": 0.9}}) as made:
        streamed = await made.ask(api, **body, stream=True)
        whole = await made.ask(api, **body)
    assert "broke off: garbage" in str(streamed.events[-1])
    assert " look." in str(streamed.events)
    assert '"here"' in str(whole.body).replace("'", '"')
