"""What a request needs and not every model can: it goes to a candidate that can, and the trace says why."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from config.build import build
from config.load import check, parse
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.explain import as_object, reasons
from extproc.requests.body import parse as call
from extproc.requests.paths import read

MODELS = """\
version: 1
models:
  small: {price: {input: 1, output: 1}, capabilities: []}
  seeing: {price: {input: 2, output: 2}, capabilities: [vision, tools]}
  large: {price: {input: 9, output: 9}, capabilities: [vision, audio, files, tools, json_schema, thinking]}
  open: {price: {input: 99, output: 99}}
default: small
"""
SCHEMA = {"type": "json_schema", "json_schema": {"name": "x", "schema": {}}}
TOOL = {"type": "function", "function": {"name": "f"}}
PARTS: dict[str, dict[str, Any]] = {
    "image": {"type": "image_url", "image_url": {"url": "https://x"}},
    "audio": {"type": "input_audio", "input_audio": {"data": "", "format": "wav"}},
    "file": {"type": "file", "file": {"file_id": "f"}},
}


def engine(route: str, more: str = "") -> Engine:
    return build(parse(f"{MODELS}decisions:\n- {{name: d, route: {route}{more}}}\n"))


async def decide(made: Engine, *parts: str, number: int = 0, **fields: Any) -> Trace:
    content = [{"type": "text", "text": "hi"}, *(PARTS[part] for part in parts)]
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": content}], **fields})
    target = read("/v1/chat/completions")
    assert target is not None
    return await made.decide(call(target, {"x-request-id": str(number), "x-session-id": "s"}, {}, body))


def key(trace: Trace) -> str:
    assert trace.decision.model is not None
    return trace.decision.model.key


CHEAPEST = "{pick: [large, seeing, small], by: cheapest}"


@pytest.mark.parametrize(
    ("parts", "fields", "model"),
    [
        ((), {}, "small"),
        ((), {"tools": []}, "small"),
        (("image",), {}, "seeing"),
        ((), {"tools": [TOOL]}, "seeing"),
        (("image",), {"tools": [TOOL]}, "seeing"),
        (("audio",), {}, "large"),
        (("file",), {}, "large"),
        (("image", "audio"), {}, "large"),
        ((), {"response_format": SCHEMA}, "large"),
        ((), {"response_format": {"type": "text"}}, "small"),
    ],
)
async def test_the_cheapest_of_those_that_can(parts: tuple[str, ...], fields: dict[str, Any], model: str) -> None:
    assert key(await decide(engine(CHEAPEST), *parts, **fields)) == model


async def test_weights_hold_among_those_that_can() -> None:
    made = engine("{pick: [small, seeing, large], weights: {seeing: 0}}")
    assert {key(await decide(made, number=n)) for n in range(60)} == {"small", "large"}
    assert {key(await decide(made, "image", number=n)) for n in range(60)} == {"large"}
    only = engine("{pick: [small, seeing], weights: {seeing: 0}}")
    assert key(await decide(only, "image")) == "seeing"


async def test_an_image_leaves_the_session_s_model_and_the_next_request_comes_back() -> None:
    for pick in ("{pick: [small, large], by: cheapest, sticky: session}", CHEAPEST):
        made = engine(pick, ", sticky: session")
        assert key(await decide(made)) == "small"
        assert key(await decide(made, "audio")) == "large"
        assert key(await decide(made)) == "small"


async def test_where_none_can_the_choice_is_made_as_if_nothing_were_needed() -> None:
    trace = await decide(engine("{pick: [seeing, small], by: cheapest}"), "audio")
    assert key(trace) == "small"
    assert dict(trace.lacking) == {"seeing": ("audio",), "small": ("audio",)}
    assert list(reasons(trace)) == [
        "not seeing: it lacks what the request needs (audio)",
        "small lacks what the request needs (audio), and so does every other candidate",
    ]


async def test_the_trace_says_why() -> None:
    made = engine(CHEAPEST)
    trace = await decide(made, "audio", "image")
    assert as_object(made, trace)["lacking"] == {"seeing": ["audio"], "small": ["audio", "vision"]}
    assert list(reasons(trace)) == [
        "not seeing: it lacks what the request needs (audio)",
        "not small: it lacks what the request needs (audio, vision)",
    ]
    assert "lacking" not in as_object(made, await decide(made))


async def test_a_model_that_declares_nothing_can_everything() -> None:
    assert key(await decide(engine("{pick: [small, open], by: cheapest}"), "file")) == "open"
    assert key(await decide(engine("small"), "file")) == "small"


async def test_what_tool_results_hold_is_needed_too() -> None:
    image = {"type": "image", "source": {"type": "url", "url": "https://x"}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [image]}
    body = orjson.dumps({"model": "auto", "max_tokens": 9, "messages": [{"role": "user", "content": [result]}]})
    target = read("/v1/messages")
    assert target is not None
    assert key(await engine(CHEAPEST).decide(call(target, {}, {}, body))) == "seeing"


def found(when: str, route: str) -> list[tuple[str, int]]:
    signals = (
        "  img: {conversation: {images: true}}\n"
        "  snd: {conversation: {audio: {at_least: 1}}}\n"
        "  tls: {conversation: {tools: {at_least: 2}, json_schema: true}}\n"
        "  few: {conversation: {images: {at_most: 3}}}\n"
    )
    text = f"{MODELS}signals:\n{signals}decisions:\n- {{name: d, when: {when}, route: {route}}}\n"
    return [(p.code, p.line) for p in check(text, "p.yaml")[1] if p.code == "L315"]


@pytest.mark.parametrize(
    ("when", "route", "warned"),
    [
        ("img", "small", True),
        ("img", "seeing", False),
        ("img", "open", False),
        ("{all: [img, snd]}", "seeing", True),
        ("{any: [img, snd]}", "seeing", False),
        ("{any: [snd, {all: [img, snd]}]}", "seeing", True),
        ("{not: img}", "small", False),
        ("few", "small", False),
        ("tls", "seeing", True),
        ("tls", "large", False),
        ("snd", "{pick: [small, seeing]}", True),
        ("snd", "{pick: [small, large]}", False),
        ("{at_least: {count: 1, of: [img, snd]}}", "small", False),
    ],
)
def test_lint_warns_where_no_model_can_what_the_rule_s_requests_need(when: str, route: str, warned: bool) -> None:
    assert found(when, route) == ([("L315", 14)] if warned else [])


CHAIN = """\
version: 1
models:
  small: {capabilities: [], fallback: [seeing, hearing]}
  seeing: {capabilities: [vision], fallback: [large]}
  hearing: {capabilities: [audio]}
  large: {capabilities: [vision, audio, files]}
  plain: {capabilities: []}
default: small
"""


def chain(decisions: str = "[]") -> Engine:
    return build(parse(f"{CHAIN}decisions: {decisions}\n"))


@pytest.mark.parametrize(
    ("parts", "model"),
    [
        ((), "small"),
        (("image",), "seeing"),
        (("audio",), "hearing"),
        (("image", "audio"), "large"),
        (("file",), "large"),
    ],
)
@pytest.mark.parametrize(
    "decisions",
    [
        "[]",  # the default
        "[{name: d, route: small}]",
        "[{name: d, route: small, sticky: session}]",
        "[{name: d, route: {pick: [plain, small], weights: {plain: 0}}}]",
        "[{name: d, route: {pick: [small, plain], by: cheapest, sticky: session}}]",
    ],
)
async def test_the_first_fallback_that_can_takes_the_request(
    decisions: str, parts: tuple[str, ...], model: str
) -> None:
    made = chain(decisions)
    trace = await decide(made, *parts)
    assert key(trace) == model
    if parts:
        assert "small" in trace.lacking
        assert model not in trace.lacking
        assert next(reason for reason in reasons(trace) if "small" in reason).startswith("not small: it lacks")
    assert key(await decide(made)) == "small"  # and the session is where it was


async def test_where_no_fallback_can_the_model_itself_takes_it() -> None:
    for decisions in ("[]", "[{name: d, route: small}]"):
        trace = await decide(chain(decisions), tools=[TOOL])
        assert key(trace) == "small"
        assert set(trace.lacking) == {"small", "seeing", "hearing", "large"}


async def test_a_request_that_names_its_model_stays_there() -> None:
    assert key(await decide(chain(), "image", model="small")) == "small"


def test_lint_looks_at_fallbacks_too() -> None:
    def codes(route: str, need: str) -> list[str]:
        text = f"{CHAIN}signals: {{s: {{conversation: {need}}}}}\ndecisions:\n- {{name: d, when: s, route: {route}}}\n"
        return [problem.code for problem in check(text, "p.yaml")[1] if problem.code in ("L315", "L305")]

    assert codes("small", "{images: true}") == ["L305"]  # `plain` alone: fallbacks are used
    assert codes("small", "{tools: {at_least: 1}}") == ["L305", "L315"]
    assert codes("plain", "{images: true}") == ["L315"]
