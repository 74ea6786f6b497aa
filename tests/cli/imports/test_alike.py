"""Imported policies decide as their source does, and as a policy by hand does: on readings made by chance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from cli.calls import RecordedCall, Stubs
from cli.import_ import imported
from cli.imports import vllm_sr
from cli.imports.source import read
from config.build import build
from config.load import parse
from decisions.decision import Trace
from decisions.engine import Engine
from signals.reading import Reading

BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}'
WORDS = [f"k{number}" for number in range(5)]
BOUNDS = st.integers(-3, 8).map(lambda tenths: tenths / 10)

Matched = frozenset[tuple[str, str]]


# What the source means, written down once more, from its documentation.


def holds(rule: dict[str, Any], matched: Matched) -> bool:
    if "type" in rule:
        return (rule["type"], rule["name"]) in matched
    parts = [holds(one, matched) for one in rule["conditions"]]
    return {"AND": all(parts), "OR": any(parts), "NOT": not any(parts)}[rule["operator"]]


def fits(output: dict[str, Any], total: float) -> bool:
    tests = {
        "gt": lambda bound: total > bound,
        "gte": lambda bound: total >= bound,
        "lt": lambda bound: total < bound,
        "lte": lambda bound: total <= bound,
    }
    return all(test(output[key]) for key, test in tests.items() if key in output)


def projected(routing: dict[str, Any], matched: Matched) -> Matched:
    found = set(matched)
    for score, mapping in zip(routing["projections"]["scores"], routing["projections"]["mappings"], strict=True):
        total = 0.0
        for one in score["inputs"]:
            total += one["weight"] * ((one["type"], one["name"]) in matched)
        # 0.1 and 0.2 are 0.3 here.
        fitting = [output["name"] for output in mapping["outputs"] if fits(output, round(total, 9))]
        found |= {("projection", name) for name in (fitting if mapping["method"] == "multi_emit" else fitting[:1])}
    return frozenset(found)


def decided(routing: dict[str, Any], matched: Matched) -> str | None:
    everything = projected(routing, matched)
    tiers = any(one.get("tier") for one in routing["decisions"])

    def rank(one: dict[str, Any]) -> tuple[Any, ...]:
        rules = one["rules"]
        return one.get("tier", 0) if tiers else 0, not rules.get("conditions", True), -one["priority"], one["name"]

    matching = [one for one in routing["decisions"] if holds(one["rules"], everything)]
    return min(matching, key=rank)["name"] if matching else None


# Configurations by chance.


@st.composite
def rules(draw: st.DrawFn, leaves: list[tuple[str, str]], depth: int = 2) -> dict[str, Any]:
    if depth == 0 or draw(st.booleans()):
        kind, name = draw(st.sampled_from(leaves))
        return {"type": kind, "name": name}
    operator = draw(st.sampled_from(["AND", "OR", "NOT"]))
    parts = draw(st.lists(rules(leaves, depth - 1), min_size=1, max_size=3))
    return {"operator": operator, "conditions": parts}


@st.composite
def outputs(draw: st.DrawFn, prefix: str) -> list[dict[str, Any]]:
    """Bands one above the other, or any bounds at all."""
    if draw(st.booleans()):
        edges = sorted(draw(st.sets(BOUNDS, min_size=1, max_size=3)))
        made: list[dict[str, Any]] = [{"name": f"{prefix}{number}"} for number in range(len(edges) + 1)]
        for number, edge in enumerate(edges):
            below, above = draw(st.sampled_from([("lt", "gte"), ("lte", "gt")]))
            made[number][below] = made[number + 1][above] = edge
            made[number][below], made[number + 1][above] = edge, edge
        return made
    found = []
    for number in range(draw(st.integers(1, 3))):
        low, high = (draw(st.none() | BOUNDS) for _ in range(2))
        output: dict[str, Any] = {"name": f"{prefix}{number}"}
        if low is not None:
            output[draw(st.sampled_from(["gt", "gte"]))] = low
        if high is not None:
            output[draw(st.sampled_from(["lt", "lte"]))] = high
        found.append(output)
    return found


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    scores, mappings = [], []
    for number in range(draw(st.integers(0, 2))):
        words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4, unique=True))
        weights = [draw(BOUNDS.filter(bool)) for _ in words]
        inputs = [
            {"type": "keyword", "name": word, "weight": weight} for word, weight in zip(words, weights, strict=True)
        ]
        scores.append({"name": f"s{number}", "method": "weighted_sum", "inputs": inputs})
        method = draw(st.sampled_from(["threshold_bands", "multi_emit"]))
        mapping = {
            "name": f"m{number}",
            "source": f"s{number}",
            "method": method,
            "outputs": draw(outputs(f"b{number}")),
        }
        mappings.append(mapping)
    leaves = [("keyword", word) for word in WORDS]
    leaves += [("projection", output["name"]) for mapping in mappings for output in mapping["outputs"]]
    decisions = []
    for number in range(draw(st.integers(1, 5))):
        rule = draw(rules(leaves) | st.just({"operator": "AND", "conditions": []}))
        decision = {"name": f"d{number}", "priority": draw(st.integers(0, 3)), "rules": rule}
        decisions.append(decision | {"modelRefs": [{"model": "m"}]})
    if draw(st.booleans()):
        for decision in decisions:
            decision["tier"] = draw(st.integers(0, 2))
    keywords = [{"name": word, "operator": "OR", "keywords": [word]} for word in WORDS]
    return {
        "version": "v0.3",
        "providers": {"defaults": {"default_model": "m"}, "models": [{"name": "m"}]},
        "routing": {
            "signals": {"keywords": keywords},
            "projections": {"scores": scores, "mappings": mappings},
            "decisions": decisions,
        },
    }


def policy_of(source: dict[str, Any]) -> str:
    made = imported(read(yaml.safe_dump(source).encode(), "config.yaml"), "config.yaml", vllm_sr.port)
    assert made.losses == 0 or all("can never match" in one.message for one in made.told if one.kind == "loss")
    return made.text()


def taken(engine: Engine, readings: dict[str, Reading]) -> str | None:
    trace = RecordedCall(BODY).begin(engine, stubs=Stubs(readings))
    assert isinstance(trace, Trace)
    return trace.decision.name


@settings(max_examples=100, deadline=None)
@given(configurations(), st.lists(st.sets(st.sampled_from(WORDS)), min_size=1, max_size=12))
def test_an_imported_policy_decides_as_its_source(source: dict[str, Any], matches: list[set[str]]) -> None:
    engine = build(parse(policy_of(source)))
    try:
        for matched in matches:
            readings = {word: Reading(word in matched, float(word in matched)) for word in WORDS}
            wanted = decided(source["routing"], frozenset(("keyword", word) for word in matched))
            assert taken(engine, readings) == wanted, (sorted(matched), policy_of(source))
    finally:
        engine.close()


# A policy that says by hand what a configuration says.

HERE = Path(__file__).parent
STUBBED = ("code", "proof", "hurry", "long", "agentic", "math")


@pytest.fixture(scope="module")
def engines() -> Any:
    pair = [
        build(parse(policy_of(yaml.safe_load((HERE / "theirs.yaml").read_text())))),
        build(parse((HERE / "ours.yaml").read_text())),
    ]
    yield pair
    for engine in pair:
        engine.close()


@settings(max_examples=300, deadline=None)
@given(st.fixed_dictionaries({name: st.booleans() | st.none() for name in STUBBED}), st.integers(-4, 4))
def test_imported_and_hand_written_policies_decide_alike(
    engines: list[Engine], said: dict[str, bool | None], tenths: int
) -> None:
    readings = {name: Reading(match, None if match is None else float(match)) for name, match in said.items()}
    readings["hard"] = Reading(tenths >= 0, tenths / 10)
    theirs, ours = (taken(engine, readings) for engine in engines)
    assert theirs == ours
