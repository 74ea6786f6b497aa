"""`cheapest`: the price of the call, and the context that must hold it."""

from __future__ import annotations

import pytest

from decisions.model import Model
from decisions.selectors.cheapest import CONTEXT, PRICE, Cheapest
from tests.decisions.selectors.help import LARGE, OPEN, SMALL, facts, selector


@pytest.mark.parametrize(
    ("text", "fields", "model"),
    [
        ("hi", {}, SMALL),
        ("word " * 1500, {}, LARGE),
        ("hi", {"max_tokens": 5000}, LARGE),
        ("hi", {"max_tokens": True}, SMALL),
        ("hi", {"max_completion_tokens": 0, "max_output_tokens": 20_000}, OPEN),
        ("word " * 100_000, {}, OPEN),
    ],
)
def test_the_cheapest_model_that_holds_the_request(text: str, fields: dict[str, object], model: Model) -> None:
    assert selector(Cheapest, OPEN, LARGE, SMALL).choose(facts(text, **fields)) == (model, PRICE, 1.0, "cheapest")


def test_prices_beyond_all_numbers_are_prices_all_the_same() -> None:
    dear = [Model(key, key, 1.7e308, 1.7e308) for key in ("dear", "dearest")]
    assert selector(Cheapest, *dear).choose(facts("word " * 9_000_000)).model is dear[0]


def test_when_none_holds_it_the_largest_context_takes_it() -> None:
    assert selector(Cheapest, SMALL, LARGE).choose(facts("word " * 100_000)) == (LARGE, CONTEXT, 1.0, "cheapest")
