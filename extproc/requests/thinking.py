"""What a decision does with the thoughts of a model, whichever API it is called by.

A model belongs to a family (`thinking:` in a policy) that has a field of its own. Where it has none, or the API has no
place for it, the model is asked in the API's field.
"""

from __future__ import annotations

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.messages import MESSAGES
from extproc.apis.shape import ApiShape, set_inside
from extproc.bodies.edit import JsonEdit


def think(draft: JsonEdit, shape: ApiShape, model: Model, changes: Changes) -> None:
    """Switch reasoning on or off in the way of the model's family; the request stays as it is when nothing is asked."""
    effort = changes.reasoning_effort
    if effort is None and changes.thinking_budget is None and changes.thinking is None:
        return
    on = changes.thinking if changes.thinking is not None else effort != "none"
    if model.thinking == "none":
        return
    if model.thinking not in shape.families:
        shape.think(draft, model, changes, on)
    elif model.thinking in ("enable_thinking", "thinking"):
        set_inside(draft, "chat_template_kwargs", model.thinking, on)
    else:
        MESSAGES.think(draft, model, changes, on)


def forget(draft: JsonEdit, shape: ApiShape, until: int) -> None:
    """Remove the thoughts in the turns before place `until`. A turn that has nothing else is removed whole.

    Where Anthropic demands a thought at the beginning of a turn, and that turn has none left, thinking is switched off
    until the turn is over.
    """
    if not shape.forget(draft, until):
        return
    thinking = draft.fields.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "enabled" and not MESSAGES.begun(draft.fields):
        MESSAGES.rest(draft)
