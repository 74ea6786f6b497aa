"""Imported policies decide as their source does, and as a policy by hand does: on readings made by chance."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from cli.calls import RecordedCall, Stubs
from cli.import_ import imported
from cli.imports import vllm_sr
from cli.imports.source import read
from config.build import build
from config.load import parse
from config.resources import Resources
from decisions.decision import Trace
from decisions.engine import Engine
from signals.neural.shipped import heads
from signals.reading import Reading
from tests import yamls
from tests.volume import few_and_many

BODY = b'{"model": "auto", "messages": [{"role": "user", "content": "hi"}]}'
WORDS = [f"k{number}" for number in range(5)]
BOUNDS = st.integers(-3, 8).map(lambda tenths: tenths / 10)

ALIKE = [f"e{number}" for number in range(3)]
NEAR = 0.5
"""From which cosine on an embedding matches."""
COSINES = st.sampled_from([0.0, 0.131, 0.373, 0.617, 0.809])
"""So that no sum of some, weighted by tenths, is a bound."""

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


def emitted(cosines: dict[str, float], several: bool) -> set[str]:
    """The embeddings that match: all that are near enough, or the nearest of them."""
    near = [name for name in ALIKE if cosines[name] >= NEAR]
    return set(near if several else sorted(near, key=lambda name: -cosines[name])[:1])


def added(one: dict[str, Any], matched: Matched, cosines: dict[str, float], totals: dict[str, float]) -> float:
    """What an input adds to a sum, before its weight."""
    if one["type"] == "projection":
        return totals[one["name"]]
    match, source = (one["type"], one["name"]) in matched, one.get("value_source", "binary")
    if source == "raw":
        return cosines[one["name"]]
    if source == "confidence":
        return cosines.get(one["name"], 1.0) if match else 0.0
    return one.get("match", 1.0) if match else one.get("miss", 0.0)


def projected(routing: dict[str, Any], matched: Matched, cosines: dict[str, float]) -> Matched:
    found = set(matched)
    totals: dict[str, float] = {}
    for score, mapping in zip(routing["projections"]["scores"], routing["projections"]["mappings"], strict=True):
        total = sum(one["weight"] * added(one, matched, cosines, totals) for one in score["inputs"])
        totals[score["name"]] = total
        # 0.1 and 0.2 are 0.3 here.
        fitting = [output["name"] for output in mapping["outputs"] if fits(output, round(total, 9))]
        found |= {("projection", name) for name in (fitting if mapping["method"] == "multi_emit" else fitting[:1])}
    return frozenset(found)


def decided(source: dict[str, Any], words: set[str], cosines: dict[str, float]) -> str | None:
    routing = source["routing"]
    several = source["global"]["model_catalog"]["embeddings"]["semantic"]["embedding_config"]["top_k"] == 0
    near = emitted(cosines, several)
    matched = frozenset([*(("keyword", word) for word in words), *(("embedding", name) for name in near)])
    everything = projected(routing, matched, cosines)
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
def inputs_of(draw: st.DrawFn, several: bool, earlier: list[str]) -> list[dict[str, Any]]:
    """What a sum adds up: matches, and values."""
    names = draw(st.lists(st.sampled_from([*WORDS, *ALIKE, *earlier]), min_size=1, max_size=4, unique=True))
    found = []
    for name in names:
        kind = "keyword" if name in WORDS else "embedding" if name in ALIKE else "projection"
        one: dict[str, Any] = {"type": kind, "name": name, "weight": draw(BOUNDS.filter(bool))}
        if kind == "embedding":
            # Where one alone may match, what is sure of it is not its cosine here.
            one["value_source"] = draw(st.sampled_from(["binary", "raw", *(["confidence"] if several else [])]))
        elif kind == "keyword" and draw(st.booleans()):
            one |= {"match": draw(BOUNDS.filter(bool)), "miss": draw(BOUNDS)}
        found.append(one)
    return found


def configured(
    scores: list[dict[str, Any]], mappings: list[dict[str, Any]], decisions: list[dict[str, Any]], several: bool
) -> dict[str, Any]:
    keywords = [{"name": word, "operator": "OR", "keywords": [word]} for word in WORDS]
    embeddings = [{"name": name, "threshold": NEAR, "candidates": [f"talk of {name}"]} for name in ALIKE]
    return {
        "version": "v0.3",
        "providers": {"defaults": {"default_model": "m"}, "models": [{"name": "m"}]},
        "routing": {
            "signals": {"keywords": keywords, "embeddings": embeddings},
            "projections": {"scores": scores, "mappings": mappings},
            "decisions": decisions,
        },
        "global": {"model_catalog": {"embeddings": {"semantic": {"embedding_config": {"top_k": int(not several)}}}}},
    }


@st.composite
def configurations(draw: st.DrawFn) -> dict[str, Any]:
    scores, mappings = [], []
    several = draw(st.booleans())
    for number in range(draw(st.integers(0, 2))):
        inputs = draw(inputs_of(several, [score["name"] for score in scores]))
        scores.append({"name": f"s{number}", "method": "weighted_sum", "inputs": inputs})
        method = draw(st.sampled_from(["threshold_bands", "multi_emit"]))
        mapping = {
            "name": f"m{number}",
            "source": f"s{number}",
            "method": method,
            "outputs": draw(outputs(f"b{number}")),
        }
        mappings.append(mapping)
    leaves = [*(("keyword", word) for word in WORDS), *(("embedding", name) for name in ALIKE)]
    leaves += [("projection", output["name"]) for mapping in mappings for output in mapping["outputs"]]
    decisions: list[dict[str, Any]] = []
    for number in range(draw(st.integers(1, 5))):
        rule = draw(rules(leaves) | st.just({"operator": "AND", "conditions": []}))
        decision: dict[str, Any] = {"name": f"d{number}", "priority": draw(st.integers(0, 3)), "rules": rule}
        decisions.append(decision | {"modelRefs": [{"model": "m"}]})
    if draw(st.booleans()):
        for decision in decisions:
            decision["tier"] = draw(st.integers(0, 2))
    for number, decision in enumerate(decisions):  # those of equal priority would be told apart by how sure they are
        decision["priority"] = 10 * decision["priority"] + number
    return configured(scores, mappings, decisions, several)


def policy_of(source: dict[str, Any]) -> str:
    made = imported(read(yamls.dump(source).encode(), "config.yaml"), "config.yaml", vllm_sr.port)
    assert made.losses == 0 or all("can never match" in one.message for one in made.told if one.kind == "loss")
    return made.text()


def taken(engine: Engine, readings: dict[str, Reading]) -> str | None:
    trace = RecordedCall(BODY).begin(engine, stubs=Stubs(readings))
    assert isinstance(trace, Trace)
    return trace.decision.name


@pytest.fixture(scope="module")
def resources() -> Iterator[Resources]:
    """With the shipped model, which each of a hundred engines would load anew."""
    made = Resources()
    model = heads(made.inference)
    yield made
    del model


def constant(amount: float, *more: dict[str, Any], method: str = "threshold_bands") -> dict[str, Any]:
    """A keyword adds the same to the first sum whether it is found or not; the second adds up that one and `more`."""
    same = {"type": "keyword", "name": "k0", "weight": 0.1, "match": amount, "miss": amount}
    scores = [
        {"name": "s0", "method": "weighted_sum", "inputs": [same]},
        {
            "name": "s1",
            "method": "weighted_sum",
            "inputs": [{"type": "projection", "name": "s0", "weight": 2.0}, *more],
        },
    ]
    bands: list[dict[str, Any]] = [
        {"name": "b0", "lt": 0.0},
        {"name": "b1", "gte": 0.01, "lt": 0.05},
        {"name": "b2", "gt": 0.01},
        {"name": "b3"},
    ]
    mappings = [
        {"name": "m0", "source": "s0", "method": method, "outputs": bands},
        {"name": "m1", "source": "s1", "method": method, "outputs": [{"name": "c0", "gte": 0.05}]},
    ]
    decisions = [
        {"name": f"for-{name}", "priority": 9 - number, "rules": {"type": "projection", "name": name}}
        for number, name in enumerate(("c0", "b0", "b2", "b1", "b3"))
    ]
    return configured(scores, mappings, [one | {"modelRefs": [{"model": "m"}]} for one in decisions], True)


SAID: list[tuple[set[str], dict[str, float]]] = [
    (words, dict.fromkeys(ALIKE, cosine)) for words in (set(), {"k0"}, {"k1"}) for cosine in (0.0, 0.617)
]


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(20, 100)
def test_an_imported_policy_decides_as_its_source(resources: Resources, examples: int) -> None:
    @example(source=constant(0.1), said=SAID)
    @example(source=constant(0.2), said=SAID)
    @example(source=constant(-0.1), said=SAID)
    @example(source=constant(0.1, method="multi_emit"), said=SAID)
    @example(source=constant(0.3, {"type": "keyword", "name": "k1", "weight": 0.1}), said=SAID)
    @settings(max_examples=examples, deadline=None)
    @given(
        source=configurations(),
        said=st.lists(
            st.tuples(st.sets(st.sampled_from(WORDS)), st.fixed_dictionaries(dict.fromkeys(ALIKE, COSINES))),
            min_size=1,
            max_size=12,
        ),
    )
    def holds(source: dict[str, Any], said: list[tuple[set[str], dict[str, float]]]) -> None:
        engine = build(parse(policy_of(source)), resources)
        try:
            for words, cosines in said:
                readings = {word: Reading(word in words, float(word in words)) for word in WORDS}
                readings |= {name: Reading(cosine >= NEAR, cosine) for name, cosine in cosines.items()}
                wanted = decided(source, words, cosines)
                assert taken(engine, readings) == wanted, (sorted(words), cosines, policy_of(source))
        finally:
            engine.close()

    holds()


# A policy that says by hand what a configuration says.

HERE = Path(__file__).parent
STUBBED = ("code", "proof", "hurry", "long", "agentic", "math")


@pytest.fixture(scope="module")
def engines(resources: Resources) -> Any:
    pair = [
        build(parse(policy_of(yamls.load((HERE / "theirs.yaml").read_text()))), resources),
        build(parse((HERE / "ours.yaml").read_text()), resources),
    ]
    yield pair
    for engine in pair:
        engine.close()


@pytest.mark.slow
@few_and_many(60, 300)
def test_imported_and_hand_written_policies_decide_alike(engines: list[Engine], examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(st.fixed_dictionaries({name: st.booleans() | st.none() for name in STUBBED}), st.integers(-4, 4))
    def holds(said: dict[str, bool | None], tenths: int) -> None:
        readings = {name: Reading(match, None if match is None else float(match)) for name, match in said.items()}
        readings["hard"] = Reading(tenths >= 0, tenths / 10)
        theirs, ours = (taken(engine, readings) for engine in engines)
        assert theirs == ours

    holds()
