"""The final object of a stream is the one that the official SDKs make of it, and it can be streamed again."""

from __future__ import annotations

import copy
from typing import Any

import orjson
import pytest

from extproc.apis.registry import BY_NAME
from extproc.apis.shape import Static
from extproc.watching.shapes import SHAPES
from extproc.watching.sse import Events
from tests.extproc.watching.streams import (
    ALL,
    CHAT,
    GEMINI,
    MESSAGES,
    READ,
    RESPONSES,
    STREAMS,
    USAGE,
    by_sdk,
    chunk,
    delta,
    gpt,
    message,
    start,
    stop,
    whole,
    written,
)
from tests.linear import assert_linear


def read(body: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(one.data) for one in Events(1 << 20).feed(body) if one.data not in (b"", b"[DONE]")]


def assembled(api: str, events: list[dict[str, Any]], limit: int = 100_000) -> dict[str, Any] | None:
    assembly = SHAPES[api].assembly(limit)
    for one in copy.deepcopy(events):
        assembly.add(one)
    return assembly.final()


NEW: dict[str, Any] = {
    "chat": lambda key, value: [chunk(**{key: value}), chunk() | {"choices": [{"index": 0, "delta": {}, key: value}]}],
    "gemini": lambda key, value: [{"candidates": [{"content": {key: value}}], key: value}],
    "messages": lambda key, value: [{"type": "message_delta", "delta": {key: value}, "usage": {key: value}}],
}


@pytest.mark.parametrize("api", NEW)
def test_fields_that_nobody_knows_count_to_the_limit(api: str) -> None:
    streams: dict[str, Any] = STREAMS[api]
    begun, *rest = next(iter(streams.values()))
    for fields, complete in ((10, True), (400, False)):
        more = [one for number in range(fields) for one in NEW[api](f"key{number}", "x" * 100)]
        assert (assembled(api, [begun, *more, *rest], 20_000) is not None) is complete


def gathered(api: str, body: bytes) -> Any:
    """The object that the SDK has made of a stream."""
    if api == "chat":
        with gpt(body).chat.completions.stream(model="m", messages=[{"role": "user", "content": "x"}]) as stream:
            return stream.get_final_completion()
    got = READ[api](body)
    return got[-1].response if api == "responses" else got[-1]


def bare(value: Any) -> Any:
    """Without nothing: fields that are null, and what an SDK adds for its own use."""
    if isinstance(value, dict):
        kept = {key: bare(one) for key, one in value.items() if one is not None}
        return {key: one for key, one in kept.items() if key not in ("parsed", "parsed_arguments", "parsed_output")}
    return [bare(one) for one in value] if isinstance(value, list) else value


# The SDK refuses to gather an answer that ends with `length`, and skips or repeats what is not OpenAI's own.
UNLIKE = ("azure", "choices", "openrouter")
SAME = [(api, name) for api, name in ALL if api not in ("completions", "gemini") and name not in UNLIKE]


@pytest.mark.parametrize(("api", "name"), by_sdk(SAME))
def test_the_final_object_is_what_the_sdk_makes_of_the_stream(api: str, name: str) -> None:
    events = STREAMS[api][name]
    ours = bare(assembled(api, events))
    theirs = bare(gathered(api, written(api, events)).model_dump(by_alias=True))
    if api == "chat":
        for choice in theirs["choices"]:
            for one in choice["message"].get("tool_calls", []):
                del one["index"]  # which the API's own final object has not
    assert ours == theirs


@pytest.mark.parametrize(("api", "name"), by_sdk(ALL))
def test_the_final_object_is_the_apis_own(api: str, name: str) -> None:
    final = assembled(api, STREAMS[api][name])
    assert whole(api).model_validate(final), "what the official client reads"


@pytest.mark.parametrize(("api", "name"), by_sdk(ALL))
def test_a_final_object_streamed_again_is_the_same(api: str, name: str) -> None:
    final = assembled(api, STREAMS[api][name])
    body = SHAPES[api].stream(copy.deepcopy(final))
    READ[api](body)
    again = assembled(api, read(body))
    assert bare(again) == bare(final)


def test_the_final_object_of_gemini_has_its_texts_joined() -> None:
    final = assembled("gemini", GEMINI["thinking"])
    assert final["candidates"][0]["content"] == {
        "parts": [
            {"text": "Let me think.", "thought": True},
            {"text": "Fourteen"},
            {"functionCall": {"name": "pay", "args": {"card": 4111}, "id": "c"}, "thoughtSignature": "Ev0D"},
            {"text": ""},
        ],
        "role": "model",
    }


def test_a_replayed_stream_has_its_usage_only_where_it_was_asked_for() -> None:
    final = assembled("chat", CHAT["openai"])
    assert final["usage"] == USAGE
    shape = SHAPES["chat"]
    assert [one.get("usage") for one in read(shape.stream(final))][-1] == USAGE
    assert not any("usage" in one for one in read(shape.stream(final, usage=False)))


def test_thoughts_and_calls_are_replayed_in_the_order_they_came() -> None:
    types = [one["type"] for one in read(SHAPES["responses"].stream(assembled("responses", RESPONSES["reasoning"])))]
    given = [one["type"] for one in RESPONSES["reasoning"]]
    assert sorted(set(types)) == sorted(set(given))
    assert list(dict.fromkeys(types)) == list(dict.fromkeys(given))
    assert [one["type"] for one in read(SHAPES["messages"].stream(assembled("messages", MESSAGES["thinking"])))][
        1:4
    ] == [
        "content_block_start",
        "content_block_delta",
        "content_block_delta",
    ]


@pytest.mark.parametrize(("api", "name"), ALL)
def test_an_answer_that_is_not_complete_has_no_final_object(api: str, name: str) -> None:
    events = STREAMS[api][name]
    ends = {
        "chat": lambda one: any(choice["finish_reason"] for choice in one["choices"]),
        "completions": lambda one: any(choice["finish_reason"] for choice in one["choices"]),
        "gemini": lambda one: any("finishReason" in candidate for candidate in one["candidates"]),
        "messages": lambda one: one["type"] == "message_stop",
        "responses": lambda one: one["type"] == "response.completed",
    }[api]
    last = max(at for at, one in enumerate(events) if ends(one))
    for at in range(last + 1):
        assert assembled(api, events[:at]) is None


def test_an_answer_that_failed_has_no_final_object() -> None:
    assert assembled("chat", [*CHAT["openai"], {"error": {"message": "overloaded"}}]) is None
    error = {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"}}
    assert assembled("messages", [*MESSAGES["text"], error]) is None
    failed = {"type": "response.failed", "response": {**RESPONSES["text"][0]["response"], "status": "failed"}}
    assert assembled("responses", [*RESPONSES["text"][:-1], failed]) is None
    broken = copy.deepcopy(MESSAGES["thinking"])
    at = next(i for i, one in enumerate(broken) if one.get("delta", {}).get("partial_json"))
    del broken[at]
    assert assembled("messages", broken) is None


@pytest.mark.parametrize(("api", "name"), ALL)
def test_a_longer_answer_than_the_limit_has_no_final_object(api: str, name: str) -> None:
    assert assembled(api, STREAMS[api][name], limit=0) is None


def test_many_entries_with_an_index_are_bounded() -> None:
    calls = [{"index": at, "function": {"arguments": "x"}} for at in range(2000)]
    assert assembled("chat", [chunk({"tool_calls": calls}), chunk(finish="stop")], 10**9) is None


@pytest.mark.parametrize("api", SHAPES)
def test_what_is_nested_too_deep_is_not_kept(api: str) -> None:
    deep: Any = "x"
    for _ in range(200):
        deep = [deep] if api != "chat" else {"a": deep}
    events = {
        "chat": [chunk({"deep": deep}), chunk(finish="stop")],
        "completions": [{**STREAMS[api]["openai"][0], "choices": [{"index": 0, "deep": deep, "finish_reason": "stop"}]}]
        if api == "completions"
        else [],
        "gemini": [{"candidates": [{"content": {"parts": [{"deep": deep}]}, "finishReason": "STOP"}]}],
        "messages": [MESSAGES["text"][0], start(0, type="x", deep=deep), *MESSAGES["text"][-2:]],
        "responses": [{"type": "response.output_item.done", "item": {"deep": deep}}, RESPONSES["text"][-1]],
    }
    assert assembled(api, events[api], 10**9) is None


def test_an_input_with_a_number_that_is_not_read_as_it_is_has_no_final_object() -> None:
    for number, kept in ((2**64 - 1, True), (2**64, False)):
        piece = delta(0, "input_json_delta", partial_json=f'{{"account": {number}}}')
        block = [start(0, type="tool_use", id="t", name="f", input={}), piece, stop(0)]
        assert (assembled("messages", message(*block, reason="tool_use")) is not None) == kept


def test_the_work_is_linear() -> None:
    def run(pieces: int) -> None:
        assembly = SHAPES["chat"].assembly(10**9)
        one = chunk({"content": "word "})
        for _ in range(pieces):
            assembly.add(one)
        assembly.add(chunk(finish="stop"))
        assert len(assembly.final()["choices"][0]["message"]["content"]) == 5 * pieces

    assert_linear(lambda pieces: pieces, run, 1 << 17)


@pytest.mark.parametrize("api", SHAPES)
def test_our_own_answers_are_assembled_too(api: str) -> None:
    shape = BY_NAME[api]
    fields = {"stream_options": {"include_usage": True}}
    given = Static("m", "Hello there.", "1" * 24, 1, fields, "sse")
    events = read(b"".join(shape.stream(given)))
    assert bare(assembled(api, events)) == bare(shape.answer(given))
