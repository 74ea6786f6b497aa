"""What kinds share that ask several members at the same time: the samples, and the keys of the block for them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from panel.extract import EXTRACTORS, Answer, field
from panel.sitting import Member, MemberCall, Sitting, Wish
from panel.strategy import PanelBlock, PanelParameter
from signals.bounds import said

if TYPE_CHECKING:
    Extraction = str
else:
    Extraction = (
        Literal[tuple(EXTRACTORS)]
        | Annotated[
            str, Field(pattern=r"^json:[^:\s]{1,200}$", json_schema_extra=said("`json:` and a field's name are needed"))
        ]
    )

Members = Annotated[tuple[str, ...], Field(min_length=1, max_length=16)]

SAMPLES: Final = PanelParameter(
    Annotated[int, Field(ge=1, le=32)], "`vote`: answers of each member (1). `agree`: answers of the first one (3)."
)
ANSWERS: Final = PanelParameter(
    Extraction,
    "Where a text's final answer is: `number`, `choice` (a letter), `boxed`, `json:path.to.field`, `text` (all of it), "
    "or `auto` (boxed, or the number or letter after `answer`, or the text).",
)
QUORUM: Final = PanelParameter(
    Annotated[int, Field(ge=1)], "`vote`, `merge`, `rank`: fewer answers than these are no result, but an error (1)."
)
TEMPERATURE: Final = 0.7
"""Of samples whose call asks for none: without one they would all be the same."""


def extractor(block: PanelBlock) -> Callable[[str], Answer | None]:
    """What reads the final answer of a text."""
    wanted: str = block.given.get("answers", "auto")
    if wanted.startswith("json:"):
        return field(wanted.removeprefix("json:").split("."))
    return EXTRACTORS[wanted]


def sampled(sitting: Sitting, member: Member, count: int, why: str) -> list[MemberCall]:
    """So many calls of a member as the budget allows, not yet begun. More than one have a temperature and each a seed
    of its own, so that they differ, and are the same when the request is made again."""
    made: list[MemberCall] = []
    question = sitting.question
    for place in range(count):
        if sitting.spent:
            break
        more: dict[str, Any] = {}
        if count > 1:
            seed = question.get("seed")
            more["seed"] = (seed if isinstance(seed, int) else 0) + place
            more["temperature"] = question.get("temperature") or TEMPERATURE
        made.append(sitting.ask(member, Wish(why, more=more)))
    return made
