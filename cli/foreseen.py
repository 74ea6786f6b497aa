"""What answers would have been worth, and what they would have cost, had another policy chosen the models.

Each line of a log says with which propensity its model was chosen. The estimate is doubly robust (Dudík, Langford, Li,
"Doubly Robust Policy Evaluation and Learning", ICML 2011): for each line the mean of the model that the other policy
takes, and where the log has taken the same one what its answer was better or worse than that mean, over the propensity.
It holds where either the means or the propensities are right; it knows nothing of a model that the log never took.
"""

from __future__ import annotations

from collections import defaultdict
from math import sqrt
from typing import Any, Final, NamedTuple

from signals.state.tally import LEAST

NORMAL: Final = 1.96
"""Standard errors on either side that hold 95 %."""
FEW: Final = 1.0
"""How many lines the mean over all models counts for in the mean of one."""


class Logged(NamedTuple):
    """A line with a grade: its score (0 to 1), its cost (None: nobody knows), the candidate that the log took with a
    propensity, and the one that the other policy takes, once it was asked."""

    score: float
    cost: float | None
    took: str
    propensity: float
    takes: str = ""


class ConfidenceInterval(NamedTuple):
    """A mean, and the ends between which it is in 95 % of logs like this one (normal approximation)."""

    mean: float
    low: float
    high: float


def _interval(values: list[float]) -> ConfidenceInterval:
    mean = sum(values) / len(values)
    spread = sqrt(sum((value - mean) ** 2 for value in values) / max(1, len(values) - 1) / len(values))
    return ConfidenceInterval(mean, mean - NORMAL * spread, mean + NORMAL * spread)


def _expected(lines: list[Logged], values: list[float]) -> ConfidenceInterval:
    """Of `values`, one a line, had the other policy chosen. The mean of a model leaves out the line that it is for."""
    counts: defaultdict[str, float] = defaultdict(float)
    sums: defaultdict[str, float] = defaultdict(float)
    for line, value in zip(lines, values, strict=True):
        counts[line.took] += 1.0
        sums[line.took] += value
    overall = sum(values) / len(values)
    found = []
    for line, value in zip(lines, values, strict=True):
        same = line.took == line.takes
        count, total = counts[line.takes] - same, sums[line.takes] - same * value
        mean = (total + FEW * overall) / (count + FEW)
        found.append(mean + same * (value - mean) / max(LEAST, line.propensity))
    return _interval(found)


def foreseen(lines: list[Logged]) -> dict[str, Any]:
    """Quality and money per request, as the log has them and as they would be; `matching` lines took the same model,
    and are worth as many lines of equal weight as `effective` says; of `unseen` lines the model was never taken; those
    whose cost nobody knows (`unpriced`) count as free."""
    weights = [1.0 / max(LEAST, line.propensity) for line in lines if line.took == line.takes]
    taken = {line.took for line in lines}
    figures = {"quality": [line.score for line in lines], "cost": [line.cost or 0.0 for line in lines]}
    return {
        "graded": len(lines),
        "matching": len(weights),
        "effective": sum(weights) ** 2 / sum(weight**2 for weight in weights) if weights else 0.0,
        "unseen": sum(line.takes not in taken for line in lines),
        "unpriced": sum(line.cost is None for line in lines),
        **{
            name: {"before": _interval(values)._asdict(), "after": _expected(lines, values)._asdict()}
            for name, values in figures.items()
        },
    }


def text(found: dict[str, Any]) -> list[str]:
    """The same for people."""

    def shown(name: str, side: str) -> str:
        of = found[name][side]
        return f"{of['mean']:.4g} ({of['low']:.4g} – {of['high']:.4g})"

    unpriced = found["unpriced"]
    names = ("quality", "cost") if unpriced < found["graded"] else ("quality",)
    lines = [f"{name} by request: {shown(name, 'before')} → {shown(name, 'after')}" for name in names]
    if unpriced and "cost" in names:
        lines.append(f"    {unpriced} lines count as free: the log has no cost, nor their model a `price`")
    told = f"{found['graded']} graded lines, of which {found['matching']} took the same model"
    lines.append(f"    from {told} (worth {found['effective']:.0f} of equal weight)")
    if found["unseen"]:
        lines.append(f"    nothing is known of the model of {found['unseen']} lines: no graded line took it")
    return lines
