"""The shapes of answers, by the name of the API (extproc.apis.registry)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from extproc.watching.chat import ChatAnswer
from extproc.watching.completions import CompletionsAnswer
from extproc.watching.gemini import GeminiAnswer
from extproc.watching.messages import MessagesAnswer
from extproc.watching.responses import ResponsesAnswer
from extproc.watching.shape import AnswerShape

SHAPES: Final[Mapping[str, AnswerShape]] = {
    "chat": ChatAnswer(),
    "completions": CompletionsAnswer(),
    "gemini": GeminiAnswer(),
    "messages": MessagesAnswer(),
    "responses": ResponsesAnswer(),
}
"""APIs that are missing here have answers that cannot be watched."""

_FORMATS: Final = (
    # Where a call says what its answer is to look like.
    ("", "response_format"),  # chat, completions
    ("text", "format"),  # responses
    ("output_config", "format"),  # messages
    ("", "output_format"),
)
_JSON: Final = ("json_object", "json_schema")


def asks_json(fields: Mapping[str, Any]) -> bool:
    """Whether a call asks its answer to be JSON. `fields`: the request's, as the model gets them."""
    for outer, key in _FORMATS:
        holder = fields.get(outer) if outer else fields
        said = holder.get(key) if isinstance(holder, Mapping) else None
        if isinstance(said, Mapping) and said.get("type") in _JSON:
            return True
    guided = fields.get("structured_outputs")  # vLLM
    if fields.get("guided_json") or (isinstance(guided, Mapping) and (guided.get("json") or guided.get("json_object"))):
        return True
    config = fields.get("generationConfig") or fields.get("generation_config")  # Gemini
    if not isinstance(config, Mapping):
        return False
    return "application/json" in (config.get("responseMimeType"), config.get("response_mime_type"))
