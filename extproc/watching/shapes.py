"""The shapes of answers, by the name of the API (extproc.apis.registry)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from extproc.watching.chat import ChatAnswer
from extproc.watching.completions import CompletionsAnswer
from extproc.watching.messages import MessagesAnswer
from extproc.watching.responses import ResponsesAnswer
from extproc.watching.shape import AnswerShape

SHAPES: Final[Mapping[str, AnswerShape]] = {
    "chat": ChatAnswer(),
    "completions": CompletionsAnswer(),
    "messages": MessagesAnswer(),
    "responses": ResponsesAnswer(),
}
"""APIs that are missing here have answers that cannot be watched."""
