"""`test`: cases that pass, fail and are no cases; the gate in front of a reload."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree

import pytest

from cli.test import gate
from config.build import build
from config.load import load
from config.watch import Rejected
from tests.cli.conftest import Ran

Run = Callable[..., Ran]

PASSING = """\
cases:
  - name: gold is premium
    headers: {X-Tier: gold}
    expect: {decision: premium, model: large, action: route, headers: {x-lane: fast}}
  - name: bad is refused
    request: {model: small, messages: [{role: user, content: hi}]}
    headers: {x-bad: 1}
    expect: {decision: refuse, model: null, status: 403}
  - name: a stubbed signal
    signals: {beta: true, gold: unknown}
    expect: {decision: trial}
  - name: nothing matches
    path: /v1/messages
    expect: {decision: null, action: default, fallback: null}
  - name: an unknown model
    request: {model: gpt-9, messages: [{role: user, content: hi}]}
    expect: {status: 404}
"""


@pytest.fixture
def cases(tmp_path: Path) -> Callable[[str], Path]:
    def write(text: str) -> Path:
        path = tmp_path / "policy.cases.yaml"
        path.write_text(text)
        return path

    return write


def test_all_pass(run: Run, policy: Path, cases: Callable[[str], Path]) -> None:
    ran = run("test", policy, cases(PASSING))
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[0] == "ok    gold is premium"
    assert ran.out.splitlines()[-1] == "5 cases: 5 passed, 0 failed"


NAMED = """\
version: 1
models: {small: {}, large: {}}
default: small
signals:
  code: {keyword: {any: [traceback]}}
  gold: {header: {name: x-tier, in: [gold]}}
  german: {language: {is: [de]}}
  effort: {score: {sum: {worth: 0.5, code: 0.3}, of: matches, bands: {easy: {below: 0.4}, hard: {}}}}
rules:
  worth: {all: [code, gold]}
  rest: {not: worth}
decisions:
  - {name: worth, when: worth, route: large}
  - {name: german, when: {all: [rest, german]}, route: large}
  - {name: hard, when: {signal: effort, is: hard}, route: large}
"""
NAMED_CASES = """\
cases:
  - name: a rule is asked for
    request: {messages: [{role: user, content: "a traceback"}]}
    headers: {x-tier: gold}
    expect: {decision: worth, signals: {worth: true, rest: false, german: {matched: false, label: en}}}
  - name: a rule is stubbed
    signals: {worth: true}
    expect: {decision: worth, signals: {worth: true, rest: false, code: false, effort: {label: hard}}}
  - name: the band of a score that is stubbed
    signals: {effort: {score: 0.45}}
    expect: {decision: hard, signals: {effort: {matched: true, label: hard}}}
  - name: a rule is Unknown
    signals: {gold: unknown, code: true}
    expect: {decision: null, signals: {worth: unknown, rest: unknown}}
"""


def test_named_rules_are_stubbed_and_asked_for(run: Run, tmp_path: Path, cases: Callable[[str], Path]) -> None:
    policy = tmp_path / "named.yaml"
    policy.write_text(NAMED)
    text = "The traceback of my program is long, and I do not understand what it says about the cause."
    ran = run("test", policy, cases(NAMED_CASES.replace("a traceback", text)))
    assert (ran.status, ran.out.splitlines()[-1]) == (0, "4 cases: 4 passed, 0 failed")
    ran = run("test", policy, cases(NAMED_CASES.replace("worth: true, rest", "worth: false, rest")))
    assert ran.status == 1
    assert "signal worth: expected False, got True" in ran.out
    wrong = NAMED_CASES.replace("label: en", "label: de").replace("a traceback", text)
    assert "label of german: expected 'de', got 'en'" in run("test", policy, cases(wrong)).out
    ran = run("test", policy, cases("cases:\n  - {name: x, expect: {signals: {wort: true}}}\n"))
    assert "R201 unknown signal 'wort' (did you mean 'worth'?)" in ran.err
    unread = "cases:\n  - {name: x, path: /v1/nothing, expect: {signals: {worth: true}}}\n"
    assert "signals: nothing is read of a request" in run("test", policy, cases(unread)).out


LEARNING = """\
version: 1
models: {small: {price: {input: 1, output: 1}}, large: {price: {input: 9, output: 9}}}
default: small
signals: {hard: {header: {name: x-hard, exists: true}}}
decisions:
- {name: hard, when: hard, route: {pick: [small, large], by: cheapest}}
- {name: learned, route: {pick: [small, large], by: BY, sticky: session}}
"""


@pytest.mark.parametrize(
    "by", ["bandit: {cost: 0.3}", "ema: {explore: 1, cost: 0.3}", "pheromone: {cost: 0.3}", "elo: {cost: 0.3}"]
)
def test_what_was_learned_is_stubbed(run: Run, tmp_path: Path, cases: Callable[[str], Path], by: str) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(LEARNING.replace("BY", f"{{{by}}}"))
    text = "cases:\n"
    for number in range(8):
        for small, large, model in ((0.2, 0.9, "large"), (0.8, 0.9, "small"), (0.4, 0.5, "small")):
            case = {"name": "a", "request": {"messages": [{"role": "user", "content": f"hi {number}"}]}}
            case |= {"qualities": {"learned": {"small": small, "large": large}}, "expect": {"model": model}}
            text += f"- {json.dumps(case)}\n"
    ran = run("test", policy, cases(text))
    assert ran.status == 0, ran.out
    wrong = "cases:\n- {name: a, qualities: {QUALITIES}, expect: {model: small}}\n"
    for qualities, said in (
        ("learnt: {small: 1}", "no decision 'learnt' with a choice of models (did you mean 'learned'?)"),
        ("learned: {smal: 1}", "'smal' is no candidate of 'learned' (did you mean 'small'?)"),
        ("hard: {small: 1}", "`by: cheapest` knows of no quality"),
        ("learned: {small: 1}}, seconds: {learned: {small: 1}", "knows of no time"),
    ):
        ran = run("test", policy, cases(wrong.replace("QUALITIES", qualities)))
        assert ran.status == 1
        assert said in ran.err + ran.out


def test_what_was_measured_is_stubbed(run: Run, tmp_path: Path, cases: Callable[[str], Path]) -> None:
    policy = tmp_path / "policy.yaml"
    for by, told, model in (
        ("fastest: {explore: 1}", "seconds: {learned: {small: 2, large: 0.5}}", "large"),
        ("fastest: {explore: 1}", "seconds: {learned: {small: 0.2, large: 0.5}}", "small"),
        ("factors: {latency: 1, quality: 0}", "seconds: {learned: {small: 2, large: 0.5}}", "large"),
        ("factors: {quality: 1}", "qualities: {learned: {large: 0.9}}", "large"),
        ("factors: {quality: 1}", "qualities: {learned: {small: 0.9}}", "small"),
    ):
        policy.write_text(LEARNING.replace("BY", f"{{{by}}}"))
        asked = "request: {messages: [{role: user, content: hi}]}"
        text = f"- {{name: a, {asked}, {told}, expect: {{model: {model}}}}}\n" * 6
        ran = run("test", policy, cases(f"cases:\n{text}"))
        assert ran.status == 0, (by, told, ran.out)


def test_coverage(run: Run, policy: Path, cases: Callable[[str], Path]) -> None:
    path = cases("cases:\n  - {name: one, headers: {x-tier: gold}, expect: {decision: premium}}\n")
    ran = run("test", policy, path, "--coverage")
    assert ran.out.splitlines()[2:] == [
        "decisions taken: 1 of 3 (33.3 %)",
        "  never taken: refuse",
        "  never taken: trial",
        "signals read: 2 of 3 (66.7 %)",
        "  never read: beta",
    ]


def test_a_failure_shows_where_what_and_why(run: Run, policy: Path, cases: Callable[[str], Path]) -> None:
    path = cases(
        """\
cases:
  - name: wrong
    headers: {x-tier: gold}
    expect: {decision: trial, model: small}
  - name: right
    expect: {model: small}
  - name: wrong status
    request: {model: gpt-9, messages: [{role: user, content: hi}]}
    expect: {status: 403}
  - name: malformed
    request: {messages: 3}
    expect: {action: route}
  - name: elsewhere
    path: /healthz
    expect: {action: default}
"""
    )
    ran = run("test", policy, path)
    assert ran.status == 1
    assert f"FAIL  wrong  ({path}:2:5)\n      decision: expected 'trial', got 'premium'\n" in ran.out
    assert "      true     premium  → route large\n        └─ gold: true, score 1\n" in ran.out
    assert "refused before any rule: 'messages' must be a non-empty array of messages, not a number." in ran.out
    assert "refused before any rule: This gateway does not serve this path; GET /v1/models lists" in ran.out
    assert ran.out.endswith("5 cases: 1 passed, 4 failed\n")
    policy.write_text(policy.read_text() + "settings: {unread: pass}\n")
    assert "passed on unread, to the default model's route: `unread: pass`" in run("test", policy, path).out


def test_several_files(run: Run, policy: Path, tmp_path: Path) -> None:
    paths = [tmp_path / "one.yaml", tmp_path / "two.yaml"]
    for path in paths:
        path.write_text(PASSING)
    assert "10 cases" in run("test", policy, *paths).out


@pytest.mark.parametrize(
    ("text", "place", "message"),
    [
        ("cases:\n  - {name: a, expct: {}}", "2:15", "P101 unknown key 'expct' (did you mean 'expect'?)"),
        ("cases:\n  - {name: a}", "2:5", "P102 missing key 'expect'"),
        ("cases:\n  - {name: a, expect: {}}", "2:23", "P102 expect: say at least one"),
        ("cases:\n  - {name: a, expect: {decision: premum}}", "2:34", "R206 unknown decision 'premum' (did you mean"),
        ("cases:\n  - {name: a, expect: {model: smal}}", "2:31", "R202 unknown model 'smal' (did you mean 'small'?)"),
        ("cases:\n  - {name: a, signals: {glod: true}, expect: {status: 1}}", "2:25", "R201 unknown signal 'glod'"),
        ("cases:\n  - {name: a, signals: {gold: maybe}, expect: {status: 1}}", "2:31", "P104"),
        ("cases:\n  - {name: a, expect: {action: rout}}", "2:32", "P104"),
        ("cases: []", "1:8", "P104"),
        ("- a", "1:1", "P103 a cases file is a mapping"),
        ("cases: [", "2:1", "Y001"),
    ],
)
def test_what_is_not_a_case_is_reported_with_its_place(
    run: Run, policy: Path, cases: Callable[[str], Path], text: str, place: str, message: str
) -> None:
    path = cases(text + "\n")
    ran = run("test", policy, path)
    assert ran.status == 1
    assert f"{path}:{place}: {message}" in ran.err


def test_unreadable_cases(run: Run, policy: Path, tmp_path: Path) -> None:
    assert run("test", policy, tmp_path / "none.yaml").status == 2
    (tmp_path / "latin.yaml").write_bytes(b"cases: \xe9")
    assert "not UTF-8" in run("test", policy, tmp_path / "latin.yaml").err


def test_the_gate_rejects_a_policy_whose_cases_fail(policy: Path, cases: Callable[[str], Path]) -> None:
    engine = build(load(policy))
    gate(engine, cases(PASSING))
    with pytest.raises(Rejected, match=r"1 of 1 test cases fail; the first: .*:2:5: x: model: expected 'large'"):
        gate(engine, cases("cases:\n  - {name: x, expect: {model: large}}\n"))
    with pytest.raises(Rejected, match="P102 missing key 'expect'"):
        gate(engine, cases("cases:\n  - {name: x}\n"))


FAILING = """\
cases:
  - {name: fine, headers: {x-tier: gold}, expect: {decision: premium}}
  - {name: "<wrong> & \\x0b", headers: {x-tier: gold}, expect: {decision: trial}}
"""


def test_json(run: Run, policy: Path, cases: Callable[[str], Path]) -> None:
    path = cases(FAILING)
    ran = run("test", policy, path, "-o", "json", "--coverage")
    told = json.loads(ran.out)
    assert (ran.status, told["passed"], told["failed"]) == (1, 1, 1)
    good, bad = told["cases"]
    assert (good["name"], good["passed"], good["differences"], good["decision"]) == ("fine", True, [], "premium")
    assert (bad["passed"], bad["place"]) == (False, f"{path}:3:5")
    assert "trial" in bad["differences"][0]
    assert told["coverage"][0].startswith("decisions taken: 1 of 3")
    assert "coverage" not in json.loads(run("test", policy, path, "-o", "json").out)


def test_junit(run: Run, policy: Path, cases: Callable[[str], Path]) -> None:
    path = cases(FAILING)
    ran = run("test", policy, path, "-o", "junit")
    assert ran.status == 1
    suite = ElementTree.fromstring(ran.out)
    assert (suite.tag, suite.get("tests"), suite.get("failures")) == ("testsuite", "2", "1")
    good, bad = suite
    assert (good.get("name"), len(good), good.get("line")) == ("fine", 0, "2")
    assert (bad.get("name"), bad.get("file"), bad.get("line")) == ("<wrong> & \ufffd", str(path), "3")
    assert "trial" in (bad[0].get("message") or "")
    assert float(bad.get("time") or 0) > 0
