from __future__ import annotations

from bench.signals import SIGNALS, measure, request
from signals.registry import BY_NAME


def test_the_benchmark_measures_every_instant_kind() -> None:
    spent = measure(size=200, rounds=2)
    assert spent.keys() == SIGNALS.keys() | {"the whole instant set"}
    assert min(spent.values()) > 0
    assert {kind for kind, _ in SIGNALS.values()} <= BY_NAME.keys()
    assert len(request(1000).body) == 1000
