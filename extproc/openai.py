"""What goes back to the APIs that clients call: OpenAI's and Anthropic's.

The body with its model replaced or with a decision's changes applied (every other byte as it came), error bodies in the
shape of the API that was called, and the model lists. `extproc.body` reads what comes.
"""

from __future__ import annotations

import re

import orjson

from decisions.decision import Changes
from decisions.model import Model
from extproc.edit import Draft
from extproc.refusal import Refusal
from extproc.thinking import fit, forget, think
from signals.request import Api, Request

JSON_HEADERS = (("content-type", "application/json"),)


# Rewriting

_COMPLETION_TOKENS = re.compile(r"(?:.*/)?(?:gpt-5|o[1-9])(?![A-Za-z0-9]).*", re.DOTALL)
"""Served names of OpenAI's models that reason, which refuse `max_tokens` in chat completions."""


def with_model(request: Request, name: str) -> bytes:
    """The body with its top-level `model` naming `name`, every other byte as it came.

    A body without one gets it as its first key. Raises `Refusal` (400) when the body is nested too deeply to be read
    again.
    """
    draft = Draft(request.body, request.fields)
    draft.set("model", name)
    return draft.text


def changed(request: Request, model: Model, changes: Changes | None, foreign: int = 0) -> bytes:
    """The body with the model and a decision's changes in it, every other byte as it came.

    The thoughts in its first `foreign` messages (or items) are another model's, and are left out. Raises `Refusal`
    (400) when the body is nested too deeply to be read again.
    """
    draft = Draft(request.body, request.fields)
    if draft.fields.get("model") != model.name:
        draft.set("model", model.name)
    api = request.api
    if foreign:
        forget(draft, api, foreign)
    if changes is None:
        return draft.text
    if changes.system is not None:
        _add_system(api, draft, changes.system)
    if changes.max_tokens is not None and api != "embeddings" and not request.operation:
        before = draft.fields.get("max_tokens")
        _cap(api, draft, model, changes.max_tokens)
        if api == "messages":
            fit(draft, before)
    if api != "embeddings":
        think(draft, api, model, changes)
    return draft.text


def _add_system(api: Api, draft: Draft, system: str) -> None:
    """Put `system` first. An existing system prompt stays, in the same message: many chat templates take only one."""
    fields = draft.fields
    before, part, message = f"{system}\n\n", {"type": "text", "text": system}, {"role": "system", "content": system}
    if api == "chat":
        given = fields["messages"][0]
        if given.get("role") in ("system", "developer") and given.get("content"):
            start, end = draft.first("messages")
            one = Draft(draft.text[start:end], given)
            one.lead("content", before, part)
            draft.text = b"".join((draft.text[:start], one.text, draft.text[end:]))
        else:
            draft.lead("messages", before, message)
            fields["messages"] = [message, *fields["messages"]]
    elif api == "messages" or api == "responses":
        param = "system" if api == "messages" else "instructions"
        existing = fields.get(param)
        if api == "responses" and isinstance(existing, list):
            draft.lead(param, before, message)
        elif existing:
            draft.lead(param, before, part)
        else:
            draft.set(param, system)


def _cap(api: Api, draft: Draft, model: Model, limit: int) -> None:
    """Lower every limit on output tokens that the request has; give it one if it has none."""
    fields = draft.fields
    if api == "responses":
        names = ["max_output_tokens"]
    elif api == "chat":
        names = ["max_completion_tokens", "max_tokens"]
        if _completion_tokens(model):
            _rename_limit(draft)
            names = names[:1]
    else:
        names = ["max_tokens"]
    present = [name for name in names if fields.get(name) is not None]
    for name in present or names[-1:]:
        value = fields.get(name)
        if not isinstance(value, (int, float)) or value > limit:
            draft.set(name, limit)


def _completion_tokens(model: Model) -> bool:
    """Whether the model takes `max_completion_tokens` alone: so it is declared, or so its name says."""
    if model.family is not None:
        return model.family == "max_completion_tokens"
    return _COMPLETION_TOKENS.fullmatch(model.name) is not None


def _rename_limit(draft: Draft) -> None:
    """Make `max_tokens` the `max_completion_tokens` of a request that has no such limit yet."""
    fields = draft.fields
    if fields.get("max_tokens") is not None and fields.get("max_completion_tokens") is None:
        draft.put("max_completion_tokens", draft.raw("max_tokens"), fields["max_tokens"])
    draft.remove("max_tokens")


# Answers of our own

_ANTHROPIC_TYPES = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


def error(api: Api | None, refusal: Refusal) -> bytes:
    """The body of an error, in the shape that clients of `api` expect (None: OpenAI's)."""
    if api == "messages":
        kind = _ANTHROPIC_TYPES.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": refusal.text}})
    kind = "invalid_request_error" if refusal.status < 500 else "server_error"
    if refusal.status in (401, 403, 429):
        kind = _ANTHROPIC_TYPES[refusal.status]
    shown = {"message": refusal.text, "type": kind, "param": refusal.param, "code": refusal.code}
    return orjson.dumps({"error": shown})


def unknown_model(name: str) -> Refusal:
    """The refusal of a model that the policy does not have."""
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return Refusal(
        404,
        f"The model '{shown}' does not exist; GET /v1/models lists those that do.",
        "model_not_found",
        param="model",
    )
