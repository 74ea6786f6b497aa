"""What becomes of answers, as `explain`, `test` and `replay` say it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from tests.cli.conftest import Ran, chat

Run = Callable[..., Ran]

CARD = "4111 1111 1111 1111"
POLICY = """\
version: 1
models: {small: {}, large: {}}
default: small
signals:
  leak: {pii: {in: answer, types: [card, iban]}}
  words: {keyword: {in: answer, any: [project falcon]}}
  draft: {keyword: {in: answer, any: [draft]}}
  tone: {similar: {in: answer, to: [you are an idiot and I hate you], at_least: 0.7}}
  gold: {header: {name: x-tier, in: [gold]}}
  bad: {header: {name: x-bad, exists: true}}
decisions:
  - {name: refuse, when: bad, respond: {status: 403}, on_unknown: match}
  - {name: premium, when: gold, route: large}
  - {name: hide, on: answer, when: leak, mask: {}, on_unknown: match}
  - {name: stop, on: answer, when: {all: [words, {not: gold}]}, cut: {message: Enough.}, on_unknown: match}
  - {name: refuse-it, on: answer, when: tone, respond: {status: 451, message: No.}, on_unknown: match}
  - {name: note, on: answer, when: draft, flag: {}}
"""


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    path = tmp_path / "answers.yaml"
    path.write_text(POLICY)
    return path


@pytest.fixture
def body(tmp_path: Path) -> Path:
    path = tmp_path / "request.json"
    path.write_text(json.dumps(chat()))
    return path


def completion(content: str, arguments: str | None = None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": content}
    if arguments is not None:
        called = {"name": "pay", "arguments": arguments}
        message["tool_calls"] = [{"id": "c", "type": "function", "function": called}]
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice]}


def explained(run: Run, policy: Path, body: Path, answer: object, *more: str) -> Any:
    path = body.with_name("answer")
    path.write_text(answer if isinstance(answer, str) else json.dumps(answer))
    ran = run("explain", policy, body, "--answer", path, "-o", "json", *more)
    assert (ran.status, ran.err) == (0, "")
    return ran.json()["answer"]


@pytest.mark.parametrize(
    ("answer", "headers", "decision", "action", "text"),
    [
        ("all is well", (), None, "pass", "all is well"),
        (f"pay {CARD}", (), "hide", "mask", "pay [card]"),
        (completion(f"pay {CARD}"), (), "hide", "mask", "pay [card]"),
        ("about project falcon", (), "stop", "cut", "Enough."),
        ("about project falcon", ("-H", "x-tier: gold"), None, "pass", "about project falcon"),
        ("a draft", (), "note", "flag", "a draft"),
        ("You are an idiot and I hate you.", (), "refuse-it", "respond", "No."),
    ],
)
def test_explain_says_what_becomes_of_an_answer(
    run: Run,
    policy: Path,
    body: Path,
    answer: object,
    headers: tuple[str, ...],
    decision: str | None,
    action: str,
    text: str,
) -> None:
    shown = explained(run, policy, body, answer, *headers)
    assert (shown["decision"], shown["action"], shown["text"]) == (decision, action, text)
    assert shown.get("status") == (451 if action == "respond" else None)


def test_explain_reads_an_answer_from_standard_input(run: Run, policy: Path, body: Path) -> None:
    ran = run("explain", policy, body, "--answer", "-", stdin=f"pay {CARD}".encode())
    assert ran.out.endswith("answer    mask by hide\n  pay [card]\n")
    ran = run("explain", policy, "-", "--answer", "-")
    assert ran.status == 2
    assert "only one of REQUEST.json and --answer" in ran.err


def test_explain_says_which_signals_only_the_answer_needs(run: Run, policy: Path, body: Path) -> None:
    policy.write_text(POLICY.replace("{name: premium, when: gold, route: large}", "{name: all, route: large}"))
    assert "signals read for the answer only: gold" in run("explain", policy, body).out


@pytest.mark.parametrize(("answer", "warned"), [("data: {}\n\ndata: [DONE]\n", True), ("the data: 3", False)])
def test_explain_warns_of_a_stream_for_an_answer(run: Run, policy: Path, body: Path, answer: str, warned: bool) -> None:
    path = body.with_name("answer")
    path.write_text(answer)
    ran = run("explain", policy, body, "--answer", path)
    assert (ran.status, "looks like a stream" in ran.err) == (0, warned)


def test_arguments_of_tools_are_read_without_their_escapes_and_stay_json(run: Run, policy: Path, body: Path) -> None:
    hidden = json.dumps({"card": CARD, "n": 1}).replace("4111", "\\u0034111", 1)
    shown = explained(run, policy, body, completion("done", hidden))
    text, name, arguments = shown["text"].split("\n")
    assert (text, name, json.loads(arguments)) == ("done", "pay", {"card": "[card]", "n": 1})
    assert shown["acted"] == [{"decision": "hide", "action": "mask"}]


@pytest.mark.parametrize(
    ("path", "request_body", "answer"),
    [
        (
            "/v1/messages",
            {"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "text", "text": f"pay {CARD}"}]},
        ),
        (
            "/v1/responses",
            {"model": "auto", "input": "hi"},
            {
                "object": "response",
                "output": [{"type": "message", "content": [{"type": "output_text", "text": f"pay {CARD}"}]}],
            },
        ),
        ("/v1/completions", {"model": "auto", "prompt": "hi"}, {"choices": [{"index": 0, "text": f"pay {CARD}"}]}),
    ],
)
def test_answers_of_every_api(
    run: Run, policy: Path, body: Path, path: str, request_body: object, answer: object
) -> None:
    body.write_text(json.dumps(request_body))
    assert explained(run, policy, body, answer, "--path", path)["text"] == "pay [card]"


def test_an_answer_that_is_none_of_its_api_is_unreadable(run: Run, policy: Path, body: Path) -> None:
    shown = explained(run, policy, body, {"choices": "all of them"})
    assert (shown["decision"], shown["action"]) == ("hide", "cut")


def test_where_no_model_is_asked_there_is_no_answer(run: Run, policy: Path, body: Path) -> None:
    assert explained(run, policy, body, "text", "-H", "x-bad: 1") is None
    text = run("explain", policy, body, "--answer", body, "-H", "x-bad: 1").out
    assert text.endswith("\n\nanswer    none: no model is asked\n")


def test_explain_in_text(run: Run, policy: Path, body: Path) -> None:
    path = body.with_name("answer.txt")
    path.write_text(f"a draft:\n{CARD}")
    ran = run("explain", policy, body, "--answer", path)
    assert ran.out.endswith("\n\nanswer    mask by hide\n          flag by note\n  a draft:\n  [card]\n")
    assert "leak" not in ran.out  # it is no signal of the request
    assert '"answer"' not in run("explain", policy, body, "-o", "json").out


def test_a_file_that_is_not_there(run: Run, policy: Path, body: Path) -> None:
    ran = run("explain", policy, body, "--answer", body.with_name("none"))
    assert ran.status == 2
    assert "none" in ran.err


CASES = """\
cases:
  - name: a card is hidden
    answer: "pay 4111 1111 1111 1111"
    expect: {action: default, answer: {decision: hide, action: mask, text: "pay [card]"}}
  - name: an answer of the API
    answer: {choices: [{index: 0, message: {role: assistant, content: about project falcon}}]}
    expect: {answer: {decision: stop, action: cut, text: Enough.}}
  - name: gold may read of it
    headers: {x-tier: gold}
    answer: about project falcon
    expect: {decision: premium, answer: {decision: null, action: pass}}
  - name: a detector is down
    signals: {leak: unknown}
    answer: anything at all
    expect: {answer: {decision: hide, action: mask, text: "[masked]"}}
  - name: a stub stands for what a signal of the answer says
    signals: {tone: true}
    answer: friendly
    expect: {answer: {action: respond, status: 451}}
"""


def test_cases(run: Run, policy: Path) -> None:
    cases = policy.with_name("answers.cases.yaml")
    cases.write_text(CASES)
    ran = run("test", policy, cases)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.splitlines()[-1] == "5 cases: 5 passed, 0 failed"
    shown = run("test", policy, cases, "-o", "json").json()
    assert [case["answer"]["action"] for case in shown["cases"]] == ["mask", "cut", "pass", "mask", "respond"]
    coverage = run("test", policy, cases, "--coverage").out
    assert "decisions taken: 4 of 6" in coverage
    assert "  never taken: note" in coverage
    assert "  never taken: hide" not in coverage
    assert "  never read: tone" not in coverage


def test_a_case_that_fails(run: Run, policy: Path) -> None:
    cases = policy.with_name("answers.cases.yaml")
    cases.write_text(
        "cases:\n"
        "  - name: hidden\n    answer: harmless\n"
        "    expect: {answer: {decision: hide, action: mask, status: 403, text: other}}\n"
        "  - name: refused\n    headers: {x-bad: 1}\n    answer: harmless\n    expect: {answer: {action: pass}}\n"
    )
    ran = run("test", policy, cases)
    assert ran.status == 1
    for line in (
        "answer decision: expected 'hide', got none",
        "answer action: expected 'mask', got 'pass'",
        "answer status: expected 403, got none",
        "answer text: expected 'other', got 'harmless'",
        "answer    pass",
        "  harmless",
        "answer: no model is asked, so that nothing is answered",
    ):
        assert f"      {line}\n" in ran.out, line
    junit = ElementTree.fromstring(run("test", policy, cases, "-o", "junit").out.split("\n", 1)[1])
    assert "answer action: expected 'mask', got 'pass'" in str(junit.find("testcase/failure").get("message"))


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("expect: {answer: {action: pass}}", "P102 answer: the case has none; write `answer:` beside `expect`"),
        ("answer: x\n    expect: {answer: {}}", "P102 answer: say at least one of decision, action, status, text"),
        ("answer: x\n    expect: {action: default}", "P102 answer: nothing is expected of it"),
        (
            "answer: x\n    expect: {answer: {decision: hid}}",
            "R206 unknown decision on the answer 'hid' (did you mean 'hide'?)",
        ),
        ("answer: x\n    expect: {answer: {decision: premium}}", "R206 unknown decision on the answer 'premium'"),
        ("expect: {decision: hide}", "R206 'hide' looks at the answer: write `answer: {decision: hide}`"),
        ("answer: x\n    expect: {answer: {action: masks}}", "flag or observe is needed (did you mean 'mask'?)"),
    ],
)
def test_what_is_no_case(run: Run, policy: Path, case: str, message: str) -> None:
    cases = policy.with_name("answers.cases.yaml")
    cases.write_text(f"cases:\n  - name: a\n    {case}\n")
    ran = run("test", policy, cases)
    assert ran.status == 1
    assert message in ran.out + ran.err


def test_replay_judges_recorded_answers(run: Run, policy: Path) -> None:
    lines = [
        {"request": chat(), "response": completion(f"pay {CARD}")},
        {"request": chat(), "response": "all is well"},
        {"request": chat()},
        {"request": chat(), "response": "text", "headers": {"x-bad": "1"}},
        {"request": chat(), "response": "you are an idiot and I hate you"},
        {"request": chat(), "response": 3},
    ]
    given = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    ran = run("replay", policy, "-", stdin=given)
    assert ran.status == 1
    assert ran.err == "<stdin>:6: response: must be an object or a string\n"
    assert [line.get("answer", "none given") for line in ran.lines()] == [
        {"decision": "hide", "action": "mask"},
        {"decision": None, "action": "pass"},
        "none given",
        None,
        {"decision": "refuse-it", "action": "respond"},
        "none given",
    ]


def test_replay_shows_what_another_policy_would_change_of_answers(run: Run, policy: Path) -> None:
    other = policy.with_name("other.yaml")
    other.write_text(POLICY.replace("mask: {}", "cut: {}"))
    lines = [{"request": chat(), "response": text} for text in (f"pay {CARD}", f"and {CARD}", "all is well")]
    given = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    report = run("replay", policy, "-", "--against", other, "-o", "json", stdin=given).json()
    assert (report["requests"], report["changed"]) == (3, 2)
    (change,) = report["changes"]
    assert change["before"]["answer"] == {"decision": "hide", "action": "mask"}
    assert change["after"]["answer"] == {"decision": "hide", "action": "cut"}
    text = run("replay", policy, "-", "--against", other, stdin=given).out
    assert "2 × (none): default small, answer mask by hide → (none): default small, answer cut by hide" in text


def test_an_answer_too_large_to_be_judged_is_what_it_is_when_served(run: Run, policy: Path, body: Path) -> None:
    """Unreadable: `on_unknown: match` keeps it from the client."""
    shown = explained(run, policy, body, completion("word " * 900_000))
    assert (shown["decision"], shown["action"], shown["text"], shown["status"]) == ("hide", "cut", "", 502)
