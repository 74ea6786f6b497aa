"""Configurations with a value in the wrong place are refused with a place, or imported: never a crash."""

from __future__ import annotations

import random
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from cli.import_ import imported
from cli.imports import litellm, vllm_sr
from cli.imports.source import Unimportable, read
from config.document import parse
from config.load import check
from tests import yamls
from tests.volume import few_and_many

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


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(15, 30)
@pytest.mark.parametrize(
    ("file", "module"), [("everything.yaml", vllm_sr), ("flat.yaml", vllm_sr), ("litellm.yaml", litellm)]
)
def test_mangled_configurations(file: str, module: ModuleType, examples: int) -> None:
    source = (HERE / file).read_text()
    chance = random.Random(file)
    refused = 0
    for _ in range(examples):
        data = yamls.load(source)
        for container, key in chance.sample(places(data), chance.choice((1, 1, 2, 5))):
            if isinstance(container, dict) and chance.random() < 0.1:
                container[chance.choice(("x", "", "é", "name"))] = container.pop(key, None)
            elif not isinstance(container, list) or key < len(container):
                container[key] = chance.choice(JUNK)
        text = yamls.dump(data)
        try:
            made = imported(read(text.encode(), file), file, module.port)
        except Unimportable as error:
            refused += str(error).startswith(file)  # which says where
            continue
        document = parse(made.text(), "policy.yaml")
        assert document.problems == [], made.text()
        assert document.data["version"] == 1
        assert made.report().isprintable() or "\n" in made.report()
    assert 0 < refused < examples


STRANGE = "a\x01b\u2028\n"
"""As a policy has it: `a b`."""


@pytest.mark.parametrize(
    ("module", "source"),
    [
        (
            litellm,
            {
                "model_list": [
                    {"model_name": STRANGE, "litellm_params": {"model": f"openai/{STRANGE}"}},
                    {"model_name": "other", "litellm_params": {"model": "openai/o", "api_base": "http://o"}},
                    {
                        "model_name": "auto",
                        "litellm_params": {
                            "model": "auto_router/complexity_router",
                            "complexity_router_config": {"tiers": {"SIMPLE": STRANGE, "COMPLEX": [STRANGE]}},
                        },
                    },
                ],
                "router_settings": {
                    "model_group_alias": {f"{STRANGE}x": STRANGE},
                    "fallbacks": [{"other": [STRANGE]}],
                },
            },
        ),
        (
            vllm_sr,
            {
                "providers": {"defaults": {"model": STRANGE}, "models": [{"name": STRANGE}]},
                "entrypoints": [{"recipe": "r", "model_names": [f"{STRANGE}x"]}],
                "global": {"router": {"auto_model_names": [f"{STRANGE}y"]}},
                "recipes": [
                    {
                        "name": "r",
                        "routing": {
                            "signals": {"keywords": [{"name": STRANGE, "operator": "OR", "keywords": ["k"]}]},
                            "decisions": [
                                {
                                    "name": STRANGE,
                                    "rules": {"type": "keyword", "name": STRANGE},
                                    "modelRefs": [{"model": STRANGE}],
                                }
                            ],
                        },
                    }
                ],
            },
        ),
    ],
    ids=["litellm", "vllm-sr"],
)
def test_names_with_control_characters_become_names(module: ModuleType, source: dict[str, Any]) -> None:
    made = imported(read(yamls.dump(source).encode(), "config.yaml"), "config.yaml", module.port)
    policy, problems = check(made.text(), "policy.yaml", doubts=False)
    assert policy is not None, (problems, made.text())
    assert "a b" in policy.models
    assert any("a b" in [model.key for model in clause.candidates] for clause in policy.clauses)
