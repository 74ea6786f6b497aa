"""A candidate policy: followed in the shadow, deciding a stable share, never in the way."""

import asyncio
import json
import threading

import pytest

from config.build import build
from config.load import parse
from config.watch import Watcher, from_sources, load
from decisions.engine import Ruleset, Settings
from extproc.requests.body import parse as parse_request
from extproc.requests.paths import Target
from extproc.serving.rollout import AT_ONCE, Rollout
from signals.facts import Facts
from signals.reading import TRUE
from signals.signal import Cost, Params, Signal
from tests.patience import PATIENCE

LIVE = """\
version: 1
models: {small: {}, large: {}}
default: small
signals: {gold: {header: {name: x-tier, in: [gold]}}}
decisions:
  - {name: gold, when: gold, route: large}
"""
CANDIDATE = LIVE.replace("in: [gold]", "in: [gold, silver]")


def request(model="auto", text="hi", **headers):
    body = {"model": model, "messages": [{"role": "user", "content": text}]}
    return parse_request(Target("chat"), headers, {}, json.dumps(body).encode())


class Rolled:
    def __init__(self, candidate=CANDIDATE, share=0.0):
        self.live, self.candidate = build(parse(LIVE)), build(parse(candidate))
        self.counted = []
        self.rollout = Rollout(self.live, self.candidate, share, self.counted.append)

    def follow(self, call):
        engine = self.rollout.choose(call)
        self.rollout.follow(engine.settle(call), call)
        return self.counted


def test_agreement_and_difference_are_counted_and_named(caplog):
    rolled = Rolled()
    with caplog.at_level("INFO", "pointsman.rollout"):
        rolled.follow(request(**{"x-tier": "gold"}))
        rolled.follow(request())
        rolled.follow(request(**{"x-tier": "silver"}))
    assert rolled.counted == ["agree", "agree", "differ"]
    (record,) = caplog.records
    assert (record.decision, record.candidate_decision) == (None, "gold")
    assert (record.model, record.candidate_model) == ("small", "large")


def test_a_model_that_the_candidate_does_not_know_is_a_difference():
    rolled = Rolled(CANDIDATE.replace("large: {}", "big: {}").replace("route: large", "route: big"))
    assert rolled.follow(request("large")) == ["differ"]


def test_the_canary_takes_its_share_and_a_session_stays_on_its_side():
    rolled = Rolled(share=0.2)
    sides = [rolled.rollout.choose(request(**{"x-session-id": f"s{n}"})) for n in range(3000)]
    again = [rolled.rollout.choose(request(**{"x-session-id": f"s{n}"})) for n in range(3000)]
    assert sides == again
    assert sum(side is rolled.candidate for side in sides) / 3000 == pytest.approx(0.2, abs=0.03)
    assert Rolled(share=1.0).rollout.choose(request()) is not rolled.live


def test_what_the_candidate_decides_itself_is_not_compared():
    assert Rolled(share=1.0).follow(request()) == []


class SlowInput:
    async def fetch(self, facts: Facts) -> bool:
        await asyncio.sleep(0.01)
        return True


class SlowSignal(Signal):
    kind = "header"
    Parameters = Params
    cost = Cost.NEURAL

    def __init__(self):
        self.name = "gold"
        self.slow = (SlowInput(),)

    def read(self, facts):
        return TRUE


def slow(rolled):
    """Make the candidate wait for its signal."""
    engine = rolled.candidate
    return type(engine)(engine.policy, engine.catalogue, Ruleset(engine.clauses, {"gold": SlowSignal()}))


async def test_slow_signals_are_waited_for_in_the_background_and_bounded():
    rolled = Rolled()
    rolled.rollout.candidate = slow(rolled)
    for _ in range(AT_ONCE + 5):
        rolled.follow(request())
    assert rolled.counted == ["skipped"] * 5
    await asyncio.sleep(0.2)
    assert rolled.counted.count("differ") == AT_ONCE


async def test_a_long_body_is_read_for_the_candidate_in_a_thread_until_its_deadline():
    rolled = Rolled()
    enough, readers = threading.Event(), []

    class Reader(SlowSignal):
        slow = ()
        reads = ("all",)

        def __init__(self):
            self.name = "gold"

        def read(self, facts):
            readers.append(threading.current_thread())
            enough.wait(PATIENCE)
            return TRUE

    def candidate(deadline):
        engine = rolled.candidate
        rules = Ruleset(engine.clauses, {"gold": Reader()})
        return type(engine)(engine.policy, engine.catalogue, rules, Settings(deadline=deadline))

    async def counted():
        await asyncio.wait_for(asyncio.gather(*rolled.rollout._tasks), PATIENCE)
        return rolled.counted

    call = request(text="x" * 300_000)
    rolled.rollout.candidate = candidate(0.2)
    try:
        assert rolled.follow(call) == []
        assert await counted() == ["agree"]  # the signal is Unknown: no decision
    finally:
        enough.set()
    rolled.rollout.candidate = candidate(PATIENCE)
    assert rolled.follow(call) == ["agree"]
    assert await counted() == ["agree", "differ"]
    assert readers
    assert threading.main_thread() not in readers


def test_a_candidate_that_breaks_disturbs_nothing(monkeypatch, caplog):
    rolled = Rolled()
    monkeypatch.setattr(rolled.candidate, "begin", lambda *_: 1 / 0)
    assert rolled.follow(request()) == ["error"]
    assert "candidate_failed" in caplog.text


def test_a_bad_candidate_does_not_keep_the_policy_from_loading(tmp_path, caplog):
    live, candidate = tmp_path / "live.yaml", tmp_path / "next.yaml"
    live.write_text(LIVE)
    candidate.write_text("version: 7")
    loaded = load(live, None, candidate)
    assert loaded.candidate is None
    assert "candidate_rejected" in caplog.text
    assert load(live, None, tmp_path / "none.yaml").candidate is None
    candidate.write_text(CANDIDATE)
    loaded = load(live, None, candidate)
    assert loaded.candidate is not None
    copied = from_sources(loaded.sources, live, candidate, loaded.resources)
    assert copied.candidate is not None
    assert copied.candidate.engine.policy == loaded.candidate.engine.policy
    loaded.close()


async def test_a_changed_candidate_is_noticed(tmp_path):
    live, candidate = tmp_path / "live.yaml", tmp_path / "next.yaml"
    live.write_text(LIVE)
    candidate.write_text(CANDIDATE)
    watcher = Watcher(live, 0.01, candidate)
    assert not await watcher.changed()
    candidate.write_text(CANDIDATE + "# changed\n")
    assert await watcher.changed()


async def test_before_a_candidate_s_slow_signal_a_shorter_body_is_read_in_a_thread_already():
    rolled = Rolled()
    readers = []

    class Reader(SlowSignal):
        slow = ()
        reads = ("all",)

        def __init__(self):
            self.name = "seen"

        def read(self, facts):
            readers.append(threading.current_thread())
            return TRUE

    engine = rolled.candidate
    signals = {"gold": SlowSignal(), "seen": Reader()}
    rules = Ruleset(engine.clauses, signals)
    rolled.rollout.candidate = type(engine)(engine.policy, engine.catalogue, rules, Settings(deadline=PATIENCE))
    assert rolled.follow(request(text="x" * 40_000)) == []
    await asyncio.wait_for(asyncio.gather(*rolled.rollout._tasks), PATIENCE)
    assert rolled.counted == ["differ"]
    assert readers
    assert threading.main_thread() not in readers
