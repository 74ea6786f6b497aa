"""Trains what `irt`, `nearest` and `quality` read (`pointsman select train`) from outcomes, with numpy alone.

The grades of each model are foretold from the words of the question (ridge regression over the lexicon's entries), and
brought to a few factors, each a sum over words; beside them the category is foretold, where the outcomes say one; an
item-response model with several abilities (Reckase 2009) then says
how much of each factor a model has. The factors that it is fitted to are those of questions that the regression has not
seen, so that its chances are no surer than they should be.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from signals.neural.features import Features, features
from signals.neural.foretelling import F64, NEAREST, Foretelling, TextFigures, Way, chances, figured
from signals.neural.normalise import normalise
from signals.neural.tokenizer import Lexicon
from signals.train import joining

F32 = NDArray[np.float32]

FOLDS: Final = 5
RIDGE: Final = 5.0
RIDGE_OF_CATEGORY: Final = 1.0
"""Categories are surer than grades, which have much chance in them."""
FACTORS: Final = (3, 4, 6, 9, 12)
"""How many are tried; beyond some number those that are left are chance, and make choices worse."""
CATEGORIES: Final = 32
"""The most categories that are foretold, and the questions that each needs."""
OF_CATEGORY: Final = 20
SPREAD: Final = 1.0
"""How far apart abilities are (the precision of their prior)."""
ALIKE: Final = 100.0
"""How far a model's are from what all have in common (likewise): what is hard is hard for all, most of it."""
FEW: Final = 4.0
"""How sure it is, before anything is known of a model, that hard questions are as hard for it as for others."""
MOST: Final = 6000
"""Questions that are learned from; of more a random part."""
INDEX: Final = 4096
"""Questions of which `nearest` knows the grades."""
LONGEST: Final = 20_000
"""Characters of a text that are read, as when it is served."""
COMMON: Final = 0.05
NOTHING: Final = 0.5
"""Standard errors of the mean grade that a cheaper choice may cost."""
SHARES: Final = np.linspace(0.3, 0.98, 35)
SURE: Final = 3.0
"""Standard errors that the share of good answers has to be above what a bar promises: other questions differ by as much
again, and the least of many bars that seem to do is one that had luck."""


class Asked(NamedTuple):
    """A question, and its category, '' where nobody says one."""

    text: str
    category: str = ""


def train(asked: Sequence[Asked], grades: F64, prices: Mapping[str, float], way: Way, seed: int = 0) -> Foretelling:
    """A model of `grades` float64 [n, models] of answers to what was `asked`, NaN where a model was not tried; `prices`
    are by the models' names, in their order. Raises ValueError where there is too little to learn from."""
    known = ~np.isnan(grades)
    if known.any(1).sum() < 2 * FOLDS or not known.any(0).all():
        raise ValueError(f"at least {2 * FOLDS} questions are needed, and a score of every model")
    chance = np.random.default_rng(seed)
    some = chance.permutation(np.flatnonzero(known.any(1)))
    newcomers = known[some][:, ~joining.many(grades)].any(1)
    some = some[np.argsort(~newcomers, kind="stable")][:MOST]  # those that a newcomer has answered are few
    grades, known = grades[some], known[some]
    named = [asked[at].category for at in some]
    lexicon = Lexicon.load()
    read = [features(normalise(asked[at].text[:LONGEST], lexicon), lexicon) for at in _bar(some, "reading")]
    if not any(len(one.rows) for one in read):
        raise ValueError("the questions have no word that the lexicon knows")
    costs = np.array(list(prices.values()))
    filled = joining.filled(grades, named, costs) if joining.many(grades).sum() >= joining.LEAST else _filled(grades)
    mean = filled.mean(0)
    less = np.where(known, grades - mean, 0.0).astype(np.float32)
    folds = chance.integers(0, FOLDS, len(some))
    alike = similarity(read, lexicon)
    if way == "abilities":
        figures, seen = _factors((read, lexicon, alike), np.hstack([less, _classes(named)]), filled, folds)
    else:
        figures, seen = _index(read, alike, less, folds)
    weights = _alike(seen, filled) if way == "abilities" else _each(seen, filled, (SPREAD, np.zeros(seen.shape[1])))
    foretold = chances(weights, seen)
    bars = _bars(foretold, grades, costs)
    weight, taken = _weighed(foretold, grades, costs)
    card = {
        "questions": len(some),
        "cost": weight,
        "foretold_apart": {
            "mean": float(grades[np.arange(len(some)), taken].mean()),
            "best_single": float(max(mean)),
            "calibration_error": float(np.abs(np.nanmean(np.where(known, foretold - grades, np.nan), 0)).mean()),
        },
        "means": dict(zip(prices, (round(float(one), 4) for one in mean), strict=True)),
    }
    return Foretelling(lexicon, figures, dict(prices), weights, bars, card)


def _filled(grades: F64) -> F64:
    """`grades`, and where a model was not tried its chance there, by how well the others did: a logistic model of one
    figure of the question, whose slope is 1 before anything is known. So a model that joins with a few dozen grades is
    not taken for worse because it got hard questions. Where nobody was tried it is the model's mean."""
    known = ~np.isnan(grades)
    found = np.where(known, grades, 0.0)
    for at in np.flatnonzero(~known.all(0)):
        tried = np.delete(known, at, 1).sum(1)
        good = np.delete(np.where(known, grades, 0.0), at, 1).sum(1)
        rate = (good + 0.5) / (tried + 1.0)
        told = np.log(rate / (1.0 - rate))[:, None]
        mine = known[:, at]
        weights = _abilities(told[mine], grades[mine, at], (FEW, np.ones(1)))
        found[~mine, at] = chances(weights[None], told[~mine])[:, 0]
    return found


def similarity(read: Sequence[Features], lexicon: Lexicon) -> F32:
    """The cosine of each two texts' weighed entries, float32 [n, n]."""
    count = len(read)
    rows = np.concatenate([one.rows for one in read])
    texts = np.repeat(np.arange(count), [len(one.rows) for one in read])
    values = (lexicon.weight[rows] * np.repeat([one.scale for one in read], [len(one.rows) for one in read])).astype(
        np.float32
    )
    order = np.argsort(rows, kind="stable")
    rows, texts, values = rows[order], texts[order], values[order]
    starts = np.flatnonzero(np.r_[True, rows[1:] != rows[:-1]])
    ends = np.r_[starts[1:], len(rows)]
    found = np.zeros((count, count), np.float32)
    common: list[tuple[int, int]] = []
    for start, end in zip(starts.tolist(), ends.tolist(), strict=True):
        if end - start > COMMON * count:
            common.append((start, end))
        elif end - start > 1:
            some, value = texts[start:end], values[start:end]
            found[some[:, None], some] += value[:, None] * value
        else:
            found[texts[start], texts[start]] += values[start] ** 2
    for at in range(0, len(common), 512):
        part = common[at : at + 512]
        block = np.zeros((count, len(part)), np.float32)
        for column, (start, end) in enumerate(part):
            block[texts[start:end], column] = values[start:end]
        found += block @ block.T
    return found


def _solved(alike: F32, wanted: F32, models: int) -> F32:
    """The weights of the texts: of what the models' grades are, and of categories behind them."""
    unit = np.eye(len(alike), dtype=np.float32)
    found = np.linalg.solve(alike + RIDGE * unit, wanted[:, :models])
    if wanted.shape[1] > models:
        found = np.hstack([found, np.linalg.solve(alike + RIDGE_OF_CATEGORY * unit, wanted[:, models:])])
    return found


def _classes(categories: Sequence[str]) -> F32:
    """Which text is of which category, float32 [n, categories]: of those that are common enough, if there are two."""
    counts = Counter(categories).most_common(CATEGORIES)
    names = [name for name, count in counts if count >= OF_CATEGORY]
    if len(names) < 2:
        return np.zeros((len(categories), 0), np.float32)
    return np.array([[name == each for each in names] for name in categories], np.float32)


def _factors(
    texts: tuple[Sequence[Features], Lexicon, F32], wanted: F32, grades: F64, folds: NDArray[np.int64]
) -> tuple[TextFigures, F64]:
    """Figures of questions, and those of each question foretold by the others. `texts` are what is read of them, the
    lexicon, and how alike they are; `wanted` the models' grades less their means, and the categories behind them;
    `grades` those that the figures have to tell, and `folds` the questions' folds."""
    read, lexicon, alike = texts
    models = grades.shape[1]
    common = wanted[:, models:].mean(0)
    wanted = np.hstack([wanted[:, :models], wanted[:, models:] - common])
    apart = np.zeros_like(wanted)
    for fold in _bar(range(FOLDS), "folds"):
        learned, left = folds != fold, folds == fold
        apart[left] = alike[np.ix_(left, learned)] @ _solved(alike[np.ix_(learned, learned)], wanted[learned], models)
    _, _, turned = np.linalg.svd(apart[:, :models], full_matrices=False)
    turned = turned[: max(FACTORS)].T
    turned = turned / np.maximum((apart[:, :models] @ turned).std(0), 1e-6)
    categories = figured(apart[:, models:].astype(np.float64), common)
    turned = turned[:, : _enough(apart[:, :models] @ turned, categories, grades, folds)]
    sides = np.zeros((wanted.shape[1], turned.shape[1] + len(common)), np.float32)  # factors, then categories
    sides[:models, : turned.shape[1]] = turned
    sides[models:, turned.shape[1] :] = np.eye(len(common))
    pull = _solved(alike, wanted, models) @ sides
    used = np.unique(np.concatenate([one.rows for one in read]))
    weights = np.zeros((len(used), sides.shape[1]), np.float32)
    for one, pulled in zip(read, pull, strict=True):
        weights[np.searchsorted(used, one.rows)] += (one.scale * lexicon.weight[one.rows])[:, None] * pulled
    figures = TextFigures("abilities", used.astype(np.int32), weights.astype(np.float16), common=common)
    return figures, figured((apart @ sides).astype(np.float64), common)


def _enough(factors: F32, categories: F64, grades: F64, folds: NDArray[np.int64]) -> int:
    """How many of the `factors` [n, k], the first of which tell most, foretell the grades of other folds best."""
    best, found = -np.inf, 1
    for count in sorted({min(count, factors.shape[1]) for count in FACTORS}):
        seen = np.hstack([factors[:, :count], categories]).astype(np.float64)
        chance = np.zeros_like(grades)
        for fold in np.unique(folds):
            left = folds == fold
            chance[left] = chances(_alike(seen[~left], grades[~left]), seen[left])
        likely = float((grades * np.log(chance) + (1 - grades) * np.log(1 - chance)).sum())
        if likely > best:
            best, found = likely, count
    return found


def _index(read: Sequence[Features], alike: F32, less: F32, folds: NDArray[np.int64]) -> tuple[TextFigures, F64]:
    """Graded questions, and the figures of each question by those that are alike of the other folds."""
    near = np.where(folds[:, None] == folds, 0.0, alike)
    near[:, INDEX:] = 0.0
    best = np.argpartition(near, -min(NEAREST, len(read)), axis=1)[:, -NEAREST:]
    share = np.take_along_axis(near, best, 1).astype(np.float64)
    seen = np.einsum("nk,nkm->nm", share, less[best].astype(np.float64)) / (share.sum(1, keepdims=True) + 1.0)
    kept = read[:INDEX]
    starts = np.cumsum([0, *(max(1, len(one.rows)) for one in kept)])[:-1]
    rows = np.concatenate([one.rows if len(one.rows) else np.zeros(1, np.int64) for one in kept])
    scales = np.array([one.scale for one in kept], np.float32)
    return TextFigures(
        "neighbours", rows.astype(np.int32), starts=starts.astype(np.int32), scales=scales, grades=less[:INDEX]
    ), seen


def _each(figures: F64, grades: F64, prior: tuple[float, F64]) -> F64:
    """The weights of each model, float64 [models, 1 + k]."""
    return np.array([_abilities(figures, each, prior) for each in grades.T])


def _alike(figures: F64, grades: F64) -> F64:
    """As `_each`, where each model is little off what is true of the mean of all."""
    common = _abilities(figures, grades.mean(1), (SPREAD, np.zeros(figures.shape[1])))
    return _each(figures, grades, (ALIKE, common[1:]))


def _abilities(figures: F64, grades: F64, prior: tuple[float, F64]) -> F64:
    """The weights of one model: the likeliest under a normal `prior` (precision, and mean float64 [k]), by Newton's
    method."""
    told = np.c_[np.ones(len(figures)), figures]
    precision, middle = prior
    start = np.r_[0.0, middle]
    sure = np.r_[1e-2, np.full(figures.shape[1], precision)]
    found = start.copy()
    for _ in range(25):
        chance = 1 / (1 + np.exp(-np.clip(told @ found, -30, 30)))
        slope = told.T @ (grades - chance) - sure * (found - start)
        step = np.linalg.solve((told * (chance * (1 - chance))[:, None]).T @ told + np.diag(sure), slope)
        found = found + step
        if np.abs(step).max() < 1e-6:
            break
    return found


def _weighed(foretold: F64, grades: F64, prices: F64) -> tuple[float, NDArray[np.int64]]:
    """The greatest weight of the price (1 for the dearest) that costs hardly any quality, and the choices with it."""
    known = ~np.isnan(grades)
    priced = not np.isnan(prices).any() and prices.max() > 0
    at = np.arange(len(grades))
    found: list[tuple[float, NDArray[np.int64], float]] = []
    for weight in (0.0, *np.geomspace(0.005, 0.5, 24).tolist()) if priced else (0.0,):
        less = weight * prices / prices.max() if priced else 0.0
        taken = np.where(known, foretold - less, -np.inf).argmax(1)
        found.append((float(weight), taken, float(grades[at, taken].mean())))
    most = max(mean for *_, mean in found)
    slack = NOTHING * float(np.nanstd(grades)) / np.sqrt(len(grades))
    weight, taken, _ = next(one for one in reversed(found) if one[2] >= most - slack)
    return weight, taken


def _bars(foretold: F64, grades: F64, prices: F64) -> F64:
    """For each of SHARES the least bar by which the cheapest model above it is good so often, with some safety."""
    order = np.argsort(np.nan_to_num(prices, nan=0.0), kind="stable")
    bars: list[float] = []
    for share in SHARES:
        bar = 0.995
        for tried in np.arange(max(0.05, share - 0.1), 0.995, 0.005):
            good = np.where(np.isnan(grades), False, foretold >= tried)[:, order]
            some = good.any(1)
            count = int(some.sum())
            if not count:
                break
            taken = grades[:, order][some, good[some].argmax(1)]
            if taken.mean() - SURE * taken.std() / np.sqrt(count) >= share:
                bar = float(tried)
                break
        bars.append(max(bar, bars[-1] if bars else 0.0))
    return np.array([SHARES, bars])


def _bar(each: Any, what: str) -> Any:
    """With a progress bar, where somebody looks and `tqdm` is there."""
    if not sys.stderr.isatty():
        return each
    try:
        from tqdm import tqdm
    except ImportError:
        return each
    return tqdm(each, desc=what)
