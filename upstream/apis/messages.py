"""Anthropic's messages (`POST /v1/messages`).

Events as its documentation "Streaming messages" has them. Thoughts are `thinking` blocks without a signature, which
nobody but Anthropic can give; other servers leave it empty, too.
"""

from __future__ import annotations

from typing import Any, Final

import orjson

from upstream.apis.shape import ClientApi, ItemManuscript, Manuscript, Spoken, Unfit, count, texts
from upstream.endpoint import JSON
from upstream.events import event
from upstream.toolcalls import ToolCall, json_object

_ENDS: Final = {"length": "max_tokens", "content_filter": "refusal"}
_SAME: Final = ("temperature", "top_p", "max_tokens")
_READ: Final = frozenset(
    (
        "model", "messages", "system", "stream", "metadata", "service_tier", "stop_sequences", "tools", "tool_choice",
        "thinking", *_SAME,
    )
)  # fmt: skip
"""Fields that are read, or that say nothing to a model."""
_TOOL: Final = frozenset(("type", "name", "description", "input_schema", "strict", "cache_control"))
_CHOICES: Final = {"auto": "auto", "any": "required", "none": "none"}
_BEAT: Final = event({"type": "ping"}, "ping")


class MessagesManuscript(ItemManuscript):
    def __init__(self, body: JSON, models: str) -> None:
        super().__init__(body, models)
        self._index = -1  # of the block that is being written

    def start(self) -> bytes:
        usage = {"input_tokens": 0, "output_tokens": 0}
        started = {**self._message(), "content": [], "stop_reason": None, "usage": usage}
        return _said({"type": "message_start", "message": started})

    def begin_text(self) -> bytes:
        return self._begin(_block(self._kind, ""))

    def text(self, text: str) -> bytes:
        return self._delta({"type": f"{self._kind}_delta", self._kind: text})

    def end_text(self) -> bytes:
        return _said({"type": "content_block_stop", "index": self._index})

    def begin_call(self, place: int, call: ToolCall) -> bytes:
        return self._begin(_use(call, {}))

    def arguments(self, text: str) -> bytes:
        return self._delta({"type": "input_json_delta", "partial_json": text})

    def end_call(self) -> bytes:
        return self.end_text()

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        delta = {"stop_reason": self._reason(finish), "stop_sequence": None}
        return (
            self.close()
            + _said({"type": "message_delta", "delta": delta, "usage": _usage(usage)})
            + _said({"type": "message_stop"})
        )

    def broken(self, message: str, code: str) -> bytes:
        return _said(MESSAGES.error(502, message, code))

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        text, thoughts = "".join(piece.text for piece in spoken), "".join(piece.reasoning for piece in spoken)
        # What the client's limit has cut may be no JSON.
        uses = [_use(call, json_object(call.arguments) or {}) for call in self.calls(spoken)]
        return {
            **self._message(),
            "content": [
                *([_block("thinking", thoughts)] if thoughts else ()),
                *([_block("text", text)] if text or not uses else ()),
                *uses,
            ],
            "stop_reason": self._reason(finish),
            "usage": _usage(usage),
        }

    def heartbeat(self) -> bytes:
        return _BEAT

    @property
    def _kind(self) -> str:
        return "thinking" if self.thinks else "text"

    def _begin(self, block: JSON) -> bytes:
        self._index += 1
        return _said({"type": "content_block_start", "index": self._index, "content_block": block})

    def _delta(self, delta: JSON) -> bytes:
        return _said({"type": "content_block_delta", "index": self._index, "delta": delta})

    def _reason(self, finish: str | None) -> str:
        # A chat completion that had to call a tool ends with `stop`.
        return _ENDS.get(finish or "") or ("tool_use" if len(self.parts) else "end_turn")

    def _message(self) -> JSON:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.models,
            "stop_sequence": None,
        }


def _block(kind: str, text: str) -> JSON:
    return {"type": kind, kind: text, **({"signature": ""} if kind == "thinking" else {})}


def _use(call: ToolCall, given: JSON) -> JSON:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def _said(data: JSON) -> bytes:
    return event(data, data["type"])


def _usage(usage: JSON) -> JSON:
    cached = (usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
    return {
        "input_tokens": usage["prompt_tokens"] - cached,
        "output_tokens": usage["completion_tokens"],
        "cache_read_input_tokens": cached,
        "pointsman": usage["pointsman"],
    }


class MessagesApi(ClientApi):
    name = "messages"
    objects = True

    def question(self, body: JSON) -> JSON | Unfit:
        if (body.get("thinking") or {"type": "disabled"}) != {"type": "disabled"}:
            return "thinking"
        if any(value is not None and key not in _READ for key, value in body.items()):
            return "field"
        given, system = body.get("messages"), texts(body.get("system"), ("text",))
        if not isinstance(given, list) or not given or not count(body.get("max_tokens")):
            return "malformed"
        if system is None:
            return "content"
        messages: list[JSON] = [{"role": "system", "content": system}] if system else []
        for turn in given:
            said = _turn(turn) if isinstance(turn, dict) else None
            if said is None:
                return "content"
            messages += said
        if messages[-1]["role"] not in ("user", "tool"):
            return "continuation"
        chat: JSON = {"messages": messages, **{key: body[key] for key in _SAME if body.get(key) is not None}}
        if stops := body.get("stop_sequences"):
            chat["stop"] = stops
        tools = _tools(body)
        return "tools" if tools is None else {**chat, **tools}

    def manuscript(self, body: JSON, models: str) -> Manuscript:
        return MessagesManuscript(body, models)

    def error(self, status: int, message: str, code: str) -> JSON:
        kind = "api_error" if status >= 500 else "permission_error" if status == 403 else "invalid_request_error"
        return {"type": "error", "error": {"type": kind, "message": message}}


MESSAGES: Final = MessagesApi()


def _turn(turn: JSON) -> list[JSON] | None:
    """A turn as messages of a chat completion. What tools gave has a message of its own each, before what the user
    says, as both APIs want it. None where something in it cannot be said there."""
    content, role = turn.get("content"), turn.get("role")
    kind = "tool_use" if role == "assistant" else "tool_result"
    tools: list[JSON] = []
    rest: list[Any] = []
    for part in content if isinstance(content, list) else ():
        (tools if isinstance(part, dict) and part.get("type") == kind else rest).append(part)
    text = texts(rest if tools else content, ("text",))
    said = [_call(part) if role == "assistant" else _result(part) for part in tools]
    if text is None or None in said:
        return None
    if not tools:
        return [{"role": role, "content": text}]
    if role == "assistant":
        return [{"role": role, "content": text or None, "tool_calls": said}]
    return [*said, *([{"role": role, "content": text}] if text else ())]


def _call(part: JSON) -> JSON | None:
    name, id_, given = part.get("name"), part.get("id"), part.get("input")
    if not isinstance(name, str) or not isinstance(id_, str) or not isinstance(given, dict):
        return None
    try:
        return ToolCall(id_, name, orjson.dumps(given).decode()).chat()
    except orjson.JSONEncodeError:  # it reads more levels than it writes
        return None


def _result(part: JSON) -> JSON | None:
    text = texts(part.get("content"), ("text",))
    return None if text is None else {"role": "tool", "tool_call_id": part.get("tool_use_id"), "content": text}


def _tools(body: JSON) -> JSON | None:
    """The tools and the choice among them as fields of a chat completion; None where these do not know them, as with
    tools that Anthropic's own servers run."""
    given, choice = body.get("tools") or [], body.get("tool_choice")
    if not isinstance(given, list) or not isinstance(choice, dict | None):
        return None
    tools: list[JSON] = []
    for tool in given:
        if not isinstance(tool, dict) or tool.get("type") not in (None, "custom") or tool.keys() - _TOOL:
            return None
        function = {"name": tool.get("name"), "description": tool.get("description"), "strict": tool.get("strict")}
        function["parameters"] = tool.get("input_schema")
        tools.append({"type": "function", "function": {k: v for k, v in function.items() if v is not None}})
    if not tools:
        return {}
    fields: JSON = {"tools": tools}
    if choice is not None:
        kind = choice.get("type")
        fixed = {"type": "function", "function": {"name": choice.get("name")}} if kind == "tool" else None
        wanted = fixed or _CHOICES.get(str(kind))
        if wanted is None:
            return None
        fields["tool_choice"] = wanted
        if choice.get("disable_parallel_tool_use") is not None:
            fields["parallel_tool_calls"] = not choice["disable_parallel_tool_use"]
    return fields
