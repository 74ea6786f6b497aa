"""What another policy's choices would have been worth: the estimates and intervals hold where the truth is known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.foreseen import Logged, foreseen, text
from tests.cli.conftest import Ran

WORTH = {("sums", "small"): 0.3, ("sums", "large"): 0.8, ("lore", "small"): 0.7, ("lore", "large"): 0.75}
COSTS = {"small": 1.0, "large": 10.0}


def log(seed: int, count: int = 600) -> list[Logged]:
    """A log that takes the large model for one in ten of the sums and half of the others; the other policy takes it for
    the sums, and the small one for the rest."""
    chance, lines = random.Random(seed), []
    for _ in range(count):
        kind = chance.choice(("sums", "lore"))
        share = 0.1 if kind == "sums" else 0.5
        took = "large" if chance.random() < share else "small"
        propensity = share if took == "large" else 1 - share
        score = float(chance.random() < WORTH[kind, took])
        lines.append(Logged(score, COSTS[took], took, propensity, "large" if kind == "sums" else "small"))
    return lines


@pytest.mark.slow
@pytest.mark.no_cover
def test_the_truth_is_within_the_interval_nearly_always() -> None:
    kept = {"quality": 0, "cost": 0}
    means = []
    for seed in range(200):
        found = foreseen(log(seed))
        for name, truth in (("quality", 0.75), ("cost", 5.5)):
            after = found[name]["after"]
            kept[name] += after["low"] <= truth <= after["high"]
        means.append(found["quality"]["after"]["mean"])
    assert sum(means) / 200 == pytest.approx(0.75, abs=0.01)
    assert all(count >= 180 for count in kept.values()), kept


def test_it_is_surer_than_propensities_alone() -> None:
    doubly, alone = [], []
    for seed in range(100):
        lines = log(seed)
        doubly.append(foreseen(lines)["quality"]["after"]["mean"])
        alone.append(sum((each.took == each.takes) * each.score / each.propensity for each in lines) / len(lines))
    spread = [sum((value - 0.75) ** 2 for value in values) for values in (doubly, alone)]
    assert spread[0] < 0.8 * spread[1]


def test_a_model_that_was_never_taken_is_said_to_be_unknown() -> None:
    lines = [Logged(1.0, 1.0, "small", 1.0, "huge")] * 3
    found = foreseen(lines)
    assert (found["unseen"], found["matching"], found["effective"]) == (3, 0, 0.0)
    assert "nothing is known of the model of 3 lines" in "\n".join(text(found))


def test_replay_says_what_a_learned_choice_would_be_worth(run: Callable[..., Ran], tmp_path: Path) -> None:
    policy, other, state = tmp_path / "policy.yaml", tmp_path / "other.yaml", tmp_path / "learned.json"
    given = """\
version: 1
models: {small: {price: {input: 1, output: 1}, quality: 0.5}, large: {price: {input: 9, output: 9}, quality: 0.5}}
default: small
decisions: [{name: all, route: {pick: [small, large], by: BY}}]
"""
    policy.write_text(given.replace("BY", "weighted"))
    other.write_text(given.replace("BY", "{ema: {explore: 0}}"))
    sums = {"|large": [50.0, 45.0], "|small": [50.0, 10.0]}
    state.write_text(json.dumps({"decisions": {"all": {"by": "ema", "size": 2, "half_life": 168, "sums": sums}}}))
    chance, lines = random.Random(1), []
    for number in range(400):
        took = chance.choice(("small", "large"))
        score = float(chance.random() < {"small": 0.2, "large": 0.9}[took])
        line = {"request": {"messages": [{"role": "user", "content": f"question {number}"}]}, "score": score}
        line["choice"] = {"model": took, "why": "weight", "propensity": 0.5, "by": "weighted"}
        line["answer"] = {"cost": 10.0 if took == "large" else 1.0}
        lines.append(json.dumps(line))
    data = "\n".join([*lines, json.dumps({"request": {}, "score": 2})]).encode()
    ran = run("replay", policy, "-", "--against", other, "--learned", state, "-o", "json", stdin=data)
    assert "score: must be a number from 0 to 1" in ran.err
    expected = ran.json()["expected"]
    assert expected["graded"] == 400
    assert expected["quality"]["before"]["mean"] == pytest.approx(0.55, abs=0.06)
    after = expected["quality"]["after"]
    assert after["low"] < 0.9 < after["high"]
    assert after["low"] > expected["quality"]["before"]["high"]
    assert expected["cost"]["after"]["mean"] == pytest.approx(10.0, abs=0.3)
    plain = run("replay", policy, "-", "--against", other, "--learned", state, stdin=data).out
    assert "quality by request: 0.5" in plain
    state.write_text("{}")
    assert run("replay", policy, "-", "--against", other, "--learned", state, stdin=data).status != 0
