"""Configurations with a value in the wrong place are refused with a place, or imported: never a crash."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from cli.import_ import imported
from cli.imports import litellm, vllm_sr
from cli.imports.source import Unimportable, read
from config.document import parse

HERE = Path(__file__).parent
JUNK = (
    "x",
    "",
    0,
    -1,
    2.5,
    1e300,
    True,
    None,
    [],
    {},
    ["x"],
    [[1]],
    [{}],
    {"name": "x"},
    [{"name": 3}],
    "\u2028\n# a: b",
    "${X}",
)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every container with a key or an index of it."""
    found = []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        found += [(value, key), *places(inner)]
    return found


@pytest.mark.parametrize(
    ("file", "module"), [("everything.yaml", vllm_sr), ("flat.yaml", vllm_sr), ("litellm.yaml", litellm)]
)
def test_mangled_configurations(file: str, module: ModuleType) -> None:
    source = (HERE / file).read_text()
    chance = random.Random(file)
    refused = 0
    for _ in range(ROUNDS):
        data = yaml.safe_load(source)
        for container, key in chance.sample(places(data), chance.choice((1, 1, 2, 5))):
            if isinstance(container, dict) and chance.random() < 0.1:
                container[chance.choice(("x", "", "é", "name"))] = container.pop(key, None)
            elif not isinstance(container, list) or key < len(container):
                container[key] = chance.choice(JUNK)
        text = yaml.safe_dump(data)
        try:
            made = imported(read(text.encode(), file), file, module.port)
        except Unimportable as error:
            refused += str(error).startswith(file)  # which says where
            continue
        document = parse(made.text(), "policy.yaml")
        assert document.problems == [], made.text()
        assert document.data["version"] == 1
        assert made.report().isprintable() or "\n" in made.report()
    assert 0 < refused < ROUNDS


ROUNDS = 30
