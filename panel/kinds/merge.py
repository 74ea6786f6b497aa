"""`merge`: the members draft at the same time, and one model writes the answer from their drafts, streamed.

After "Mixture-of-Agents" (Wang et al., arXiv 2406.04692), whose aggregator is told to weigh the drafts and not to copy
them. The drafts are always in the order of the members, and nothing names their writers; without a temperature in the
call the writer gets 0, so that the same drafts give the same answer.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Final, Literal

from panel.kinds.drafts import QUORUM, Members, drafts, led, released, streamed
from panel.sitting import MemberCall, Sitting, Wish
from panel.strategy import PanelBlock, PanelKind
from upstream.apis.shape import Spoken
from upstream.endpoint import JSON
from upstream.writer import Planned, WriterParameter

Style = Literal["synthesis", "refine"]
PROMPTS: Final[dict[str, str]] = {
    "synthesis": (
        "Several assistants have each drafted an answer to the conversation that follows; the drafts stand at its end. "
        "Write one answer of your own from them. Some drafts may be wrong or biased: check them against each other and "
        "against what you know, keep what is right, and leave out what is not. Do not mention the drafts."
    ),
    "refine": (
        "Several assistants have each drafted an answer to the conversation that follows; the drafts stand at its end. "
        "Take the best draft, correct its mistakes, and fill its gaps from the others. Otherwise leave it as it is. Do "
        "not mention the drafts."
    ),
}


class Merge:
    def __init__(self, members: Sequence[str], writer: str, prompt: str, quorum: int) -> None:
        self._members = members
        self._writer = writer
        self._prompt = prompt
        self._quorum = quorum

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        whole = await drafts(sitting, self._members, self._quorum)
        writer = sitting.members.get(self._writer)
        if writer is not None and not sitting.spent:
            wish = Wish("write", messages(sitting.question, self._prompt, whole))
            if sitting.question.get("temperature") is None:
                wish.more["temperature"] = 0
            call = sitting.ask(writer, wish, patient=True)
            async for piece in streamed(sitting, call):
                yield piece
            if call.released:
                return
        # Nobody is there to write: the best member's draft, or the earliest one's among equals.
        for piece in released(sitting, max(whole, key=lambda one: one.member.quality)):
            yield piece


def messages(question: JSON, prompt: str, drafts: Sequence[MemberCall]) -> list[JSON]:
    """The conversation for whoever writes: `prompt` before it, the drafts after it."""
    shown = "\n\n".join(f"Draft {number}:\n\n{one.text.strip()}" for number, one in enumerate(drafts, start=1))
    ask = f"These are the drafts.\n\n{shown}\n\nNow write the answer."
    return [*led(question, prompt), {"role": "user", "content": ask}]


def _make(block: PanelBlock) -> Merge:
    given = block.given
    return Merge(block.value, given["writer"], PROMPTS[given.get("style", "synthesis")], given.get("quorum", 1))


def _check(block: PanelBlock) -> str | None:
    if "writer" not in block.given:
        return "merge needs a `writer`: the model that writes the answer from the drafts"
    if len(set(block.value)) < len(block.value):
        return "merge names a model twice"
    if block.given.get("quorum", 1) > len(block.value):
        return f"quorum: only {len(block.value)} drafts are asked for"
    return None


def _planned(block: PanelBlock) -> tuple[Planned, ...]:
    return (*(Planned(name, "draft", True) for name in block.value), Planned(block.given["writer"], "write", True))


KIND: Final = PanelKind(
    name="merge",
    own=WriterParameter(Members, "Models that draft at the same time; `writer` writes the answer from the drafts."),
    parameters={
        "writer": WriterParameter(str, "`merge`: the model that writes the answer."),
        "style": WriterParameter(
            Style, "`merge`: whether the writer makes a `synthesis` of the drafts or refines the best one (`refine`)."
        ),
        "quorum": QUORUM,
    },
    names=("writer",),
    models=lambda block: (*block.value, block.given.get("writer", block.value[0])),
    make=_make,
    planned=_planned,
    how=lambda block: f"written by the model {block.given['writer']} from drafts of {', '.join(block.value)}",
    check=_check,
)
