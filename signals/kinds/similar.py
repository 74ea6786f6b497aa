"""`similar`: closeness to example sentences."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from signals.facts import Facts
from signals.neural.embeddings import ENCODER, EXAMPLE_LIMIT, Embedding, closeness, source
from signals.reading import Reading
from signals.signal import Cost, Doubt, Shared, Signal, TextParams


class SimilarParams(TextParams):
    """Examples, and how close the text must be to them."""

    to: list[str] = Field(min_length=1, max_length=EXAMPLE_LIMIT, description="Example sentences.")
    at_least: float = Field(ge=0, le=1, description="The least cosine similarity that matches.")
    aggregate: Literal["max", "mean"] = Field(
        "max", description="Closeness to the nearest example, or to all on average."
    )
    encoder: str | None = ENCODER

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, None

    def span(self) -> tuple[float | None, float | None]:
        return -1, 1

    def doubts(self) -> Iterator[Doubt]:
        if self.at_least == 0:
            message = "nearly every text is that close: unrelated ones have 0 to 0.3; 0.6 is where to begin"
            yield Doubt(("at_least",), "L322", message)


class Similar(Signal):
    """Reads the cosine similarity of the text to the examples. Without text it is 0."""

    kind = "similar"
    Parameters = SimilarParams
    answers = True
    scored = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: SimilarParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._least, self._scope, self._mean = params.at_least, params.in_, params.aggregate == "mean"
        model = source(shared, params.encoder)
        self._examples = model.embed(params.to)
        self._embedding = shared.use(Embedding, model, params.in_)
        self.slow = (self._embedding,)

    def read(self, facts: Facts) -> Reading:
        vector = facts.got(self._embedding)
        score = closeness(vector, self._examples, self._mean) if facts.request.text(self._scope) else 0.0
        return Reading(score >= self._least, score)
