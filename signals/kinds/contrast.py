"""`contrast`: whether a text is closer to one set of examples than to another (complexity, preferences, …)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from signals.facts import Facts
from signals.neural.embeddings import ENCODER, EXAMPLE_LIMIT, Embedding, closeness, source
from signals.reading import Reading
from signals.signal import Cost, Doubt, Shared, Signal, TextParams


class ContrastParams(TextParams):
    """Two sets of examples, and how much closer the text must be to the first."""

    toward: list[str] = Field(min_length=1, max_length=EXAMPLE_LIMIT, description="Examples of what should match.")
    away: list[str] = Field(min_length=1, max_length=EXAMPLE_LIMIT, description="Examples of what should not.")
    margin: float = Field(
        0.0, ge=-1, le=1, description="By how much the similarity to `toward` must exceed the similarity to `away`."
    )
    aggregate: Literal["max", "mean"] = Field(
        "mean", description="Closeness to the nearest example, or to all on average."
    )
    encoder: str | None = ENCODER

    def span(self) -> tuple[float | None, float | None]:
        return -2, 2

    def doubts(self) -> Iterator[Doubt]:
        if self.margin == -1:
            yield Doubt(("margin",), "L322", "next to every text is within it: 0 asks which side is the nearer one")


class Contrast(Signal):
    """Reads the similarity to `toward` minus the similarity to `away`, from -1 to 1. Without text nothing matches."""

    kind = "contrast"
    Parameters = ContrastParams
    scored = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: ContrastParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._margin, self._scope, self._mean = params.margin, params.in_, params.aggregate == "mean"
        model = source(shared, params.encoder)
        self._toward, self._away = model.embed(params.toward), model.embed(params.away)
        self._embedding = shared.use(Embedding, model, params.in_)
        self.slow = (self._embedding,)

    def read(self, facts: Facts) -> Reading:
        vector = facts.got(self._embedding)
        if not facts.request.text(self._scope):
            return Reading(False, 0.0)
        score = closeness(vector, self._toward, self._mean) - closeness(vector, self._away, self._mean)
        return Reading(score >= self._margin, score)
