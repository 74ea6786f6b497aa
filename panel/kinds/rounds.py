"""`rounds`: a planner asks members questions of its own, round by round, and writes the answer, streamed.

After Router-R1 (Zhang, Feng, You, arXiv 2506.09033), where the model that reasons also asks others and takes in what
they say. There it is trained to; here a prompt says how. An answer begins with its first word that asks nobody, so it
takes no call of its own.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Sequence
from typing import Annotated, Final

from pydantic import Field

from panel.kinds.drafts import Members, led, streamed
from panel.sitting import Member, MemberCall, Sitting, Wish
from panel.strategy import PanelBlock, PanelKind
from upstream.apis.shape import Spoken
from upstream.client import DeadlineError, UpstreamError
from upstream.endpoint import JSON
from upstream.writer import Planned, WriterParameter

ASK: Final = "ASK "
"""How a line begins that asks a member; whatever else a planner begins with is the answer."""
PROMPT: Final = (
    "You answer the conversation that follows. Before that you may ask these assistants:\n\n{cards}\n\n"
    "To ask, reply with nothing but lines like this one, at most one for each assistant:\n\n"
    "ASK name: question\n\n"
    "An assistant sees nothing but its question, so put all into it that it needs. You will be shown what they say, "
    "and may ask again, {rounds} times in all. As soon as you need no help, reply with the answer itself. What an "
    "assistant says may be wrong: check it. Do not mention the assistants."
)
AGAIN: Final = "Ask again, or reply with the answer."
LAST: Final = "You cannot ask any more. Reply with the answer."
NOBODY: Final = "No line asked an assistant of the list."
ROUNDS: Final = 3


class Rounds:
    def __init__(self, members: Sequence[str], planner: str, rounds: int) -> None:
        self._members = members
        self._planner = planner
        self._rounds = rounds
        names = "|".join(re.escape(name) for name in sorted(members, key=len, reverse=True))
        self._line = re.compile(rf"^{ASK}*({names}): *", re.MULTILINE)

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        members = {name: sitting.members[name] for name in self._members if name in sitting.members}
        planner = sitting.members.get(self._planner)
        talk = led(sitting.question, prompt(members, self._rounds))
        fixed = {"temperature": 0} if sitting.question.get("temperature") is None else {}
        for left in range(self._rounds, -1, -1):
            if planner is None or sitting.spent:
                break
            call = sitting.ask(planner, Wish("plan", talk, {**fixed}))
            asks = await _asks(call)
            if asks is False:
                async for piece in streamed(sitting, call):
                    yield piece
                if call.released:
                    return
            if not asks or not left:
                call.close()
                break
            await sitting.begin(call)
            told = await self._told(sitting, members, call.text)
            talk = [
                *talk,
                {"role": "assistant", "content": call.text.strip()},
                {"role": "user", "content": f"{told}\n\n{AGAIN if left > 1 else LAST}"},
            ]
        # Nobody plans, or asks without an end: the best member that is there answers by itself.
        for member in sorted(members.values(), key=lambda one: -one.quality):
            if not sitting.spent:
                call = sitting.ask(member, Wish("alone"), patient=True)
                async for piece in streamed(sitting, call):
                    yield piece
                if call.released:
                    return
        raise sitting.give_up()

    async def _told(self, sitting: Sitting, members: dict[str, Member], text: str) -> str:
        """What the members say to the questions in a planner's `text`, for the planner."""
        _, *parts = self._line.split(text)
        asked: dict[str, tuple[str, MemberCall]] = {}
        for name, question in zip(parts[::2], map(str.strip, parts[1::2]), strict=True):
            if question and name in members and name not in asked and not sitting.spent:
                asked[name] = question, sitting.ask(members[name], _wish(sitting.question, question))
        if not asked:
            return NOBODY
        await asyncio.wait([sitting.begin(call) for _, call in asked.values()])
        return "\n\n".join(
            f"{name} was asked: {question}\n\n{name} says:\n\n{call.text.strip() if said else '(nothing)'}"
            for name, (question, call) in asked.items()
            for said in (call.complete or call.cut,)
        )


async def _asks(call: MemberCall) -> bool | None:
    """Reads a planner's reply until it is known whether it asks or answers; None where it has failed before that."""
    start = ""
    try:
        while len(start) < len(ASK) and ASK.startswith(start):
            piece = await call.next()
            if piece is None:
                break
            start = (start + piece.text).lstrip()[: len(ASK)]
    except (UpstreamError, DeadlineError):
        return None
    return start == ASK


def _wish(question: JSON, asked: str) -> Wish:
    """A member's question: of the client's parameters hold those about chance and length."""
    more: JSON = {key: question[key] for key in ("seed", "max_tokens", "max_completion_tokens") if key in question}
    more["temperature"] = question.get("temperature") or 0
    return Wish("ask", [{"role": "user", "content": asked}], more, bare=True)


def prompt(members: dict[str, Member], rounds: int) -> str:
    """What a planner is told: whom it may ask, and how."""
    return PROMPT.format(cards="\n".join(f"- {card(name, member)}" for name, member in members.items()), rounds=rounds)


def card(name: str, member: Member) -> str:
    """One line about a member for whoever chooses among several."""
    end = member.upstream.endpoint
    about = [member.about] if member.about else []
    price = [f"price {end.price_input:g} in, {end.price_output:g} out"] if end.price_input or end.price_output else []
    return f"{name}: {'; '.join([*about, f'quality {member.quality:g} of 1', *price])}"


def _make(block: PanelBlock) -> Rounds:
    return Rounds(block.value, block.given["planner"], block.given.get("max", ROUNDS))


def _check(block: PanelBlock) -> str | None:
    if "planner" not in block.given:
        return "rounds needs a `planner`: the model that asks the members and writes the answer"
    if len(set(block.value)) < len(block.value):
        return "rounds names a model twice"
    return None


def _planned(block: PanelBlock) -> tuple[Planned, ...]:
    rounds = block.given.get("max", ROUNDS)
    members = (Planned(name, "ask", False, rounds) for name in block.value)
    return (Planned(block.given["planner"], "plan", True, rounds + 1), *members)


KIND: Final = PanelKind(
    name="rounds",
    own=WriterParameter(Members, "Models that `planner` asks round by round, until it writes the answer."),
    parameters={
        "planner": WriterParameter(
            str, "`rounds`: the model that asks the members and writes the answer. `plan`: the one that chooses a way."
        ),
        "max": WriterParameter(Annotated[int, Field(ge=1, le=8)], "`rounds`: rounds of questions at most (3)."),
    },
    names=("planner",),
    models=lambda block: (*block.value, block.given.get("planner", block.value[0])),
    make=_make,
    planned=_planned,
    how=lambda block: f"written by the model {block.given['planner']}, which may ask {', '.join(block.value)}",
    check=_check,
)
