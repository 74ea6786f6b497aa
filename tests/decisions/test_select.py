"""Selectors and the keys they spread by."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from decisions.engine import Clause, Engine
from decisions.model import Model
from decisions.rule import ALWAYS
from decisions.select import Cheapest, Pinned, Weighted, expected_tokens, fraction, request_key
from signals.facts import Facts
from signals.gather import fetch
from signals.reading import Unavailable
from signals.request import Message, Request
from signals.state.session import session_key
from signals.state.store import Memory, Store

SMALL = Model("small", "s", 1.0, 1.0, 1000)
LARGE = Model("large", "l", 2.0, 2.0, 10_000)
OPEN = Model("open", "o", 9.0, 9.0)


def facts(text: str = "hi", body: bytes = b"{}", headers: dict[str, str] | None = None, **fields: object) -> Facts:
    messages = (Message("system", "You help."), Message("user", text))
    return Facts(Request("chat", body, fields, "auto", messages, headers or {}))


def spread(selector: Weighted, count: int = 4000) -> Counter[str]:
    return Counter(selector.choose(facts(headers={"x-request-id": str(n)})).key for n in range(count))


def test_shares_are_the_weights() -> None:
    shares = spread(Weighted([SMALL, LARGE], {"small": 9, "large": 1}, False))
    assert 0.08 < shares["large"] / 4000 < 0.12
    even = spread(Weighted([SMALL, LARGE], {}, False))
    assert 0.46 < even["large"] / 4000 < 0.54


def test_a_weight_of_zero_gets_nothing() -> None:
    assert spread(Weighted([SMALL, LARGE], {"small": 0}, False), 200) == {"large": 200}


def test_adding_a_model_moves_only_what_must_move() -> None:
    before = Weighted([SMALL, LARGE], {}, False)
    after = Weighted([SMALL, LARGE, OPEN], {}, False)
    for n in range(500):
        asked = facts(headers={"x-request-id": str(n)})
        assert after.choose(asked) in (before.choose(asked), OPEN)


def test_sticky_keeps_a_conversation_on_its_model() -> None:
    sticky = Weighted([SMALL, LARGE], {}, True)
    chosen = {sticky.choose(facts(headers={"x-session-id": "one", "x-request-id": str(n)})) for n in range(50)}
    assert len(chosen) == 1
    several = {sticky.choose(facts(headers={"x-session-id": str(n)})) for n in range(50)}
    assert len(several) == 2


def test_the_session_key_is_found_where_clients_put_it() -> None:
    def key(headers: dict[str, str] | None = None, **fields: object) -> str:
        return session_key(facts(headers=headers, **fields).request)

    def named(name: str) -> str:
        return key({"x-session-id": name})

    assert key({"x-session-id": "h"}, user="u") == named("h")
    assert key(metadata={"session_id": "m"}, user="u") == named("m")
    assert key(metadata={"other": 1}, prompt_cache_key="p", user="u") == named("p")
    assert key(user="u") == named("u")
    assert key(user="", metadata=3) == session_key(facts().request)
    assert len({named("h"), named("m"), named("p"), named("u"), key(), key(user="v")}) == 6


def test_a_growing_conversation_keeps_its_key() -> None:
    first = (Message("user", "What is 2 + 2?"),)
    later = (*first, Message("assistant", "4"), Message("user", "And 3 + 3?"))
    keys = {session_key(Request("chat", b"", {}, None, messages)) for messages in (first, later)}
    assert len(keys) == 1


def test_requests_without_an_id_spread_by_their_body() -> None:
    assert request_key(facts(body=b"1").request) != request_key(facts(body=b"2").request)
    assert request_key(facts(headers={"x-request-id": "r"}).request) == "r"


def test_a_fraction_lies_between_0_and_1_and_depends_on_its_parts_alone() -> None:
    values = [fraction("a", str(n)) for n in range(1000)]
    assert all(0 < value < 1 for value in values)
    assert values == [fraction("a", str(n)) for n in range(1000)]
    assert fraction("ab", "c") != fraction("a", "bc")
    assert 0 < fraction("\ud800") < 1


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
    assert Cheapest([OPEN, LARGE, SMALL]).choose(facts(text, **fields)) is model


def test_when_none_holds_it_the_largest_context_takes_it() -> None:
    assert Cheapest([SMALL, LARGE]).choose(facts("word " * 100_000)) is LARGE


def test_output_is_priced_by_its_cap_or_like_the_input() -> None:
    tokens, output = expected_tokens(facts("word " * 100))
    assert tokens == output > 50
    assert expected_tokens(facts("word " * 100, max_tokens=7)) == (tokens, 7)
    assert SMALL.cost(1_000_000, 2_000_000) == pytest.approx(3.0)


class Away(Memory):
    async def pin(self, key: str, value: str, ttl: float) -> str:
        raise Unavailable("store_down")


def pinned(store: Store, text: str = "hi", session: str = "s1") -> tuple[Pinned, Facts]:
    small = Model("small", "small", input_price=1.0, context=100)
    large = Model("large", "large", input_price=9.0, context=100_000)
    return Pinned(Cheapest([small, large]), store), facts(text, headers={"x-session-id": session})


async def chosen(selector: Pinned, facts: Facts) -> str:
    await fetch([selector], facts)
    return selector.choose(facts).key


LONG = "word " * 200


async def test_a_pinned_session_stays_where_it_began_though_the_price_says_otherwise() -> None:
    store = Memory()
    assert await chosen(*pinned(store, LONG)) == "large"
    assert await chosen(*pinned(store)) == "large"
    assert await chosen(*pinned(store, session="s2")) == "small"


async def test_without_a_store_the_choice_is_made_anew() -> None:
    assert await chosen(*pinned(Away(), LONG)) == "large"
    assert await chosen(*pinned(Away())) == "small"


async def test_an_engine_waits_for_the_pin_and_no_longer_than_its_deadline() -> None:
    class Slow(Memory):
        async def pin(self, key: str, value: str, ttl: float) -> str:
            await asyncio.sleep(60)
            return value

    kept = Memory()
    await chosen(*pinned(kept, LONG))
    stores: list[tuple[Store, str]] = [(kept, "large"), (Slow(), "small")]
    for store, expected in stores:
        selector, call = pinned(store)
        models = {model.key: model for model in selector.models}
        clause = Clause("chat", ALWAYS, "route", selector)
        for best in (False, True):
            engine = Engine(policy="p", models=models, default="small", signals={}, clauses=[clause], best=best)
            trace = await engine.decide(call.request, time.monotonic() + 0.05)
            assert trace.decision.model is not None
            assert trace.decision.model.key == expected
