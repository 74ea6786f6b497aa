"""The APIs that are understood. A new one is a file beside this one, and a line here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from extproc.apis.chat import CHAT
from extproc.apis.completions import COMPLETIONS
from extproc.apis.embeddings import EMBEDDINGS
from extproc.apis.gemini import GEMINI
from extproc.apis.messages import MESSAGES
from extproc.apis.responses import RESPONSES
from extproc.apis.shape import ApiShape

SHAPES: Final[tuple[ApiShape, ...]] = (
    CHAT,
    COMPLETIONS,
    EMBEDDINGS,
    RESPONSES,
    MESSAGES,
    GEMINI,
)
BY_NAME: Final[dict[str, ApiShape]] = {shape.name: shape for shape in SHAPES}


def spoken(headers: Mapping[str, str]) -> ApiShape:
    """The API of the client with these headers, where the path names no call of one: mostly OpenAI's."""
    for shape in SHAPES:
        if shape.speaks(headers):
            return shape
    return SHAPES[0]
