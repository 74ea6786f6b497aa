"""What all tests share: what takes long and is always the same is done once per process."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

from signals.neural.service import Inference

_shipped: dict[Hashable, Any] = {}
load_anew = Inference.loaded
"""What takes a model from the engines that live at the same time, and loads it where none has it."""


def _loaded(self: Inference, kind: type[Any], key: Hashable, load: Callable[[], Any]) -> Any:
    """The shipped model is kept from one test to the next: hundreds of engines have it, and each would load it."""
    if kind.__name__ != "Heads":
        return load_anew(self, kind, key, load)
    return load_anew(self, kind, key, lambda: _shipped.get(key) or _shipped.setdefault(key, load()))


Inference.loaded = _loaded  # type: ignore[method-assign]
