"""Candidates that are a model with changes: the same model at another effort is another candidate."""

from __future__ import annotations

from collections import Counter
from typing import Any

import orjson
import pytest
from jsonschema import Draft202012Validator

from config.build import build
from config.document import parse as yaml
from config.load import check, parse
from config.schema import json_schema
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.explain import as_object, choice, reasons, tree
from extproc.requests.rewriting import rewritten
from signals.request import Message, Request

POLICY = """\
version: 1
models:
  small: {{price: {{input: 1}}, capabilities: []}}
  large: {{price: {{input: 9}}, capabilities: [], fallback: [spare]}}
  spare: {{price: {{input: 5}}, capabilities: [tools]}}
default: small
decisions:
- name: one
  route: {{pick: {pick}, by: {by}}}
  set: {{max_tokens: 50, reasoning_effort: medium, headers: {{x-a: a, x-b: b}}}}
"""
LOW = "{model: large, set: {reasoning_effort: low, headers: {x-b: low}}}"
EFFORTS = f"[{LOW}, {{model: large, set: {{reasoning_effort: high}}}}, small]"
THINKS = "{model: large, set: {thinking: true}}"
BRIEF = "{model: large, set: {system: a}}"


def engine(pick: str = EFFORTS, by: str = "weighted") -> Engine:
    return build(parse(POLICY.format(pick=pick, by=by)))


async def decide(made: Engine, number: int = 0, **fields: Any) -> tuple[Trace, dict[str, Any]]:
    fields = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], **fields}
    messages = (Message("user", "hi"),)
    request = Request("chat", orjson.dumps(fields), fields, "auto", messages, {"x-request-id": str(number)})
    trace = await made.decide(request)
    return trace, orjson.loads(rewritten(request, trace.decision, 0, False) or request.body)


async def test_the_request_goes_to_the_model_with_the_changes_of_the_candidate() -> None:
    made, seen = engine(), Counter[tuple[str, str, str, Any, str]]()
    for number in range(100):
        trace, body = await decide(made, number)
        assert trace.choice is not None
        assert trace.decision.model is not None
        assert trace.decision.changes is not None
        assert body["max_tokens"] == 50
        headers = trace.decision.changes.headers
        assert headers["x-a"] == "a"
        seen[
            trace.choice.model.key, trace.decision.model.key, body["model"], body["reasoning_effort"], headers["x-b"]
        ] += 1
    assert set(seen) == {
        ("large+low", "large", "large", "low", "low"),
        ("large+high", "large", "large", "high", "b"),
        ("small", "small", "small", "medium", "b"),
    }


async def test_every_view_says_which_candidate_it_was() -> None:
    made = engine(by="{weighted: {weights: {large+low: 1, large+high: 0, small: 0}}}")
    trace, _ = await decide(made)
    assert choice(trace) == "large+low by weighted: its share"
    assert as_object(made, trace)["choice"]["model"] == "large+low"
    assert as_object(made, trace)["model"] == "large"
    assert "weighted of large+low, large+high, small" in tree(made, trace, named=False)


async def test_what_a_candidate_lacks_is_its_model_s_and_its_fallback_goes_without_its_changes() -> None:
    made = engine(by="{weighted: {weights: {large+low: 1, large+high: 0, small: 0}}}")
    trace, body = await decide(made, tools=[{"type": "function", "function": {"name": "f"}}])
    assert trace.lacking == {"large": ("tools",), "small": ("tools",)}
    assert (body["model"], body["reasoning_effort"]) == ("spare", "medium")
    assert [line for line in reasons(trace) if line.startswith("not large")]


@pytest.fixture(scope="module")
def schema() -> Draft202012Validator:
    return Draft202012Validator(json_schema())


@pytest.mark.parametrize(
    ("given", "key"),
    [
        ("{reasoning_effort: low}", "large+low"),
        ("{thinking: false, max_tokens: 9}", "large+thinking=false+max_tokens=9"),
        ("{system: Be brief., headers: {x-a: b}}", "large"),
        ("{system: Be brief.}, name: brief", "brief"),
    ],
)
def test_what_a_candidate_is_called(schema: Draft202012Validator, given: str, key: str) -> None:
    text = POLICY.format(pick=f"[{{model: large, set: {given}}}, small]", by="weighted")
    assert [model.key for model in parse(text).clauses[0].target.models] == [key, "small"]
    schema.validate(yaml(text, "p").data)


@pytest.mark.parametrize(
    ("pick", "code", "at", "message"),
    [
        ("[{model: lrge, set: {thinking: true}}, small]", "R202", "lrge", "did you mean 'large'"),
        ("[{model: large, set: {thinking: 3}}, small]", "P103", "3}", "true or false"),
        ("[{model: large}, small]", "P102", "{model", "set"),
        ("[{model: large, set: {}, nam: x}, small]", "P101", "nam", "unknown key"),
        (
            f"[{BRIEF}, {BRIEF.replace('a}}', 'b}}')}]",
            "P104",
            "{pick",
            "give one of them a `name`",
        ),
        ("[{model: large, set: {thinking: true}, name: small}, small]", "P104", "{pick", "called 'small'"),
        (
            f"[small, {THINKS}, {THINKS}]",
            "L331",
            "{model",
            "twice",
        ),
    ],
)
def test_what_is_wrong_with_a_candidate_is_said_at_its_place(pick: str, code: str, at: str, message: str) -> None:
    text = POLICY.format(pick=pick, by="weighted")
    problems = [problem for problem in check(text)[1] if problem.code not in ("L305",)]
    assert [problem.code for problem in problems][:1] == [code], problems
    line = text.splitlines()[problems[0].line - 1]
    assert line[problems[0].column - 1 :].startswith(at), (problems, line[problems[0].column - 1 :])
    assert message in problems[0].message


def test_effort_for_a_model_without_a_switch_does_nothing() -> None:
    text = POLICY.format(pick=EFFORTS, by="weighted").replace("price: {input: 9}", "price: {input: 9}, thinking: none")
    found = [problem for problem in check(text)[1] if problem.code == "L332"]
    assert [text.splitlines()[p.line - 1][p.column - 1 :][:4] for p in found] == ["low,", "high"]
