"""An answer with a fixed text, in the normal shape of the API that was called, streamed where the call asks for it.

For guards that answer instead of refusing (`respond: {status: 200, …}`).
"""

from __future__ import annotations

import time
import uuid
from typing import NamedTuple

import orjson

from extproc.apis.registry import BY_NAME
from extproc.apis.shape import JSON, Static
from signals.request import Request


class StaticAnswer(NamedTuple):
    """A whole HTTP answer of status 200."""

    content_type: str
    body: bytes


def static_answer(request: Request, text: str) -> StaticAnswer | None:
    """The answer `text` to `request`; None where the call's answer is no text (embeddings, counting tokens)."""
    shape = BY_NAME[request.api]
    if not shape.generates or request.operation:
        return None
    model, framing = request.model or "auto", request.framing
    given = Static(model, text, uuid.uuid4().hex[:24], int(time.time()), request.fields, framing)
    if shape.streams(request):
        return StaticAnswer(shape.streamed_as(framing), b"".join(shape.stream(given)))
    return StaticAnswer(JSON, orjson.dumps(shape.answer(given)))
