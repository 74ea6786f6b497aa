"""`python -m signals.train --data DIR`: rebuilds signals/models/ from public data. About twenty minutes on one core."""

from __future__ import annotations

import argparse
import hashlib
import random
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from signals.neural import heads as runtime
from signals.neural import lexer
from signals.neural.features import Features, features
from signals.neural.normalise import normalise
from signals.neural.tokenizer import MODELS, Lexicon
from signals.train import card, corpus, embedder, export, heads, lexicon, measure, minilm, segments
from signals.train.data import Data, question_of

SEED: Final = 7
_TEACHER_CUT: Final = 600
_LENGTH_SHARE: Final = 0.75
"""How much of a word problem's difficulty is judged by its length: hardly anything else tells among them."""


_WINDOW_MARGIN: Final = 4.0
"""By how many logits a window must be surer of an attack than the whole text: one of many is more often wrong."""


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


def vocabulary() -> list[str]:
    """The teacher's whole words and signs."""
    lines = (minilm.folder() / "vocab.txt").read_text().split("\n")
    return [line for line in lines if re.fullmatch(r"[^\W_]+|[^\w\s]", line)]


def teaching_texts(data: Data) -> list[str]:
    """What the embedding learns from: every training text's first 600 characters, questions without their choices."""
    wanted = [name for name in data.sources if name != "language/sentences"]
    return [
        question_of(row[data.sources[name].key])[:_TEACHER_CUT]
        for name in wanted
        for row in (data.part(name)[:2500] if name == "reasoning/gsm8k_train" else data.part(name))
    ]


def embed_table(data: Data, built: Lexicon, cache: Path | None) -> NDArray[np.float32]:
    """The word vectors float32 [embedded, 96], distilled from the teacher."""
    names, texts = vocabulary(), teaching_texts(data)
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


def read_all(items: Sequence[corpus.Item], built: Lexicon, what: str) -> list[Features]:
    known: dict[str, Features] = {}
    for item in tqdm(items, desc=what, mininterval=5):
        if item.text not in known:
            known[item.text] = features(normalise(item.text, built), built)
    return [known[item.text] for item in items]


def _by_length(read: Sequence[Features], items: Sequence[corpus.Item]) -> tuple[float, float]:
    """Slope and shift of the logistic regression of difficulty on the length of graded word problems."""
    graded = [(text.style[-1], item.labels["difficulty"][0]) for text, item in zip(read, items, strict=True)
              if item.source == "gsm8k graded"]  # fmt: skip
    length, hard = np.array(graded, np.float64).T
    return measure.platt(length, hard)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m signals.train", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data (docs/models.md)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the models and their card go")
    parser.add_argument("--cache", type=Path, help="keep the teacher's vectors here between runs")
    parser.add_argument("--tests", type=Path, default=Path("tests/data"), help="the hand-written test sets")
    parser.add_argument("--epochs", type=int, default=7)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    random.seed(SEED)
    data = Data(args.data)
    lessons = corpus.build(data, SEED)
    tested = measure.tested(args.tests)
    lessons.items = [item for item in lessons.items if item.text.casefold() not in tested]
    more = [
        row[key]
        for name, key in (("pii/presidio_synth", "text"), ("language/sentences", "text"))
        for row in data.part(name)
    ]
    texts = list(dict.fromkeys([item.text for item in lessons.items] + more))
    args.out.mkdir(parents=True, exist_ok=True)
    lexicon_path, model_path = args.out / "lexicon.npz", args.out / "heads.onnx"
    lexicon.save(lexicon.build(texts, vocabulary()), lexicon_path)
    built = Lexicon.load(lexicon_path)
    table = embed_table(data, built, args.cache)
    read = read_all(lessons.items, built, "features")
    model = heads.Heads(built.weight, table, len(lessons.subjects))
    heads.train(model, read, lessons.items, SEED, args.epochs)
    planted, planted_bias = segments.train(data, built, SEED)
    slices = model.slices()
    column = slices["jailbreak"].start
    wide = model.wide.detach().numpy() * built.weight[:, None]
    wide[0] = 0
    jailbreaks = [
        text for text, item in zip(read, lessons.items, strict=True) if item.source in ("jailbreaks", "role prompts")
    ]
    deep = heads.deep(model, jailbreaks)[:, column].mean()
    weights = export.Weights(
        wide=wide,
        table=table,
        inner=(model.inner.weight.detach().numpy(), model.inner.bias.detach().numpy()),
        outer=(model.outer.weight.detach().numpy(), model.outer.bias.detach().numpy()),
        slices=slices,
        domain_of=lessons.domain_of,
        parts=np.stack((wide[:, column], planted * built.weight), 1),
        parts_bias=np.array([deep - _WINDOW_MARGIN, planted_bias], np.float32),
        weight=built.weight,
        calibration={},
        length=(lessons.subjects.index("word problems"), _LENGTH_SHARE, *_by_length(read, lessons.items)),
    )
    labels = {"domain": lessons.domains, "feedback": corpus.FEEDBACK, "modality": corpus.MODALITY}
    export.save(export.build(weights), labels, model_path)
    unseen = corpus.build(data, SEED, held_out=True)
    # Calibrated on one half of the held-out texts; the card reports the error on the other.
    weights.calibration = measure.calibrate(runtime.Heads(model_path, lexicon_path), unseen, data)
    export.save(export.build(weights), labels, model_path)
    shipped = runtime.Heads(model_path, lexicon_path)
    figures = measure.measure(shipped, unseen, data, args.tests)
    entries = f"{built.rows - 1:,} entries, {built.embedded - 1:,} of them words"
    card.write(args.out / "heads.md", figures, data, [model_path, lexicon_path], entries)


if __name__ == "__main__":
    main()
