"""When asking pays: the mark from which an asked draft is kept, and the pairs of thresholds that are worth calibrating.

The pairs are taken from the edge of cost and accuracy on the policy set and are then tested one after the other on the
calibration set, as in Pareto testing (Laufer-Goldshtein et al., arXiv 2210.07913).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from stepwise.policy import KappaPair
from stepwise.train.forest import UNKNOWN, Forest
from stepwise.train.problem import curve

_WORTH = (1.0, 3.0, 10.0)  # what an error may cost, in large answers, for marks to be tried in the ladder


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


def ladder(forest: Forest, redo: NDArray[np.float32], points: int) -> list[KappaPair]:
    """At most `points` pairs of thresholds, each with its mark: the cheapest for the accuracy that they reach on
    `forest`. The safest come first, and of these one that keeps nothing.

    redo: float32 [nodes], 1 - P(keep).
    """
    marks = {mark for worth in _WORTH if (mark := mark_from(forest, worth)) is not None}
    tried = [
        (found.cost, found.right, KappaPair(*found.kappa, mark))
        for mark in sorted(marks)
        for found in curve(forest.asking(mark), redo)
        if isinstance(found.kappa, tuple)
    ]
    edge: list[KappaPair] = []
    best = -1.0
    for _, right, asking in sorted(tried, key=lambda row: (row[0], -row[1])):
        if right > best:
            best = right
            edge.append(asking)
    steps = np.unique(np.linspace(0, len(edge) - 1, points - 1).round().astype(int))
    nothing = KappaPair(1.01, 1.01, edge[-1].mark)
    return [nothing, *(edge[i] for i in steps[::-1] if edge[i] != nothing)]
