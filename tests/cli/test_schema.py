"""`schema`: a JSON Schema that takes every example and knows the mistakes it can know."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cli.main import main
from config.document import parse
from tests.cli.conftest import POLICY, Ran
from tests.patience import PATIENCE

EXAMPLES = sorted(
    path for path in Path(__file__, "../../../examples").resolve().glob("*.yaml") if ".cases." not in path.name
)


def validator(*command: str) -> jsonschema.Draft202012Validator:
    """What the command prints, ready to check with."""
    out = io.StringIO()
    with redirect_stdout(out):
        assert main([*command]) == 0
    printed = json.loads(out.getvalue())
    jsonschema.Draft202012Validator.check_schema(printed)
    return jsonschema.Draft202012Validator(printed)


@pytest.fixture(scope="module")
def schema() -> jsonschema.Draft202012Validator:
    return validator("schema")


@pytest.mark.parametrize("text", [POLICY, *(path.read_text() for path in EXAMPLES)])
def test_it_takes_policies(schema: jsonschema.Draft202012Validator, text: str) -> None:
    assert [error.message for error in schema.iter_errors(parse(text, "p").data)] == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("when: gold", "wehn: gold"),
        ("exists: true", "exist: true"),
        ("header:", "heder:"),
        ("version: 1", "version: 2"),
        ("default: small\n", ""),
        ("{not: gold}", "{not: gold, any: [gold]}"),
    ],
)
def test_it_refuses_mistakes(schema: jsonschema.Draft202012Validator, old: str, new: str) -> None:
    assert not schema.is_valid(parse(POLICY.replace(old, new), "p").data)


CASES = sorted(Path(__file__, "../../../examples").resolve().glob("*.cases.yaml"))


@pytest.fixture(scope="module")
def cases() -> jsonschema.Draft202012Validator:
    return validator("schema", "cases")


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.name)
def test_that_of_cases_takes_the_examples(cases: jsonschema.Draft202012Validator, path: Path) -> None:
    assert [error.message for error in cases.iter_errors(parse(path.read_text(), "c").data)] == []


@pytest.mark.parametrize(
    "text",
    [
        "cases: []",
        "case: [{name: a, expect: {decision: b}}]",
        "cases: [{expect: {decision: b}}]",
        "cases: [{name: a, expects: {decision: b}}]",
        "cases: [{name: a, expect: {desicion: b}}]",
        "cases: [{name: a, expect: {status: '403'}}]",
        "cases: [{name: a, signals: {s: maybe}, expect: {decision: b}}]",
        "cases: [{name: a, expect: {answer: {action: passes}}}]",
    ],
)
def test_that_of_cases_refuses_mistakes(cases: jsonschema.Draft202012Validator, text: str) -> None:
    assert not cases.is_valid(parse(text, "c").data)


def undescribed(schema: dict[str, Any]) -> Iterator[str]:
    """Where properties stand that neither say what they are nor refer to something that does."""
    definitions = schema["$defs"]

    def walk(node: Any, path: str) -> Iterator[str]:
        if isinstance(node, list):
            for index, each in enumerate(node):
                yield from walk(each, f"{path}/{index}")
        elif isinstance(node, dict):
            for name, each in node.get("properties", {}).items():
                named = definitions.get(each.get("$ref", "").removeprefix("#/$defs/"), {})
                if not (each.get("description") or named.get("description")):
                    yield f"{path}/{name}"
            for key, each in node.items():
                yield from walk(each, f"{path}/{key}")

    return walk(schema, "")


@pytest.mark.parametrize("of", ["policy", "cases"])
def test_every_property_says_what_it_is(run: Callable[..., Ran], of: str) -> None:
    schema = run("schema", of).json()
    assert list(undescribed(schema)) == []
    model, key = {"policy": ("StepSpec", "max_tokens"), "cases": ("Stub", "score")}[of]
    del schema["$defs"][model]["properties"][key]["description"]
    assert list(undescribed(schema)) == [f"/$defs/{model}/{key}"]


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m cli.main schema | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
