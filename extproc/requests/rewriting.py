"""What goes on to the model: the body with the model's name or a decision's changes in it, every other byte as it came.

`extproc.requests.body` reads what comes.
"""

from __future__ import annotations

from decisions.decision import Changes, Decision
from decisions.model import Model
from extproc.apis.registry import BY_NAME
from extproc.apis.shape import ask_usage
from extproc.bodies.edit import JsonEdit
from extproc.requests.thinking import forget, think
from signals.request import Request


def rewritten(request: Request, decision: Decision, foreign: int = 0, usage: bool = False) -> bytes | None:
    """The body that the decision's model gets, its first `foreign` messages without their thoughts; None: as it came.

    `usage`: it asks for the usage of its stream (`unasked`). Raises `Refusal` where it cannot be written again.
    """
    body = _rewritten(request, decision, foreign)
    if not usage:
        return body
    draft = JsonEdit(request.body if body is None else body, request.fields)
    ask_usage(draft)
    return draft.text


def unasked(request: Request, decision: Decision) -> bool:
    """Whether the answer is a stream that says what it took only where it is asked to, the client does not ask, and
    every model that may answer can be asked. A writer's own service says it anyway."""
    model = decision.model
    return (
        model is not None
        and decision.writer is None
        and not request.operation
        and BY_NAME[request.api].silent(request.fields)
        and model.stream_usage
        and all(other.stream_usage for other in model.fallback)
    )


def _rewritten(request: Request, decision: Decision, foreign: int) -> bytes | None:
    model, changes = decision.model, decision.changes
    if model is not None and (foreign or (changes is not None and changes.body)):
        return changed(request, model, changes, foreign)
    # An Azure path names the model, which the plain form of the path does not.
    name = request.model if model is None else model.name
    if name is None or BY_NAME[request.api].names(request.fields, name):
        return None
    return with_model(request, name)


def with_model(request: Request, name: str) -> bytes:
    """The body with its top-level `model` naming `name`, every other byte as it came.

    A body without one gets it as its first key. Raises `Refusal` (400) when the body is nested too deeply to be read
    again.
    """
    draft = JsonEdit(request.body, request.fields)
    BY_NAME[request.api].rename(draft, name)
    return draft.text


def changed(request: Request, model: Model, changes: Changes | None, foreign: int = 0) -> bytes:
    """The body with the model and a decision's changes in it, every other byte as it came.

    The thoughts in its first `foreign` messages (or items) are another model's, and are left out. Raises `Refusal`
    (400) when the body is nested too deeply to be read again.
    """
    draft = JsonEdit(request.body, request.fields)
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
