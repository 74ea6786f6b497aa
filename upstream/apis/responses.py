"""OpenAI's responses (`POST /v1/responses`), those that need nothing of a stored one."""

from __future__ import annotations

from typing import Final

from upstream.apis.shape import ClientApi, Manuscript, Spoken, Unfit, count, texts
from upstream.endpoint import JSON
from upstream.events import event

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
_NAMES: Final = {"message": "output_text", "reasoning": "reasoning_text"}
_PREFIXES: Final = {"message": "msg", "reasoning": "rs"}
_TEXTS: Final = ("input_text", "output_text", "text")


class ResponsesManuscript(Manuscript):
    def __init__(self, body: JSON, models: str) -> None:
        super().__init__(body, models)
        self._number = 0
        self._items: list[tuple[str, list[str]]] = []  # the type of each, and what it says; the last one is open

    def start(self) -> bytes:
        begun = self._response("in_progress", [], None)
        return self._event("response.created", {"response": begun}) + self._event(
            "response.in_progress", {"response": begun}
        )

    def piece(self, spoken: Spoken) -> bytes:
        said = b""
        for kind, text in (("reasoning", spoken.reasoning), ("message", spoken.text)):
            if text:
                said += self._item(kind)
                self._items[-1][1].append(text)
                more: JSON = {"logprobs": []} if kind == "message" else {}
                said += self._event(f"response.{_NAMES[kind]}.delta", {**self._place(), "delta": text, **more})
        return said

    def _item(self, kind: str) -> bytes:
        """The events after which an item of this type is open."""
        if self._items and self._items[-1][0] == kind:
            return b""
        closed = self._close()
        self._items.append((kind, []))
        item = self._made(kind, "in_progress", None)
        return (
            closed
            + self._event("response.output_item.added", {"output_index": len(self._items) - 1, "item": item})
            + self._event("response.content_part.added", {**self._place(), "part": _part(kind, "")})
        )

    def _close(self, status: str = "completed") -> bytes:
        """The events that end the open item, if there is one."""
        if not self._items:
            return b""
        kind, texts = self._items[-1]
        text, place = "".join(texts), self._place()
        more: JSON = {"logprobs": []} if kind == "message" else {}
        item = self._made(kind, status, text)
        return (
            self._event(f"response.{_NAMES[kind]}.done", {**place, "text": text, **more})
            + self._event("response.content_part.done", {**place, "part": _part(kind, text)})
            + self._event("response.output_item.done", {"output_index": len(self._items) - 1, "item": item})
        )

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        status = _status(finish)
        begun = b"" if self._items else self._item("message")
        closed = self._close(status)
        output = [
            self._made(kind, status if at == len(self._items) else "completed", "".join(texts))
            for at, (kind, texts) in enumerate(self._items, 1)
        ]
        over = self._response(status, output, usage, finish)
        return begun + closed + self._event(f"response.{status}", {"response": over})

    def broken(self, message: str, code: str) -> bytes:
        failed = {**self._response("failed", [], None), "error": {"code": "server_error", "message": message}}
        return self._event("response.failed", {"response": failed})

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        status = _status(finish)
        text, thoughts = "".join(piece.text for piece in spoken), "".join(piece.reasoning for piece in spoken)
        output = [self._made("reasoning", "completed", thoughts)] if thoughts else []
        return self._response(status, [*output, self._made("message", status, text)], usage, finish)

    def _event(self, kind: str, data: JSON) -> bytes:
        number, self._number = self._number, self._number + 1
        return event({"type": kind, "sequence_number": number, **data}, kind)

    def _place(self) -> JSON:
        at = len(self._items) - 1
        return {"item_id": self._id(self._items[at][0]), "output_index": at, "content_index": 0}

    def _id(self, kind: str) -> str:
        return f"{_PREFIXES[kind]}_{self.id}"

    def _made(self, kind: str, status: str, text: str | None) -> JSON:
        """An item; its text is None before there is any."""
        content = [] if text is None else [_part(kind, text)]
        more: JSON = {"role": "assistant"} if kind == "message" else {"summary": []}
        return {"id": self._id(kind), "type": kind, "status": status, **more, "content": content}

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
            "parallel_tool_calls": True,
            "previous_response_id": None,
            "store": False,
            "temperature": body.get("temperature"),
            "text": {"format": {"type": "text"}},
            "tool_choice": "auto",
            "tools": [],
            "top_p": body.get("top_p"),
            "usage": None if usage is None else _usage(usage),
        }


def _status(finish: str | None) -> str:
    return "incomplete" if finish in ("length", "content_filter") else "completed"


def _part(kind: str, text: str) -> JSON:
    more: JSON = {"annotations": [], "logprobs": []} if kind == "message" else {}
    return {"type": _NAMES[kind], "text": text, **more}


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
        if body.get("tools"):
            return "tools"
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
            if not isinstance(turn, dict) or turn.get("type") not in (None, "message"):
                return "content"
            text = texts(turn.get("content"), _TEXTS)
            if text is None:
                return "content"
            messages.append({"role": turn.get("role"), "content": text})
        if messages[-1]["role"] == "assistant":
            return "continuation"
        chat: JSON = {"messages": messages, **{key: body[key] for key in _SAME if body.get(key) is not None}}
        if body.get("max_output_tokens"):
            chat["max_completion_tokens"] = body["max_output_tokens"]
        reasoning = body.get("reasoning")
        if isinstance(reasoning, dict) and reasoning.get("effort"):
            chat["reasoning_effort"] = reasoning["effort"]
        return chat

    def manuscript(self, body: JSON, models: str) -> Manuscript:
        return ResponsesManuscript(body, models)


RESPONSES: Final = ResponsesApi()
