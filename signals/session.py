"""Which conversation a request belongs to, without keeping any state."""

from __future__ import annotations

from signals.request import Request

SESSION_HEADER = "x-session-id"


def session_key(request: Request) -> str:
    """A key that is the same for every request of one conversation.

    The `x-session-id` header, else the body's `metadata.session_id`, `prompt_cache_key` or `user`; without any of
    these the system prompt and the first user message, which stay the same while a conversation grows.
    """
    named = request.headers.get(SESSION_HEADER)
    if named:
        return named
    fields = request.fields
    metadata = fields.get("metadata")
    if isinstance(metadata, dict) and isinstance(metadata.get("session_id"), str):
        return str(metadata["session_id"])
    for field in ("prompt_cache_key", "user"):
        value = fields.get(field)
        if isinstance(value, str) and value:
            return value
    first = next((message.text for message in request.messages if message.role == "user"), "")
    return request.text("system") + "\0" + first
