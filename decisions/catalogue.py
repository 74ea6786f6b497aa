"""The models of a policy, and the names by which clients ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from decisions.model import Model
from signals.request import Request

AUTO: Final = ("auto", "pointsman")
LONG: Final = "[1m]"
"""What Claude Code writes behind the name of a model that it takes for one of long context."""


class Catalogue:
    """The `models` by their keys, and which of them is the `default`.

    `auto` are the names that ask for routing. `pass_unknown`: a request for any other name goes on as it is; else it is
    refused. `able`: none of the models says what it can do, so that all are taken to have every capability.
    """

    __slots__ = ("_auto", "_by_beginning", "_by_name", "able", "auto", "default", "models", "pass_unknown")

    def __init__(
        self, models: Mapping[str, Model], default: str, auto: Sequence[str] = AUTO, pass_unknown: bool = False
    ) -> None:
        self.models = dict(models)
        self.default = self.models[default]
        self.auto = tuple(auto)
        self.pass_unknown = pass_unknown
        self.able = all(model.capabilities is None for model in self.models.values())
        self._auto = frozenset(name.casefold() for name in self.auto)
        self._by_name = {model.name: model for model in self.models.values()} | self.models
        aliases = [(alias, model) for model in self.models.values() for alias in model.aliases]
        self._by_name |= {alias: model for alias, model in aliases if not alias.endswith("*")}
        # The longest beginning that fits is the one meant.
        self._by_beginning = sorted(
            ((alias[:-1], model) for alias, model in aliases if alias.endswith("*")), key=lambda pair: -len(pair[0])
        )

    def asks(self, request: Request) -> bool:
        """Whether `request` asks for routing, as opposed to naming the model it wants."""
        named = request.model
        if named is None or named in self._auto:
            return True
        if named in self._by_name:
            return False
        return named.strip().casefold().removesuffix(LONG) in self._auto  # clients write `Auto` and `AUTO`

    def find(self, name: str) -> Model | None:
        """The model that clients call `name`: by its key, its served name, an alias; with or without the mark by which
        Claude Code knows a model of long context."""
        model = self._by_name.get(name)
        if model is None:
            name = name.removesuffix(LONG)
            model = self._by_name.get(name)
        if model is None:
            model = next((model for beginning, model in self._by_beginning if name.startswith(beginning)), None)
        return model

    def named(self, request: Request) -> Model | None:
        """The model of the policy that `request` names; None where it names none of them."""
        return None if request.model is None or self.asks(request) else self.find(request.model)
