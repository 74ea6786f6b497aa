"""One reader of `usage` for every API; what it cannot read is not said, and never a guess."""

from __future__ import annotations

from typing import Any

import pytest

from upstream.usage import Usage, counts, last, read


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 0}, (3, 0)),
        ({"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 9}, (3, 4)),
        ({"prompt_tokens": 3}, (3, None)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": "3", "completion_tokens": 4.0}, (None, None)),
        ({"prompt_tokens": None, "input_tokens": 5}, (5, None)),
        (None, (None, None)),
        ([1, 2], (None, None)),
    ],
)
def test_what_one_object_says(said: Any, found: tuple[int | None, int | None]) -> None:
    assert read(said) == Usage(*found)
    assert counts(said) == (None if None in found else found)


def test_the_last_object_counts_and_an_earlier_one_fills_its_gaps() -> None:
    first, second = b'{"usage": {"input_tokens": 11, "output_tokens": 1}}', b'{"usage": {"output_tokens": 7}}'
    assert last(first + b'{"usage": null}' + second + b'"usage": {')[0] == (11, 7)
    assert last(b"nothing") == ((None, None), None)


@pytest.mark.parametrize(
    ("end", "money"),
    [
        (b'"usage": {"prompt_tokens": 1, "pointsman": {"cost": 0.25}}', 0.25),
        (b'"usage": {"pointsman": {"cost": 0}}', 0.0),
        (b'"usage": {"pointsman": {"cost": 1}} "usage": {"prompt_tokens": 2}', 1.0),
        (b'"usage": {"pointsman": {"cost": -1}}', None),
        (b'"usage": {"pointsman": {"cost": true}}', None),
        (b'"usage": {"pointsman": 3}', None),
        (b'"usage": {"prompt_tokens": 1}', None),
    ],
)
def test_what_a_writer_s_answer_has_cost(end: bytes, money: float | None) -> None:
    assert last(end, True)[1] == money
    assert last(end)[1] is None
