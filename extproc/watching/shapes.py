"""The shapes of answers, by the name of the API (extproc.apis.registry)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from extproc.watching.chat import ChatAnswer
from extproc.watching.completions import CompletionsAnswer
from extproc.watching.gemini import GeminiAnswer, GeminiArray
from extproc.watching.messages import MessagesAnswer
from extproc.watching.responses import ResponsesAnswer
from extproc.watching.shape import AnswerShape
from signals.request import formats, guided

SHAPES: Final[Mapping[str, AnswerShape]] = {
    "chat": ChatAnswer(),
    "completions": CompletionsAnswer(),
    "gemini": GeminiAnswer(),
    "messages": MessagesAnswer(),
    "responses": ResponsesAnswer(),
}
"""APIs that are missing here have answers that cannot be watched."""

ARRAYS: Final[Mapping[str, AnswerShape]] = {"gemini": GeminiArray()}
"""The shapes of answers that are streamed as one JSON array, as the path of a call may ask (`Request.framing`)."""

_JSON: Final = ("json_object", "json_schema")


def asks_json(fields: Mapping[str, Any]) -> bool:
    """Whether a call asks its answer to be JSON. `fields`: the request's, as the model gets them."""
    if any(form.get("type") in _JSON for form in formats(fields)) or guided(fields, "json", "json_object"):
        return True
    config = fields.get("generationConfig") or fields.get("generation_config")  # Gemini
    if not isinstance(config, Mapping):
        return False
    return "application/json" in (config.get("responseMimeType"), config.get("response_mime_type"))
