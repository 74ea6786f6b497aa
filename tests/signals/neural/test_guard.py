"""A guard whose model hangs or fails refuses; an instant signal does without the model; nothing waits long."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from config.build import build
from config.load import parse
from decisions.engine import Engine
from signals.neural.shipped import Shipped
from tests.patience import PATIENCE
from tests.signals.help import request

POLICY = """
version: 1
models: {small: {name: a}, large: {name: b}}
default: small
signals:
  word: {keyword: {any: [review]}}
  attack: {jailbreak: {at_least: 0.9}}
  hard: {difficulty: {at_least: 0.99}}
decisions:
  - {name: fast, when: word, route: large}
  - {name: refuse, when: attack, on_unknown: match, respond: {status: 403, message: no}}
  - {name: hard, when: hard, route: large}
"""


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = build(parse(POLICY))
    yield made
    made.close()


def shipped(engine: Engine) -> Shipped:
    return next(made for made in engine.shared._made.values() if isinstance(made, Shipped))


async def decide(engine: Engine, text: str, patience: float = 0.3) -> tuple[str | None, float]:
    started = time.monotonic()
    trace = await engine.decide(request(text), started + patience)
    return trace.decision.name, time.monotonic() - started


def refused(engine: Engine, reason: str) -> float:
    return sum(
        sample.value
        for sample in engine.shared.services.inference.samples()
        if sample.name == "pointsman_inference_refused_total"
        and sample.labels == {"model": "shipped", "reason": reason}
        if isinstance(sample.value, (int, float))
    )


async def test_a_healthy_model_lets_pass(engine: Engine) -> None:
    assert (await decide(engine, "What is the capital of Peru?", 60))[0] is None


async def test_an_instant_signal_leaves_the_model_alone(engine: Engine) -> None:
    def never(texts: list[str]) -> list[Any]:
        raise AssertionError

    shipped(engine).service._run = never
    assert (await decide(engine, "please review this"))[0] == "fast"


def _fail(texts: list[str]) -> list[Any]:
    raise RuntimeError("corrupt")


@pytest.mark.parametrize("count", [1, 200])
async def test_a_failing_model_refuses_under_load(engine: Engine, count: int) -> None:
    shipped(engine).service._run = _fail
    names = await asyncio.gather(*(decide(engine, f"What is {n} in Peru?", 20) for n in range(count)))
    assert {name for name, _ in names} == {"refuse"}


async def test_a_hung_model_refuses_in_time_and_comes_back(engine: Engine) -> None:
    gate = threading.Event()
    healthy: Callable[[list[str]], Any] = shipped(engine).service._run

    def hang(texts: list[str]) -> Any:
        gate.wait(PATIENCE)
        return healthy(texts)

    service = shipped(engine).service
    service._run, service._hang = hang, 0.2
    before = refused(engine, "deadline") + refused(engine, "timeout")
    try:
        for _ in range(6):
            names = await asyncio.gather(*(decide(engine, "What is the capital of Peru?") for _ in range(20)))
            assert {name for name, _ in names} == {"refuse"}
            assert max(spent for _, spent in names) < 5
        assert refused(engine, "deadline") + refused(engine, "timeout") > before
    finally:
        gate.set()
    for _ in range(100):
        if (await decide(engine, "What is the capital of Peru?", 5))[0] is None:
            return
        await asyncio.sleep(0.05)
    pytest.fail("the model did not come back")
