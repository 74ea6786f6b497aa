"""Sums of payers in bounded memory: never too low, whoever else pays."""

from __future__ import annotations

import gc
import random
import time
from collections import defaultdict

import pytest

from signals.state.store import Memory
from signals.state.sums import Sums


def test_a_crowd_of_payers_pushes_nobody_out_of_a_budget():
    sums = Sums(100)
    sums.put("whale", 50.0, 1e9, 0.0)
    sums.put("small", 0.5, 1e9, 0.0)
    for number in range(10_000):
        sums.put(f"made-up-{number}", sums.get(f"made-up-{number}", 1.0) + 0.001, 1e9, 1.0)
    assert sums.get("whale", 1.0) == 50.0
    assert sums.get("small", 1.0) >= 0.5
    assert len(sums) == 100
    assert 0.001 <= sums.get("new", 1.0) < 0.5


def test_no_sum_is_ever_too_low_and_none_is_too_high_by_more_than_its_share_of_all():
    chance = random.Random(7)
    sums = Sums(20)
    truth: dict[str, float] = defaultdict(float)
    for _ in range(20_000):
        key = str(min(int(chance.paretovariate(0.6)), 500))
        amount = chance.random()
        truth[key] += amount
        sums.put(key, sums.get(key, 0.0) + amount, 1e9, 0.0)
        assert len(sums) <= 21
    most = sums.get("never seen", 0.0)
    assert most <= sum(truth.values()) / 20
    for key, spent in truth.items():
        assert spent - 1e-6 <= sums.get(key, 0.0) <= spent + most + 1e-6


def test_sums_end_with_their_time_and_so_does_what_others_are_charged():
    sums = Sums(2)
    for number in range(4):
        sums.put(str(number), number + 1.0, 10.0, 0.0)
    assert sums.get("0", 9.0) == 2.0
    assert sums.get("3", 9.0) == 4.0
    assert [sums.get(key, 11.0) for key in ("0", "3", "new")] == [0.0, 0.0, 0.0]
    sums.put("later", 0.5, 30.0, 20.0)
    assert len(sums) == 1
    sums.put("second", 0.7, 30.0, 20.0)
    sums.put("third", 0.9, 30.0, 20.0)
    assert sums.get("new", 21.0) == 0.5


def test_what_is_kept_stays_bounded_over_many_periods():
    sums = Sums(50)
    for period in range(200):
        for number in range(20):
            sums.put(f"{period}-{number}", 1.0, period + 1.0, float(period))
    assert len(sums) <= 50
    assert len(sums._least) <= 100


def test_no_change_takes_long_even_when_every_sum_has_changed():
    sums = Sums(50_000)
    for number in range(50_000):
        sums.put(str(number), 1.0, 1e9, 0.0)
    for number in range(50_000):
        sums.put(str(number), 2.0, 1e9, 0.0)
    worst = 0.0
    gc.disable()  # its pauses are no work of ours
    try:
        for number in range(2_000):
            begun = time.thread_time()
            sums.put(f"new{number}", 1.5, 1e9, 0.0)
            worst = max(worst, time.thread_time() - begun)
    finally:
        gc.enable()
    assert worst < 0.02
    assert 50_000 <= len(sums) <= 51_000
    assert sums.get("0", 0.0) == 2.0


async def test_the_memory_of_one_kind_of_payer_is_no_others(monkeypatch: pytest.MonkeyPatch):
    store = Memory(limit=3)
    now = [1000.0]
    monkeypatch.setattr("signals.state.store.time.monotonic", lambda: now[0])
    store.add("budget:x-tenant:20261128:acme", 5.0, 10.0)
    for number in range(100):
        store.add(f"budget:session:20261128:{number}", 7.0, 10.0)
        await store.keep(f"pin:{number}", "small", 10.0)
    assert await store.number("budget:x-tenant:20261128:acme") == 5.0
    assert await store.number("budget:x-tenant:20261128:other") == 0.0
    assert 7.0 <= await store.number("budget:session:20261128:other") <= 100 * 7.0 / 3
    assert not await store.take("budget:session:20261128:other", 1.0, 7.5, 10.0)
    now[0] += 11
    store.add("budget:session:20261129:0", 7.0, 10.0)
    assert list(store._sums) == ["budget:session:20261129"]
