"""`rank`: the members answer at the same time, judges compare the answers two by two, and the strongest is released.

After Fortytwo (arXiv 2510.24801): comparisons of pairs beat marks, and a Bradley–Terry model makes strengths of them.
Each pair is shown in both orders, since judges prefer a place (Zheng et al., arXiv 2306.05685). A judge that changes
its mind with the order has said nothing. How often it does so is remembered, and its other comparisons count the less.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, Callable, Sequence
from itertools import permutations
from typing import Final, NamedTuple

from panel.extract import Answer, groups
from panel.kinds.drafts import ANSWERS, QUORUM, Members, drafts, extractor, released, tools
from panel.sitting import MemberCall, Sitting, Wish
from panel.strategy import PanelBlock, PanelKind
from signals.reading import Unavailable
from signals.state.store import Store
from upstream.apis.shape import Spoken
from upstream.endpoint import JSON
from upstream.writer import Planned, WriterParameter

PROMPT: Final = (
    "Two assistants have each answered the conversation above. Compare the answers: which one is right, or, where both "
    "are, more helpful? Neither their order nor their length counts.\n\nAnswer A:\n\n{first}\n\n"
    "Answer B:\n\n{second}\n\n"
    "Reply with one letter: A or B."
)
REMEMBERED: Final = 30 * 86_400.0
"""Seconds for which a judge's consistency is remembered."""
_WORD: Final = re.compile(r"\b([AB])\b")
_ROUNDS: Final = 100  # of the iteration; it converges in about ten
_TOKENS: Final = 16  # of a judge's answer


class JudgedPair(NamedTuple):
    """A judge's answer about two places of the list: `first` was shown as A."""

    judge: str
    first: int
    second: int
    call: MemberCall

    @property
    def winner(self) -> int | None:
        """The place that it prefers; None where it says neither."""
        found = _WORD.search(self.call.text) if self.call.complete or self.call.finish == "length" else None
        return None if found is None else self.first if found[1] == "A" else self.second


class Rank:
    def __init__(
        self, members: Sequence[str], judges: Sequence[str], quorum: int, read: Callable[[str], Answer | None]
    ) -> None:
        self._members = members
        self._judges = judges
        self._quorum = quorum
        self._read = read

    async def run(self, sitting: Sitting) -> AsyncGenerator[Spoken, None]:
        whole = await drafts(sitting, self._members, self._quorum)
        for piece in released(sitting, await self._strongest(sitting, whole)):
            yield piece

    async def _strongest(self, sitting: Sitting, whole: list[MemberCall]) -> MemberCall:
        """The answer that the judges prefer; of several that say the same, one is judged."""
        found = groups([tools(one) or self._read(one.text) for one in whole])
        said = {place for group in found for place in group}
        found += [[place] for place in range(len(whole)) if place not in said]
        if len(found) == 1:
            return whole[found[0][0]]
        texts = [_shown(whole[group[0]]) for group in found]
        more: JSON = {"temperature": 0, "max_tokens": _TOKENS}
        if sitting.question.get("tools"):  # a judge knows of them, and calls none
            more |= {"tools": sitting.question["tools"], "tool_choice": "none"}
        compared: list[JudgedPair] = []
        for name in self._judges:
            for first, second in permutations(range(len(texts)), 2):
                if name in sitting.members and not sitting.spent:
                    shown = messages(sitting.question, texts[first], texts[second])
                    wish = Wish("judge", shown, more, bare=True)
                    call = sitting.ask(sitting.members[name], wish)
                    compared.append(JudgedPair(name, first, second, call))
        if compared:
            await asyncio.wait([sitting.begin(one.call) for one in compared])
        weights = await reliability(sitting.room.store, self._judges)
        wins = tally(compared, weights, sitting.room.store)
        strengths = bradley_terry(wins, len(texts))
        # Where the judges leave a tie, the answer that a vote would release is the better one.
        votes = [round(sum(whole[place].member.quality for place in group), 6) for group in found]
        best = max(range(len(texts)), key=lambda at: (round(strengths[at], 6), votes[at], -at))
        return whole[found[best][0]]


def messages(question: JSON, first: str, second: str) -> list[JSON]:
    """The conversation for a judge."""
    ask = PROMPT.format(first=first.strip(), second=second.strip())
    return [*question["messages"], {"role": "user", "content": ask}]


async def reliability(store: Store, judges: Sequence[str]) -> dict[str, float]:
    """How much each judge's word counts, 0..1: how often it said the same in both orders so far (Laplace's rule)."""
    found: dict[str, float] = {}
    for judge in judges:
        try:
            same, all_ = await store.number(_key(judge, "same")), await store.number(_key(judge, "all"))
        except Unavailable:
            same, all_ = 0.0, 0.0
        found[judge] = (same + 1.0) / (all_ + 2.0)
    return found


def tally(compared: Sequence[JudgedPair], weights: dict[str, float], store: Store) -> dict[tuple[int, int], float]:
    """The weight of the judges that prefer one place to another, by (winner, loser); `store` learns of them."""
    said = {(one.judge, one.first, one.second): one.winner for one in compared}
    wins: dict[tuple[int, int], float] = {}
    for (judge, first, second), winner in said.items():
        other = said.get((judge, second, first))
        if first > second or winner is None or other is None:
            continue
        store.add(_key(judge, "all"), 1.0, REMEMBERED)
        if winner == other:
            store.add(_key(judge, "same"), 1.0, REMEMBERED)
            loser = second if winner == first else first
            wins[winner, loser] = wins.get((winner, loser), 0.0) + weights[judge]
    return wins


def bradley_terry(wins: dict[tuple[int, int], float], count: int) -> list[float]:
    """Strengths that sum to 1, by Hunter's iteration (Annals of Statistics 32, 2004). Each pair has a tie of a little
    weight besides, so that nobody's strength is 0 or without bound."""
    prior = 0.1
    strengths = [1.0 / count] * count
    for _ in range(_ROUNDS):
        new = []
        for one in range(count):
            won = total = 0.0
            for other in range(count):
                if other == one:
                    continue
                mine, theirs = wins.get((one, other), 0.0) + prior, wins.get((other, one), 0.0) + prior
                won += mine
                total += (mine + theirs) / (strengths[one] + strengths[other])
            new.append(won / total)
        whole = sum(new)
        strengths = [value / whole for value in new]
    return strengths


def _shown(answer: MemberCall) -> str:
    """An answer as judges see it, with the tools that it calls."""
    called = tools(answer)
    return answer.text if called is None else f"{answer.text.strip()}\n\n(calls a tool: {called})".strip()


def _key(judge: str, what: str) -> str:
    return f"panel:judge:{what}:{judge}"


def _judges(block: PanelBlock) -> tuple[str, ...]:
    return tuple(block.given.get("judges", block.value))


def _make(block: PanelBlock) -> Rank:
    return Rank(block.value, _judges(block), block.given.get("quorum", 1), extractor(block))


def _check(block: PanelBlock) -> str | None:
    if len(set(block.value)) < len(block.value):
        return "rank names a model twice"
    if len(block.value) < 2:
        return "rank needs several members"
    if len(set(_judges(block))) < len(_judges(block)):
        return "judges: a model is named twice"
    if block.given.get("quorum", 1) > len(block.value):
        return f"quorum: only {len(block.value)} answers are asked for"
    return None


def _planned(block: PanelBlock) -> tuple[Planned, ...]:
    count = len(block.value)
    drafts = (Planned(name, "draft", True) for name in block.value)
    return (*drafts, *(Planned(name, "judge", False, count * (count - 1)) for name in _judges(block)))


KIND: Final = PanelKind(
    name="rank",
    own=WriterParameter(Members, "Models that answer at the same time; `judges` compare the answers two by two."),
    parameters={
        "judges": WriterParameter(Members, "`rank`: models that compare answers; the members themselves unless given."),
        "answers": ANSWERS,
        "quorum": QUORUM,
    },
    names=("judges",),
    models=lambda block: (*_judges(block), *block.value),
    make=_make,
    planned=_planned,
    how=lambda block: f"answered by the model of {', '.join(block.value)} whose answer the judges prefer",
    check=_check,
    tools=True,
)
