"""`import litellm`: models, aliases, fallbacks and the complexity router."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cli.import_ import imported
from cli.imports import litellm
from cli.imports.ported import Ported
from cli.imports.source import read
from config.document import parse
from config.load import check
from tests.cli.test_validate import Run

PROXY = Path(__file__).with_name("litellm.yaml")


@pytest.fixture(scope="module")
def made() -> Ported:
    return imported(read(PROXY.read_bytes(), PROXY.name), PROXY.name, litellm.port)


@pytest.fixture(scope="module")
def policy(made: Ported) -> dict[str, Any]:
    found: dict[str, Any] = parse(made.text(), "policy.yaml").data
    return found


def test_the_result_is_a_policy_without_errors(made: Ported) -> None:
    _, problems = check(made.text(), "policy.yaml", doubts=False)
    assert [str(problem) for problem in problems if problem.severity == "error"] == []


def test_models_aliases_and_fallbacks(policy: dict[str, Any]) -> None:
    models = policy["models"]
    assert list(models) == ["small", "large", "large@2", "cloud", "mistral/*"]
    assert models["small"] == {
        "name": "gpt-small",
        "url": "https://api.openai.com",
        "credential": {"from": {"secret": "openai-api-key", "key": "token"}},
        "price": {"input": 0.1, "output": 0.4},
        "context": 128000,
        "max_output": 16000,
        "capabilities": ["tools"],
        "aliases": ["hidden"],
        "fallback": ["large", "cloud"],
    }
    assert (models["large"]["aliases"], models["large"]["fallback"]) == (["gpt-4"], ["large@2", "cloud"])
    assert (policy["default"], policy["auto"]) == ("small", ["smart"])


def test_what_cannot_be_said_is_told(made: Ported) -> None:
    told = {one.place: (one.kind, one.message) for one in made.told}
    assert told["router_settings.model_group_alias.lost"][0] == "contradiction"
    assert "circle" in told["router_settings.fallbacks[1].large"][1]
    assert told["model_list[cloud].litellm_params.model"][0] == "loss"
    assert told["general_settings"][0] == "note"
    assert "written-out" not in made.text()


def test_the_complexity_router_is_a_score_with_bands(policy: dict[str, Any]) -> None:
    score = policy["signals"]["smart:complexity"]["score"]
    assert score["bands"] == {
        "SIMPLE": {"below": 0.1},
        "MEDIUM": {"below": 0.35},
        "COMPLEX": {"below": 0.6},
        "REASONING": {},
    }
    assert score["sum"]["smart:short"] == -0.2
    assert score["sum"]["smart:reasoningMarkers+"] == 0.075
    assert [(one["name"], one["route"]) for one in policy["decisions"]] == [
        ("smart-complex-1", "large"),
        ("smart-reasoning", "large"),
        ("smart-complex", "large"),
        ("smart-medium", {"pick": ["small", "large"], "by": "weighted"}),
        ("smart-simple", "small"),
        ("smart-default", "small"),
    ]
    assert policy["decisions"][1]["set"] == {"reasoning_effort": "high"}


CASES = PROXY.with_name("litellm.cases.yaml")


def test_the_policy_routes_as_the_proxy_would(run: Run, made: Ported, tmp_path: Path) -> None:
    (tmp_path / "policy.yaml").write_text(made.text())
    ran = run("test", tmp_path / "policy.yaml", CASES)
    assert ran.status == 0, ran.out


def test_no_credential_of_the_source_stands_in_the_policy(run: Run, tmp_path: Path) -> None:
    params = "{model: openai/x, api_key: sk-hidden, api_base: 'http://me:hidden@host:8000/v1?key=hidden'}"
    text = f"model_list: [{{model_name: x, litellm_params: {params}}}]\ngeneral_settings: {{master_key: hidden}}\n"
    (tmp_path / "config.yaml").write_text(text)
    ran = run("import", "litellm", tmp_path / "config.yaml", "--report", tmp_path / "report.json")
    assert ran.status == 3
    assert "url: http://host:8000" in ran.out
    assert "hidden" not in ran.out + ran.err + (tmp_path / "report.json").read_text()
    assert "api_base: its user and password have no place here" in ran.err


@pytest.mark.parametrize(
    "text", ["model_list: []", "routing: {decisions: []}", "model_list: [1]", "model_list:\n- a: ["]
)
def test_what_is_no_configuration_of_the_proxy(run: Run, tmp_path: Path, text: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    ran = run("import", "litellm", tmp_path / "config.yaml")
    assert (ran.status, ran.out) == (2, "")
    assert "config.yaml" in ran.err
