"""What kinds share: asking several members at the same time, the keys of the block for that, and how an answer goes to
the client."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from contextlib import suppress
from itertools import product
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

from pydantic import Field

from panel.extract import EXTRACTORS, Answer, called, field
from panel.sitting import MemberCall, Sitting, Wish
from panel.strategy import PanelBlock
from signals.bounds import said
from upstream.apis.shape import Spoken
from upstream.client import DeadlineError, UpstreamError
from upstream.endpoint import JSON
from upstream.writer import WriterParameter

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

SAMPLES: Final = WriterParameter(
    Annotated[int, Field(ge=1, le=32)], "`vote`: answers of each member (1). `agree`: answers of the first one (3)."
)
ANSWERS: Final = WriterParameter(
    Extraction,
    "Where a text's final answer is: `number`, `choice` (a letter), `boxed`, `json:path.to.field`, `text` (all of it), "
    "or `auto` (boxed, or the number or letter after `answer`, or the text).",
)
QUORUM: Final = WriterParameter(
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


def samples(sitting: Sitting, names: Iterable[str], count: int, why: str) -> list[MemberCall]:
    """`count` calls of each of these members that may see the request, as far as the budget allows, not yet begun.

    Several of one member have a temperature and each a seed of its own, so that they differ, and are the same when the
    request is made again.
    """
    made: list[MemberCall] = []
    question = sitting.question
    members = (sitting.members[name] for name in names if name in sitting.members)
    for member, place in product(members, range(count)):
        if sitting.spent:
            break
        more: dict[str, Any] = {}
        if count > 1:
            seed = question.get("seed")
            more["seed"] = (seed if isinstance(seed, int) else 0) + place
            more["temperature"] = question.get("temperature") or TEMPERATURE
        made.append(sitting.ask(member, Wish(why, more=more)))
    return made


def led(question: JSON, prompt: str) -> list[JSON]:
    """The client's conversation with `prompt` as a system message before it, after what the client's own says: many
    chat templates take one system message."""
    first, *rest = question["messages"]
    if first.get("role") in ("system", "developer") and isinstance(first.get("content"), str):
        return [{"role": "system", "content": f"{first['content']}\n\n{prompt}"}, *rest]
    return [{"role": "system", "content": prompt}, first, *rest]


def tools(asked: MemberCall) -> Answer | None:
    """The tools that an answer calls, which are what it says then."""
    return called([part for piece in asked.said for part in piece.tools])


async def drafts(sitting: Sitting, names: Iterable[str], quorum: int) -> list[MemberCall]:
    """An answer of each of these members, read to its end: those that are `ended`."""
    asked = samples(sitting, names, 1, "draft")
    if asked:
        await asyncio.wait([sitting.begin(one) for one in asked])
    return ended(sitting, asked, quorum)


def ended(sitting: Sitting, asked: Sequence[MemberCall], quorum: int) -> list[MemberCall]:
    """Those of these answers that are complete; with fewer than `quorum`, also those that the client's own limit of
    their length has cut. Raises NoAnswer where even these are too few."""
    whole = [one for one in asked if one.complete]
    if len(whole) < quorum:
        whole = [one for one in asked if one.complete or one.cut]
    if len(whole) < quorum:
        raise sitting.give_up()
    return whole


def released(sitting: Sitting, asked: MemberCall) -> list[Spoken]:
    """A draft that is complete goes to the client: as one piece, unless its log probabilities or tools go with it."""
    asked.release()
    sitting.finish = asked.finish
    if sitting.entries or any(piece.tools for piece in asked.said):
        return asked.said
    return [Spoken(asked.text, "".join(piece.reasoning for piece in asked.said))]


async def streamed(sitting: Sitting, asked: MemberCall) -> AsyncGenerator[Spoken, None]:
    """An answer goes to the client as it comes, what it has said already first. Where it fails before the client has
    seen any of it there is none, and the call is not `released`; what fails later is raised (UpstreamError,
    DeadlineError)."""
    if not sitting.call.body.get("stream"):  # the client sees nothing before the end, so another may still answer
        with suppress(DeadlineError):
            await asked.all()
            if asked.error is None:
                for whole in released(sitting, asked):
                    yield whole
        return
    if asked.said:
        asked.release()
    for begun in [*asked.said]:
        yield begun
    try:
        while (piece := await asked.next()) is not None:
            asked.said.clear()  # it is gone
            if piece.text or piece.reasoning or piece.tools:
                if not asked.released:
                    asked.release()
                yield piece
    except (UpstreamError, DeadlineError):
        if asked.released:
            raise
        return
    if not asked.released:
        asked.release()
    sitting.finish = asked.finish
