"""Fits the token estimate: `python -m signals.train.tokens --data FOLDER`. Needs `pip install bpe-openai`.

A text's token count is taken to be a sum over its bytes. The weight of each byte value is fitted by ridge regression of
the relative error against o200k's true counts, over 75 languages, questions, role prompts, JSON and code, each source
weighing the same whatever its size. Weights are drawn towards their class's, so that a rare byte cannot go astray.
"""

from __future__ import annotations

import argparse
import json
import random
import sysconfig
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signals.text.estimate import WEIGHTS, ByteWeights
from signals.train.data import Data, held

SOURCES = (
    ("domain/mmlu", "prompt", 1500),
    ("reasoning/gsm8k_train", "question", 1000),
    ("intent/clinc150", "text", 1000),
    ("jailbreak/inthewild", "text", 400),
    ("jailbreak/benign_role_prompts", "text", 500),
    ("pii/presidio_synth", "text", 1000),
)
WORTH = {"en": 3.0, "code": 8.0, "json": 5.0, "domain/mmlu": 6.0} | dict.fromkeys(
    ("zh", "de", "fr", "es", "ru", "ja", "pt"), 2.0
)
"""How much a source counts; 4 for the other sources of English, 1 for the other languages."""

PULL = 0.003


def documents(data: Data) -> list[tuple[str, str, bool]]:
    """Source, text, and whether it is held out."""
    rng = random.Random(0)
    found: list[tuple[str, str, bool]] = []
    for held_out in (False, True):
        languages: dict[str, list[str]] = defaultdict(list)
        for row in data.part("language/sentences", held_out):
            languages[row["language"]].append(row["text"])
        for language, texts in languages.items():
            for start in range(len(texts)):
                found.append((language, " ".join(texts[start : start + rng.choice([1, 1, 3, 6])]), held_out))
        for name, key, most in SOURCES:
            rows = data.part(name, held_out)
            rng.shuffle(rows)
            found += [(name, row[key], held_out) for row in rows[:most]]
            found += [("json", json.dumps(row), held_out) for row in rows[:60]]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:160]:
        source = path.read_text(errors="ignore")
        for _ in range(4):
            start = rng.randrange(max(1, len(source) - 1500))
            found.append(("code", source[start : start + rng.randint(200, 1500)], held(path.name)))
    return [document for document in found if document[1].strip()]


def histogram(text: str) -> NDArray[np.float64]:
    return np.bincount(np.frombuffer(text.encode(), np.uint8), minlength=256).astype(np.float64)


def prior() -> NDArray[np.float64]:
    """A plausible weight by class of byte."""
    weights = np.full(256, 0.2)
    weights[32] = 0.1
    weights[ord("A") : ord("Z") + 1] = 0.45
    for char in map(chr, range(33, 127)):
        if char.isdigit():
            weights[ord(char)] = 0.4
        elif not char.isalpha():
            weights[ord(char)] = 0.6
    weights[128:192] = 0.1
    weights[192:] = 0.3
    return weights


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public data")
    given = parser.parse_args()
    import bpe_openai

    encoding: Any = bpe_openai.get_encoding("o200k_base")
    found = documents(Data(given.data))
    source = np.array([name for name, _, _ in found])
    test = np.array([held_out for _, _, held_out in found])
    counts = np.array([len(encoding.encode_ordinary(text)) for _, text, _ in found], dtype=np.float64)
    bytes_ = np.stack([histogram(text) for _, text, _ in found])
    names, sizes = np.unique(source[~test], return_counts=True)
    worth = {name: WORTH.get(name, 4.0 if "/" in name else 1.0) / size for name, size in zip(names, sizes, strict=True)}
    root = np.sqrt([worth[name] for name in source[~test]])
    rows = bytes_[~test] / counts[~test, None] * root[:, None]
    start = prior()
    missing = root - rows @ start
    weights = start + np.linalg.solve(rows.T @ rows + PULL * np.eye(256), rows.T @ missing)
    WEIGHTS.write_text(json.dumps([round(float(weight), 3) for weight in weights]) + "\n")

    estimate = ByteWeights()
    guessed = np.array([estimate.count(text) for _, text, _ in found])
    print("source: mean error of one text, and of the sum of all (held-out)")
    for name in sorted(set(source)):
        those = test & (source == name)
        if those.any():
            each = np.abs(guessed[those] / counts[those] - 1).mean()
            print(f"{name:32} {each:6.1%} {guessed[those].sum() / counts[those].sum() - 1:+6.1%}")
    print(f"{'all texts':32} {np.abs(guessed[test] / counts[test] - 1).mean():6.1%}")


if __name__ == "__main__":
    main()
