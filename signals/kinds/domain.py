"""`domain`: which field of knowledge the request is about."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from signals.facts import Facts
from signals.neural.kinds import LikeliestClass, LikeliestClassParams, second
from signals.reading import Reading
from signals.signal import Shared

if TYPE_CHECKING:
    from signals.neural.reader import FieldOpinions

Label = Literal[
    "biology",
    "business",
    "chemistry",
    "computer science",
    "economics",
    "engineering",
    "health",
    "history",
    "law",
    "math",
    "other",
    "philosophy",
    "physics",
    "psychology",
]


class DomainParams(LikeliestClassParams):
    """Fields of knowledge, as MMLU groups its subjects."""

    is_: list[Label] = Field(alias="is", min_length=1, description="The classes that match.")


class Domain(LikeliestClass):
    """Reads the field of knowledge, one of 14: as the heads say or, where there is a second reader and they are not
    sure, as both do."""

    kind = head = "domain"
    Parameters = DomainParams
    words = True

    def __init__(self, name: str, params: DomainParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._both: FieldOpinions | None = None
        if other := second(shared):
            from signals.neural.reader import FieldOpinions

            self._both = shared.use(FieldOpinions, self._verdict, other)
            self.slow = (self._both,)

    def read(self, facts: Facts) -> Reading:
        if self._both is None:
            return self.choose(facts, facts.got(self._verdict))
        found = facts.got(self._both)
        return self.choose(facts, found.verdict, found.both)
