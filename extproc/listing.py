"""The model list (`GET /v1/models`), in the shape of the client's API."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from decisions.engine import Engine
from decisions.model import Model
from extproc.apis.shape import ApiShape


def models(engine: Engine, wanted: str | None, shape: ApiShape) -> bytes:
    """The list of the models of `engine`, or the one of them that clients call `wanted`.

    Raises `Refusal` (404) when there is no such model.
    """
    listed = engine.models.values()
    entries: dict[str, Model] = {name: _any(name, listed) for name in engine.catalogue.auto}
    for model in listed:
        entries.setdefault(model.key, model)
    for model in listed:
        entries.setdefault(model.name, model)
        for alias in model.aliases:
            if not alias.endswith("*"):
                entries.setdefault(alias, model)
    if wanted is not None:
        found = entries.get(wanted) or engine.catalogue.find(wanted)
        if found is None:
            raise shape.unknown_model(wanted)
        return orjson.dumps(shape.entry(wanted, found))
    return orjson.dumps(shape.listed([shape.entry(name, model) for name, model in entries.items()]))


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
