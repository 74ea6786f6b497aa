"""What choices that learn are worth on public outcomes: `python -m bench.outcomes --data FOLDER [--only PART]`.

FOLDER has `llmrouter_scores`, `mmlu_pro_outcomes` and `greenserv_rewards` (`.jsonl.gz`, lines as `pointsman select
evaluate` takes them); docs/choices.md shows what is printed. Prices are billions of parameters (of Gemini guesses), for
the outcomes have none. What is trained sees a random half of the questions and is measured on the other. Intervals hold
95 % of samples of the questions, or of the orders of a stream.

Beside each choice stand what it has to beat: the best single model, a table of the best model by category, learned from
the same half, and for streams a textbook LinUCB (Li et al., WWW 2010) that is told the data set, a cluster of the words
and the length, at whichever exploration is best for it.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from cli.select import _matrix, _rows
from cli.selecting import Picked, Table, foretold, named, streamed
from decisions.model import Model
from decisions.selectors.registry import BY_NAME
from decisions.selectors.selector import Graded, Pick, Selector
from signals.facts import Facts
from signals.request import Message, Request
from signals.services import Services
from signals.signal import Shared
from signals.state.standing import Standing
from signals.train import joining
from signals.train.choices import Asked, train

F64 = NDArray[np.float64]
I64 = NDArray[np.int64]

SAMPLES: Final = 1000
WEIGHTS: Final = np.concatenate(([0.0], np.geomspace(0.002, 4.0, 120)))
BUDGETS: Final = 10
ROUNDS: Final = 5
"""In which a model that joins is asked its questions."""
SIZES: Final = {
    "Llama-2-7b-hf": 7.0,
    "Mistral-7B-Instruct-v0.2": 7.0,
    "Qwen1.5-7B-Chat": 7.0,
    "gemma-7b": 8.5,
    "Yi-34B": 34.0,
    "Phi-3-mini-4k-instruct": 3.8,
    "mathstral-7B": 7.0,
    "Meta-Llama-3_1-8B-Instruct": 8.0,
    "c4ai-command-r-v01": 35.0,
    "Mixtral-8x7B-Instruct-v0.1": 47.0,
    "Qwen1.5-72B-Chat": 72.0,
    "jamba-1.5-large": 94.0,
    "DeepSeek-Coder-V2": 236.0,
    "Meta-Llama-3_1-70B-Instruct": 70.0,
    "gemini-1.5-flash-002": 100.0,
    "gemini-1.5-pro-002": 300.0,
    "llama3-chatqa-1.5-8b": 8.0,
    "qwen2.5-7b-instruct": 7.0,
    "llama3-chatqa-1.5-70b": 70.0,
    "llama-3.1-nemotron-51b-instruct": 51.0,
    "mistral-7b-instruct-v0.3": 7.0,
    "gemma-2-9b-it": 9.0,
    "llama-3.1-8b-instruct": 8.0,
    "codegemma-7b": 7.0,
    "llama-3.3-nemotron-super-49b-v1": 49.0,
}


def interval(values: F64) -> tuple[float, float]:
    """95 % of the means of samples of `values`."""
    chance = np.random.default_rng(0)
    means = values[chance.integers(0, len(values), (SAMPLES, len(values)))].mean(1)
    low, high = np.quantile(means, (0.025, 0.975)).tolist()
    return low, high


def shown(values: F64, form: str = "+.4f") -> str:
    low, high = interval(values)
    return f"{values.mean():{form}} ({low:{form}} to {high:{form}})"


# What is trained beforehand


def table_of(rows: Sequence[dict[str, Any]], seed: int = 0) -> Table:
    models = sorted({model for row in rows for model in row["scores"]})
    prices = {model: SIZES.get(model, 1.0) for model in models}
    return Table(rows, models, _matrix([*rows], models, "scores"), _matrix([*rows], models, "costs"), prices, seed)


def halves(path: Path, seed: int) -> tuple[Table, Table]:
    rows = list(_rows(path))
    order = np.random.default_rng(seed).permutation(len(rows))
    return (
        table_of([rows[at] for at in order[: len(rows) // 2]]),
        table_of([rows[at] for at in order[len(rows) // 2 :]]),
    )


def trained(known: Table, asked: Table, way: Any) -> tuple[Picked, Picked, float]:
    """What a file chooses as it is, and with `quality` at 0.8; and the bar of that."""
    told = [Asked(row["text"], category) for row, category in zip(known.rows, named(known.rows), strict=True)]
    made = train(told, known.grades, known.prices, way)
    with tempfile.TemporaryDirectory() as folder:
        made.save(path := Path(folder) / "models.npz")
        return foretold(asked, path, None, 0.8), foretold(asked, path, "quality", 0.8), made.bar(0.8)


def by_category(known: Table, asked: Table) -> F64:
    """The mean grades of each question's category in the other half."""
    key = "category" if "category" in known.rows[0] else "cluster"
    means = np.nanmean(known.grades, 0)
    worth = np.tile(means, (asked.count, 1))
    for name in {row[key] for row in known.rows}:
        some = np.array([row[key] == name for row in known.rows])
        at = np.array([row[key] == name for row in asked.rows])
        worth[at] = (np.nansum(known.grades[some], 0) + 5 * means) / (known.tried[some].sum(0) + 5)
    return worth


def within(known: Callable[[float], I64], spent: F64, budget: float) -> I64 | None:
    """The choices with the least weight of the price that keep to a budget."""
    at = np.arange(len(spent))
    for weight in WEIGHTS:
        picks = known(float(weight))
        if spent[at, picks].mean() <= budget + 1e-9:
            return picks
    return None


def curves(known: Table, asked: Table) -> dict[tuple[float, str], F64]:
    """Quality at budgets from the cheapest to the dearest model. Gives by budget and other choice how much more `irt`
    gets at each question."""
    at = np.arange(asked.count)
    worths = {way: trained(known, asked, way)[0].worth for way in ("abilities", "neighbours")}
    worths["table"] = by_category(known, asked)
    prices = np.array([asked.prices[model] for model in asked.models])
    means = np.nanmean(asked.grades, 0)
    apart, more = 0, {}
    print("| budget | `irt` | `nearest` | table by category | best single | `irt` less single | `irt` less table |")
    print("|---|---|---|---|---|---|---|")
    for budget in np.geomspace(prices.min() * 2, prices.max(), BUDGETS).tolist():
        got: dict[str, F64] = {}
        for name, worth in worths.items():
            picks = within(lambda weight, worth=worth: asked.best(worth, weight), asked.spent, budget)  # type: ignore[misc]
            if picks is not None:
                got[name] = asked.grades[at, picks]
        single = int(np.where(prices <= budget, means, -1.0).argmax())
        gain = (got["abilities"] - asked.grades[:, single])[asked.tried[:, single]]
        apart += interval(gain)[0] > 0
        for name in ("neighbours", "table"):
            more[budget, name] = got["abilities"] - got[name]
        cells = " | ".join(f"{got[name].mean():.3f}" for name in ("abilities", "neighbours", "table"))
        less = shown(more[budget, "table"], "+.3f")
        print(f"| {budget:.0f} | {cells} | {means[single]:.3f} | {shown(gain, '+.3f')} | {less} |", flush=True)
    print(f"intervals apart from the single model at {apart} budgets", flush=True)
    return more


def promises(name: str, asked: Table, found: Picked, bar: float) -> None:
    """How often 0.8 of the answers are good on random halves, where some model reaches the bar."""
    assert found.worth is not None
    chance = np.random.default_rng(0)
    grades = asked.grades[np.arange(asked.count), found.picks]
    reached: NDArray[np.bool_] = (found.worth >= bar).max(1)
    kept = []
    for _ in range(200):
        half = chance.permutation(asked.count)[: asked.count // 2]
        kept.append(grades[half[reached[half]]].mean() >= 0.8)
    print(
        f"{name}: at_least 0.8 kept in {np.mean(kept):.1%} of 200 halves, {reached.mean():.0%} reach the bar",
        flush=True,
    )


def llmrouter(path: Path, seeds: int) -> None:
    """The mean of the choice as it comes, and at 0.7 of the cost of the best single model."""
    found: dict[str, list[tuple[float, ...]]] = {"irt": [], "nearest": []}
    for seed in range(seeds):
        known, asked = halves(path, seed)
        at = np.arange(asked.count)
        means = asked.grades.mean(0)
        single = int(means.argmax())
        for name, way in (("irt", "abilities"), ("nearest", "neighbours")):
            picked, quality, bar = trained(known, asked, way)
            worth = picked.worth
            assert worth is not None
            cheap = within(lambda weight: asked.best(worth, weight), asked.spent, 0.7 * asked.spent[0, single])  # noqa: B023
            gain = asked.grades[at, picked.picks] - asked.grades[:, single]
            cost = asked.spent[at, picked.picks].mean() / asked.spent[0, single]
            less = asked.grades[at, cheap] - asked.grades[:, single]
            found[name].append((means[single], gain.mean(), cost, less.mean()))
            print(f"split {seed}, {name}: single {means[single]:.4f}, {shown(gain)} at {cost:.2f} of its cost, "
                  f"{shown(less)} at 0.7", flush=True)  # fmt: skip
            if seed == 0 and name == "irt":
                promises("LLMRouter", asked, quality, bar)
    for name, rows in found.items():
        single, gain, cost, less = np.array(rows).mean(0)
        print(f"mean of {seeds} splits, {name}: single {single:.4f}, {gain:+.4f} at {cost:.2f}, {less:+.4f} at 0.7")


def newcomers(path: Path, splits: int, count: int) -> None:
    """Each model in turn joins with so many graded questions of one half: how far its mean grade on the other half is
    from what is foretold. The questions are chosen, in ROUNDS that see the grades before or at once, or drawn."""
    missed: dict[str, list[list[float]]] = {"in rounds": [], "chosen": [], "drawn": [], "their bare mean": []}
    for split in range(splits):
        known, asked = halves(path, split)
        prices = np.array([known.prices[model] for model in known.models])
        chance = np.random.default_rng(split)
        for at in range(len(prices)):
            some = np.flatnonzero(known.tried[:, at])
            grades, categories = known.grades[some], [named(known.rows)[row] for row in some]
            others = np.delete(grades, at, 1)
            others_prices = np.delete(prices, at)
            model = joining.Newcomers(others, categories, others_prices)
            newcomer = joining.Newcomer(float(prices[at]))
            chosen = model.questions(count, newcomer, split)
            for number in range(ROUNDS):
                some_more = model.questions((number + 1) * count // ROUNDS - len(newcomer.tried), newcomer, split)
                tried = np.concatenate((newcomer.tried, some_more))
                newcomer = joining.Newcomer(newcomer.price, tried, grades[tried, at])
            drawn = chance.choice(len(some), count, replace=False)
            truth = float(np.nanmean(asked.grades[:, at]))
            for name, of in (("in rounds", newcomer.tried), ("chosen", chosen), ("drawn", drawn)):
                few = grades.copy()
                few[:, at] = np.nan
                few[of, at] = grades[of, at]
                missed[name].append([at, joining.filled(few, categories, prices)[:, at].mean() - truth])
            missed["their bare mean"].append([at, grades[drawn, at].mean() - truth])
    for name, each in missed.items():
        of, off = np.array(each).T
        by_model = [float(np.abs(off[of == at]).mean()) for at in range(len(prices))]
        print(
            f"joins with {count} {name}: off by {shown(100 * np.abs(off), '.1f')} points, "
            f"bias {100 * off.mean():+.1f}, within 3 in {np.mean(np.abs(off) <= 0.03):.0%} of {len(off)}; by model "
            f"{' '.join(f'{100 * one:.1f}' for one in sorted(by_model))}",
            flush=True,
        )


def mmlu(path: Path, splits: int) -> None:
    pooled: dict[tuple[float, str], dict[str, list[float]]] = {}
    for split in range(splits):
        print(f"split {split}")
        known, asked = halves(path, split)
        for key, values in curves(known, asked).items():
            for row, value in zip(asked.rows, values.tolist(), strict=True):
                pooled.setdefault(key, {}).setdefault(row["text"], []).append(value)
    print(f"of {splits} halves, each question's mean of those that it was asked in:")
    for (budget, name), by_text in pooled.items():
        values = np.array([np.mean(each) for each in by_text.values()])
        print(f"budget {budget:.0f}: irt {shown(values, '+.4f')} more than {name}")
    known, asked = halves(path, 0)
    _, quality, bar = trained(known, asked, "abilities")
    promises("MMLU-Pro", asked, quality, bar)


# Streams


def clusters(texts: Sequence[str], count: int, seed: int) -> I64:
    """k-means of hashed words."""
    found = np.zeros((len(texts), 256))
    for row, text in zip(found, texts, strict=True):
        for word in text.lower().split()[:300]:
            row[zlib.crc32(word.encode()) % 256] += 1
    found = np.log1p(found)
    found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
    chance = np.random.default_rng(seed)
    middles = found[chance.choice(len(found), count, replace=False)]
    for _ in range(20):
        nearest: I64 = (found @ middles.T).argmax(1)
        middles = np.array(
            [found[nearest == at].mean(0) if (nearest == at).any() else middles[at] for at in range(count)]
        )
    return nearest


def linucb(table: Table, told: F64, explore: float, seed: int) -> I64:
    """The choices of LinUCB with one regression for each model."""
    size, count = told.shape[1], len(table.models)
    inverse = np.tile(np.eye(size), (count, 1, 1))
    sums = np.zeros((count, size))
    picks = np.zeros(table.count, np.int64)
    for number in np.random.default_rng(seed).permutation(table.count):
        facts = told[number]
        spread = np.einsum("i,kij,j->k", facts, inverse, facts)
        worth = np.einsum("kij,kj,i->k", inverse, sums, facts) + explore * np.sqrt(spread)
        at = picks[number] = int(worth.argmax())
        pulled = inverse[at] @ facts
        inverse[at] -= np.outer(pulled, pulled) / (1 + facts @ pulled)
        sums[at] += facts * table.grades[number, at]
    return picks


def normalised(table: Table, picks: I64) -> float:
    got = table.grades[np.arange(table.count), picks].mean()
    random, oracle = table.grades.mean(), table.grades.max(1).mean()
    return float((got - random) / (oracle - random))


def greenserv(path: Path, seeds: int) -> None:
    rows = list(_rows(path))
    often = sorted(
        {model for row in rows for model in row["scores"]}, key=lambda one: -sum(one in row["scores"] for row in rows)
    )[:3]
    rows = [
        {**row, "scores": {model: row["scores"][model] for model in often}}
        for row in rows
        if {*often} <= {*row["scores"]}
    ]
    table = table_of(rows)
    names = sorted({row["dataset"] for row in rows})
    told = [np.array([[row["dataset"] == name for name in names] for row in rows], float)]
    told.append(np.eye(8)[clusters([row["text"] for row in rows], 8, 0)])
    length = np.log([len(row["text"]) + 1 for row in rows])
    told.append(np.eye(3)[np.digitize(length, np.quantile(length, (1 / 3, 2 / 3)))])
    facts = np.hstack([np.ones((len(rows), 1)), *told])
    by_explore = {
        explore: np.array([normalised(table, linucb(table, facts, explore, seed)) for seed in range(seeds)])
        for explore in (0.02, 0.05, 0.1, 0.2, 0.4, 0.8)
    }
    explore = max(by_explore, key=lambda one: float(by_explore[one].mean()))
    ours = []
    for seed in range(seeds):
        table.seed = seed
        ours.append(normalised(table, asyncio.run(streamed(table, None, None, "bandit", learn=True)).picks))
    single = normalised(table, np.full(table.count, int(table.grades.mean(0).argmax())))
    bandit, other = np.array(ours), by_explore[explore]
    print(f"GreenServ, {table.count} questions, {seeds} orders: best single model {single:.3f}")
    print(f"bandit {shown(bandit, '.3f')}, LinUCB at {explore} {shown(other, '.3f')}, order by order "
          f"{shown(bandit - other, '+.3f')}", flush=True)  # fmt: skip
    joined(table, seeds)


def joined(table: Table, seeds: int) -> None:
    """The best model comes only in the middle of the stream: how much less is got by request than if it had been there,
    in the first 200 requests with it and afterwards."""
    kind = BY_NAME["bandit"]
    params = kind.Parameters()
    models = tuple(Model(name, name, 1.0, 1.0) for name in table.models)
    new = int(table.grades.mean(0).argmax())
    late: list[list[float]] = [[], []]
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(table.count)
        got = []
        for there in (True, False):
            shared = Shared()
            few = tuple(model for at, model in enumerate(models) if there or at != new)
            all_of = kind(Pick("choice", models, kind, params), params, shared)
            chooser: Selector = all_of if there else kind(Pick("choice", few, kind, params), params, shared)
            taken = np.zeros(table.count)
            for number, at in enumerate(order.tolist()):
                if number == table.count // 2 and not there:
                    chooser = kind(Pick("choice", models, kind, params), params, shared)
                asked = request(table.rows[at]["text"], f"{seed}-{at}")
                choice = chooser.choose(asked)
                taken[number] = table.grades[at, table.models.index(choice.model.key)]
                chooser.grade(Graded(choice.model.key, chooser.context(asked)), float(taken[number]))
            got.append(taken)
        half = table.count // 2
        spread = table.grades.max(1).mean() - table.grades.mean()
        late[0].append(float((got[0] - got[1])[half : half + 200].mean() / spread))
        late[1].append(float((got[0] - got[1])[half + 200 :].mean() / spread))
    first, later = (shown(np.array(each), ".3f") for each in late)
    print(f"the best model joins in the middle: {first} less in its first 200 requests, {later} afterwards", flush=True)


def request(text: str, number: str) -> Facts:
    return Facts(Request("chat", b"", {}, "auto", (Message("user", text),), {"x-request-id": number}))


def drift(seeds: int, count: int = 3000) -> None:
    """One of three models gets worse at one of two tasks in the middle; a request a minute, a half-life of 12 hours."""
    tasks = (
        "Solve this step by step.\nQuestion: what is {} + 3?\nAnswer:",
        "Write a story about {}, and make it long.",
    )
    before = np.array([[0.85, 0.6, 0.5], [0.5, 0.6, 0.8]])
    after = np.array([[0.35, 0.6, 0.5], [0.5, 0.6, 0.8]])
    regrets: dict[str, list[float]] = {kind: [] for kind in ("bandit", "ema", "pheromone", "elo")}
    for seed in range(seeds):
        for kind, found in regrets.items():
            now = [1.8e9]
            cls: Any = BY_NAME[kind]
            params = cls.Parameters(**{"half_life": 12.0} | ({} if kind == "bandit" else {"per": "template"}))
            models = tuple(Model(key, key) for key in "abc")
            services = Services()
            half_life = 12.0 * 3600
            name, size = f"{kind}:choice", cls.sums
            clocked = Standing(services.store, name, size, half_life, lambda now=now: now[0])  # type: ignore[misc]
            services.standings._known[id(services.store), name, size, half_life] = clocked
            chooser = cls(Pick("choice", models, cls, params), params, Shared(services))
            chance, regret = np.random.default_rng(seed), 0.0
            for number in range(count):
                now[0] += 60.0
                task = int(chance.integers(2))
                worth = (before if number < count // 2 else after)[task]
                asked = request(tasks[task].format(number), f"{seed}-{number}")
                choice = chooser.choose(asked)
                at = "abc".index(choice.model.key)
                regret += worth.max() - worth[at]
                chooser.grade(Graded(choice.model.key, chooser.context(asked)), float(chance.random() < worth[at]))
            found.append(regret)
    base = float(np.mean(regrets["bandit"]))
    for kind, found in regrets.items():
        lost = shown(np.array(found), ".0f")
        print(
            f"drift, {seeds} orders of {count}: {kind} loses {lost}, {np.mean(found) / base:.2f} x bandit", flush=True
        )


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--data", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--only", choices=("llmrouter", "mmlu", "greenserv", "drift", "newcomers"))
    parser.add_argument("--seeds", type=int, default=20, help="orders of a stream (20)")
    parser.add_argument("--joins-with", type=int, default=50, metavar="N", help="graded questions of newcomers (50)")
    parser.add_argument("--splits", type=int, default=5, help="halves of what is trained beforehand (5)")
    args = parser.parse_args()
    if args.only in (None, "greenserv"):
        greenserv(args.data / "greenserv_rewards.jsonl.gz", args.seeds)
    if args.only in (None, "drift"):
        drift(args.seeds)
    if args.only in (None, "llmrouter"):
        llmrouter(args.data / "llmrouter_scores.jsonl.gz", args.splits)
    if args.only in (None, "mmlu"):
        mmlu(args.data / "mmlu_pro_outcomes.jsonl.gz", args.splits)
    if args.only in (None, "newcomers"):
        newcomers(args.data / "mmlu_pro_outcomes.jsonl.gz", args.splits, args.joins_with)


if __name__ == "__main__":
    main()
