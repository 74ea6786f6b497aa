"""What choices are worth on graded answers, for `pointsman select evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import orjson
from numpy.typing import NDArray

from cli.called import CalledWrongly
from config.watch import load
from decisions.engine import Engine
from decisions.model import Model
from decisions.selectors.learner import ClassParams, Learner
from decisions.selectors.registry import BY_NAME
from decisions.selectors.selector import Graded, Pick, Selector
from signals.facts import Facts
from signals.gather import fetch
from signals.neural.foretelling import Foretelling
from signals.request import Message, Request
from signals.signal import Shared

F64 = NDArray[np.float64]

TRIES: Final = 1000
"""Samples of the questions for an interval."""
BUDGETS: Final = 10
WEIGHTS: Final = np.concatenate(([0.0], np.geomspace(0.002, 4.0, 60)))
CATEGORIES: Final = ("category", "domain", "dataset", "cluster", "task")
"""Fields of a row of which the first that is there in the first row is its category."""


def named(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The category of each row, '' where it says none."""
    key = next((key for key in CATEGORIES if key in rows[0]), "")
    return [str(row.get(key, "")) for row in rows]


@dataclass
class Table:
    """Graded answers: rows as they came, `grades` and `costs` float64 [n, models], NaN where there is none; `prices`
    that were given by model."""

    rows: Sequence[dict[str, Any]]
    models: Sequence[str]
    grades: F64
    costs: F64
    prices: dict[str, float]
    seed: int

    @property
    def count(self) -> int:
        return len(self.rows)

    @cached_property
    def tried(self) -> NDArray[np.bool_]:
        """Which models answered which question."""
        return ~np.isnan(self.grades)

    @cached_property
    def spent(self) -> F64:
        """What each call cost: as the row says, or else the model's price, its mean cost, or 1."""
        found = self.costs.copy()
        for at, model in enumerate(self.models):
            known = found[~np.isnan(found[:, at]), at]
            price = self.prices.get(model, float(known.mean()) if len(known) else 1.0)
            found[np.isnan(found[:, at]), at] = price
        return found

    @cached_property
    def categories(self) -> NDArray[np.int64]:
        found: NDArray[np.int64] = np.unique(named(self.rows), return_inverse=True)[1]
        return found

    def best(self, worth: F64, weight: float) -> NDArray[np.int64]:
        """The model of each question with the highest worth, less its weighed price (1 for the dearest), of those that
        were tried."""
        spent = self.spent / max(float(self.spent.max()), 1e-12)
        found: NDArray[np.int64] = np.where(self.tried, worth - weight * spent, -np.inf).argmax(1)
        return found


@dataclass
class Picked:
    """The choice of each question, by the model's place; and, where the worth of the others is known, theirs."""

    picks: NDArray[np.int64]
    worth: F64 | None = None


def foretold(table: Table, path: Path, by: str | None, at_least: float) -> Picked:
    """What a file of `select train` chooses. Raises ValueError, OSError."""
    made = Foretelling.load(path)
    if by is not None and getattr(BY_NAME.get(by), "way", "") not in (None, made.way):
        raise CalledWrongly(f"--by {by}: it does not read {path}, which holds {made.way}")
    at = {model: place for place, model in enumerate(made.models)}
    if not any(model in at for model in table.models):
        raise ValueError(f"{path} knows none of the models; it knows {', '.join(made.models)}")
    for model, price in made.prices.items():
        if price == price:
            table.prices.setdefault(model, price)
    worth = np.full((table.count, len(table.models)), -1.0)
    for number, row in enumerate(table.rows):
        chances = made.chances(row["text"])
        for place, model in enumerate(table.models):
            if model in at:
                worth[number, place] = chances[at[model]]
    picks = table.best(worth, float(made.card["cost"]))
    if by is not None and "at_least" in BY_NAME[by].Parameters.model_fields:
        enough = table.tried & (worth >= made.bar(at_least))
        cheapest = np.where(enough, table.spent, np.inf).argmin(1)
        picks = np.where(enough.any(1), cheapest, picks)
    return Picked(picks, worth)


async def streamed(table: Table, policy: Path | None, decision: str | None, by: str | None, *, learn: bool) -> Picked:
    """What the choice of a policy, or a kind of selector, does question by question. `learn`: it is told the grade of
    what it has chosen, and of nothing else. Raises ValueError, PolicyError, OSError."""
    engine: Engine | None = None
    if policy is not None:
        engine = load(policy).engine
        selector = _choice(engine, decision)
    else:
        selector = _alone(table, by or "")
    places = {model: place for place, model in enumerate(table.models)}
    arms = [model for model in selector.models if model.key in places]
    if not arms:
        raise ValueError(f"the choice has none of the models that were graded: {', '.join(table.models)}")
    chance = np.random.default_rng(table.seed)
    picks = np.full(table.count, -1, np.int64)
    for number in chance.permutation(table.count).tolist():
        able = [arm for arm in arms if table.tried[number, places[arm.key]]]
        if not able:
            continue
        facts = await _facts(engine, table.rows[number], f"{table.seed}-{number}")
        await fetch((selector,), facts)
        choice = selector.among(able if len(able) < len(selector.models) else selector.models, facts)
        place = picks[number] = places[choice.model.key]
        if learn and selector.graded:
            selector.grade(Graded(choice.model.key, selector.context(facts)), float(table.grades[number, place]))
            await selector.settle()
    if (picks < 0).all():
        raise ValueError("none of the questions was tried by a model of the choice")
    return Picked(picks)


def _choice(engine: Engine, decision: str | None) -> Selector:
    if not engine.selectors:
        raise ValueError("no decision of the policy has a choice of models (`route: {pick: […]}`)")
    found = next(iter(engine.selectors.values())) if decision is None else engine.selectors.get(decision)
    if found is None:
        why = "the policy has no such decision with a choice of models; others have"
        raise CalledWrongly(f"--decision {decision}: {why}: {', '.join(engine.selectors)}")
    return found


def learners() -> list[str]:
    """The kinds of selectors that learn from grades."""
    return [name for name, kind in BY_NAME.items() if issubclass(kind, Learner)]


def ways() -> dict[str, str | None]:
    """What a file for each kind of selector that reads one has to hold (None: anything)."""
    return {name: getattr(kind, "way", None) for name, kind in BY_NAME.items() if hasattr(kind, "way")}


def _alone(table: Table, by: str) -> Selector:
    kind = BY_NAME.get(by)
    if kind is None or not issubclass(kind, Learner):
        raise CalledWrongly(f"give --file, or --policy, or --by with one of {', '.join(learners())}")
    given = {"per": "template"} if issubclass(kind.Parameters, ClassParams) else {}
    params: Any = kind.Parameters(**given)
    prices = np.nanmean(table.spent, 0)
    models = tuple(Model(name, name, price, price) for name, price in zip(table.models, prices.tolist(), strict=True))
    return kind(Pick("choice", models, kind, params), params, Shared())


async def _facts(engine: Engine | None, row: dict[str, Any], number: str) -> Facts:
    """What is known of the request of a row, once the policy has decided it."""
    body = row.get("request")
    if not isinstance(body, dict):
        body = {"model": "auto", "messages": [{"role": "user", "content": row["text"]}]}
    messages = (Message("user", row["text"]),)
    request = Request("chat", orjson.dumps(body), body, "auto", messages, {"x-request-id": number})
    if engine is None:
        return Facts(request)
    evaluation = engine.begin(request)
    await evaluation.finish()
    return evaluation.facts


def evaluated(table: Table, found: Picked) -> dict[str, Any]:
    """The object of `select evaluate -o json`."""
    some = np.flatnonzero((found.picks >= 0) & table.tried.any(1))
    grades, spent, tried = table.grades[some], table.spent[some], table.tried[some]
    at, picks = np.arange(len(some)), found.picks[some]
    got = grades[at, picks]
    random, oracle = float(np.nanmean(grades, 1).mean()), float(np.nanmax(grades, 1).mean())
    mean = float(got.mean())
    often = tried.sum(0) >= 0.9 * tried.sum(0).max()
    means = np.array([float(grades[tried[:, m], m].mean()) if tried[:, m].any() else -1.0 for m in range(len(often))])
    single = int(np.where(often, means, -1.0).argmax())
    chance = np.random.default_rng(table.seed)
    samples = got[chance.integers(0, len(got), (TRIES, len(got)))].mean(1)
    budgets = _budgets(table, found, means, often)
    return {
        "questions": len(some),
        "models": {
            model: {
                "mean": float(means[m]) if means[m] >= 0 else None,
                "cost": float(spent[:, m].mean()),
                "share": float((picks == m).mean()),
            }
            for m, model in enumerate(table.models)
        },
        "mean": mean,
        "cost": float(spent[at, picks].mean()),
        "random": random,
        "best_single": {
            "model": table.models[single],
            "mean": float(means[single]),
            "cost": float(spent[:, single].mean()),
        },
        "oracle": oracle,
        "normalised": (mean - random) / (oracle - random) if oracle > random else 0.0,
        "area": _area(budgets, mean),
        "budgets": budgets,
        "interval": [float(one) for one in np.quantile(samples, (0.025, 0.975))],
    }


def _budgets(table: Table, found: Picked, means: F64, often: NDArray[np.bool_]) -> list[dict[str, Any]]:
    """The best that is to be had for so much: by the worth that the choice foretells, by the best single model, by the
    best table of models per category, each category's means without the question itself."""
    prices = table.spent.mean(0)
    least, most = float(prices[often].min()), float(prices[often].max())
    steps = np.linspace(least, most, BUDGETS) if most > least else np.array([least])
    curves = [_curve(table, worth) for worth in ([] if found.worth is None else [found.worth])]
    by_table = _curve(table, _apart(table))
    budgets = []
    for cost in steps.tolist():
        able = [float(means[m]) for m in range(len(prices)) if often[m] and prices[m] <= cost + 1e-9]
        budgets.append(
            {
                "cost": cost,
                "mean": _within(curves[0], cost) if curves else None,
                "best_single": max(able, default=None),
                "table": _within(by_table, cost),
            }
        )
    return budgets


def _apart(table: Table) -> F64:
    """For each question and model the mean grade of its category, without the question."""
    known, grades = table.tried, np.nan_to_num(table.grades)
    overall = grades.sum(0) / np.maximum(known.sum(0), 1)
    worth = np.empty_like(grades)
    for category in np.unique(table.categories):
        some = table.categories == category
        total = grades[some].sum(0) - grades[some]
        count = known[some].sum(0) - known[some]
        worth[some] = (total + 5 * overall) / (count + 5)
    return worth


def _curve(table: Table, worth: F64) -> list[tuple[float, float]]:
    """Cost and mean grade, for each of WEIGHTS of the price."""
    some = np.flatnonzero(table.tried.any(1))
    points = []
    for weight in WEIGHTS:
        picks = table.best(worth, float(weight))[some]
        points.append((float(table.spent[some, picks].mean()), float(table.grades[some, picks].mean())))
    return points


def _within(curve: list[tuple[float, float]], cost: float) -> float | None:
    """The mean grade with the least weight of the price that keeps to the budget."""
    return next((mean for spent, mean in curve if spent <= cost + 1e-9), None)


def _area(budgets: list[dict[str, Any]], mean: float) -> float:
    """The mean quality over all budgets; where the choice has no curve, its quality."""
    points = [(one["cost"], one["mean"]) for one in budgets if one["mean"] is not None]
    if len(points) < 2:
        return mean
    costs, means = np.array(points).T
    return float(np.trapezoid(means, costs) / (costs[-1] - costs[0]))


def text_of(result: dict[str, Any]) -> str:
    """The result for people."""
    best = result["best_single"]
    low, high = result["interval"]
    lines = [
        f"questions        {result['questions']}",
        f"choice           {result['mean']:.4f} ({low:.4f} – {high:.4f}) at cost {result['cost']:.4g}",
        f"best single      {best['mean']:.4f} at cost {best['cost']:.4g} ({best['model']})",
        f"random, oracle   {result['random']:.4f}, {result['oracle']:.4f}; normalised {result['normalised']:.3f}",
        "",
        "      cost   choice   single    table",
    ]
    for one in result["budgets"]:
        cells = ("–" if one[key] is None else f"{one[key]:.4f}" for key in ("mean", "best_single", "table"))
        lines.append(f"{one['cost']:10.4g} " + " ".join(f"{cell:>8}" for cell in cells))
    lines.append("")
    for model, of in sorted(result["models"].items(), key=lambda item: -item[1]["share"]):
        mean = "–" if of["mean"] is None else f"{of['mean']:.4f}"
        lines.append(f"{of['share']:6.1%}  {model}  (mean {mean}, cost {of['cost']:.4g})")
    return "\n".join(lines)
