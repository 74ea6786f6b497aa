"""The model list (`GET /v1/models`) as OpenAI and as Anthropic write it.

OpenAI's own entries say nothing of a model. `context_length` (OpenRouter, LiteLLM) and `max_model_len` (vLLM) are the
fields that clients look for; Anthropic's entries have `max_input_tokens`, `max_tokens` and `capabilities`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson

from decisions.engine import Engine
from decisions.model import Model
from extproc.openai import unknown_model


def models(engine: Engine, wanted: str | None, anthropic: bool) -> bytes:
    """The list of the models of `engine`, or the one of them that clients call `wanted`.

    Raises `Refusal` (404) when there is no such model.
    """
    listed = engine.models.values()
    entries: dict[str, Model] = {name: _any(name, listed) for name in engine.auto}
    for model in listed:
        entries.setdefault(model.key, model)
    for model in listed:
        entries.setdefault(model.name, model)
        for alias in model.aliases:
            if not alias.endswith("*"):
                entries.setdefault(alias, model)
    shape = _anthropic if anthropic else _openai
    if wanted is not None:
        found = entries.get(wanted) or engine.find(wanted)
        if found is None:
            raise unknown_model(wanted)
        return orjson.dumps(shape(wanted, found))
    data = [shape(name, model) for name, model in entries.items()]
    if not anthropic:
        return orjson.dumps({"object": "list", "data": data})
    return orjson.dumps({"data": data, "has_more": False, "first_id": data[0]["id"], "last_id": data[-1]["id"]})


def _any(name: str, models: Iterable[Model]) -> Model:
    """What a name that asks for routing can do: whatever some model can, since the request may go there."""
    contexts = [model.context for model in models]
    outputs = [model.max_output for model in models]
    able = [model.capabilities for model in models]
    known = [capabilities for capabilities in able if capabilities is not None]
    return Model(
        name,
        name,
        context=max((context for context in contexts if context is not None), default=None),
        max_output=max((output for output in outputs if output is not None), default=None),
        capabilities=frozenset().union(*known) if len(known) == len(able) else None,
    )


def _openai(name: str, model: Model) -> dict[str, Any]:
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


def _anthropic(name: str, model: Model) -> dict[str, Any]:
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


def _capabilities(can: frozenset[str]) -> dict[str, Any]:
    """Anthropic's object, which always has every key; what a policy does not speak of is not promised."""

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
