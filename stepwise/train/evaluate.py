"""Cost and accuracy of every strategy on the same questions, with bootstrap intervals by question; table and plot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from stepwise import features
from stepwise.features import State
from stepwise.policy import KappaPair
from stepwise.strategies.chance import Random
from stepwise.strategies.cold_start import ColdStart
from stepwise.strategies.confidence import Confidence
from stepwise.strategies.fixed import Fixed
from stepwise.strategies.glimpse import Glimpse
from stepwise.strategies.verify import Verify
from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy, Turn
from stepwise.train.calibrate import Kappa
from stepwise.train.export import run as run_policy
from stepwise.train.latency import Latency
from stepwise.train.tree import REDO, StepWriter, Tree
from stepwise.train.walk import Episode, Price, follow, walk
from upstream.tokens import TOP

_SHARES = (0.0, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3, 0.4, 0.55, 0.7, 0.85, 1.0)


class Scored(Strategy):
    """Keeps a draft when its score is at least `kappa`, and asks as a pair says; with `once`, the first draft decides
    for the whole answer.

    score: P(keep) for a features vector [WIDTH]; shared by all thresholds, so that each vector is scored once.
    """

    needs_top = TOP

    def __init__(self, name: str, score: Callable[[NDArray[np.float32]], float], kappa: Kappa, *, once: bool) -> None:
        self.name, self.score, self.once = name, score, once
        self.kappa = kappa if isinstance(kappa, KappaPair) else KappaPair(kappa, kappa, 0.0)

    def begin(self, context: AnswerContext) -> Run:
        return _ScoredRun(self)


class _ScoredRun(StepJudge):
    def __init__(self, rule: Scored) -> None:
        self._rule = rule
        self._kept: bool | None = None

    def turn(self, state: State) -> Turn:
        if self._rule.once and self._kept is not None:
            return Turn.SMALL_REST if self._kept else Turn.LARGE_REST
        return Turn.DRAFT

    async def judge(self, draft: Draft) -> Judgement:
        score = self._rule.score(draft.vector)
        kappa = self._rule.kappa
        self._kept = score >= kappa.high
        return Judgement(self._kept, score, kappa.mark if kappa.low <= score < kappa.high else None)


def scorer(path: Path) -> Callable[[NDArray[np.float32]], float]:
    """P(keep) of a policy file for one vector, remembered."""
    known: dict[bytes, float] = {}

    def score(vector: NDArray[np.float32]) -> float:
        key = vector.tobytes()
        if key not in known:
            known[key] = float(session(vector[None])[0])
        return known[key]

    session = _session(path)
    return score


def _session(path: Path) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    opened = onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])
    width = opened.get_inputs()[0].shape[1]  # it may have been trained before there were as many features
    return lambda vectors: opened.run(["keep"], {"features": vectors[:, :width]})[0]


@dataclass(frozen=True)
class Point:
    """One strategy with one parameter, on all questions: right bool [q], large (tokens written) and cost float [q]."""

    parameter: Kappa
    right: NDArray[np.bool_]
    large: NDArray[np.float64]
    cost: NDArray[np.float64]
    outcomes: Sequence[Episode] = ()


@dataclass(frozen=True)
class Exam:
    """The questions that strategies answer, and by which terms. writer: asked for steps that nobody has written yet,
    None where there is none to ask."""

    trees: Sequence[Tree]
    writer: StepWriter | None
    price: Price
    max_redos: int

    async def measure(self, strategy: Strategy, parameter: Kappa) -> Point:
        """Runs `strategy` on every question; the mean cost of the large model's own answers is 1."""
        runs = (walk(tree, strategy, self.writer, max_redos=self.max_redos) for tree in self.trees)
        outcomes = await asyncio.gather(*runs)
        scale = float(np.mean([self.price.large * tree.plain.size for tree in self.trees if tree.plain is not None]))
        return Point(
            parameter,
            np.array([o.right for o in outcomes]),
            np.array([float(o.large_tokens) for o in outcomes]),
            np.array([self.price.of(o) for o in outcomes]) / scale,
            outcomes,
        )


Sweep = list[tuple[Kappa, Strategy]]
"""A strategy with each of the parameters that are tried."""


def handcrafted(roots: NDArray[np.float32], verify: bool) -> dict[str, Sweep]:
    """The published rules, each with the parameters to sweep. roots: features [nodes, WIDTH], for thresholds."""
    entropies = np.unique(np.quantile(roots[:, features.NAMES.index("first_entropy")], np.linspace(0, 1, 13)))
    sweep: dict[str, Sweep] = {
        "random": [(p, Random(p)) for p in _SHARES],
        "first-n": [(n, Fixed.first_n(n)) for n in range(9)],
        "glimpse": [(float(t), Glimpse(float(t))) for t in [-1.0, *entropies]],
        "confidence": [(s, Confidence(s)) for s in _SHARES],
        "cold-start": [(s, ColdStart(s)) for s in _SHARES],
    }
    if verify:
        thresholds = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.01)
        sweep["verify"] = [(t, Verify(t)) for t in thresholds]
    return sweep


def trained(path: Path, name: str, vectors: NDArray[np.float32], points: int = 16) -> Sweep:
    """A policy file with thresholds at its own quantiles on `vectors`, closer together at the low end."""
    keep = run_policy(path, vectors)
    kappas = np.unique(np.quantile(keep, np.linspace(0, 1, points) ** 1.5))
    score = scorer(path)
    return [(float(k), Scored(name, score, float(k), once=False)) for k in [0.0, *kappas, 1.01]]


def asking(path: Path, name: str, ladder: Sequence[KappaPair]) -> Sweep:
    """A policy file with the pairs of thresholds of `ladder`."""
    score = scorer(path)
    return [(pair, Scored(name, score, pair, once=False)) for pair in ladder]


async def oracle(tree: Tree, writer: StepWriter | None, price: Price, redos: int) -> tuple[float, float] | None:
    """(large tokens, cost) of the cheapest right answer with at most `redos` redone steps.

    Else of the large model's own steps; None when no path tried is right.
    """
    best: tuple[float, float] | None = None
    paths = [await follow(tree, "", writer)]
    for count in range(redos + 1):
        if count:
            longer = []
            for path in paths:
                for at in range(path.rfind(REDO) + 1, len(path)):
                    longer.append(await follow(tree, path[:at] + REDO, writer))
            paths = longer
        for path in paths:
            found = _spent(tree, path, price)
            if found[2] and (best is None or found[0] < best[0]):
                best = found[:2]
        if best is not None:
            return best
    found = _spent(tree, await follow(tree, REDO * tree.max_steps, writer), price)
    return found[:2] if found[2] else None


def _spent(tree: Tree, path: str, price: Price) -> tuple[float, float, bool]:
    large = small = 0
    good = False
    for i, letter in enumerate(path):
        node = tree.nodes[path[:i]]
        assert node.draft is not None
        small += node.draft.size
        piece = node.draft
        if letter == REDO:
            assert node.redo is not None
            piece = node.redo
            large += piece.size
        good = bool(piece.right)
    return float(large), price.small * small + price.large * large, good


# --- curves ---------------------------------------------------------------------------------------------------------


def envelope(x: NDArray[np.float64], accuracy: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points by rising cost, with the best accuracy so far; what lies between two is reached by mixing them."""
    order = np.lexsort((-accuracy, x))
    return x[order], np.maximum.accumulate(accuracy[order])


def area(x: NDArray[np.float64], accuracy: NDArray[np.float64], low: float, high: float) -> float:
    """Mean accuracy over costs from `low` to `high`."""
    xs, ys = envelope(x, accuracy)
    grid = np.linspace(low, high, 400)
    return float(np.interp(grid, xs, ys).mean())


def needed(x: NDArray[np.float64], accuracy: NDArray[np.float64], goal: float) -> float:
    """The least x at which the curve reaches `goal`; infinite when it does not."""
    xs, ys = envelope(x, accuracy)
    if ys[-1] < goal:
        return float("inf")
    i = int(np.argmax(ys >= goal))
    if i == 0 or ys[i] == ys[i - 1]:
        return float(xs[i])
    share = (goal - ys[i - 1]) / (ys[i] - ys[i - 1])
    return float(xs[i - 1] + share * (xs[i] - xs[i - 1]))


@dataclass(frozen=True)
class Figures:
    """What the report says of one strategy. area: mean accuracy over all costs; tokens: large tokens, as a share of the
    large model's own, that close 50, 80 and 95 % of the gap; cost: of both models, as a share of the large one's, that
    closes 95 %. Each with its 95 % interval."""

    name: str
    area: tuple[float, float, float]
    tokens: Mapping[int, tuple[float, float, float]]
    cost: tuple[float, float, float]


@dataclass(frozen=True)
class Comparison:
    """All strategies on the same questions. sweeps: by strategy, a point for each parameter; small, large: either model
    alone, large step by step; oracle_tokens: float [q], infinite where no path is right."""

    sweeps: Mapping[str, Sequence[Point]]
    small: Point
    large: Point
    oracle_tokens: NDArray[np.float64]


def figures(seen: Comparison, *, samples: int, seed: int) -> list[Figures]:
    """All strategies on the same bootstrap samples of questions."""
    sweeps, small, large = seen.sweeps, seen.small, seen.large
    rng = np.random.default_rng(seed)
    count = len(small.right)
    draws = [np.arange(count), *(rng.integers(0, count, count) for _ in range(samples))]
    stacked = {
        name: (
            np.stack([p.right for p in points]).astype(np.float64),
            np.stack([p.large for p in points]),
            np.stack([p.cost for p in points]),
        )
        for name, points in sweeps.items()
    }
    areas: dict[str, list[float]] = {name: [] for name in (*sweeps, "oracle")}
    tokens: dict[str, dict[int, list[float]]] = {name: {g: [] for g in (50, 80, 95)} for name in areas}
    costs: dict[str, list[float]] = {name: [] for name in areas}
    for draw in draws:
        low_right, high_right = small.right[draw].mean(), large.right[draw].mean()
        low, high = small.cost[draw].mean(), large.cost[draw].mean()
        all_large = large.large[draw].mean()
        curves = {
            name: (r[:, draw].mean(axis=1), t[:, draw].mean(axis=1), c[:, draw].mean(axis=1))
            for name, (r, t, c) in stacked.items()
        }
        # The oracle spends on the cheapest questions first.
        cheap = np.sort(seen.oracle_tokens[draw])
        cheap = cheap[np.isfinite(cheap)]
        ratio = (high - low) / all_large
        spent = np.cumsum(cheap) / count
        curves["oracle"] = (np.arange(1, len(cheap) + 1) / count, spent, low + spent * ratio)
        for name, (right, large_tokens, cost) in curves.items():
            # Both ends belong to every curve: the small model alone and the large one alone.
            right = np.concatenate([[low_right], right, [high_right]])
            large_tokens = np.concatenate([[0.0], large_tokens, [all_large]])
            cost = np.concatenate([[low], cost, [high]])
            areas[name].append(area(cost, right, low, high))
            for gap, found in tokens[name].items():
                goal = low_right + gap / 100 * (high_right - low_right)
                found.append(needed(large_tokens, right, goal) / all_large)
            costs[name].append(needed(cost, right, goal) / high)  # of the last goal, 95 %
    return [
        Figures(n, _interval(areas[n]), {g: _interval(v) for g, v in tokens[n].items()}, _interval(costs[n]))
        for n in areas
    ]


def _interval(values: Sequence[float]) -> tuple[float, float, float]:
    low, high = np.quantile(values[1:], [0.025, 0.975]) if len(values) > 1 else (values[0], values[0])
    return values[0], float(low), float(high)


def chosen(points: Sequence[Point], low: float, high: float) -> int:
    """The one of a strategy's points that closes 95 % of the gap from `low` to `high` with the fewest large tokens.

    The one with the best accuracy when none does.
    """
    enough = [i for i, p in enumerate(points) if p.right.mean() >= low + 0.95 * (high - low)]
    if enough:
        return min(enough, key=lambda i: float(points[i].large.mean()))
    return max(range(len(points)), key=lambda i: float(points[i].right.mean()))


def report(
    found: Sequence[Figures],
    seen: Comparison,
    plain: float,
    title: str,
    waits: Mapping[str, Latency] | None = None,
) -> str:
    """A Markdown table, best area first. waits: by strategy, where they were measured."""
    small, large = seen.small, seen.large

    def cell(value: tuple[float, float, float], percent: bool) -> str:
        scale = 100 if percent else 1
        return f"{value[0] * scale:.1f} ({value[1] * scale:.1f}–{value[2] * scale:.1f})"

    waits = waits or {}
    empty = Latency()
    lines = [
        f"{title}: {len(small.right)} questions; small alone {small.right.mean():.1%}, large alone {plain:.1%}, "
        f"large step by step {large.right.mean():.1%}; the small one costs {small.cost.mean():.1%} of the large one.",
        "",
        "| strategy | mean accuracy over all costs, % | large tokens for 50 % of the gap, % | for 80 % | for 95 % "
        "| cost for 95 %, % | first text, ms | whole answer, ms |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(found, key=lambda f: -f.area[0]):
        cells = " | ".join(cell(value, True) for value in (*(row.tokens[g] for g in (50, 80, 95)), row.cost))
        times = " | ".join(waits.get(row.name, empty).cells())
        lines.append(f"| {row.name} | {cell(row.area, True)} | {cells} | {times} |")
    for name in ("always-small", "always-large"):
        if name in waits:
            lines.append(f"| {name} | – | – | – | – | – | {' | '.join(waits[name].cells())} |")
    count = max((len(wait.whole) for wait in waits.values()), default=0)
    lines += [
        "",
        f"Times: median (95th percentile) of {count} questions answered by the serving loop, one at a time, each "
        "strategy with the parameter that closes 95 % of the gap with the fewest large tokens (else its most accurate "
        "one). A dash: it could not judge these models' steps."
        if waits
        else "Times were not measured: that needs the models' addresses (`--small-url`, `--large-url`).",
    ]
    return "\n".join(lines) + "\n"


def plot(seen: Comparison, path: Path) -> None:
    """Accuracy over large tokens (share of the large model's own), one line per strategy."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5.5), dpi=120)
    sweeps, oracle_tokens = seen.sweeps, seen.oracle_tokens
    whole = seen.large.large.mean()
    for name, points in sweeps.items():
        x, y = envelope(np.array([p.large.mean() / whole for p in points]), np.array([p.right.mean() for p in points]))
        axes.plot(100 * x, 100 * y, marker=".", label=name)
    cheap = np.sort(oracle_tokens[np.isfinite(oracle_tokens)])
    count = len(oracle_tokens)
    share = np.cumsum(cheap) / count / whole
    axes.plot(100 * share, 100 * np.arange(1, len(cheap) + 1) / count, "k--", label="oracle")
    axes.set_xlabel("tokens written by the large model, % of its own answer")
    axes.set_ylabel("right answers, %")
    axes.set_xlim(0, 105)
    axes.set_ylim(bottom=100 * min(p.right.mean() for points in sweeps.values() for p in points) - 1)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
