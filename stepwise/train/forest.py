"""Trees as arrays, so that a policy can be tried on thousands of answers at once without a model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from stepwise.features import WIDTH
from stepwise.train.tree import KEEP, REDO, Tree
from stepwise.train.walk import Price

UNKNOWN, RIGHT, WRONG = -1, -2, -3
"""In place of a child's number: nobody wrote that step; the answer ends there, right or wrong."""


@dataclass(frozen=True)
class Forest:
    """All nodes of all questions.

    vectors: float32 [nodes, WIDTH]; child: int64 [nodes, actions], column 0 for keep, 1 for redo and 2, if there, for
    ask: a node's number or UNKNOWN, RIGHT, WRONG; cost: float32 [nodes, actions] of each choice, the mean cost of a
    large model's answer being 1; roots: int64 [questions]; large_right: bool [questions], the large model alone (step
    by step) is right; avoidable: bool [questions], some path is right; large_cost: float32 [questions]; marks: float32
    [nodes], the large model's, NaN where it gave none; asked: float32 [nodes, 2], what asking costs beside the step
    that is kept, or redone; mark: where there is the third action, a draft is kept after it from this mark on.
    """

    vectors: NDArray[np.float32]
    child: NDArray[np.int64]
    cost: NDArray[np.float32]
    roots: NDArray[np.int64]
    large_right: NDArray[np.bool_]
    avoidable: NDArray[np.bool_]
    large_cost: NDArray[np.float32]
    marks: NDArray[np.float32]
    asked: NDArray[np.float32]
    mark: float | None = None

    def values(self) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """(bool [nodes, 2], bool [nodes, 2]): is some answer below this choice right; is the answer right when the
        small model writes everything after it. An unknown choice counts as the other one."""
        reach = np.zeros((len(self.child), 2), np.bool_)
        small = np.zeros((len(self.child), 2), np.bool_)
        for i in range(len(self.child) - 1, -1, -1):  # children have higher numbers than their parents
            for a in (0, 1):
                to = self.child[i, a]
                reach[i, a] = to == RIGHT or (to >= 0 and reach[to].any())
                small[i, a] = to == RIGHT or (to >= 0 and small[to, 0])
            if self.child[i, 1] == UNKNOWN:
                reach[i, 1], small[i, 1] = reach[i, 0], small[i, 0]
        return reach, small

    def part(self, questions: NDArray[np.int64]) -> Forest:
        """The same nodes, only these questions."""
        return replace(
            self,
            roots=self.roots[questions],
            large_right=self.large_right[questions],
            avoidable=self.avoidable[questions],
            large_cost=self.large_cost[questions],
        )

    def asking(self, mark: float) -> Forest:
        """The same with a third action: the draft is kept if the large model's mark is at least `mark`, else redone."""
        then = np.where(self.marks >= mark, 0, 1)[:, None]
        child = np.take_along_axis(self.child, then, axis=1)
        cost = np.take_along_axis(self.cost, then, axis=1) + np.take_along_axis(self.asked, then, axis=1)
        child[np.isnan(self.marks)] = UNKNOWN
        child, cost = np.hstack([self.child[:, :2], child]), np.hstack([self.cost[:, :2], cost])
        return replace(self, child=child, cost=cost, mark=mark)


def plant(trees: Sequence[Tree], price: Price) -> Forest:
    """The arrays of `trees`. Raises ValueError for a tree without the large model's answer."""
    vectors: list[NDArray[np.float32]] = []
    child: list[list[int]] = []
    cost: list[list[float]] = []
    marks: list[float] = []
    asked: list[list[float]] = []
    roots: list[int] = []
    large_right, large_cost, avoidable = [], [], []
    for tree in trees:
        numbers: dict[str, int] = {}
        start = len(vectors)
        for path, node in sorted(tree.nodes.items(), key=lambda item: len(item[0])):
            if node.draft is None or node.vector is None:
                continue
            numbers[path] = len(vectors)
            vectors.append(node.vector)
            redo = price.small * node.draft.size + price.large * node.redo.size if node.redo else 0.0
            cost.append([price.small * node.draft.size, redo])
            child.append([UNKNOWN, UNKNOWN])
            marks.append(node.mark.score if node.mark else math.nan)
            ask = price.large + price.read * node.mark.read if node.mark else 0.0
            asked.append([ask, ask + price.small * tree.ahead(path)])
        for path, i in numbers.items():
            node = tree.nodes[path]
            for column, piece in enumerate((node.draft, node.redo)):
                if piece is None:
                    continue
                if piece.last:
                    child[i][column] = RIGHT if piece.right else WRONG
                else:
                    child[i][column] = numbers.get(path + (KEEP, REDO)[column], UNKNOWN)
        if any(child[i][0] == UNKNOWN for i in numbers.values()):
            raise ValueError(f"question {tree.question.id}: a draft's next step is missing; collect it again")
        path, spent = "", 0.0
        while True:
            redo_piece = tree.nodes[path].redo if path in tree.nodes else None
            if redo_piece is None:
                raise ValueError(f"question {tree.question.id}: the large model's steps are missing; collect again")
            spent += price.large * redo_piece.size
            if redo_piece.last:
                break
            path += REDO
        roots.append(numbers[""])
        large_right.append(bool(redo_piece.right))
        large_cost.append(spent)
        avoidable.append(any(RIGHT in row for row in child[start:]))
    scale = float(np.mean(large_cost))
    return Forest(
        np.array(vectors, np.float32).reshape(-1, WIDTH),
        np.array(child, np.int64),
        (np.array(cost) / scale).astype(np.float32),
        np.array(roots, np.int64),
        np.array(large_right),
        np.array(avoidable),
        (np.array(large_cost) / scale).astype(np.float32),
        np.array(marks, np.float32),
        (np.array(asked) / scale).astype(np.float32),
    )


@dataclass(frozen=True)
class Runs:
    """Answers of a policy, one row per question, padded to the longest.

    node: int64 [runs, time] (-1 after the end); action: int64 [runs, time], a column of `Forest.child`; chance: float32
    [runs, time], with which the acting policy took that action; cost: float32 [runs, time]; right: bool [runs];
    question: int64 [runs].
    """

    node: NDArray[np.int64]
    action: NDArray[np.int64]
    chance: NDArray[np.float32]
    cost: NDArray[np.float32]
    right: NDArray[np.bool_]
    question: NDArray[np.int64]


def simulate(
    forest: Forest, chances: NDArray[np.float32], questions: NDArray[np.int64], rng: np.random.Generator | None
) -> Runs:
    """Follows a policy down the trees.

    chances: float32 [nodes, actions], the probability of each action at each node; `rng` draws the actions, None takes
    the likeliest one. Where an action was never tried, the draft is kept instead.
    """
    chances = np.where(forest.child == UNKNOWN, 0.0, chances)
    chances[:, 0] = 1 - chances[:, 1:].sum(axis=1)
    most = np.cumsum(chances[:, :0:-1], axis=1)[:, ::-1]  # column a - 1: of action a, or a later one
    at = forest.roots[questions].copy()
    right = np.zeros(len(at), np.bool_)
    columns: list[tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = []
    while (alive := at >= 0).any():
        here = np.where(alive, at, 0)
        if rng is None:
            action = chances[here].argmax(axis=1)
        else:  # a number under `most` of action 1 is some action, one under that of action 2 is that one, ...
            action = (rng.random(len(at))[:, None] < most[here]).sum(axis=1)
        chance = chances[here, action].astype(np.float32)
        cost = np.where(alive, forest.cost[here, action], 0.0).astype(np.float32)
        columns.append((np.where(alive, at, -1), np.where(alive, action, 0), np.where(alive, chance, 1.0), cost))
        to = forest.child[here, action]
        right |= alive & (to == RIGHT)
        at = np.where(alive, to, at)
    nodes, actions, chances, costs = (np.stack(list(c), axis=1) for c in zip(*columns, strict=True))
    return Runs(nodes, actions, chances.astype(np.float32), costs, right, questions)
