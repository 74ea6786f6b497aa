"""Anthropic's messages (`POST /v1/messages`).

Events as its documentation "Streaming messages" has them. Thoughts are `thinking` blocks without a signature, which
nobody but Anthropic can give; other servers leave it empty, too.
"""

from __future__ import annotations

from typing import Final

from upstream.apis.shape import ClientApi, Manuscript, Spoken, Unfit, count, texts
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
    def __init__(self, body: JSON, models: str) -> None:
        super().__init__(body, models)
        self._blocks: list[str] = []  # their types; the last one is open

    def start(self) -> bytes:
        usage = {"input_tokens": 0, "output_tokens": 0}
        started = {**self._message(), "content": [], "stop_reason": None, "usage": usage}
        return _said({"type": "message_start", "message": started})

    def piece(self, spoken: Spoken) -> bytes:
        said = b""
        for kind, text in (("thinking", spoken.reasoning), ("text", spoken.text)):
            if text:
                said += self._block(kind)
                delta = {"type": f"{kind}_delta", kind: text}
                said += _said({"type": "content_block_delta", "index": len(self._blocks) - 1, "delta": delta})
        return said

    def _block(self, kind: str) -> bytes:
        """The events after which a block of this type is open."""
        if self._blocks[-1:] == [kind]:
            return b""
        closed = self._close()
        self._blocks.append(kind)
        start = {"type": "content_block_start", "index": len(self._blocks) - 1, "content_block": _block(kind, "")}
        return closed + _said(start)

    def _close(self) -> bytes:
        return _said({"type": "content_block_stop", "index": len(self._blocks) - 1}) if self._blocks else b""

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        delta = {"stop_reason": _ENDS.get(finish or "", "end_turn"), "stop_sequence": None}
        return (
            (b"" if self._blocks else self._block("text"))
            + self._close()
            + _said({"type": "message_delta", "delta": delta, "usage": _usage(usage)})
            + _said({"type": "message_stop"})
        )

    def broken(self, message: str, code: str) -> bytes:
        return _said(MESSAGES.error(502, message, code))

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        text, thoughts = "".join(piece.text for piece in spoken), "".join(piece.reasoning for piece in spoken)
        reason = _ENDS.get(finish or "", "end_turn")
        return {
            **self._message(),
            "content": [*([_block("thinking", thoughts)] if thoughts else ()), _block("text", text)],
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


def _block(kind: str, text: str) -> JSON:
    return {"type": kind, kind: text, **({"signature": ""} if kind == "thinking" else {})}


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
