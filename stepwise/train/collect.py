"""Collects trees: for each question the small model's answer, redone at every step (and at every pair of steps), some
random mixtures, and the large model's answer. What is there already is not written again."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from tqdm import tqdm

from stepwise.train.tree import KEEP, REDO, Question, StepWriter, Tree, TreeStore, Written, verifier
from stepwise.train.walk import follow

_BAR = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]"


@dataclass(frozen=True)
class Plan:
    """How far a tree is grown.

    redos: every choice of up to this many rewritten steps (the small model goes on after each); mixtures: random paths,
    a third each with 30, 50 and 70 % rewritten steps; seed: of their random choice; marks: the large model marks every
    draft, too.
    """

    redos: int = 2
    mixtures: int = 3
    seed: int = 0
    marks: bool = False


def read_questions(path: Path) -> list[Question]:
    """Questions from a JSONL file with `question`, `answer` and perhaps `id` on each line. Raises ValueError."""
    questions = []
    with path.open(encoding="utf-8") as lines:
        for i, line in enumerate(lines):
            try:
                row = json.loads(line)
                questions.append(Question(str(row.get("id", i)), str(row["question"]), str(row["answer"])))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"{path}:{i + 1}: needs an object with question and answer: {error!r}") from error
    if len({q.id for q in questions}) != len(questions):
        raise ValueError(f"{path}: two questions have the same id")
    return questions


async def grow(tree: Tree, writer: StepWriter, plan: Plan) -> None:
    """Writes the parts of one tree that `plan` asks for and that are not there yet."""
    await tree.unstepped(writer)
    await follow(tree, REDO * tree.max_steps, writer)
    whole = await follow(tree, "", writer)
    done = {whole}
    for count in range(1, plan.redos + 1):
        # A redo changes how many steps follow: longer choices start from the paths that the shorter ones found.
        paths = [p for p in sorted(done) if p.count(REDO) == count - 1]
        choices = [path[:at] + REDO for path in paths for at in range(path.rfind(REDO) + 1, len(path))]
        done |= set(await asyncio.gather(*(follow(tree, choice, writer) for choice in choices)))
    rng = random.Random(f"{plan.seed}-{tree.question.id}")
    for i in range(plan.mixtures):
        share = (0.3, 0.5, 0.7)[i % 3]
        path = "".join(rng.choices((KEEP, REDO), (1 - share, share), k=tree.max_steps))
        await follow(tree, path, writer)
    if plan.marks:
        drafted = [path for path, node in tree.nodes.items() if node.draft is not None]
        await asyncio.gather(*(tree.marked(path, writer) for path in drafted))


class _Counted:
    """A writer that shows how many texts it has written."""

    def __init__(self, writer: StepWriter, bar: tqdm[NoReturn]) -> None:
        self._writer = writer
        self._bar = bar
        self._texts = 0
        self._shown = time.monotonic()

    async def small(self, question: Question, prefix: str) -> Written:
        return self._count(await self._writer.small(question, prefix))

    async def large(self, question: Question, prefix: str, *, rest: bool = False) -> Written:
        return self._count(await self._writer.large(question, prefix, rest=rest))

    async def verify(self, question: Question, prefix: str, step: str) -> tuple[float, int]:
        return await verifier(self._writer).verify(question, prefix, step)

    def _count(self, written: Written) -> Written:
        self._texts += 1
        self._bar.set_postfix_str(f"{self._texts} texts written", refresh=False)
        if time.monotonic() - self._shown >= self._bar.mininterval:
            self._shown = time.monotonic()
            self._bar.refresh()
        return written


async def collect(store: TreeStore, trees: Sequence[Tree], writer: StepWriter, plan: Plan, at_once: int) -> None:
    """Grows all trees, `at_once` side by side, and saves after every four times as many.

    The bar counts the texts, too: a tree has dozens of them, so that the first one may take minutes.
    """
    each = 4 * at_once
    with tqdm(total=len(trees), desc="questions", mininterval=2, bar_format=_BAR) as bar:
        counted = _Counted(writer, bar)
        for start in range(0, len(trees), each):
            part = trees[start : start + each]
            places = asyncio.Semaphore(at_once)

            async def one(tree: Tree, places: asyncio.Semaphore = places) -> None:
                async with places:
                    await grow(tree, counted, plan)
                bar.update()

            async with asyncio.TaskGroup() as group:
                for tree in part:
                    group.create_task(one(tree))
            store.save(part)
