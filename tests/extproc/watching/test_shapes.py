"""Every text of an answer is found, in its channel, and may be changed where it stands."""

from __future__ import annotations

import contextlib
import copy
import json
from typing import Any

import orjson
import pytest

from extproc.watching.shape import AnswerText, Channel
from extproc.watching.shapes import SHAPES, asks_json
from tests.extproc.watching.streams import (
    ALL,
    CHAT,
    MESSAGE,
    MESSAGES,
    RESPONSE,
    RESPONSES,
    STREAMS,
    call,
    chunk,
    delta,
    message,
    response,
    said,
    start,
)

SECRET = "4111 1111 1111 1111"


def texts(api: str, fields: dict[str, Any]) -> list[AnswerText]:
    return SHAPES[api].texts(fields)


def joined(api: str, name: str) -> dict[Channel, str]:
    """What a stream says, by channel; without what repeats it."""
    said: dict[Channel, str] = {}
    for one in STREAMS[api][name]:
        for text in texts(api, one):
            if not text.whole:
                said[text.channel] = said.get(text.channel, "") + text.holder[text.key]
    return said


def test_channels() -> None:
    assert joined("chat", "openai") == {("choices", 0, "delta", "content"): "Hello there."}
    assert joined("chat", "choices") == {
        ("choices", 0, "delta", "content"): "One",
        ("choices", 1, "delta", "content"): "Uno due",
    }
    calls = ("choices", 0, "delta", "tool_calls")
    assert joined("chat", "tools") == {
        (*calls, 0, "function", "name"): "pay",
        (*calls, 0, "function", "arguments"): '{"card": 4111, "note": "caf\\u00e9"}',
        (*calls, 1, "function", "name"): "look",
        (*calls, 1, "function", "arguments"): "{}",
    }
    assert joined("chat", "vllm") == {
        ("choices", 0, "delta", "reasoning_content"): "Let me think.",
        ("choices", 0, "delta", "reasoning"): "Let me think.",
        ("choices", 0, "delta", "content"): "Four",
        ("choices", 0, "logprobs"): "Four",
    }
    assert joined("chat", "openrouter") == {
        ("choices", 0, "delta", "reasoning"): "Hmm.",
        ("choices", 0, "delta", "reasoning_details", 0, "text"): "Hmm.",
        ("choices", 0, "delta", "content"): "Yes",
    }
    assert joined("chat", "refusal") == {("choices", 0, "delta", "refusal"): "I cannot do that."}
    assert joined("completions", "choices") == {("choices", 0, "text"): "ad", ("choices", 1, "text"): "bc"}
    assert joined("messages", "thinking") == {
        ("content", 0, "thinking"): "Let me solve this.",
        ("content", 1, "text"): "27 * 453 = 12,231",
        ("content", 2, "partial_json"): '{"card": 4111, "to": "Zo\\u00eb"}',
    }
    assert joined("responses", "reasoning") == {
        ("output", 0, "response.reasoning_summary_text", 0): "**Sum** of it",
        ("output", 1, "response.output_text", 0): "Four",
        ("output", 2, "response.function_call_arguments", 0): '{"card": 4111, "to": "Zo\\u00eb"}',
    }
    assert joined("responses", "custom") == {("output", 0, "response.custom_tool_call_input", 0): "print(1)"}

    assert joined("gemini", "thinking") == {
        ("candidates", 0, "thought"): "Let me think.",
        ("candidates", 0, "text"): "Fourteen",
    }


def test_json_in_a_string_is_known_as_such() -> None:
    for api, stream in (
        ("chat", CHAT["tools"]),
        ("messages", MESSAGES["thinking"]),
        ("responses", RESPONSES["reasoning"]),
    ):
        code = {text.holder[text.key] for one in stream for text in texts(api, copy.deepcopy(one)) if text.code}
        assert code
        assert all(piece[0] in '{4"o1t' for piece in code)
    assert not any(text.code for one in RESPONSES["custom"] for text in texts("responses", one))


@pytest.mark.parametrize(("api", "name"), ALL)
def test_nothing_comes_in_a_channel_that_has_ended(api: str, name: str) -> None:
    ended: list[Channel] = []
    for one in STREAMS[api][name]:
        for text in texts(api, one):
            assert text.whole or not any(text.channel[: len(begin)] == begin for begin in ended)
        ended += SHAPES[api].closes(one)
    channels = joined(api, name)
    assert all(any(channel[: len(begin)] == begin for begin in ended) for channel in channels)


def places(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, Any, tuple[Any, ...]]]:
    """Where an object has a string: what holds it, under which key, and the path."""
    found = []
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, str):
            found.append((node, key, (*path, key)))
        elif isinstance(value, (dict, list)):
            found += places(value, (*path, key))
    return found


# What no client shows: what things are called and what state they are in, and what the client has sent itself.
UNSHOWN = {"id", "object", "model", "type", "role", "finish_reason", "stop_reason", "system_fingerprint", "obfuscation"}
UNSHOWN |= {"provider", "format", "item_id", "call_id", "tool_use_id", "status", "signature", "data", "file_id"}
UNSHOWN |= {"encrypted_content", "modelVersion", "responseId", "finishReason", "thoughtSignature"}
SENT = {"instructions", "metadata", "reasoning", "text", "tool_choice", "tools", "truncation"}


@pytest.mark.parametrize(("api", "name"), ALL)
def test_a_secret_in_any_string_is_found(api: str, name: str) -> None:
    for given in STREAMS[api][name]:
        for number in range(len(places(given))):
            one = copy.deepcopy(given)
            holder, key, path = places(one)[number]
            if path[-1] in UNSHOWN or "top_logprobs" in path or (path[0] == "response" and path[1] in SENT):
                continue
            holder[key] = SECRET
            hits = [text for text in texts(api, one) if SECRET in text.holder[text.key]]
            assert hits, path
            for text in hits:
                text.holder[text.key] = text.holder[text.key].replace(SECRET, "[card]")
            assert SECRET not in orjson.dumps(one).decode()


@pytest.mark.parametrize(("api", "name"), ALL)
def test_a_secret_in_a_new_field_is_found(api: str, name: str) -> None:
    for given in STREAMS[api][name]:
        for place in range(1 + given_dicts(given)):
            one = copy.deepcopy(given)
            node, path = all_dicts(one)[place]
            if {"logprobs", *SENT} & set(path):
                continue
            node["novelty"] = {"deep": [["x", SECRET]]}
            node["fresh"] = SECRET
            if {"input", "args"} & set(path):  # their JSON text has it
                assert any(SECRET in text.holder[text.key] for text in texts(api, one))
                continue
            assert len([text for text in texts(api, one) if text.holder[text.key] == SECRET]) == 2, path


def all_dicts(node: Any, path: tuple[Any, ...] = ()) -> list[tuple[dict[str, Any], tuple[Any, ...]]]:
    found = [(node, path)] if isinstance(node, dict) else []
    for key, value in node.items() if isinstance(node, dict) else enumerate(node):
        if isinstance(value, (dict, list)):
            found += all_dicts(value, (*path, key))
    return found


def given_dicts(node: Any) -> int:
    return len(all_dicts(node)) - 1


def test_what_is_in_a_delta_may_go_on_and_the_rest_may_not() -> None:
    one = chunk({"content": "a", "novelty": "b"}, citations=["https://example.com"])
    assert [(text.holder[text.key], text.whole) for text in texts("chat", one)] == [
        ("a", False),
        ("b", False),
        ("https://example.com", True),
    ]
    block = start(0, type="tool_use", id="t", name="pay", input={"card": 4111111111111111})
    assert [(text.key, text.code, text.whole) for text in texts("messages", block)] == [
        ("name", False, True),
        ("input", True, True),
    ]
    assert [text.whole for text in texts("messages", start(0, type="text", text="Hi"))] == [False]
    assert [text.whole for text in texts("messages", MESSAGES["search"][-4])] == [True, True]
    for one in RESPONSES["reasoning"]:
        assert all(text.whole != one["type"].endswith(".delta") for text in texts("responses", one))


def test_an_object_that_the_model_wrote_is_its_json_text() -> None:
    whole = {**MESSAGE, "content": [{"type": "tool_use", "id": "t", "name": "pay", "input": {"4111": 4111, "id": "x"}}]}
    _name, written = texts("messages", whole)
    assert written.holder[written.key] == '{"4111":4111,"id":"x"}'
    written.holder[written.key] = '{"[card]":"[card]"}'
    assert whole["content"][0]["input"] == {"[card]": "[card]"}
    with pytest.raises(ValueError, match="unexpected end of data"):
        written.holder[written.key] = "{"


def test_a_number_of_more_digits_than_are_read_is_refused() -> None:
    for number in (10**19 * 5, -(10**19), [{"x": 10**30}]):
        block = {"type": "tool_use", "id": "t", "name": "pay", "input": {"account": number}}
        fields = orjson.loads(json.dumps({**MESSAGE, "content": [block]}))
        found = texts("messages", fields)[-1]
        with pytest.raises(ValueError, match="too many digits"):
            found.holder[found.key]
    last = texts("messages", {**MESSAGE, "content": [{"type": "tool_use", "input": {"account": 2**63, "x": 0.5}}]})[-1]
    assert last.holder[last.key] == '{"account":9223372036854775808,"x":0.5}'


def test_whole_answers() -> None:
    answer = {
        "id": "x",
        "object": "chat.completion",
        "choices": [
            {
                "index": 0,
                "message": {
                    "role": "assistant",
                    "content": "a",
                    "audio": {"id": "i", "data": "UklGR", "transcript": "b"},
                },
                "finish_reason": "stop",
            }
        ],
        "error": {"message": "c"},
    }
    assert [text.holder[text.key] for text in texts("chat", answer)] == ["a", "b", "c"]
    whole = RESPONSES["reasoning"][-1]["response"]
    got = [text.holder[text.key] for text in texts("responses", whole)]
    assert got == ["**Sum** of it", "Four", "pay", '{"card": 4111, "to": "Zo\\u00eb"}']


def test_bytes_are_no_text() -> None:
    sound = {"type": "response.audio.delta", "sequence_number": 1, "delta": "UklGR"}
    picture = {"type": "response.image_generation_call.partial_image", "item_id": "i", "partial_image_b64": "iVBOR"}
    drawn = {
        "type": "response.output_item.done",
        "item": {"id": "i", "type": "image_generation_call", "result": "iVBOR"},
    }
    assert [texts("responses", one) for one in (sound, picture, drawn)] == [[], [], []]
    assert texts("chat", chunk({"audio": {"id": "a", "data": "UklGR", "expires_at": 1}})) == []
    spoken = {"type": "response.audio.transcript.delta", "sequence_number": 1, "delta": "hello"}
    assert [text.holder[text.key] for text in texts("responses", spoken)] == ["hello"]


def test_what_repeats_or_counts_a_changed_text_is_forgotten() -> None:
    one = copy.deepcopy(CHAT["vllm"][3])
    one["obfuscation"] = "x"
    one["choices"][0]["delta"]["annotations"] = [
        {"type": "url_citation", "url_citation": {"start_index": 3, "end_index": 9, "title": "T", "url": "u"}}
    ]
    SHAPES["chat"].forget(one)
    choice = one["choices"][0]
    assert ("obfuscation" in one, choice["logprobs"]) == (False, None)
    cited = choice["delta"]["annotations"][0]["url_citation"]
    assert cited == {"start_index": 0, "end_index": 0, "title": "T", "url": "u"}
    spoken = chunk({"audio": {"id": "a", "data": "UklGR", "transcript": "hello"}}, token_ids=[1])
    SHAPES["chat"].forget(spoken)
    assert spoken["choices"][0]["delta"]["audio"] == {"id": "a", "data": "", "transcript": "hello"}
    assert spoken["token_ids"] == []
    done = copy.deepcopy(response(said("Hi"))[-2])
    done["item"]["content"][0]["logprobs"] = [{"token": "Hi"}]
    SHAPES["responses"].forget(done)
    assert done["item"]["content"][0]["logprobs"] == []
    given = {**MESSAGE, "content": [{"type": "tool_use", "id": "t", "name": "f", "input": {"logprobs": 1}}]}
    SHAPES["messages"].forget(given)
    assert given["content"][0]["input"] == {"logprobs": 1}


ODD: list[Any] = [
    {},
    {"choices": None},
    {"choices": {"index": 0}},
    {"choices": [None, 3, "text", []]},
    {"choices": [{"index": "0", "delta": None, "finish_reason": 3}]},
    {"choices": [{"index": -1, "delta": ["x"]}]},
    {"type": None, "choices": 1},
    {"type": ["x"]},
    {"type": "content_block_start", "index": None, "content_block": []},
    {"type": "content_block_start", "content_block": {"type": {}, "data": "x", "text": 5}},
    {"type": "content_block_delta", "index": 0, "delta": None},
    {"type": "content_block_delta", "index": 99, "delta": {"type": "text_delta", "text": 7}},
    {"type": "message_start", "message": None},
    {"type": "message_delta", "delta": 1, "usage": 1},
    {"type": "response.output_item.added", "output_index": "x", "item": None},
    {"type": "response.output_item.added", "item": {"type": "message"}},
    {"type": "response.content_part.added", "part": {"type": []}},
    {"type": "response.output_text.delta", "delta": None},
    {"type": "response.completed", "response": []},
    {"type": "response.completed", "response": {"output": "x"}},
    {"type": "error", "error": "x"},
    {"error": "overloaded"},
]


@pytest.mark.parametrize("api", SHAPES)
def test_what_no_api_sends_is_read_all_the_same(api: str) -> None:
    shape = SHAPES[api]
    for one in ODD:
        course, assembly = shape.course(), shape.assembly(1000)
        for given in (STREAMS[api]["openai" if "openai" in STREAMS[api] else "text"][0], one, one):
            given = copy.deepcopy(given)
            with contextlib.suppress(ValueError):
                shape.texts(given)
            shape.closes(given)
            shape.forget(given)
            course.seen(given)
            assembly.add(given)
        orjson.dumps(shape.cut(copy.deepcopy(one), "no"))
        over = api == "responses" and one.get("type") == "response.completed" and one["response"]
        assert (b"no" in course.cut("no")) != bool(over)
        assembly.final()


@pytest.mark.parametrize(
    ("api", "one"),
    [
        ("chat", {"choices": {"0": {"delta": {"content": SECRET}}}}),
        ("chat", {"choices": [SECRET]}),
        ("chat", {"choices": [{"delta": [SECRET]}]}),
        ("chat", {"choices": [{"delta": SECRET}]}),
        ("chat", {"choices": SECRET}),
        ("completions", {"choices": [[{"text": SECRET}]]}),
        ("gemini", {"candidates": [{"content": [SECRET]}]}),
        ("gemini", {"candidates": [{"content": {"parts": {"text": SECRET}}}]}),
        ("gemini", {"candidates": [{"content": {"parts": [{"text": [SECRET]}]}}]}),
        ("messages", {"type": "content_block_delta", "delta": [SECRET]}),
        ("messages", {"type": "content_block_delta", "delta": SECRET}),
        ("messages", {"type": "content_block_start", "content_block": [SECRET]}),
        ("messages", {"type": "message", "content": SECRET}),
        ("responses", {"type": "response.output_text.delta", "delta": [SECRET]}),
        ("responses", {"type": "response.completed", "response": [SECRET]}),
        ("responses", {"type": "response.completed", "response": SECRET}),
        ("responses", {"type": [], "output": SECRET}),
    ],
)
def test_what_stands_in_a_place_of_another_kind_is_found_or_refused(api: str, one: dict[str, Any]) -> None:
    try:
        found = texts(api, one)
    except ValueError as error:
        refused = str(error)
        found = []
    else:
        refused = ""
    assert "in the answer is no" in refused or any(text.holder[text.key] == SECRET for text in found)


JSON = {"type": "json_schema", "schema": {}}


def test_an_answer_that_is_asked_to_be_json_is_code() -> None:
    asked: list[dict[str, Any]] = [
        {"response_format": {"type": "json_object"}},
        {"text": {"format": JSON}},
        {"output_config": {"format": JSON}},
        {"output_format": JSON},
        {"guided_json": {"type": "object"}},
        {"structured_outputs": {"json": {}, "json_object": True}},
        {"generationConfig": {"responseMimeType": "application/json"}},
        {"generation_config": {"response_mime_type": "application/json"}},
    ]
    assert all(asks_json(one) for one in asked)
    plain: list[dict[str, Any]] = [
        {},
        {"response_format": {"type": "text"}, "text": {"format": {"type": "text"}}, "output_config": {"effort": "low"}},
        {"response_format": "json_object", "text": "json_object", "structured_outputs": {"regex": "a"}},
        {"generationConfig": {"responseMimeType": "text/plain"}},
    ]
    assert not any(asks_json(one) for one in plain)
    for api, name, says in (
        ("chat", "vllm", ["Four"]),
        ("chat", "tools", ['{"card": ', '4111, "n', 'ote": "caf\\u00e9"}', "{}"]),
        ("completions", "openai", ["Once", " upon"]),
        ("messages", "text", ["Hello", "!"]),
        ("responses", "text", ["Hi", " there", "!", *["Hi there!"] * 4]),
        ("gemini", "thinking", ["Four", "teen", '{"card":4111}']),
    ):
        found = [text for one in STREAMS[api][name] for text in SHAPES[api].texts(one, json=True) if text.code]
        assert [text.holder[text.key] for text in found] == says


@pytest.mark.parametrize("api", SHAPES)
def test_an_object_that_is_nested_too_deep_is_refused(api: str) -> None:
    for nested in ([], {}):
        deep: Any = nested
        for _ in range(900):
            deep = [deep] if nested == [] else {"a": deep}
        with pytest.raises(ValueError, match="deeper than 64"):
            SHAPES[api].texts({"type": "x", "x": deep})


def test_names_of_calls_are_texts() -> None:
    assert [text.key for text in texts("chat", chunk(call(0, name="pay", arguments="{}")))] == ["name", "arguments"]
    assert [text.key for text in texts("messages", message(start(0, type="tool_use", name="pay", input={}))[1])] == [
        "name"
    ]
    assert [text.key for text in texts("messages", delta(0, "novel_delta", words="x"))] == ["words"]
    assert texts("responses", {"type": "response.created", "response": RESPONSE}) == []
