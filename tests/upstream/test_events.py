"""Server-sent events come out the same however their bytes were cut."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from upstream.events import Lines, comment, event, payload


@given(st.binary(max_size=40).map(lambda data: data.replace(b"\x00", b"\n")), st.lists(st.integers(0, 40), max_size=6))
def test_lines_are_the_same_wherever_the_bytes_were_cut(data: bytes, cuts: list[int]) -> None:
    places = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
    lines = Lines()
    found = [line for start, end in itertools.pairwise(places) for line in lines.feed(data[start:end])]
    assert all(line.endswith(b"\n") and line.count(b"\n") == 1 for line in found)
    assert lines.waiting == len(data) - len(b"".join(found))
    assert b"".join(found) + lines.flush() == data
    assert lines.waiting == 0


@pytest.mark.parametrize(
    ("line", "data"),
    [
        (b"data: {}\n", b"{}"),
        (b"data:{}\r\n", b"{}"),
        (b"\n", None),
        (b"\r\n", None),
        (b": a comment\n", None),
        (b"event: message_stop\n", None),
        (b"id: 7\n", None),
        (b"retry: 1\n", None),
    ],
)
def test_what_a_line_carries(line: bytes, data: bytes | None) -> None:
    assert payload(line) == data


@pytest.mark.parametrize("line", [b"<html>\n", b'{"error": 1}\n', b" data: {}\n"])
def test_a_line_of_no_event_stream_is_refused(line: bytes) -> None:
    with pytest.raises(ValueError, match="no event stream"):
        payload(line)


def test_what_is_written_can_be_read() -> None:
    first, blank = Lines().feed(event({"a": "b\n\nc"}))
    assert payload(first) == b'{"a":"b\\n\\nc"}'
    assert payload(blank) is None
    assert [payload(line) for line in Lines().feed(comment({"a": "b\n"}))] == [None, None]
