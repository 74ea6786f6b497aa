"""The shapes of `/v1/responses` (OpenAI) and `/v1/messages` (Anthropic): their calls as chat completions, and answers.

What is asked is turned into the body of a chat completion, so that every API refuses and limits the same things. What
a shape cannot say of these models (tools that ran, thoughts, an earlier response) it has no fields for.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from typing import Any, ClassVar

Json = dict[str, Any]


class Malformed(ValueError):
    """A call that is not of its API's shape; `param` names the field."""

    def __init__(self, message: str, param: str) -> None:
        super().__init__(message)
        self.param = param


class Shape(ABC):
    """One answer in an API's form: `whole`, or the events `begin`, `delta` for each piece and `end`.

    Every `usage` is that of a chat completion. An event's type is its name, too.
    """

    prefix: ClassVar[str]
    """Of the answer's id."""
    names: ClassVar[dict[str, str]]
    """What this API calls some fields of a chat completion."""

    def __init__(self, identity: str, model: str) -> None:
        self._id = identity
        self._model = model

    @staticmethod
    @abstractmethod
    def chat(body: Json) -> Json:
        """The chat completion that `body` asks for. Raises Malformed."""

    @abstractmethod
    def whole(self, text: str, reason: str, hit: str | None, usage: Json) -> Json:
        """The answer as one object; `reason` is `stop` or `length`, `hit` the stop string that ended it."""

    @abstractmethod
    def begin(self, usage: Json) -> list[Json]: ...

    @abstractmethod
    def delta(self, text: str) -> list[Json]: ...

    @abstractmethod
    def end(self, text: str, reason: str, hit: str | None, usage: Json) -> list[Json]: ...

    @abstractmethod
    def failed(self, message: str) -> Json:
        """The event of an error in the middle of a stream."""


class Responses(Shape):
    """https://platform.openai.com/docs/api-reference/responses"""

    prefix = "resp"
    names: ClassVar = {"messages": "input", "max_tokens": "max_output_tokens", "response_format": "text.format"}

    def __init__(self, identity: str, model: str) -> None:
        super().__init__(identity, model)
        self._created = int(time.time())
        self._number = 0  # of the next event
        self._where: Json = {"item_id": f"msg-{identity}", "output_index": 0, "content_index": 0}

    @staticmethod
    def chat(body: Json) -> Json:
        if body.get("previous_response_id") is not None or body.get("conversation") is not None:
            given = "previous_response_id" if body.get("previous_response_id") is not None else "conversation"
            raise Malformed(f"{given}: this server keeps no answers; send the whole conversation as input", given)
        form = (body.get("text") or {}).get("format") if isinstance(body.get("text") or {}, dict) else "?"
        given = body.get("input")
        turns = [{"role": "user", "content": given}] if isinstance(given, str) else given
        if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
            raise Malformed("input must be text or a list of messages", "input")
        if strange := [turn["type"] for turn in turns if turn.get("type", "message") != "message"]:
            raise Malformed(f"input: items of type {strange[0]!r} are not supported by this model", "input")
        messages = [{"role": turn.get("role"), "content": turn.get("content")} for turn in turns]
        if isinstance(body.get("instructions"), str):
            messages.insert(0, {"role": "system", "content": body["instructions"]})
        asked = {key: value for key, value in body.items() if key in _SHARED or key == "tool_choice"}
        return {**asked, "max_tokens": body.get("max_output_tokens"), "messages": messages, "response_format": form}

    def whole(self, text: str, reason: str, hit: str | None, usage: Json) -> Json:
        status = "completed" if reason == "stop" else "incomplete"
        why = None if reason == "stop" else {"reason": "max_output_tokens"}
        return self._response(status, [self._item(text, status)], usage) | {"incomplete_details": why}

    def begin(self, usage: Json) -> list[Json]:
        started = self._response("in_progress", [], None)
        item = {**self._item("", "in_progress"), "content": []}
        return self._numbered(
            {"type": "response.created", "response": started},
            {"type": "response.in_progress", "response": started},
            {"type": "response.output_item.added", "output_index": 0, "item": item},
            {"type": "response.content_part.added", **self._where, "part": _text("")},
        )

    def delta(self, text: str) -> list[Json]:
        return self._numbered({"type": "response.output_text.delta", **self._where, "delta": text, "logprobs": []})

    def end(self, text: str, reason: str, hit: str | None, usage: Json) -> list[Json]:
        whole = self.whole(text, reason, hit, usage)
        return self._numbered(
            {"type": "response.output_text.done", **self._where, "text": text, "logprobs": []},
            {"type": "response.content_part.done", **self._where, "part": _text(text)},
            {"type": "response.output_item.done", "output_index": 0, "item": whole["output"][0]},
            {"type": f"response.{whole['status']}", "response": whole},
        )

    def failed(self, message: str) -> Json:
        said = {"code": "server_error", "message": message}
        failed = {**self._response("failed", [], None), "error": said}
        return self._numbered({"type": "response.failed", "response": failed})[0]

    def _response(self, status: str, output: list[Json], usage: Json | None) -> Json:
        counts = None
        if usage is not None:
            counts = {
                "input_tokens": usage["prompt_tokens"],
                "input_tokens_details": usage["prompt_tokens_details"],
                "output_tokens": usage["completion_tokens"],
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage["total_tokens"],
            }
        return {
            "id": self._id, "object": "response", "created_at": self._created, "model": self._model, "status": status,
            "error": None, "incomplete_details": None, "instructions": None, "metadata": {}, "tools": [],
            "parallel_tool_calls": True, "tool_choice": "auto", "temperature": None, "top_p": None, "store": False,
            "output": output, "usage": counts,
        }  # fmt: skip

    def _item(self, text: str, status: str) -> Json:
        made = {"type": "message", "id": self._where["item_id"], "role": "assistant", "status": status}
        return {**made, "content": [_text(text)]}

    def _numbered(self, *events: Json) -> list[Json]:
        first, self._number = self._number, self._number + len(events)
        return [{**event, "sequence_number": first + i} for i, event in enumerate(events)]


class Messages(Shape):
    """https://docs.anthropic.com/en/api/messages"""

    prefix = "msg"
    names: ClassVar = {"stop": "stop_sequences"}

    @staticmethod
    def chat(body: Json) -> Json:
        if body.get("max_tokens") is None:
            raise Malformed("max_tokens: Field required", "max_tokens")
        messages = body.get("messages")
        if isinstance(messages, list) and body.get("system"):
            messages = [{"role": "system", "content": body["system"]}, *messages]
        asked = {key: value for key, value in body.items() if key in _SHARED}
        # Anthropic's way of continuing an answer is a last message of the assistant's.
        last = messages[-1] if isinstance(messages, list) and messages else None
        resumed = isinstance(last, dict) and last.get("role") == "assistant"
        more = {"max_tokens": body["max_tokens"], "stop": body.get("stop_sequences"), "continue_final_message": resumed}
        choice = body.get("tool_choice")
        must = isinstance(choice, dict) and choice.get("type") in ("any", "tool")
        return {**asked, **more, "messages": messages, "tool_choice": "required" if must else None}

    def whole(self, text: str, reason: str, hit: str | None, usage: Json) -> Json:
        return self._message([{"type": "text", "text": text}], usage) | _ending(reason, hit)

    def begin(self, usage: Json) -> list[Json]:
        return [
            {"type": "message_start", "message": self._message([], usage) | _ending(None, None)},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        ]

    def delta(self, text: str) -> list[Json]:
        return [{"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": text}}]

    def end(self, text: str, reason: str, hit: str | None, usage: Json) -> list[Json]:
        counts = self._message([], usage)["usage"]
        return [
            {"type": "content_block_stop", "index": 0},
            {"type": "message_delta", "delta": _ending(reason, hit), "usage": counts},
            {"type": "message_stop"},
        ]

    def failed(self, message: str) -> Json:
        return {"type": "error", "error": {"type": "api_error", "message": message}}

    def _message(self, content: list[Json], usage: Json) -> Json:
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        counts = {
            "input_tokens": usage["prompt_tokens"] - cached,  # Anthropic counts what was cached apart
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
        }
        made = {"id": self._id, "type": "message", "role": "assistant", "model": self._model}
        return {**made, "content": content, "usage": counts}


_SHARED = {"model", "stream", "temperature", "top_p", "seed"}


def _text(text: str) -> Json:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _ending(reason: str | None, hit: str | None) -> Json:
    if hit is not None:
        return {"stop_reason": "stop_sequence", "stop_sequence": hit}
    said = {"stop": "end_turn", "length": "max_tokens", None: None}[reason]
    return {"stop_reason": said, "stop_sequence": None}
