"""Reading and rewriting what clients send, in the shapes of OpenAI's and Anthropic's APIs."""

from __future__ import annotations

import json
import sys
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.registry import BY_NAME
from extproc.refusal import Refusal
from extproc.requests import rewriting
from extproc.requests.body import parse as read
from extproc.requests.paths import Target
from signals.request import Message, Request
from tests.volume import few_and_many

# Parsing


def parse(api: Any, fields: Any) -> Request:
    return read(Target(api), {}, {}, fields if isinstance(fields, bytes) else orjson.dumps(fields))


def refused(api: Any, fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(api, fields)
    assert caught.value.status == 400
    return caught.value


def test_a_chat_completion() -> None:
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}], "stream": True})
    request = read(Target("chat"), {"a": "b"}, {"ns": {}}, body)
    assert request.body is body
    assert request.fields["stream"] is True
    assert (request.model, request.headers, request.attributes) == ("auto", {"a": "b"}, {"ns": {}})
    assert request.messages == (Message("user", "hi"),)
    assert request.received > 1.7e9


def test_chat_parts_tools_and_results() -> None:
    content = [
        {"type": "text", "text": "one"},
        {"type": "image_url", "image_url": {"url": "data:"}},
        {"type": "input_audio", "input_audio": {}},
        {"type": "file", "file": {}},
        {"type": "text", "text": "two"},
        {"type": "something_new"},
        {"type": "something_newer", "text": "three"},
    ]
    turns = [
        {"role": "developer", "content": "sys"},
        {"role": "user", "content": content},
        {"role": "assistant", "content": None, "tool_calls": [{}, {}]},
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "tool", "content": "result", "tool_call_id": "1"},
        {"role": "function", "content": "old result", "name": "f"},
        {"role": "user", "content": "last"},
    ]
    request = parse("chat", {"messages": turns})
    assert request.model is None
    assert request.messages == (
        Message("developer", "sys"),
        Message("user", "one\ntwo\nthree", images=1, audio=1, files=1),
        Message("assistant", "", tool_calls=2),
        Message("assistant", "no"),
        Message("tool", "result"),
        Message("tool", "old result"),
        Message("user", "last"),
    )


def test_completions_and_embeddings() -> None:
    assert parse("completions", {"prompt": "a"}).messages == (Message("user", "a"),)
    assert parse("completions", {"prompt": ["a", "b"]}).messages == (Message("user", "a\nb"),)
    assert parse("completions", {"prompt": [1, 2]}).messages == (Message("user", ""),)
    assert parse("embeddings", {"input": [[1], [2]]}).messages == (Message("user", ""),)
    assert parse("embeddings", {"input": ["a"]}).messages == (Message("user", "a"),)


def test_responses() -> None:
    assert parse("responses", {"input": "hi", "instructions": "sys"}).messages == (
        Message("system", "sys"),
        Message("user", "hi"),
    )
    items = [
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_image"}, {"type": "input_file"}],
        },
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "output": "result"},
        {"type": "computer_call_output", "output": {"type": "computer_screenshot"}},
        {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "b"}]},
    ]
    assert parse("responses", {"input": items}).messages == (
        Message("user", "a", images=1, files=1),
        Message("assistant", "", tool_calls=1),
        Message("tool", "result"),
        Message("tool", "", images=1),
        Message("assistant", "b"),
    )
    assert parse("responses", {"previous_response_id": "r"}).messages == ()
    system = [{"role": "system", "content": "sys"}]
    assert parse("responses", {"instructions": system, "input": "hi"}).messages[0] == Message("system", "sys")


def test_anthropic_messages() -> None:
    turns = [
        {"role": "user", "content": "plain"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "a"},
                {"type": "image", "source": {}},
                {"type": "document", "source": {"type": "text", "data": "in a document"}},
                {"type": "document", "source": {"type": "content", "content": [{"type": "text", "text": "nested"}]}},
                {"type": "document", "source": {"type": "base64", "data": "xxxx"}},
                {"type": "document"},
            ],
        },
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "tool_use", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "content": [{"type": "text", "text": "from a tool"}]}]},
        {"role": "user", "content": [{"type": "tool_result", "content": "x"}, {"type": "text", "text": "and?"}]},
        {"role": "user", "content": [{"type": "search_result", "content": [{"type": "text", "text": "found"}]}]},
    ]
    request = parse("messages", {"system": [{"type": "text", "text": "sys"}], "messages": turns})
    assert request.messages == (
        Message("system", "sys"),
        Message("user", "plain"),
        Message("user", "a\nin a document\nnested", images=1, files=4),
        Message("assistant", "", tool_calls=1),
        Message("tool", "from a tool"),
        Message("tool", "x"),
        Message("user", "and?"),
        Message("tool", "found"),
    )
    assert parse("messages", {"system": "s", "messages": [{"role": "user", "content": "x"}]}).text("system") == "s"


@pytest.mark.parametrize(
    ("api", "fields", "param"),
    [
        ("chat", {}, "messages"),
        ("chat", {"messages": []}, "messages"),
        ("chat", {"messages": {}}, "messages"),
        ("chat", {"messages": "hi"}, "messages"),
        ("chat", {"messages": ["hi"]}, "messages[0]"),
        ("chat", {"messages": [{"content": "hi"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": 1, "content": "hi"}]}, "messages[0].role"),
        ("chat", {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ("chat", {"messages": [{"role": "user", "content": [1]}]}, "messages[0].content[0]"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": []}]}]}, "messages[0].content[0].type"),
        ("chat", {"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text"),
        (
            "chat",
            {"messages": [{"role": "user", "content": [{"type": "text", "text": 1}]}]},
            "messages[0].content[0].text",
        ),
        ("chat", {"model": 1, "messages": []}, "model"),
        ("chat", {"model": "", "messages": []}, "model"),
        ("completions", {}, "prompt"),
        ("completions", {"prompt": []}, "prompt"),
        ("completions", {"prompt": [None]}, "prompt[0]"),
        ("embeddings", {"input": 3}, "input"),
        ("responses", {}, "input"),
        ("responses", {"input": []}, "input"),
        ("responses", {"input": [1]}, "input[0]"),
        ("responses", {"input": [{"role": True}]}, "input[0].role"),
        ("responses", {"input": "x", "instructions": 1}, "instructions"),
        ("messages", {}, "messages"),
        ("messages", {"messages": [1]}, "messages[0]"),
        ("messages", {"messages": [{"content": []}]}, "messages[0].role"),
        ("messages", {"messages": [{"role": "user", "content": 1}]}, "messages[0].content"),
        ("messages", {"system": 1, "messages": [{"role": "user", "content": "x"}]}, "system"),
    ],
)
def test_what_is_wrong_is_named(api: Any, fields: Any, param: str) -> None:
    refusal = refused(api, fields)
    assert refusal.param == param
    assert f"'{param}'" in refusal.text


def test_an_empty_array_is_called_empty() -> None:
    said = "'messages' must be a non-empty array of messages, not an empty array."
    assert refused("chat", {"messages": []}).text == said


@pytest.mark.parametrize(
    ("body", "code", "said"),
    [
        (b"", "empty_body", "empty"),
        (b" \n", "empty_body", "empty"),
        (b"{]", "invalid_json", "line 1, column 2"),
        (b'{"a": NaN}', "invalid_json", "not valid JSON"),
        (b'{"a": "\xff"}', "invalid_json", "not valid JSON"),
        (b'{"a": "\\ud800"}', "invalid_json", "not valid JSON"),
        (b"null", "invalid_type", "not null"),
        (b"true", "invalid_type", "not a boolean"),
        (b"1", "invalid_type", "not a number"),
        (b'"secret"', "invalid_type", "not a string"),
        (b"[]", "invalid_type", "not an array"),
        (b"[" * 100_000, "nested_too_deeply", "nested"),
        (b'{"messages":' * 2_000, "nested_too_deeply", "nested"),
    ],
)
def test_bodies_that_are_no_json_object(body: bytes, code: str, said: str) -> None:
    refusal = refused("chat", body)
    assert refusal.code == code
    assert said in refusal.text
    assert "secret" not in refusal.text


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [], "messages": [{"role": "user", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}',
        b'{"messages": [{"role": "user", "c\\u006fntent": "a", "content": "b"}]}',
        b'{"messages": [{"role": "user", "content": "b"}], "tools": [{"x": {"y": 1, "y": 1}}]}',
        b'{"messages": [{"role": "user", "content": "\\\\\\"", "a": 1, "a": [2]}]}',
        b'{"messages":[{"role":"user","content":"b"}],"tools":[{"x":{"y":1,"y":1}}]}',
        b'{"messages":[{"role":"user","content":"\\n"}],"tools":[{"x":{"y":1,"y":1}}]}',
        # as many quotes as there are when it is written again
        b'{"messages":[{"role":"user","content":"\\u0022\\u0022"}],"tools":[{"y":1,"y":1}]}',
        b'{"messages":[{"role":"user","content":"b"}],"tools":[{"\\u0022\\u0022":2,"y":1,"y":1}]}',
    ],
)
def test_a_key_that_stands_twice_is_refused(body: bytes) -> None:
    assert orjson.loads(body)
    assert refused("chat", body).code == "duplicate_key"


@pytest.mark.parametrize(
    "fields",
    [
        {"Messages": [], "messages": [{"role": "user", "content": "a"}]},
        {"messages": [{"role": "user", "content": "a", "Content": "b"}]},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "TEXT": "b"}]}]},
        {"messages": [{"role": "user", "content": "a"}], "\u017fystem": "b"},
    ],
)
def test_a_key_that_some_readers_take_for_another_is_refused(fields: dict[str, Any]) -> None:
    assert refused("chat", fields).code == "misspelled_key"


@pytest.mark.no_cover
@few_and_many(60, 300)
def test_no_body_is_taken_for_one_with_a_key_twice(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        st.recursive(
            st.none() | st.integers() | st.text(max_size=6) | st.sampled_from(['\\"', "\\\\", '"', '":"', '\\\\"']),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=4),
            max_leaves=20,
        ),
        st.booleans(),
        st.sampled_from([None, (",", ":")]),
    )
    def holds(value: Any, ascii: bool, marks: tuple[str, str] | None) -> None:
        fields = {"messages": [{"role": "user", "content": "x"}], "tools": value}
        try:
            body = json.dumps(fields, ensure_ascii=ascii, separators=marks).encode()
            orjson.loads(body)
        except ValueError:
            return  # lone surrogates
        assert parse("chat", body).fields["tools"] == orjson.loads(body)["tools"]

    holds()


def test_deeply_nested_parts_do_not_exhaust_the_stack() -> None:
    content = '"deep"'
    for _ in range(500):
        content = f'[{{"type": "tool_result", "content": {content}}}]'
    request = parse("messages", f'{{"messages": [{{"role": "user", "content": {content}}}]}}'.encode())
    found = "deep" in request.text("tools")
    assert found  # apart, so that a failure need not show the request


def test_results_of_results_are_read() -> None:
    inner = [{"type": "tool_result", "content": "evil"}]
    turns = [{"role": "user", "content": [{"type": "tool_result", "content": inner}]}]
    assert "evil" in parse("messages", {"messages": turns}).text("tools")


JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-5, 5)
    | st.text(max_size=3)
    | st.sampled_from(["text", "user", "tool_result"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "type", "text", "source", "output", "tool_calls", "data"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@pytest.mark.no_cover
@few_and_many(60, 300)
def test_any_json_is_either_read_or_refused(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(
        st.sampled_from(["chat", "completions", "embeddings", "responses", "messages"]),
        st.dictionaries(
            st.sampled_from(["model", "messages", "prompt", "input", "instructions", "system", "previous_response_id"]),
            JSON,
            max_size=5,
        ),
    )
    def holds(api: Any, fields: dict[str, Any]) -> None:
        try:
            request = parse(api, fields)
        except Refusal:
            return
        assert all(isinstance(message.text, str) for message in request.messages)

    holds()


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_either_read_or_refused(body: bytes) -> None:
    with pytest.raises(Refusal):
        parse("chat", body)


# The model in the body

NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=8)
KEYS = st.sampled_from(["model", "Model", "models", 'x"model', "model\\", "mod", "a"]) | st.text(
    st.characters(exclude_categories=("Cs",)), max_size=4
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=("Cs",)), max_size=8)
    | st.sampled_from(['"model": "x"', '\\"model\\":', '{"model":1}']),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=10,
)
SPACE = st.text(" \t\r\n", max_size=2)


@st.composite
def spelled(draw: st.DrawFn, key: str) -> str:
    """`key` as a JSON string, some of its letters as escapes."""
    out = []
    for letter in key:
        if ord(letter) < 0x10000 and draw(st.integers(0, 5)) == 0:
            out.append(f"\\u{ord(letter):04x}" if draw(st.booleans()) else f"\\u{ord(letter):04X}")
        else:
            out.append(json.dumps(letter, ensure_ascii=draw(st.booleans()))[1:-1])
    return '"' + "".join(out) + '"'


@st.composite
def objects(draw: st.DrawFn) -> tuple[list[tuple[str, bool]], bytes]:
    """A JSON object as text: its pieces, each with whether it is the value of a top-level `model`."""
    pieces: list[tuple[str, bool]] = [(draw(SPACE) + "{", False)]
    members = draw(st.lists(st.tuples(KEYS, VALUES), max_size=5))
    for index, (key, value) in enumerate(members):
        lead = "," if index else ""
        if key == "model" and any(is_model for _, is_model in pieces):
            key = "mod"
        pieces.append((lead + draw(SPACE) + draw(spelled(key)) + draw(SPACE) + ":" + draw(SPACE), False))
        if key == "model":
            value = draw(NAMES)
        text = draw(spelled(value)) if isinstance(value, str) else json.dumps(value, ensure_ascii=draw(st.booleans()))
        pieces.append((text, key == "model"))
        pieces.append((draw(SPACE), False))
    pieces.append(("}" + draw(SPACE), False))
    return pieces, "".join(text for text, _ in pieces).encode()


@pytest.mark.slow
@pytest.mark.no_cover
@few_and_many(80, 400)
def test_only_the_model_changes(examples: int) -> None:
    @settings(max_examples=examples, deadline=None)
    @given(objects(), NAMES)
    def holds(made: tuple[list[tuple[str, bool]], bytes], name: str) -> None:
        pieces, body = made
        fields = orjson.loads(body)
        request = Request("chat", body, fields, fields.get("model"), ())
        changed = rewriting.with_model(request, name)
        new = orjson.dumps(name).decode()
        if any(is_model for _, is_model in pieces):
            assert changed.decode() == "".join(new if is_model else text for text, is_model in pieces)
        else:
            head = pieces[0][0]
            comma = "," if fields else ""
            assert changed.decode() == f'{head}"model":{new}{comma}' + body.decode()[len(head) :]
        assert orjson.loads(changed) == {**fields, "model": name}

    holds()


def with_model(body: bytes, name: str = "new") -> bytes:
    fields = orjson.loads(body)
    return rewriting.with_model(Request("chat", body, fields, fields.get("model"), ()), name)


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        (b'{"model":"auto"}', b'{"model":"new"}'),
        (b'{"model": null, "a": 1}', b'{"model": "new", "a": 1}'),
        (b'{"model" :\n"a\\"b"}', b'{"model" :\n"new"}'),
        (b'{"a": {"model": "x"}, "model": "y"}', b'{"a": {"model": "x"}, "model": "new"}'),
        (b'{"a": {"model": "x"}, "mod\\u0065l": "y"}', b'{"a": {"model": "x"}, "mod\\u0065l": "new"}'),
        (b'{"a": "\\"model\\": 1", "model": "y"}', b'{"a": "\\"model\\": 1", "model": "new"}'),
        (
            '{"é": "ü", "a": {"model": "ß"}, "model": "y"}'.encode(),
            '{"é": "ü", "a": {"model": "ß"}, "model": "new"}'.encode(),
        ),
        (b'{"n": 123456789012345678901234567890, "o": {"model": 1e300}, "model": "y"}', None),
        (b"{}", b'{"model":"new"}'),
        (b' { "a": 1}', b' {"model":"new", "a": 1}'),
    ],
)
def test_model_spans(body: bytes, wanted: bytes | None) -> None:
    assert with_model(body) == (body.replace(b'"y"', b'"new"') if wanted is None else wanted)


def test_a_number_of_many_digits_is_no_obstacle() -> None:
    body = b'{"a": {"model": 1}, "n": ' + b"9" * 250 + b', "model": "y"}'
    assert with_model(body).endswith(b'"model": "new"}')


def test_a_body_too_deep_to_walk_is_refused() -> None:
    body = b'{"x":' + b"[" * 1020 + b"]" * 1020 + b', "y": {"model": 1}, "model": "a"}'
    if sys.version_info >= (3, 12):  # the scanner, which is in C, goes deeper than the parser lets anything through
        assert with_model(body) == body.replace(b'"a"', b'"new"')
        return
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(1000)  # Python's own, which a test before may have changed
    try:
        with pytest.raises(Refusal) as caught:
            with_model(body)
    finally:
        sys.setrecursionlimit(before)
    assert caught.value.code == "nested_too_deeply"


# Changes

EFFORT = Model("m", "served", thinking="reasoning_effort")
CHAT = {"model": "auto", "messages": [{"role": "user", "content": "hi"}], "x": 1}


def changed(api: Any, fields: dict[str, Any], model: Model = EFFORT, **changes: Any) -> dict[str, Any]:
    request = parse(api, fields)
    before = orjson.dumps(request.fields)
    result: dict[str, Any] = orjson.loads(rewriting.changed(request, model, Changes(**changes)))
    assert orjson.dumps(request.fields) == before, "the request itself must not change"
    return result


def test_the_model_is_always_the_served_name() -> None:
    assert changed("chat", CHAT, max_tokens=5) == {**CHAT, "model": "served", "max_tokens": 5}


@pytest.mark.parametrize(
    ("api", "fields", "wanted"),
    [
        ("chat", {}, {"max_tokens": 100}),
        ("chat", {"max_tokens": 50}, {"max_tokens": 50}),
        ("chat", {"max_tokens": 500}, {"max_tokens": 100}),
        ("chat", {"max_completion_tokens": 500}, {"max_completion_tokens": 100}),
        ("chat", {"max_completion_tokens": 5, "max_tokens": 500}, {"max_completion_tokens": 5, "max_tokens": 100}),
        ("chat", {"max_tokens": None}, {"max_tokens": 100}),
        ("chat", {"max_tokens": "many"}, {"max_tokens": 100}),
        ("completions", {"prompt": "x"}, {"prompt": "x", "max_tokens": 100}),
        ("responses", {"input": "x", "max_output_tokens": 200}, {"input": "x", "max_output_tokens": 100}),
        ("messages", {"max_tokens": 200}, {"max_tokens": 100}),
        ("embeddings", {"input": "x"}, {"input": "x"}),
    ],
)
def test_max_tokens_is_a_cap(api: Any, fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    base = {"messages": CHAT["messages"]} if api in ("chat", "messages") else {}
    assert changed(api, base | fields, max_tokens=100) == base | wanted | {"model": "served"}


@pytest.mark.parametrize(
    ("api", "fields", "wanted"),
    [
        (
            "chat",
            {"messages": [{"role": "user", "content": "u"}]},
            {"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "u"}]},
        ),
        (
            "chat",
            {"messages": [{"role": "developer", "content": "d", "name": "n"}]},
            {"messages": [{"role": "developer", "content": "S\n\nd", "name": "n"}]},
        ),
        (
            "chat",
            {"messages": [{"role": "system", "content": [{"type": "text", "text": "d"}]}]},
            {
                "messages": [
                    {"role": "system", "content": [{"type": "text", "text": "S"}, {"type": "text", "text": "d"}]}
                ]
            },
        ),
        ("responses", {"input": "x"}, {"input": "x", "instructions": "S"}),
        ("responses", {"input": "x", "instructions": "d"}, {"input": "x", "instructions": "S\n\nd"}),
        (
            "responses",
            {"input": "x", "instructions": [{"role": "system", "content": "d"}]},
            {"input": "x", "instructions": [{"role": "system", "content": "S"}, {"role": "system", "content": "d"}]},
        ),
        ("messages", {"messages": CHAT["messages"]}, {"messages": CHAT["messages"], "system": "S"}),
        (
            "messages",
            {"messages": CHAT["messages"], "system": [{"type": "text", "text": "d", "cache_control": {}}]},
            {
                "messages": CHAT["messages"],
                "system": [{"type": "text", "text": "S"}, {"type": "text", "text": "d", "cache_control": {}}],
            },
        ),
        ("completions", {"prompt": "x"}, {"prompt": "x"}),
    ],
)
def test_a_system_prompt_comes_first(api: Any, fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert changed(api, fields, system="S") == wanted | {"model": "served"}


@pytest.mark.parametrize(
    ("thinking", "api", "changes", "wanted"),
    [
        ("reasoning_effort", "chat", {"reasoning_effort": "high"}, {"reasoning_effort": "high"}),
        ("reasoning_effort", "chat", {"thinking": False}, {"reasoning_effort": "none"}),
        ("reasoning_effort", "chat", {"thinking": True}, {"reasoning_effort": "medium"}),
        ("reasoning_effort", "chat", {"thinking_budget": 5}, {}),
        (
            "reasoning_effort",
            "responses",
            {"reasoning_effort": "low"},
            {"reasoning": {"summary": "auto", "effort": "low"}},
        ),
        (
            "reasoning_effort",
            "messages",
            {"reasoning_effort": "low"},
            {"thinking": {"type": "enabled", "budget_tokens": 2048}},
        ),
        ("enable_thinking", "chat", {"thinking": False}, {"chat_template_kwargs": {"a": 1, "enable_thinking": False}}),
        (
            "enable_thinking",
            "chat",
            {"reasoning_effort": "none"},
            {"chat_template_kwargs": {"a": 1, "enable_thinking": False}},
        ),
        (
            "enable_thinking",
            "chat",
            {"reasoning_effort": "low"},
            {"chat_template_kwargs": {"a": 1, "enable_thinking": True}},
        ),
        ("thinking", "chat", {"thinking": True}, {"chat_template_kwargs": {"a": 1, "thinking": True}}),
        ("anthropic", "messages", {"thinking": True}, {"thinking": {"type": "enabled", "budget_tokens": 8192}}),
        ("anthropic", "messages", {"thinking_budget": 3000}, {"thinking": {"type": "enabled", "budget_tokens": 3000}}),
        ("anthropic", "messages", {"thinking": False}, {"thinking": {"type": "disabled"}}),
        ("none", "chat", {"reasoning_effort": "high"}, {}),
        ("reasoning_effort", "chat", {"max_tokens": 1_000_000}, {}),
    ],
)
def test_thinking_is_switched_as_the_family_wants_it(
    thinking: Any, api: Any, changes: dict[str, Any], wanted: dict[str, Any]
) -> None:
    fields: dict[str, Any] = {"messages": CHAT["messages"], "max_tokens": 100_000}
    if api == "responses":
        fields = {"input": "x", "reasoning": {"summary": "auto"}, "max_output_tokens": 5}
    if thinking in ("enable_thinking", "thinking"):
        fields["chat_template_kwargs"] = {"a": 1}
    result = changed(api, fields, Model("m", "served", thinking=thinking), **changes)
    assert result == fields | wanted | {"model": "served"}


def test_anthropic_s_budget_stays_below_max_tokens_and_drops_what_it_forbids() -> None:
    model = Model("m", "served", thinking="anthropic")
    fields = {"messages": CHAT["messages"], "max_tokens": 2000, "temperature": 0.2, "top_k": 3, "top_p": 0.99}
    result = changed("messages", fields, model, reasoning_effort="high")
    assert result["thinking"] == {"type": "enabled", "budget_tokens": 1999}
    assert "temperature" not in result
    assert "top_k" not in result
    assert result["top_p"] == 0.99
    result = changed("messages", fields | {"max_tokens": 1000}, model, reasoning_effort="high")
    assert result["thinking"] == {"type": "disabled"}
    assert result["temperature"] == 0.2


def test_thinking_is_nothing_to_embeddings() -> None:
    assert changed("embeddings", {"input": "x"}, reasoning_effort="high", system="S") == {
        "input": "x",
        "model": "served",
    }


def test_a_deep_body_is_changed_like_any_other() -> None:
    deep = b'{"messages": [{"role": "user"}], "x": ' + b"[" * 400 + b"]" * 400 + b"}"
    changed = rewriting.changed(parse("chat", deep), EFFORT, Changes(max_tokens=1))
    assert changed == b'{"max_tokens":1,"model":"served",' + deep[1:]


# Errors and lists


@pytest.mark.parametrize(
    ("status", "openai_type", "anthropic_type"),
    [
        (400, "invalid_request_error", "invalid_request_error"),
        (401, "authentication_error", "authentication_error"),
        (403, "permission_error", "permission_error"),
        (404, "invalid_request_error", "not_found_error"),
        (413, "invalid_request_error", "request_too_large"),
        (429, "rate_limit_error", "rate_limit_error"),
        (503, "server_error", "api_error"),
        (529, "server_error", "overloaded_error"),
    ],
)
def test_errors_have_the_shape_of_their_api(status: int, openai_type: str, anthropic_type: str) -> None:
    refusal = Refusal(status, "Text “é”.", "code", param="p")
    assert orjson.loads(BY_NAME["chat"].error(refusal)) == {
        "error": {"message": "Text “é”.", "type": openai_type, "param": "p", "code": "code"}
    }
    assert orjson.loads(BY_NAME["messages"].error(refusal)) == {
        "type": "error",
        "error": {"type": anthropic_type, "message": "Text “é”."},
    }
