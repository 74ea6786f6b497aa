"""Which requests may share an answer: what is never kept, and the key that stands for everything that shapes an answer.

Fails closed: a field, a tool or an API that is not known here is part of the key, or the reason for not keeping at all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any, Final, NamedTuple, get_args

import orjson

from decisions.decision import Cache, CacheScope, Decision
from decisions.engine import Engine
from decisions.model import Model
from extproc.keeping.capture import ENDS
from extproc.keeping.wording import wording
from extproc.watching.shape import exact
from signals.request import Request

_FORM: Final = frozenset(("stream", "stream_options", "model"))
"""How the answer is sent, which is no part of it; and the model's name, in whose place is the model that was chosen."""
_WHO: Final = frozenset(("user", "metadata", "safety_identifier", "prompt_cache_key", "prompt_cache_retention"))
"""Who asks, for the provider's books: the model is not shown it. Only the Responses API repeats it in the answer."""
_STATE: Final = (
    "audio", "background", "container", "conversation", "mcp_servers", "previous_response_id", "prompt",
    "thread", "web_search_options",
)  # fmt: skip
"""Fields whose answer hangs on what a server keeps, does or finds at that moment. (The prompt of `completions` is a
text, and is not meant.)"""
_OWN_TOOLS: Final = frozenset((None, "function", "custom", "local_shell"))
"""Types of tools that the client runs. A server's tools (search, code, MCP) look at the world, or change it."""
_CLIENT_TOOLS: Final = ("bash_", "text_editor_", "computer_", "memory_")
"""Beginnings of the types of Anthropic's tools that the client runs."""
_HEADERS: Final = ("anthropic-beta", "anthropic-version", "openai-beta")
"""Request headers that shape an answer."""
_CREDENTIALS: Final = ("authorization", "x-api-key", "api-key", "x-goog-api-key")


SCOPES: Final = get_args(CacheScope)


class Key(NamedTuple):
    """`digest` is a SHA-256 of everything, in hexadecimal; `scope` the hash of whom the answer is kept for, by which it
    can be dropped (`scope_of`)."""

    digest: str
    scope: str


def scope_of(scope: str, name: str) -> str:
    """What stands for the tenant, user or session `name`, or for `all` (whose name is '')."""
    return hashlib.blake2b(f"{scope}\0{name}".encode(errors="surrogatepass"), digest_size=16).hexdigest()


def unkept(request: Request, cache: Cache) -> str | None:
    """Why the answer to `request` is never kept, whoever asks; None where it may be. One of a closed set."""
    fields = request.fields
    if request.api not in ENDS or request.operation:
        return "api"
    if "no-store" in directives(request.headers):
        return "no_store"
    if stateful(request):
        return "stateful"
    # Where a call says nothing, every API here takes a temperature of 1, and a server whatever its model comes with.
    temperature = fields.get("temperature")
    if not cache.any_temperature and (type(temperature) not in (int, float) or temperature != 0):
        return "sampled"
    return None


def stateful(request: Request) -> bool:
    """Whether the answer is stored by the server, goes on from what it has stored, or comes from its own tools."""
    fields = request.fields
    if request.stored or fields.get("store") is True or (request.api == "responses" and fields.get("store") is None):
        return True
    if any(fields.get(name) for name in _STATE if name != "prompt" or request.api != "completions"):
        return True
    tools = fields.get("tools")
    return isinstance(tools, list) and not all(map(_runs_at_client, tools))


def _runs_at_client(tool: Any) -> bool:
    kind = tool.get("type") if isinstance(tool, dict) else ""
    return kind in _OWN_TOOLS if not isinstance(kind, str) else kind in _OWN_TOOLS or kind.startswith(_CLIENT_TOOLS)


def directives(headers: Mapping[str, str]) -> dict[str, str]:
    """The directives of a request's `cache-control` (RFC 9111, 5.2), in lower case; '' for one without a value."""
    given = headers.get("cache-control", "")
    parts = (part.partition("=") for part in given.lower().split(",")) if given else ()
    return {name.strip(): value.strip().strip('"') for name, _, value in parts}


def who(engine: Engine, request: Request, scope: str) -> tuple[str, str] | None:
    """Whom an answer is kept for: the name that the operator knows, and everything that tells them apart. None where
    the request does not say it.

    Users and sessions are what clients say of themselves, so they are told apart by tenant and credential as well.
    """
    header, headers = engine.settings.tenant, request.headers
    tenant = "" if header is None else headers.get(header, "")
    if scope == "all":
        return "", ""
    if scope == "tenant":
        return (tenant, tenant) if tenant else None
    name = _user(request) if scope == "user" else engine.sessions.name(request)
    if not name or (header is not None and not tenant):
        return None
    return name, orjson.dumps([name, tenant, *(headers.get(each) for each in _CREDENTIALS)]).decode()


def _user(request: Request) -> str:
    fields = request.fields
    metadata = fields.get("metadata")
    for given in (
        fields.get("safety_identifier"),
        fields.get("user"),
        metadata.get("user_id") if isinstance(metadata, dict) else None,
    ):
        if isinstance(given, str) and given:
            return given
    return ""


class LastQuestion(NamedTuple):
    """What a request asks last: the `text`, its `wording`, and the other fields of the body, in which the wording
    stands in its place."""

    text: str
    wording: str
    fields: dict[str, Any]


def question(request: Request) -> LastQuestion | None:
    """The question at the end of `request`; None where that is no plain text of a user, or has no wording."""
    fields = request.fields
    name = _ASKED.get(request.api, "")
    given = fields.get(name)
    last = given[-1] if isinstance(given, list) and given else given
    content = last.get("content") if isinstance(last, dict) and last.get("role") == "user" else last
    part = content[0] if isinstance(content, list) and len(content) == 1 else content
    text = part.get("text") if isinstance(part, dict) and part.get("type") in ("text", "input_text") else part
    said = wording(text) if isinstance(text, str) else None
    if not isinstance(text, str) or said is None:
        return None
    put: Any = {"wording": said}
    if isinstance(part, dict):
        put = [part | {"text": put}]
    if isinstance(last, dict):
        put = last | {"content": put}
    if isinstance(given, list):
        put = [*given[:-1], put]
    return LastQuestion(text, said, fields | {name: put})


_ASKED: Final = {"chat": "messages", "messages": "messages", "responses": "input", "completions": "prompt"}


def key(
    request: Request, engine: Engine, decision: Decision, asker: tuple[str, str], asked: LastQuestion | None = None
) -> Key:
    """The key of the answer to `request` under `decision` of `engine`, for `asker` (`who`). Linear in the body.

    `asked`: what it asks, where all that ask the same may have the answer.

    Raises ValueError, TypeError or RecursionError where what the request says has no one form; a whole number of more
    than 64 bits was read as one of several that look alike.
    """
    if not exact(request.fields):
        raise ValueError("a number in the request has too many digits to be read")
    cache, model = decision.cache, decision.model
    assert cache is not None
    assert model is not None
    left_out = _FORM if request.api == "responses" else _FORM | _WHO
    fields = request.fields if asked is None else asked.fields
    said = {name: value for name, value in fields.items() if name not in left_out}
    parts = [
        1,  # the form of the key
        request.api,
        [cache.scope, asker[1]],
        [decision.name, *_of(model)],
        _changes(decision),
        None if decision.writer is None else [decision.action, engine.policy],  # it has parameters of its own
        [request.headers.get(name) for name in _HEADERS],
        said,
    ]
    if asked is not None:
        parts.append("wording")
    text = orjson.dumps(parts, option=orjson.OPT_SORT_KEYS | orjson.OPT_NON_STR_KEYS)
    return Key(hashlib.sha256(text).hexdigest(), scope_of(cache.scope, asker[0]))


def _of(model: Model) -> list[Any]:
    return [model.key, model.name, model.url, model.base_path, model.family]


def _changes(decision: Decision) -> list[Any] | None:
    made = decision.changes
    if made is None:
        return None
    return [
        made.reasoning_effort, made.thinking, made.thinking_budget, made.max_tokens, made.system,
        sorted(made.headers.items()),
    ]  # fmt: skip
