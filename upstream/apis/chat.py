"""OpenAI's chat completions (`POST /v1/chat/completions`)."""

from __future__ import annotations

from typing import Any, Final

from upstream.apis.shape import ClientApi, Manuscript, Spoken, Unfit, count
from upstream.endpoint import JSON
from upstream.events import DONE, comment, event
from upstream.toolcalls import tool_calls


class ChatManuscript(Manuscript):
    def __init__(self, body: JSON, models: str) -> None:
        super().__init__(body, models)
        self._usage = bool((body.get("stream_options") or {}).get("include_usage"))
        self._logprobs = bool(body.get("logprobs"))
        self._top: int = body.get("top_logprobs") or 0
        self._role: JSON = {"role": "assistant"}

    def piece(self, spoken: Spoken) -> bytes:
        delta: JSON = dict(self._role)
        if spoken.text or not (spoken.reasoning or spoken.tools):
            delta["content"] = spoken.text
        if spoken.reasoning:
            delta["reasoning_content"] = spoken.reasoning
        if spoken.tools:
            delta["tool_calls"] = list(spoken.tools)
        self._role = {}
        choice = {"index": 0, "delta": delta, "logprobs": self._entries([spoken]), "finish_reason": None}
        return self._chunk(choice, spoken.model)

    def end(self, finish: str | None, usage: JSON, note: bool) -> bytes:
        last = self._chunk({"index": 0, "delta": self._role, "logprobs": None, "finish_reason": finish})
        if self._usage:
            last += event({**self._head("chat.completion.chunk"), "choices": [], "usage": usage})
        elif note:
            last += comment({"usage": usage})
        return last + DONE

    def broken(self, message: str, code: str) -> bytes:
        return event(CHAT.error(502, message, code)) + DONE

    def whole(self, spoken: list[Spoken], finish: str | None, usage: JSON) -> JSON:
        message: JSON = {"role": "assistant", "content": "".join(piece.text for piece in spoken)}
        if reasoning := "".join(piece.reasoning for piece in spoken):
            message["reasoning_content"] = reasoning
        if tools := tool_calls(part for piece in spoken for part in piece.tools):
            message["tool_calls"] = [call.chat() for call in tools]
            message["content"] = message["content"] or None
        choice = {"index": 0, "message": message, "logprobs": self._entries(spoken), "finish_reason": finish}
        return {**self._head("chat.completion"), "choices": [choice], "usage": usage}

    def _chunk(self, choice: JSON, model: str = "") -> bytes:
        return event({**self._head("chat.completion.chunk", model), "choices": [choice]})

    def _head(self, kind: str, model: str = "") -> JSON:
        return {"id": f"chatcmpl-{self.id}", "object": kind, "created": self.created, "model": model or self.models}

    def _entries(self, spoken: list[Spoken]) -> JSON | None:
        if not self._logprobs:
            return None
        entries: list[Any] = [entry for piece in spoken for entry in piece.entries]
        return {
            "content": [{**entry, "top_logprobs": (entry.get("top_logprobs") or [])[: self._top]} for entry in entries]
        }


class ChatApi(ClientApi):
    name = "chat"

    def question(self, body: JSON) -> JSON | Unfit:
        messages = body.get("messages")
        if not isinstance(messages, list) or not messages or not all(isinstance(said, dict) for said in messages):
            return "malformed"
        if body.get("n") not in (None, 1):
            return "n"
        if body.get("functions"):
            return "tools"
        if messages[-1].get("role") == "assistant":
            return "continuation"
        if body.get("modalities") not in (None, ["text"]) or body.get("audio"):
            return "modalities"
        counts = [body.get(key) for key in ("max_tokens", "max_completion_tokens", "top_logprobs")]
        if not all(map(count, counts)) or not isinstance(body.get("stream_options") or {}, dict):
            return "malformed"
        return body

    def manuscript(self, body: JSON, models: str) -> Manuscript:
        return ChatManuscript(body, models)


CHAT: Final = ChatApi()
