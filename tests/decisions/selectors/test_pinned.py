"""A session stays on its model, whatever chose it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from decisions.catalogue import Catalogue
from decisions.decision import Choice
from decisions.engine import Clause, Engine, Ruleset
from decisions.model import Model
from decisions.rule import ALWAYS
from decisions.selectors.cheapest import PRICE, Cheapest
from decisions.selectors.pinned import built
from decisions.selectors.selector import STAYED, Selector
from decisions.selectors.weighted import Weighted
from signals.facts import Facts
from signals.gather import fetch
from signals.reading import Unavailable
from signals.services import Services
from signals.signal import Shared
from signals.state.store import Memory, Store
from tests.decisions.fakes import pick
from tests.decisions.selectors.help import LARGE, SMALL, facts


class Away(Memory):
    async def pin(self, key: str, value: str, ttl: float) -> str:
        raise Unavailable("store_down")


def pinned(store: Store, text: str = "hi", session: str = "s1") -> tuple[Selector, Facts]:
    small = Model("small", "small", input_price=1.0, context=100)
    large = Model("large", "large", input_price=9.0, context=100_000)
    choice = pick(Cheapest, [small, large], sticky=True)
    return built(choice, Shared(Services(store=store))), facts(text, headers={"x-session-id": session})


async def chosen(selector: Selector, facts: Facts) -> str:
    await fetch([selector], facts)
    return selector.choose(facts).model.key


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
        clause = Clause("chat", ALWAYS, "route", pick(Cheapest, selector.models, sticky=True))
        for best in (False, True):
            rules = Ruleset([clause], selectors={"chat": selector}, best=best)
            engine = Engine("p", Catalogue(models, "small"), rules)
            trace = await engine.decide(call.request, time.monotonic() + 0.05)
            assert trace.decision.model is not None
            assert trace.decision.model.key == expected


async def choice(selector: Selector, facts: Facts) -> Choice:
    await fetch([selector], facts)
    return selector.choose(facts)


async def test_the_choice_says_whether_it_is_the_session_s() -> None:
    store = Memory()
    first = await choice(*pinned(store, LONG))
    assert (first.model.key, first.why, first.by) == ("large", PRICE, "cheapest")
    later = await choice(*pinned(store))
    assert (later.model.key, later.why, later.propensity, later.by) == ("large", STAYED, 1.0, "cheapest")


async def test_a_session_s_first_choice_keeps_its_propensity() -> None:
    shared = Shared(Services(store=Memory()))
    made = built(pick(Weighted, [SMALL, LARGE], sticky=True, weights={"small": 3.0}), shared)
    for n in range(20):
        for _ in range(2):
            found = await choice(made, facts(headers={"x-session-id": f"s{n}"}))
            assert found.propensity == {"small": 0.75, "large": 0.25}[found.model.key]


async def test_the_chooser_s_slow_inputs_are_there_when_it_chooses() -> None:
    class Asked:
        async def fetch(self, facts: Facts) -> str:
            await asyncio.sleep(0)
            return "large"

    class Asking(Selector):
        name = about = "asking"
        asked = Asked()
        slow = (asked,)

        def among(self, models: Sequence[Model], facts: Facts) -> Choice:
            try:
                wanted = facts.got(self.asked)
            except Unavailable:
                wanted = "small"
            return Choice(next(model for model in models if model.key == wanted), "as told", 1.0, self.name)

    for store in (Memory(), Away()):
        made = built(pick(Asking, [SMALL, LARGE], sticky=True), Shared(Services(store=store)))
        found = await choice(made, facts(headers={"x-session-id": "s"}))
        assert (found.model.key, found.why) == ("large", "as told")
