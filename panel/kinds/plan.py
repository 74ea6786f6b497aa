"""`plan`: a planner chooses among ways to answer, and how sure it is decides how many of them are taken.

After PRISM (Qi et al., arXiv 2509.24377): one way where the planner is sure, two that check each other where it is torn
between them, all of them where it does not know. There a trained adapter gives the probabilities of the ways; here they
are those that the planner gives to the letters by which it is asked to name one.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, Field

from panel.extract import Answer
from panel.kinds.drafts import ANSWERS, extractor, led, released, streamed
from panel.kinds.rounds import KIND as ROUNDS
from panel.kinds.rounds import card
from panel.kinds.vote import Poll, elect, winner
from panel.sitting import MemberCall, Sitting, Wish
from panel.strategy import PanelBlock, PanelKind
from upstream.apis.shape import Spoken
from upstream.endpoint import JSON
from upstream.writer import Planned, WriterParameter

PROMPT: Final = (
    "Do not answer yet. These are ways to answer the conversation above:\n\n{ways}\n\n"
    "Which one suits it best? Reply with its letter alone."
)
LETTERS: Final = "ABCDEFGHIJ"
SURE: Final = 0.7
_TOKENS: Final = 8  # of the planner's answer


class WaySpec(BaseModel):
    """One way to answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    model: str
    """The model that answers."""
    prompt: Annotated[str, Field(min_length=1, max_length=10_000)] | None = None
    """How it is to answer: a system message, after the client's own."""
    about: Annotated[str, Field(max_length=1_000)] = ""
    """What this way is good for, for the planner."""


class Ways:
    def __init__(
        self, ways: Mapping[str, WaySpec], planner: str, sure: float, read: Callable[[str], Answer | None]
    ) -> None:
        self._ways = ways
        self._planner = planner
        self._sure = sure
        self._read = read

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        ways, count = await self._chosen(sitting)
        if count == 1 and not sitting.spent:
            call = _call(sitting, ways.pop(0), "alone", patient=True)
            async for piece in streamed(sitting, call):
                yield piece
            if call.released:
                return
        asked: list[MemberCall] = []
        if count == 2:
            asked += _calls(sitting, ways[:2], "check")
            if asked:
                await asyncio.wait([sitting.begin(one) for one in asked])
            poll = Poll(asked, self._read)
            poll.count()
            if poll.voted == 2 and len(poll.groups) == 1:
                for piece in released(sitting, asked[0]):
                    yield piece
                return
            ways = ways[2:]
        asked += _calls(sitting, ways, "vote")
        for piece in winner(sitting, asked, await elect(sitting, asked, self._read), 1):
            yield piece

    async def _chosen(self, sitting: Sitting) -> tuple[list[WaySpec], int]:
        """The ways whose models may see the request, the likeliest first, and how many of them are to be taken."""
        members = sitting.members
        open_ = {name: way for name, way in self._ways.items() if way.model in members}
        if len(open_) < 2:
            return [*open_.values()], len(open_)
        shares = [0.0] * len(open_)
        planner = members.get(self._planner)
        if planner is not None and not sitting.spent:
            shown = "\n".join(
                f"{letter}: {name}{f' ({way.about})' if way.about else ''}, by {card(way.model, members[way.model])}"
                for letter, (name, way) in zip(LETTERS, open_.items(), strict=False)
            )
            question = {"role": "user", "content": PROMPT.format(ways=shown)}
            wish = Wish("plan", [*sitting.question["messages"], question], bare=True, sure=True)
            wish.more |= {"temperature": 0, "max_tokens": _TOKENS}
            call = sitting.ask(planner, wish)
            await sitting.begin(call)
            shares = letters([entry for piece in call.said for entry in piece.entries], len(open_))
            if call.error is None and not call.surety.tokens:
                sitting.room.metrics.unjudged["no_logprobs"] += 1
        ranked = sorted(zip(shares, open_.values(), strict=True), key=lambda one: -one[0])
        ways = [way for _, way in ranked]
        if ranked[0][0] >= self._sure:
            return ways, 1
        return ways, 2 if ranked[0][0] + ranked[1][0] >= self._sure else len(ways)


def letters(entries: Sequence[Any], count: int) -> list[float]:
    """The probabilities of the first `count` letters at the first token that is one of them; zeros without one.

    `entries` are OpenAI's `logprobs.content`.
    """
    known = LETTERS[:count]
    for entry in entries:
        if (written := str(entry.get("token")).strip()) and written in known:
            found = dict.fromkeys(known, 0.0)
            for top in entry.get("top_logprobs") or [entry]:
                said, logprob = str(top.get("token")).strip(), top.get("logprob")
                if said in found and logprob is not None:
                    found[said] += math.exp(min(0.0, logprob))
            return [*found.values()]
    return [0.0] * count


def _call(sitting: Sitting, way: WaySpec, why: str, patient: bool = False) -> MemberCall:
    messages: list[JSON] | None = None if way.prompt is None else led(sitting.question, way.prompt)
    return sitting.ask(sitting.members[way.model], Wish(why, messages), patient)


def _calls(sitting: Sitting, ways: Sequence[WaySpec], why: str) -> list[MemberCall]:
    made: list[MemberCall] = []
    for way in ways:
        if not sitting.spent:
            made.append(_call(sitting, way, why))
    return made


def _make(block: PanelBlock) -> Ways:
    return Ways(block.value, block.given["planner"], block.given.get("sure", SURE), extractor(block))


def _check(block: PanelBlock) -> str | None:
    return None if "planner" in block.given else "plan needs a `planner`: the model that chooses a way"


def _models(block: PanelBlock) -> tuple[str, ...]:
    ways = [way.model for way in block.value.values()]
    return (block.given.get("planner", ways[0]), *ways)


def _planned(block: PanelBlock) -> tuple[Planned, ...]:
    ways = (Planned(way.model, "vote", False) for way in block.value.values())
    return (Planned(block.given["planner"], "plan", True), *ways)


def _how(block: PanelBlock) -> str:
    return (
        f"answered in one of the ways {', '.join(block.value)}, or several, as the model {block.given['planner']} plans"
    )


KIND: Final = PanelKind(
    name="plan",
    own=WriterParameter(
        Annotated[dict[str, WaySpec], Field(min_length=2, max_length=len(LETTERS))],
        "Ways to answer, by name, among which `planner` chooses: one where it is sure, two where it is torn, or all.",
    ),
    parameters={
        "planner": ROUNDS.parameters["planner"],
        "answers": ANSWERS,
        "sure": WriterParameter(
            Annotated[float, Field(gt=0, le=1)],
            "`plan`: one way is taken from this probability on, two where theirs together reach it (0.7).",
        ),
    },
    names=("planner",),
    models=_models,
    make=_make,
    planned=_planned,
    how=_how,
    check=_check,
    tools=True,
)
