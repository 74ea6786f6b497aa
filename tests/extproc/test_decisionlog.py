"""The decision log: what a line says, what it leaves out, and that `replay` reads it back."""

import json
import time

import pytest

from cli.main import main
from config.build import build
from config.load import parse
from extproc.body import parse as parse_request
from extproc.decisionlog import DecisionLog, LogOptions
from extproc.paths import Target

POLICY = """\
version: 1
models: {small: {}, large: {}}
default: small
signals: {gold: {header: {name: x-tier, in: [gold]}}}
decisions:
  - {name: gold, when: gold, route: large}
"""
BODY = {"model": "auto", "messages": [{"role": "user", "content": "I am ann@example.org"}]}
HEADERS = {":path": "/v1/chat/completions", "x-request-id": "r1", "authorization": "Bearer sk-x", "x-tier": "gold"}


@pytest.fixture
def decided():
    engine = build(parse(POLICY))
    request = parse_request(Target("chat"), HEADERS, {}, json.dumps(BODY).encode())
    return engine.settle(request), request


def written(options, decided, times=1, chance=lambda: 0.0):
    log = DecisionLog(options, chance)
    for _ in range(times):
        log.record(*decided)
    log.close()
    return log


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_line_without_content_holds_no_text_of_the_request(tmp_path, decided):
    path = tmp_path / "log.jsonl"
    written(LogOptions(str(path)), decided)
    (line,) = lines(path)
    assert line["decision"] == "gold"
    assert line["model"] == "large"
    assert line["id"] == "r1"
    assert line["signals"]["gold"]["matched"] is True
    assert "ann" not in path.read_text()
    assert "request" not in line


def test_content_is_masked_and_credentials_are_left_out(tmp_path, decided):
    path = tmp_path / "log.jsonl"
    written(LogOptions(str(path), content=True, headers=("X-Tier",)), decided)
    (line,) = lines(path)
    assert line["request"]["messages"][0]["content"] == "I am [email]"
    assert line["headers"] == {"x-request-id": "r1", "x-tier": "gold"}
    assert "sk-x" not in path.read_text()


def test_replay_reads_a_log_with_content_back(tmp_path, decided, capsys):
    path, policy = tmp_path / "log.jsonl", tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    written(LogOptions(str(path), content=True, headers=("x-tier",)), decided, times=3)
    assert main(["replay", str(policy), str(path)]) == 0
    replayed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["decision"] for line in replayed] == ["gold"] * 3


def test_the_sample_is_kept_to(tmp_path, decided):
    path = tmp_path / "log.jsonl"
    chances = iter([0.05, 0.5, 0.95, 0.09])
    written(LogOptions(str(path), sample=0.1), decided, times=4, chance=lambda: next(chances))
    assert len(lines(path)) == 2


def test_a_rotated_file_is_opened_anew(tmp_path, decided):
    path = tmp_path / "log.jsonl"
    log = DecisionLog(LogOptions(str(path)), lambda: 0.0)
    log.record(*decided)
    deadline = time.monotonic() + 10
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    path.rename(tmp_path / "log.1")
    log.record(*decided)
    log.close()
    assert len(lines(path)) == 1


def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else(tmp_path, decided):
    log = written(LogOptions(str(tmp_path / "none" / "log.jsonl")), decided, times=2)
    assert log.dropped >= 2


def test_a_slow_disk_drops_lines_instead_of_holding_requests_up(tmp_path, decided, monkeypatch):
    monkeypatch.setattr("extproc.decisionlog.CAPACITY", 5)
    log = written(LogOptions(str(tmp_path / "log.jsonl")), decided, times=50)
    assert log.dropped > 0
    assert len(lines(tmp_path / "log.jsonl")) + log.dropped == 50


def test_standard_output(decided, capfdbinary):
    written(LogOptions("-"), decided)
    assert json.loads(capfdbinary.readouterr().out)["decision"] == "gold"
