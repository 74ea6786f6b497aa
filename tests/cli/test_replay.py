"""`replay`: in order, whatever comes; and the report of what another policy would change."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cli import replay
from signals.facts import Facts
from signals.reading import Reading, of
from signals.registry import BY_NAME
from signals.signal import Cost, Params, Shared, Signal
from tests.cli.conftest import Ran, chat
from tests.patience import PATIENCE

Run = Callable[..., Ran]


def recorded(*lines: Any) -> bytes:
    return b"".join((line if isinstance(line, bytes) else json.dumps(line).encode()) + b"\n" for line in lines)


GOLD = {"request": chat(), "headers": {"X-Tier": "gold"}}
PLAIN = {"request": chat(max_tokens=10)}


def test_one_line_a_request_in_order(run: Run, policy: Path) -> None:
    lines = recorded(
        GOLD,
        PLAIN,
        {"request": {"model": "auto", "input": "x"}, "path": "/v1/embeddings", "headers": {"x-bad": "1"}},
        {"request": chat(model="gpt-9")},
        {"request": chat(), "path": "/healthz", "attributes": {}},
    )
    ran = run("replay", policy, "-", stdin=lines)
    assert (ran.status, ran.err) == (0, "")
    found = ran.lines()
    assert all(line.pop("us") >= 0 for line in found)
    assert [line.pop("line") for line in found] == [1, 2, 3, 4, 5]
    assert found == [
        {"index": 0, "decision": "premium", "model": "large", "action": "route"},
        {"index": 1, "decision": None, "model": "small", "action": "default"},
        {"index": 2, "decision": "refuse", "model": None, "action": "respond", "status": 403},
        {"index": 3, "decision": None, "model": None, "action": "respond", "status": 404},
        {"index": 4, "decision": None, "model": None, "action": "respond", "status": 404},
    ]


def test_paths_that_go_unread(run: Run, policy: Path, tmp_path: Path) -> None:
    closed = tmp_path / "closed.yaml"
    closed.write_text(policy.read_text())
    policy.write_text(policy.read_text() + "paths: [{match: /v1/files, to: large}]\nsettings: {unread: pass}\n")
    lines = recorded(
        *({"request": {}, "path": path} for path in ("/v1/files", "/healthz")),
        {"request": {}, "path": "/v1/models/org%2Flarge", "headers": {":method": "GET"}},
        {"request": {}, "path": "/v1beta/models/gpt-9", "headers": {":method": "GET", "x-goog-api-key": "k"}},
    )
    found = run("replay", policy, "-", stdin=lines).lines()
    assert [(line["model"], line["action"], line.get("status")) for line in found] == [
        ("large", "route", None),
        (None, "route", None),
        (None, "respond", 200),
        (None, "respond", 404),
    ]
    report = run("replay", policy, "-", "--against", closed, "-o", "json", stdin=lines).json()
    assert (report["changed"], report["cost"]) == (2, {"before": 0.0, "after": 0.0})


def test_all_adds_every_signal(run: Run, policy: Path) -> None:
    (line,) = run("replay", policy, "-", "--all", stdin=recorded(GOLD)).lines()
    assert list(line) == ["index", "decision", "model", "action", "us", "signals", "line"]
    assert all(signal["evaluated"] for signal in line["signals"].values())


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "not an object with `request`"),
        ({"headers": {}}, "no `request`"),
        ({"request": {}, "header": {}}, "unknown key 'header'"),
        ({"request": {}, "headers": {"a": 1}}, "headers: names and values must be strings"),
        ({"request": {}, "path": 3}, "path: must be a string"),
        ({"request": {}, "attributes": []}, "attributes: must be an object"),
        (b'{"request": "\xff"}', "not JSON"),
    ],
)
def test_a_bad_line_is_named_and_costs_no_other(run: Run, policy: Path, bad: Any, reason: str) -> None:
    ran = run("replay", policy, "-", stdin=recorded(PLAIN, b"", bad, GOLD))
    assert ran.status == 1
    assert ran.err.startswith(f"<stdin>:3: {reason}")
    found = ran.lines()
    assert [line["index"] for line in found] == [0, 2, 3]
    assert [line["line"] for line in found] == [1, 3, 4]  # as standard error says, and as an editor counts
    assert found[1]["error"].startswith(reason)
    assert found[2]["decision"] == "premium"


def test_a_bad_line_is_named_with_its_file(run: Run, policy: Path, tmp_path: Path) -> None:
    requests = tmp_path / "requests.jsonl"
    requests.write_bytes(recorded(PLAIN, b"{", GOLD))
    for more in ((), ("--against", policy)):
        ran = run("replay", policy, requests, *more)
        assert ran.status == 1
        assert ran.err.startswith(f"{requests}:2: not JSON")


def test_a_line_that_is_too_long_is_left_out(run: Run, policy: Path) -> None:
    policy.write_text(policy.read_text() + "settings: {max_body: 1KiB}\n")
    ran = run("replay", policy, "-", stdin=recorded(PLAIN, {"request": chat("x" * 200_000)}, GOLD))
    assert ran.status == 1
    assert "<stdin>:2: longer than 67584 bytes" in ran.err
    assert [line.get("decision") for line in ran.lines()] == [None, None, "premium"]
    at_the_end = run("replay", policy, "-", stdin=recorded(PLAIN, {"request": chat("x" * 200_000)})[:-1])
    assert [line["index"] for line in at_the_end.lines()] == [0, 1]


def test_a_file_and_a_missing_one(run: Run, policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(recorded(GOLD)[:-1])
    assert len(run("replay", policy, path).lines()) == 1
    assert run("replay", policy, tmp_path / "none.jsonl").status == 2


class Slow(Signal):
    """Matches texts with an even number, the later the sooner; counts how many are waited for at one time."""

    kind = "slowly"
    Parameters = Params
    cost = Cost.NEURAL
    running = most = 0

    def __init__(self, name: str, params: Params, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self.slow = (self,)

    async def fetch(self, facts: Facts) -> int:
        Slow.running += 1
        Slow.most = max(Slow.most, Slow.running)
        number = int(facts.request.text())
        await asyncio.sleep(0.02 if number % 3 == 0 else 0)
        Slow.running -= 1
        return number

    def read(self, facts: Facts) -> Reading:
        return of(facts.got(self) % 2 == 0)


def test_slow_signals_are_waited_for_together_and_printed_in_order(
    run: Run, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(BY_NAME, "slowly", Slow)
    monkeypatch.setattr(Slow, "most", 0)
    text = policy.read_text().replace("beta: {header: {name: x-beta, exists: true}}", "beta: {slowly: {}}")
    policy.write_text(text)
    lines = [GOLD if n % 5 == 0 else {"request": chat(str(n))} for n in range(1, 400)]
    ran = run("replay", policy, "-", stdin=recorded(*lines, b"bad"))
    found = ran.lines()
    assert [line["index"] for line in found] == list(range(400))
    wanted = ["premium" if n % 5 == 0 else "trial" if n % 2 == 0 else None for n in range(1, 400)]
    assert [line["decision"] for line in found[:-1]] == wanted
    assert 8 < Slow.most <= replay.WINDOW


def test_what_another_policy_would_change(run: Run, policy: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(policy.read_text().replace("    route: large\n", "    route: small\n"))
    lines = recorded(GOLD, PLAIN, b"bad", GOLD, {"request": chat(model="gpt-9")}, GOLD, GOLD)
    ran = run("replay", policy, "-", "--against", other, "-o", "json", stdin=lines)
    assert ran.status == 1
    report = ran.json()
    assert (report["requests"], report["changed"], report["bad_lines"]) == (6, 4, 1)
    (change,) = report["changes"]
    assert change["before"] == {"decision": "premium", "model": "large", "action": "route"}
    assert change["after"] == {"decision": "premium", "model": "small", "action": "route"}
    assert (change["count"], change["lines"]) == (4, [1, 4, 6])
    # "hi" costs the same tokens four times, at (10 + 20) and at (1 + 2) a million.
    assert change["cost"] == pytest.approx(report["cost"]["after"] - report["cost"]["before"])
    assert change["cost"] < 0
    gold_before, gold_after = -change["cost"] * 30 / 27, -change["cost"] * 3 / 27
    assert report["cost"]["before"] - gold_before == pytest.approx(report["cost"]["after"] - gold_after)
    text = run("replay", policy, "-", "--against", other, stdin=lines).out
    assert text.startswith("6 requests, 4 decided differently (66.7 %), 1 bad lines\nestimated cost: ")
    assert "\n4 × premium: route large → premium: route small, cost -" in text
    assert "    for example line 1, 4, 6\n" in text


def test_nothing_recorded_nothing_changed(run: Run, policy: Path) -> None:
    assert run("replay", policy, "-").out == ""
    assert run("replay", policy, "-", "--against", policy).out.startswith("0 requests, 0 decided differently (0.0 %)")


@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(policy: Path, tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(recorded(PLAIN) * 20_000)
    command = [sys.executable, "-m", "cli.main", "replay", str(policy), str(path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert json.loads(process.stdout.readline())["index"] == 0
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(timeout=PATIENCE) == 0
