"""`weighted`: every model has its share of the requests."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import log
from typing import Annotated, Final

from pydantic import Field

from decisions.candidates import fraction, request_key
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
    """Weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005).

    The share of each model is its weight; a key always goes to the same model, and when a model is added or removed
    only the keys that must move do. A sticky choice keys by session instead of by request. A model of weight 0 takes a
    request only where no other can.
    """

    name = "weighted"
    about = "Spread requests by their id, evenly or by `weights`."
    Parameters = WeightedParams
    beside = ("weights",)
    twice = "`weights` gives it a larger share"

    def __init__(self, pick: Pick, params: WeightedParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._weights = {model: params.weights.get(model.key, 1.0) for model in self.models}
        self._sessions = shared.services.sessions if pick.sticky else None

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        key = facts.get(self._sessions) if self._sessions is not None else request_key(facts.request)
        weighed = [(model, weight) for model in models if (weight := self._weights[model]) > 0]
        weighed = weighed or [(model, 1.0) for model in models]
        chosen, share = min(weighed, key=lambda each: -log(fraction(key, each[0].key)) / each[1])
        return Choice(chosen, SHARE, share / sum(weight for _, weight in weighed), self.name)
