"""Google's Gemini API: its paths, what is read of its calls, what is changed in them, what is answered."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.gemini import GEMINI
from extproc.apis.registry import spoken
from extproc.refusal import Refusal
from extproc.requests import paths, rewriting
from extproc.requests.body import parse as read
from extproc.requests.paths import Target
from extproc.static_answer import static_answer
from signals.facts import Facts
from signals.needs import NEEDS
from signals.request import Message, Request
from signals.text.estimate import estimate

BASE = "/v1beta/models/"
SERVED = Model("large", "gemini-2.5-pro")


def parse(fields: Any, path: str = BASE + "auto:generateContent") -> Request:
    target = paths.read(path)
    assert target is not None
    return read(target, {":path": path}, {}, fields if isinstance(fields, bytes) else orjson.dumps(fields))


def call(*parts: Any, **more: Any) -> dict[str, Any]:
    return {"contents": [{"role": "user", "parts": list(parts)}], **more}


def refused(fields: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        parse(fields)
    assert caught.value.status == 400
    return caught.value


def sent(fields: Any, model: Model = SERVED, foreign: int = 0, **changes: Any) -> Any:
    made = Changes(**changes) if changes else None
    return orjson.loads(rewriting.changed(parse(fields), model, made, foreign))


# Paths


@pytest.mark.parametrize(
    ("path", "operation", "framing", "model"),
    [
        (BASE + "auto:generateContent", "", "", "auto"),
        ("/v1/models/auto:generateContent?key=k", "", "", "auto"),
        ("/gateway/v1beta/models/org/m:7b:generateContent", "", "", "org/m:7b"),
        (BASE + "auto:streamGenerateContent", "", "array", "auto"),
        (BASE + "auto:streamGenerateContent?key=k&alt=sse", "", "sse", "auto"),
        (BASE + "auto:streamGenerateContent?%24alt=sse", "", "sse", "auto"),
        (BASE + "auto:countTokens", "count_tokens", "", "auto"),
        ("/v1/projects/p/locations/eu/publishers/google/models/m:generateContent", "", "", "m"),
        ("/v1beta1/publishers/google/models/m:countTokens", "count_tokens", "", "m"),
    ],
)
def test_a_path_says_what_is_asked_of_which_model(path: str, operation: str, framing: str, model: str) -> None:
    target = paths.read(path)
    assert target is not None
    assert target[:5] == ("gemini", operation, model, None, framing)
    assert target.sent(None) is target.sent(model) is None
    renamed = target.sent("org/other one")
    assert renamed == path.replace(f"/{model}:", "/org/other%20one:")
    again = paths.read(renamed)
    assert again is not None
    assert again == target._replace(model="org/other one")


@pytest.mark.parametrize(
    "path",
    [
        "/models/auto:generateContent",
        "/V1Beta/Models/auto:GENERATECONTENT",
        "/v1beta/models/auto%3AgenerateContent",
        "/v1beta/models/auto%253agenerateContent",
        "//v1beta/./models/x/../auto:generateContent/",
        "/v1beta/models;x/auto:generateContent;y",
        "/v1beta\\models%5cauto:generateContent%00",
    ],
)
def test_other_spellings_are_put_plainly(path: str) -> None:
    plain = paths.read(BASE + "auto:generateContent")
    assert plain is not None
    assert paths.read(path) == plain._replace(path=BASE + "auto:generateContent")


def test_what_names_no_model_or_another_method_is_no_call() -> None:
    for path in (BASE + ":generateContent", BASE + "m:embedContent", BASE + "m:generateContents", BASE + "m"):
        assert paths.read(path) == Target(None, "models", path.removeprefix(BASE))
    assert paths.read("/v1/publishers/google/models/m:predict") is None
    for before in ("v/models", "v/Models", "models2/models/x", "publishers/models"):  # which is the model's name?
        target = paths.read(f"/{before}/v1beta/models/m:generateContent")
        assert target is None or target.api is None
    assert paths.read("/v1beta/tunedModels/m:generateContent") is None


# Reading


def test_every_part_is_read() -> None:
    text = base64.b64encode(b"in a document").decode()
    parts = [
        {"text": "one"},
        {"inlineData": {"mimeType": "image/png", "data": "aGk="}},
        {"inline_data": {"mime_type": "audio/wav", "data": "aGk="}},
        {"inlineData": {"mimeType": "text/plain", "data": text}},
        {"inlineData": {"mimeType": "application/pdf", "data": "aGk="}},
        {"fileData": {"fileUri": "https://x/y"}},
        {"file_data": {"mime_type": "video/mp4", "file_uri": "https://x/z"}},
        {"text": "two", "thought": True},
        {"newThing": {"say": "three"}},
    ]
    request = parse({"systemInstruction": {"parts": {"text": "sys"}}, **call(*parts)})
    assert request.api == "gemini"
    assert request.model == "auto"
    assert request.messages == (Message("system", "sys"), Message("user", "one\nin a document\ntwo", 1, 1, 4))
    assert set(request.opaque()) == {"image", "audio", "document", "reference", "video"}
    assert request.unreadable("user")
    assert "three" in request.text("conversation")
    for said in ("sys", "one", "in a document", "two", "newThing", "say", "three", "https://x/z"):
        assert said in request.text("all")
    for word in ("inlineData", "mimeType", "parts", "functionCall"):
        assert word not in request.text("all")


def test_a_conversation_with_tools() -> None:
    contents = [
        {"parts": {"text": "what is the weather?"}},
        {
            "role": "model",
            "parts": [
                {"text": "hm", "thought": True, "thoughtSignature": "A" * 600},
                {"functionCall": {"name": "weather", "args": {"city": "Ulm"}}},
                {"executableCode": {"language": "PYTHON", "code": "print(1)"}},
                {"codeExecutionResult": {"outcome": "OUTCOME_OK", "output": "1"}},
            ],
        },
        {
            "role": "user",
            "parts": [
                {
                    "functionResponse": {
                        "name": "weather",
                        "response": {"sky": "blue"},
                        "parts": [{"inlineData": {"mimeType": "image/png", "data": "aGk="}}],
                    }
                }
            ],
        },
        {"role": "user", "parts": [{"function_response": {"name": "f", "response": {"x": "y"}}}, {"text": "and?"}]},
    ]
    request = parse({"contents": contents})
    roles = [message.role for message in request.messages]
    assert roles == ["user", "tool", "assistant", "tool", "tool", "user"]
    assert request.messages[2].tool_calls == 1
    assert "OUTCOME_OK" in request.messages[1].text
    assert "blue" in request.messages[3].text
    assert request.messages[3].images == 1
    assert request.text("user") == "and?"
    assert "blue" in request.text("tools")
    for said in ("hm", "Ulm", "city", "print(1)", "weather"):
        assert said in request.text("conversation")
        assert said in request.text("all")
    assert "AAAA" not in request.text("all")
    loop = parse({"contents": contents[:3]})
    assert loop.text("user") == "what is the weather?"


def test_a_text_in_several_parts_is_read_joined_too() -> None:
    request = parse(call({"text": "classified-"}, {"text": "codeword"}))
    assert request.text("user") == "classified-\ncodeword"
    assert request.glued("user") == "classified-codeword"
    assert "classified-codeword" in request.glued("all")


def test_one_object_stands_for_a_list_of_one() -> None:
    request = parse({"contents": {"parts": {"text": "hi"}}, "tools": {"functionDeclarations": {"name": "f"}}})
    assert request.messages == (Message("user", "hi"),)
    assert request.asking.tools(request) == 1


def test_a_call_whose_tokens_are_counted_is_read_inside() -> None:
    inner = call({"text": "hi"}, model="models/auto", systemInstruction={"parts": [{"text": "sys"}]})
    request = parse({"generateContentRequest": inner}, BASE + "auto:countTokens")
    assert request.messages == (Message("system", "sys"), Message("user", "hi"))
    assert request.operation == "count_tokens"
    assert parse({"instances": [{"content": "old"}]}, BASE + "auto:countTokens").text("conversation") == "old"


def test_what_the_upstream_keeps_is_unreadable() -> None:
    request = parse(call({"text": "hi"}, cachedContent="cachedContents/1"))
    assert request.opaque() == ("reference",)
    assert request.unreadable("latest") is False
    assert request.unreadable("all") is request.unreadable("conversation") is True


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "contents"),
        ({"contents": []}, "contents"),
        ({"contents": "hi"}, "contents"),
        ({"contents": ["hi"]}, "contents[0]"),
        ({"contents": [{"parts": ["hi"]}]}, "contents[0].parts[0]"),
        ({"contents": [{"parts": [{"text": 1}]}]}, "contents[0].parts[0].text"),
        ({"contents": [{"role": 1, "parts": []}]}, "contents[0].role"),
        ({"contents": [{"role": "User", "parts": []}]}, "contents[0].role"),
        ({"contents": [{"role": "user", "Parts": []}]}, "contents[0].Parts"),
        ({"contents": [{"parts": [{"Text": "hi"}]}]}, "contents[0].parts[0].Text"),
        ({"contents": [{"parts": [{"inlineData": "x"}]}]}, "contents[0].parts[0].inlineData"),
        ({"contents": [{"parts": [{"inlineData": {}, "inline_data": {}}]}]}, "contents[0].parts[0].inline_data"),
        (call({"text": "x"}, systemInstruction={}, system_instruction={}), "system_instruction"),
        (call({"text": "x"}, SystemInstruction={}), "SystemInstruction"),
        (call({"text": "x"}, systemInstruction=1), "systemInstruction"),
        (call({"text": "x"}, generationConfig={"maxOutputTokens": 1, "max_output_tokens": 2}),
         "generationConfig.max_output_tokens"),
        (call({"text": "x"}, model=1), "model"),
        ({"generateContentRequest": {"model": 1}}, "generateContentRequest.model"),
        ({"generateContentRequest": {"contents": 1}}, "generateContentRequest.contents"),
    ],
)  # fmt: skip
def test_a_malformed_call_is_refused(fields: dict[str, Any], param: str) -> None:
    assert refused(fields).param == param


def needs(fields: dict[str, Any]) -> set[str]:
    return set(Facts(parse(fields)).get(NEEDS))


def test_what_a_call_needs() -> None:
    assert needs(call({"text": "hi"})) == set()
    assert needs(call({"inlineData": {"mimeType": "image/png", "data": "x"}})) == {"vision"}
    assert needs(call({"fileData": {"mimeType": "audio/wav", "fileUri": "x"}})) == {"audio"}
    assert needs(call({"fileData": {"fileUri": "x"}})) == {"files"}


@pytest.mark.parametrize("media", ["image/png", "audio/wav", "video/mp4", "text/plain", None])
def test_what_is_fetched_may_be_text_whatever_its_type_is_said_to_be(media: str | None) -> None:
    given = {"fileUri": "https://x/y"} | ({} if media is None else {"mime_type": media})
    request = parse(call({"text": "hi"}, {"file_data": given}))
    assert "reference" in request.opaque()
    assert request.sealed
    inline = parse(call({"inlineData": {"mimeType": "image/png", "data": "iVBORw0KGgo="}}))
    assert (inline.opaque(), inline.sealed) == (("image",), False)
    assert needs(call({"text": "hi"}, tools=[{"functionDeclarations": [{"name": "f"}]}])) == {"tools"}
    assert needs(call({"text": "hi"}, tools=[{"google_search": {}}])) == {"tools"}
    assert needs(call({"text": "hi"}, tools=[])) == set()
    for key in ("responseSchema", "response_json_schema"):
        assert needs(call({"text": "hi"}, generation_config={key: {"type": "OBJECT"}})) == {"json_schema"}


def test_what_a_call_asks_for_beside_its_text() -> None:
    request = parse(call({"text": "hi"}, generationConfig={"max_output_tokens": 7}))
    assert request.asking.most(request) == 7
    assert request.asking.streams(request) is False
    streamed = parse(call({"text": "hi"}), BASE + "auto:streamGenerateContent?alt=sse")
    assert streamed.asking.streams(streamed) is True
    tool = {"functionDeclarations": [{"name": "f", "description": "words " * 100}]}
    few, many = (Facts(parse(call({"text": "hi"}, **more))).get(estimate) for more in ({}, {"tools": [tool]}))
    assert many > few + 90


# Rewriting


def test_the_model_stands_in_the_path_and_every_byte_of_the_body_stays() -> None:
    body = b'{ "contents" : [ {"parts":[{"text":"\\u0061 1.00"}]} ] }'
    assert rewriting.changed(parse(body), SERVED, None) == body
    assert GEMINI.names(orjson.loads(body), "anything")


def test_a_body_that_names_the_model_too_agrees_with_the_path() -> None:
    inner = call({"text": "hi"}, model="models/auto")
    assert sent({"model": "models/auto", "generateContentRequest": inner}) == {
        "model": "models/gemini-2.5-pro",
        "generateContentRequest": inner | {"model": "models/gemini-2.5-pro"},
    }
    full = "publishers/google/models/"
    assert sent(call({"text": "hi"}, model=full + "auto"))["model"] == full + "gemini-2.5-pro"
    assert sent(call({"text": "hi"}, model="auto"))["model"] == "gemini-2.5-pro"


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"systemInstruction": {"parts": [{"text": "new"}]}}),
        ({"systemInstruction": {"parts": []}}, {"systemInstruction": {"parts": [{"text": "new"}]}}),
        (
            {"system_instruction": {"role": "user", "parts": [{"text": "old"}]}},
            {"system_instruction": {"role": "user", "parts": [{"text": "new"}, {"text": "old"}]}},
        ),
        (
            {"systemInstruction": {"parts": {"text": "old"}}},
            {"systemInstruction": {"parts": [{"text": "new"}, {"text": "old"}]}},
        ),
        ({"systemInstruction": "old"}, {"systemInstruction": "new\n\nold"}),
    ],
)
def test_a_system_prompt_is_put_first(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sent(call({"text": "hi"}, **given), system="new") == call({"text": "hi"}, **wanted)


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"generationConfig": {"maxOutputTokens": 100}}),
        ({"generationConfig": {"topP": 1}}, {"generationConfig": {"maxOutputTokens": 100, "topP": 1}}),
        ({"generation_config": {"max_output_tokens": 200}}, {"generation_config": {"max_output_tokens": 100}}),
        ({"generationConfig": {"maxOutputTokens": 50}}, {"generationConfig": {"maxOutputTokens": 50}}),
    ],
)
def test_a_cap_on_the_answer(given: dict[str, Any], wanted: dict[str, Any]) -> None:
    assert sent(call({"text": "hi"}, **given), max_tokens=100) == call({"text": "hi"}, **wanted)


@pytest.mark.parametrize(
    ("served", "given", "changes", "wanted"),
    [
        ("gemini-2.5-pro", None, {"reasoning_effort": "high"}, {"thinkingBudget": 24576}),
        ("gemini-2.5-flash", None, {"reasoning_effort": "none"}, {"thinkingBudget": 0}),
        ("gemini-2.5-flash", None, {"thinking": False}, {"thinkingBudget": 0}),
        ("gemini-2.5-flash", None, {"thinking_budget": 99}, {"thinkingBudget": 99}),
        ("gemini-2.5-flash", {"includeThoughts": True, "thinking_budget": 5}, {"reasoning_effort": "low"},
         {"includeThoughts": True, "thinking_budget": 2048}),
        ("google/gemini-3-pro", None, {"reasoning_effort": "xhigh"}, {"thinkingLevel": "high"}),
        ("gemini-3.5-flash", {"thinkingBudget": 5}, {"reasoning_effort": "low"}, {"thinkingLevel": "low"}),
        ("gemini-3-pro", None, {"thinking_budget": 99}, {"thinkingBudget": 99}),
        ("my-model", {"thinking_level": "high"}, {"thinking": False}, {"thinking_level": "low"}),
    ],
)  # fmt: skip
def test_how_much_a_model_thinks(
    served: str, given: dict[str, Any] | None, changes: dict[str, Any], wanted: dict[str, Any]
) -> None:
    more = {} if given is None else {"generationConfig": {"thinkingConfig": given}}
    result = sent(call({"text": "hi"}, **more), Model("m", served), **changes)
    assert result["generationConfig"] == {"thinkingConfig": wanted}


def test_changes_reach_the_call_whose_tokens_are_counted() -> None:
    body = {"generateContentRequest": call({"text": "hi"})}
    request = parse(body, BASE + "auto:countTokens")
    result = orjson.loads(rewriting.changed(request, SERVED, Changes(system="new", max_tokens=9)))
    system = {"parts": [{"text": "new"}]}
    assert result == {"generateContentRequest": call({"text": "hi"}, systemInstruction=system)}


def test_thoughts_of_another_model_are_left_out() -> None:
    calls = {"functionCall": {"name": "f", "args": {}}, "thoughtSignature": "s"}
    contents = [
        {"role": "user", "parts": [{"text": "a"}]},
        {"role": "model", "parts": [{"text": "t", "thought": True}, {"text": "b", "thought_signature": "s"}]},
        {"role": "model", "parts": [{"text": "t", "thought": True}]},
        {"role": "model", "parts": [calls]},
        {"role": "user", "parts": [{"functionResponse": {"name": "f", "response": {}}}]},
    ]
    assert GEMINI.closed(contents) == 1
    assert sent({"contents": contents}, foreign=5)["contents"] == [
        contents[0],
        {"role": "model", "parts": [{"text": "b"}]},
        {"role": "model", "parts": [calls | {"thoughtSignature": "skip_thought_signature_validator"}]},
        contents[4],
    ]
    assert sent({"contents": contents}, foreign=1)["contents"] == contents


# Answers


def test_an_error_is_google_s() -> None:
    for status, name in ((400, "INVALID_ARGUMENT"), (403, "PERMISSION_DENIED"), (429, "RESOURCE_EXHAUSTED"),
                         (503, "UNAVAILABLE"), (500, "INTERNAL"), (413, "INVALID_ARGUMENT")):  # fmt: skip
        body = orjson.loads(GEMINI.error(Refusal(status, "No.", "no")))
        assert body == {"error": {"code": status, "message": "No.", "status": name}}


def test_an_answer_of_our_own_is_whole_or_streamed_as_the_path_says() -> None:
    whole = static_answer(parse(call({"text": "hi"})), "No.")
    assert whole is not None
    assert whole.content_type == "application/json"
    answer = orjson.loads(whole.body)
    assert answer["candidates"][0]["content"] == {"parts": [{"text": "No."}], "role": "model"}
    assert (answer["candidates"][0]["finishReason"], answer["modelVersion"]) == ("STOP", "auto")
    array = static_answer(parse(call({"text": "hi"}), BASE + "auto:streamGenerateContent"), "No.")
    assert array is not None
    assert array.content_type == "application/json"
    assert [one["candidates"] for one in orjson.loads(array.body)] == [answer["candidates"]]
    events = static_answer(parse(call({"text": "hi"}), BASE + "auto:streamGenerateContent?alt=sse"), "No.")
    assert events is not None
    assert events.content_type == "text/event-stream"
    assert orjson.loads(events.body.removeprefix(b"data: "))["candidates"] == answer["candidates"]
    assert static_answer(parse(call({"text": "hi"}), BASE + "auto:countTokens"), "No.") is None


def test_google_s_clients_are_told_by_what_they_send() -> None:
    for headers in (
        {"x-goog-api-key": "k"},
        {"x-goog-api-client": "gl-python"},
        {"user-agent": "google-genai-sdk/1.0"},
        {":path": "/v1beta/models?key=k"},
        {":path": "/v1beta/models?pageSize=5&key=k"},
    ):
        assert spoken(headers) is GEMINI
    for headers in ({}, {":path": "/v1/models?monkey=k"}, {"anthropic-version": "2023-06-01", "user-agent": "x"}):
        assert spoken(headers) is not GEMINI


def test_a_call_has_one_place_for_what_is_asked() -> None:
    inner = call({"text": "hi"})
    assert refused({**inner, "generateContentRequest": inner}).param == "generateContentRequest"


@pytest.mark.parametrize("pair", [("thinkingBudget", "thinking_budget"), ("thinkingLevel", "thinking_level")])
def test_thoughts_are_configured_once(pair: tuple[str, str]) -> None:
    config = {"thinkingConfig": dict.fromkeys(pair, 1)}
    assert refused(call({"text": "hi"}, generationConfig=config)).code == "duplicate_key"
