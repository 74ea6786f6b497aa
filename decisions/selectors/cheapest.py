"""`cheapest`: the lowest price."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.selector import Params, Selector
from signals.facts import Facts
from signals.signal import Doubt
from signals.text.estimate import estimate

PRICE: Final = "lowest price"
CONTEXT: Final = "largest context, since none holds the request"


class CheapestParams(Params):
    """There are none: prices are the models'."""

    def doubts(self, models: Sequence[Model]) -> Iterator[Doubt]:
        unpriced = next((model for model in models if not model.priced), None)
        if unpriced is not None:
            message = f"{unpriced.key!r} has no price and so counts as free: give every model a `price`"
            yield Doubt((), "L326", f"{message}, or `price: {{input: 0, output: 0}}` when it is free")


class Cheapest(Selector):
    """The lowest estimated price of the call among the models whose context holds it.

    Output length is the request's own cap, or as long as the input where there is none. When none of the contexts
    holds the request the largest one takes it: a refusal is the upstream's to give.
    """

    name = "cheapest"
    about = "Take the lowest estimated price among the models whose `context` holds the request."
    Parameters = CheapestParams

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        tokens = facts.get(estimate)
        most = facts.request.asking.most(facts.request)
        output = tokens if most is None else most
        room = tokens + (most or 0)
        cheapest: Model | None = None
        least = float("inf")
        for model in models:
            if model.context is None or room <= model.context:
                cost = model.cost(tokens, output)
                if cheapest is None or cost < least:
                    cheapest, least = model, cost
        if cheapest is None:
            return Choice(max(models, key=lambda model: model.context or 0), CONTEXT, 1.0, self.name)
        return Choice(cheapest, PRICE, 1.0, self.name)
