"""OpenAI's chat completions (`POST /v1/chat/completions`), and what vLLM and other servers add to them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from decisions.model import Model
from extproc.apis.call import CallContents, read_turns
from extproc.apis.shape import USAGE, ApiShape, Static, lower, usage_unasked, wants_usage
from extproc.bodies.edit import JsonEdit, exchanged
from extproc.bodies.jsonbody import collect
from upstream.events import DONE, event

_COMPLETION_TOKENS: Final = re.compile(r"(?:.*/)?(?:gpt-[5-9]|o[1-9])(?![A-Za-z0-9]).*", re.DOTALL)
"""Served names of OpenAI's models that reason, which refuse `max_tokens`."""
_THOUGHTS: Final = (
    "reasoning_content", "reasoning", "reasoning_details", "reasoning_text", "reasoning_opaque", "thinking_blocks",
)  # fmt: skip
"""The fields in which vLLM and DeepSeek, OpenRouter, Copilot and LiteLLM have them."""
_PARTS: Final = ("thinking", "redacted_thinking")
"""Parts of a message's content that are thoughts (LiteLLM, Mistral)."""


class Chat(ApiShape):
    def __init__(self) -> None:
        super().__init__("chat", {("chat", "completions"): ""}, "chat")
        self.anywhere = True

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        read_turns(call, fields.get("messages"), "messages")
        documents = fields.get("documents")
        if documents:
            texts: list[str] = []
            collect(documents, texts)
            call.extra(len(call.messages) - 1, "document", "\n".join(texts))

    def add_system(self, draft: JsonEdit, system: str) -> None:
        fields = draft.fields
        before, part = f"{system}\n\n", {"type": "text", "text": system}
        message = {"role": "system", "content": system}
        given = fields["messages"][0]
        if given.get("role") in ("system", "developer") and given.get("content"):
            start, end = draft.first("messages")
            one = JsonEdit(draft.text[start:end], given)
            one.lead("content", before, part)
            draft.text = b"".join((draft.text[:start], one.text, draft.text[end:]))
        else:
            draft.lead("messages", before, message)
            fields["messages"] = [message, *fields["messages"]]

    def silent(self, fields: dict[str, Any]) -> bool:
        return usage_unasked(fields)

    def cap(self, draft: JsonEdit, model: Model, limit: int) -> None:
        names = ["max_completion_tokens", "max_tokens"]
        if _completion_tokens(model):
            _rename_limit(draft)
            names = names[:1]
        lower(draft, names, limit)

    def thinks(self, turn: dict[str, Any]) -> bool:
        return turn.get("role") == "assistant" and (
            any(key in turn for key in _THOUGHTS) or any(map(_thought, _content(turn)))
        )

    def strip(self, turn: JsonEdit) -> bool:
        for key in _THOUGHTS:
            turn.remove(key)
        content = _content(turn.fields)
        gone: dict[int, bytes | None] = {at: None for at, part in enumerate(content) if _thought(part)}
        if len(gone) == len(content) > 0 and turn.fields.get("tool_calls") is None:
            return False
        if gone:
            left = [part for at, part in enumerate(content) if at not in gone]
            turn.put("content", exchanged(turn.raw("content"), gone) if left else b"null", left or None)
        return True

    def answer(self, given: Static) -> dict[str, Any]:
        message = {"role": "assistant", "content": given.text, "refusal": None}
        return {**_choice(given, "chat.completion", message=message, finish_reason="stop"), "usage": USAGE}

    def stream(self, given: Static) -> Iterable[bytes]:
        chunk = "chat.completion.chunk"
        role = {"role": "assistant", "content": ""}
        yield event(_choice(given, chunk, delta=role, finish_reason=None))
        yield event(_choice(given, chunk, delta={"content": given.text}, finish_reason=None))
        yield event(_choice(given, chunk, delta={}, finish_reason="stop"))
        if wants_usage(given):
            yield event({**_choice(given, chunk), "choices": [], "usage": USAGE})
        yield DONE


CHAT: Final = Chat()


def _content(turn: dict[str, Any]) -> list[Any]:
    content = turn.get("content")
    return content if isinstance(content, list) else []


def _thought(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") in _PARTS


def _choice(given: Static, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "id": f"chatcmpl-{given.id}",
        "object": kind,
        "created": given.created,
        "model": given.model,
        "choices": [{"index": 0, "logprobs": None, **more}],
    }


def _completion_tokens(model: Model) -> bool:
    """Whether the model takes only `max_completion_tokens`: by what the policy declares, else by its name."""
    if model.family is not None:
        return model.family == "max_completion_tokens"
    return _COMPLETION_TOKENS.fullmatch(model.name) is not None


def _rename_limit(draft: JsonEdit) -> None:
    """Make `max_tokens` the `max_completion_tokens` of a request that has no such limit yet."""
    fields = draft.fields
    if fields.get("max_tokens") is not None and fields.get("max_completion_tokens") is None:
        draft.put("max_completion_tokens", draft.raw("max_tokens"), fields["max_tokens"])
    draft.remove("max_tokens")
