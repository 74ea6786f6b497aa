"""`schema`: a JSON Schema that takes every example and knows the mistakes it can know."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jsonschema
import pytest

from config.document import parse
from tests.cli.conftest import POLICY, Ran
from tests.patience import PATIENCE

EXAMPLES = sorted(
    path for path in Path(__file__, "../../../examples").resolve().glob("*.yaml") if ".cases." not in path.name
)


@pytest.fixture
def schema(run: Callable[..., Ran]) -> jsonschema.Draft202012Validator:
    ran = run("schema")
    assert ran.status == 0
    jsonschema.Draft202012Validator.check_schema(ran.json())
    return jsonschema.Draft202012Validator(ran.json())


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


@pytest.mark.slow
def test_a_reader_that_has_enough_is_no_error() -> None:
    command = f"{sys.executable} -m cli.main schema | head -c 10"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (0, "")
