"""What the tests of the commands share: a policy, and running a command in this process."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cli.main import main

POLICY = """\
version: 1
models:
  small: {name: org/small, price: {input: 1, output: 2}}
  large: {name: org/large, price: {input: 10, output: 20}}
default: small
signals:
  bad: {header: {name: x-bad, exists: true}}
  gold: {header: {name: x-tier, in: [gold]}}
  beta: {header: {name: x-beta, exists: true}}
decisions:
  - name: refuse
    when: {all: [bad, {not: gold}]}
    respond: {status: 403, message: "No."}
  - name: premium
    when: gold
    route: large
    set: {reasoning_effort: high, max_tokens: 100, headers: {x-lane: fast}}
  - name: trial
    when: beta
    route: small
"""


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    status: int
    out: str
    err: str

    def json(self) -> Any:
        return json.loads(self.out)

    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    def run(*arguments: object, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return Ran(status, captured.out, captured.err)

    return run


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY)
    return path


def chat(text: str = "hi", model: str | None = "auto", **fields: Any) -> dict[str, Any]:
    named = {} if model is None else {"model": model}
    return {**named, "messages": [{"role": "user", "content": text}], **fields}
