"""A value that is divided between two blocks of an answer, which clients show as one text, never gets out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response

from extproc.watching.shapes import SHAPES
from extproc.watching.sse import Events
from extproc.watching.watch import Watch
from tests.extproc.watching.streams import chunk
from tests.extproc.watching.test_watch import (
    CARD,
    CUT,
    FLAG,
    IBAN,
    KEY,
    MASK,
    SECRETS,
    SIZES,
    TEXTS,
    WORDS,
    cut_up,
    encoded,
    judge,
    masked,
    run,
    watch,
)

JOINED = ("messages", "responses")


def messages(blocks: list[str], sizes: list[int], tool: str = "", kind: str = "text") -> list[dict[str, Any]]:
    """A stream whose blocks of a kind say this; behind each there is a call with these arguments."""
    message = {"id": "m", "type": "message", "role": "assistant", "model": "m", "content": [], "usage": {}}
    events: list[dict[str, Any]] = [{"type": "message_start", "message": {**message, "stop_reason": None}}]
    said = [(kind, block) for block in blocks]
    if tool:
        said = [one for block in said for one in (block, ("tool_use", tool))]
    for at, (what, text) in enumerate(said):
        begun = {"id": "t", "name": "look", "input": {}} if what == "tool_use" else {what: ""}
        events.append({"type": "content_block_start", "index": at, "content_block": {"type": what, **begun}})
        name, key = ("input_json_delta", "partial_json") if what == "tool_use" else (f"{what}_delta", what)
        for piece in cut_up(text, sizes):
            events.append({"type": "content_block_delta", "index": at, "delta": {"type": name, key: piece}})
        events.append({"type": "content_block_stop", "index": at})
    events.append({"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": {"output_tokens": 3}})
    return [*events, {"type": "message_stop"}]


def part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": []}


def response(items: list[list[str]]) -> dict[str, Any]:
    output = [
        {
            "id": f"msg{at}",
            "type": "message",
            "role": "assistant",
            "status": "completed",
            "content": [part(text) for text in parts],
        }
        for at, parts in enumerate(items)
    ]
    final = {"id": "r", "object": "response", "created_at": 1, "model": "m", "status": "completed", "output": output}
    return {**final, "parallel_tool_calls": False, "tool_choice": "auto", "tools": []}


def responses(items: list[list[str]], sizes: list[int], deltas: bool = True) -> list[dict[str, Any]]:
    """A stream whose items have these parts. Without `deltas` each item comes when it is done."""
    final = response(items)
    events: list[dict[str, Any]] = [{"type": "response.created", "response": {**final, "output": []}}]
    for at, item in enumerate(final["output"]):
        begun = {**item, "status": "in_progress", "content": []}
        events.append({"type": "response.output_item.added", "output_index": at, "item": begun})
        for number, one in enumerate(item["content"] if deltas else ()):
            place = {"item_id": item["id"], "output_index": at, "content_index": number}
            events.append({"type": "response.content_part.added", **place, "part": part("")})
            for piece in cut_up(one["text"], sizes):
                events.append({"type": "response.output_text.delta", **place, "delta": piece})
            events.append({"type": "response.output_text.done", **place, "text": one["text"]})
            events.append({"type": "response.content_part.done", **place, "part": one})
        events.append({"type": "response.output_item.done", "output_index": at, "item": item})
    return [*events, {"type": "response.completed", "response": final}]


def fields(stream: bytes) -> list[dict[str, Any]]:
    return [orjson.loads(event.data) for event in Events(10**7).feed(stream)]


def streamed(stream: bytes) -> str:
    """The text of all deltas, as a client shows it."""
    text = ""
    for one in fields(stream):
        if one["type"] == "content_block_delta":
            text += one["delta"].get("text", one["delta"].get("thinking", ""))
        elif one["type"] == "response.output_text.delta":
            text += one["delta"]
    return text


def repeated(stream: bytes) -> list[str]:
    """What the last events of a responses stream say again: the texts of the items, and of the whole response."""
    found = fields(stream)
    items = [one["item"] for one in found if one["type"] == "response.output_item.done"]
    said = [one.get("text", "") for one in found if one["type"] == "response.output_text.done"]
    texts = ["".join(text["text"] for item in items for text in item["content"])]
    texts += ["".join(said)] if said else []
    return [*texts, Response(**found[-1]["response"]).output_text]


PLACES = st.lists(st.integers(0, 120), max_size=4)


def apart(text: str, places: list[int]) -> list[str]:
    borders = [0, *sorted({place % len(text) for place in places} - {0}), len(text)]
    return [text[first:last] for first, last in pairwise(borders)]


@settings(max_examples=40, deadline=None)
@given(TEXTS, PLACES, SIZES, st.sampled_from(["text", "thinking"]), st.sampled_from(["", '{"a": "b"}']))
def test_any_blocks_of_messages_show_the_text_that_one_would(
    text: str, places: list[int], sizes: list[int], kind: str, tool: str
) -> None:
    stream = encoded("messages", messages(apart(text, places), sizes, tool, kind))
    out = run(watch(MASK, "messages"), [stream])
    assert streamed(out) == masked(text)
    assert len(fields(out)) == len(fields(stream))
    if masked(text) == text:
        assert out == stream


def test_a_flag_sees_what_is_divided_and_holds_nothing_back() -> None:
    stream = encoded("messages", messages(["the project fal", "con is"], [5]))
    found = judge(FLAG, "messages")
    assert Watch(SHAPES["messages"], found, True).feed(stream) == stream
    assert found.acted == [("flag", "flag")]


@settings(max_examples=40, deadline=None)
@given(TEXTS, PLACES, SIZES, st.integers(1, 3), st.booleans())
def test_any_parts_and_items_of_a_response_show_the_text_that_one_would(
    text: str, places: list[int], sizes: list[int], each: int, deltas: bool
) -> None:
    parts = apart(text, places)
    items = [parts[at : at + each] for at in range(0, len(parts), each)]
    stream = encoded("responses", responses(items, sizes, deltas))
    out = run(watch(MASK, "responses"), [stream])
    assert repeated(out) == [masked(text)] * len(repeated(stream))
    if deltas:
        assert streamed(out) == masked(text)
    if masked(text) == text:
        assert out == stream


@pytest.mark.slow
@settings(max_examples=20, deadline=None)
@given(TEXTS, PLACES)
def test_a_whole_answer_in_blocks_shows_the_text_that_one_would(text: str, places: list[int]) -> None:
    from anthropic.types import Message

    parts = apart(text, places)
    usage = {"input_tokens": 1, "output_tokens": 1}
    body: dict[str, Any] = {"id": "m", "type": "message", "role": "assistant", "model": "m", "usage": usage}
    body["content"] = [{"type": "text", "text": one} for one in parts]
    out = watch(MASK, "messages", streamed=False).feed(orjson.dumps(body), True)
    said = Message(**orjson.loads(out)).content
    assert "".join(one.text for one in said if one.type == "text") == masked(text)
    out = watch(MASK, "responses", streamed=False).feed(orjson.dumps(response([parts[:1], parts[1:]])), True)
    assert Response(**orjson.loads(out)).output_text == masked(text)


@pytest.mark.parametrize("secret", SECRETS)
@pytest.mark.parametrize("rule", [MASK, CUT])
@pytest.mark.parametrize("step", [3, pytest.param(1, marks=pytest.mark.volume)])
def test_no_part_of_a_value_goes_out_wherever_it_is_divided(secret: str, rule: str, step: int) -> None:
    """Neither before the next block has begun, nor in what repeats the block."""
    for at in range(1, len(secret), step):
        blocks = [f"so {secret[:at]}", f"{secret[at:]} and the end"]
        for api, events in (("messages", messages(blocks, [4])), ("responses", responses([blocks], [4]))):
            one = watch(rule, api)
            wanted = [f"so {masked(secret)} and the end"] if rule == MASK else ["so \n\nStop.", "Stop."]
            out = b""
            for event in events:
                out += one.feed(encoded(api, [event]))
                assert any(text.startswith(streamed(out)) for text in wanted)
            out += one.feed(b"", True)
            assert streamed(out) in wanted
            assert secret.split()[-1].encode() not in out


def test_each_block_is_read_by_itself_too() -> None:
    """Shown as one, the letters before a number make it none."""
    one = watch(MASK, "messages")
    out = run(one, [encoded("messages", messages(["call", f"{CARD} now"], [5]))])
    assert streamed(out) == "call[card] now"


def test_what_lies_behind_a_window_of_other_text_is_masked_from_there_on() -> None:
    """The first half has gone by then: no more than a window waits for what may never come."""
    blocks = ["the key is AK-12345678, and " + CARD[:10], CARD[10:] + " it is"]
    for tool, first in (('{"a": 1}', "[card]"), (orjson.dumps({"a": "b" * 100}).decode(), CARD[:10])):
        pieces = [encoded("messages", [event]) for event in messages(blocks, [7], tool)]
        out = streamed(run(watch(MASK, "messages"), pieces))
        assert out == f"the key is [masked], and {first} it is"


def test_texts_of_two_blocks_that_take_turns_are_read_each_by_itself_and_as_they_come() -> None:
    start = [event for event in messages(["a", "b"], [9]) if event["type"] != "content_block_stop"]
    head, tail = start[:1], start[-2:]
    blocks = [
        {"type": "content_block_start", "index": at, "content_block": {"type": "text", "text": ""}} for at in (0, 1)
    ]
    said = [
        {"type": "content_block_delta", "index": at, "delta": {"type": "text_delta", "text": text}}
        for at, text in ((0, "4111 1111 "), (1, "between "), (0, "1111 1111 "), (1, CARD[:9]), (0, "x"), (1, CARD[9:]))
    ]
    out = run(watch(MASK, "messages"), [encoded("messages", [*head, *blocks, *said, *tail])])
    assert b"1111" not in out
    assert b"between" in out


def test_choices_are_texts_apart_and_the_parts_of_one_message_are_not() -> None:
    halves = [chunk({"content": CARD[:10]}), chunk({"content": CARD[10:]}, 1)]
    stream = encoded("chat", [*halves, chunk(finish="stop"), chunk(at=1, finish="stop")])
    assert run(watch(MASK), [stream]) == stream
    first, second, third = ({"type": "text", "text": text} for text in (CARD[:4], CARD[4:10], CARD[10:]))
    parts = [[first, second], [third]]
    stream = encoded("chat", [*(chunk({"content": one}) for one in parts), chunk(finish="stop")])
    assert b"1111" not in run(watch(MASK), [stream])
    message = {"role": "assistant", "content": parts[0] + parts[1]}
    body = orjson.dumps({"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})
    assert b"1111" not in watch(MASK, streamed=False).feed(body, True)


@pytest.mark.slow
def test_many_blocks_take_bounded_memory_and_too_many_of_those_that_are_repeated_are_unreadable() -> None:
    one = watch(MASK, "messages")
    for at in range(3000):
        begun = {"type": "content_block_start", "index": at, "content_block": {"type": "text", "text": "word "}}
        one.feed(encoded("messages", [begun, {"type": "content_block_stop", "index": at}]))
    assert len(one._queue.held) < 50
    seam = one._texts.groups["text"].seam
    assert seam is not None
    assert len(seam.raw) < 1000
    assert len(seam._segments) < 100
    one = Watch(SHAPES["responses"], judge(MASK, "responses"), True)
    place = {"type": "response.output_text.delta", "item_id": "m", "content_index": 0, "delta": "word "}
    for at in range(5000):
        one.feed(encoded("responses", [{**place, "output_index": at}]))
    assert one.over


def test_a_long_value_goes_on_in_the_next_block() -> None:
    lines = "\n".join("MIIEvQIBADANBgkqhkiG9w0BAQEFAASCBKcwggSjAgEAAoIBAQC7" for _ in range(24))
    key = f"-----BEGIN PRIVATE KEY-----\n{lines}\n-----END PRIVATE KEY-----"
    rule = "{name: mask, on: answer, when: secret, window: 64, on_unknown: match, mask: {}}"
    assert IBAN not in key
    assert KEY not in key
    assert WORDS not in key
    for at in (200, 700):
        blocks = [f"it is {key[:at]}", f"{key[at:]} there"]
        out = streamed(run(watch(rule, "messages"), [encoded("messages", messages(blocks, [40]))]))
        assert "MIIE" not in out
        assert out.endswith(" there")
