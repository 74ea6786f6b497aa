"""`load`: what this replica has seen of a model lately."""

import pytest

from signals.facts import Facts
from signals.reading import Reading
from signals.registry import BY_NAME
from signals.request import Request
from signals.services import Services
from signals.signal import Shared
from signals.state.gauges import HALF_LIFE_S, Loads

FACTS = Facts(Request("chat", b"", {}, None, ()))


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr("signals.state.gauges.time.monotonic", lambda: now[0])
    return now


@pytest.fixture
def loads(clock):
    return Loads()


def load(loads, **params):
    kind = BY_NAME["load"]
    return kind("l", kind.Parameters.model_validate({"model": "large", **params}), Shared(Services(loads=loads)))


def test_it_counts_who_waits(loads):
    signal = load(loads, waiting={"at_least": 2})
    loads.of("large").started()
    assert signal.read(FACTS) == Reading(False, 1.0)
    loads.of("large").started()
    assert signal.read(FACTS) == Reading(True, 2.0)
    loads.of("large").ended(None, False)
    assert signal.read(FACTS).matched is False


def test_averages_are_unknown_without_traffic_and_fade(loads, clock):
    signal = load(loads, error_rate={"at_least": 0.5})
    assert signal.read(FACTS).error == "no_traffic"
    for failed in (True, True, False):
        loads.of("large").started()
        loads.of("large").ended(0.2, failed)
    assert signal.read(FACTS).matched is True
    clock[0] += 10 * HALF_LIFE_S
    assert signal.read(FACTS).error == "no_traffic"


def test_recent_answers_weigh_more(loads, clock):
    gauge = loads.of("large")
    for seconds in (1.0, 3.0):
        gauge.started()
        gauge.ended(seconds, False)
        clock[0] += HALF_LIFE_S
    assert gauge.first_byte == pytest.approx((1.0 * 0.5 + 3.0) / 1.5)


def test_all_bounds_must_hold_and_a_false_one_settles_it(loads):
    signal = load(loads, waiting={"at_least": 1}, first_byte={"at_least": 1.0})
    assert signal.read(FACTS) == Reading(False, 0.0)
    loads.of("large").started()
    assert signal.read(FACTS).error == "no_traffic"
    loads.of("large").started()
    loads.of("large").ended(2.0, False)
    assert signal.read(FACTS).matched is True


def test_a_bound_is_needed():
    with pytest.raises(ValueError, match="one of waiting"):
        load(Loads())
