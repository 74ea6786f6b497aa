"""`explain`: the object and the drawing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from cli.explain import differences
from tests.cli.conftest import Ran, chat

Run = Callable[..., Ran]


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(chat()))
    return path


def test_the_object_is_the_contracts(run: Run, policy: Path, body: Path) -> None:
    ran = run("explain", policy, body, "-H", "X-Tier: gold", "-o", "json")
    assert ran.status == 0
    shown = ran.json()
    assert list(shown) == ["decision", "model", "action", "status", "signals", "rules", "policy", "us"]
    assert (shown["decision"], shown["model"], shown["action"], shown["status"]) == ("premium", "large", "route", None)
    assert shown["policy"].startswith("sha256:")
    assert shown["us"] > 0
    assert shown["rules"] == [{"decision": "refuse", "result": False}, {"decision": "premium", "result": True}]
    assert set(shown["signals"]) == {"bad", "gold", "beta"}
    keys = {"matched", "score", "label", "evaluated", "us", "error"}
    assert all(set(signal) == keys for signal in shown["signals"].values())
    assert shown["signals"]["gold"]["matched"] is True
    assert shown["signals"]["gold"]["us"] > 0
    assert shown["signals"]["beta"] == {
        "matched": None, "score": None, "label": None, "evaluated": False, "us": 0.0, "error": None,
    }  # fmt: skip


def test_all_reads_every_signal(run: Run, policy: Path, body: Path) -> None:
    shown = run("explain", policy, body, "-H", "x-tier: gold", "--all", "-o", "json").json()
    assert all(signal["evaluated"] for signal in shown["signals"].values())
    text = run("explain", policy, body, "-H", "x-tier: gold", "--all").out
    assert "other signals read\n  beta: false, score 0," in text


def test_the_text_shows_the_tree_and_what_will_be_set(run: Run, policy: Path) -> None:
    ran = run("explain", policy, "-", "-H", "x-tier:gold", stdin=json.dumps(chat(model=None)).encode())
    assert ran.status == 0
    assert ran.out.startswith("decision  premium\noutcome   route to large (org/large)\npolicy    sha256:")
    assert " µs\n" in ran.out
    for line in (
        "true     premium  → route large",
        "  └─ gold: true, score 1, ",
        "–        trial  → route small  (not evaluated: 'premium' decided)",
        "signals not read: beta (the outcome did not hang on them)",
        "request headers set\n  x-pointsman-route: large\n  x-lane: fast\n",
        "request body changed\n  model: org/large\n  reasoning_effort: high\n  max_tokens: 100\n",
        "response headers set\n  x-pointsman-decision: premium\n  x-pointsman-model: large\n",
    ):
        assert line in ran.out


def test_a_metered_stream_is_asked_for_its_usage(run: Run, policy: Path) -> None:
    stream = json.dumps(chat(model="auto", stream=True)).encode()
    line = "\n  stream_options: "
    assert line not in run("explain", policy, "-", stdin=stream).out
    policy.write_text(policy.read_text() + "settings: {meter: on}\n")
    assert line in run("explain", policy, "-", stdin=stream).out
    assert line not in run("explain", policy, "-", stdin=json.dumps(chat(model="auto")).encode()).out


def test_response_headers_that_are_switched_off_are_not_shown(run: Run, policy: Path, body: Path) -> None:
    policy.write_text(policy.read_text() + "settings: {response_headers: false}\n")
    assert "response headers set" not in run("explain", policy, body).out


def test_a_request_that_names_its_model(run: Run, policy: Path) -> None:
    ran = run("explain", policy, "-", stdin=json.dumps(chat(model="org/large")).encode())
    assert "outcome   route to large (org/large): the request names its model" in ran.out
    assert "(not evaluated: the request names its model)" in ran.out
    assert "request body changed" not in ran.out


@pytest.mark.parametrize(
    ("stdin", "status", "words"),
    [
        (json.dumps(chat(model="gpt-9")).encode(), 404, "'gpt-9' does not exist"),
        (b"{nope", 400, "not valid JSON"),
        (b"", 400, "empty"),
        (b"[]", 400, "must be a JSON object"),
    ],
)
def test_a_request_that_is_refused_before_any_rule(
    run: Run, policy: Path, stdin: bytes, status: int, words: str
) -> None:
    shown = run("explain", policy, "-", "-o", "json", stdin=stdin).json()
    assert (shown["decision"], shown["model"], shown["action"], shown["status"]) == (None, None, "respond", status)
    ran = run("explain", policy, "-", stdin=stdin)
    assert ran.status == 0
    assert f"respond {status}" in ran.out
    assert words in ran.out


def test_a_body_over_the_limit_is_refused(run: Run, policy: Path) -> None:
    policy.write_text(policy.read_text() + "settings: {max_body: 100B}\n")
    stdin = json.dumps(chat("long " * 100)).encode()
    assert run("explain", policy, "-", "-o", "json", stdin=stdin).json()["status"] == 413


def test_other_apis_by_their_path(run: Run, policy: Path) -> None:
    stdin = b'{"model": "auto", "input": "text"}'
    shown = run("explain", policy, "-", "--path", "/v1/embeddings", "-H", "x-bad: 1", "-o", "json", stdin=stdin).json()
    assert (shown["decision"], shown["status"]) == ("refuse", 403)


@pytest.mark.parametrize(
    ("more", "path", "headers", "stdin", "told"),
    [
        ("", "/healthz", [], b"", "respond 404: This gateway does not serve this path; GET /v1/models"),
        ("", "/v1beta/x", ["x-goog-api-key: k"], b"{}", "respond 404: This gateway does not serve this path; GET /v1b"),
        ("settings: {unread: pass}", "/healthz", [], b"", "passed on unread, to the default model's route"),
        (
            "paths: [{match: /v1/audio/*, to: large}]\nsettings: {unread: pass}", "/v1/audio/speech", [], b"{}",
            "passed on unread, to large (org/large): `paths` opens /v1/audio/*",
        ),
        ("paths: [{match: /v1/audio/*}]", "/v1/Audio/speech", [], b"{}", "respond 404: This gateway does not serve"),
        ("", "/v1/models", [], b"{}", "respond 405: This path takes GET, HEAD only."),
        ("", "/v1/responses/resp_1", [], b"{}", "respond 400: A request for a stored response has no body."),
        ("", "/v1/responses/resp_1/cancel", [], b"", "passed on as it came, to the model that made the response"),
        ("", "/v1/chat/completions", ["content-encoding: lzma"], b"{}", "respond 415: The request body must be sent"),
        ("", "/v1/chat/completions", ["content-type: application/json; charset=utf-16"], b"{}", "respond 415: The"),
        ("", "/v1/chat/completions", ["content-type: text/plain"], b"a=b", "respond 415: The request body must be a"),
        ("", "/v1/responses", ["upgrade: websocket"], b"{}", "respond 426: WebSockets are not served here"),
    ],
)  # fmt: skip
def test_what_is_no_call_goes_as_it_goes_in_the_router(
    run: Run, policy: Path, more: str, path: str, headers: list[str], stdin: bytes, told: str
) -> None:
    policy.write_text(policy.read_text() + more + "\n")
    arguments = ["--path", path, *(part for header in headers for part in ("-H", header))]
    ran = run("explain", policy, "-", *arguments, stdin=stdin)
    assert ran.status == 0
    assert f"\noutcome   {told}" in ran.out
    shown = run("explain", policy, "-", *arguments, "-o", "json", stdin=stdin).json()
    status = int(told[8:11]) if told.startswith("respond") else None
    assert (shown["action"], shown["status"]) == ("route" if status is None else "respond", status)
    assert shown["model"] == ("large" if "large" in told else None)


def test_bad_headers_policies_and_files(run: Run, policy: Path, body: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        run("explain", policy, body, "-H", "nonsense")
    assert caught.value.code == 2
    assert "write NAME:VALUE" in capsys.readouterr().err
    assert run("explain", policy, body.with_name("none.json")).status == 2
    policy.write_text("version: 1\n")
    ran = run("explain", policy, body)
    assert (ran.status, ran.out) == (1, "")
    assert "P102 missing key 'models'" in ran.err


def test_changes_are_told_in_the_words_of_the_api_that_is_called(run: Run, policy: Path) -> None:
    policy.write_text(policy.read_text().replace("max_tokens: 100", "max_tokens: 100, system: Be brief."))
    gemini = {"contents": [{"parts": [{"text": "hi"}]}], "generationConfig": {"maxOutputTokens": 900, "topK": 3}}
    path = "/v1beta/models/auto:generateContent?key=k"
    ran = run("explain", policy, "-", "--path", path, "-H", "x-tier: gold", stdin=json.dumps(gemini).encode())
    headers = "  x-pointsman-route: large\n  x-lane: fast\n  :path: /v1beta/models/org/large:generateContent?key=k\n"
    assert f"request headers set\n{headers}" in ran.out
    body = ran.out.partition("request body changed\n")[2].partition("\n\n")[0].splitlines()
    assert sorted(body) == [
        "  generationConfig.maxOutputTokens: 100",
        '  generationConfig.thinkingConfig: {"thinkingBudget":24576}',
        '  systemInstruction: {"parts":[{"text":"Be brief."}]}',
    ]
    messages = {
        "model": "auto", "max_tokens": 4000, "system": [{"type": "text", "text": "Old."}], "top_p": 0.5,
        "messages": [{"role": "user", "content": "hi"}],
    }  # fmt: skip
    stdin = json.dumps(messages).encode()
    ran = run("explain", policy, "-", "--path", "/V1/messages", "-H", "x-tier: gold", stdin=stdin)
    assert "  :path: /v1/messages\n" in ran.out
    body = ran.out.partition("request body changed\n")[2].partition("\n\n")[0].splitlines()
    assert body[0] == "  model: org/large"
    assert '  system[0]: {"type":"text","text":"Be brief."}, before the others' in body
    assert "  max_tokens: 100" in body
    assert not any("reasoning_effort" in line for line in body)


def test_differences_of_bodies() -> None:
    def told(before: object, after: object) -> dict[str, str]:
        return dict(differences(before, after))

    assert told({"a": 1, "b": [1, {"c": 2}], "d": 0}, {"a": 1, "b": [1, {"c": 3}], "e": "x" * 300}) == {
        "b[1].c": "3", "d": "taken out", "e": "x" * 200 + "…",
    }  # fmt: skip
    assert told({"m": [1, 2, 3]}, {"m": [1, 3]}) == {"m": "2 elements in the place of 3"}
    assert told({"m": [1]}, {"m": [0, 1]}) == {"m[0]": "0, before the others"}
    assert list(differences({"z": 1, "model": "a"}, {"z": 2, "model": "b"})) == [("model", "b"), ("z", "2")]
    assert told({"a": True}, {"a": 1}) == {"a": "1"}


def test_it_says_whether_the_answer_is_kept(run: Run, policy: Path, body: Path) -> None:
    assert "cache" not in run("explain", policy, body, "-o", "json").json()
    policy.write_text(policy.read_text() + "    cache: {scope: all}\n")
    for fields, line, word in (
        ({"temperature": 0}, "kept, and given to equal requests", "kept"),
        ({}, "not kept: sampled", "sampled"),
    ):
        body.write_text(json.dumps({**chat(), **fields}))
        assert f"cache     {line}\n" in run("explain", policy, body, "-H", "x-beta: 1").out
        assert run("explain", policy, body, "-H", "x-beta: 1", "-o", "json").json()["cache"] == word


def test_claims_are_read_from_a_file(run: Run, tmp_path: Path, body: Path) -> None:
    (tmp_path / "policy.yaml").write_text(
        "version: 1\nmodels: {small: {}, large: {}}\ndefault: small\n"
        "signals: {staff: {identity: {role: staff, users: [alice], claims: {provider: corp}}}}\n"
        "decisions: [{name: staff, when: staff, route: large}]\n"
    )
    attributes = tmp_path / "attributes.json"
    command = ("explain", tmp_path / "policy.yaml", body, "-o", "json")
    assert run(*command).json()["signals"]["staff"]["error"] == "no_identity"
    for user, model in (("alice", "large"), ("bob", "small")):
        attributes.write_text(json.dumps({"envoy.filters.http.jwt_authn": {"corp": {"sub": user}}}))
        assert run(*command, "--attributes", attributes).json()["model"] == model
    for wrong in ("{", "[]", '{"a": 1}'):
        attributes.write_text(wrong)
        ran = run(*command, "--attributes", attributes)
        assert (ran.status, ran.out) == (2, "")
        assert "write a JSON object of objects" in ran.err
