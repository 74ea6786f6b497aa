"""What goes on to the model, and the errors that go back, in the shape of the API that was called.

The body with its model replaced or with a decision's changes applied, every other byte as it came. `extproc.body` reads
what comes.
"""

from __future__ import annotations

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.registry import BY_NAME, SHAPES
from extproc.apis.shape import ApiShape
from extproc.edit import Draft
from extproc.refusal import Refusal
from extproc.thinking import forget, think
from signals.request import Request

JSON_HEADERS = (("content-type", "application/json"),)


# Rewriting


def with_model(request: Request, name: str) -> bytes:
    """The body with its top-level `model` naming `name`, every other byte as it came.

    A body without one gets it as its first key. Raises `Refusal` (400) when the body is nested too deeply to be read
    again.
    """
    draft = Draft(request.body, request.fields)
    BY_NAME[request.api].rename(draft, name)
    return draft.text


def changed(request: Request, model: Model, changes: Changes | None, foreign: int = 0) -> bytes:
    """The body with the model and a decision's changes in it, every other byte as it came.

    The thoughts in its first `foreign` messages (or items) are another model's, and are left out. Raises `Refusal`
    (400) when the body is nested too deeply to be read again.
    """
    draft = Draft(request.body, request.fields)
    shape = BY_NAME[request.api]
    if not shape.names(draft.fields, model.name):
        shape.rename(draft, model.name)
    if foreign:
        forget(draft, shape, foreign)
    if changes is None:
        return draft.text
    if changes.system is not None:
        shape.add_system(draft, changes.system)
    if shape.generates:
        if changes.max_tokens is not None and not request.operation:
            shape.cap(draft, model, changes.max_tokens)
        think(draft, shape, model, changes)
    return draft.text


# Answers of our own


def error(api: str | None, refusal: Refusal) -> bytes:
    """The body of an error, in the shape that clients of `api` expect (None: OpenAI's)."""
    return (SHAPES[0] if api is None else BY_NAME[api]).error(refusal)


def unknown_model(name: str, shape: ApiShape) -> Refusal:
    """The refusal of a model that the policy does not have, to a client of the API `shape`."""
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return Refusal(
        404,
        f"The model '{shown}' does not exist; GET {shape.version}/models lists those that do.",
        "model_not_found",
        param="model",
    )
