"""The process behind the console's playground: what it says of requests, policies and earlier decisions."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import redis

from cli.calls import RecordedCall
from cli.playground import Playground, questions
from config.build import build
from config.load import parse
from decisions.decision import Trace
from decisions.outcome import Outcome, as_object
from extproc.admin import playground
from extproc.admin.playground import Asker, PlaygroundError
from tests.extproc.live import eventually
from tests.signals.state.test_store import Server, needs_server, server  # noqa: F401

POLICY = """\
version: 1
models:
  small: {name: qwen-small, price: {input: 1, output: 1}}
  large: {name: qwen-large, price: {input: 10, output: 10}}
default: small
signals:
  code: {keyword: {any: [traceback]}}
  poem: {keyword: {any: [sonnet]}}
  gold: {header: {name: x-tier, equals: gold}}
  far: {remote: {url: "grpc://127.0.0.1:9", model: far, labels: [near, far], label: far, at_least: 0.8}}
decisions:
  - {name: no, when: gold, on_unknown: match, respond: {status: 403, message: "No."}}
  - {name: code, when: code, route: large}
  - {name: odd, when: {all: [poem, far]}, route: large}
"""


def _body(text: str, **fields: Any) -> str:
    return json.dumps({"model": "auto", "messages": [{"role": "user", "content": text}], **fields})


def _ask(policy: str = POLICY, **more: Any) -> dict[str, Any]:
    return Playground(Path("policy.yaml")).answer({"policy": policy, "in_force": POLICY, **more})


def test_a_request_is_explained_with_all_signals_and_costs():
    found = _ask(request=_body("a traceback", max_tokens=10))["explained"]
    assert (found["decision"], found["model"], found["outcome"]) == ("code", "large", "route to large (qwen-large)")
    assert [each["value"] for each in found["tree"]] == ["false", "true", "not evaluated"]
    small, large = found["costs"]
    assert (small["model"], large["model"]) == ("small", "large")
    assert large["money"] == pytest.approx(10 * small["money"])
    assert large["money"] > 0
    assert {each["where"]: each["now"] for each in found["changed"]}["model"] == "qwen-large"


def test_headers_and_paths_count_and_broken_bodies_are_told():
    found = _ask(request=_body("hi"), headers={"X-Tier": "gold"})["explained"]
    assert (found["decision"], found["status"], found["changed"]) == ("no", 403, [])
    found = _ask(request="{", path="/v1/messages")["explained"]
    assert (found["action"], found["status"]) == ("respond", 400)
    assert "404" in _ask(request="{}", path="/v1/nothing")["explained"]["outcome"]


def test_nothing_is_sent_to_another_service():
    found = _ask(request=_body("a traceback"))["explained"]["signals"]["far"]
    assert (found["matched"], found["error"]) == (None, "not_asked")


@needs_server
def test_a_trial_leaves_nothing_in_the_state_store(server: Server) -> None:  # noqa: F811
    head = "version: 1\nmodels: {small: {}, large: {}}\ndefault: small\n"
    text = head + "decisions: [{name: d, route: {pick: [small, large], by: bandit, sticky: session}}]\n"
    text += f"settings: {{store: {{url: '{server.url}'}}}}\n"
    body = json.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]})
    found = Playground(Path("policy.yaml")).answer({"policy": text, "request": body, "headers": {"x-session-id": "s"}})
    assert found["explained"]["decision"] == "d"
    with redis.Redis.from_url(server.url) as client:
        assert client.keys("*") == []


def test_problems_have_their_place_and_leave_nothing_to_explain():
    found = _ask(POLICY.replace("when: code, route", "when: kode, route"), request=_body("hi"), decisions=[])
    (problem,) = [each for each in found["problems"] if each["severity"] == "error"]
    assert (problem["code"], problem["line"]) == ("R201", 13)
    assert found["explained"] is None
    assert found["replay"] is None


def _decided(text: str, headers: dict[str, str] | None = None) -> dict[str, Any]:
    """What `/debug/decisions` shows of a request under the policy in force."""
    engine = build(parse(POLICY.encode(), "policy.yaml"))
    trace = RecordedCall(_body(text).encode(), headers or {}).begin(engine)
    assert isinstance(trace, Trace)
    return json.loads(json.dumps({"key": text, **as_object(Outcome(trace, trace.decision.model, 1))}))


def test_a_replay_tells_what_changes_what_stays_and_what_cannot_be_told():
    decisions = [_decided("hi"), _decided("a traceback"), _decided("traceback 2"), _decided("x", {"x-tier": "gold"})]

    def replayed(policy: str) -> dict[str, Any]:
        return _ask(policy, decisions=decisions)["replay"]

    same = replayed(POLICY)
    assert (same["decisions"], same["same"], same["changed"], same["untold"]) == (4, 4, 0, [])
    rerouted = replayed(POLICY.replace("when: code, route: large", "when: code, route: small"))
    change = {"before": "code → route large", "after": "code → route small", "count": 2}
    assert rerouted["changes"] == [{**change, "keys": ["a traceback", "traceback 2"]}]
    assert (rerouted["same"], rerouted["changed"]) == (2, 2)
    reworded = replayed(POLICY.replace("[traceback]", "[traceback, bug]"))
    assert reworded["untold"] == [{"why": "signal 'code' is another now", "count": 3}]
    assert reworded["same"] == 1  # the guard comes before
    unguarded = replayed(POLICY.replace("when: gold, on_unknown", "when: {not: gold}, on_unknown"))
    assert unguarded["changed"] == 3
    assert unguarded["untold"] == [{"why": "signal 'code' was not read", "count": 1}]


def test_decisions_of_other_policies_and_of_sessions_cannot_be_told():
    kept, other = {**_decided("hi"), "kept": True}, {**_decided("hi"), "policy": "sha256:other"}
    failed = {**_decided("hi"), "fallback": "deadline"}
    untold = _ask(decisions=[kept, other, failed])["replay"]["untold"]
    assert {each["why"]: each["count"] for each in untold} == {
        **{"the session kept its decision": 1, "another policy decided it": 1, "something failed": 1}
    }


def test_whoever_names_a_model_is_asked_by_guards_only():
    engine = build(parse(POLICY.encode(), "policy.yaml"))
    trace = RecordedCall(_body("a traceback", model="large").encode()).begin(engine)
    assert isinstance(trace, Trace)
    decision = {"key": "1", **as_object(Outcome(trace, trace.decision.model, 1))}
    found = _ask(POLICY + "  - {name: rest, route: large}\n", decisions=[decision])["replay"]
    assert (found["same"], found["changed"]) == (1, 0)


def test_a_bad_question_does_not_end_it():
    lines = [b"{", b"{}\n", json.dumps({"policy": POLICY, "request": _body("hi")}).encode()]
    answers = list(map(json.loads, questions(iter(lines), Path("policy.yaml"))))
    assert ["error" in each for each in answers] == [True, True, False]


ECHO = "import sys\nfor line in sys.stdin:\n    print(line, end='', flush=True)"
SLEEPER = "import time\ntime.sleep(1000)"
LEAVER = "input()"


@pytest.mark.e2e
async def test_the_process_is_started_once_and_again_after_it_has_ended(monkeypatch):
    asker = Asker([sys.executable, "-c", ECHO])
    assert await asyncio.gather(*(asker.ask({"n": n}) for n in range(5))) == [{"n": n} for n in range(5)]
    process = asker._process
    assert process is not None
    process.kill()
    process.wait()
    assert await asker.ask([1]) == [1]
    assert asker._process is not process
    monkeypatch.setattr(playground, "IDLE_S", 0.01)
    await asker.ask([2])

    async def ended() -> bool:
        return asker._process is None

    await eventually(ended)
    asker.close()


@pytest.mark.e2e
async def test_who_waits_too_long_or_among_too_many_is_told(monkeypatch):
    monkeypatch.setattr(playground, "START_S", 0.2)
    asker = Asker([sys.executable, "-c", SLEEPER])
    with pytest.raises(PlaygroundError, match="no answer within"):
        await asker.ask({})
    assert asker._process is None
    monkeypatch.setattr(playground, "START_S", 30.0)
    left = Asker([sys.executable, "-c", LEAVER])
    with pytest.raises(PlaygroundError, match="has ended"):
        await left.ask({})
    monkeypatch.setattr(playground, "WAITING", 0)
    with pytest.raises(PlaygroundError, match="too many"):
        await left.ask({})
    left.close()


@pytest.mark.e2e
async def test_an_answer_that_nobody_waits_for_is_not_given_to_the_next(monkeypatch):
    slow = "import sys, time\nfor line in sys.stdin:\n    time.sleep(0.5)\n    print(line, end='', flush=True)"
    asker = Asker([sys.executable, "-c", slow])
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(asker.ask("first"), 0.2)
    assert await asker.ask("second") == "second"
    asker.close()
