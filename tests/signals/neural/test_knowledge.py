"""`knowledge`: the nearest label of a file, groups, margins, and files that cannot be used."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from signals.facts import Facts
from signals.gather import fetch, read
from signals.kinds.knowledge import MOST
from signals.reading import Reading
from signals.services import Services
from signals.signal import Shared, Signal
from tests.signals.help import build, complaint, request

BASE = {
    "labels": {
        "lease": ["terminate the lease at the end of the month", "which clause of the contract covers late payment?"],
        "salary": {"examples": ["what does our accountant earn?", "pay rises of the sales team"], "at_least": 0.97},
        "recipe": ["a soup for six people", "how long do lentils cook?"],
        "stars": ["how far away is the nearest galaxy?"],
    },
    "groups": {"inhouse": ["lease", "salary"], "open": ["recipe", "stars"]},
}
COOKING = "how long must lentils cook?"
LEASE = "terminate my lease at the end of next month"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "base.json").write_text(json.dumps(BASE))
    return tmp_path


@pytest.fixture
def shared(folder: Path) -> Iterator[Shared]:
    made = Shared(Services(folder=folder))
    yield made
    made.close()


def signal(shared: Shared, **params: Any) -> Signal:
    return build("knowledge", shared, file="base.json", **params)


async def take(one: Signal, text: str) -> Reading:
    facts = Facts(request(text))
    await fetch([one], facts)
    return read(one, facts)


async def test_the_nearest_label_matches(shared: Shared) -> None:
    found = await take(signal(shared, **{"is": ["recipe"]}), COOKING)
    assert (found.matched, found.label) == (True, "recipe")
    assert found.score is not None
    assert 0.7 < found.score <= 1.0
    assert (await take(signal(shared, **{"is": ["lease"]}), COOKING)).matched is False
    assert (await take(signal(shared, **{"is": ["open"]}), COOKING)).matched is True
    assert (await take(signal(shared), COOKING)).matched is True
    nothing = await take(signal(shared), "the quarterly meeting of the bird watchers was moved to the town hall")
    assert (nothing.matched, nothing.label) == (False, None)
    assert await take(signal(shared), "") == Reading(False, 0.0)


async def test_enough_asks_for_nearness_alone(shared: Shared) -> None:
    params: dict[str, Any] = {"is": ["stars"], "match": "enough"}
    asked = "how long do lentils cook on the nearest galaxy?"
    found = await take(signal(shared, **params), asked)
    assert found.score is not None
    assert 0.1 < found.score < 1
    assert found.label == "recipe"
    assert (await take(signal(shared, **params, at_least=found.score - 0.01), asked)).matched is True
    assert (await take(signal(shared, **params, at_least=found.score + 0.01), asked)).matched is False
    assert (await take(signal(shared, **{"is": ["stars"]}, at_least=0.0), asked)).matched is False


async def test_what_the_file_says_of_a_label_counts_before_the_signal(shared: Shared) -> None:
    asked = "what does the accountant of our company earn?"
    assert (await take(signal(shared, **{"is": ["salary"]}, at_least=0.1), asked)).matched is False
    found = await take(signal(shared, **{"is": ["salary"]}), "what does our accountant earn?")
    assert (found.matched, found.label, found.score) == (True, "salary", pytest.approx(1.0, abs=1e-5))


async def test_a_margin_between_groups(shared: Shared) -> None:
    inside = signal(shared, **{"is": ["inhouse"]}, over=["open"])
    found = await take(inside, LEASE)
    assert found.matched is True
    assert found.score is not None
    assert found.score > 0.2
    away = await take(inside, COOKING)
    assert away.matched is False
    assert away.score is not None
    assert away.score < 0
    wide = signal(shared, **{"is": ["inhouse"]}, over=["open"], margin=min(1.0, found.score + 0.01))
    assert (await take(wide, LEASE)).matched is False


async def test_the_mean_of_the_nearest_examples(shared: Shared) -> None:
    one = (await take(signal(shared, **{"is": ["recipe"]}), "a soup for six people")).score or 0.0
    two = (await take(signal(shared, **{"is": ["recipe"]}, nearest=2), "a soup for six people")).score or 0.0
    many = (await take(signal(shared, **{"is": ["recipe"]}, nearest=50), "a soup for six people")).score
    assert one == pytest.approx(1.0, abs=1e-5)
    assert two < one
    assert many == two
    assert (await take(signal(shared, **{"is": ["stars"]}, nearest=5), "a soup for six people")).score is not None


async def test_signals_on_one_file_share_its_examples_and_the_embedding(shared: Shared) -> None:
    first, second = signal(shared, **{"is": ["lease"]}), signal(shared, **{"is": ["open"]}, over=["inhouse"])
    assert first.slow == second.slow
    facts = Facts(request(LEASE))
    await fetch([first], facts)
    assert read(first, facts).matched is True
    assert read(second, facts).matched is False


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "not JSON"),
        ("[]", "an object with `labels`"),
        ('{"labels": {}}', "an object with `labels`"),
        ('{"labels": {"a": []}}', "label 'a' needs a list of examples"),
        ('{"labels": {"a": [" "]}}', "label 'a' needs a list of examples"),
        ('{"labels": {"a": {"example": ["x"]}}}', "unknown key 'example' of label 'a'"),
        ('{"labels": {"a": {"examples": ["x"], "at_least": 2}}}', "at_least of label 'a'"),
        ('{"labels": {"a": {"examples": ["x"], "at_least": true}}}', "at_least of label 'a'"),
        ('{"labels": {"a": ["x"]}, "group": {}}', "unknown key 'group'"),
        ('{"labels": {"a": ["x"]}, "groups": {"a": ["a"]}}', "has the name of a label"),
        ('{"labels": {"a": ["x"]}, "groups": {"g": ["b"]}}', "no label 'b'"),
        ('{"labels": {"a": ["x"]}, "groups": {"g": [{}]}}', "no label {}"),
        ('{"labels": {"a": ["x"]}, "groups": {"g": [null]}}', "no label None"),
        ('{"labels": {"a": ["x"]}, "groups": {"g": []}}', "needs a list of labels"),
        ('{"labels": {"a": ["x"]}, "groups": []}', "an object of lists"),
        (json.dumps({"labels": {"a": ["x"] * (MOST + 1)}}), f"{MOST} is the most"),
    ],
)
def test_a_file_that_cannot_be_used_says_why(shared: Shared, folder: Path, content: str, says: str) -> None:
    (folder / "base.json").write_text(content)
    with pytest.raises(ValueError, match=says.replace("[", r"\[")):
        signal(shared)


def test_a_file_that_is_not_there(shared: Shared) -> None:
    with pytest.raises(OSError, match=r"missing\.json"):
        build("knowledge", shared, file="missing.json")


def test_names_that_the_file_does_not_have(shared: Shared) -> None:
    with pytest.raises(ValueError, match=r"no label or group 'recipes' \(did you mean 'recipe'\?\)"):
        signal(shared, **{"is": ["recipes"]})


def test_wrong_parameters_are_explained() -> None:
    assert "needs `is`" in complaint("knowledge", file="f", over=["a"])
    assert "goes without match" in complaint("knowledge", **{"file": "f", "is": ["a"], "over": ["b"], "match": "best"})
    assert "margin goes with over" in complaint("knowledge", file="f", margin=0.1)
