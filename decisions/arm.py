"""A model with changes of its own as a candidate of a choice: at another effort it is another candidate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from decisions.decision import Changes
from decisions.model import Model


@dataclass(frozen=True, slots=True, eq=False)
class Arm(Model):
    """`model` with `changes`, under a `key` of its own by which selectors, weights and logs know it.

    To everybody who sends or counts requests it is `model`.
    """

    model: Model | None = None
    changes: Changes | None = None

    @property
    def plain(self) -> Model:
        return self.model or self


def arm(key: str, model: Model, changes: Changes) -> Arm:
    """`model` with `changes` as a candidate of the name `key`."""
    of_model = {one.name: getattr(model, one.name) for one in fields(model) if one.init}
    return Arm(**of_model | {"key": key}, model=model, changes=changes)


def name(model: str, changes: Mapping[str, Any]) -> str:
    """What a candidate is called that has no name: `large+low`, `large+max_tokens=500`."""
    values = {key: value for key, value in changes.items() if isinstance(value, (str, int)) and key != "system"}
    effort = values.pop("reasoning_effort", None)
    parts = [model, *([] if effort is None else [str(effort)])]
    return "+".join([*parts, *(f"{key}={str(value).lower()}" for key, value in values.items())])


def together(first: Changes | None, second: Changes | None) -> Changes | None:
    """Both changes; where they differ the second counts."""
    if first is None or second is None:
        return first or second
    found = {one.name: getattr(second, one.name) for one in fields(second) if getattr(second, one.name) is not None}
    headers = {**first.headers, **second.headers}
    return Changes(**{one.name: getattr(first, one.name) for one in fields(first)} | found | {"headers": headers})
