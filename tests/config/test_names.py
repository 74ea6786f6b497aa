"""Names of models: aliases, beginnings, `auto` in any case; and names that mean two things."""

from __future__ import annotations

from typing import Any

import pytest

from config.build import build
from config.load import check, parse
from decisions.decision import Trace
from decisions.model import UnknownModel
from extproc.requests.rewriting import rewritten
from signals.request import Message, Request

POLICY = """\
version: 1
models:
  small: {name: org/small, aliases: [haiku, "claude-haiku-*", "claude-3*"]}
  large: {name: org/large, aliases: ["claude-*", 007]}
default: small
auto: [auto, MoM]
signals: {vip: {header: {name: x-vip, exists: true}}}
decisions: [{name: vip, when: vip, route: large}]
"""


def decide(model: str, text: str = POLICY, **headers: str) -> str | None:
    body = b'{"model":"%b"}' % model.encode()
    request = Request("chat", body, {"model": model}, model, (Message("user", "x"),), headers)
    trace = build(parse(text)).settle(request)
    assert isinstance(trace, Trace)
    assert trace.decision.model is not None
    sent = rewritten(request, trace.decision)
    assert (sent or body) == b'{"model":"%b"}' % trace.decision.model.name.encode()
    return trace.decision.model.key


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("haiku", "small"),
        ("claude-haiku-4-5-20251001", "small"),
        ("claude-3-opus", "small"),
        ("claude-sonnet-4-5", "large"),
        ("claude-", "large"),
        ("007", "large"),
        ("haiku[1m]", "small"),
        ("large[1m]", "large"),
        ("claude-sonnet-4-5[1m]", "large"),
    ],
)
def test_clients_may_use_aliases_and_the_longest_beginning_counts(name: str, model: str) -> None:
    assert decide(name) == model
    # They name their model: a decision without `override` does not move them.
    assert decide(name, **{"x-vip": "1"}) == model


@pytest.mark.parametrize("name", ["auto", "Auto", "AUTO", "mom", "MoM", " MoM ", "MoM[1M]", "mom[1m]"])
def test_auto_is_asked_for_in_any_case(name: str) -> None:
    assert decide(name, **{"x-vip": "1"}) == "large"
    assert decide(name) == "small"


@pytest.mark.parametrize(
    "name", ["Haiku", "claude", "haiku-3", "auto:latest", "Org/Small", "[1m]", "haiku[1m][1m]", ""]
)
def test_other_names_are_unknown(name: str) -> None:
    with pytest.raises(UnknownModel):
        decide(name)


def test_a_model_of_the_policy_is_meant_before_auto_in_another_case() -> None:
    text = POLICY.replace("  large:", "  AUTO: {}\n  large:")
    assert decide("AUTO", text) == "AUTO"
    assert decide("Auto", text, **{"x-vip": "1"}) == "large"


def problems(small: str, large: str, more: str = "") -> list[tuple[Any, ...]]:
    text = f"version: 1\nmodels:\n  small: {{name: s, aliases: {small}}}\n  large: {{name: l, aliases: {large}}}\n"
    return [
        (p.code, p.line, p.column) for p in check(text + f"default: small\n{more}", "p.yaml")[1] if p.code != "L305"
    ]


@pytest.mark.parametrize(
    ("small", "large", "more", "found"),
    [
        ("[a, b]", "[c]", "", []),
        ("[a, a]", "[c]", "", [("R203", 3, 33)]),
        ("[a]", "[c, a]", "", [("R203", 4, 33)]),
        ("['a-*']", "['a-*']", "", [("R203", 4, 30)]),
        ("['a-*']", "['a-b*', a-c]", "", []),
        ("[large]", "[small]", "", [("R203", 3, 30), ("R203", 4, 30)]),
        ("[small]", "[s]", "", [("R203", 3, 30), ("R203", 4, 30)]),
        ("[Auto]", "[]", "", [("R203", 3, 30)]),
        ("[Auto]", "[mom]", "auto: [MoM]\n", [("R203", 4, 30)]),
        ("[7]", "[7]", "", [("R203", 4, 30)]),
        ("['*']", "[]", "", [("P104", 3, 30)]),
        ("['a*b']", "[' a']", "", [("P104", 3, 30), ("P104", 4, 30)]),
        ("a", "[]", "", [("P103", 3, 29)]),
    ],
)
def test_a_name_means_one_model(small: str, large: str, more: str, found: list[tuple[Any, ...]]) -> None:
    assert problems(small, large, more) == found
