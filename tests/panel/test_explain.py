"""What `explain` says of a panel: the calls that are to be expected, and what they may cost."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cli.main import main

POLICY = """\
version: 1
models:
  small: {name: s, price: {input: 1, output: 2}, url: "http://127.0.0.1:9"}
  large: {name: l, price: {input: 10, output: 20}, url: "http://127.0.0.1:9"}
default: small
decisions:
  - {name: ask, panel: {cascade: [small, large], until: {sure: 0.9}}}
"""


def test_the_calls_and_their_cost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, request = tmp_path / "policy.yaml", tmp_path / "request.json"
    policy.write_text(POLICY)
    body = {"model": "auto", "max_tokens": 100, "messages": [{"role": "user", "content": "What is two and two?"}]}
    request.write_text(json.dumps(body))
    assert main(["explain", str(policy), str(request), "-o", "json"]) == 0
    told = json.loads(capsys.readouterr().out)["writer"]
    assert [(call["model"], call["why"], call["always"]) for call in told["calls"]] == [
        ("small", "draft", True),
        ("large", "last", False),
    ]
    prompt = told["prompt_tokens"]
    assert (prompt > 0, told["completion_tokens"]) == (True, 100)
    assert told["cost"]["least"] == pytest.approx((prompt + 200) / 1e6)
    assert told["cost"]["most"] == pytest.approx(11 * (prompt + 200) / 1e6)
    assert main(["explain", str(policy), str(request)]) == 0
    assert "calls     small (draft), large (last, if needed)" in capsys.readouterr().out


def test_a_plain_route_plans_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    policy, request = tmp_path / "policy.yaml", tmp_path / "request.json"
    policy.write_text(POLICY.replace("panel: {cascade: [small, large], until: {sure: 0.9}}", "route: large"))
    request.write_text('{"model": "auto", "messages": [{"role": "user", "content": "?"}]}')
    assert main(["explain", str(policy), str(request), "-o", "json"]) == 0
    assert "writer" not in json.loads(capsys.readouterr().out)
