"""The `cache:` of a decision, as it is written in a policy."""

from __future__ import annotations

import pytest

from config.build import build
from config.load import parse
from config.problem import PolicyError
from decisions.decision import Cache

POLICY = """\
version: 1
models: {small: {name: tiny}}
default: small
decisions: [{name: faq, DECISION}]
settings: {SETTINGS}
"""


def policy(decision: str, settings: str = "") -> str:
    return POLICY.replace("DECISION", decision).replace("SETTINGS", settings)


def test_what_is_written_is_what_is_kept() -> None:
    text = policy(
        "route: small, cache: {ttl: 2h, scope: session, any_temperature: true}", "cache: {memory: 8MiB, answer: 64KiB}"
    )
    engine = build(parse(text))
    assert engine.clauses[0].cache == Cache(7200.0, "session", True)
    assert engine.settings.cache[:2] == (8 * 2**20, 64 * 2**10)
    assert engine.metered
    plain = build(parse(policy("route: small, cache: {scope: all}")))
    assert plain.clauses[0].cache == Cache(3600.0, "all", False)


@pytest.mark.parametrize(
    ("decision", "settings", "says"),
    [
        ("route: small, cache: {}", "", "settings.tenant"),
        ("respond: {status: 403}, cache: {scope: all}", "", "nothing to keep"),
        ("route: small, cache: {scope: everyone}", "", "scope"),
        ("route: small, cache: {scope: all, ttl: 0s}", "", "ttl"),
        ("route: small, cache: {scope: all, similar: 0.4}", "", "similar"),
        ("route: small, cache: {scope: all}", "cache: {where: store}", "needs a store"),
        ("route: small, cache: {scope: all}", "meter: off", "and yet a cache"),
        ("route: small, cache: {scope: all}", "cache: {answer: 8MiB}", "answer"),
        ("on: answer, flag: {}, cache: {scope: all}", "", "cache is about requests"),
    ],
)
def test_what_cannot_work_is_said(decision: str, settings: str, says: str) -> None:
    with pytest.raises(PolicyError) as caught:
        build(parse(policy(decision, settings)))
    problems = [str(problem) for problem in caught.value.problems]
    assert len([problem for problem in problems if says in problem]) == 1, problems
