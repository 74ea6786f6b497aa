"""Every string of a body that a model may be shown is read, and what cannot be read is said to be so."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from extproc.bodies.jsonbody import load, unescaped
from extproc.refusal import Refusal
from extproc.requests.body import parse
from extproc.requests.paths import read
from signals.facts import Facts
from signals.gather import read as take
from signals.kinds.keyword import KeywordParams, KeywordSignal
from signals.request import Request
from signals.signal import Shared

MARK = "classified-codeword"
USER = {"role": "user", "content": "hi"}
ESCAPED = r'{"q": "\u0063lassified\u002dcodeword", "n": "\\\n\""}'
PACKED = base64.b64encode(MARK.encode()).decode()
STRANGE = [
    ("text/plain", base64.b64encode(MARK.encode("utf-16-le")).decode()),
    ("text/plain;charset=utf-7", PACKED),
    ("Text/Plain", PACKED),
    ("text/plain", PACKED + "!"),
]
"""Documents that one reader takes for this text and another for that."""
URLS = [
    f"data:text/plain;BASE64,{PACKED}",
    f"data:text/plain;base64;x=y,{PACKED}",
    "data:text/plain;charset=utf-16,%00c%00l",
    f"DATA:text/plain;base64,{PACKED}",
    "data:text/plain,%ff",
]


def request(path: str, fields: Any, most: int = 200_000) -> Request:
    target = read(path)
    assert target is not None
    return parse(target, {}, {}, fields if isinstance(fields, bytes) else orjson.dumps(fields), most)


def chat(**message: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/chat/completions", {"messages": [{"role": "user", "content": "hi", **message}]}


def part(**part: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/messages", {"messages": [{"role": "user", "content": [part]}], "max_tokens": 9}


def item(**item: Any) -> tuple[str, dict[str, Any]]:
    return "/v1/responses", {"input": [item, USER]}


def google(*parts: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return "/v1beta/models/auto:generateContent", {"contents": [{"role": "user", "parts": [*parts]}], **more}


def top(path: str = "/v1/chat/completions", **fields: Any) -> tuple[str, dict[str, Any]]:
    return path, {"messages": [USER], **fields}


def result(content: Any, **more: Any) -> tuple[str, dict[str, Any]]:
    return part(type="tool_result", tool_use_id="t", content=content, **more)


PLACES: list[tuple[str, dict[str, Any]]] = [
    chat(name=MARK),
    chat(role="assistant", reasoning_content=MARK),
    chat(role="assistant", reasoning=MARK),
    chat(role="assistant", content=None, refusal=MARK),
    chat(role="assistant", content=None, tool_calls=[{"function": {"name": "f", "arguments": MARK}}]),
    chat(role="assistant", content=None, tool_calls=[{"function": {"name": MARK, "arguments": "{}"}}]),
    chat(role="assistant", content=None, function_call={"name": "f", "arguments": MARK}),
    chat(role=MARK),
    chat(role="tool", content=[{"type": "text", "text": MARK}]),
    chat(role="tool", tool_call_id=MARK),
    chat(content=[{"type": "text", "text": "hi", "thinking": MARK}]),
    chat(content=[{"type": "image_url", "image_url": {"url": "https://x/y.png"}, "text": MARK}]),
    chat(content=[{"type": "image_url", "image_url": {"url": MARK}}]),
    chat(content=[{"type": "Text", "text": MARK}]),
    chat(content=[{"type": None, "text": MARK}]),
    chat(content=[{"text": MARK}]),
    chat(content=[{"type": "something_new", "anything": {"deep": [MARK]}}]),
    chat(content=[{"type": "tool_result", "content": [{"type": "text", "text": MARK}]}]),
    chat(content=[{"type": "file", "file": {"filename": MARK}}]),
    chat(content=[MARK]),
    top(tools=[{"type": "function", "function": {"name": "f", "description": MARK}}]),
    top(tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {"a": {"enum": [MARK]}}}}}]),
    top(tools=[{"type": "function", "function": {"name": "f", "parameters": {"properties": {MARK: {}}}}}]),
    top(functions=[{"name": "f", "description": MARK}]),
    top(documents=[{"title": MARK}]),
    top(documents=[{"text": MARK}]),
    top(chat_template=MARK),
    top(chat_template_kwargs={"a": MARK}),
    top(response_format={"type": "json_schema", "json_schema": {"schema": {"description": MARK}}}),
    top(something_new={MARK: 1}),
    top(prediction={"type": "content", "content": MARK}),
    top("/v1/messages", system=[{"type": "text", "text": MARK}]),
    top("/v1/messages/count_tokens", system=MARK),
    top("/v1/messages", tools=[{"name": "f", "description": MARK, "input_schema": {}}]),
    part(type="thinking", thinking=MARK, signature="x"),
    part(type="redacted_thinking", data=MARK),
    part(type="tool_use", id="t", name="f", input={"q": MARK}),
    part(type="tool_use", id="t", name="f", input={MARK: 1}),
    part(type="server_tool_use", id="t", name="web_search", input={"query": MARK}),
    part(type="document", title=MARK, source={"type": "base64", "media_type": "application/pdf", "data": "AA=="}),
    part(type="document", context=MARK, source={"type": "url", "url": "https://x"}),
    part(type="document", source={"type": "text", "media_type": "text/plain", "data": MARK}),
    part(type="document", source={"type": "content", "content": [{"type": "text", "text": MARK}]}),
    part(type="search_result", title=MARK, source="s", content=[{"type": "text", "text": "x"}]),
    result(MARK),
    result([{"type": "text", "text": MARK}]),
    result([{"type": "search_result", "title": "t", "content": [{"type": "text", "text": MARK}]}]),
    result([{"type": "tool_result", "content": {"type": "text", "text": MARK}}]),
    result([{"a": {"b": MARK}}]),
    result({"type": "text", "text": MARK}),
    part(type="bash_code_execution_tool_result", content={"type": "bash_code_execution_result", "stdout": MARK}),
    part(type="web_search_tool_result", content=[{"type": "web_search_result", "title": MARK, "url": "u"}]),
    part(type="mcp_tool_result", content=[{"type": "text", "text": MARK}]),
    ("/v1/completions", {"prompt": [MARK]}),
    ("/v1/completions", {"prompt": [["a", MARK]]}),
    ("/v1/completions", {"prompt": "x", "suffix": MARK}),
    ("/v1/embeddings", {"input": [{"type": "text", "text": MARK}]}),
    ("/v1/embeddings", {"messages": [{"role": "user", "content": MARK}]}),
    ("/v1/embeddings", {"input": [{"content": [{"type": "text", "text": MARK}]}]}),
    ("/v1/responses", {"input": "hi", "instructions": MARK}),
    ("/v1/responses", {"prompt": {"id": "p", "variables": {"q": MARK}}}),
    ("/v1/responses", {"prompt": {"id": "p", "variables": {"q": {"type": "input_text", "text": MARK}}}}),
    ("/v1/responses/compact", {"input": MARK}),
    ("/v1/responses/input_tokens", {"input": MARK}),
    ("/v1/responses", {"input": "x", "tools": [{"type": "function", "name": "f", "description": MARK}]}),
    ("/v1/responses", {"input": "x", "text": {"format": {"type": "json_schema", "schema": {"title": MARK}}}}),
    item(type="mcp_call", name="f", server_label="s", arguments="{}", output=MARK),
    item(type="mcp_call", name="f", server_label="s", arguments=MARK, output=""),
    item(type="mcp_list_tools", server_label="s", tools=[{"name": "f", "description": MARK}]),
    item(type="file_search_call", queries=["q"], results=[{"text": MARK}]),
    item(type="custom_tool_call", call_id="c", name="p", input=MARK),
    item(type="custom_tool_call_output", call_id="c", output=MARK),
    item(type="function_call", name="f", arguments=MARK),
    item(type="function_call_output", call_id="c", output=[{"type": "input_text", "text": MARK}]),
    item(type="function_call_output", call_id="c", output={"any": [MARK]}),
    item(type="local_shell_call", action={"type": "exec", "command": ["ls", MARK]}),
    item(type="shell_call_output", call_id="c", output=[{"stdout": MARK, "outcome": {"type": "exit", "exit_code": 0}}]),
    item(type="code_interpreter_call", code=MARK),
    item(type="code_interpreter_call", code="x", outputs=[{"type": "logs", "logs": MARK}]),
    item(type="computer_call", action={"type": "type", "text": MARK}),
    item(type="reasoning", summary=[{"type": "summary_text", "text": MARK}]),
    item(type="reasoning", content=[{"type": "reasoning_text", "text": MARK}]),
    item(type="something_new", anything=MARK),
    item(type=None, role="user", content=MARK),
    item(type="Message", role="user", content=MARK),
    item(type=7, role="user", content=MARK),
    item(role="user", content=[{"type": "input_text", "text": MARK}]),
    item(type="message", role="assistant", content=[{"type": "output_text", "text": MARK}]),
    google({"text": MARK}),
    google({"text": MARK, "thought": True}),
    google({"functionCall": {"name": "f", "args": {"q": MARK}}}),
    google({"function_call": {"name": "f", "args": {MARK: 1}}}),
    google({"functionResponse": {"name": "f", "response": {"any": [MARK]}}}),
    google({"functionResponse": {"name": "f", "response": {}, "parts": [{"text": MARK}]}}),
    google({"executableCode": {"language": "PYTHON", "code": MARK}}),
    google({"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": MARK}}),
    google({"fileData": {"fileUri": MARK}}),
    google({"inlineData": {"mimeType": "image/png", "data": "AA==", "displayName": MARK}}),
    google({"inlineData": {"mimeType": "text/plain", "data": PACKED}}),
    google({"somethingNew": {"deep": {"text": MARK}}}),
    google({"text": "hi"}, systemInstruction={"parts": [{"text": MARK}]}),
    google({"text": "hi"}, system_instruction={"parts": {"text": MARK}}),
    google({"text": "hi"}, tools=[{"functionDeclarations": [{"name": "f", "description": MARK}]}]),
    google({"text": "hi"}, tools={"function_declarations": {"name": "f", "parameters": {"properties": {MARK: {}}}}}),
    google({"text": "hi"}, toolConfig={"functionCallingConfig": {"allowedFunctionNames": [MARK]}}),
    google({"text": "hi"}, generationConfig={"responseSchema": {"description": MARK}}),
    google({"text": "hi"}, generationConfig={"stopSequences": [MARK]}),
    google({"text": "hi"}, somethingNew={MARK: 1}),
    ("/v1beta/models/auto:countTokens", {"generateContentRequest": {"contents": [{"parts": [{"text": MARK}]}]}}),
    ("/v1/publishers/google/models/auto:streamGenerateContent", {"contents": {"parts": {"text": MARK}}}),
]  # fmt: skip


def matched(request: Request, **params: Any) -> bool | None:
    shared = Shared()
    signal = KeywordSignal("k", KeywordParams.model_validate({"any": [MARK], **params}), shared)
    shared.freeze()
    return take(signal, Facts(request)).matched


@pytest.mark.parametrize(("path", "fields"), PLACES, ids=[str(index) for index in range(len(PLACES))])
def test_all_is_every_string_that_a_model_may_be_shown(path: str, fields: dict[str, Any]) -> None:
    made = request(path, fields)
    assert matched(made, **{"in": "all"}) is True
    hidden = orjson.loads(orjson.dumps(fields).replace(MARK.encode(), b"x").replace(PACKED.encode(), b"eA=="))
    assert matched(request(path, hidden), **{"in": "all"}) is not True


def test_text_in_base64_is_read() -> None:
    data = base64.b64encode(MARK.encode()).decode()
    source = {"type": "base64", "media_type": "text/plain", "data": data}
    file = {"file_data": f"data:text/plain;base64,{data}"}
    for path, fields in (part(type="document", source=source), chat(content=[{"type": "file", "file": file}])):
        made = request(path, fields)
        assert made.text() == MARK
        assert matched(made, **{"in": "all"}) is True
        assert not made.sealed


@pytest.mark.parametrize("decoy", ["mime_type", "MIME_TYPE", "mimeType"])
@pytest.mark.parametrize("kind", ["document", "unheard_of"])
def test_a_second_media_type_hides_nothing(decoy: str, kind: str) -> None:
    data = base64.b64encode(MARK.encode()).decode()
    for types in ({decoy: "image/png", "media_type": "text/plain"}, {"media_type": "text/plain", decoy: "image/png"}):
        path, fields = part(type=kind, source={"type": "base64", **types, "data": data})
        assert matched(request(path, fields), **{"in": "all"}) is True


KEYS = st.text("abcdef_", min_size=1, max_size=9)
STRINGS = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 10**12) | st.text("abc x", max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=3),
    max_leaves=15,
)


@given(STRINGS, st.sampled_from(["/v1/chat/completions", "/v1/messages"]))
def test_no_place_is_forgotten(value: Any, path: str) -> None:
    """Wherever a string stands in a message, a part, a tool or a new field, it is in `all`."""

    def strings(value: Any) -> list[str]:
        if isinstance(value, str):
            return [value]
        if isinstance(value, dict):
            return [text for key, item in value.items() for text in (key, *strings(item))]
        return [text for item in value for text in strings(item)] if isinstance(value, list) else []

    fields = {
        "messages": [USER, {"role": "assistant", "content": [{"type": "new", "x": value}], "y": value}],
        "z": value,
    }
    text = request(path, fields).text("all").split("\n")
    known = {"text", "id", "name", "data", "url", "file"}
    assert [one for one in strings(value) if one not in text and one not in known and "\n" not in one] == []


@pytest.mark.parametrize(
    ("path", "fields", "opaque", "scopes"),
    [
        ("/v1/completions", {"prompt": [1, 2]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/completions", {"prompt": [[1], [2]]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/completions", {"prompt": ["a", [1]]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/completions", {"prompt": [["a", [2.0]]]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/completions", {"prompt": [[[1, 2]]]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/embeddings", {"input": [[1.0], [True]]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/embeddings", {"input": [3]}, ("token_ids",), {"user", "latest", "conversation", "all"}),
        ("/v1/completions", {"prompt_embeds": "x"}, ("embeddings",), {"user", "latest", "conversation", "all"}),
        ("/v1/responses", {"input": "a", "previous_response_id": "r"}, ("reference",), {"conversation", "all"}),
        ("/v1/responses", {"conversation": "c"}, ("reference",), {"conversation", "all"}),
        ("/v1/responses", {"input": "a", "prompt": {"id": "p"}}, ("reference",), {"system", "all"}),
        (*item(type="item_reference", id="i"), ("reference",), {"conversation", "all"}),
        (*item(id="i"), ("reference",), {"conversation", "all"}),
        (*item(type="compaction", encrypted_content="x"), ("encrypted",), {"conversation", "all"}),
        (*item(type="reasoning", encrypted_content="x", summary=[]), (), set()),
        (*part(type="document", source={"type": "base64", "media_type": "application/pdf", "data": "AA=="}),
         ("document",), {"user", "latest", "conversation", "all"}),
        (*part(type="document", source={"type": "file", "file_id": "f"}), ("reference",),
         {"user", "latest", "conversation", "all"}),
        (*part(type="document", source={"type": "url", "url": "u"}), ("reference",),
         {"user", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "file", "file": {"file_id": "f"}}]), ("reference",),
         {"user", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "file", "file": {"file_data": "data:application/pdf;base64,AA=="}}]), ("document",),
         {"user", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "input_file", "file_url": "u"}]), ("reference",),
         {"user", "latest", "conversation", "all"}),
        (*result([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": "AA"}}]),
         ("document",), {"tools", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "image_url", "image_url": {"url": "u"}}]), ("image",), set()),
        *((*part(type="document", source={"type": "base64", "media_type": media, "data": data}),
          ("document",), {"user", "latest", "conversation", "all"}) for media, data in STRANGE),
        *((*chat(content=[{"type": "file", "file": {"file_data": data}}]),
          ("document",), {"user", "latest", "conversation", "all"}) for data in URLS),
        (*part(type="document", source="f"), ("document",), {"user", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "file", "file": "f"}]), ("document",), {"user", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "audio_embeds", "audio_embeds": "AA"}]),
         ("embeddings",), {"user", "latest", "conversation", "all"}),
        (*top(prompt_token_ids=[1]), ("token_ids",), {"user", "latest", "conversation", "all"}),
        (*top(input_embeds=[[0.5]]), ("embeddings",), {"user", "latest", "conversation", "all"}),
        (*top(chat_template="{{'a' ~ 'b'}}"), ("document",), {"user", "latest", "conversation", "all"}),
        (*chat(content=[{"type": "input_audio", "input_audio": {}}, {"type": "video_url", "video_url": {}}]),
         ("audio", "video"), set()),
        (*chat(), (), set()),
    ],
)  # fmt: skip
def test_what_has_no_text_is_said_to_be_unreadable(
    path: str, fields: dict[str, Any], opaque: tuple[str, ...], scopes: set[str]
) -> None:
    made = request(path, fields)
    assert made.opaque("all") == opaque
    for scope in ("user", "latest", "conversation", "system", "tools", "all"):
        wanted = None if scope in scopes else False
        assert matched(made, **{"in": scope}) is wanted, scope


def test_a_match_in_what_can_be_read_stands() -> None:
    made = request("/v1/responses", {"input": MARK, "previous_response_id": "r"})
    assert matched(made, **{"in": "all"}) is True
    other = request("/v1/responses", {"input": "x", "previous_response_id": "r"})
    assert matched(other, any=["x"], none=[MARK], **{"in": "all"}) is None


def test_latest_is_everything_since_the_assistant_s_last_answer() -> None:
    turns = [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "first"},
        {"role": "assistant", "content": "answer"},
        {"role": "user", "content": [{"type": "text", "text": "one"}, {"type": "file", "file": {"filename": "two"}}]},
        {"role": "tool", "content": "three"},
    ]
    assert request("/v1/chat/completions", {"messages": turns}).text("latest").split("\n") == ["one", "two", "three"]
    prefill = [*turns, {"role": "assistant", "content": "Sure:"}]
    text = request("/v1/chat/completions", {"messages": prefill}).text("latest")
    assert text.split("\n") == ["one", "two", "three", "Sure:"]
    assert request("/v1/chat/completions", {"messages": turns[:2]}).text("latest") == "first"
    only = [{"role": "assistant", "content": "x"}]
    assert request("/v1/chat/completions", {"messages": only}).text("latest") == "x"


def test_parts_are_also_joined_with_nothing() -> None:
    content = [{"type": "text", "text": "class"}, {"type": "text", "text": "ified"}]
    made = request("/v1/chat/completions", {"messages": [{"role": "user", "content": content}]})
    assert made.text() == "class\nified"
    for scope in ("user", "latest", "conversation", "all"):
        assert made.glued(scope) == "classified"
    assert made.glued("system") == made.glued("tools") == ""


def test_encoded_bytes_are_no_text() -> None:
    image = "data:image/png;base64," + "iVBORw0KGgo" * 100
    made = request(*chat(content=[{"type": "image_url", "image_url": {"url": image}}]))
    assert "iVBOR" not in made.text("all")
    assert "iVBOR" not in made.text("conversation")
    spaced = "data: " + "not an image " * 100
    assert "not an image" in request(*chat(content=[{"type": "image_url", "image_url": {"url": spaced}}])).text("all")


LONG = "A" * 600
IMAGE = "data:image/png;base64,"
GOOGLE_CALL = {
    "id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"},
    "extra_content": {"google": {"thought_signature": LONG}},
}  # fmt: skip


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        chat(content=f"data:,{MARK},{LONG}"),
        chat(content=f"data:image/png;base64,{MARK}/{LONG}"),
        chat(content=[{"type": "text", "text": f"data:image/png;base64,{MARK}/{LONG}"}]),
        chat(content=[{"type": "image_url", "image_url": {"url": f"data:text/plain,{MARK}/{LONG}"}}]),
        chat(content=[{"type": "file", "file": {"filename": f"data:;base64,{MARK}/{LONG}"}}]),
        top(documents=[{"data": MARK + "/" + LONG}]),
        top(documents=[{"type": "image", "source": {"type": "base64", "data": LONG + "/" + MARK}}]),
        part(type="tool_use", id="t", name="f", input={"data": MARK + "/" + LONG}),
        part(type="tool_use", id="t", name="f", input={"type": "image", "source": {"data": MARK + "/" + LONG}}),
        result([{"type": "x", "signature": LONG + "/" + MARK}]),
        item(type="mcp_call", name="f", arguments="{}", output={"b64_json": MARK + "/" + LONG}),
        item(type="function_call_output", call_id="c", output={"file_data": MARK + "/" + LONG}),
        chat(role="user", content="a", reasoning_opaque=MARK + "/" + LONG),
        chat(role="assistant", content="a", reasoning_content=MARK + "/" + LONG),
        chat(role="assistant", content="a", reasoning_details=[{"type": "reasoning.text", "text": MARK + "/" + LONG}]),
    ],
)
def test_text_is_not_taken_for_encoded_bytes(path: str, fields: dict[str, Any]) -> None:
    assert matched(request(path, fields), **{"in": "all"}) is True
    words = orjson.loads(orjson.dumps(fields).replace(MARK.encode(), b"forbidden"))
    if not path.endswith("completions") or "documents" in fields:
        assert "forbidden" in request(path, words).text("all")


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        chat(content=[{"type": "input_audio", "input_audio": {"data": LONG, "format": "wav"}}]),
        chat(content=[{"type": "file", "file": {"file_data": "data:application/pdf;base64," + LONG}}]),
        part(type="image", source={"type": "base64", "media_type": "image/png", "data": LONG}),
        result([{"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": LONG}}]),
        result([{"type": "document", "source": {"type": "base64", "media_type": "application/pdf", "data": LONG}}]),
        part(type="thinking", thinking="", signature=LONG),
        part(type="redacted_thinking", data=LONG),
        item(type="reasoning", summary=[], encrypted_content=LONG + "-_"),
        item(type="image_generation_call", id="i", result=LONG),
        item(type="computer_call_output", output={"type": "computer_screenshot", "image_url": IMAGE + LONG}),
        item(role="user", content=[{"type": "input_image", "image_url": IMAGE + LONG}]),
        chat(role="assistant", content="a", reasoning_opaque=LONG),
        chat(role="assistant", content="a", reasoning_details=[{"type": "reasoning.encrypted", "data": LONG}]),
        chat(role="assistant", content="a", thinking_blocks=[{"type": "thinking", "thinking": "", "signature": LONG}]),
        chat(role="assistant", content=None, tool_calls=[GOOGLE_CALL]),
    ],
)  # fmt: skip
def test_bytes_where_the_api_has_bytes_are_no_text(path: str, fields: dict[str, Any]) -> None:
    made = request(path, fields)
    for scope in ("all", "conversation", "latest"):
        assert LONG not in made.text(scope)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        chat(role="assistant", tool_calls=[{"function": {"name": "f", "arguments": ESCAPED}}]),
        chat(role="assistant", function_call={"name": "f", "arguments": ESCAPED}),
        item(type="function_call", call_id="c", name="f", arguments=ESCAPED),
        item(type="mcp_call", name="f", arguments=ESCAPED),
    ],
)
def test_arguments_are_read_as_their_reader_reads_them(path: str, fields: dict[str, Any]) -> None:
    made = request(path, fields)
    for scope in ("all", "conversation"):
        assert matched(made, **{"in": scope}) is True
        assert "\\u0063lass" in made.text(scope)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        (r'{"a": "\u0063\/\\u0063\"d\n"}', '{"a": "c/\\u0063"d\n"}'),
        (r'{"a": "\ud83d\ude00 \ud83d"}', '{"a": "😀 ?"}'),
        ('{"a":\n"\x00\\t"}', '{"a":\n"\x00\t"}'),
        (r"\d", ""),
        ("\\", ""),
    ],
)
def test_escapes_in_a_string_of_json(given: str, wanted: str) -> None:
    assert unescaped(given) == wanted


@pytest.mark.parametrize("role", ["User", "SYSTEM", " user", "assistant "])
def test_a_role_that_some_readers_take_for_another_is_refused(role: str) -> None:
    for path, fields in (chat(role=role), item(role=role, content="hi")):
        with pytest.raises(Refusal) as caught:
            request(path, fields)
        assert (caught.value.status, caught.value.code) == (400, "misspelled_role")


def test_numbers_that_are_accounts_are_text_in_lists_too() -> None:
    card = 4111111111111111
    for value in ([card], [1, card, 2], [card, "x"], {"n": -card}):
        assert str(card) in request(*top(documents=[{"x": value}])).text("all")
    assert request(*top(stop_token_ids=[128001, 128009])).text("all").split("\n") == ["hi", "stop_token_ids"]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        chat(content=f"data:image/png;base64,{LONG}/{MARK}"),
        chat(content=f"data:text/plain,{LONG}/{MARK}"),
        chat(content=[{"type": "text", "text": f"data:,{LONG}/{MARK}"}]),
        part(type="document", source={"type": "text", "media_type": "text/plain", "data": f"{LONG}/{MARK}"}),
        part(type="new", data=f"{LONG}/{MARK}"),
        part(
            type="tool_use", id="t", name="f", input={"data": f"{LONG}/{MARK}", "type": "base64", "media_type": "x/y"}
        ),
        part(type="tool_use", id="t", name="f", input={"a": [{"type": "thinking", "signature": f"{LONG}/{MARK}"}]}),
        part(type="tool_use", id="t", name="f", input={"url": f"data:image/png;base64,{LONG}/{MARK}"}),
        top(documents=[{"url": f"data:image/png;base64,{LONG}/{MARK}"}]),
        top(tools=[{"name": "f", "x": {"url": f"data:image/png;base64,{LONG}/{MARK}"}}]),
        top(documents=[{"data": base64.b64encode(MARK.encode()).decode(), "media_type": "text/plain"}]),
        chat(content=[{"type": "image_url", "image_url": {"url": f"data:image/png,{LONG}/{MARK}"}}]),
        chat(content=[{"type": "image_url", "image_url": {"url": f"data:image/png;base64,{LONG} {MARK}"}}]),
    ],
)
def test_text_that_looks_like_encoded_bytes_is_text(path: str, fields: dict[str, Any]) -> None:
    assert matched(request(path, fields), **{"in": "all"}) is True


HALVES = [{"type": "text", "text": "classified-"}, {"type": "text", "text": "codeword"}]


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        result(HALVES),
        result([{"type": "search_result", "content": HALVES}]),
        part(type="document", source={"type": "content", "content": HALVES}),
        part(type="thinking", thinking=HALVES),
        chat(content=[{"type": "text", "text": "classified-"}, {"type": "text", "x": 1, "text": "codeword"}]),
        chat(role="tool", content=["classified-", "codeword"]),
        chat(annotations=[{"new": HALVES}]),
        item(type="shell_call_output", output=[{"stdout": HALVES}]),
        item(type="newer", x=HALVES),
        top(documents=[{"text": HALVES}]),
        ("/v1/completions", {"prompt": [[{"text": "classified-"}, {"TEXT": "codeword"}]]}),
        ("/v1/completions", {"prompt": ["classified-", "codeword"]}),
        chat(x=[{"text": "classified-"}, {"tExt": "codeword"}]),
        chat(x={"Data": "data:text/plain;base64,Y2xhc3NpZmllZC1jb2Rld29yZA=="}),
        chat(x={"data": "Y2xhc3NpZmllZC1jb2Rld29yZA==", "Media_Type": "text/plain"}),
        chat(x={"Arguments": '{"a": "classified\\u002dcodeword"}'}),
        chat(x=[{"text": "a", "tExt": "classified-"}, {"text": "codeword"}]),
        chat(x=[{"TeXt": "a", "text": "classified-"}, {"text": "codeword", "tExt": 1}]),
    ],
)
def test_what_is_split_over_parts_is_whole_somewhere(path: str, fields: dict[str, Any]) -> None:
    made = request(path, fields)
    assert MARK in made.text("all") + made.glued("all")


def test_who_asks_is_no_text() -> None:
    made = request(*top(user="jane@example.org", metadata={"a": MARK}, model="m", safety_identifier=MARK))
    assert made.text("all") == "hi"


@pytest.mark.parametrize(
    "body",
    [
        b'{"messages": [' + b"1," * 300 + b"1]}",
        b'{"messages": [' + b'{"a":[]},' * 200 + b"1]}",
        b'{"messages": [' + b'"\\"",' * 300 + b"1]}",
        b'{"a": [' + b'"",' * 2000 + b"1]}",
    ],
)
def test_too_many_values_are_413(body: bytes) -> None:
    with pytest.raises(Refusal) as caught:
        load(body, 200)
    assert (caught.value.status, caught.value.code) == (413, "too_many_values")


def test_commas_in_text_are_no_values() -> None:
    fields = {"messages": ['a, b [c] {d} \\" \\' * 1000]}
    assert load(orjson.dumps(fields), 200) == fields


def test_a_defect_in_reading_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> None:
        raise ZeroDivisionError(MARK)

    monkeypatch.setattr("extproc.requests.body.unambiguous", fail)
    with pytest.raises(Refusal) as caught:
        request("/v1/chat/completions", {"messages": [USER]})
    assert (caught.value.status, caught.value.code) == (400, "unreadable_body")


def test_a_call_that_sheds_its_body_is_still_the_same_call() -> None:
    target = read("/v1/messages/count_tokens")
    assert target is not None
    body = orjson.dumps({"model": "auto", "messages": [{"role": "user", "content": "hi"}]})
    request = parse(target, {"x-tenant": "acme"}, {}, body)
    request.session, request.stored = "key", True
    rest = request.shed()
    assert (rest.body, rest.fields, rest.messages) == (b"", {}, ())
    assert (rest.api, rest.operation, rest.size) == ("messages", "count_tokens", len(body))
    assert (rest.session, rest.stored, rest.headers) == ("key", True, {"x-tenant": "acme"})
