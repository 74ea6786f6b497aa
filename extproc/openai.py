"""The APIs that clients call: OpenAI's chat completions, completions, embeddings and responses, Anthropic's messages.

Bytes in, a `Request` out, and back: the body with its model replaced (bytes otherwise untouched) or with a decision's
changes applied, error bodies in the shape of the API that was called, and the model lists. Only the fields that
routing needs are looked at; everything else is for the upstream to judge.

Duplicate keys: the last one wins, as in the JSON readers of Python, Go and JavaScript that upstreams are written in.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import orjson

from decisions.decision import Changes
from decisions.model import Model
from extproc.refusal import Refusal
from signals.request import Api, Message, Request

JSON_HEADERS = (("content-type", "application/json"),)


class Endpoint(NamedTuple):
    """What a path names: one of the five APIs, or the model list (`api` None) or one model of it."""

    api: Api | None
    model: str | None = None


_PATH = re.compile(
    r"(?:/[^/?#]+)*?/+v1/+(?:(chat/+completions|completions|embeddings|responses|messages)|models(?:/+([^?#]+?))?)/*"
)
_APIS: dict[str, Api] = {
    "chat/completions": "chat",
    "completions": "completions",
    "embeddings": "embeddings",
    "responses": "responses",
    "messages": "messages",
}


def endpoint(path: str) -> Endpoint | None:
    """The API that `path` calls; None when it calls none. Prefixes, doubled slashes and a query do not matter."""
    return _endpoint(path) if len(path) <= 256 else _endpoint.__wrapped__(path)


@lru_cache(maxsize=1024)
def _endpoint(path: str) -> Endpoint | None:
    # An upstream would undo percent-encoding before it routes, so a guard must look at the decoded path too.
    match = _PATH.fullmatch(unquote(path.partition("?")[0].partition("#")[0]))
    if match is None:
        return None
    name, model = match.groups()
    return Endpoint(None, model) if name is None else Endpoint(_APIS[re.sub("/+", "/", name)])


# Bodies


def parse(api: Api, headers: Mapping[str, str], attributes: Mapping[str, Any], body: bytes) -> Request:
    """The call in `body`. Raises `Refusal` (400) when it is not what the API takes."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise _malformed(body, error) from None
    if type(fields) is not dict:
        raise Refusal(400, f"The request body must be a JSON object, not {_kind(fields)}.", "invalid_type")
    model = fields.get("model")
    if model is not None and (type(model) is not str or not model):
        raise Refusal(400, f"'model' must be a non-empty string, not {_kind(model)}.", "invalid_type", param="model")
    return Request(api, body, fields, model, _MESSAGES[api](fields), headers, attributes, time.time())


def _malformed(body: bytes, error: orjson.JSONDecodeError) -> Refusal:
    if not body.strip():
        return Refusal(400, "The request body is empty; a JSON object is needed.", "empty_body")
    where = f"line {error.lineno}, column {error.colno}"
    if "depth limit" in error.msg:
        return _too_deep()
    return Refusal(400, f"The request body is not valid JSON ({error.msg.split(':')[0]}, {where}).", "invalid_json")


def _too_deep() -> Refusal:
    return Refusal(400, "The request body is nested too deeply.", "nested_too_deeply")


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "a boolean"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a string" if value else "an empty string"
    return "an array" if isinstance(value, list) else "an object"


def _wrong(param: str, wanted: str, value: Any) -> Refusal:
    if value is None:
        return Refusal(400, f"'{param}' is missing; {wanted} is needed.", "missing_required_parameter", param=param)
    return Refusal(400, f"'{param}' must be {wanted}, not {_kind(value)}.", "invalid_type", param=param)


def _chat(fields: dict[str, Any]) -> tuple[Message, ...]:
    return tuple(_turns(fields, "messages"))


def _turns(fields: dict[str, Any], param: str) -> Iterable[Message]:
    turns = fields.get(param)
    if type(turns) is not list or not turns:
        raise _wrong(param, "a non-empty array of messages", turns)
    return [_turn(turn, param, index) for index, turn in enumerate(turns)]


def _turn(turn: Any, param: str, index: int) -> Message:
    if type(turn) is not dict:
        raise _wrong(f"{param}[{index}]", "an object", turn)
    role = turn.get("role")
    if type(role) is not str:
        raise _wrong(f"{param}[{index}].role", "a string", role)
    if role == "function":
        role = "tool"
    content = turn.get("content")
    calls = turn.get("tool_calls")
    if type(content) is str and calls is None:
        return Message(role, content)
    parts = _parts(content, f"{param}[{index}].content")
    count = len(calls) if type(calls) is list else 0
    return Message(role, parts.text, parts.images, parts.audio, parts.files, count + parts.tool_calls)


class _Parts(NamedTuple):
    """The content of one message, added up; `results` are the texts of tool results inside it."""

    text: str
    images: int = 0
    audio: int = 0
    files: int = 0
    tool_calls: int = 0
    results: tuple[str, ...] = ()


_IMAGES = frozenset(("image_url", "image", "input_image"))
_AUDIO = frozenset(("input_audio", "audio", "audio_url"))
_FILES = frozenset(("file", "input_file", "document", "video_url", "video", "container_upload"))


def _parts(content: Any, param: str) -> _Parts:
    """Text and counts of a message's content: null, a string, or a list of typed parts."""
    if content is None:
        return _Parts("")
    if type(content) is str:
        return _Parts(content)
    if type(content) is not list:
        raise _wrong(param, "a string or an array of parts", content)
    texts: list[str] = []
    results: list[str] = []
    images = audio = files = calls = 0
    for index, part in enumerate(content):
        if type(part) is str:  # tolerated by several upstreams
            texts.append(part)
            continue
        if type(part) is not dict:
            raise _wrong(f"{param}[{index}]", "an object", part)
        kind = part.get("type")
        if type(kind) is not str:
            raise _wrong(f"{param}[{index}].type", "a string", kind)
        if kind in _IMAGES:
            images += 1
        elif kind in _AUDIO:
            audio += 1
        elif kind in _FILES:
            files += 1
            texts += _document(part)
        elif kind == "tool_use" or kind == "server_tool_use":
            calls += 1
        elif kind.endswith("_result"):  # of a tool, a search, code that ran
            inner = _parts(_listed(part.get("content")), f"{param}[{index}].content")
            results.append("\n".join((inner.text, *inner.results)) if inner.results else inner.text)
            images += inner.images
            files += inner.files
        else:
            text = part.get("text", part.get("refusal"))
            if text is None and kind in ("text", "input_text"):
                raise _wrong(f"{param}[{index}].text", "a string", None)
            if text is not None:
                if type(text) is not str:
                    raise _wrong(f"{param}[{index}].text", "a string", text)
                texts.append(text)
    return _Parts("\n".join(texts), images, audio, files, calls, tuple(results))


def _document(part: dict[str, Any]) -> list[str]:
    """The plain text inside an Anthropic document, which a guard has to see."""
    source = part.get("source")
    if not isinstance(source, dict):
        return []
    if source.get("type") == "text" and isinstance(source.get("data"), str):
        return [source["data"]]
    return [_parts(source["content"], "source.content").text] if source.get("type") == "content" else []


def _completions(fields: dict[str, Any]) -> tuple[Message, ...]:
    return (Message("user", _strings(fields, "prompt")),)


def _embeddings(fields: dict[str, Any]) -> tuple[Message, ...]:
    return (Message("user", _strings(fields, "input")),)


def _strings(fields: dict[str, Any], param: str) -> str:
    """The text of a string or an array of strings; token ids (and arrays of them) have no text that we could read."""
    value = fields.get(param)
    if type(value) is str:
        return value
    if type(value) is not list or not value:
        raise _wrong(param, "a string or a non-empty array", value)
    for index, item in enumerate(value):
        if type(item) not in (str, int, list):
            raise _wrong(f"{param}[{index}]", "a string or token ids", item)
    return "\n".join(item for item in value if type(item) is str)


def _responses(fields: dict[str, Any]) -> tuple[Message, ...]:
    messages: list[Message] = []
    instructions = fields.get("instructions")
    if type(instructions) is str:
        messages.append(Message("system", instructions))
    elif instructions is not None:
        messages.extend(_items(instructions, "instructions"))
    given = fields.get("input")
    if type(given) is str:
        messages.append(Message("user", given))
    elif given is not None or not (fields.get("prompt") or fields.get("previous_response_id")):
        messages.extend(_items(given, "input"))
    return tuple(messages)


def _items(items: Any, param: str) -> Iterable[Message]:
    if type(items) is not list or not items:
        raise _wrong(param, "a string or a non-empty array of items", items)
    for index, item in enumerate(items):
        if type(item) is not dict:
            raise _wrong(f"{param}[{index}]", "an object", item)
        kind = item.get("type", "message")
        if kind == "message":
            yield _turn(item, param, index)
        elif isinstance(kind, str) and kind.endswith("_call_output"):
            yield Message("tool", _parts(_listed(item.get("output")), f"{param}[{index}].output").text)
        elif isinstance(kind, str) and kind.endswith("_call"):
            yield Message("assistant", "", tool_calls=1)


def _listed(output: Any) -> Any:
    return [output] if type(output) is dict else output


def _anthropic(fields: dict[str, Any]) -> tuple[Message, ...]:
    messages: list[Message] = []
    if fields.get("system") is not None:
        messages.append(Message("system", _parts(fields["system"], "system").text))
    turns = fields.get("messages")
    if type(turns) is not list or not turns:
        raise _wrong("messages", "a non-empty array of messages", turns)
    for index, turn in enumerate(turns):
        if type(turn) is not dict or type(turn.get("content")) is not list:
            messages.append(_turn(turn, "messages", index))
            continue
        if type(turn.get("role")) is not str:
            raise _wrong(f"messages[{index}].role", "a string", turn.get("role"))
        parts = _parts(turn["content"], f"messages[{index}].content")
        messages.extend(Message("tool", text) for text in parts.results)
        if len(parts.results) < len(turn["content"]):
            messages.append(Message(turn["role"], *parts[:5]))
    return tuple(messages)


_MESSAGES: dict[Api, Callable[[dict[str, Any]], tuple[Message, ...]]] = {
    "chat": _chat,
    "completions": _completions,
    "embeddings": _embeddings,
    "responses": _responses,
    "messages": _anthropic,
}


# Rewriting

_KEY = b'"model"'
_VALUE = re.compile(rb'[ \t\r\n]*:[ \t\r\n]*("(?:[^"\\]|\\.)*"|null)', re.DOTALL)
_SPACE = re.compile(r"[ \t\r\n]*")
_SCAN = json.JSONDecoder(strict=False, parse_int=str, parse_float=str).scan_once  # type: ignore[attr-defined]


def with_model(request: Request, name: str) -> bytes:
    """The body with every top-level `model` naming `name`, every other byte as it came.

    A body without one gets it as its first key. Raises `Refusal` (400) when the body is nested too deeply to be read
    again.
    """
    body = request.body
    new = orjson.dumps(name)
    if "model" not in request.fields:
        brace = body.index(b"{") + 1
        comma = b"," if request.fields else b""
        return b'%b"model":%b%b%b' % (body[:brace], new, comma, body[brace:])
    spans = _spans(request)
    parts: list[bytes] = []
    at = 0
    for start, end in spans:
        parts += (body[at:start], new)
        at = end
    parts.append(body[at:])
    return b"".join(parts)


def _spans(request: Request) -> list[tuple[int, int]]:
    """Where the values of the top-level `model` keys lie in the body.

    When the body holds `"model"` just once, and no letter of it is written as an escape, that one is the top-level key
    that the parser saw. Anything else is walked key by key with the standard library's scanner (in C, one call a
    value).
    """
    body = request.body
    at = body.find(_KEY)
    if at >= 0 and body.find(_KEY, at + len(_KEY)) < 0 and (b"\\" not in body or b"\\u006" not in body):
        value = _VALUE.match(body, at + len(_KEY))
        if value is not None:
            return [value.span(1)]
    try:
        return list(_walk(body.decode()))
    except RecursionError:
        raise _too_deep() from None


def _walk(text: str) -> Iterable[tuple[int, int]]:
    """Byte spans of the values of every top-level `model` key; `text` is a valid JSON object."""
    ascii_only = text.isascii()

    def offset(at: int) -> int:
        return at if ascii_only else len(text[:at].encode())

    at = _skip(text, text.index("{") + 1)
    while text[at] != "}":
        key, at = _SCAN(text, at)
        at = _skip(text, _skip(text, at) + 1)  # past the colon
        _, end = _SCAN(text, at)
        if key == "model":
            yield offset(at), offset(end)
        at = _skip(text, end)
        if text[at] == ",":
            at = _skip(text, at + 1)


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
    if changes.max_tokens is not None and request.api != "embeddings":
        _cap(request.api, fields, changes.max_tokens)
    if request.api != "embeddings":
        _think(request.api, fields, model, changes)
    try:
        return orjson.dumps(fields)
    except orjson.JSONEncodeError:
        raise _too_deep() from None


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


def models(names: Iterable[str], wanted: str | None, anthropic: bool) -> bytes:
    """The model list, or the one model `wanted` of it, as OpenAI or as Anthropic write it.

    Raises `Refusal` (404) when `wanted` is not among `names`.
    """
    if wanted is not None:
        if wanted not in names:
            raise unknown_model(wanted)
        return orjson.dumps(_listing(wanted, anthropic))
    data = [_listing(name, anthropic) for name in names]
    if not anthropic:
        return orjson.dumps({"object": "list", "data": data})
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {"first_id": None, "last_id": None}
    return orjson.dumps({"data": data, "has_more": False, **ends})


def _listing(name: str, anthropic: bool) -> dict[str, Any]:
    if anthropic:
        return {"type": "model", "id": name, "display_name": name, "created_at": "1970-01-01T00:00:00Z"}
    return {"id": name, "object": "model", "created": 0, "owned_by": "pointsman"}


def unknown_model(name: str) -> Refusal:
    """The refusal of a model that the policy does not have."""
    shown = name if len(name) <= 200 else f"{name[:200]}…"
    return Refusal(
        404,
        f"The model '{shown}' does not exist; GET /v1/models lists those that do.",
        "model_not_found",
        param="model",
    )
