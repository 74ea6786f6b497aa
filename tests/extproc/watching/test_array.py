"""A Gemini answer that is streamed as one JSON array is watched as one of server-sent events is."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from extproc.watching.array import Elements
from extproc.watching.shapes import ARRAYS
from extproc.watching.sse import Event
from extproc.watching.watch import Watch
from tests.extproc.watching.test_watch import CARD, CUT, MASK, RESPOND, SIZES, SKIP, TEXTS, cut_up, judge, masked, run
from tests.linear import assert_linear

PLACES = st.lists(st.integers(0, 2000), max_size=8)


def element(text: str, finish: str | None = None) -> dict[str, Any]:
    content = {"parts": [{"text": text}], "role": "model"}
    return {"candidates": [{"content": content, "index": 0, **({"finishReason": finish} if finish else {})}]}


def array(texts: list[str]) -> bytes:
    """As Google writes it."""
    said = [orjson.dumps(element(text), option=orjson.OPT_INDENT_2) for text in texts]
    last = {**element(".", "STOP"), "usageMetadata": {"promptTokenCount": 2}}
    return b"[" + b"\n,\r\n".join([*said, orjson.dumps(last)]) + b"\n]\n"


def split(stream: bytes, places: list[int]) -> list[bytes]:
    borders = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(borders)]


def told(out: bytes) -> str:
    return "".join(
        part["text"] for one in orjson.loads(out) for part in one["candidates"][0]["content"]["parts"] if part["text"]
    )


def watched(rule: str, **more: Any) -> Watch:
    return Watch(ARRAYS["gemini"], judge(rule, "gemini"), True, **more)


@given(st.lists(TEXTS, max_size=4), PLACES)
def test_any_split_gives_the_same_elements(texts: list[str], places: list[int]) -> None:
    stream = array(texts)

    def read(pieces: list[bytes]) -> list[Event]:
        elements = Elements(1 << 20)
        found = [one for piece in pieces for one in elements.feed(piece)]
        last = elements.end()
        return found if last is None else [*found, last]

    whole = read([stream])
    assert b"".join(one.raw for one in whole) == stream
    assert [orjson.loads(one.data) for one in whole if one.data] == orjson.loads(stream)
    assert read(split(stream, places)) == whole
    assert read([bytes([byte]) for byte in stream]) == whole


@settings(max_examples=40, deadline=None)
@given(TEXTS, SIZES, PLACES)
def test_any_split_shows_the_same_masked_text(text: str, sizes: list[int], places: list[int]) -> None:
    stream = array(list(cut_up(text, sizes)))
    out = run(watched(MASK), split(stream, places))
    assert told(out) == masked(text) + "."
    if masked(text) == text:
        assert out == stream


@pytest.mark.parametrize("size", [1, 40, 10_000])
def test_a_cut_that_is_settled_at_the_end_leaves_an_array(size: int) -> None:
    rule = "{name: lacking, on: answer, when: {not: words}, window: 64, on_unknown: match, cut: {message: Stop.}}"
    stream = array(["so ", "it goes"])
    out = run(watched(rule), [stream[at : at + size] for at in range(0, len(stream), size)])
    last = orjson.loads(out)[-1]["candidates"][0]
    assert (last["finishReason"], last["content"]["parts"][-1]["text"]) == ("SAFETY", "\n\nStop.")


def test_it_is_released_as_it_comes() -> None:
    one = watched(MASK)
    stream = array(["word "] * 100)
    out = one.feed(stream[: len(stream) // 2])
    assert 20 < out.count(b"word") < 50


@pytest.mark.parametrize("before", [0, 300])
def test_an_array_that_is_cut_is_closed(before: int) -> None:
    one = watched(CUT)
    stream = array([*(["word "] * before), f"it is {CARD} here", *(["more "] * 50)])
    out = run(one, split(stream, list(range(0, len(stream), 300))))
    found = orjson.loads(out)
    assert found[-1]["candidates"][0]["finishReason"] == "SAFETY"
    assert told(out).endswith("Stop.")
    assert "1111" not in told(out)
    assert told(out).count("word") >= before - 20


def test_another_answer_takes_its_place_while_nothing_was_sent() -> None:
    one = watched(RESPOND)
    assert one.feed(array(["the project falcon"]), True) == b""
    assert one.responds is not None


@pytest.mark.parametrize("broken", [b"", b"[1]", b'["a"]', b"x", b"[[", array(["word"])[:-9]])
def test_what_is_no_array_of_objects_is_unreadable(broken: bytes) -> None:
    one = watched(MASK)
    out = one.feed(broken, True)
    assert out == b""
    assert (one.responds is not None) == bool(broken)
    out = watched(SKIP).feed(broken, True)
    assert out == broken


def test_an_error_may_come_alone() -> None:
    error = orjson.dumps({"error": {"code": 400, "message": f"so {CARD}", "status": "INVALID_ARGUMENT"}})
    assert run(watched(MASK), [error]) == error.replace(CARD.encode(), b"[card]")


def test_an_element_that_is_too_long_is_unreadable_and_loses_nothing() -> None:
    stream = array(["a" * 50, "b" * 5000, "c"])
    assert run(watched(SKIP, limit=1000), split(stream, [400, 900, 2000])) == stream
    assert run(watched(SKIP, limit=1000), [stream]) == stream


def test_the_work_is_linear() -> None:
    for text in ('"{[\\' * 40, "word " * 40):
        assert_linear(lambda size, text=text: array([text] * (size // 64)), lambda data: watched(MASK).feed(data, True))  # type: ignore[misc]
        assert_linear(
            lambda size, text=text: array([text * (size // 64)]),  # type: ignore[misc]
            lambda data: [Elements(1 << 30).feed(piece) for piece in (data[:-9], data[-9:])],
            1 << 14,
        )
