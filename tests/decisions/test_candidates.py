"""Keys that spread requests, and tokens by which they are priced."""

from __future__ import annotations

import pytest

from decisions.candidates import expected_tokens, fraction, request_key
from tests.decisions.selectors.help import SMALL, facts


def test_requests_without_an_id_spread_by_their_body() -> None:
    assert request_key(facts(body=b"1").request) != request_key(facts(body=b"2").request)
    assert request_key(facts(headers={"x-request-id": "r"}).request) == "r"


def test_a_fraction_lies_between_0_and_1_and_depends_on_its_parts_alone() -> None:
    values = [fraction("a", str(n)) for n in range(1000)]
    assert all(0 < value < 1 for value in values)
    assert values == [fraction("a", str(n)) for n in range(1000)]
    assert fraction("ab", "c") != fraction("a", "bc")
    assert 0 < fraction("\ud800") < 1


def test_output_is_priced_by_its_cap_or_like_the_input() -> None:
    tokens, output = expected_tokens(facts("word " * 100))
    assert tokens == output > 50
    assert expected_tokens(facts("word " * 100, max_tokens=7)) == (tokens, 7)
    assert SMALL.cost(1_000_000, 2_000_000) == pytest.approx(3.0)
