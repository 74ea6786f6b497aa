"""`weighted`: every model has its share of the requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Final

from pydantic import Field

from decisions.candidates import rendezvous, request_key
from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.selector import Params, Pick, Selector
from signals.facts import Facts
from signals.signal import Doubt, Shared

SHARE: Final = "its share"


class WeightedParams(Params):
    """The models' shares."""

    weights: dict[str, Annotated[float, Field(ge=0)]] = Field({}, description="Shares for `weighted`; 1 by default.")

    def check(self, models: Sequence[str]) -> None:
        stray = next((key for key in self.weights if key not in models), None)
        if stray is not None:
            raise ValueError(f"weights name a model that is not in pick: {stray}")
        if self.weights and sum(self.weights.get(key, 1.0) for key in models) <= 0:
            raise ValueError("weights leave no model to choose: at least one must be above 0")

    def doubts(self, models: Sequence[Model]) -> Iterator[Doubt]:
        for key, weight in self.weights.items():
            if weight == 0:
                message = f"{key!r} is never chosen: give a share above 0, or remove it"
                yield Doubt(("weights", key), "L331", message)
        rest = [model.key for model in models if model.key not in self.weights]
        if rest and max(self.weights.values(), default=0) >= 50:
            message = f"{rest[0]!r} is left out and weighs 1; weights are shares, not percent: give every model one"
            yield Doubt(("weights",), "L331", message)


class Weighted(Selector):
    """Weighted rendezvous hashing: see `rendezvous`.

    A sticky choice keys by session instead of by request. A model of weight 0 takes a request only where no other can.
    """

    name = "weighted"
    about = "Spread requests by their id, evenly or by `weights`."
    Parameters = WeightedParams
    beside = ("weights",)
    twice = "`weights` gives it a larger share"

    def __init__(self, pick: Pick, params: WeightedParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._weights = params.weights
        self._all = self._weighed(self.models)
        self._sessions = shared.services.sessions if pick.sticky else None

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        key = facts.get(self._sessions) if self._sessions is not None else request_key(facts.request)
        weighed, most, total = self._all if models is self.models else self._weighed(models)
        model, weight = rendezvous(key, weighed)
        return Choice(model, SHARE, weight / most / total, self.name)

    def _weighed(self, models: Sequence[Model]) -> tuple[list[tuple[Model, float]], float, float]:
        """Those of `models` that have a share, with their weights; the greatest of these, and how often it is in their
        sum, which itself may be more than a float holds."""
        weighed = [(model, weight) for model in models if (weight := self._weights.get(model.key, 1.0)) > 0]
        weighed = weighed or [(model, 1.0) for model in models]
        most = max(weight for _, weight in weighed)
        return weighed, most, sum(weight / most for _, weight in weighed)
