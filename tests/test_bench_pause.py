"""What the bench of pauses sends is what it says, and what it measures is what a client waits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import pause
from bench.__main__ import ServerProcess, serve
from bench.direct import LoadResult
from config.load import check
from extproc.wire import Kind, decode

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize("neural", ["", pause.NEURAL])
def test_the_policy_has_no_problem(neural: str) -> None:
    policy, problems = check(pause.policy(bool(neural)))
    assert policy is not None
    assert [problem for problem in problems if problem.severity == "error"] == []


@pytest.mark.parametrize("name", [name for name in pause.KINDS if " 100 MB" not in name])
def test_every_kind_is_what_envoy_sends(name: str) -> None:
    """One stream: request headers first, body after it."""
    turns = pause.KINDS[name].turns()
    kinds = []
    for turn in turns:
        for data in turn.messages:
            message = decode(data)
            assert message is not None
            kinds.append(message.kind)
    assert kinds[0] == Kind.REQUEST_HEADERS
    assert set(kinds[1:]) <= {Kind.REQUEST_BODY}


def test_the_table_marks_what_is_late() -> None:
    found = LoadResult(requests=3, latencies=[1.0, 2.0, 80.0])
    quick = LoadResult(requests=1, latencies=[1.0])
    first, late, good = pause.table({"late": pause.row(found), "good": pause.row(quick)}).splitlines()
    assert "p99.9" in first
    assert late.endswith("over 50 ms")
    assert good.split() == ["good", "1.00", "1.00", "1.00", "1.00", "0"]


@pytest.mark.slow
def test_a_benign_client_beside_a_hostile_one(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Against a router of its own, for a second; every benign request is answered."""
    assert pause.main(["--seconds", "1", "--only", "2,300", "--out", str(tmp_path)]) == 0
    rows = json.loads((tmp_path / "pause.json").read_text())
    assert list(rows) == ["quiet, before", "paths: 2,300 x %2F", "quiet, after"]
    assert all(row["failed"] == 0 for row in rows.values())
    assert rows["paths: 2,300 x %2F"]["hostile"]["requests"] > 0
    assert "benign client beside" in capfd.readouterr().out


@pytest.mark.e2e
def test_a_client_whose_router_does_not_answer_counts_it(tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text(pause.policy(False))
    target = f"unix:{tmp_path}/router.sock"
    server = ServerProcess(serve(policy, target, code=ROOT), target, None, tmp_path / "log")
    try:
        found = pause.benign(target, 0.5, 100)
    finally:
        server.close()
    assert (found.failed, found.requests) == (0, 50)
    with pytest.raises(OSError, match=r"No such file|refused"):
        pause.benign(target, 0.5, 100)
