"""How a request asks a family of models to think, and the thoughts that it carries.

Anthropic's rules (its documentation: "Extended thinking", "Adaptive thinking", "Effort"): thinking goes with no forced
tool, no text put into the model's mouth, no `temperature` or `top_k`, and `top_p` from 0.95 on; `budget_tokens` is at
least 1,024 and below `max_tokens`; while tools are called, thinking is neither switched on nor off. A thought is signed
by the model that had it, and no other takes it.
"""

from __future__ import annotations

from typing import Any, Final

from decisions.decision import Changes
from decisions.model import Model
from extproc.edit import Draft, elements, exchanged
from signals.request import Api

_BUDGETS: Final = {"minimal": 1024, "low": 2048, "medium": 8192, "high": 24576, "xhigh": 32768, "max": 65536}
"""Tokens of thinking that stand for an effort where the API counts tokens; 1,024 is Anthropic's minimum."""
_EFFORTS: Final = {"minimal": "low", "low": "low", "medium": "medium", "high": "high", "xhigh": "xhigh", "max": "max"}
"""Anthropic's `output_config.effort` for an effort."""
_THOUGHTS: Final = ("thinking", "redacted_thinking")
_CHAT_THOUGHTS: Final = ("reasoning_content", "reasoning", "reasoning_details")


def think(draft: Draft, api: Api, model: Model, changes: Changes) -> None:
    """Switch reasoning the way the model's family wants it; leave the request alone when nothing is asked."""
    effort = changes.reasoning_effort
    if effort is None and changes.thinking_budget is None and changes.thinking is None:
        return
    on = changes.thinking if changes.thinking is not None else effort != "none"
    if model.thinking in ("enable_thinking", "thinking"):
        _set_inside(draft, "chat_template_kwargs", model.thinking, on)
    elif model.thinking in ("anthropic", "adaptive") or (model.thinking == "reasoning_effort" and api == "messages"):
        _anthropic(draft, model, changes, on)
    elif model.thinking == "reasoning_effort":
        wanted = "none" if not on else effort
        if wanted is None and changes.thinking is not None:
            wanted = "medium"
        if wanted is not None and api == "responses":
            _set_inside(draft, "reasoning", "effort", wanted)
        elif wanted is not None:
            draft.set("reasoning_effort", wanted)


def fit(draft: Draft, before: Any) -> None:
    """Keep the budget of a client's own `thinking` below a `max_tokens` that was lowered from `before`."""
    thinking, limit = draft.fields.get("thinking"), draft.fields.get("max_tokens")
    if not isinstance(thinking, dict) or thinking.get("type") != "enabled" or not isinstance(limit, int):
        return
    budget = thinking.get("budget_tokens")
    # A budget over the client's own limit is one for interleaved thinking, and counts over several answers.
    if isinstance(budget, int) and isinstance(before, int) and limit <= budget < before:
        _spend(draft, budget)


def _set_inside(draft: Draft, key: str, name: str, value: Any) -> None:
    """Set the member `name` of the object `key`, which is made where there is none."""
    inner = draft.inner(key)
    inner.set(name, value)
    draft.put(key, inner.text, inner.fields)


# Anthropic's field


def _anthropic(draft: Draft, model: Model, changes: Changes, on: bool) -> None:
    fields = draft.fields
    given = fields.get("thinking")
    kind = given.get("type") if isinstance(given, dict) else None
    effort = changes.reasoning_effort
    if not on:
        _off(draft)
    elif model.thinking == "adaptive" or kind not in (None, "enabled", "disabled"):
        # A client that has `adaptive`, or what comes after it, knows that the model takes it, and the effort beside it.
        if effort in _EFFORTS:
            _set_inside(draft, "output_config", "effort", _EFFORTS[effort])
        if kind in (None, "enabled", "disabled") and _free(fields):
            draft.set("thinking", {"type": "adaptive"})
            _drop_sampling(draft)
    elif kind == "enabled" or (_free(fields) and _begun(fields)):
        _spend(draft, changes.thinking_budget or _BUDGETS.get(effort or "medium", _BUDGETS["medium"]))


def _spend(draft: Draft, budget: int) -> None:
    """Switch thinking on with `budget` tokens, or off where `max_tokens` leaves no room for any."""
    limit = draft.fields.get("max_tokens")
    if isinstance(limit, int):
        budget = min(budget, limit - 1)
    if budget < _BUDGETS["minimal"]:
        _off(draft)
        return
    given = draft.fields.get("thinking")
    if isinstance(given, dict) and given.get("type") == "enabled":
        _set_inside(draft, "thinking", "budget_tokens", budget)
    else:
        draft.set("thinking", {"type": "enabled", "budget_tokens": budget})
    _drop_sampling(draft)


def _drop_sampling(draft: Draft) -> None:
    draft.remove("temperature")
    draft.remove("top_k")


def _off(draft: Draft) -> None:
    """Switch thinking off. A turn that has thoughts already loses them, since one without thinking has none."""
    given = draft.fields.get("thinking")
    if not isinstance(given, dict) or given.get("type") != "disabled":
        draft.set("thinking", {"type": "disabled"})
    if any(_thoughts(message) for message in _answers(draft.fields)):
        forget(draft, "messages")


def _free(fields: dict[str, Any]) -> bool:
    """Whether thinking may be switched on beside the request's other fields, and no answer is begun by the client."""
    choice = fields.get("tool_choice")
    kind = choice.get("type") if isinstance(choice, dict) else choice
    share = fields.get("top_p")
    narrow = isinstance(share, (int, float)) and share < 0.95
    prefilled = [_role(message) for message in messages("messages", fields)[-1:]] == ["assistant"]
    return kind in (None, "auto", "none") and not narrow and not prefilled


def _begun(fields: dict[str, Any]) -> bool:
    """Whether every answer of a turn that calls tools began with a thought; also where no tool was called."""
    return all(_thoughts(message)[:1] == [0] for message in _answers(fields))


def turn(given: list[Any]) -> int:
    """The place after the last message in which the user said something else than results of tools."""
    at = len(given)
    while at and not (_role(given[at - 1]) == "user" and not _results(given[at - 1])):
        at -= 1
    return at


def _answers(fields: dict[str, Any]) -> list[dict[str, Any]]:
    """The assistant's messages of a turn that is not over."""
    given = messages("messages", fields)
    return [message for message in given[turn(given) :] if _role(message) == "assistant"]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _results(message: dict[str, Any]) -> bool:
    content = message.get("content")
    return isinstance(content, list) and any(_kind(part) == "tool_result" for part in content)


def _kind(part: Any) -> Any:
    return part.get("type") if isinstance(part, dict) else None


def _thoughts(message: dict[str, Any]) -> list[int]:
    """The places of an Anthropic message's thoughts among its parts."""
    content = message.get("content")
    if not isinstance(content, list):
        return []
    return [at for at, part in enumerate(content) if _kind(part) in _THOUGHTS]


# Thoughts of another model


def messages(api: Api, fields: dict[str, Any]) -> list[Any]:
    """The messages (or items) of a call as they were parsed; none where it has no list of them."""
    given = fields.get("input" if api == "responses" else "messages")
    return given if isinstance(given, list) else []


def forget(draft: Draft, api: Api, until: int | None = None) -> None:
    """Take away the thoughts in the messages (or items) before place `until`; None: in all of them.

    These are `thinking` and `redacted_thinking` parts, `reasoning_content`, `reasoning` and `reasoning_details` of chat
    messages, and `reasoning` items with `encrypted_content`. A message that has nothing else goes whole. Where
    Anthropic wants a thought at the beginning of a turn that has none left, thinking is off until the turn is over.
    """
    key = "input" if api == "responses" else "messages"
    given = messages(api, draft.fields)
    raw = b""
    spans: list[tuple[int, int]] = []
    texts: dict[int, bytes | None] = {}
    left: dict[int, Any] = {}
    for at, message in enumerate(given[:until]):
        if not isinstance(message, dict) or not _holds(api, message):
            continue
        if not raw:
            raw = draft.raw(key)
            spans = elements(raw)
        one = Draft(raw[spans[at][0] : spans[at][1]], message)
        if _strip(api, one):
            texts[at], left[at] = one.text, one.fields
        else:
            texts[at] = None
    if not texts:
        return
    kept = [left.get(at, message) for at, message in enumerate(given) if at not in texts or at in left]
    draft.put(key, exchanged(raw, texts), kept)
    thinking = draft.fields.get("thinking")
    if isinstance(thinking, dict) and thinking.get("type") == "enabled" and not _begun(draft.fields):
        draft.set("thinking", {"type": "disabled"})


def _holds(api: Api, message: dict[str, Any]) -> bool:
    """Whether there is a thought in a message or an item."""
    if api == "responses":
        return message.get("type") == "reasoning" and bool(message.get("encrypted_content"))
    if message.get("role") != "assistant":
        return False
    if api == "messages":
        return bool(_thoughts(message))
    return any(key in message for key in _CHAT_THOUGHTS)


def _strip(api: Api, one: Draft) -> bool:
    """Take the thoughts out of one message; False when nothing is left of it."""
    if api == "responses":
        return False
    if api == "messages":
        gone = dict.fromkeys(_thoughts(one.fields))
        content = [part for at, part in enumerate(one.fields["content"]) if at not in gone]
        one.put("content", exchanged(one.raw("content"), gone), content)
        return bool(content)
    for key in _CHAT_THOUGHTS:
        one.remove(key)
    return True
