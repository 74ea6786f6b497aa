"""Events that are like one before them are not taken apart, and are watched all the same."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from decisions.watching import Verdict
from extproc.watching.runs import Alike
from extproc.watching.shapes import SHAPES
from extproc.watching.watch import Watch
from signals.reading import Span
from tests.extproc.watching.test_watch import fed


class Everything:
    """Finds what is planted, wherever it stands."""

    window, stride, slow, holds, responds = 16, 16, False, True, False
    apart = None

    def __init__(self, planted: str) -> None:
        self.planted = planted

    def judge(self, channel: Any, text: str, final: bool, lead: int = 0) -> Verdict | None:
        places = [one.start() for one in re.finditer(self.planted, text)]
        spans = [Span(at, at + len(self.planted), "x") for at in places if final or at < len(text) - self.window]
        return Verdict("mask", "guard", tuple(spans)) if spans else Verdict("pass")

    async def read(self, channel: Any, text: str, final: bool, deadline: float, lead: int = 0) -> Verdict:
        raise AssertionError("nothing here is slow")

    def clear(self, channel: Any, text: str) -> bool:
        return False

    def carry(self, channel: Any, other: Any) -> None:
        raise AssertionError("nothing here is joined")

    def end(self) -> Verdict:
        return Verdict("pass")

    def unreadable(self) -> Verdict:
        return Verdict("cut", "guard", message="unreadable")


def event(**delta: Any) -> bytes:
    return b"data: " + orjson.dumps({"id": "c", "choices": [{"index": 0, "delta": delta}]}) + b"\n\n"


END = b'data: {"id":"c","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\ndata: [DONE]\n\n'


def watched(*events: bytes) -> bytes:
    """What is released, once all that has come is judged: of much that comes at once only a part is, to begin with."""
    watch = Watch(SHAPES["chat"], Everything("secret"), True)

    async def all_of_it() -> bytes:
        return b"".join(
            [await fed(watch, piece, end) for piece, end in (*((one, False) for one in events), (b"", True))]
        )

    return asyncio.run(all_of_it())


def contents(stream: bytes) -> str:
    found = ""
    for line in stream.split(b"\n\n"):
        if line.startswith(b"data: {"):
            delta = orjson.loads(line[6:])["choices"][0]["delta"]
            found += delta.get("content") or ""
    return found


def test_an_event_that_is_like_another_is_masked() -> None:
    events = [event(content=part) for part in ("so the ", "sec", "r", "et", " is out", " and that is all of it")]
    out = watched(*events, END)
    assert contents(out) == "so the [x] is out and that is all of it"
    assert b"sec" not in out


def test_nothing_found_goes_on_byte_for_byte() -> None:
    events = [event(content=part) for part in ("a", "b", "\u2603", '"', "\\", "a", "")]
    assert watched(*events, END) == b"".join((*events, END))


def test_more_than_is_judged_at_once_is_watched_as_what_comes_alone() -> None:
    parts = [*"a" * 31, "sec", "sec", "so it goes ", "so it goes ", "secret", "so it goes "]
    events = [event(content=part) for part in parts]
    assert watched(b"".join((*events, END))) == watched(*events, END)


@given(
    st.lists(
        st.sampled_from(["a", "sec", "ret", "secret", " ", "\n", "\u2603", '"', "\\", "", "so it goes "]), max_size=40
    ),
    st.booleans(),
)
def test_events_that_come_together_are_watched_as_those_that_come_alone(parts: list[str], named: bool) -> None:
    line = b"event: chunk\r\n" if named else b""
    events = [line + event(content=part) for part in parts]
    together = watched(b"".join((*events, END)))
    assert together == watched(*events, END)
    assert contents(together.replace(b"event: chunk\r\n", b"").replace(b"event: chunk\n", b"")) == "".join(
        parts
    ).replace("secret", "[x]")


@pytest.mark.parametrize("bad", [b"\xc3", b"\x01", b"\\ud800", b"\\x", b"\\"])
def test_what_is_no_string_is_unreadable_among_others_too(bad: bytes) -> None:
    """Two halves of a character are none, each for itself."""
    events = [event(content="PLACE").replace(b"PLACE", part) for part in (b"abc", bad, b"\xa9", b"more")]
    watch = Watch(SHAPES["chat"], Everything("secret"), True)
    assert watch.feed(b"".join((*events, END)), True) == b""
    assert watch.responds is not None
    assert watch.responds.message == "unreadable"


@given(st.binary(max_size=30), st.integers(0, 60))
def test_an_event_alone_is_read_as_one_among_others(text: bytes, limit: int) -> None:
    alike = Alike("", (b"data: ", b"\n\n"), (b'{"a":"', b'"}'))
    event = b'data: {"a":"' + text + b'"}\n\n'
    alone, among = alike.read(event, 0, limit), alike.read(event + event, 0, limit)
    assert (alone is None) == (among is None)
    if alone is not None and among is not None:
        assert (alone.stops, alone.sizes) == (among.stops[:1], among.sizes[:1])
        assert alone.said == among.said[: among.sizes[0]]
        assert alone.raw == among.raw[: among.stops[0]]


@pytest.mark.parametrize("said", ["c", "id", "index", "content", "choices"])
def test_a_text_that_is_a_key_or_another_value_too_is_no_pattern(said: str) -> None:
    events = [event(content=said), event(content="sec"), event(content="ret and what comes behind it")]
    assert contents(watched(*events, END)) == said + "[x] and what comes behind it"


def test_another_field_in_the_same_place_is_read() -> None:
    events = [event(content="abc"), event(refusal="sec"), event(refusal="ret and what comes behind it")]
    out = watched(*events, END)
    assert b"secret" not in out
    assert b'"sec"' not in out


def test_a_character_that_json_forbids_is_unreadable() -> None:
    bad = event(content="PLACE").replace(b"PLACE", b"a\x01b")
    watch = Watch(SHAPES["chat"], Everything("secret"), True)
    assert watch.feed(event(content="abc") + bad + event(content="more") + END, True) == b""
    assert watch.responds is not None  # nothing was sent yet
    assert watch.responds.message == "unreadable"


def test_an_event_that_is_none_to_a_client_is_no_part_of_the_text() -> None:
    """A byte order mark is one at the beginning of a stream alone; anywhere else it makes a field nobody knows."""
    mark = b"\xef\xbb\xbf"
    events = [
        mark + event(content="hello "),
        b"id: 1\n" + event(content="sec"),
        mark + event(content="and"),
        b"id: 2\n" + event(content="ret and what comes behind it"),
    ]
    assert contents(watched(*events, END).replace(b"id: 1\n", b"").replace(b"id: 2\n", b"")) == (
        "[x] and what comes behind it"  # the first and the third begin with the mark
    )


def test_what_alike_events_say_of_their_answer_is_in_its_cut() -> None:
    def said(text: str, tokens: int) -> bytes:
        candidate = {"content": {"parts": [{"text": text}]}, "index": 0}
        return b"data: " + orjson.dumps({"candidates": [candidate], "usageMetadata": {"n": tokens}}) + b"\n\n"

    watch = Watch(SHAPES["gemini"], Everything("secret"), True)
    long = "that goes on and on and on"
    first = b"".join((said(long, 1), b"id: 1\n" + said(long, 2), said(long, 1), said(long, 1)))
    asyncio.run(fed(watch, first))
    out = asyncio.run(fed(watch, b"data: no JSON\n\n"))
    assert orjson.loads(out.split(b"\n\n")[-2][6:])["usageMetadata"] == {"n": 1}
