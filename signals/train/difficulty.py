"""`python -m signals.train.difficulty --data DIR`: trains what `difficulty` reads, measures it on models and on sources
that training did not see, and writes signals/models/difficulty.npz with its card. Some five minutes on one core.

The outcomes of many models at questions of four sources are explained by one ability for each model and by two parameters
for each question (signals/neural/outcomes.py), which are learned as functions of the question's text.
"""

# ruff: noqa: E501  a page of Markdown

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm import tqdm

from signals.neural.features import STYLE, Features, features
from signals.neural.normalise import normalise
from signals.neural.outcomes import Outcomes, fails
from signals.neural.tokenizer import MODELS, Lexicon
from signals.train.measure import auc, ece
from signals.train.networks import export
from signals.train.networks.heads import batch
from signals.train.sources.data import Data, held, question_of

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]
Arrays = dict[str, Any]
"""What a file of `Outcomes` holds, by name."""

SEED: Final = 7
REFERENCE: Final = "selection/mmlu_pro_outcomes"
"""The questions of which a standing is the share answered rightly."""
SOURCES: Final = {
    REFERENCE: ("MMLU-Pro", 4.0),
    "domain/mmlu": ("MMLU", 1.0),
    "selection/llmrouter_scores": ("LLMRouter", 0.5),
    "difficulty/gsm8k": ("GSM8K", 1.0),
}
"""Name and weight of each file's questions."""
_PAIR: Final = {"weak_correct": "Mixtral-8x7B-Instruct-v0.1", "strong_correct": "gpt-4-1106"}
FOLDS: Final = 4
"""Every fourth model of the reference, by its share of right answers, is left out of one training."""
HIDDEN, DROP, DROP_DEEP = 64, 0.3, 0.2
EPOCHS, SIZE, PEAK, RIDGE = 8, 512, 0.015, 0.01
_ROUNDS: Final = 300


@dataclass(frozen=True, slots=True)
class ExamQuestion:
    """One question: its text as the heads read it, the embedding, and the share of points that each model missed."""

    text: str
    source: str
    read: Features
    embedding: F32
    missed: dict[str, float]

    @property
    def unseen(self) -> bool:
        """Whether no training learns from it."""
        return held(question_of(self.text))


def outcomes(row: dict[str, Any]) -> dict[str, float]:
    """What each model missed at the question of a row, 0 to 1."""
    scores = row.get("scores") or {model: row[key] for key, model in _PAIR.items()}
    return {model: 1 - min(1.0, max(0.0, float(score))) for model, score in scores.items()}


def questions(data: Data, built: Lexicon, table: F32) -> list[ExamQuestion]:
    """All questions of the SOURCES. `table` float32 [words, d]: the word vectors of the heads."""
    found = []
    for name, (source, _) in SOURCES.items():
        for row in tqdm(data.sources[name].rows, desc=source, mininterval=5):
            text = data.sources[name].text(row)
            read = features(normalise(text, built), built)
            total = table[read.words].sum(0)
            embedding = (total / (np.linalg.norm(total) + 1e-6)).astype(np.float32)
            found.append(ExamQuestion(text, source, read, embedding, outcomes(row)))
    return found


class ExaminedModel(nn.Module):
    """Hardness and steepness (before softplus), float32 [n] each, of a batch; and an ability for each of some models."""

    def __init__(self, rows: int, seen: int, models: int) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.zeros(rows, 1))
        self.inner, self.outer, self.line = nn.Linear(seen, HIDDEN), nn.Linear(HIDDEN, 2), nn.Linear(seen, 2)
        for part in (self.line.weight, self.line.bias, self.outer.bias):
            nn.init.zeros_(part)
        self.abilities = nn.Parameter(torch.zeros(models))

    def forward(self, some: Sequence[ExamQuestion], weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        given = batch([one.read for one in some])
        weights = weight[given.flat]
        if self.training:
            weights = weights * (torch.rand(len(weights)) > DROP) / (1 - DROP)
        wide = nn.functional.embedding_bag(given.flat, self.wide, given.offsets, mode="sum", per_sample_weights=weights)
        seen = torch.cat((torch.from_numpy(np.stack([one.embedding for one in some])), given.style), 1)
        hidden = nn.functional.dropout(torch.relu(self.inner(seen)), DROP_DEEP, self.training)
        deep = self.outer(hidden) + self.line(seen)
        return wide[:, 0] * given.scale + deep[:, 0], deep[:, 1]


def learn(lessons: Sequence[ExamQuestion], built: Lexicon, without: Collection[str] = ()) -> Arrays:
    """The arrays of `Outcomes` but for the abilities, learned from the outcomes of all models but those in `without`.

    A question counts by the root of the number of its outcomes; they depend on each other.
    """
    torch.manual_seed(SEED)
    chance = np.random.default_rng(SEED)
    models = sorted({model for one in lessons for model in one.missed} - {*without})
    missed = np.array([[one.missed.get(model, np.nan) for model in models] for one in lessons], np.float32)
    some = np.flatnonzero(~np.isnan(missed).all(1))
    share = dict(SOURCES.values())
    weight = torch.from_numpy(built.weight)
    model = ExaminedModel(built.rows, len(lessons[0].embedding) + STYLE, len(models))
    deep = [part for name, part in model.named_parameters() if name not in ("wide", "abilities")]
    groups = [([model.wide], PEAK, 0.0), (deep, PEAK / 4, 0.05), ([model.abilities], 0.05, 0.0)]
    adam = torch.optim.AdamW([{"params": part, "lr": rate, "weight_decay": decay} for part, rate, decay in groups])
    steps, step = EPOCHS * -(-len(some) // SIZE), 0
    model.train()
    for _ in range(EPOCHS):
        order = chance.permutation(some)
        for at in range(0, len(order), SIZE):
            chosen = order[at : at + SIZE]
            hard, steep = model([lessons[i] for i in chosen], weight)
            logits = hard[:, None] - nn.functional.softplus(steep)[:, None] * model.abilities
            truth = torch.from_numpy(missed[chosen])
            known = ~torch.isnan(truth)
            losses = (
                nn.functional.binary_cross_entropy_with_logits(logits, truth.nan_to_num(), reduction="none") * known
            )
            masses = torch.tensor([share[lessons[i].source] for i in chosen])
            loss = (losses.sum(1) / known.sum(1).sqrt() * masses).mean() + 1e-3 * model.abilities.square().mean()
            rows = torch.from_numpy(np.unique(np.concatenate([lessons[i].read.rows for i in chosen])))
            loss = loss + RIDGE * model.wide[rows].square().sum() / len(chosen)
            for group, (_, rate, _) in zip(adam.param_groups, groups, strict=True):
                group["lr"] = rate * (1 - step / steps)
            adam.zero_grad()
            loss.backward()
            adam.step()
            step += 1
    wide = model.wide.detach().numpy()[:, 0] * built.weight
    wide[0] = 0
    top = float(np.abs(wide).max()) / 127
    arrays: Arrays = {"wide": np.rint(wide / top).astype(np.int8), "step": np.float32(top)}
    for name in ("inner", "outer", "line"):
        layer = getattr(model, name)
        arrays[name] = layer.weight.detach().numpy().T.astype(np.float16)
        arrays[f"{name}_bias"] = layer.bias.detach().numpy()
    return arrays


def graded(arrays: Arrays, reference: Sequence[ExamQuestion], path: Path) -> Outcomes:
    """Writes the arrays at `path`, with the abilities of models by the share of the reference that they answer."""
    standings = np.linspace(0.02, 0.98, 49, dtype=np.float32)
    arrays |= {"standings": standings, "abilities": np.zeros_like(standings)}
    np.savez_compressed(path, **arrays)
    made = Outcomes(path)
    hard, steep = np.array([made.item(one.read, one.embedding) for one in reference]).T
    grid = np.linspace(-12, 12, 961)
    right = np.array([np.mean(1 / (1 + np.exp(hard - steep * ability))) for ability in grid])
    arrays["abilities"] = np.interp(standings, right, grid).astype(np.float32)
    np.savez_compressed(path, **arrays)
    return Outcomes(path)


def standing(model: str, reference: Sequence[ExamQuestion]) -> float:
    """The share of the reference's points that a model has."""
    return 1 - float(np.mean([one.missed[model] for one in reference if model in one.missed]))


def _pairs(made: Outcomes, some: Sequence[ExamQuestion], model: str, ability: float) -> tuple[F64, F64]:
    """Foretold and real failures of a model, those at which it had all points or none."""
    rows = [(fails(made.item(one.read, one.embedding), ability), one.missed[model]) for one in some
            if one.missed.get(model) in (0.0, 1.0)]  # fmt: skip
    chance, truth = np.array(rows, np.float64).reshape(-1, 2).T
    return chance, truth


def _auc(chance: F64, truth: F64) -> float:
    return auc(chance[truth == 1], chance[truth == 0])


def _interval(chance: F64, truth: F64) -> tuple[float, float]:
    """95 % of the AUC over bootstrap samples."""
    rng = np.random.default_rng(SEED)
    draws = []
    for _ in range(_ROUNDS):
        pick = rng.integers(0, len(truth), len(truth))
        draws.append(_auc(chance[pick], truth[pick]))
    low, high = np.quantile(draws, (0.025, 0.975))
    return float(low), float(high)


def _row(name: str, given: float, chance: F64, truth: F64, length: F64) -> str:
    low, high = _interval(chance, truth)
    return (
        f"| {name} | {given:.2f} | {len(truth):,} | {truth.mean():.2f} | {_auc(chance, truth):.3f} | {low:.3f} – {high:.3f} | "
        f"{_auc(length, truth):.3f} | {ece(chance, truth):.3f} |"
    )


def models_left_out(all_: Sequence[ExamQuestion], built: Lexicon, scratch: Path) -> tuple[list[str], dict[str, float]]:
    """Markdown rows of each model of the reference, left out of training, at questions that were left out as well; and
    the means."""
    lessons = [one for one in all_ if not one.unseen]
    reference = [one for one in lessons if one.source == "MMLU-Pro"]
    tests = [one for one in all_ if one.unseen and one.source == "MMLU-Pro"]
    ranked = sorted({model for one in reference for model in one.missed}, key=lambda model: standing(model, reference))
    rows, seen = {}, []
    for fold in range(FOLDS):
        without = ranked[fold::FOLDS]
        made = graded(learn(lessons, built, without), reference, scratch)
        for model in without:
            given = standing(model, reference)
            chance, truth = _pairs(made, tests, model, made.ability(given))
            length = np.array([len(one.text) for one in tests if one.missed.get(model) in (0.0, 1.0)], np.float64)
            rows[model] = _row(model, given, chance, truth, length)
            seen.append((chance, truth))
    chance, truth = np.concatenate([a for a, _ in seen]), np.concatenate([b for _, b in seen])
    means = {
        "auc": float(np.mean([_auc(*one) for one in seen])),
        "ece": float(np.mean([ece(*one) for one in seen])),
        "pooled_auc": _auc(chance, truth),
        "pooled_ece": ece(chance, truth),
    }
    return [rows[model] for model in ranked], means


def sources_left_out(all_: Sequence[ExamQuestion], built: Lexicon, scratch: Path) -> list[str]:
    """Markdown rows of each source, left out of training: for every model that it has outcomes of, and their mean. A model
    has the standing with which as many failures are foretold as there are: only their order is tested."""
    rows = []
    for source, _ in SOURCES.values():
        lessons = [one for one in all_ if one.source != source]
        tests = [one for one in all_ if one.source == source]
        made = graded(learn(lessons, built), [one for one in all_ if one.source == "MMLU-Pro"], scratch)
        found = []
        for model in sorted({model for one in tests for model in one.missed}):
            ability = _matching(made, tests, 1 - standing(model, tests))
            chance, truth = _pairs(made, tests, model, ability)
            length = np.array([len(one.text) for one in tests if one.missed.get(model) in (0.0, 1.0)], np.float64)
            found.append((_auc(chance, truth), _auc(length, truth), ece(chance, truth)))
        mean, by_length, error = np.mean(found, 0)
        worst, best = min(found)[0], max(found)[0]
        rows.append(
            f"| {source} | {len(tests):,} | {len(found)} | {mean:.3f} | {worst:.3f} – {best:.3f} | {by_length:.3f} | {error:.3f} |"
        )
    return rows


def _matching(made: Outcomes, some: Sequence[ExamQuestion], failures: float) -> float:
    """The ability with which the share `failures` of the questions is foretold to be missed."""
    hard, steep = np.array([made.item(one.read, one.embedding) for one in some]).T
    low, high = -12.0, 12.0
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if np.mean(1 / (1 + np.exp(steep * middle - hard))) > failures else (low, middle)
    return low


def make(data: Data, built: Lexicon, table: F32, out: Path) -> None:
    """Measures, trains and writes difficulty.npz and its card to `out`. `data`: the files of SOURCES."""
    all_ = questions(data, built, table)
    path = out / "difficulty.npz"
    rows, means = models_left_out(all_, built, path)
    sources = sources_left_out(all_, built, path)
    reference = [one for one in all_ if one.source == "MMLU-Pro"]
    graded(learn(all_, built), reference, path)
    path.with_suffix(".md").write_text(
        _CARD.format(
            file=f"- `{path.name}`: {path.stat().st_size:,} bytes, sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`",
            questions=len(all_),
            models="\n".join(rows),
            sources="\n".join(sources),
            folds=FOLDS,
            **means,
            count=len({model for one in all_ for model in one.missed}),
            data="\n".join(f"- `{name}.jsonl.gz`, sha256 `{digest}`" for name, digest in data.checksums.items()),
        )
    )


_CARD: Final = """\
# difficulty.npz

What `difficulty` reads: the probability that a model of a given standing fails. Generated by `python -m signals.train --data
DIR`, or alone by `python -m signals.train.difficulty`; do not edit.

## Files

{file}

## What it is

An item-response model (two-parameter logistic, Birnbaum 1968): a model of the ability a fails at a question with the
probability sigmoid(hardness - steepness x a). Both parameters are foretold from the text: the hardness by the sum of the weights
of its words, pairs of words, beginnings and ends of words (those of heads.onnx), and both by a small network on the
embedding and on figures of style (length, digits, signs). It was trained on the outcomes of {count} models at {questions:,} questions;
each model has one ability for all sources.

A standing is the share of MMLU-Pro's questions (ten choices at most, direct answers graded) that a model answers rightly: it is turned into
an ability by a table. The first table has examples; for a model that is not there, take its published result in MMLU-Pro.

## Models that training never saw, at questions that it never saw

MMLU-Pro's outcomes, 15 % of the questions and every {folds}th of the models left out. The standing is the share of right
answers at the other questions. ECE: expected calibration error, of ten bins. Mean over the models: AUC {auc:.3f}, ECE
{ece:.3f}; all their outcomes together: AUC {pooled_auc:.3f}, ECE {pooled_ece:.3f}.

| model | standing | questions | fails | AUC | 95 % interval | AUC of the length | ECE |
|---|---|---|---|---|---|---|---|
{models}

## Sources that training never saw

Trained on the other three sources, judged on all questions of the fourth. Here a model's standing is the one with which as many
failures are foretold as there are.

| source | questions | models | AUC, mean | least – most | AUC of the length | ECE, mean |
|---|---|---|---|---|---|---|
{sources}

## Data

{data}

MMLU-Pro's outcomes: TIGER-AI-Lab/MMLU-Pro, Apache-2.0. LLMRouter's scores: ulab-uiuc/LLMRouter, MIT. MMLU: Hendrycks et al. (2021), MIT, and
GSM8K: Cobbe et al. (2021), MIT, with the answers of Mixtral-8x7B and GPT-4 (1106) graded in lm-sys/RouteLLM, Apache-2.0.

## Limits

- It foretells who fails, not what a larger model gains: at the hardest questions both fail. Which model is worth its price is
  the selectors' matter, which learn from your own traffic.
- The strongest models fail at other questions than the rest (law, engineering and lore rather than sums), and specialists (for
  code, for mathematics) at others again: it tells them worse, see the table.
- All outcomes are of questions that have one right answer. On letters, poems and talk the probability is that of a question
  with such words, and nothing was measured there.
- On grade-school word problems alone (GSM8K) it is hardly better than chance when nothing like them was learned.
- English: in other languages it sees little more than length, digits and signs.
"""


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m signals.train.difficulty", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data (docs/models.md)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the heads are, and this model and its card go")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    built = Lexicon.load(args.out / "lexicon.npz")
    make(Data(args.data, tuple(SOURCES)), built, export.word_vectors(args.out / "heads.onnx"), args.out)


if __name__ == "__main__":
    main()
