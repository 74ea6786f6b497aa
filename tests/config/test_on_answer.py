"""Decisions with `on: answer`: what a policy may say, and what is said about those that mean nothing."""

from __future__ import annotations

import pytest

from config.load import check, parse
from config.schema import json_schema
from decisions.watching import Watching

HEAD = """\
version: 1
models: {small: {}}
default: small
signals:
  leak: {pii: {in: answer, types: [card, iban, secret]}}
  words: {keyword: {in: answer, any: [project falcon]}}
  german: {language: {in: answer, is: [de]}}
  near: {keyword: {in: answer, any: [falcon], fuzzy: {}}}
  short: {structure: {in: answer, count: bytes, at_most: 10}}
  sum: {score: {sum: {leak: 1.0}, at_least: 1.0}}
  premium: {header: {name: x-tier, in: [gold]}}
  hello: {keyword: {any: [hello]}}
decisions:
"""


def problems(*decisions: str, head: str = HEAD) -> list[str]:
    _, found = check(head + "".join(f"  - {{{one}}}\n" for one in decisions))
    return [str(one).split(": ", 1)[1] for one in found if one.code not in ("L304", "L311")]


def test_what_a_policy_says_is_what_the_engine_gets() -> None:
    policy = parse(
        HEAD
        + """\
  - {name: hide, on: answer, when: leak, mask: {}, on_unknown: match, window: 100, stride: 50}
  - {name: route, when: hello, route: small}
  - {name: stop, on: answer, when: words, cut: {message: Enough.}}
  - {name: refuse, on: answer, when: near, respond: {status: 451, message: No.}, observe: true}
  - {name: note, on: answer, when: german, flag: {}}
"""
    )
    hide, stop, refuse, note = policy.watching
    assert (hide.name, hide.does, hide.on_unknown, hide.window, hide.stride) == ("hide", "mask", "match", 100, 50)
    assert (stop.does, stop.message, stop.on_unknown, stop.window, stop.stride) == ("cut", "Enough.", "skip", 256, 256)
    assert (refuse.does, refuse.status, refuse.message, refuse.observe) == ("respond", 451, "No.", True)
    assert isinstance(note, Watching)
    assert [clause.name for clause in policy.clauses] == ["route"]


def test_everything_that_is_about_requests_is_named_at_once() -> None:
    found = problems("name: a, on: answer, when: leak, set: {system: x}, sticky: session, cache: {}, route: small")
    assert [one.split()[1] for one in found] == ["set", "sticky", "cache", "route"]


@pytest.mark.parametrize(
    ("decision", "message"),
    [
        ("name: a, when: hello, mask: {}", "P104 mask goes with `on: answer` only: it is about what the model answers"),
        ("name: a, when: hello, route: small, window: 20", "P104 window goes with `on: answer` only"),
        ("name: a, on: answer, when: leak, route: small", "P104 route is about requests"),
        ("name: a, on: answer, when: leak, stepwise: {}", "P104 stepwise is about requests"),
        ("name: a, on: answer, when: leak, cut: {}, set: {max_tokens: 3}", "P104 set is about requests"),
        ("name: a, on: answer, when: leak, cut: {}, override: true", "P104 override is about requests"),
        ("name: a, on: answer, when: leak, cut: {}, sticky: session", "P104 sticky is about requests"),
        (
            "name: a, on: answer, when: leak",
            "P106 a decision on the answer has exactly one of mask, cut, respond, flag",
        ),
        ("name: a, on: answer, when: leak, mask: {}, flag: {}", "P106 a decision on the answer has exactly one of"),
        ("name: a, on: answer, when: leak, mask: null", "P103 mask: a mapping is needed; write `mask: {}`"),
        ("name: a, on: answer, when: leak, mask: {with: x}", "P101 unknown key 'with'"),
        ("name: a, on: answer, when: leak, flag: {}, observe: true", "P104 observe goes with mask, cut and respond"),
        ("name: a, on: answer, when: leak, cut: {}, on_unknown: fail", "P104 on_unknown: fail takes the default model"),
        ("name: a, on: answer, when: leak, respond: {status: 200}", "P104 status: on an answer 400 to 599 is needed"),
        (
            "name: a, on: answer, when: leak, respond: {headers: {retry-after: '3'}}",
            "P104 headers go with a respond on",
        ),
        ("name: a, on: answer, when: leak, cut: {}, window: 15", "P104 window: a whole number from 16 to 8192 is"),
        ("name: a, on: answre, when: leak, cut: {}", "P104 on: request or answer is needed (did you mean 'answer'?)"),
        (
            "name: a, when: leak, route: small",
            "L340 decision 'a' looks at requests, and 'leak' at what the model answers",
        ),
        ("name: a, when: {not: sum}, route: small", "L340 decision 'a' looks at requests, and 'sum' at what"),
        ("name: a, on: answer, when: premium, cut: {}", "L341 decision 'a' looks at nothing of the answer"),
        ("name: a, on: answer, respond: {}", "L341 decision 'a' looks at nothing of the answer"),
        (
            "name: a, on: answer, when: {not: german}, cut: {}",
            "L342 that the answer does not have 'german' is known at",
        ),
        ("name: a, on: answer, when: {all: [leak, {not: german}]}, mask: {}", "L342 that the answer does not have"),
        (
            "name: a, on: answer, when: {any: [leak, german]}, mask: {}",
            "L343 mask 'a' can match where nothing says what",
        ),
        ("name: a, on: answer, when: german, mask: {}", "L343 mask 'a' can match where nothing says what to replace"),
        ("name: a, on: answer, when: near, mask: {}", "L343 mask 'a' can match where nothing says what to replace"),
        ("name: a, on: answer, mask: {}", "L343 mask 'a' can match where nothing says what to replace"),
        (
            "name: a, on: answer, when: leak, mask: {}, window: 20",
            "L344 window: 20 characters are held back, and 'leak'",
        ),
        ("name: a, on: answer, when: {all: [leak, {not: leak}]}, flag: {}", "L301 decision 'a' can never match"),
    ],
)
def test_what_is_said_of_a_decision(decision: str, message: str) -> None:
    found = problems(decision)
    assert any(one.startswith(message) for one in found), found
    assert len({one.split()[0] for one in found if not one.startswith("P102")}) == 1, found


@pytest.mark.parametrize(
    "decision",
    [
        "name: a, on: answer, when: {all: [leak, premium, {not: hello}]}, mask: {}, on_unknown: match",
        "name: a, on: answer, when: {all: [german, leak]}, mask: {}, on_unknown: match",
        "name: a, on: answer, when: {at_least: {count: 2, of: [german, leak, words]}}, mask: {}, on_unknown: match",
        "name: a, on: answer, when: {not: german}, flag: {}",
        "name: a, on: answer, flag: {}",
        "name: a, on: answer, when: sum, cut: {}, on_unknown: match",
        # several texts of one answer may differ in label and score
        "name: a, on: answer, when: {all: [{signal: german, is: de}, {signal: german, is: en}]}, flag: {}",
        "name: a, on: answer, when: {all: [{signal: german, at_least: 0.9}, {signal: german, at_most: 0.2}]}, flag: {}",
        "name: a, on: answer, when: {all: [short, {signal: short, at_least: 50}]}, flag: {}",
    ],
)
def test_what_is_in_order(decision: str) -> None:
    assert problems(decision) == []


def test_what_an_earlier_cut_always_takes_is_never_reached() -> None:
    cut = "name: a, on: answer, when: leak, cut: {}, on_unknown: match"
    between = "name: b, when: hello, route: small"
    late = "name: c, on: answer, when: {all: [leak, german]}, mask: {}, on_unknown: match"
    assert problems(cut, between, late) == [
        "L302 decision 'c' can never be reached: every answer that matches it is one that 'a' takes first"
    ]
    assert problems(late, between, cut) == []
    assert problems(cut.replace("cut: {}", "cut: {}, observe: true"), between, late) == []
    assert problems("name: r, respond: {}, on_unknown: skip", cut) == []  # requests and answers are apart


def test_problems_are_where_the_decision_stands_in_the_list() -> None:
    _, found = check(
        HEAD + "  - {name: a, on: answer, when: leak, mask: {}, on_unknown: match}\n  - {name: b, route: large}\n"
    )
    assert [(one.line, one.code) for one in found if one.severity == "error"] == [(15, "R202")]
    _, found = check(
        HEAD
        + "  - {name: a, on: answer, when: leak, mask: {}, on_unknown: match}\n"
        + "  - {name: b, when: hello, route: small}\n  - {name: c, when: {all: [hello, {not: hello}]}, route: small}\n"
    )
    assert [(one.line, one.code) for one in found if one.code.startswith("L30") and one.code != "L304"] == [
        (16, "L301")
    ]


@pytest.mark.parametrize("does", ["mask: {}", "cut: {}", "respond: {}"])
def test_a_guard_of_answers_says_what_becomes_of_the_unknown(does: str) -> None:
    _, found = check(HEAD + f"  - {{name: a, on: answer, when: leak, {does}}}\n")
    key = does.split(":")[0]
    assert [one.message for one in found if one.code == "L311"] == [
        "guard 'a' has no on_unknown: an answer for which 'leak' cannot be read passes; "
        f"write `on_unknown: match` to {key} it (or `skip`, if that is meant)"
    ]
    assert not [
        one for one in check(HEAD + "  - {name: a, on: answer, when: leak, flag: {}}\n")[1] if one.code == "L311"
    ]


def test_what_is_used_by_answers_is_used() -> None:
    _, found = check(HEAD + "  - {name: a, on: answer, when: {any: [leak, german]}, flag: {}}\n")
    unused = {one.message.split("'")[1] for one in found if one.code == "L304"}
    assert not unused & {"leak", "german"}


@pytest.mark.parametrize(
    ("signal", "message"),
    [
        (
            "contrast: {in: answer, toward: [a], away: [b]}",
            "P104 in: a contrast looks at requests; kinds that read answers",
        ),
        ("unreadable: {in: answer}", "P104 in: a unreadable looks at requests"),
        ("fact_check: {in: answer, at_least: 0.5}", "P104 in: a fact_check looks at requests"),
        ("jailbreak: {in: [user, answer]}", "P104 in: answer stands by itself"),
        ("keyword: {in: answer, none: [a]}", "P104 none: what an answer does not hold is known at its end only"),
    ],
)
def test_which_kinds_read_answers(signal: str, message: str) -> None:
    found = problems(head=f"version: 1\nmodels: {{small: {{}}}}\ndefault: small\nsignals: {{s: {{{signal}}}}}\n")
    assert any(one.startswith(message) for one in found), found


def test_the_json_schema_offers_answers_to_those_kinds_only() -> None:
    defined = json_schema()["$defs"]
    offered = {
        name.removeprefix("signal.")
        for name, schema in defined.items()
        if name.startswith("signal.") and "answer" in str(schema["properties"].get("in", {}).get("enum", ""))
    }
    assert offered == {"classifier", "keyword", "language", "pii", "regex", "remote", "similar", "structure"}
    assert "answer" in str(defined["signal.jailbreak"]["properties"]["in"])
    assert {"on", "mask", "cut", "flag", "window", "stride"} <= set(defined["DecisionSpec"]["properties"])
