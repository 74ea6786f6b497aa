"""The decision log: what a line says, what it leaves out, and that `replay` reads it back."""

import gc
import json
import time
import weakref
from dataclasses import replace

import pytest

from cli.main import main
from config.build import build
from config.load import parse
from decisions.decision import Choice
from decisions.model import Model
from decisions.outcome import Outcome
from extproc.records.decisionlog import DecisionLog, LogOptions
from extproc.requests.body import parse as parse_request
from extproc.requests.paths import Target
from signals.request import Request
from tests.extproc.envoy import decided as outcome
from tests.patience import PATIENCE

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
        log.record(outcome(*decided), decided[1])
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


def test_replay_knows_whatever_a_line_may_have(tmp_path, decided, capsys):
    path, policy = tmp_path / "log.jsonl", tmp_path / "policy.yaml"
    policy.write_text(POLICY)
    trace, request = decided
    other = Model("other", "other")
    trace = trace._replace(
        observed=("guard",),
        kept=True,
        lacking={"small": ["vision"]},
        choice=Choice(other, "its share", 1.0, "weighted"),
    )
    full = Outcome(
        trace, other, 9, 200, 1.0, 2.0, 1, 1, 1.0, 1, 1, 1.0, "acme", 1, "hit", (("a", "mask"), ("b", "cut"))
    )
    log = DecisionLog(LogOptions(str(path), content=True))
    log.record(full, request)
    log.close()
    (line,) = lines(path)
    assert {"tenant", "cache", "answer", "chosen", "observed", "kept", "lacking", "choice"} <= set(line)
    assert main(["replay", str(policy), str(path)]) == 0
    assert capsys.readouterr().err == ""


def test_a_choice_of_models_is_logged_and_decided_again(tmp_path, capsys):
    text = POLICY.replace("route: large", "route: {pick: [small, large], weights: {small: 3}}")
    request = parse_request(Target("chat"), HEADERS, {}, json.dumps(BODY).encode())
    path, policy = tmp_path / "log.jsonl", tmp_path / "p.yaml"
    policy.write_text(text)
    written(LogOptions(str(path), content=True, headers=("x-tier",)), (build(parse(text)).settle(request), request))
    (line,) = lines(path)
    choice = line["choice"]
    assert (choice["model"], choice["by"], choice["why"]) == (line["model"], "weighted", "its share")
    assert choice["propensity"] == {"small": 0.75, "large": 0.25}[choice["model"]]
    assert main(["replay", str(policy), str(path)]) == 0
    assert json.loads(capsys.readouterr().out)["choice"] == choice


def test_the_sample_is_kept_to(tmp_path, decided):
    path = tmp_path / "log.jsonl"
    chances = iter([0.05, 0.5, 0.95, 0.09])
    written(LogOptions(str(path), sample=0.1), decided, times=4, chance=lambda: next(chances))
    assert len(lines(path)) == 2


def test_a_rotated_file_is_opened_anew(tmp_path, decided):
    path = tmp_path / "log.jsonl"
    log = DecisionLog(LogOptions(str(path)), lambda: 0.0)
    log.record(outcome(*decided), decided[1])
    deadline = time.monotonic() + PATIENCE
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    path.rename(tmp_path / "log.1")
    log.record(outcome(*decided), decided[1])
    log.close()
    assert len(lines(path)) == 1


def test_a_log_that_cannot_be_written_costs_lines_and_nothing_else(tmp_path, decided):
    log = written(LogOptions(str(tmp_path / "none" / "log.jsonl")), decided, times=2)
    assert log.dropped >= 2


def test_a_slow_disk_drops_lines_instead_of_holding_requests_up(tmp_path, decided, monkeypatch):
    monkeypatch.setattr("extproc.records.decisionlog.CAPACITY", 5)
    log = written(LogOptions(str(tmp_path / "log.jsonl")), decided, times=50)
    assert log.dropped > 0
    assert len(lines(tmp_path / "log.jsonl")) + log.dropped == 50


def test_standard_output(decided, capfdbinary):
    written(LogOptions("-"), decided)
    assert json.loads(capfdbinary.readouterr().out)["decision"] == "gold"


def test_a_body_nested_as_deeply_as_it_may_be_is_written_whole(tmp_path, decided, capsys):
    """The JSON reader takes 1,024 levels, its writer 254, and Python's stack about 1,000 calls."""
    trace, _ = decided
    body = b'{"model":"auto","messages":[{"role":"user","content":"a"}],"x":' + b"[" * 1_000 + b'"ann@example.org"'
    deep = parse_request(Target("chat"), HEADERS, {}, body + b"]" * 1_000 + b"}")
    log = written(LogOptions(str(tmp_path / "log.jsonl"), content=True), (trace, deep), times=2)
    first, second = (tmp_path / "log.jsonl").read_bytes().splitlines()
    assert b'"x":' + b"[" * 1_000 + b'"[email]"' + b"]" * 1_000 + b"}" in first
    assert first.partition(b"policy")[2] == second.partition(b"policy")[2]
    assert (log.dropped, log.restarts, log.content_errors) == (0, 0, 0)
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert main(["replay", str(tmp_path / "policy.yaml"), str(tmp_path / "log.jsonl")]) == 1
    assert f"{tmp_path}/log.jsonl:2: its request is nested too deeply" in capsys.readouterr().err


def test_content_that_cannot_be_masked_is_left_out_and_counted(tmp_path, decided, monkeypatch, capsys):
    trace, request = decided
    path = tmp_path / "log.jsonl"
    log = DecisionLog(LogOptions(str(path), content=True), lambda: 0.0)
    log.record(outcome(trace, request), replace(request, body=b"not JSON"))
    log.close()
    monkeypatch.setattr("extproc.records.decisionlog.MASKING_S", -1.0)
    log.record(outcome(trace, request), request)
    log.close()
    assert [line["content_error"] for line in lines(path)] == ["ValueError", "took too long to mask"]
    assert "ann" not in path.read_text()
    assert log.content_errors == 2
    (tmp_path / "policy.yaml").write_text(POLICY)
    assert main(["replay", str(tmp_path / "policy.yaml"), str(path)]) == 1
    assert f"{path}:2: its request was not logged: took too long to mask" in capsys.readouterr().err


def test_the_log_is_bounded_in_bytes(tmp_path, decided, monkeypatch):
    monkeypatch.setattr("extproc.records.decisionlog.PAUSE_S", 0.5)  # nothing is written before all is recorded
    trace, request = decided
    large = replace(request, body=json.dumps(BODY | {"x": "y" * 100_000}).encode())
    log = DecisionLog(LogOptions(str(tmp_path / "log.jsonl"), content=True, buffer=1_000_000), lambda: 0.0)
    for _ in range(50):
        log.record(outcome(trace, large), large)
    assert log.dropped == 41  # nine bodies and their lines fit
    log.close()
    assert len(lines(tmp_path / "log.jsonl")) == 9
    log.record(outcome(trace, large), large)  # what was written has made room
    log.close()
    assert len(lines(tmp_path / "log.jsonl")) == 10
    assert log.dropped == 41


def test_a_line_without_content_keeps_nothing_of_the_request(tmp_path, decided, monkeypatch):
    monkeypatch.setattr("extproc.records.decisionlog.PAUSE_S", 0.5)

    class Seen(Request):
        """Unlike its base, with room for a weak reference."""

    request = Seen("chat", b"y" * 1_000, {}, None, ())
    kept = weakref.ref(request)
    log = DecisionLog(LogOptions(str(tmp_path / "log.jsonl")), lambda: 0.0)
    log.record(outcome(decided[0], request), request)
    del request
    gc.collect()
    assert kept() is None
    log.close()
    assert len(lines(tmp_path / "log.jsonl")) == 1


def test_a_writer_that_breaks_is_started_again_and_counted(tmp_path, decided, monkeypatch):
    path = tmp_path / "log.jsonl"
    log = DecisionLog(LogOptions(str(path)), lambda: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr(log, "_append", lambda data: 1 / 0)
        log.record(outcome(*decided), decided[1])
        deadline = time.monotonic() + PATIENCE
        while not log.restarts and time.monotonic() < deadline:
            time.sleep(0.01)
    log.record(outcome(*decided), decided[1])
    log.close()
    assert (log.restarts, log.dropped) == (1, 1)
    assert len(lines(path)) == 1
    assert log._held == 0


@pytest.mark.parametrize(
    ("path", "logged"),
    [
        ("/v1/chat/completions?api-key=sk-1&sig=abc", "/v1/chat/completions"),
        ("/v1/chat/completions%3fkey=AIza1", "/v1/chat/completions"),
        ("/v1/chat/completions%253Faccess_token=x", "/v1/chat/completions"),
        ("/v1/chat/completions;jsessionid=1#a", "/v1/chat/completions"),
        ("//ann:pass@host/v1/chat/completions", "//host/v1/chat/completions"),
        ("http://ann:p@ss@host/v1/chat/completions", "http://host/v1/chat/completions"),
        ("/u/ann@example.org/v1/chat/completions", "/u/[email]/v1/chat/completions"),
        ("/a\r\nb", "/a  b"),
        ("/" + "a" * 100_000, "/" + "a" * 1_023),
    ],
)
def test_a_path_is_logged_without_keys_and_bounded(tmp_path, decided, path, logged):
    trace, request = decided
    request = replace(request, headers={**HEADERS, ":path": path})
    written(LogOptions(str(tmp_path / "log.jsonl"), content=True), (trace, request))
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["path"] == logged


def test_a_clients_id_is_bounded_and_on_one_line(tmp_path, decided):
    trace, request = decided
    request = replace(request, headers={**HEADERS, "x-request-id": "a\n\x1b[0m" + "b" * 100_000})
    written(LogOptions(str(tmp_path / "log.jsonl")), (trace, request))
    (line,) = lines(tmp_path / "log.jsonl")
    assert line["id"] == "a  [0m" + "b" * 249 + "…"


@pytest.mark.parametrize(
    "name",
    [
        *(
            "Authorization",
            "proxy-authorization",
            "Cookie",
            "set-cookie",
            "x-api-key",
            "x_api_key",
            "api-key",
            "apikey",
        ),
        *("x-goog-api-key", "x-auth-token", "x-amz-security-token", "ocp-apim-subscription-key", "x-client-secret"),
    ],
)
def test_headers_that_carry_credentials_are_refused(name):
    with pytest.raises(ValueError, match="carries a credential"):
        LogOptions("-", headers=(name,))


def test_headers_that_only_sound_like_it_are_kept():
    kept = ("x-max-tokens", "idempotency-key", "x-user", "x-authority")
    assert LogOptions("-", headers=kept).headers == kept


def test_a_writer_that_cannot_start_now_starts_with_a_later_line(tmp_path, decided, monkeypatch):
    log = DecisionLog(LogOptions(str(tmp_path / "log.jsonl")), lambda: 0.0)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", lambda thread: (_ for _ in ()).throw(RuntimeError("no more threads")))
        log.record(outcome(*decided), decided[1])
    log.record(outcome(*decided), decided[1])
    log.close()
    assert len(lines(tmp_path / "log.jsonl")) == 2


def test_a_log_that_cannot_be_written_ends_the_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("extproc.records.log.setup", lambda *_: None)
    policy = tmp_path / "policy.yaml"
    policy.write_text("version: 1\nmodels: {small: {}}\ndefault: small\n")
    path = tmp_path / "nowhere" / "log.jsonl"
    assert main(["serve", str(policy), "--listen", "127.0.0.1:0", "--decision-log", str(path)]) == 2
    assert f"--decision-log {path}: it cannot be written: No such file or directory" in capsys.readouterr().err
