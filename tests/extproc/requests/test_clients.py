"""Calls as real clients make them: read right, decided right, and sent on right."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orjson
import pytest

from cli.calls import RecordedCall
from config.build import build
from config.load import load
from decisions.decision import Trace
from decisions.engine import Engine
from extproc.requests import paths
from extproc.requests.body import parse
from extproc.requests.rewriting import rewritten
from signals.facts import Facts
from signals.needs import NEEDS
from signals.request import Request
from signals.state.session import Sessions
from signals.text.estimate import PER_PAGE, estimate
from tests.extproc.envoy import Envoy, Service

POLICY = """
version: 1
models:
  small: {name: org/small}
  gpt: {name: gpt-5}
  claude: {name: claude-x, thinking: anthropic}
default: small
signals:
  secret: {keyword: {any: [zanzibar], in: all}}
  code: {keyword: {any: [refactor]}}
  news: {keyword: {any: [calendar], in: latest}}
  cap: {keyword: {any: [briefly]}}
  think: {keyword: {any: [ponder]}}
  images: {conversation: {images: true}}
  turns: {conversation: {turns: {at_least: 2}}}
  loop: {conversation: {tool_loop: true}}
decisions:
  - {name: guard, when: secret, on_unknown: match, respond: {status: 403}}
  - {name: cap, when: cap, route: gpt, set: {max_tokens: 1000}}
  - {name: think, when: think, route: claude, set: {reasoning_effort: high}}
  - {name: code, when: code, route: gpt}
"""
CHAT, MESSAGES, RESPONSES = "/v1/chat/completions", "/v1/messages", "/v1/responses"
EMBEDDINGS, COMPLETIONS = "/v1/embeddings", "/v1/completions"
PICTURE = "data:image/png;base64,iVBORw0KGgo="


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    path = tmp_path_factory.mktemp("clients") / "policy.yaml"
    path.write_text(POLICY)
    return build(load(path))


def decided(engine: Engine, path: str, body: Mapping[str, Any], everything: bool = True) -> Trace:
    trace = RecordedCall(orjson.dumps(body), path=path).begin(engine, everything=everything)
    assert isinstance(trace, Trace)
    return trace


def sent(engine: Engine, path: str, body: bytes) -> bytes:
    """What the model is sent."""
    call = RecordedCall(body, path=path)
    request, trace = call.request(engine), call.begin(engine)
    assert request is not None
    assert isinstance(trace, Trace)
    new = rewritten(request, trace.decision)
    return body if new is None else new


def matched(trace: Trace, *names: str) -> list[bool | None]:
    return [trace.readings[name].matched for name in names]


# Sent on right


def test_an_integer_keeps_its_digits(engine: Engine) -> None:
    body = (
        b'{ "seed" : 987654321098765432109876543210,"model":"auto",'
        b'"messages":[{"role":"user","content":"br\\u0069efly, please"}] }'
    )
    assert sent(engine, CHAT, body) == (
        b'{"max_completion_tokens":1000, "seed" : 987654321098765432109876543210,"model":"gpt-5",'
        b'"messages":[{"role":"user","content":"br\\u0069efly, please"}] }'
    )


def test_a_model_that_reasons_gets_no_max_tokens(engine: Engine) -> None:
    asked = {"model": "auto", "messages": [{"role": "user", "content": "briefly"}]}
    for given in ({}, {"max_tokens": 4000}, {"max_completion_tokens": 4000}):
        body = orjson.loads(sent(engine, CHAT, orjson.dumps(asked | given)))
        assert body == asked | {"model": "gpt-5", "max_completion_tokens": 1000}


TOOL = {"name": "look", "input_schema": {"type": "object"}}
ASKED: dict[str, Any] = {"model": "auto", "max_tokens": 32_000, "messages": [{"role": "user", "content": "ponder"}]}
CALLED = [
    {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {}}]},
    {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": "a door"}]},
]


@pytest.mark.parametrize(
    "more",
    [
        {"tools": [TOOL], "messages": [*ASKED["messages"], *CALLED]},
        {"tools": [TOOL], "tool_choice": {"type": "tool", "name": "look"}},
        {"tools": [TOOL], "tool_choice": {"type": "any"}},
        {"top_p": 0.5},
        {"messages": [*ASKED["messages"], {"role": "assistant", "content": "["}]},
    ],
)
def test_thinking_is_asked_for_only_where_anthropic_allows_it(engine: Engine, more: dict[str, Any]) -> None:
    body = orjson.dumps(ASKED | more)
    assert sent(engine, MESSAGES, body) == body.replace(b'"auto"', b'"claude-x"')
    assert orjson.loads(sent(engine, MESSAGES, orjson.dumps(ASKED)))["thinking"]["budget_tokens"] == 24_576


def test_adaptive_thinking_is_the_client_s(engine: Engine) -> None:
    body = ASKED | {"thinking": {"type": "adaptive"}, "output_config": {"effort": "xhigh"}}
    new = orjson.loads(sent(engine, MESSAGES, orjson.dumps(body)))
    assert new == body | {"model": "claude-x", "output_config": {"effort": "high"}}


# Read right

REMINDER = "<system-reminder>Your calendar of to-dos is empty: briefly ponder it.</system-reminder>"


def test_a_tool_loop_with_a_reminder_goes_on_with_its_question(engine: Engine) -> None:
    asked = {"role": "user", "content": [{"type": "text", "text": "refactor the parser"}]}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "def parse(): ..."}
    answer = {"role": "user", "content": [result, {"type": "text", "text": REMINDER}]}
    body = {"model": "auto", "max_tokens": 99, "messages": [asked, CALLED[0], answer]}
    trace = decided(engine, MESSAGES, body)
    assert trace.decision.name == "code"
    assert matched(trace, "code", "news", "cap", "loop", "turns") == [True, True, False, True, False]
    answer["content"][1]["text"] = "briefly: why?"  # type: ignore[index]
    trace = decided(engine, MESSAGES, body)
    assert trace.decision.name == "cap"
    assert matched(trace, "code", "loop", "turns") == [False, False, True]


def test_codex_s_blocks_are_no_question(engine: Engine) -> None:
    place = "<environment_context>\n  <cwd>/briefly/ponder</cwd>\n</environment_context>"
    rules = "<user_instructions>\nponder\n</user_instructions>"
    body = {
        "model": "auto",
        "instructions": "You are a coding agent.",
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": rules}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "refactor it"}]},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": place}]},
        ],
    }
    trace = decided(engine, RESPONSES, body)
    assert trace.decision.name == "code"
    assert matched(trace, "cap", "think", "turns") == [False, False, False]


def test_claude_code_s_first_turn_is_what_its_user_says(engine: Engine) -> None:
    words = [REMINDER, "refactor the lexer", REMINDER]
    body = {
        "model": "auto",
        "max_tokens": 100,
        "system": [{"type": "text", "text": "x-anthropic-billing-header: cch=0a1b2c; briefly"}],
        "messages": [{"role": "user", "content": [{"type": "text", "text": text} for text in words]}],
        "metadata": {"user_id": '{"device_id":"d","session_id":"00000000-0000-4000-8000-000000000001"}'},
    }
    trace = decided(engine, MESSAGES, body)
    assert (trace.decision.name, matched(trace, "news", "secret")) == ("code", [True, False])
    assert orjson.loads(sent(engine, MESSAGES, orjson.dumps(body))) == body | {"model": "gpt-5"}


@pytest.mark.parametrize(
    ("path", "body", "images"),
    [
        (
            EMBEDDINGS,
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PICTURE}}]}]},
            True,
        ),
        (
            EMBEDDINGS,
            {"input": [{"type": "text", "text": "a fox"}, {"type": "image_url", "image_url": {"url": PICTURE}}]},
            True,
        ),
        (
            MESSAGES,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t",
                                "content": [
                                    {
                                        "type": "image",
                                        "source": {"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="},
                                    }
                                ],
                            }
                        ],
                    }
                ]
            },
            True,
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": "what is there?"},
                    {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"},
                    {
                        "type": "function_call_output",
                        "call_id": "c",
                        "output": [{"type": "input_image", "image_url": PICTURE}],
                    },
                ]
            },
            True,
        ),
        (
            RESPONSES,
            {
                "input": [
                    {"role": "user", "content": "list them"},
                    {"type": "shell_call", "call_id": "c", "action": {"commands": ["ls -a"]}},
                    {
                        "type": "shell_call_output",
                        "call_id": "c",
                        "max_output_length": 4096,
                        "output": [{"stdout": "b.txt", "stderr": "", "outcome": {"type": "exit", "exit_code": 0}}],
                    },
                ]
            },
            False,
        ),
    ],
)
def test_newer_shapes_are_read(engine: Engine, path: str, body: dict[str, Any], images: bool) -> None:
    trace = decided(engine, path, {"model": "auto", "max_tokens": 9} | body)
    assert (trace.decision.action, trace.decision.fallback) == ("default", None)
    assert matched(trace, "images", "secret") == [images, False]
    guarded = copy.deepcopy(body)
    _last_object(guarded)["note"] = "zanzibar"
    assert decided(engine, path, {"model": "auto", "max_tokens": 9} | guarded).decision.name == "guard"


SHOT = {"type": "input_image", "image_url": PICTURE}
RUN = {"type": "code_interpreter_call", "id": "c", "code": "plot()", "container_id": "k"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (RESPONSES, {"input": [RUN | {"outputs": [{"type": "logs", "logs": "1"}, {"type": "image", "url": PICTURE}]}]}),
        (RESPONSES, {"input": [{"type": "image_generation_call", "id": "i", "result": "iVBORw0KGgo="}]}),
        (RESPONSES, {"input": [{"type": "function_call_output", "call_id": "c", "output": [SHOT, {"note": "a fox"}]}]}),
        (
            MESSAGES,
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {
                                "type": "tool_result",
                                "tool_use_id": "t",
                                "content": [{"type": "image", "data": "iVBORw0KGgo="}, {"note": "a fox"}],
                            }
                        ],
                    }
                ]
            },
        ),
        (EMBEDDINGS, {"input": [[{"type": "text", "text": "a fox"}, {"type": "image_url", "image_url": PICTURE}]]}),
        (EMBEDDINGS, {"input": [{"text": "a fox"}, {"image": PICTURE}]}),
    ],
)
def test_an_image_counts_in_whatever_form_results_and_inputs_have(
    engine: Engine, path: str, body: dict[str, Any]
) -> None:
    trace = decided(engine, path, {"model": "auto", "max_tokens": 9} | body)
    assert matched(trace, "images", "secret") == [True, False]
    guarded = copy.deepcopy(body)
    _last_object(guarded)["note"] = "zanzibar"
    assert decided(engine, path, {"model": "auto", "max_tokens": 9} | guarded).decision.name == "guard"


def _last_object(value: Any) -> Any:
    """The innermost object at the end of a body."""
    while True:
        inner = value[-1] if isinstance(value, list) else next(reversed(value.values()))
        if not isinstance(inner, (dict, list)):
            return value
        value = inner


@pytest.mark.parametrize(
    ("path", "body"),
    [
        (COMPLETIONS, {"prompt_embeds": "AAECAw==", "max_tokens": 4}),
        (RESPONSES, {"conversation": "conv_7"}),
        (RESPONSES, {"conversation": {"id": "conv_7"}}),
        (RESPONSES, {"previous_response_id": "resp_7", "input": []}),
        (COMPLETIONS, {"prompt": [], "prompt_embeds": "AAECAw==", "max_tokens": 4}),
    ],
)
def test_what_cannot_be_read_is_accepted_and_kept_from_a_guard_on_everything(
    engine: Engine, path: str, body: dict[str, Any], tmp_path: Path
) -> None:
    trace = decided(engine, path, {"model": "auto"} | body)
    assert trace.readings["secret"].matched is None
    assert (trace.decision.name, trace.decision.status) == ("guard", 403)
    open_policy = tmp_path / "policy.yaml"
    guard = "  - {name: guard, when: secret, on_unknown: match, respond: {status: 403}}\n"
    assert guard in POLICY
    open_policy.write_text(POLICY.replace(guard, ""))
    model = decided(build(load(open_policy)), path, {"model": "auto"} | body).decision.model
    assert model is not None
    assert model.key == "small"


def test_an_item_whose_type_is_null_is_read(engine: Engine) -> None:
    hidden = {"type": None, "role": "user", "content": "zanzibar"}
    body = {"model": "auto", "input": [hidden, {"role": "user", "content": "hello"}]}
    assert decided(engine, RESPONSES, body).decision.name == "guard"


# Thoughts of another model, over the calls of a session

THOUGHT = {"type": "thinking", "thinking": "Hm.", "signature": "c2lnbmVk"}


def step(service: Service, body: dict[str, Any], **headers: str) -> dict[str, Any]:
    """One call through an exchange; the body that its model gets."""
    raw = orjson.dumps(body)
    mutation = Envoy(service).request(raw, MESSAGES, **headers)[-1].request_body.response.body_mutation
    sent: dict[str, Any] = orjson.loads(raw if mutation is None else mutation.body)
    return sent


@pytest.mark.parametrize("named", ["header", "body"])
def test_a_session_s_new_model_gets_no_thoughts_of_the_old_one(engine: Engine, named: str) -> None:
    service = Service(engine)
    header = {"x-claude-code-session-id": "s1"} if named == "header" else {}
    said = {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Done."}]}
    messages = [{"role": "user", "content": "refactor it"}]
    body: dict[str, Any] = {"model": "auto", "max_tokens": 9000, "messages": messages}
    if named == "body":
        body["metadata"] = {"user_id": "user_1a2b_account__session_00000000-0000-4000-8000-000000000001"}
    assert step(service, body, **header)["model"] == "gpt-5"
    messages += [said, {"role": "user", "content": "refactor that"}]
    assert step(service, body, **header)["messages"] == messages
    messages += [said, {"role": "user", "content": "now ponder"}]
    new = step(service, body, **header)
    assert new["model"] == "claude-x"
    assert new["thinking"]["type"] == "enabled"
    bare = {"role": "assistant", "content": [{"type": "text", "text": "Done."}]}
    assert [new["messages"][at] for at in (1, 3)] == [bare, bare]
    messages += [said, {"role": "user", "content": "ponder on"}]
    new = step(service, body, **header)
    assert [new["messages"][at] for at in (1, 3, 5)] == [bare, bare, said]
    unknown = step(service, body, **{"x-claude-code-session-id": "s2"})
    assert unknown["messages"] == messages


def test_an_overridden_model_s_turns_that_are_over_lose_their_thoughts(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(POLICY.replace("name: think,", "name: think, override: true,"))
    service = Service(build(load(path)))
    over = {"role": "assistant", "content": [THOUGHT, {"type": "text", "text": "Done."}]}
    call = {"role": "assistant", "content": [THOUGHT, *CALLED[0]["content"]]}
    messages = [{"role": "user", "content": "hi"}, over, {"role": "user", "content": "ponder"}, call, CALLED[1]]
    body = {"model": "org/small", "max_tokens": 9000, "messages": messages}
    new = step(service, body)
    assert new["model"] == "claude-x"
    assert new["messages"][1] == {"role": "assistant", "content": [{"type": "text", "text": "Done."}]}
    assert new["messages"][3] == call
    kept = step(service, body | {"messages": [messages[0], over, {"role": "user", "content": "hello"}]})
    assert (kept["model"], kept["messages"][1]) == ("org/small", over)


# What a call needs, wherever it says so

SCHEMA: dict[str, Any] = {"type": "json_schema", "schema": {"type": "object"}}
GEMINI = "/v1beta/models/auto:generateContent"
CONTENTS = [{"parts": [{"text": "hi"}]}]
TOOL = {"type": "function", "name": "f", "parameters": {}}
HI = [{"role": "user", "content": "hi"}]
NEEDED: list[tuple[str, dict[str, Any], set[str]]] = [
    (MESSAGES, {"messages": HI, "output_config": {"format": SCHEMA}}, {"json_schema"}),
    (MESSAGES, {"messages": HI, "output_config": {"effort": "low"}}, set()),
    (MESSAGES, {"messages": HI, "output_format": SCHEMA}, {"json_schema"}),
    (CHAT, {"messages": HI, "response_format": SCHEMA}, {"json_schema"}),
    (CHAT, {"messages": HI, "response_format": {"type": "json_object"}}, set()),
    (CHAT, {"messages": HI, "guided_json": {"type": "object"}}, {"json_schema"}),
    (CHAT, {"messages": HI, "structured_outputs": {"json": {"type": "object"}}}, {"json_schema"}),
    (CHAT, {"messages": HI, "structured_outputs": {"regex": "a"}}, set()),
    (RESPONSES, {"input": "hi", "text": {"format": SCHEMA}}, {"json_schema"}),
    (RESPONSES, {"input": "hi", "text": {"verbosity": "low"}}, set()),
    (
        RESPONSES,
        {"input": [*HI, {"type": "configuration_update", "text": {"format": SCHEMA}}]},
        {"json_schema"},
    ),
    (
        RESPONSES,
        {
            "text": {"format": SCHEMA},
            "input": [*HI, {"type": "configuration_update", "text": {"format": {"type": "text"}}}],
        },
        set(),
    ),
    (GEMINI, {"contents": CONTENTS, "generationConfig": {"_responseJsonSchema": {}}}, {"json_schema"}),
    (GEMINI, {"contents": CONTENTS, "generation_config": {"response_json_schema": {}}}, {"json_schema"}),
    (RESPONSES, {"input": [{"type": "additional_tools", "role": "developer", "tools": [TOOL]}, *HI]}, {"tools"}),
    (RESPONSES, {"input": [{"type": "tool_search_output", "call_id": "c", "tools": [TOOL]}, *HI]}, {"tools"}),
    (
        MESSAGES,
        {"messages": [*HI, {"role": "system", "content": [{"type": "tool_addition", "tool": {"definition": TOOL}}]}]},
        {"tools"},
    ),
    (
        MESSAGES,
        {"messages": [*HI, {"role": "system", "content": [{"type": "tool_addition", "tool": {"name": "f"}}]}]},
        set(),
    ),
    (CHAT, {"messages": [*HI, {"role": "assistant", "audio": {"id": "audio_1"}}, *HI]}, {"audio"}),
    (CHAT, {"messages": [*HI, {"role": "assistant", "content": [], "audio": {"id": "audio_1"}}, *HI]}, {"audio"}),
    (
        RESPONSES,
        {"prompt": {"id": "p", "variables": {"a": {"type": "input_image", "image_url": PICTURE}}}},
        {"vision"},
    ),
    (
        RESPONSES,
        {"input": "hi", "prompt": {"id": "p", "variables": {"a": "b", "f": {"type": "input_file", "file_id": "x"}}}},
        {"files"},
    ),
]


@pytest.mark.parametrize(("path", "fields", "needs"), NEEDED)
def test_what_a_call_needs_is_found_wherever_it_says_so(path: str, fields: dict[str, Any], needs: set[str]) -> None:
    assert NEEDS.compute(Facts(read(path, fields))) == needs


def read(path: str, fields: dict[str, Any]) -> Request:
    target = paths.read(path)
    assert target is not None
    body = fields if path == GEMINI else {"model": "auto", "max_tokens": 9, **fields}
    return parse(target, {}, {}, orjson.dumps(body))


def test_words_in_the_variables_of_a_template_are_read() -> None:
    for variables in (
        {"zanzibar": "x"},
        {"a": "zanzibar"},
        {"a": {"type": "input_text", "text": "zanzibar"}},
        ["zanzibar"],
    ):
        for more in ({}, {"input": "hi"}, {"input": [*HI, {"role": "assistant", "content": "a"}, *HI]}):
            request = read(RESPONSES, {"prompt": {"id": "p", "variables": variables}, **more})
            assert "zanzibar" in request.text("latest"), (variables, more)
            assert "zanzibar" in request.text("all")
            assert "zanzibar" not in request.text("user")


SEARCHED = {"type": "web_search_result", "url": "u", "title": "t", "encrypted_content": "RW5j"}
RAN = {"type": "encrypted_code_execution_result", "encrypted_stdout": "RW5j", "stderr": "", "content": []}
ADVISED = {"type": "advisor_redacted_result", "encrypted_content": "RW5j"}


@pytest.mark.parametrize(
    ("kind", "content"),
    [("web_search", [SEARCHED]), ("code_execution", RAN), ("advisor", ADVISED)],
)
def test_what_only_its_provider_can_open_is_not_said_to_be_read(kind: str, content: Any) -> None:
    given = {"type": f"{kind}_tool_result", "tool_use_id": "s", "content": content}
    turns = [*HI, {"role": "assistant", "content": [given, {"type": "text", "text": "So."}]}, *HI]
    request = read(MESSAGES, {"messages": turns})
    assert request.opaque() == ("encrypted",)
    assert request.unreadable("tools")
    assert not request.unreadable("latest")
    open_ = [{**SEARCHED, "encrypted_content": ""}]
    turns[1]["content"][0] = {"type": "web_search_tool_result", "tool_use_id": "s", "content": open_}  # type: ignore[index]
    assert read(MESSAGES, {"messages": turns}).opaque() == ()


def test_a_thread_holds_text_that_nobody_sees_here() -> None:
    request = read(MESSAGES, {"thread": {"type": "continue", "previous_message_id": "msg_1"}, "messages": HI})
    assert request.opaque() == ("reference",)
    assert (request.unreadable("conversation"), request.unreadable("latest")) == (True, False)
    assert Sessions().name(request) == "msg_1"
    for thread in ({"type": "create"}, None):
        assert read(MESSAGES, {"thread": thread, "messages": HI}).opaque() == ()


def test_a_document_that_is_elsewhere_counts_as_a_page() -> None:
    by_url = {"type": "document", "source": {"type": "url", "url": "https://x/a.pdf"}}
    by_id = {"type": "document", "source": {"type": "file", "file_id": "file_1"}}
    uploaded = {"type": "container_upload", "file_id": "file_1"}
    calls: list[tuple[str, dict[str, Any], int]] = [
        (MESSAGES, {"messages": [{"role": "user", "content": [by_url]}]}, 1),
        (MESSAGES, {"messages": [{"role": "user", "content": [by_url, by_id]}]}, 2),
        (MESSAGES, {"messages": [{"role": "user", "content": [uploaded]}]}, 0),
        (CHAT, {"messages": [{"role": "user", "content": [{"type": "file", "file": {"file_id": "file_1"}}]}]}, 1),
        (RESPONSES, {"input": [{"role": "user", "content": [{"type": "input_file", "file_url": "https://x/a"}]}]}, 1),
        (RESPONSES, {"prompt": {"id": "p", "variables": {"f": {"type": "input_file", "file_id": "file_1"}}}}, 1),
        (GEMINI, {"contents": [{"parts": [{"fileData": {"mimeType": "application/pdf", "fileUri": "gs://x"}}]}]}, 1),
        (GEMINI, {"contents": [{"parts": [{"fileData": {"mimeType": "video/mp4", "fileUri": "gs://x"}}]}]}, 0),
    ]
    for path, fields, pages in calls:
        assert round(estimate.compute(Facts(read(path, fields))) / PER_PAGE) == pages, fields


def test_a_document_of_another_format_counts_by_its_size() -> None:
    data = "UEsDB" + "B" * 2_000_000  # as a word processor's files begin
    part = {"type": "input_file", "filename": "a.docx", "file_data": f"data:application/msword;base64,{data}"}
    counted = estimate.compute(Facts(read(RESPONSES, {"input": [{"role": "user", "content": [part]}]})))
    assert 20 * PER_PAGE <= counted <= 21 * PER_PAGE


def test_what_a_result_holds_is_the_tool_s_whatever_stands_beside_it() -> None:
    pdf = {"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "JVBERi0="}}
    result = {"type": "tool_result", "tool_use_id": "t", "content": [pdf]}
    inline = {"inlineData": {"mimeType": "application/pdf", "data": "JVBERi0="}}
    answered = {"functionResponse": {"name": "f", "response": {}, "parts": [inline]}}
    for beside in ([], ["look"]):
        content = [result, *({"type": "text", "text": text} for text in beside)]
        for request in (
            read(MESSAGES, {"messages": [*HI, {"role": "user", "content": content}]}),
            read(GEMINI, {"contents": [*CONTENTS, {"parts": [answered, *({"text": text} for text in beside)]}]}),
        ):
            assert request.unreadable("tools")
            assert request.unreadable("latest")
            assert not request.unreadable("user")
