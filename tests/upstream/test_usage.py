"""One reader of `usage` for every API; what it cannot read is not said, and never a guess."""

from __future__ import annotations

from typing import Any

import pytest

from upstream.usage import TokenCounts, Usage, counts, last, read, timed


@pytest.mark.parametrize(
    ("said", "found"),
    [
        ({"prompt_tokens": 3, "completion_tokens": 0}, (3, 0)),
        ({"input_tokens": 3, "output_tokens": 4, "cache_read_input_tokens": 9}, (12, 4)),
        ({"prompt_tokens": 3}, (3, None)),
        ({"prompt_tokens": -1, "completion_tokens": True}, (None, None)),
        ({"prompt_tokens": "3", "completion_tokens": 4.0}, (None, None)),
        ({"prompt_tokens": None, "input_tokens": 5}, (5, None)),
        (None, (None, None)),
        ([1, 2], (None, None)),
    ],
)
def test_what_one_object_says(said: Any, found: tuple[int | None, int | None]) -> None:
    assert read(said)[:2] == found
    both = counts(said)
    assert (both if both is None else both[:2]) == (None if None in found else found)


def test_the_last_object_counts_and_an_earlier_one_fills_its_gaps() -> None:
    first, second = b'{"usage": {"input_tokens": 11, "output_tokens": 1}}', b'{"usage": {"output_tokens": 7}}'
    assert last(first + b'{"usage": null}' + second + b'"usage": {')[0][:2] == (11, 7)
    assert last(b"nothing") == (Usage(None, None), None)


@pytest.mark.parametrize(
    ("said", "found"),
    [
        (
            {
                "prompt_tokens": 100,
                "completion_tokens": 50,
                "prompt_tokens_details": {"cached_tokens": 80},
                "completion_tokens_details": {"reasoning_tokens": 30},
            },
            Usage(100, 50, 80, 30),
        ),
        (
            {
                "input_tokens": 100,
                "output_tokens": 50,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens_details": {"reasoning_tokens": 50},
            },
            Usage(100, 50, 0, 50),
        ),
        # Anthropic counts what it read from its cache, and what it wrote there, beside `input_tokens`.
        (
            {
                "input_tokens": 3,
                "cache_read_input_tokens": 80,
                "cache_creation_input_tokens": 10,
                "output_tokens": 5,
            },
            Usage(93, 5, 80, written=10),
        ),
        ({"input_tokens": 3, "cache_read_input_tokens": 0, "output_tokens": 5}, Usage(3, 5, 0)),
        ({"input_tokens": 3, "cache_creation_input_tokens": 4, "output_tokens": 5}, Usage(7, 5, written=4)),
        # Some gateways give OpenAI's counts and Anthropic's beside them.
        (
            {
                "prompt_tokens": 2006,
                "completion_tokens": 5,
                "prompt_tokens_details": {"cached_tokens": 1920},
                "cache_read_input_tokens": 1920,
                "cache_creation_input_tokens": 0,
            },
            Usage(2006, 5, 1920, written=0),
        ),
        # OpenRouter and LiteLLM put it among OpenAI's details.
        (
            {"prompt_tokens": 9, "completion_tokens": 1, "prompt_tokens_details": {"cache_write_tokens": 4}},
            Usage(9, 1, written=4),
        ),
        (
            {"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 6, "cache_creation_tokens": 99}},
            Usage(9, None, 6, written=3),
        ),
        # Details are parts of OpenAI's count, also where it is called `input_tokens`.
        (
            {
                "input_tokens": 100,
                "output_tokens": 5,
                "input_tokens_details": {"cached_tokens": 10, "cache_write_tokens": 80},
            },
            Usage(100, 5, 10, written=80),
        ),
        ({"output_tokens": 5, "cache_read_input_tokens": 4}, Usage(None, 5, 4)),
        (
            {
                "promptTokenCount": 100,
                "cachedContentTokenCount": 60,
                "candidatesTokenCount": 5,
                "thoughtsTokenCount": 7,
            },
            Usage(100, 12, 60, 7),
        ),
        ({"prompt_tokens": 9, "completion_tokens": 1, "prompt_cache_hit_tokens": 4}, Usage(9, 1, 4)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": 99}}, Usage(9, None, 9)),
        ({"prompt_tokens": 9, "prompt_tokens_details": {"cached_tokens": "7"}}, Usage(9, None)),
        ({"prompt_tokens": 9, "prompt_tokens_details": [1]}, Usage(9, None)),
    ],
)
def test_cached_and_reasoning_tokens_of_every_api(said: Any, found: Usage) -> None:
    assert read(said) == found


def test_cached_tokens_belong_to_the_prompt_that_is_taken() -> None:
    start = b'{"usage": {"input_tokens": 11, "cache_read_input_tokens": 5, "output_tokens": 1}}'
    assert last(start + b'{"usage": {"output_tokens": 7}}')[0] == Usage(16, 7, 5)


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


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({"prompt_n": 12, "cache_n": 30, "predicted_n": 5, "prompt_ms": 1.5}, TokenCounts(42, 5, 30)),
        ({"prompt_n": 12, "predicted_n": 0}, TokenCounts(12, 0)),
        ({"prompt_n": -1, "predicted_n": 0}, None),
        ({"prompt_n": 12}, None),
        ({"prompt_n": True, "predicted_n": 1}, None),
        ("soon", None),
        (None, None),
    ],
)
def test_llama_cpp_s_timings_are_counts_too(said: object, counted: TokenCounts | None) -> None:
    assert timed(said) == counted
