"""What selectors have learned: it decays, it adds up, replicas share it, and it waits while the store is away."""

from __future__ import annotations

import random

import pytest

from signals.reading import Unavailable
from signals.state.standing import PASSING, SPAN, Standing, Standings
from signals.state.store import Memory, Valkey
from tests.signals.state.test_store import Server, eventually, needs_server, server  # noqa: F401 - a fixture

DAY = 86_400.0


class Clock:
    def __init__(self) -> None:
        self.now = 1.8e9

    def __call__(self) -> float:
        return self.now


def standing(store: object = None, clock: Clock | None = None) -> Standing:
    return Standing(store or Memory(), "test", 2, DAY, clock or Clock())  # type: ignore[arg-type]


def read(made: Standing, key: str = "a") -> list[float]:
    found = made.of(key)
    return [] if found is None else [float(value) for value in found]


def test_what_was_added_halves_with_each_half_life() -> None:
    clock = Clock()
    made = standing(clock=clock)
    assert made.of("a") is None
    made.add("a", (1.0, 4.0))
    made.add("a", (1.0, 2.0))
    assert read(made) == pytest.approx([2.0, 6.0])
    clock.now += DAY
    assert read(made) == pytest.approx([1.0, 3.0])
    made.add("a", (1.0, 0.0))
    assert read(made) == pytest.approx([2.0, 3.0])
    assert made.all() == {"a": pytest.approx([2.0, 3.0])}


def test_it_is_the_same_wherever_the_landmark_moves() -> None:
    """Against plain decay, over half a year: the landmark moves every month."""
    clock, chance = Clock(), random.Random(1)
    made, plain = standing(clock=clock), 0.0
    for _ in range(400):
        days = chance.expovariate(2.0)
        clock.now += days * DAY
        plain = plain * 0.5**days + 1.0
        made.add("a", (1.0, 0.0))
        assert read(made)[0] == pytest.approx(plain, rel=1e-6)
    clock.now += 10 * SPAN * DAY
    assert read(made)[0] == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize("amounts", [(1.0,), (1.0, 2.0, 3.0), (float("nan"), 0.0), (0.0, float("inf"))])
def test_what_is_no_vector_of_numbers_is_not_taken(amounts: tuple[float, ...]) -> None:
    made = standing()
    with pytest.raises(ValueError, match="2 numbers"):
        made.add("a", amounts)
    assert made.of("a") is None


def test_a_name_has_one_standing_in_a_store() -> None:
    standings, store = Standings(), Memory()
    assert standings.of(store, "a", 2, DAY) is standings.of(store, "a", 2, DAY)
    assert standings.of(store, "a", 2, DAY) is not standings.of(Memory(), "a", 2, DAY)
    assert standings.of(store, "b", 3, DAY) is standings.known()["b"]


@needs_server
async def test_replicas_come_to_the_same_sums(server: Server) -> None:  # noqa: F811
    clock, chance = Clock(), random.Random(2)
    stores = [Valkey(server.url, timeout=2), Valkey(server.url, timeout=2)]
    one, two = (Standing(store, "test", 2, DAY, clock) for store in stores)
    whole = standing(clock=clock)
    for _ in range(100):
        clock.now += chance.expovariate(1e-4)
        amounts = (1.0, chance.random())
        key = chance.choice(["a", "b: with a colon"])
        chance.choice([one, two]).add(key, amounts)
        whole.add(key, amounts)
    for made in (one, two, one):
        await made.share()
    for made in (one, two):
        assert made.all() == {key: pytest.approx(sums, rel=1e-9) for key, sums in whole.all().items()}
    for made in (one, two):
        await made.share()
    assert read(one) == pytest.approx(read(whole)), "what was told is not told again"
    for store in stores:
        await store.close()


@needs_server
async def test_what_was_learned_while_the_store_was_away_is_told_later(server: Server) -> None:  # noqa: F811
    store, clock = Valkey(server.url, timeout=0.5), Clock()
    made = Standing(store, "test", 2, DAY, clock)
    server.kill()
    made.add("a", (1.0, 0.0))
    with pytest.raises(Unavailable):
        await made.share()
    assert read(made) == pytest.approx([1.0, 0.0]), "it counts here all the same"
    server.start()

    async def told() -> bool:
        try:
            await made.share()
        except Unavailable:
            return False
        return True

    assert await eventually(told)
    other = Standing(store, "test", 2, DAY, clock)
    await other.share()
    assert read(other) == pytest.approx([1.0, 0.0])
    await store.close()


@needs_server
async def test_sums_are_fetched_when_they_have_changed(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    clock, stores = Clock(), [Valkey(server.url, timeout=30.0), Valkey(server.url, timeout=30.0)]
    one, two = (Standing(store, "test", 2, DAY, clock) for store in stores)
    fetched, gathered = [], Valkey.gathered

    async def seen(self: Valkey, key: str) -> dict[str, float]:
        fetched.append(key)
        return await gathered(self, key)

    monkeypatch.setattr(Valkey, "gathered", seen)
    one.add("a", (1.0, 0.0))
    await one.share()
    await two.share()
    before, pulls = len(fetched), two.pulls
    for made in (one, two, two):
        await made.share()
    assert (len(fetched), two.pulls) == (before, pulls), "nobody has added anything"
    one.add("a", (1.0, 0.0))
    await one.share()
    await two.share()
    assert read(two) == pytest.approx([2.0, 0.0])
    await one.forget()
    await two.share()
    assert two.of("a") is None
    for store in stores:
        await store.close()


def test_of_standings_that_come_and_go_the_last_used_stay() -> None:
    standings, store = Standings(), Memory()
    first, second = (standings.passing(store, name, 2, DAY) for name in ("first", "second"))
    for number in range(PASSING - 1):
        standings.passing(store, f"n{number}", 2, DAY)
        assert standings.passing(store, "first", 2, DAY) is first
    assert standings.passing(store, "second", 2, DAY) is not second
