"""What all tests share: what takes long and is always the same is done once per process."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import cache
from typing import Any

import betterproto2
from betterproto2 import Message, casing
from pydantic_core import SchemaValidator

from signals.neural.service import Inference

# `to_dict` reads the annotations of the generated classes, builds their validators and spells their fields anew for
# every message, which is most of the time that a rendered gateway takes.
Message._type_hints = classmethod(cache(vars(Message)["_type_hints"].__func__))  # type: ignore[assignment, method-assign]
vars(betterproto2)["snake_case"] = cache(casing.snake_case)
_validator_of = cache(lambda kind: SchemaValidator(kind.__pydantic_core_schema__))


def _validate(message: Message) -> None:
    fields = vars(message).copy()
    del fields["_unknown_fields"]
    _validator_of(type(message)).validate_python(fields)


Message._validate = _validate  # type: ignore[assignment, method-assign]

_shipped: dict[Hashable, Any] = {}
load_anew = Inference.loaded
"""What takes a model from the engines that live at the same time, and loads it where none has it."""


def _loaded(self: Inference, kind: type[Any], key: Hashable, load: Callable[[], Any]) -> Any:
    """The shipped model is kept from one test to the next: hundreds of engines have it, and each would load it."""
    if kind.__name__ != "Heads":
        return load_anew(self, kind, key, load)
    return load_anew(self, kind, key, lambda: _shipped.get(key) or _shipped.setdefault(key, load()))


Inference.loaded = _loaded  # type: ignore[method-assign]
