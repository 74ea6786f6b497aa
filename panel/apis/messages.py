"""Anthropic's messages (`POST /v1/messages`).

Events as its documentation "Streaming messages" has them. Thoughts of a member are not shown: a `thinking` block needs
a signature, which nobody but Anthropic can give.
"""

from __future__ import annotations

from typing import Final

from panel.apis.shape import Manuscript, PanelApi, Unfit, count, texts
from panel.sitting import Spoken
from upstream.endpoint import JSON
from upstream.events import event

_ENDS: Final = {"length": "max_tokens", "content_filter": "refusal"}
_SAME: Final = ("temperature", "top_p", "max_tokens")
_READ: Final = frozenset(
    ("model", "messages", "system", "stream", "metadata", "service_tier", "stop_sequences", "tools", "thinking", *_SAME)
)
"""Fields that are read, or that say nothing to a model."""
_BEAT: Final = event({"type": "ping"}, "ping")


class MessagesManuscript(Manuscript):
    def start(self) -> bytes:
        usage = {"input_tokens": 0, "output_tokens": 0}
        started = {**self._message(), "content": [], "stop_reason": None, "usage": usage}
        block = {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}}
        return _said({"type": "message_start", "message": started}) + _said(block)

    def piece(self, spoken: Spoken) -> bytes:
        if not spoken.text:
            return b""
        delta = {"type": "text_delta", "text": spoken.text}
        return _said({"type": "content_block_delta", "index": 0, "delta": delta})

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        delta = {"stop_reason": _ENDS.get(finish or "", "end_turn"), "stop_sequence": None}
        return (
            _said({"type": "content_block_stop", "index": 0})
            + _said({"type": "message_delta", "delta": delta, "usage": _usage(usage)})
            + _said({"type": "message_stop"})
        )

    def broken(self, message: str, code: str) -> bytes:
        return _said(MESSAGES.error(502, message, code))

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        text = "".join(piece.text for piece in spoken)
        reason = _ENDS.get(finish or "", "end_turn")
        return {
            **self._message(),
            "content": [{"type": "text", "text": text}],
            "stop_reason": reason,
            "usage": _usage(usage),
        }

    def heartbeat(self) -> bytes:
        return _BEAT

    def _message(self) -> JSON:
        return {
            "id": f"msg_{self.id}",
            "type": "message",
            "role": "assistant",
            "model": self.models,
            "stop_sequence": None,
        }


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


class MessagesApi(PanelApi):
    name = "messages"

    def question(self, body: JSON) -> JSON | Unfit:
        if body.get("tools"):
            return "tools"
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
            text = texts(turn.get("content"), ("text",)) if isinstance(turn, dict) else None
            if text is None:
                return "content"
            messages.append({"role": turn.get("role"), "content": text})
        if messages[-1]["role"] != "user":
            return "continuation"
        chat: JSON = {"messages": messages, **{key: body[key] for key in _SAME if body.get(key) is not None}}
        if stops := body.get("stop_sequences"):
            chat["stop"] = stops
        return chat

    def manuscript(self, body: JSON, models: str) -> Manuscript:
        return MessagesManuscript(body, models)

    def error(self, status: int, message: str, code: str) -> JSON:
        kind = "api_error" if status >= 500 else "permission_error" if status == 403 else "invalid_request_error"
        return {"type": "error", "error": {"type": kind, "message": message}}


MESSAGES: Final = MessagesApi()
