"""An answer that is cut, at any event, is one that the official SDKs read to its end."""

from __future__ import annotations

import copy
from typing import Any

import openai
import orjson
import pytest
from google.genai import types
from pydantic import BaseModel

from extproc.watching.shapes import SHAPES
from tests.extproc.watching.streams import (
    ALL,
    READ,
    STREAMS,
    by_sdk,
    chunk,
    claude,
    google,
    gpt,
    response,
    said,
    whole,
    written,
)

NO = "Stopped by policy."


def cut(api: str, events: list[dict[str, Any]], at: int) -> bytes:
    course = SHAPES[api].course()
    for one in events[:at]:
        course.seen(copy.deepcopy(one))
    for one in events[at : at + 1]:
        course.unseen(one)
    return written(api, events[:at], done=False) + course.cut(NO)


EVERY = [(api, name, at) for api, name in ALL for at in range(len(STREAMS[api][name]) + 1)]


@pytest.mark.parametrize(("api", "name", "at"), by_sdk(EVERY))
def test_every_stream_may_be_cut_before_each_event(api: str, name: str, at: int) -> None:
    events = STREAMS[api][name]
    got = READ[api](cut(api, events, at))
    over = at == len(events)
    if api == "chat":
        last = next(one for one in reversed(got) if one.type == "chunk")
        open_before = {choice["index"] for one in events[:at] for choice in one["choices"]}
        finished = {c["index"] for one in events[:at] for c in one["choices"] if c["finish_reason"]}
        cut_now = (open_before - finished) or open_before or {0}
        for choice in last.snapshot.choices:
            if choice.index in cut_now:
                assert choice.finish_reason == "content_filter"
                assert choice.message.content.endswith(NO)
    elif api == "completions":
        assert got[-1].choices[0].finish_reason == "content_filter"
        assert got[-1].choices[0].text.endswith(NO)
    elif api == "gemini":
        assert {one.finish_reason for one in got[-1].candidates} == {types.FinishReason.SAFETY}
        assert got[-1].text.endswith(NO)
        assert got[-1].model_version == "gemini-2.5-flash"
    elif api == "messages":
        final = got[-1]
        if over:
            assert final.stop_reason == events[-2]["delta"]["stop_reason"]
            return
        assert (final.stop_reason, final.stop_details.type) == ("refusal", "refusal")
        assert final.content[-1].text.endswith(NO)
    elif over:
        assert got[-1].type == "response.completed"
    else:
        final = got[-1].response
        assert (got[-1].type, final.incomplete_details.reason) == ("response.incomplete", "content_filter")
        assert final.output_text.endswith(NO)
        assert final.model == "gpt-4.1-2025-04-14"
        numbers = [one.sequence_number for one in got]
        assert numbers == list(range(len(numbers)))


@pytest.mark.slow
def test_what_was_shown_stays() -> None:
    final = READ["messages"](cut("messages", STREAMS["messages"]["thinking"], 8))[-1]
    assert [block.type for block in final.content] == ["thinking", "text"]
    assert final.content[1].text == f"27 * 453 = 12,231\n\n{NO}" if len(final.content) == 2 else False
    last = READ["responses"](cut("responses", STREAMS["responses"]["text"], 6))[-1]
    assert last.response.output_text == f"Hi there\n\n{NO}"


def test_a_call_that_is_cut_is_not_completed() -> None:
    events = STREAMS["responses"]["reasoning"]
    at = next(i for i, one in enumerate(events) if one["type"] == "response.function_call_arguments.delta") + 1
    got = READ["responses"](cut("responses", events, at))
    assert [item.type for item in got[-1].response.output] == ["reasoning", "message", "message"]
    assert not any(one.type == "response.output_item.done" and one.item.type == "function_call" for one in got)


@pytest.mark.slow
def test_a_cut_without_a_message_adds_no_text() -> None:
    course = SHAPES["chat"].course()
    events = STREAMS["chat"]["openai"][:2]
    for one in events:
        course.seen(one)
    got = READ["chat"](written("chat", events, done=False) + course.cut(""))
    assert next(one for one in reversed(got) if one.type == "chunk").snapshot.choices[0].message.content == "Hello"
    message = SHAPES["messages"].course()
    message.seen(STREAMS["messages"]["text"][0])
    assert READ["messages"](written("messages", STREAMS["messages"]["text"][:1]) + message.cut(""))[-1].content == []


class Sum(BaseModel):
    total: int


def test_a_format_that_was_asked_for_does_not_break_the_stream() -> None:
    events = response(said('{"tot', 'al": 4}'))
    at = next(i for i, one in enumerate(events) if one["type"].endswith("text.delta")) + 1
    with gpt(cut("responses", events, at)).responses.stream(model="m", input="x", text_format=Sum) as stream:
        assert [one.type for one in stream][-1] == "response.incomplete"
    # This is how OpenAI's SDK tells its caller of a filter.
    parts = [chunk({"role": "assistant", "content": '{"tot'})]
    client = gpt(cut("chat", parts, 1)).chat.completions
    with (
        client.stream(model="m", messages=[{"role": "user", "content": "x"}], response_format=Sum) as read,
        pytest.raises(openai.ContentFilterFinishReasonError),
    ):
        list(read)


def test_helpers_that_gather_an_answer_say_that_it_was_cut() -> None:
    """As for every answer that was filtered or is incomplete; docs/answers.md says so."""
    client = gpt(cut("chat", STREAMS["chat"]["openai"], 2)).chat.completions
    with (
        client.stream(model="m", messages=[{"role": "user", "content": "x"}]) as chat,
        pytest.raises(openai.ContentFilterFinishReasonError),
    ):
        chat.get_final_completion()
    with (
        gpt(cut("responses", STREAMS["responses"]["text"], 6)).responses.stream(model="m", input="x") as made,
        pytest.raises(RuntimeError, match=r"response\.completed"),
    ):
        made.get_final_response()


def test_a_long_answer_is_cut_in_bounded_memory() -> None:
    events = response(said(*["x" * 1000] * 300))
    course = SHAPES["responses"].course()
    shown = [one for one in events if one["type"] != "response.completed" and not one["type"].endswith(".done")]
    for one in shown:
        course.seen(one)
    closing = course.cut(NO)
    assert len(closing) < 10_000
    last = READ["responses"](written("responses", shown) + closing)[-1]
    assert (last.type, last.response.output_text) == ("response.incomplete", NO)


@pytest.mark.parametrize(("api", "name"), by_sdk(ALL))
def test_a_whole_answer_that_is_cut_has_nothing_of_the_models(api: str, name: str) -> None:
    shape = SHAPES[api]
    assembly = shape.assembly(100_000)
    for one in STREAMS[api][name]:
        assembly.add(copy.deepcopy(one))
    answer = shape.cut(assembly.final(), NO)
    whole(api).model_validate(answer)
    assert {text.holder[text.key] for text in shape.texts(answer)} - {"", "content_filter"} == {NO}
    body = orjson.dumps(answer)
    if api == "chat":
        chosen = gpt(body, "application/json").chat.completions.create(model="m", messages=[]).choices[0]
        assert (chosen.message.content, chosen.finish_reason) == (NO, "content_filter")
    elif api == "completions":
        continued = gpt(body, "application/json").completions.create(model="m", prompt="x").choices[0]
        assert (continued.text, continued.finish_reason) == (NO, "content_filter")
    elif api == "gemini":
        client = google(body, "application/json")
        told = client.models.generate_content(model="m", contents="x")
        assert (told.text, told.candidates[0].finish_reason) == (NO, types.FinishReason.SAFETY)
    elif api == "messages":
        got = claude(body, "application/json").messages.create(model="m", max_tokens=1, messages=[])
        assert (got.content[0].text, got.stop_reason) == (NO, "refusal")
    else:
        made = gpt(body, "application/json").responses.create(model="m", input="x")
        assert (made.output_text, made.status) == (NO, "incomplete")


@pytest.mark.parametrize("api", by_sdk((api,) for api in SHAPES))
def test_a_cut_before_the_first_event_has_its_names_and_nothing_else_of_it(api: str) -> None:
    """Also where a server puts objects in the place of names: what they say was judged, and is the reason to cut."""
    secret = {"secret": "SECRET", "text": "SECRET"}
    names = {"id": "an-id", "model": "a-model", "modelVersion": "a-model", "responseId": "an-id"}
    for given, shown in ((names, True), (dict.fromkeys(names, secret), False)):
        inner = {**given, "instructions": "SECRET", "metadata": secret, "usage": secret, "content": [secret]}
        event = {
            **given, "type": "response.created", "response": inner, "message": inner, "usageMetadata": secret,
            "choices": [{"index": 0, "delta": secret, "text": "SECRET"}], "candidates": [{"content": secret}],
        }  # fmt: skip
        course = SHAPES[api].course()
        course.unseen(event)
        closing = course.cut(NO)
        assert b"SECRET" not in closing
        assert (b'"an-id"' in closing and b'"a-model"' in closing) is shown
        READ[api](closing)
