"""What the service has to know of an API: how its paths, calls, errors, answers and model lists are written."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final, NamedTuple
from urllib.parse import quote

import orjson

from decisions.decision import Changes
from decisions.model import Model, Thinking
from extproc.apis.call import CallContents
from extproc.bodies.edit import JsonEdit, elements, exchanged
from extproc.bodies.jsonbody import KEYS
from extproc.refusal import Refusal
from signals.request import Asking

JSON: Final = "application/json"
EVENTS: Final = "text/event-stream"
JSON_HEADERS: Final = (("content-type", JSON),)

HIDDEN: Final = frozenset(
    (
        "model", "user", "metadata", "safety_identifier", "prompt_cache_key", "service_tier", "include", "cache_salt",
        "encoding_format", "previous_response_id", "conversation", "truncation",
    )
)  # fmt: skip
"""Top-level fields that control a call and that the model is not shown."""
KNOWN: Final = HIDDEN | frozenset(
    (
        "messages", "prompt", "input", "instructions", "system", "tools", "functions", "documents", "suffix", "stream",
        "response_format", "text", "reasoning", "reasoning_effort", "max_tokens", "max_completion_tokens", "n",
        "max_output_tokens", "temperature", "top_p", "top_k", "stop", "tool_choice", "thinking", "stream_options",
        "store", "seed", "parallel_tool_calls", "requests",
    )
)  # fmt: skip
"""Top-level fields of the APIs, which share their names. The name of any other field may be shown to a model."""


SEGMENT: Final = r"[\w!$%&'()*+,=:@.~-]+"
"""RE2 expression for one segment of a plain path; other characters stand there as escapes."""
_SAFE: Final = "!$&'()*+,=:@-._~"
_VERSION: Final = re.compile(r"v[0-9]{1,3}[a-z0-9]{0,8}")


class Target(NamedTuple):
    """What a path names: a call of an API, or (`api` None) the model list or a stored response.

    `api` is the name of a shape. `operation` is '' for a call to be answered, `count_tokens`, `input_tokens` or
    `compact` for what is asked about one; `models` for the model list, `stored` for a response by its id. `model` is
    the model that the path names: of the list, an Azure deployment, or the model of an API whose paths name it. `path`
    is the plain form, with its query, where the path was spelled otherwise. `framing` says how the answer is to be
    streamed where the path says it: `sse` or `array` (of JSON). `around` is what stands before and after the model in a
    path that keeps it.
    """

    api: str | None
    operation: str = ""
    model: str | None = None
    path: str | None = None
    framing: str = ""
    around: tuple[str, str] | None = None

    def sent(self, model: str | None) -> str | None:
        """The path that a call of the model of this name goes on with; None: as it came."""
        if self.around is None or model is None or model == self.model:
            return self.path
        return self.around[0] + quoted(model.split("/")) + self.around[1]


class Found(NamedTuple):
    """A call in a path: the segments before its end, those of its end, those of a model's name, and what follows."""

    target: Target
    base: list[str]
    end: list[str]
    model: list[str]
    after: str = ""


def quoted(segments: Sequence[str]) -> str:
    """These segments of a path, spelled plainly."""
    return "/".join([quote(segment, safe=_SAFE) for segment in segments])


def versioned(segment: str) -> bool:
    """Whether a path's segment is the version of an API, as `v1beta`."""
    return _VERSION.fullmatch(segment.lower()) is not None


class Static(NamedTuple):
    """An answer of our own, to be written as the model's: `text` to the call that has these `fields`."""

    model: str
    text: str
    id: str
    created: int
    fields: dict[str, Any]
    framing: str = ""


class ApiShape(Asking):
    """One API. Each is a class in a file of this folder, and one line in `extproc.apis.registry`.

    What is here holds for most of them. `name` is what logs, metrics and spans call the API; `calls` are the ends of
    its paths (segments in small letters) with the operation that each names; `telemetry` is OpenTelemetry's name for
    what it does (`gen_ai.operation.name`).
    """

    def __init__(self, name: str, calls: Mapping[tuple[str, ...], str], telemetry: str) -> None:
        self.name: Final = name
        self.calls: Final = calls
        self.telemetry: Final = telemetry
        self.known = KNOWN
        self.hidden = HIDDEN
        self.keys = KEYS
        """Keys that are words of the API's own (`extproc.bodies.jsonbody.collect`)."""
        self.route = ""
        """RE2 expression for the whole of its paths that neither `calls` nor the model list's have."""
        self.sign = ""
        """Which requests belong to it, as a CEL expression over Envoy's attributes, for the gateway's own answers."""
        self.version = "/v1"
        """What its paths begin with on a server that has no base path of its own."""
        self.model_in = ""
        """RE2 expression of its paths that name the model, with a group for what is between the base path and the name,
        and one for what is after it."""
        self.families: tuple[Thinking, ...] = ("enable_thinking", "thinking", "anthropic", "adaptive")
        """Families of models (`thinking:` in a policy) whose own fields of reasoning may stand in its calls."""
        self.anywhere = False
        """Whether the ends of its paths are unlike those of all other APIs, so that anything may stand before them."""
        self.generates = True
        """Whether a model writes the answer: then the call can tell it how, and we can answer instead of it."""
        self.kept_ids: tuple[str, ...] = ()
        """How the ids of answers begin from which a later call may go on (`continued`)."""
        self.stored = False
        """Whether the upstream keeps answers, which are asked for by their ids later."""
        self.turns_key = "messages"
        """The field that holds the turns of a conversation."""

    # Paths

    def find(self, segments: Sequence[str], query: str) -> Found | None:
        """The call in a path of a form of its own; None where there is none."""
        return None

    # Reading

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        """Read the messages and extras of a call. Raises `Refusal` (400) when it is not what the API takes."""
        raise NotImplementedError

    def speaks(self, headers: Mapping[str, str]) -> bool:
        """Whether these headers are those of the API's clients, where the path names no call of an API."""
        return False

    def keeps(self, fields: dict[str, Any]) -> bool:
        """Whether the upstream keeps the conversation, so that a later call may go on from its answer."""
        return False

    def continued(self, fields: dict[str, Any]) -> Any:
        """The id of the answer from which a call goes on instead of repeating the conversation; None: from none."""
        return None

    # Rewriting

    def names(self, fields: dict[str, Any], model: str) -> bool:
        """Whether a call's body is one for the model of this name."""
        return fields.get("model") == model

    def rename(self, draft: JsonEdit, model: str) -> None:
        """Make the call's body one for the model of this name."""
        draft.set("model", model)

    def add_system(self, draft: JsonEdit, system: str) -> None:
        """Put `system` first. An existing system prompt stays, in the same message: many chat templates take one."""

    def cap(self, draft: JsonEdit, model: Model, limit: int) -> None:
        """Lower every limit on output tokens that the request has; give it one if it has none."""
        lower(draft, ["max_tokens"], limit)

    def silent(self, fields: dict[str, Any]) -> bool:
        """Whether the answer is a stream that says its usage only where the call asks for it, and this one does not."""
        return False

    def think(self, draft: JsonEdit, model: Model, changes: Changes, on: bool) -> None:
        """Switch the model's reasoning on or off in the API's own field."""
        effort = wanted_effort(changes, on)
        if effort is not None:
            draft.set("reasoning_effort", effort)

    # Turns, and the thoughts in them

    def turns(self, fields: dict[str, Any]) -> list[Any]:
        """The turns of a call as they were parsed; none where it has no list of them."""
        given = fields.get(self.turns_key)
        return given if isinstance(given, list) else []

    def closed(self, turns: list[Any]) -> int:
        """The place after the last turn in which the user said something else than results of tools."""
        at = len(turns)
        while at and not self.asks(turns[at - 1]):
            at -= 1
        return at

    def asks(self, turn: Any) -> bool:
        """Whether a turn is one in which the user says something."""
        return isinstance(turn, dict) and turn.get("role") == "user" and not _results(turn)

    def thinks(self, turn: dict[str, Any]) -> bool:
        """Whether a turn holds a thought that only the model that had it accepts."""
        return False

    def strip(self, turn: JsonEdit) -> bool:
        """Remove the thoughts from a turn; False when nothing is left of it."""
        return False

    def forget(self, draft: JsonEdit, until: int | None = None) -> bool:
        """Remove the thoughts in the turns before place `until` (None: in all); False where there were none."""
        given = self.turns(draft.fields)
        raw = b""
        spans: list[tuple[int, int]] = []
        texts: dict[int, bytes | None] = {}
        left: dict[int, Any] = {}
        for at, turn in enumerate(given[:until]):
            if not isinstance(turn, dict) or not self.thinks(turn):
                continue
            if not raw:
                raw = draft.raw(self.turns_key)
                spans = elements(raw)
            one = JsonEdit(raw[spans[at][0] : spans[at][1]], turn)
            if self.strip(one):
                texts[at], left[at] = one.text, one.fields
            else:
                texts[at] = None
        if not texts:
            return False
        kept = [left.get(at, turn) for at, turn in enumerate(given) if at not in texts or at in left]
        draft.put(self.turns_key, exchanged(raw, texts), kept)
        return True

    # Answers of our own

    def error(self, refusal: Refusal) -> bytes:
        """The body of an error."""
        kind = "invalid_request_error" if refusal.status < 500 else "server_error"
        kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(refusal.status, kind)
        shown = {"message": refusal.text, "type": kind, "param": refusal.param, "code": refusal.code}
        return orjson.dumps({"error": shown})

    def unknown_model(self, name: str) -> Refusal:
        """The refusal of a model that the policy does not have."""
        shown = name if len(name) <= 200 else f"{name[:200]}…"
        text = f"The model '{shown}' does not exist; GET {self.version}/models lists those that do."
        return Refusal(404, text, "model_not_found", param="model")

    def answer(self, given: Static) -> dict[str, Any]:
        """A whole answer of the model."""
        raise NotImplementedError

    def stream(self, given: Static) -> Iterable[bytes]:
        """The pieces of a streamed answer."""
        raise NotImplementedError

    def streamed_as(self, framing: str) -> str:
        """The content type of a streamed answer."""
        return EVENTS

    # The model list

    def entry(self, name: str, model: Model) -> dict[str, Any]:
        """A model of the list, by the `name` that clients call it.

        OpenAI's own entries say nothing of a model. `context_length` (OpenRouter, LiteLLM) and `max_model_len` (vLLM)
        are the fields that clients look for.
        """
        entry: dict[str, Any] = {"id": name, "object": "model", "created": 0, "owned_by": "pointsman"}
        if model.context is not None:
            entry |= {"context_length": model.context, "max_model_len": model.context}
        if model.max_output is not None:
            entry["max_output_tokens"] = model.max_output
        if model.capabilities is not None:
            entry["capabilities"] = sorted(model.capabilities)
        if model.quality is not None:
            entry["quality"] = model.quality
        return entry

    def listed(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """The list of these entries."""
        return {"object": "list", "data": entries}


# What several of them do


def _results(turn: dict[str, Any]) -> bool:
    content = turn.get("content")
    return isinstance(content, list) and any(
        isinstance(part, dict) and part.get("type") == "tool_result" for part in content
    )


def lower(draft: JsonEdit, names: Sequence[str], limit: int) -> None:
    """Lower those of these fields that there are to `limit`; set the last where there is none."""
    fields = draft.fields
    present = [name for name in names if fields.get(name) is not None]
    for name in present or names[-1:]:
        value = fields.get(name)
        if not isinstance(value, (int, float)) or value > limit:
            draft.set(name, limit)


def wanted_effort(changes: Changes, on: bool) -> str | None:
    """OpenAI's word for how much to think; None where nothing was asked."""
    if not on:
        return "none"
    if changes.reasoning_effort is None and changes.thinking is not None:
        return "medium"
    return changes.reasoning_effort


def set_inside(draft: JsonEdit, key: str, name: str, value: Any) -> None:
    """Set the member `name` of the object `key`, which is made where there is none."""
    inner = draft.inner(key)
    inner.set(name, value)
    draft.put(key, inner.text, inner.fields)


def usage_unasked(fields: dict[str, Any]) -> bool:
    """`silent` by OpenAI's `stream_options`. One that is no object is for the server to refuse."""
    options = fields.get("stream_options")
    if fields.get("stream") is not True or not (options is None or isinstance(options, dict)):
        return False
    return options is None or options.get("include_usage") is not True


def ask_usage(draft: JsonEdit) -> None:
    """Have a stream say its usage."""
    set_inside(draft, "stream_options", "include_usage", True)


BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768, "max": 65536}
"""Tokens of thinking that stand for an effort where an API counts tokens; 1,024 is Anthropic's minimum."""

USAGE: Final = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}


def wants_usage(given: Static) -> bool:
    """Whether a stream is to end with its usage (OpenAI's `stream_options`)."""
    options = given.fields.get("stream_options")
    return isinstance(options, dict) and options.get("include_usage") is True
