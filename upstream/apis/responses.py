"""OpenAI's responses (`POST /v1/responses`), those that need nothing of a stored one."""

from __future__ import annotations

from typing import Final

from upstream.apis.shape import ClientApi, ItemManuscript, Manuscript, Spoken, Unfit, count, texts
from upstream.endpoint import JSON
from upstream.events import event
from upstream.toolcalls import ToolCall

_STORED: Final = ("previous_response_id", "conversation", "background", "prompt")
_SAME: Final = ("temperature", "top_p", "user", "seed")
_READ: Final = frozenset(
    (
        "model", "input", "instructions", "stream", "stream_options", "max_output_tokens", "metadata", "store",
        "include", "truncation", "service_tier", "parallel_tool_calls", "tool_choice", "prompt_cache_key",
        "safety_identifier", "tools", "text", "reasoning", "max_tool_calls", "top_logprobs", *_STORED, *_SAME,
    )
)  # fmt: skip
"""Fields that are read, or that say nothing to a model."""
_TOOL: Final = ("name", "description", "parameters", "strict")
_NAMES: Final = {"message": "output_text", "reasoning": "reasoning_text"}
_PREFIXES: Final = {"message": "msg", "reasoning": "rs"}
_TEXTS: Final = ("input_text", "output_text", "text")


class ResponsesManuscript(ItemManuscript):
    def __init__(self, body: JSON, models: str) -> None:
        super().__init__(body, models)
        self._number = 0
        self._items: list[JSON] = []  # those that have ended
        self._item: JSON = {}  # the one that is being written
        self._pieces: list[str] = []  # of its text or arguments
        self._over = "completed"  # the status of an item that ends

    def start(self) -> bytes:
        begun = self._response("in_progress", [], None)
        return self._event("response.created", {"response": begun}) + self._event(
            "response.in_progress", {"response": begun}
        )

    def begin_text(self) -> bytes:
        self._pieces = []
        kind = "reasoning" if self.thinks else "message"
        part = {**self._place_of(kind), "part": _part(kind, "")}
        return self._begin(self._made(kind, "in_progress", None)) + self._event("response.content_part.added", part)

    def text(self, text: str) -> bytes:
        self._pieces.append(text)
        kind: str = self._item["type"]
        said = {**self._place_of(kind), "delta": text, **_logprobs(kind)}
        return self._event(f"response.{_NAMES[kind]}.delta", said)

    def end_text(self) -> bytes:
        kind: str = self._item["type"]
        text, place = "".join(self._pieces), self._place_of(kind)
        return (
            self._event(f"response.{_NAMES[kind]}.done", {**place, "text": text, **_logprobs(kind)})
            + self._event("response.content_part.done", {**place, "part": _part(kind, text)})
            + self._end({"content": [_part(kind, text)]})
        )

    def begin_call(self, place: int, call: ToolCall) -> bytes:
        self._pieces = []
        return self._begin(self._call(place, call._replace(arguments=""), "in_progress"))

    def arguments(self, text: str) -> bytes:
        self._pieces.append(text)
        return self._event("response.function_call_arguments.delta", {**self._place(), "delta": text})

    def end_call(self) -> bytes:
        said = {"arguments": "".join(self._pieces)}
        done = {**self._place(), "name": self._item["name"], **said}
        return self._event("response.function_call_arguments.done", done) + self._end(said)

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        status = self._over = _status(finish)
        closed = self.close()
        over = self._response(status, self._items, usage, finish)
        return closed + self._event(f"response.{status}", {"response": over})

    def broken(self, message: str, code: str) -> bytes:
        failed = {**self._response("failed", [], None), "error": {"code": "server_error", "message": message}}
        return self._event("response.failed", {"response": failed})

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        status = _status(finish)
        text, thoughts = "".join(piece.text for piece in spoken), "".join(piece.reasoning for piece in spoken)
        thought = [self._made("reasoning", "completed", thoughts)] if thoughts else []
        calls = [self._call(place, call, status) for place, call in enumerate(self.calls(spoken))]
        message = [self._made("message", status, text)] if text or not calls else []
        return self._response(status, [*thought, *message, *calls], usage, finish)

    def _event(self, kind: str, data: JSON) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **data}, kind)

    def _begin(self, item: JSON) -> bytes:
        self._item = item
        return self._event("response.output_item.added", {"output_index": len(self._items), "item": item})

    def _end(self, more: JSON) -> bytes:
        item = {**self._item, **more, "status": self._over}
        over = self._event("response.output_item.done", {"output_index": len(self._items), "item": item})
        self._items.append(item)
        return over

    def _place(self) -> JSON:
        return {"item_id": self._item["id"], "output_index": len(self._items)}

    def _place_of(self, kind: str) -> JSON:
        return {"item_id": self._id(kind), "output_index": len(self._items), "content_index": 0}

    def _id(self, kind: str) -> str:
        at = f"_{len(self._items)}" if self._items else ""
        return f"{_PREFIXES[kind]}_{self.id}{at}"

    def _made(self, kind: str, status: str, text: str | None) -> JSON:
        """An item; its text is None before there is any."""
        content = [] if text is None else [_part(kind, text)]
        more: JSON = {"role": "assistant"} if kind == "message" else {"summary": []}
        return {"id": self._id(kind), "type": kind, "status": status, **more, "content": content}

    def _call(self, place: int, call: ToolCall, status: str) -> JSON:
        said = {"call_id": call.id, "name": call.name, "arguments": call.arguments, "status": status}
        return {"id": f"fc_{self.id}_{place}", "type": "function_call", **said}

    def _response(self, status: str, output: list[JSON], usage: JSON | None, finish: str | None = None) -> JSON:
        body = self.body
        why = "content_filter" if finish == "content_filter" else "max_output_tokens"
        return {
            "id": f"resp_{self.id}",
            "object": "response",
            "created_at": self.created,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": why} if status == "incomplete" else None,
            "instructions": body.get("instructions"),
            "max_output_tokens": body.get("max_output_tokens"),
            "metadata": body.get("metadata") or {},
            "model": self.models,
            "output": output,
            "parallel_tool_calls": body.get("parallel_tool_calls") is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.get("temperature"),
            "text": {"format": {"type": "text"}},
            "tool_choice": body.get("tool_choice") or "auto",
            "tools": body.get("tools") or [],
            "top_p": body.get("top_p"),
            "usage": None if usage is None else _usage(usage),
        }


def _status(finish: str | None) -> str:
    return "incomplete" if finish in ("length", "content_filter") else "completed"


def _part(kind: str, text: str) -> JSON:
    more: JSON = {"annotations": [], "logprobs": []} if kind == "message" else {}
    return {"type": _NAMES[kind], "text": text, **more}


def _logprobs(kind: str) -> JSON:
    return {"logprobs": []} if kind == "message" else {}


def _usage(usage: JSON) -> JSON:
    return {
        "input_tokens": usage["prompt_tokens"],
        "input_tokens_details": usage.get("prompt_tokens_details") or {"cached_tokens": 0},
        "output_tokens": usage["completion_tokens"],
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": usage["total_tokens"],
        "pointsman": usage["pointsman"],
    }


class ResponsesApi(ClientApi):
    name = "responses"

    def question(self, body: JSON) -> JSON | Unfit:
        if any(body.get(key) for key in _STORED):
            return "stored"
        form = body.get("text") or {}
        if not isinstance(form, dict) or (form.get("format") or {"type": "text"}) != {"type": "text"}:
            return "response_format"
        if any(value is not None and key not in _READ for key, value in body.items()) or body.get("top_logprobs"):
            return "field"
        given = body.get("input")
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(turns, list) or not turns or not count(body.get("max_output_tokens")):
            return "malformed"
        lead = body.get("instructions")
        messages: list[JSON] = [{"role": "system", "content": lead}] if isinstance(lead, str) and lead else []
        for turn in turns:
            if not isinstance(turn, dict) or not _take(turn, messages):
                return "content"
        if messages[-1]["role"] == "assistant":
            return "continuation"
        chat: JSON = {"messages": messages, **{key: body[key] for key in _SAME if body.get(key) is not None}}
        if body.get("max_output_tokens"):
            chat["max_completion_tokens"] = body["max_output_tokens"]
        reasoning = body.get("reasoning")
        if isinstance(reasoning, dict) and reasoning.get("effort"):
            chat["reasoning_effort"] = reasoning["effort"]
        tools = _tools(body)
        return "tools" if tools is None else {**chat, **tools}

    def manuscript(self, body: JSON, models: str) -> Manuscript:
        return ResponsesManuscript(body, models)


RESPONSES: Final = ResponsesApi()


def _take(item: JSON, messages: list[JSON]) -> bool:
    """Adds an item of the input to the messages of a chat completion, where calls of tools belong to what the assistant
    said before them; whether it can be said there."""
    kind = item.get("type", "message")
    if kind == "function_call":
        id_, name, arguments = item.get("call_id"), item.get("name"), item.get("arguments")
        if not isinstance(id_, str) or not isinstance(name, str) or not isinstance(arguments, str):
            return False
        if not messages or messages[-1]["role"] != "assistant":
            messages.append({"role": "assistant", "content": None})
        messages[-1].setdefault("tool_calls", []).append(ToolCall(id_, name, arguments).chat())
        return True
    text = texts(item.get("output" if kind == "function_call_output" else "content"), _TEXTS)
    if text is None or kind not in (None, "message", "function_call_output"):
        return False
    if kind == "function_call_output":
        messages.append({"role": "tool", "tool_call_id": item.get("call_id"), "content": text})
    else:
        messages.append({"role": item.get("role"), "content": text})
    return True


def _tools(body: JSON) -> JSON | None:
    """The tools and the choice among them as fields of a chat completion; None where these do not know them, as with
    tools that the API's own servers run."""
    given, choice = body.get("tools") or [], body.get("tool_choice")
    if not isinstance(given, list):
        return None
    tools: list[JSON] = []
    for tool in given:
        if not isinstance(tool, dict) or tool.get("type") != "function" or tool.keys() - {"type", *_TOOL}:
            return None
        tools.append({"type": "function", "function": {key: tool[key] for key in _TOOL if tool.get(key) is not None}})
    if not tools:
        return {}
    fields: JSON = {"tools": tools}
    if isinstance(choice, dict):
        if choice.get("type") != "function":
            return None
        choice = {"type": "function", "function": {"name": choice.get("name")}}
    if choice is not None:
        fields["tool_choice"] = choice
    if body.get("parallel_tool_calls") is not None:
        fields["parallel_tool_calls"] = body["parallel_tool_calls"]
    return fields
