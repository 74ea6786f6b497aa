"""`irt`, `nearest` and `quality`: whoever is foretold to answer well, by a file of `pointsman select train`."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Final

from pydantic import Field

from decisions.candidates import expected_tokens
from decisions.decision import Choice
from decisions.model import Model
from decisions.selectors.learner import expected, weighed
from decisions.selectors.selector import Params, Pick, Selector
from signals.facts import Facts
from signals.reading import Unavailable
from signals.signal import Shared

if TYPE_CHECKING:
    from signals.neural.foretelling import Foretelling

BEST: Final = "best foretold quality"
ENOUGH: Final = "cheapest that is foretold to do"
NONE: Final = "best foretold quality, since none is foretold to do"
UNREAD: Final = "best quality, since nothing was foretold in time"
READ: Final = 20_000
"""Characters of the beginning of a text that are read."""


class ForetoldParams(Params):
    """What was learned, and what counts beside quality."""

    file: str = Field(description="A file of `pointsman select train`.")
    cost: float | None = Field(
        None,
        ge=0,
        description="Weight of the call's estimated price (1 for the dearest candidate) against quality; left out, as "
        "much as costs no quality by the file.",
    )


class QualityParams(Params):
    """What was learned, and the quality that is wanted."""

    file: str = Field(description="A file of `pointsman select train`.")
    at_least: float = Field(ge=0, le=1, description="The share of requests that are to be answered well.")


class Foretold:
    """Slow input: the chance of each model of a file to answer what the user says last well, in the file's order."""

    def __init__(self, model: Foretelling) -> None:
        self._model = model

    async def fetch(self, facts: Facts) -> list[float]:
        text = facts.request.text("user")[:READ]
        return list((await asyncio.to_thread(self._model.chances, text)).tolist())


class ForetoldChoice(Selector):
    """The best of the candidates' chances less their weighed prices. A candidate that the file does not know has its
    `quality` as its chance."""

    way: ClassVar[str | None] = None

    def __init__(self, pick: Pick, params: Any, shared: Shared) -> None:
        from signals.neural.foretelling import Foretelling

        super().__init__(pick, params, shared)
        path = shared.services.folder / Path(params.file)
        model = Foretelling.load(path)
        if self.way is not None and model.way != self.way:
            raise ValueError(f"{params.file} holds {model.way}, which `by: {self.name}` does not read")
        known = [one for one in self.models if one.key in model.models]
        if not known:
            raise ValueError(f"{params.file} knows none of the candidates; it knows {', '.join(model.models)}")
        self.foretelling = model
        self._source = Foretold(model)
        self._places = {one.key: model.models.index(one.key) for one in known}
        self.slow = (self._source,)

    def stub(self, facts: Facts, qualities: Mapping[str, float]) -> None:
        facts.put(self._source, [qualities.get(key, 0.0) for key in self.foretelling.models])

    def chances(self, models: Sequence[Model], facts: Facts) -> list[float] | None:
        """Those of `models`; None where they are not there."""
        try:
            found = facts.got(self._source)
        except Unavailable:
            return None
        at = self._places
        return [found[at[one.key]] if one.key in at else expected(one) for one in models]


class Foreteller(ForetoldChoice):
    """Takes the best."""

    Parameters = ForetoldParams

    def __init__(self, pick: Pick, params: ForetoldParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._cost: float = self.foretelling.card["cost"] if params.cost is None else params.cost

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        chances = self.chances(models, facts)
        worth = [expected(one) for one in models] if chances is None else chances
        prices = weighed(self._cost, models, facts)
        best = max(range(len(models)), key=lambda at: worth[at] - prices[at])
        return Choice(models[best], UNREAD if chances is None else BEST, 1.0, self.name)


class Irt(Foreteller):
    """By an item-response model: abilities of models at factors of questions, which their words tell."""

    name = "irt"
    about = "Take the model with the best foretold quality, by an item-response model of graded questions."
    way = "abilities"


class Nearest(Foreteller):
    """By the grades of the most similar questions."""

    name = "nearest"
    about = "Take the model with the best foretold quality, by the most similar graded questions."
    way = "neighbours"


class Quality(ForetoldChoice):
    """The cheapest candidate that is foretold to do; where none is, the best."""

    name = "quality"
    about = "Take the cheapest model that is foretold to answer well often enough."
    Parameters = QualityParams

    def __init__(self, pick: Pick, params: QualityParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._bar = self.foretelling.bar(params.at_least)

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        chances = self.chances(models, facts)
        if chances is None:
            return Choice(max(models, key=expected), UNREAD, 1.0, self.name)
        able = [model for model, chance in zip(models, chances, strict=True) if chance >= self._bar]
        if not able:
            return Choice(models[max(range(len(models)), key=chances.__getitem__)], NONE, 1.0, self.name)
        tokens = expected_tokens(facts)
        return Choice(min(able, key=lambda model: model.cost(*tokens)), ENOUGH, 1.0, self.name)
