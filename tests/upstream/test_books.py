"""The books of an answer: every request is paid once, counted or not."""

from __future__ import annotations

import pytest

from upstream.books import Books, Open
from upstream.endpoint import Endpoint
from upstream.usage import Spent, TokenCounts, Usage, read

ENDS = {
    "small": Endpoint("http://s", "tiny", price_input=1.0, price_output=2.0),
    "large": Endpoint("http://l", "huge", price_input=10.0, price_output=20.0),
}


def books() -> Books:
    return Books(ENDS, lambda: 100)


def test_what_the_upstream_counts_is_what_is_paid() -> None:
    each = books()
    each.asked("small")
    each.stream(Open("small", 10, received=6), used=5, counts=TokenCounts(60, 7))
    each.asked("large")
    each.aside("large", TokenCounts(80, 1))
    assert each.cost() == pytest.approx((60 * 1 + 7 * 2 + 80 * 10 + 1 * 20) / 1e6)
    assert each.written == 8
    assert each.prompt_tokens("small", 10) == 60  # learnt: 50 for the question, and the prefix
    assert each.prompt_tokens("large", 10) == 60  # nearer than a guess by the question's length
    each.stream(Open("large", 0, received=0), used=0, counts=TokenCounts(0, 0))
    assert (each.prompt_tokens("small", 10), each.prompt_tokens("large", 10)) == (60, 10)
    usage = each.usage({"strategy": "x"})
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (140, 8, 148)
    ours = usage["pointsman"]
    assert list(ours) == ["strategy", "models", "cost", "estimated"]
    assert ours["models"]["small"] == {
        "requests": 1, "prompt_tokens": 60, "completion_tokens": 7, "discarded_tokens": 1,
    }  # fmt: skip
    assert ours["models"]["large"]["discarded_tokens"] == 1
    assert (ours["cost"], ours["estimated"]) == (round(each.cost(), 9), False)


def test_what_nobody_counts_is_estimated_and_said_to_be() -> None:
    each = books()
    each.stream(Open("small", 10, received=6), used=6, counts=None)
    assert each.cost() == pytest.approx((110 * 1 + 6 * 2) / 1e6)
    assert each.usage({})["pointsman"]["estimated"] is True
    # A later request that is counted says what the earlier one must have been.
    each.stream(Open("small", 0, received=1), used=1, counts=TokenCounts(20, 1))
    assert each.cost() == pytest.approx((20 + 20 + 10 + 7 * 2) / 1e6)


def test_a_request_beside_the_answer_is_estimated_until_it_is_counted() -> None:
    each = books()
    each.begun("large", 10)
    assert each.cost() == pytest.approx(110 * 10 / 1e6)
    assert each.usage({})["pointsman"]["models"]["large"]["requests"] == 1
    assert each.usage({})["pointsman"]["estimated"] is True
    each.ended("large", 10)
    each.aside("large", TokenCounts(80, 1))
    assert each.cost() == pytest.approx((80 * 10 + 1 * 20) / 1e6)
    assert each.usage({})["pointsman"]["estimated"] is False


def test_the_request_under_way_is_paid_as_far_as_it_has_come() -> None:
    each = books()
    under_way = Open("large", 10, received=3)
    assert each.cost() == 0
    assert each.cost(under_way) == pytest.approx((110 * 10 + 3 * 20) / 1e6)
    assert each.usage({}, under_way)["pointsman"]["cost"] == round(each.cost(under_way), 9)


def test_tokens_of_the_cache_have_their_prices() -> None:
    end = Endpoint("http://s", "m", price_input=10, price_output=20, price_cached=1, price_written=12.5)
    each = Books({"m": end}, lambda: 100)
    each.stream(Open("m", 0, received=2), used=2, counts=TokenCounts(100, 2, cached=60, written=30))
    each.aside("m", TokenCounts(100, 1, cached=100))
    money = (10 * 10 + 60 * 1 + 30 * 12.5 + 2 * 20 + 100 * 1 + 1 * 20) / 1e6
    assert each.cost() == pytest.approx(money)
    assert each.spent() == Spent(200, 3, each.cost(), 160, None, 30)
    usage = each.usage({})
    assert usage["prompt_tokens_details"] == {"cached_tokens": 160, "cache_write_tokens": 30}
    assert read(usage) == Usage(200, 3, 160, None, 30)  # as a gateway reads what a writer says
    assert end.most(100, 2) == pytest.approx((100 * 12.5 + 2 * 20) / 1e6)
