"""`agree`: how far several answers of one member agree decides whether it answers, or others do.

After ACAR (adaptive complexity routing): the spread of three samples of a cheap model decides. Where all agree, that is
the answer; where two agree, a stronger model answers; where none do, all vote.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Annotated, Final

from pydantic import Field

from panel.extract import Answer
from panel.kinds.drafts import ANSWERS, SAMPLES, Members, extractor, samples, streamed
from panel.kinds.vote import Poll, elect, winner
from panel.sitting import Sitting, Wish
from panel.strategy import PanelBlock, PanelKind
from upstream.apis.shape import Spoken
from upstream.writer import Planned, WriterParameter

Levels = Annotated[tuple[str | Members, ...], Field(min_length=1, max_length=8)]


class Agree:
    """`levels`: who answers, from a little disagreement to a total one."""

    def __init__(
        self, first: str, samples: int, levels: Sequence[Sequence[str]], read: Callable[[str], Answer | None]
    ) -> None:
        self._first = first
        self._samples = samples
        self._levels = levels
        self._read = read

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        asked = samples(sitting, (self._first,), self._samples, "sample")
        if asked:
            await asyncio.wait([sitting.begin(one) for one in asked])
        poll = Poll(asked, self._read)
        poll.count()
        level = self._level(poll)
        if level is not None:
            names = [name for name in self._levels[level] if name in sitting.members]
            if len(names) == 1 and not sitting.spent:
                call = sitting.ask(sitting.members[names[0]], Wish("alone"), patient=True)
                async for piece in streamed(sitting, call):
                    yield piece
                if call.released:
                    return
            more = samples(sitting, names, 1, "vote") if len(names) > 1 else []
            if more:
                votes = await elect(sitting, more, self._read)
                if any(one.complete for one in more):
                    asked, poll = more, votes
        # Where whoever was to answer has failed, an answer of the first one is better than none.
        for piece in winner(sitting, asked, poll, 1):
            yield piece

    def _level(self, poll: Poll) -> int | None:
        """Who has to answer instead; None where all samples agree."""
        different = len(poll.groups)
        if different == 1 and poll.voted == self._samples:
            return None
        last = len(self._levels) - 1
        if not different or self._samples == 2:
            return last
        return round(max(0, different - 2) / (self._samples - 2) * last)


def _levels(block: PanelBlock) -> list[list[str]]:
    return [[level] if isinstance(level, str) else list(level) for level in block.given.get("then", ())]


def _models(block: PanelBlock) -> tuple[str, ...]:
    return (block.value, *(name for level in _levels(block) for name in level))


def _make(block: PanelBlock) -> Agree:
    return Agree(block.value, block.given.get("samples", 3), _levels(block), extractor(block))


def _check(block: PanelBlock) -> str | None:
    levels = _levels(block)
    if not levels:
        return "agree needs `then`, such as [medium, [small, medium, large]]"
    if block.given.get("samples", 3) < 2:
        return "samples: one answer cannot disagree; agree needs two at least"
    if any(len(set(level)) < len(level) for level in levels):
        return "then: a list names a model twice"
    return None


def _planned(block: PanelBlock) -> tuple[Planned, ...]:
    longest = max(_levels(block), key=len)
    first = Planned(block.value, "sample", True, block.given.get("samples", 3))
    return (first, *(Planned(name, "vote" if longest[1:] else "alone", False) for name in longest))


KIND: Final = PanelKind(
    name="agree",
    own=WriterParameter(str, "A model that answers several times; where its answers differ, `then` says who answers."),
    parameters={
        "samples": SAMPLES,
        "answers": ANSWERS,
        "then": WriterParameter(
            Levels,
            "Who answers, from a little disagreement to a total one: a model each, or a list of models that vote.",
        ),
    },
    names=("then",),
    models=_models,
    make=_make,
    planned=_planned,
    how=lambda block: f"answered by the model {block.value}, or by others where its answers differ",
    check=_check,
    tools=True,
)
