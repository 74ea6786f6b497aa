"""Anthropic's messages (`POST /v1/messages`).

Its rules of thinking (its documentation: "Extended thinking", "Adaptive thinking", "Effort", "Context editing"):
thinking excludes a forced tool, a beginning of the answer that the client gives, `temperature` and `top_k`, and `top_p`
below 0.95; `budget_tokens` is at least 1,024 and below `max_tokens`, and newer models take none; while tools are
called, thinking is neither switched on nor off; only where it is on can older thoughts be cleared. A thought is signed
by the model that had it, and no other model accepts it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import orjson

from decisions.decision import Changes
from decisions.model import Model
from extproc.apis.call import CallContents, read_turns, take_apart
from extproc.apis.shape import BUDGETS, ApiShape, Static, lower, set_inside
from extproc.bodies.edit import JsonEdit, elements, exchanged
from extproc.bodies.jsonbody import dicts
from extproc.refusal import Refusal
from signals.request import Request
from upstream.events import event

_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
"""Anthropic's `output_config.effort` for an effort."""
_THOUGHTS: Final = ("thinking", "redacted_thinking")
_NO_BUDGET: Final = re.compile(
    r"claude-(?:(?:opus|sonnet|haiku)-4[-.][7-9]|[a-z]+-(?:[5-9]|[1-9][0-9])|mythos-)(?![0-9])"
)
"""Served names of models that refuse a budget of thinking: they are told an effort."""
_ALWAYS: Final = re.compile(r"claude-(?:fable|mythos)-")
"""Served names of models whose thinking cannot be switched off."""
_ERRORS: Final = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    529: "overloaded_error",
}


class AnthropicMessages(ApiShape):
    def __init__(self) -> None:
        calls = {("messages",): "", ("messages", "count_tokens"): "count_tokens"}
        super().__init__("messages", calls, "chat")
        self.kept_ids = ("msg_",)
        path = "request.url_path.matches('.*/messages(/count_tokens)?$')"
        self.sign = f"('anthropic-version' in request.headers || {path})"

    def read(self, call: CallContents, fields: dict[str, Any]) -> None:
        system = fields.get("system")
        if system is not None:
            parts = take_apart(system, "system")
            parts.rest += [result.text for result in parts.results]
            call.add(parts.message("system", parts.text()), parts, [])
        if self.continued(fields) is not None:
            call.extra(-1, "history", "", "", ("reference",))
        read_turns(call, fields.get("messages"), "messages")

    def speaks(self, headers: Mapping[str, str]) -> bool:
        return "anthropic-version" in headers

    def tools(self, request: Request) -> int:
        """Those that a message adds to the call's (`tool_addition`) are offered as well."""
        added = sum(_adds_tool(part) for turn in self.turns(request.fields) for part in dicts(turn, "content"))
        return super().tools(request) + added

    def keeps(self, fields: dict[str, Any]) -> bool:
        return isinstance(fields.get("thread"), dict)

    def continued(self, fields: dict[str, Any]) -> Any:
        thread = fields.get("thread")
        return thread.get("previous_message_id") if isinstance(thread, dict) else None

    def add_system(self, draft: JsonEdit, system: str) -> None:
        if draft.fields.get("system"):
            draft.lead("system", f"{system}\n\n", {"type": "text", "text": system})
        else:
            draft.set("system", system)

    def cap(self, draft: JsonEdit, model: Model, limit: int) -> None:
        before = draft.fields.get("max_tokens")
        lower(draft, ["max_tokens"], limit)
        self._fit(draft, before)

    def _fit(self, draft: JsonEdit, before: Any) -> None:
        """Keep the budget of a client's own `thinking` below a `max_tokens` that was lowered from `before`."""
        thinking, limit = draft.fields.get("thinking"), draft.fields.get("max_tokens")
        if not isinstance(thinking, dict) or thinking.get("type") != "enabled" or not isinstance(limit, int):
            return
        budget = thinking.get("budget_tokens")
        # A budget over the client's own limit is one for interleaved thinking, and counts over several answers.
        if isinstance(budget, int) and isinstance(before, int) and limit <= budget < before:
            self._spend(draft, budget)

    def think(self, draft: JsonEdit, model: Model, changes: Changes, on: bool) -> None:
        fields = draft.fields
        given = fields.get("thinking")
        kind = given.get("type") if isinstance(given, dict) else None
        effort = changes.reasoning_effort if on else "low"
        if not on and _ALWAYS.search(model.name) is None:
            self._off(draft)
        elif model.thinking == "adaptive" or kind not in (None, "enabled", "disabled") or _NO_BUDGET.search(model.name):
            # A client that has `adaptive`, or what comes after it, knows that the model takes it, and the effort beside
            # it.
            if effort in _EFFORTS:
                set_inside(draft, "output_config", "effort", _EFFORTS[effort])
                _every_message(draft, _EFFORTS[effort])
            if on and kind in (None, "enabled", "disabled") and self._free(fields):
                draft.set("thinking", {"type": "adaptive"})
                _drop_sampling(draft)
        elif kind == "enabled" or (self._free(fields) and self.begun(fields)):
            self._spend(draft, changes.thinking_budget or BUDGETS.get(effort or "medium", BUDGETS["medium"]))

    def _spend(self, draft: JsonEdit, budget: int) -> None:
        """Switch thinking on with `budget` tokens, or off where `max_tokens` leaves no room for any."""
        for name in ("max_tokens", "max_completion_tokens"):  # the second where this is a chat completion
            limit = draft.fields.get(name)
            if isinstance(limit, int):
                budget = min(budget, limit - 1)
        if budget < BUDGETS["minimal"]:
            self._off(draft)
            return
        given = draft.fields.get("thinking")
        if isinstance(given, dict) and given.get("type") == "enabled":
            set_inside(draft, "thinking", "budget_tokens", budget)
        else:
            draft.set("thinking", {"type": "enabled", "budget_tokens": budget})
        _drop_sampling(draft)

    def _off(self, draft: JsonEdit) -> None:
        """Switch thinking off. A turn that has thoughts already loses them, since one without thinking has none."""
        self.rest(draft)
        if any(_thoughts(message) for message in self._answers(draft.fields)):
            self.forget(draft)

    def rest(self, draft: JsonEdit) -> None:
        """Switch thinking off for this call, and the clearing of older thoughts, which is refused without it."""
        given = draft.fields.get("thinking")
        if not isinstance(given, dict) or given.get("type") != "disabled":
            draft.set("thinking", {"type": "disabled"})
        inner = draft.inner("context_management")
        edits = inner.fields.get("edits")
        given = edits if isinstance(edits, list) else []
        gone = dict.fromkeys(at for at, edit in enumerate(given) if _clears_thoughts(edit))
        if gone:
            left = [edit for at, edit in enumerate(given) if at not in gone]
            inner.put("edits", exchanged(inner.raw("edits"), gone), left)
            draft.put("context_management", inner.text, inner.fields)

    def _free(self, fields: dict[str, Any]) -> bool:
        """Whether thinking may be switched on beside the other fields, and no answer is begun by the client."""
        choice = fields.get("tool_choice")
        kind = choice.get("type") if isinstance(choice, dict) else choice
        share = fields.get("top_p")
        narrow = isinstance(share, (int, float)) and share < 0.95
        prefilled = [_role(message) for message in self.turns(fields)[-1:]] == ["assistant"]
        return kind in (None, "auto", "none") and not narrow and not prefilled

    def closed(self, turns: list[Any]) -> int:
        """As in all APIs, but the user's messages that follow each other are one: the API joins them."""
        at = len(turns)
        while at:
            start = at
            while start and _role(turns[start - 1]) == "user":
                start -= 1
            if start < at and all(map(self.asks, turns[start:at])):
                return at
            at = min(start, at - 1)
        return 0

    def begun(self, fields: dict[str, Any]) -> bool:
        """Whether every answer of a turn that calls tools began with a thought; also where no tool was called."""
        if self.continued(fields) is not None and not self.closed(self.turns(fields)):
            return False  # the turn began in what the upstream keeps
        return all(_thoughts(message)[:1] == [0] for message in self._answers(fields))

    def _answers(self, fields: dict[str, Any]) -> list[dict[str, Any]]:
        """The assistant's messages of a turn that is not over."""
        given = self.turns(fields)
        return [message for message in given[self.closed(given) :] if _role(message) == "assistant"]

    def thinks(self, turn: dict[str, Any]) -> bool:
        return turn.get("role") == "assistant" and bool(_thoughts(turn))

    def strip(self, turn: JsonEdit) -> bool:
        gone = dict.fromkeys(_thoughts(turn.fields))
        content = [part for at, part in enumerate(turn.fields["content"]) if at not in gone]
        turn.put("content", exchanged(turn.raw("content"), gone), content)
        return bool(content)

    def error(self, refusal: Refusal) -> bytes:
        kind = _ERRORS.get(refusal.status, "invalid_request_error" if refusal.status < 500 else "api_error")
        return orjson.dumps({"type": "error", "error": {"type": kind, "message": refusal.text}})

    def answer(self, given: Static) -> dict[str, Any]:
        return {
            "id": f"msg_{given.id}",
            "type": "message",
            "role": "assistant",
            "model": given.model,
            "content": [{"type": "text", "text": given.text}],
            "stop_reason": "end_turn",
            "stop_sequence": None,
            "usage": {"input_tokens": 0, "output_tokens": 0},
        }

    def stream(self, given: Static) -> Iterable[bytes]:
        start = {**self.answer(given), "content": [], "stop_reason": None}
        events: list[dict[str, Any]] = [
            {"type": "message_start", "message": start},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": given.text}},
            {"type": "content_block_stop", "index": 0},
            {
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": None},
                "usage": {"output_tokens": 0},
            },
            {"type": "message_stop"},
        ]
        for one in events:
            yield event(one, one["type"])

    def entry(self, name: str, model: Model) -> dict[str, Any]:
        return {
            "type": "model",
            "id": name,
            "display_name": name,
            "created_at": "1970-01-01T00:00:00Z",
            "lifecycle": "active",
            "max_input_tokens": model.context,
            "max_tokens": model.max_output,
            "capabilities": None if model.capabilities is None else _capabilities(model.capabilities),
        }

    def listed(self, entries: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return {"data": entries, "has_more": False, "first_id": entries[0]["id"], "last_id": entries[-1]["id"]}


MESSAGES: Final = AnthropicMessages()


def _drop_sampling(draft: JsonEdit) -> None:
    draft.remove("temperature")
    draft.remove("top_k")


def _every_message(draft: JsonEdit, effort: str) -> None:
    """Let no message ask for another effort: what a system message in the midst of others asks for goes before what the
    request does (`BetaSystemMessageParam.output_config`)."""
    messages = draft.fields.get("messages")
    if not isinstance(messages, list):
        return
    asking = [at for at, each in enumerate(messages) if _effort(each) not in (None, effort)]
    if not asking:
        return
    text = draft.raw("messages")
    spans, changed = elements(text), list(messages)
    changes: dict[int, bytes | None] = {}
    for at in asking:
        start, end = spans[at]
        message = JsonEdit(text[start:end], messages[at])
        set_inside(message, "output_config", "effort", effort)
        changes[at], changed[at] = message.text, message.fields
    draft.put("messages", exchanged(text, changes), changed)


def _effort(message: Any) -> Any:
    config = message.get("output_config") if isinstance(message, dict) else None
    return config.get("effort") if isinstance(config, dict) else None


def _adds_tool(part: dict[str, Any]) -> bool:
    """Whether a part of a message offers a tool that the call does not have already."""
    tool = part.get("tool")
    return part.get("type") == "tool_addition" and isinstance(tool, dict) and "definition" in tool


def _clears_thoughts(edit: Any) -> bool:
    kind = edit.get("type") if isinstance(edit, dict) else None
    return isinstance(kind, str) and kind.startswith("clear_thinking_")


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _thoughts(message: dict[str, Any]) -> list[int]:
    """The places of a message's thoughts among its parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [at for at, part in enumerate(content) if isinstance(part, dict) and part.get("type") in _THOUGHTS]


def _capabilities(can: frozenset[str]) -> dict[str, Any]:
    """Anthropic's object, which always has every key; what the policy does not state is not claimed."""

    def support(yes: bool, *kinds: str) -> dict[str, Any]:
        return {"supported": yes, **{kind: {"supported": yes} for kind in kinds}}

    thinks = "thinking" in can
    types = {**support(thinks, "adaptive", "enabled"), **support(False, "between_tools"), "disabled": support(True)}
    del types["supported"]
    return {
        "batch": support(False),
        "citations": support(False),
        "code_execution": support(False),
        "context_management": support(False),
        "effort": support(thinks, "low", "medium", "high", "max"),
        "image_input": support("vision" in can),
        "pdf_input": support("files" in can),
        "server_tools": support(False, "code_execution", "web_search"),
        "structured_outputs": support("json_schema" in can),
        "thinking": {"supported": thinks, "types": types},
    }
