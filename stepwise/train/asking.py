"""When asking pays: the mark from which an asked draft is kept, and the pairs of thresholds that are worth calibrating.

The pairs are taken from the edge of cost and accuracy on the policy set and are then tested one after the other on the
calibration set, as in Pareto testing (Laufer-Goldshtein et al., arXiv 2210.07913).
"""

from __future__ import annotations

from itertools import combinations_with_replacement
from pathlib import Path

import numpy as np
from tqdm import tqdm

from stepwise.policy import KappaPair
from stepwise.train.evaluate import Exam, Point, Scored, scorer
from stepwise.train.forest import UNKNOWN, Forest
from stepwise.train.tree import Node

NOTHING = 1.01
"""Above every probability: from this threshold on nothing is kept."""


def mark_from(forest: Forest, worth: float) -> float | None:
    """The mark from which a draft that was asked about should be kept; None where the large model has given no marks.

    worth: of a right answer, in answers of the large model. Kept drafts cost that where only a redo would have led to a
    right answer, rejected ones cost the redo; all drafts of which both branches are known count alike.
    """
    known = np.flatnonzero((forest.child[:, 1] != UNKNOWN) & ~np.isnan(forest.marks))
    if not len(known):
        return None
    reach, _ = forest.values()
    known = known[np.argsort(forest.marks[known])]
    marks = forest.marks[known]
    missed = worth * (reach[known, 1] & ~reach[known, 0])
    spent = forest.cost[known, 1] - forest.cost[known, 0] + forest.asked[known, 1] - forest.asked[known, 0]
    # The loss when the first i are rejected and the others kept.
    loss = np.concatenate([[0.0], np.cumsum(spent)]) + np.concatenate([np.cumsum(missed[::-1])[::-1], [0.0]])
    i = int(loss.argmin())
    return float(marks[i]) if i < len(marks) else float(np.nextafter(marks[-1], np.float32(2), dtype=np.float32))


async def ladder(exam: Exam, path: Path, points: int) -> list[KappaPair]:
    """At most `points` pairs of thresholds, each with its mark, for the network in the policy file `path`: the cheapest
    for the accuracy that they reach when the questions of `exam` are answered with them, the safest first, with as
    equal distances in cost as there are.

    Before the most accurate one come those that ask about still more, which may be safer though so few questions do not
    show it, and before these one that keeps nothing. Answers are written step by step, since trees do not hold what
    follows several rewritten steps. Most of a setting's answers begin as its neighbours' do, so that one more setting
    costs little.
    """
    score = scorer(path)

    async def answered(pair: KappaPair) -> Point:
        return await exam.measure(Scored("ladder", score, pair, once=False), pair)

    nodes: list[Node] = []
    for mark in (0.0, NOTHING):  # has every draft marked, between steps of the small model and of the large one
        paths = [outcome.path for outcome in (await answered(KappaPair(0.0, NOTHING, mark))).outcomes]
        both = zip(exam.trees, paths, strict=True)
        nodes += [tree.nodes[path[:end]] for tree, path in both for end in range(len(path))]
    keeps = np.array([1.0 if node.vector is None else score(node.vector) for node in nodes])
    marks = np.array([np.nan if node.mark is None else node.mark.score for node in nodes])
    if np.isnan(marks).all():
        raise ValueError("the large model has marked no draft, so nothing is known of when to ask it")
    # As far apart by their logit, which tells doubts under 1 % from each other, and those over 99 %.
    ends = np.quantile(keeps, [0.01, 0.99]).clip(1e-6, 1 - 1e-6)
    logits = np.linspace(np.log(ends[0] / (1 - ends[0])), np.log(ends[1] / (1 - ends[1])), 24)
    cuts = [0.0, *(1 / (1 + np.exp(-logits))).tolist(), NOTHING]
    doubted = marks[(keeps <= np.quantile(keeps, 0.25)) & ~np.isnan(marks)]
    levels = np.unique(np.quantile(doubted, np.linspace(0, 0.7, 12)[1:-1])).tolist()  # most of them are good, still
    pairs = [
        KappaPair(low, high, mark)
        for low, high in combinations_with_replacement(cuts, 2)
        if low == high or low < cuts[len(cuts) // 2]  # a draft that is likely good is not redone without a look
        for mark in (levels if low < high else levels[:1])
    ]

    async def tried(pair: KappaPair) -> tuple[float, float, KappaPair]:
        point = await answered(pair)
        return float(point.cost.mean()), float(point.right.mean()), pair

    edge: list[tuple[float, float, KappaPair]] = []
    for one in sorted([await tried(pair) for pair in tqdm(pairs, desc="thresholds")], key=lambda t: (t[0], -t[1])):
        if not edge or one[1] > edge[-1][1]:
            edge.append(one)
    best = edge[-1][2]
    more = [await tried(best._replace(high=cut)) for cut in cuts if cut > best.high]
    edge += sorted(one for one in more if one[0] > edge[-1][0])
    costs = np.array([cost for cost, _, _ in edge])
    rungs = np.searchsorted(costs, np.linspace(costs[0], costs[-1], points - 1), side="right") - 1
    nothing = KappaPair(NOTHING, NOTHING, best.mark)
    return [nothing, *(edge[i][2] for i in np.unique(rungs)[::-1] if edge[i][2] != nothing)]
