"""What every training of the shipped model learns from, and how its heads learn it."""

from __future__ import annotations

import argparse
import hashlib
import random
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from signals.neural import lexer
from signals.neural.features import Features, features
from signals.neural.normalise import normalise
from signals.neural.tokenizer import MODELS, Lexicon
from signals.train import measure, traffic
from signals.train.networks import embedder, export, heads, lexicon, minilm, segments
from signals.train.sources import corpus, written
from signals.train.sources.data import Data, question_of

SEED: Final = 7
_TEACHER_CUT: Final = 600


def _teach(texts: Sequence[str], what: str, cache: Path | None, batch: int = 32) -> NDArray[np.float32]:
    """The teacher's vectors of `texts`, kept in `cache` under the hash of the texts."""
    if cache is None:
        return minilm.embed(texts, what, batch)
    path = cache / f"{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, minilm.embed(texts, what, batch))
    found: NDArray[np.float32] = np.load(path)
    return found


def _kept(cache: Path | None, of: Path, make: Callable[[], NDArray[np.float32]]) -> NDArray[np.float32]:
    """What `make` gives, kept in `cache` under the hash of the file that it depends on."""
    if cache is None:
        return make()
    path = cache / f"{hashlib.sha256(of.read_bytes()).hexdigest()[:16]}.npy"
    if not path.exists():
        np.save(path, make())
    found: NDArray[np.float32] = np.load(path)
    return found


def vocabulary(data: Data) -> list[str]:
    """The teacher's whole words and signs; in a trial some of them."""
    lines = (minilm.folder() / "vocab.txt").read_text().split("\n")
    return [line for line in lines if re.fullmatch(r"[^\W_]+|[^\w\s]", line)][: data.limit]


def teaching_texts(data: Data) -> list[str]:
    """What the embedding learns from: every training text's first 600 characters, questions without their choices."""
    wanted = [name for name in data.sources if name != "language/sentences" and not name.startswith("wild/")]
    return [
        question_of(row[data.sources[name].key])[:_TEACHER_CUT]
        for name in wanted
        for row in (data.part(name)[:2500] if name == "reasoning/gsm8k_train" else data.part(name))
    ]


def embed_table(data: Data, built: Lexicon, cache: Path | None) -> NDArray[np.float32]:
    """The word vectors float32 [embedded, 96], distilled from the teacher."""
    names, texts = vocabulary(data), teaching_texts(data)
    of_words, of_texts = _teach(names, "teacher: words", cache, 128), _teach(texts, "teacher: texts", cache)
    mean, directions = embedder.components(of_texts)
    start = np.zeros((built.embedded, embedder.WIDTH), np.float32)
    reduced = (of_words - of_words.mean(0)) @ directions
    for name, vector in zip(names, reduced, strict=True):
        found = lexer.words(name)
        row = built.find(found.hashes)[0] if len(found) == 1 else 0
        if 0 < row < built.embedded:
            start[row] = vector
    start *= (built.weight[: built.embedded] / built.weight.max())[:, None]
    rows = []
    for text in texts:
        found_rows = built.find(lexer.words(text).hashes)
        rows.append(found_rows[(found_rows > 0) & (found_rows < built.embedded)])
    targets = ((of_texts - mean) @ directions).astype(np.float32)
    return embedder.distil(start, rows, targets, SEED)


def letters(text: str) -> str:
    """`text` without what a copy may be changed by: case, spaces and signs."""
    return "".join(filter(str.isalnum, text.casefold()))


def read_all(items: Sequence[corpus.Item], built: Lexicon, what: str) -> list[Features]:
    known: dict[str, Features] = {}
    for item in tqdm(items, desc=what, mininterval=5):
        if item.text not in known:
            known[item.text] = features(normalise(item.text, built), built)
    return [known[item.text] for item in items]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """What a training learns from: the texts, read by the lexicon, with the frozen word vectors; `told` is what the
    card says of those that were written for it."""

    data: Data
    lessons: corpus.Corpus
    told: str
    read: Sequence[Features]
    built: Lexicon
    table: NDArray[np.float32]
    epochs: int


def learn(lesson: TrainingSet, without: Collection[str] = ()) -> export.Weights:
    """Heads trained on everything but the sources `without`, not calibrated yet."""
    lessons, built = lesson.lessons, lesson.built
    kept = [index for index, item in enumerate(lessons.items) if item.source not in without]
    read, items = [lesson.read[index] for index in kept], [lessons.items[index] for index in kept]
    model = heads.HeadsNetwork(built.weight, lesson.table, lessons.domain_of)
    heads.train(model, read, items, SEED, lesson.epochs)
    planted, planted_bias = segments.train(lesson.data, built, SEED, without)
    slices = model.slices()
    column = slices["jailbreak"].start
    wide = model.wide.detach().numpy() * built.weight[:, None]
    wide[0] = 0
    long = [text for text, item in zip(read, items, strict=True) if item.source in ("role prompts", "contexts")]
    return export.Weights(
        wide=wide,
        table=lesson.table,
        inner=(model.inner.weight.detach().numpy(), model.inner.bias.detach().numpy()),
        outer=(model.outer.weight.detach().numpy(), model.outer.bias.detach().numpy()),
        slices=slices,
        domain_of=lessons.domain_of,
        parts=np.stack((wide[:, column], planted * built.weight), 1),
        parts_bias=np.array([heads.deep(model, long)[:, column].mean(), planted_bias], np.float32),
        weight=built.weight,
        calibration={},
    )


def lean(lesson: TrainingSet) -> TrainingSet:
    """`lesson` with the heads that trainings with sources left out are looked at for: the others would take most of the
    time."""
    items = [
        corpus.Item(item.text, {head: item.labels[head] for head in traffic.HEADS if head in item.labels}, item.source)
        for item in lesson.lessons.items
    ]
    return replace(lesson, lessons=corpus.Corpus(items, ["none"], ["none"], [0]))


def options(prog: str, description: str | None) -> argparse.Namespace:
    """The options of a training's command."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog=prog, description=description)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data (docs/models.md)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the models and their card go")
    parser.add_argument("--assistant", type=Path, required=True, metavar="WHEEL", help="see sources/assistant.py")
    parser.add_argument("--cache", type=Path, help="keep the teacher's vectors here between runs")
    parser.add_argument("--tests", type=Path, default=Path("tests/data"), help="the hand-written test sets")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--limit", type=int, help="a trial: no more texts of each source than this; needs --out")
    parser.add_argument("--only", choices=["jailbreak"], help="keep the lexicon, the word vectors and the other heads")
    args = parser.parse_args()
    if args.limit is not None and (args.limit < 100 or args.out == MODELS):
        parser.error(
            "--limit: at least 100, and with --out, since models that learned from so few texts are not to ship"
        )
    return args


def known(data: Data, lessons: corpus.Corpus) -> list[str]:
    """The texts whose words the lexicon knows."""
    more = [
        row[key]
        for name, key in (("pii/presidio_synth", "text"), ("language/sentences", "text"))
        for row in data.part(name)
    ]
    own = [item.text for item in lessons.items if item.source not in ("mmlu talk", corpus.SUFFIXED)]
    return list(dict.fromkeys(own + more))


_FEW: Final = {
    "mmlu": 0.1, "mmlu bare": 0.1, "mmlu talk": 0.05, "gsm8k": 0.2, "gsm8k graded": 0, "llmrouter": 0.4,
    "intents": 0.25, "written questions": 0.35, "written puzzles": 0.3, "written modality": 0.2,
    "written fact_check": 0.1, "written feedback": 0.4,
}  # fmt: skip
"""The share of a source that is enough to know that its texts are no attacks."""


def some(items: Sequence[corpus.Item]) -> list[corpus.Item]:
    """What says something of attacks, without the many that say the same."""
    chance = random.Random(SEED)
    return [
        item
        for item in items
        if "jailbreak" in item.labels and (item.source not in _FEW or chance.random() < _FEW[item.source])
    ]


def prepare(args: argparse.Namespace, *, kept: bool = False) -> TrainingSet:
    """The texts that all trainings learn from, read by the lexicon, which is written; or by the one that is there,
    `kept` with its word vectors."""
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(SEED)
    data = Data(args.data, limit=args.limit, assistant=args.assistant)
    lessons = corpus.build(data, SEED)
    tested = measure.tested(args.tests)
    public = {letters(text) for held_out in (False, True) for text in data.texts(held_out)}
    lessons.items = [
        item
        for item in lessons.items
        if item.text.casefold() not in tested
        and not (item.source.startswith("written") and letters(item.text) in public)  # written means not copied
    ]
    told, path = written.told(lessons.items), args.out / "lexicon.npz"
    if not kept:
        args.out.mkdir(parents=True, exist_ok=True)
        lexicon.save(lexicon.build(known(data, lessons), vocabulary(data)), path)
    built = Lexicon.load(path)
    if kept:
        lessons.items = some(lessons.items)
        table = export.word_vectors(args.out / "heads.onnx")
    else:
        table = _kept(args.cache, path, lambda: embed_table(data, built, args.cache))
    read = read_all(lessons.items, built, "features")
    return TrainingSet(data, lessons, told, read, built, table, args.epochs)
