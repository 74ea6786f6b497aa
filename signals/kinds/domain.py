"""`domain`: which field of knowledge the request is about."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from signals.neural.kinds import Choice, ChoiceParams

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


class DomainParams(ChoiceParams):
    """Fields of knowledge, as MMLU groups its subjects."""

    is_: list[Label] = Field(alias="is", min_length=1, description="The classes that match.")


class Domain(Choice):
    """Reads the field of knowledge, one of 14."""

    kind = head = "domain"
    Parameters = DomainParams
    words = True
