"""What goes back to the APIs that clients call: OpenAI's and Anthropic's.

The body with its model replaced (bytes otherwise untouched) or with a decision's changes applied, error bodies in the
shape of the API that was called, and the model lists. `extproc.body` reads what comes.
"""

from __future__ import annotations

import json
import re
from typing import Any

import orjson

from decisions.decision import Changes
from decisions.model import Model
from extproc.jsonbody import too_deep
from extproc.refusal import Refusal
from signals.request import Api, Request

JSON_HEADERS = (("content-type", "application/json"),)


# Rewriting

_KEY = b'"model"'
_VALUE = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*"|null)', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")
_SCAN = json.JSONDecoder(strict=False, parse_int=str, parse_float=str).scan_once  # type: ignore[attr-defined]


def with_model(request: Request, name: str) -> bytes:
    """The body with its top-level `model` naming `name`, every other byte as it came.

    A body without one gets it as its first key. Raises `Refusal` (400) when the body is nested too deeply to be read
    again.
    """
    body = request.body
    new = orjson.dumps(name)
    if "model" not in request.fields:
        brace = body.index(b"{") + 1
        comma = b"," if request.fields else b""
        return b'%b"model":%b%b%b' % (body[:brace], new, comma, body[brace:])
    start, end = _span(body)
    return b"".join((body[:start], new, body[end:]))


def _span(body: bytes) -> tuple[int, int]:
    """Where the value of the top-level `model` key lies in `body`, which has just one.

    When the body holds `"model"` just once, and no letter of it is written as an escape, that one is the top-level key
    that the parser saw. Anything else is walked key by key with the standard library's scanner (in C, one call a
    value).
    """
    at = body.find(_KEY)
    if at >= 0 and body.find(_KEY, at + len(_KEY)) < 0 and (b"\\" not in body or b"\\u006" not in body):
        value = _VALUE.match(body, at + len(_KEY))
        if value is not None:
            return value.span(1)
    text = body.decode()
    try:
        start, end = _walk(text)
    except RecursionError:
        raise too_deep() from None
    before = len(text[:start].encode())
    return before, before + len(text[start:end].encode())


def _walk(text: str) -> tuple[int, int]:
    """The span of the value of the top-level `model` key in the JSON object `text`."""
    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _SCAN(text, at)
        at = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = _SCAN(text, at)
        if key == "model":
            return at, end
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)
    raise ValueError("a body without a model")


def _skip(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


_BUDGETS = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576}
"""Tokens of thinking that stand for an effort where the API counts tokens; 1,024 is Anthropic's minimum."""


def changed(request: Request, model: Model, changes: Changes) -> bytes:
    """The body with the model and a decision's changes in it, serialised anew.

    Raises `Refusal` (400) when the body is nested too deeply to be written again (254 levels).
    """
    fields = dict(request.fields)
    fields["model"] = model.name
    if changes.system is not None:
        _add_system(request.api, fields, changes.system)
    if changes.max_tokens is not None and request.api != "embeddings" and not request.operation:
        _cap(request.api, fields, changes.max_tokens)
    if request.api != "embeddings":
        _think(request.api, fields, model, changes)
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        raise too_deep() from None


def _add_system(api: Api, fields: dict[str, Any], system: str) -> None:
    """Put `system` first. An existing system prompt stays, in the same message: many chat templates take only one."""
    if api == "chat":
        first, *rest = fields["messages"]
        if first.get("role") in ("system", "developer") and first.get("content"):
            fields["messages"] = [{**first, "content": _before(system, first["content"])}, *rest]
        else:
            fields["messages"] = [{"role": "system", "content": system}, first, *rest]
    elif api == "messages" or api == "responses":
        param = "system" if api == "messages" else "instructions"
        existing = fields.get(param)
        if api == "responses" and isinstance(existing, list):
            fields[param] = [{"role": "system", "content": system}, *existing]
        else:
            fields[param] = _before(system, existing) if existing else system


def _before(system: str, existing: Any) -> Any:
    if isinstance(existing, str):
        return f"{system}\n\n{existing}"
    return [{"type": "text", "text": system}, *existing]


def _cap(api: Api, fields: dict[str, Any], limit: int) -> None:
    """Lower every limit on output tokens that the request has; give it one if it has none."""
    names = ("max_output_tokens",) if api == "responses" else ("max_completion_tokens", "max_tokens")
    present = [name for name in names if fields.get(name) is not None]
    for name in present or names[-1:]:
        value = fields.get(name)
        if not isinstance(value, (int, float)) or value > limit:
            fields[name] = limit


def _think(api: Api, fields: dict[str, Any], model: Model, changes: Changes) -> None:
    """Switch reasoning the way the model's family wants it; leave the request alone when nothing is asked."""
    effort, budget = changes.reasoning_effort, changes.thinking_budget
    if effort is None and budget is None and changes.thinking is None:
        return
    on = changes.thinking if changes.thinking is not None else effort != "none"
    if model.thinking in ("enable_thinking", "thinking"):
        given = fields.get("chat_template_kwargs")
        fields["chat_template_kwargs"] = {**(given if isinstance(given, dict) else {}), model.thinking: on}
    elif model.thinking == "anthropic" or (model.thinking == "reasoning_effort" and api == "messages"):
        _anthropic_thinking(fields, on, budget or _BUDGETS.get(effort or "medium", _BUDGETS["medium"]))
    elif model.thinking == "reasoning_effort":
        wanted = "none" if not on else effort
        if wanted is None and changes.thinking is not None:
            wanted = "medium"
        if wanted is not None and api == "responses":
            given = fields.get("reasoning")
            fields["reasoning"] = {**(given if isinstance(given, dict) else {}), "effort": wanted}
        elif wanted is not None:
            fields["reasoning_effort"] = wanted


def _anthropic_thinking(fields: dict[str, Any], on: bool, budget: int) -> None:
    """The `thinking` object. It must leave room below `max_tokens`, and goes with no temperature or top_k."""
    limit = fields.get("max_tokens")
    if on and isinstance(limit, int):
        budget = min(budget, limit - 1)
    if not on or budget < _BUDGETS["minimal"]:
        fields["thinking"] = {"type": "disabled"}
        return
    fields["thinking"] = {"type": "enabled", "budget_tokens": budget}
    fields.pop("temperature", None)
    fields.pop("top_k", None)


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
