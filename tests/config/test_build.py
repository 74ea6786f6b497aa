"""What engines of one process share, and what goes with the last of them."""

from __future__ import annotations

import gc
import weakref

import pytest

from config.build import build
from config.load import parse
from config.resources import Resources
from signals.neural.heads import Heads
from signals.neural.service import Inference
from signals.neural.shipped import Shipped
from tests.conftest import load_anew

POLICY = """\
version: 1
models: {small: {name: s}}
default: small
signals: {attack: {jailbreak: {at_least: %s}}}
decisions: [{name: guard, when: attack, respond: {status: 403}}]
"""


def shipped(least: float, resources: Resources) -> Shipped:
    engine = build(parse(POLICY % least), resources)
    return next(made for made in engine.shared._made.values() if isinstance(made, Shipped))


@pytest.mark.slow
def test_a_reload_takes_the_model_that_is_loaded_and_the_last_engine_takes_it_away(monkeypatch) -> None:
    monkeypatch.setattr(Inference, "loaded", load_anew)
    loaded: list[weakref.ref[Heads]] = []
    init = Heads.__init__

    def noted(self: Heads) -> None:
        loaded.append(weakref.ref(self))
        init(self)

    monkeypatch.setattr(Heads, "__init__", noted)
    resources = Resources()
    first, second = shipped(0.8, resources), shipped(0.9, resources)
    assert first is not second
    assert first.model is second.model
    assert first.service.meter is second.service.meter is resources.inference.meter("shipped")
    other = shipped(0.9, Resources())
    assert other.model is not first.model
    assert other.service.meter is not first.service.meter
    first.close()
    del first
    gc.collect()
    assert [model() is not None for model in loaded] == [True, True]
    second.close()
    del second
    gc.collect()
    assert [model() is not None for model in loaded] == [False, True]
