"""`reask`: the user repeats an earlier question."""

from __future__ import annotations

from pydantic import Field

from signals.facts import Facts
from signals.neural.embeddings import ENCODER, Turns, source
from signals.reading import Reading, unknown
from signals.signal import Cost, Params, Shared, Signal


class ReaskParams(Params):
    """How alike two of the user's messages must be."""

    at_least: float = Field(0.8, ge=0, le=1, description="The least cosine similarity that matches.")
    turns: int = Field(1, ge=1, le=20, description="How many of the user's earlier messages are compared.")
    streak: bool = Field(
        False, description="Each of the last `turns` earlier messages must be that alike, so that none may be missing."
    )
    encoder: str | None = ENCODER

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, None

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1


class Reask(Signal):
    """Reads the greatest similarity of the last user message to the earlier ones, the least one of a streak; 0 where
    there are none, or too few for a streak.

    Unknown (`too_little_known`): no match, and one of them is in words that the embedding does not know.
    """

    kind = "reask"
    Parameters = ReaskParams
    scored = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: ReaskParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._least = params.at_least
        self._turns = shared.use(Turns, source(shared, params.encoder), params.turns)
        self._streak = params.turns if params.streak else None
        self.slow = (self._turns,)

    def read(self, facts: Facts) -> Reading:
        found = facts.got(self._turns)
        known = [one for one in found if one is not None]
        if self._streak is None:
            score = max(known, default=0.0)
            settled = score >= self._least
        elif len(found) < self._streak:
            score, settled = 0.0, True
        else:
            score = min(known, default=self._least)
            settled = score < self._least
        if not settled and None in found:
            return unknown("too_little_known")
        return Reading(score >= self._least, score, evidence=(f"turns={len(found)}",))
