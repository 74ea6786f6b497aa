"""Calibrates the exported model on one half of the held-out texts and measures it: every figure of the model card."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from signals.neural.heads import Heads, HeadVerdict
from signals.train.networks import segments
from signals.train.sources import attacks
from signals.train.sources.corpus import Corpus
from signals.train.sources.data import Data

F64 = NDArray[np.float64]
_ROUNDS = 1000


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number with its 95 % bootstrap interval and how many texts it rests on."""

    name: str
    value: float
    low: float
    high: float
    texts: int


HAND_WRITTEN = ("feedback", "modality", "fact_check")
OWN = (*HAND_WRITTEN, "everyday", "everyday2", "attacks", "reasoning")


_RETRIEVED = (
    "Use the context to answer.\n\nContext: The office is closed on Mondays. Parcels are at the desk.\n\n"
    "Question: {}\nAnswer:"
)


def tested(tests: Path) -> set[str]:
    """The texts of the hand-written test sets, which must not be learned from even where a rule happens to make one."""
    lines = (line for name in OWN for line in (tests / f"{name}.jsonl").read_text().splitlines())
    return {json.loads(line)["text"].casefold() for line in lines}


def second_half(text: str) -> bool:
    """Held-out texts that calibration did not see."""
    return bool(hashlib.sha256(text.encode()).digest()[5] & 1)


def logit(probability: F64) -> F64:
    clipped = np.clip(probability, 1e-7, 1 - 1e-7)
    return np.log(clipped / (1 - clipped))


def platt(scores: F64, truth: F64, weights: F64 | None = None) -> tuple[float, float]:
    """Slope and shift of the logistic regression of `truth` on `scores` (Platt 1999), by Newton's method with the step
    halved until it helps."""
    share = np.ones_like(scores) if weights is None else weights
    design = np.stack((scores, np.ones_like(scores)), 1)
    found = np.array([1.0, 0.0])

    def loss(at: F64) -> float:
        line = design @ at
        fits = np.logaddexp(0, line) - truth * line
        return float((share * fits).sum() + 5e-3 * np.square(at - [1.0, 0.0]).sum())

    for _ in range(50):
        guess = 1 / (1 + np.exp(-np.clip(design @ found, -500, 500)))
        slack = share * guess * (1 - guess)
        step = design.T @ (share * (truth - guess)) - 1e-2 * (found - [1.0, 0.0])
        move = np.linalg.solve(design.T @ (design * slack[:, None]) + 1e-2 * np.eye(2), step)
        while loss(found + move) > loss(found) and np.abs(move).max() > 1e-9:
            move = move / 2
        found = found + move
    return float(found[0]), float(found[1])


def everyday(tests: Path) -> dict[str, list[tuple[str, str]]]:
    """(text, domain) of the hand-written everyday questions: as they are, with a greeting, and in a template; and of a
    second set of them."""
    rows, more = (
        [json.loads(line) for line in (tests / name).read_text().splitlines()]
        for name in ("everyday.jsonl", "everyday2.jsonl")
    )
    frames = {
        "everyday questions": "{}",
        "everyday questions, with a greeting": "Hi there! {} Thanks in advance!",
        "everyday questions, in a template of retrieval": _RETRIEVED,
    }
    found = {name: [(frame.replace("{}", row["text"]), row["label"]) for row in rows] for name, frame in frames.items()}
    return found | {"everyday questions, second set": [(row["text"], row["label"]) for row in more]}


def run(model: Heads, texts: Sequence[str], what: str) -> list[HeadVerdict]:
    return [
        verdict
        for at in tqdm(range(0, len(texts), 32), desc=what, mininterval=5)
        for verdict in model.verdicts(texts[at : at + 32])
    ]


def calibrate(model: Heads, unseen: Corpus) -> dict[str, tuple[float, float]]:
    """Slope and shift by head, from the first half of the held-out texts; heads without labels there keep theirs.
    `jailbreak` is calibrated on traffic (signals/train/traffic.py)."""
    items = [item for item in unseen.items if not second_half(item.text)]
    verdicts = run(model, [item.text for item in items], "calibrate")
    found: dict[str, tuple[float, float]] = {}
    reads: dict[str, Callable[[HeadVerdict], float]] = {
        "reasoning": lambda verdict: verdict.reasoning,
    }
    for head, read in reads.items():
        chosen = [
            (read(verdict), item.labels[head][0])
            for verdict, item in zip(verdicts, items, strict=True)
            if head in item.labels
        ]
        scores, truth = np.array(chosen, np.float64).T
        found[head] = platt(logit(scores), truth)
    return found


def ece(confidence: F64, right: F64, bins: int = 10) -> float:
    """Expected calibration error (Guo et al. 2017): the mean gap between confidence and accuracy over equal bins."""
    places = np.minimum((confidence * bins).astype(int), bins - 1)
    return float(
        sum(
            abs(confidence[places == place].mean() - right[places == place].mean()) * (places == place).mean()
            for place in np.unique(places)
        )
    )


def found_at(positive: F64, negative: F64, alarms: float) -> float:
    """Share of `positive` above the threshold that lets at most `alarms` of `negative` through."""
    threshold = np.sort(negative)[::-1][int(alarms * len(negative))]
    return float(np.mean(positive > threshold))


def auc(positive: F64, negative: F64) -> float:
    """Area under the ROC curve."""
    both = np.concatenate((positive, negative))
    ranks = np.empty(len(both))
    ranks[both.argsort()] = np.arange(1, len(both) + 1)
    return float(
        (ranks[: len(positive)].sum() - len(positive) * (len(positive) + 1) / 2) / len(positive) / len(negative)
    )


def bootstrap(name: str, value: Callable[..., float], *groups: Sequence[F64]) -> Figure:
    """`value` of the groups' columns; each group of arrays is resampled together."""
    chance = np.random.default_rng(5)
    draws = []
    for _ in range(_ROUNDS):
        columns = []
        for group in groups:
            pick = chance.integers(0, len(group[0]), len(group[0]))
            columns += [column[pick] for column in group]
        draws.append(value(*columns))
    low, high = np.quantile(draws, (0.025, 0.975))
    return Figure(
        name, value(*(c for group in groups for c in group)), float(low), float(high), sum(len(g[0]) for g in groups)
    )


def measure(model: Heads, unseen: Corpus, data: Data, tests: Path) -> list[Figure]:
    """All figures of the card, through the shipped runtime."""
    verdicts = run(model, [item.text for item in unseen.items], "measure")
    of = lambda source: [v for v, item in zip(verdicts, unseen.items, strict=True) if item.source == source]  # noqa: E731
    items = lambda source: [item for item in unseen.items if item.source == source]  # noqa: E731
    array = lambda values: np.array(list(values), np.float64)  # noqa: E731
    made: list[Figure] = []
    labelled = [
        (v.reasoning, i.labels["reasoning"][0])
        for v, i in zip(verdicts, unseen.items, strict=True)
        if "reasoning" in i.labels
    ]
    sums, lookups = array(p for p, y in labelled if y), array(p for p, y in labelled if not y)
    made.append(
        bootstrap("reasoning AUC, GSM8K and MMLU maths/physics against intents and look-ups", auc, (sums,), (lookups,))
    )
    for head, read in (("reasoning", lambda v: v.reasoning), ("jailbreak", lambda v: v.direct)):
        pairs = [
            (read(v), float(item.labels[head][0] > 0.5))
            for v, item in zip(verdicts, unseen.items, strict=True)
            if head in item.labels and second_half(item.text)
        ]
        made.append(bootstrap(f"{head} ECE", ece, tuple(np.array(pairs, np.float64).T)))
    attack, role = array(v.direct for v in of("jailbreaks")), array(v.direct for v in of("role prompts"))
    ordinary = array(v.direct for source in ("intents", "mmlu", "gsm8k") for v in of(source))
    made.append(
        bootstrap(
            "jailbreaks found at 1 % false alarms on role-play prompts",
            lambda a, b: found_at(a, b, 0.01),
            (attack,),
            (role,),
        )
    )
    made.append(bootstrap("jailbreak AUC against role-play prompts", auc, (attack,), (role,)))
    made.append(
        bootstrap(
            "jailbreaks found at 1 % false alarms on ordinary traffic",
            lambda a, b: found_at(a, b, 0.01),
            (attack,),
            (ordinary,),
        )
    )
    chance = random.Random(3)
    for kind in attacks.OBFUSCATIONS:
        disguised = [attacks.obfuscate(item.text, kind, chance) for item in items("jailbreaks")]
        scores = array(v.direct for v in run(model, disguised, kind))
        made.append(
            bootstrap(
                f"the same against role-play prompts, attacks disguised by {kind}",
                lambda a, b: found_at(a, b, 0.01),
                (scores,),
                (role,),
            )
        )
    documents, planted = segments.evaluation(data, 1)
    clean, dirty = (array(v.planted for v in run(model, texts, "planted")) for texts in (documents, planted))
    made.append(
        bootstrap(
            "BIPIA attacks in documents found at 2 % false alarms",
            lambda a, b: found_at(a, b, 0.02),
            (dirty,),
            (clean,),
        )
    )
    rows = [json.loads(line) for line in (tests / "reasoning.jsonl").read_text().splitlines()]
    answers = run(model, [row["text"] for row in rows], "steps")
    yes, no = (
        array(v.reasoning for v, row in zip(answers, rows, strict=True) if row["label"] == label)
        for label in ("yes", "no")
    )
    made.append(bootstrap("reasoning AUC, hand-written test set", auc, (yes,), (no,)))
    for head in HAND_WRITTEN:
        rows = [json.loads(line) for line in (tests / f"{head}.jsonl").read_text().splitlines()]
        answers = run(model, [row["text"] for row in rows], head)
        if head == "fact_check":
            given = [
                ("needed", v.fact_check) if v.fact_check >= 0.5 else ("not_needed", 1 - v.fact_check) for v in answers
            ]
        else:
            given = [max(getattr(v, head).items(), key=lambda pair: pair[1]) for v in answers]
        right = array(label == row["label"] for (label, _), row in zip(given, rows, strict=True))
        made.append(bootstrap(f"{head} accuracy, hand-written test set", lambda x: float(x.mean()), (right,)))
        made.append(bootstrap(f"{head} ECE, hand-written test set", ece, (array(p for _, p in given), right)))
    return made
