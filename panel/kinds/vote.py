"""`vote`: all members answer at the same time, and an answer of the majority is released.

After self-consistency (Wang et al., arXiv 2203.11171): votes are counted over the final answers, weighted by the
members' qualities where their cards say them. As soon as no vote that is still out could change the result, the others
are cancelled.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Final

from panel.extract import Answer, groups
from panel.kinds.drafts import ANSWERS, QUORUM, SAMPLES, Members, ended, extractor, released, samples, tools
from panel.sitting import MemberCall, Sitting
from panel.strategy import PanelBlock, PanelKind
from upstream.apis.shape import Spoken
from upstream.writer import Planned, WriterParameter


class Poll:
    """Votes over the answers of `asked`, as far as they have come."""

    def __init__(self, asked: Sequence[MemberCall], read: Callable[[str], Answer | None]) -> None:
        self._asked = asked
        self._read = read
        self._answers: list[Answer | None] = [None] * len(asked)
        self._open = set(range(len(asked)))

    def count(self) -> None:
        """Takes the answers that have come since."""
        for place in sorted(self._open):
            asked = self._asked[place]
            if asked.over:
                self._open.discard(place)
                if asked.complete:
                    self._answers[place] = tools(asked) or self._read(asked.text)

    @property
    def groups(self) -> list[tuple[float, list[int]]]:
        """The answers so far, the heaviest first; among equals the one that a member named earlier has given."""
        weighed = [(sum(self._weight(place) for place in group), group) for group in groups(self._answers)]
        return sorted(weighed, key=lambda one: (-one[0], one[1][0]))

    @property
    def voted(self) -> int:
        """How many have an answer."""
        return sum(answer is not None for answer in self._answers)

    @property
    def decided(self) -> bool:
        """Whether the votes that are out cannot change who wins."""
        ranked = self.groups
        out = sum(self._weight(place) for place in self._open)
        if not self._open or not ranked:
            return not self._open
        second = ranked[1][0] if len(ranked) > 1 else 0.0
        return ranked[0][0] > second + out

    def _weight(self, place: int) -> float:
        return self._asked[place].member.quality


async def elect(sitting: Sitting, asked: Sequence[MemberCall], read: Callable[[str], Answer | None]) -> Poll:
    """Reads these calls until the vote over them is decided; cancels the others."""
    poll = Poll(asked, read)
    open_ = {sitting.begin(one) for one in asked}
    while open_ and not poll.decided:
        _, open_ = await asyncio.wait(open_, return_when=asyncio.FIRST_COMPLETED)
        poll.count()
    for task in open_:
        task.cancel()
    for one in asked:
        one.close()
    return poll


class Vote:
    def __init__(self, members: Sequence[str], samples: int, quorum: int, read: Callable[[str], Answer | None]) -> None:
        self._members = members
        self._samples = samples
        self._quorum = quorum
        self._read = read

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        asked = samples(sitting, self._members, self._samples, "vote")
        poll = await elect(sitting, asked, self._read)
        for piece in winner(sitting, asked, poll, self._quorum):
            yield piece


def winner(sitting: Sitting, asked: Sequence[MemberCall], poll: Poll, quorum: int) -> list[Spoken]:
    """The first of the answers that won. Raises NoAnswer where too few have answered."""
    whole = ended(sitting, asked, quorum)
    ranked = poll.groups
    return released(sitting, asked[ranked[0][1][0]] if ranked else whole[0])


def _make(block: PanelBlock) -> Vote:
    given = block.given
    return Vote(block.value, given.get("samples", 1), given.get("quorum", 1), extractor(block))


def _check(block: PanelBlock) -> str | None:
    if len(set(block.value)) < len(block.value):
        return "vote names a model twice: write `samples` for several answers of each"
    total = len(block.value) * block.given.get("samples", 1)
    if total < 2:
        return "vote needs several members, or samples"
    if block.given.get("quorum", 1) > total:
        return f"quorum: only {total} answers are asked for"
    return None


KIND: Final = PanelKind(
    name="vote",
    own=WriterParameter(Members, "Models that answer at the same time; an answer of the majority is released."),
    parameters={"samples": SAMPLES, "answers": ANSWERS, "quorum": QUORUM},
    models=lambda block: tuple(block.value),
    make=_make,
    planned=lambda block: tuple(Planned(name, "vote", True, block.given.get("samples", 1)) for name in block.value),
    how=lambda block: f"answered by a vote of the models {', '.join(block.value)}",
    check=_check,
    tools=True,
)
