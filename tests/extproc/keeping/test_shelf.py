"""Where answers are kept: in memory by bytes, and in a real Valkey that comes and goes."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from extproc.keeping.key import Key
from extproc.keeping.shelf import LONG, KeptAnswer, MemoryShelf, ShelfPlace, StoreShelf, packed, unpacked
from signals.reading import Unavailable
from signals.state.store import Memory as Texts
from signals.state.store import Valkey
from tests.extproc.keeping.test_keeper import ANSWERS, POLICY, answer, ask, body, given, world
from tests.signals.state.test_store import Server, needs_server, server  # noqa: F401

ONE = ShelfPlace("faq", Key("a" * 64, "b" * 32))
KEPT = KeptAnswer(b'{"a": 1}' * 100, 1000.5)


async def test_memory_forgets_what_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, now = MemoryShelf(10_000), [5.0]
    monkeypatch.setattr("extproc.keeping.shelf.time.monotonic", lambda: now[0])
    await memory.put(ONE, KEPT, 10.0)
    await memory.put(ONE, KEPT, 10.0)
    assert memory.bytes == len(KEPT.body) + 600
    assert await memory.get(ONE) == KEPT
    now[0] += 10
    assert await memory.get(ONE) is None
    assert (memory.bytes, len(memory)) == (0, 0)
    await memory.put(ONE, KeptAnswer(b"x" * 10_000, 1.0), 10.0)
    assert len(memory) == 0


async def test_what_is_kept_elsewhere_comes_back_as_it_was() -> None:
    shelf = StoreShelf(Texts(), 10_000)
    assert await shelf.get(ONE) is None
    await shelf.put(ONE, KEPT, 10.0)
    assert await shelf.get(ONE) == KEPT
    assert await shelf.get(ShelfPlace("faq", Key("c" * 64, "b" * 32))) is None
    other = ShelfPlace("faq", Key("d" * 64, "e" * 32))
    await shelf.put(other, KEPT, 10.0)
    assert await shelf.drop("fa", None) == 0
    assert await shelf.drop("faq", "e" * 32) == 1
    assert await shelf.drop("faq", None) == 1


async def test_a_long_answer_is_packed_and_unpacked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    at_work: list[threading.Thread] = []

    def watched(work: Callable[..., Any]) -> Callable[..., Any]:
        def done(*given: Any) -> Any:
            at_work.append(threading.current_thread())
            return work(*given)

        return done

    monkeypatch.setattr("extproc.keeping.shelf.packed", watched(packed))
    monkeypatch.setattr("extproc.keeping.shelf.unpacked", watched(unpacked))
    shelf = StoreShelf(Texts(), 2**20)
    for kept in (KEPT, KeptAnswer(random.Random(1).randbytes(2 * LONG), 2.0)):
        await shelf.put(ONE, kept, 10.0)
        assert await shelf.get(ONE) == kept
    assert [thread is threading.main_thread() for thread in at_work] == [True, True, False, False]


def test_what_we_did_not_write_is_not_there() -> None:
    good = packed(KEPT)
    assert unpacked(good, 10_000) == KEPT
    assert len(good) < len(KEPT.body) / 2
    bomb = packed(KeptAnswer(b"\0" * 100_000_000, 1.0))
    assert unpacked(bomb, 10_000) is None
    for bad in (
        "",
        "x",
        "1000.5",
        good[:-5],
        good[:30] + "AAAA" + good[34:],
        good.replace("1000.500", "nan"),
        "x" + good,
        "1 é",
    ):
        assert unpacked(bad, 10_000) is None, bad


@pytest.mark.slow
@needs_server
async def test_valkey_keeps_for_its_time_and_drops_by_scope(server: Server) -> None:  # noqa: F811
    store = Valkey(server.url, timeout=1.0)
    shelf = StoreShelf(store, 10_000)
    await shelf.put(ONE, KEPT, 60.0)
    assert await shelf.get(ONE) == KEPT
    names = await store._client.keys("*")
    assert names == [f"pointsman:cache:faq:{'b' * 32}:{'a' * 64}"]
    assert 50_000 < await store._client.pttl(names[0]) <= 60_000
    for number in range(2500):
        await store.keep(f"cache:bulk:{'c' * 32}:{number}", "1 x", 60.0)
    assert await shelf.drop("b*k", "c" * 32) == 2500
    assert await shelf.drop("f?q", None) == 0
    assert await shelf.drop(None, "b" * 32) == 1
    server.kill()
    with pytest.raises(Unavailable):
        await shelf.drop(None, None)
    await store.close()


@pytest.mark.e2e
@needs_server
async def test_no_request_fails_while_valkey_dies_under_load_and_comes_back(server: Server, tmp_path: Path) -> None:  # noqa: F811
    stored = f"settings: {{store: {{url: '{server.url}', timeout: 5s}}, cache: {{where: store}}, "
    one, two = (world(POLICY.replace("settings: {", stored)) for _ in range(2))  # two workers share it
    results: list[str] = []

    async def call(number: int) -> None:
        service = (one, two)[number % 2]
        envoy = await ask(service, body(seed=number // 4 % 5))
        found = given(envoy)
        if found is None:
            told = answer(envoy, orjson.dumps(ANSWERS["chat"]))
            assert told == "miss"
            results.append("miss")
        else:
            assert orjson.loads(found[1]) == ANSWERS["chat"]
            results.append("hit")
        await asyncio.sleep(0.002)

    for number in range(40):
        await call(number)
        await asyncio.gather(*one.keeper._writing, *two.keeper._writing)
    assert results.count("miss") <= 10  # one each where the other's answer was not written yet
    assert results[-8:] == ["hit"] * 8
    hits = results.count("hit")
    loop = asyncio.get_running_loop()
    killing = loop.run_in_executor(None, server.kill)
    await asyncio.gather(*(call(number) for number in range(200)))
    await killing
    for number in range(40):
        await call(number)
    assert len(results) == 280
    assert results[-8:] == ["miss"] * 8
    assert one.engine.settings.cache.store is not None
    assert one.engine.settings.cache.store.counts()["failures"] > 0
    server.start()
    await asyncio.sleep(1.1)  # a store that was away is left alone for a second
    for number in range(40):
        await call(number)
        await asyncio.gather(*one.keeper._writing, *two.keeper._writing)
    assert results[-8:] == ["hit"] * 8
    assert results.count("hit") > hits
    assert not one.failures
    assert not two.failures
    for service in (one, two):
        assert service.engine.settings.cache.store is not None
        await service.engine.settings.cache.store.close()
        await service.engine.store.close()
