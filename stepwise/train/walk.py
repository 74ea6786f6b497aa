"""Answers a question from its tree the way the serving loop would (`stepwise.loop.session`), with any strategy."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import NamedTuple

from stepwise.steps import Step
from stepwise.strategy import AnswerContext, Draft, NoJudgement, Strategy, Turn
from stepwise.train.tree import KEEP, REDO, StepWriter, Tree
from upstream.tokens import Token


class Price(NamedTuple):
    """What a token costs: written by the small model, written by the large one, read by the large one for a mark."""

    small: float
    large: float
    read: float

    def of(self, outcome: Episode) -> float:
        return self.small * outcome.small_tokens + self.large * outcome.large_tokens + self.read * outcome.read_tokens


@dataclass(slots=True)
class Episode:
    """One answer. right; tokens written by each model (rejected drafts, and the one of each mark, included), tokens the
    large model read for marks; redos; steps; path: who wrote each step."""

    right: bool = False
    small_tokens: int = 0
    large_tokens: int = 0
    read_tokens: int = 0
    redos: int = 0
    steps: int = 0
    path: str = ""


async def walk(tree: Tree, strategy: Strategy, writer: StepWriter | None, *, max_redos: int) -> Episode:
    """The answer that `strategy` gives. Steps that nobody has written yet are asked of `writer`."""
    outcome = Episode()

    async def verify(step: Step) -> float:
        score, read = await tree.marked(outcome.path, writer)
        outcome.read_tokens += read
        outcome.large_tokens += 1
        return score

    run = strategy.begin(AnswerContext(zlib.crc32(tree.question.id.encode()), verify, marks=True))
    settled: Turn | None = None
    try:
        while True:
            path = outcome.path
            turn = settled
            drafted = 0
            if turn is None:
                state = tree.nodes[path].state if path in tree.nodes else (await tree.drafted(path, writer)).state
                turn = run.turn(state)
                if turn in (Turn.SMALL_REST, Turn.LARGE_REST):
                    settled = turn
            if turn is Turn.DRAFT:
                node = await tree.drafted(path, writer)
                assert node.draft is not None
                assert node.vector is not None
                drafted = node.draft.size
                if not run.glance(Token("", node.top[0] if node.top else None, node.top), node.state):
                    keep, drafted = False, 1
                else:
                    step = node.draft.step()
                    try:
                        verdict = await run.judge(Draft(step, node.vector, node.state))
                        keep = verdict.keep if verdict.ask is None else await verify(step) >= verdict.ask
                    except NoJudgement:
                        keep = False
                    else:
                        if verdict.ask is not None and not keep:
                            drafted += tree.ahead(path)
            else:
                keep = turn is Turn.SMALL_REST
                node = await tree.drafted(path, writer)  # the features of what follows need the draft in any case
            if keep:
                piece = node.draft
                outcome.small_tokens += piece.size if piece else 0
            else:
                piece = (await tree.redone(path, writer)).redo
                assert piece is not None
                outcome.small_tokens += drafted
                outcome.large_tokens += piece.size
                if turn is Turn.DRAFT:
                    outcome.redos += 1
                    if outcome.redos > max_redos:
                        settled = Turn.LARGE_REST
            assert piece is not None
            outcome.steps += 1
            outcome.path += KEEP if keep else REDO
            if piece.last:
                outcome.right = bool(piece.right)
                return outcome
    finally:
        run.close()


async def follow(tree: Tree, choices: str, writer: StepWriter | None) -> str:
    """Writes the nodes along `choices` (K and R; the small model goes on after them) and returns the whole path."""
    path = ""
    while True:
        letter = choices[len(path)] if len(path) < len(choices) else KEEP
        node = await tree.drafted(path, writer)
        piece = node.draft if letter == KEEP else (await tree.redone(path, writer)).redo
        assert piece is not None
        path += letter
        if piece.last:
            return path
