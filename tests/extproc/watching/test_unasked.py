"""The usage that we asked for is taken out of a stream again; every other byte goes on as it came."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.apis.registry import BY_NAME
from extproc.watching.unasked import LIMIT, Unasked

USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def chunk(text: str | None, **more: object) -> dict[str, object]:
    choices = [] if text is None else [{"index": 0, "delta": {"content": text}, "finish_reason": None}]
    return {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **more}


def sse(*events: object, end: str = "\n") -> bytes:
    lines = [f"data: {event if isinstance(event, str) else json.dumps(event)}{end}{end}" for event in events]
    return "".join(lines).encode()


def through(stream: bytes, cuts: list[int]) -> bytes:
    hidden = Unasked()
    places = [0, *sorted({cut % (len(stream) + 1) for cut in cuts}), len(stream)]
    return b"".join(hidden.feed(stream[a:b], b == len(stream)) for a, b in pairwise(places))


ASKED = (
    chunk("Hel", usage=None), chunk('"usage": null, lo\n', usage=None), chunk(None, usage=USAGE), "[DONE]",
)  # fmt: skip
PLAIN = (chunk("Hel"), chunk('"usage": null, lo\n'), "[DONE]")


@given(st.lists(st.integers(0, 2000), max_size=12), st.sampled_from(["\n", "\r\n", "\r"]))
def test_any_split_of_a_stream_is_the_stream_that_an_unasked_server_sends(cuts: list[int], end: str) -> None:
    assert through(sse(*ASKED, end=end), cuts) == sse(*PLAIN, end=end)


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("last", ["[DONE]", chunk("lo")])
def test_the_last_event_goes_on_before_its_blank_line(end: str, last: object) -> None:
    """Trailers may come in its place, and then nothing can be given any more."""
    stream = sse(chunk("Hel", usage=None), last, end=end).removesuffix(end.encode())
    hidden = Unasked()
    assert hidden.feed(stream, False) == sse(chunk("Hel"), last, end=end).removesuffix(end.encode())
    assert hidden.feed(end.encode() + sse(chunk(None, usage=USAGE), "[DONE]", end=end), True) == end.encode() + sse(
        "[DONE]", end=end
    )


@pytest.mark.parametrize(
    "stream",
    [
        sse(*PLAIN),
        sse(chunk("a"), chunk("b", usage=USAGE), "[DONE]"),  # a server that says it unasked: beside a choice
        sse({"error": {"message": "overloaded", "usage": None}}),
        sse("[]", '"usage"', "not JSON: \"usage\"", {"usage": None}),
        b": a comment\n\nevent: ping\ndata: {}\n\nid: 3\nretry: 1\n\n",
        sse(chunk("a"))[:-1],  # cut off
        b'{"choices": [], "usage": {}}',  # no stream
        b"",
    ],
)  # fmt: skip
def test_everything_else_goes_on_byte_for_byte(stream: bytes) -> None:
    for cuts in ([], [1], [7, 30, 31], list(range(len(stream)))):
        assert through(stream, cuts) == stream


def test_what_an_event_has_beside_its_data_stays() -> None:
    stream = b': note\nid: 7\ndata: {"choices":[{}]\ndata: ,"usage": null}\n\ndata: [DONE]\n\n'
    assert through(stream, []) == b': note\nid: 7\ndata: {"choices":[{}]\ndata: }\n\ndata: [DONE]\n\n'
    one_line = b'id: 7\ndata:{ "usage" : null , "choices":[{"n":12345678901234567890}] }\n\n'
    assert through(one_line, []) == b'id: 7\ndata:{ "choices":[{"n":12345678901234567890}] }\n\n'


def test_an_event_that_is_too_long_goes_on_as_it_comes() -> None:
    long = sse(chunk("x" * LIMIT, usage=None))
    hidden = Unasked()
    out = [hidden.feed(piece, False) for piece in (sse(ASKED[0]), long[: LIMIT + 9], long[LIMIT + 9 :])]
    out.append(hidden.feed(sse(*ASKED), True))
    assert b"".join(out) == sse(PLAIN[0]) + long + sse(*ASKED)


@pytest.mark.parametrize(
    ("fields", "silent"),
    [
        ({"stream": True}, True),
        ({"stream": True, "stream_options": None}, True),
        ({"stream": True, "stream_options": {}}, True),
        ({"stream": True, "stream_options": {"include_usage": False}}, True),
        ({"stream": True, "stream_options": {"include_usage": True}}, False),
        ({"stream": True, "stream_options": "x"}, False),  # the server refuses it, as it should
        ({"stream": False}, False),
        ({}, False),
    ],
)
def test_which_calls_do_not_ask(fields: dict[str, object], silent: bool) -> None:
    for api in ("chat", "completions"):
        assert BY_NAME[api].silent(fields) is silent
    for api in ("responses", "messages", "embeddings", "gemini"):  # say it anyway
        assert BY_NAME[api].silent(fields) is False
