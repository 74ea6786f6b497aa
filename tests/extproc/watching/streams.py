"""Streams as servers send them, event by event, for each API; and the SDKs to read them with."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import httpx2
import openai
import pytest
from google import genai
from google.genai import types
from openai.types import Completion
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from extproc.watching.sse import encode
from upstream.events import DONE

if TYPE_CHECKING:
    import anthropic

CHUNK = {"id": "chatcmpl-B9M", "object": "chat.completion.chunk", "created": 1741569952, "model": "gpt-4.1-mini"}


def chunk(delta: Any = None, at: int = 0, finish: str | None = None, **more: Any) -> dict[str, Any]:
    choice = {"index": at, "delta": delta or {}, "logprobs": None, "finish_reason": finish}
    return {**CHUNK, "system_fingerprint": "fp_44", "choices": [choice], **more}


def call(at: int, **function: Any) -> dict[str, Any]:
    begun = {"id": f"call_{at}", "type": "function"} if "name" in function else {}
    return {"tool_calls": [{"index": at, **begun, "function": function}]}


USAGE = {"prompt_tokens": 9, "completion_tokens": 7, "total_tokens": 16}
CHAT = {
    "openai": [
        chunk({"role": "assistant", "content": "", "refusal": None}, usage=None, obfuscation="a8x"),
        chunk({"content": "Hello"}, usage=None, obfuscation="q"),
        chunk({"content": " there."}, usage=None, obfuscation=""),
        chunk(finish="stop", usage=None),
        {**CHUNK, "system_fingerprint": "fp_44", "choices": [], "usage": USAGE},
    ],
    "azure": [
        {
            **CHUNK,
            "id": "",
            "object": "",
            "model": "",
            "choices": [],
            "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {"hate": {"severity": "safe"}}}],
        },
        chunk({"role": "assistant", "content": ""}),
        chunk({"content": "Hi"}),
        chunk(finish="stop"),
    ],
    "tools": [
        chunk({"role": "assistant", "content": None, **call(0, name="pay", arguments="")}),
        chunk(call(0, arguments='{"card": ')),
        chunk(call(0, arguments='4111, "n')),
        chunk(call(0, arguments='ote": "caf\\u00e9"}')),
        chunk(call(1, name="look", arguments="")),
        chunk(call(1, arguments="{}")),
        chunk(finish="tool_calls"),
    ],
    "vllm": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"reasoning_content": "Let me", "reasoning": "Let me"}),
        chunk({"reasoning_content": " think.", "reasoning": " think."}),
        {
            **CHUNK,
            "choices": [
                {
                    "index": 0,
                    "delta": {"content": "Four"},
                    "logprobs": {
                        "content": [
                            {"token": "Four", "logprob": -0.1, "bytes": [70, 111, 117, 114], "top_logprobs": []}
                        ]
                    },
                    "finish_reason": None,
                    "token_ids": None,
                }
            ],
        },
        chunk({"content": ""}, finish="stop"),
    ],
    "choices": [
        chunk({"role": "assistant", "content": ""}),
        chunk({"role": "assistant", "content": ""}, at=1),
        chunk({"content": "One"}),
        chunk({"content": "Uno"}, at=1),
        chunk(finish="stop"),
        chunk({"content": " due"}, at=1),
        chunk(at=1, finish="length"),
    ],
    "openrouter": [
        chunk(
            {
                "role": "assistant",
                "content": "",
                "reasoning": "Hm",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "Hm", "format": "anthropic-claude-v1", "index": 0}
                ],
            },
            provider="Anthropic",
        ),
        chunk(
            {
                "role": "assistant",
                "content": "",
                "reasoning": "m.",
                "reasoning_details": [
                    {"type": "reasoning.text", "text": "m.", "format": "anthropic-claude-v1", "index": 0}
                ],
            },
            provider="Anthropic",
        ),
        chunk({"content": "Yes"}, provider="Anthropic"),
        chunk({"content": ""}, finish="stop", provider="Anthropic"),
    ],
    "refusal": [
        chunk({"role": "assistant", "content": None, "refusal": ""}),
        chunk({"refusal": "I cannot"}),
        chunk({"refusal": " do that."}),
        chunk(finish="stop"),
    ],
}

_TEXT = {"id": "cmpl-7", "object": "text_completion", "created": 1, "model": "gpt-3.5-turbo-instruct"}


def piece(text: str, at: int = 0, finish: str | None = None) -> dict[str, Any]:
    return {**_TEXT, "choices": [{"text": text, "index": at, "logprobs": None, "finish_reason": finish}]}


COMPLETIONS = {
    "openai": [piece("Once"), piece(" upon"), piece("", finish="stop"), {**_TEXT, "choices": [], "usage": USAGE}],
    "choices": [piece("a"), piece("b", 1), piece("c", 1, "length"), piece("d", 0, "stop")],
}


def start(at: int, **block: Any) -> dict[str, Any]:
    return {"type": "content_block_start", "index": at, "content_block": block}


def delta(at: int, kind: str, **piece: Any) -> dict[str, Any]:
    return {"type": "content_block_delta", "index": at, "delta": {"type": kind, **piece}}


def stop(at: int) -> dict[str, Any]:
    return {"type": "content_block_stop", "index": at}


MESSAGE = {
    "id": "msg_01",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [],
    "stop_reason": None,
    "stop_sequence": None,
    "usage": {"input_tokens": 25, "output_tokens": 1, "cache_read_input_tokens": 0},
}


def message(*events: dict[str, Any], reason: str = "end_turn") -> list[dict[str, Any]]:
    ends = {"stop_reason": reason, "stop_sequence": None}
    return [
        {"type": "message_start", "message": MESSAGE},
        *events,
        {"type": "message_delta", "delta": ends, "usage": {"output_tokens": 15}},
        {"type": "message_stop"},
    ]


_CITED = {
    "type": "char_location",
    "cited_text": "The grass is green.",
    "document_index": 0,
    "document_title": "A",
    "start_char_index": 0,
    "end_char_index": 20,
    "file_id": None,
}
MESSAGES = {
    "text": message(
        start(0, type="text", text=""),
        {"type": "ping"},
        delta(0, "text_delta", text="Hello"),
        delta(0, "text_delta", text="!"),
        stop(0),
    ),
    "thinking": message(
        start(0, type="thinking", thinking="", signature=""),
        delta(0, "thinking_delta", thinking="Let me solve"),
        delta(0, "thinking_delta", thinking=" this."),
        delta(0, "signature_delta", signature="EqQBCgIYAhIM1gbcDa9GJwZA2b3h"),
        stop(0),
        start(1, type="text", text=""),
        delta(1, "text_delta", text="27 * 453 = 12,231"),
        stop(1),
        start(2, type="tool_use", id="toolu_01", name="pay", input={}),
        delta(2, "input_json_delta", partial_json=""),
        delta(2, "input_json_delta", partial_json='{"card": 41'),
        delta(2, "input_json_delta", partial_json='11, "to": "Zo\\u00eb"}'),
        stop(2),
        reason="tool_use",
    ),
    "search": message(
        start(0, type="server_tool_use", id="srvtoolu_01", name="web_search", input={}),
        delta(0, "input_json_delta", partial_json='{"query": "weather"}'),
        stop(0),
        start(
            1,
            type="web_search_tool_result",
            tool_use_id="srvtoolu_01",
            content=[
                {
                    "type": "web_search_result",
                    "title": "Weather",
                    "url": "https://example.com/w",
                    "encrypted_content": "Ev0D",
                    "page_age": None,
                }
            ],
        ),
        stop(1),
        start(2, type="text", text="", citations=[]),
        delta(2, "text_delta", text="It is green."),
        delta(2, "citations_delta", citation=_CITED),
        stop(2),
    ),
    "redacted": message(
        start(0, type="redacted_thinking", data="EmwKAhgB"),
        stop(0),
        start(1, type="text", text=""),
        delta(1, "text_delta", text="Done"),
        stop(1),
    ),
}

RESPONSE = {
    "id": "resp_67",
    "object": "response",
    "created_at": 1741290958,
    "status": "in_progress",
    "error": None,
    "incomplete_details": None,
    "instructions": "You are helpful.",
    "max_output_tokens": None,
    "metadata": {"team": "x"},
    "model": "gpt-4.1-2025-04-14",
    "output": [],
    "parallel_tool_calls": True,
    "previous_response_id": None,
    "reasoning": {"effort": None, "summary": None},
    "store": True,
    "temperature": 1.0,
    "text": {"format": {"type": "text"}},
    "tool_choice": "auto",
    "tools": [{"type": "function", "name": "pay", "description": "Pays.", "parameters": {}, "strict": False}],
    "top_p": 1.0,
    "truncation": "disabled",
    "usage": None,
    "user": None,
}
_SPENT = {
    "input_tokens": 37,
    "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
    "output_tokens": 11,
    "output_tokens_details": {"reasoning_tokens": 0},
    "total_tokens": 48,
}


def response(*items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The events of a response whose items have these events."""
    events = [{"type": f"response.{kind}", "response": RESPONSE} for kind in ("created", "in_progress")]
    output = []
    for at, given in enumerate(items):
        events += ({**one, "output_index": at} for one in given)
        output.append(given[-1]["item"])
    whole = {**RESPONSE, "status": "completed", "output": output, "usage": _SPENT}
    events.append({"type": "response.completed", "response": whole})
    return [{**one, "sequence_number": number} for number, one in enumerate(events)]


def said(*pieces: str, kind: str = "output_text") -> list[dict[str, Any]]:
    """The events of a message."""
    key = "refusal" if kind == "refusal" else "text"
    more: dict[str, Any] = {} if kind == "refusal" else {"annotations": [], "logprobs": []}
    name, place = f"response.{kind}", {"item_id": "msg_67", "content_index": 0}
    item = {"id": "msg_67", "type": "message", "role": "assistant"}
    text = "".join(pieces)
    logprobs: dict[str, Any] = {} if kind == "refusal" else {"logprobs": []}
    return [
        {"type": "response.output_item.added", "item": {**item, "status": "in_progress", "content": []}},
        {"type": "response.content_part.added", **place, "part": {"type": kind, key: "", **more}},
        *({"type": f"{name}.delta", **place, "delta": one, **logprobs, "obfuscation": "x7"} for one in pieces),
        {"type": f"{name}.done", **place, key: text, **logprobs},
        {"type": "response.content_part.done", **place, "part": {"type": kind, key: text, **more}},
        {
            "type": "response.output_item.done",
            "item": {**item, "status": "completed", "content": [{"type": kind, key: text, **more}]},
        },
    ]


def called(*pieces: str, kind: str = "function_call") -> list[dict[str, Any]]:
    key, name = {
        "function_call": ("arguments", "response.function_call_arguments"),
        "custom_tool_call": ("input", "response.custom_tool_call_input"),
    }[kind]
    item = {"id": "fc_67", "type": kind, "call_id": "call_u", "name": "pay"}
    whole, place = "".join(pieces), {"item_id": "fc_67"}
    return [
        {"type": "response.output_item.added", "item": {**item, "status": "in_progress", key: ""}},
        *({"type": f"{name}.delta", **place, "delta": one} for one in pieces),
        {"type": f"{name}.done", **place, key: whole},
        {"type": "response.output_item.done", "item": {**item, "status": "completed", key: whole}},
    ]


def thought(*pieces: str) -> list[dict[str, Any]]:
    item = {"id": "rs_67", "type": "reasoning", "encrypted_content": "gAAAA"}
    place, text = {"item_id": "rs_67", "summary_index": 0}, "".join(pieces)
    name = "response.reasoning_summary"
    return [
        {"type": "response.output_item.added", "item": {**item, "summary": []}},
        {"type": f"{name}_part.added", **place, "part": {"type": "summary_text", "text": ""}},
        *({"type": f"{name}_text.delta", **place, "delta": one} for one in pieces),
        {"type": f"{name}_text.done", **place, "text": text},
        {"type": f"{name}_part.done", **place, "part": {"type": "summary_text", "text": text}},
        {"type": "response.output_item.done", "item": {**item, "summary": [{"type": "summary_text", "text": text}]}},
    ]


_SEARCHED = {"id": "ws_67", "type": "web_search_call", "status": "completed"}
RESPONSES = {
    "text": response(said("Hi", " there", "!")),
    "reasoning": response(thought("**Sum**", " of it"), said("Four"), called('{"card": 41', '11, "to": "Zo\\u00eb"}')),
    "custom": response(called("print(", "1)", kind="custom_tool_call")),
    "refusal": response(said("I can", "not", kind="refusal")),
    "search": response(
        [
            {"type": "response.output_item.added", "item": {**_SEARCHED, "status": "in_progress"}},
            {"type": "response.web_search_call.searching", "item_id": "ws_67"},
            {
                "type": "response.output_item.done",
                "item": {**_SEARCHED, "action": {"type": "search", "query": "weather", "sources": None}},
            },
        ],
        said("Green"),
    ),
}

_GEMINI = {
    "usageMetadata": {"promptTokenCount": 4},
    "modelVersion": "gemini-2.5-flash",
    "responseId": "mAitaLmk",
}


def candidate(*parts: dict[str, Any], at: int = 0, **more: Any) -> dict[str, Any]:
    return {"candidates": [{"content": {"parts": list(parts), "role": "model"}, "index": at, **more}], **_GEMINI}


GEMINI = {
    "text": [
        candidate({"text": "Hel"}),
        candidate({"text": "lo"}),
        candidate(
            {"text": "!"},
            finishReason="STOP",
            safetyRatings=[{"category": "HARM_CATEGORY_HARASSMENT", "probability": "NEGLIGIBLE"}],
        ),
    ],
    "thinking": [
        candidate({"text": "Let me", "thought": True}),
        candidate({"text": " think.", "thought": True}, {"text": "Four"}),
        candidate({"text": "teen"}),
        candidate({"functionCall": {"name": "pay", "args": {"card": 4111}, "id": "c"}, "thoughtSignature": "Ev0D"}),
        candidate({"text": ""}, finishReason="STOP"),
    ],
    "choices": [
        candidate({"text": "One"}),
        candidate({"text": "Uno"}, at=1),
        candidate({"text": "."}, finishReason="STOP"),
        {"candidates": [{"finishReason": "MAX_TOKENS", "index": 1}], **_GEMINI},
    ],
}

STREAMS: dict[str, dict[str, list[dict[str, Any]]]] = {
    "chat": CHAT,
    "completions": COMPLETIONS,
    "gemini": GEMINI,
    "messages": MESSAGES,
    "responses": RESPONSES,
}
ALL = [(api, name) for api, streams in STREAMS.items() for name in streams]


def by_sdk(cases: Iterable[tuple[Any, ...]]) -> list[Any]:
    """Cases, of which the API is the first value, for a test that reads them with the SDKs: importing Anthropic's alone
    takes seconds."""
    return [pytest.param(*case, marks=[pytest.mark.slow] if case[0] == "messages" else []) for case in cases]


def written(api: str, events: Sequence[dict[str, Any]], done: bool = True) -> bytes:
    """The bytes of a stream. `done`: with the line that ends streams of chat and completions."""
    named = api in ("messages", "responses")
    body = b"".join(encode(one["type"] if named else "", one) for one in events)
    return body + DONE if done and api in ("chat", "completions") else body


def _transport(body: bytes, kind: str) -> httpx2.MockTransport:
    return httpx2.MockTransport(lambda request: httpx2.Response(200, headers={"content-type": kind}, content=body))


def gpt(body: bytes, kind: str = "text/event-stream") -> openai.OpenAI:
    """OpenAI's SDK, to which a server answers `body`."""
    http = httpx2.Client(transport=_transport(body, kind))
    return openai.OpenAI(api_key="k", base_url="http://localhost/v1", max_retries=0, http_client=http)


def claude(body: bytes, kind: str = "text/event-stream") -> anthropic.Anthropic:
    import anthropic

    http = httpx2.Client(transport=_transport(body, kind))
    return anthropic.Anthropic(api_key="k", base_url="http://localhost", max_retries=0, http_client=http)


NO_TRUST = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def plainly(url: str, **client: Any) -> types.HttpOptions:
    """For Google's SDK at `url`, which else reads all certificates of the machine three times for each client."""
    return types.HttpOptions(
        base_url=url,
        client_args={**client, "verify": NO_TRUST},
        async_client_args={"verify": NO_TRUST, "ssl": NO_TRUST},
    )


def google(body: bytes, kind: str = "text/event-stream") -> genai.Client:
    return genai.Client(api_key="k", http_options=plainly("http://localhost", transport=_transport(body, kind)))


def _gemini(body: bytes) -> list[Any]:
    client = google(body)  # it is closed when nothing refers to it
    return list(client.models.generate_content_stream(model="m", contents="x"))


def _chat(body: bytes) -> list[Any]:
    asked: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "x"}]}
    list(gpt(body).chat.completions.create(**asked, stream=True))
    with gpt(body).chat.completions.stream(**asked) as stream:
        return list(stream)


def _completions(body: bytes) -> list[Any]:
    return list(gpt(body).completions.create(model="m", prompt="x", stream=True))


def _messages(body: bytes) -> list[Any]:
    asked: dict[str, Any] = {"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "x"}]}
    list(claude(body).messages.create(**asked, stream=True))
    with claude(body).messages.stream(**asked) as stream:
        return [*stream, stream.get_final_message()]


def _responses(body: bytes) -> list[Any]:
    list(gpt(body).responses.create(model="m", input="x", stream=True))
    with gpt(body).responses.stream(model="m", input="x") as stream:
        return list(stream)


READ: dict[str, Callable[[bytes], list[Any]]] = {
    "chat": _chat,
    "completions": _completions,
    "gemini": _gemini,
    "messages": _messages,
    "responses": _responses,
}
"""Reads a stream with the official SDK, both as it comes and with the helper that gathers it; what that gave."""



def whole(api: str) -> Any:
    """What the official SDK reads a whole answer as."""
    if api == "messages":
        from anthropic.types import Message

        return Message
    known = {"chat": ChatCompletion, "completions": Completion, "gemini": types.GenerateContentResponse}
    return {**known, "responses": Response}[api]
