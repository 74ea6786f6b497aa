"""Fits the token estimate: `python -m signals.train.tokens --data FOLDER`. Needs `pip install bpe-openai`.

A text's token count is taken to be a sum over its bytes and its pairs of neighbours. The weights are fitted by ridge
regression of the relative error against the true counts of o200k and of cl100k, over 75 languages, questions, role
prompts, code, and text that is no prose (shapes.py), each source weighing the same whatever its size. A byte's weight
is drawn towards its class's, so that a rare byte cannot go astray. Takes two minutes and writes the card, too.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import sysconfig
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from signals.text.estimate import CLASSES, WEIGHTS, ByteWeights
from signals.train.sources.data import Data, held
from signals.train.sources.shapes import shapes
from signals.train.sources.written import sections

SOURCES = (
    ("domain/mmlu", "prompt", 1500),
    ("reasoning/gsm8k_train", "question", 1000),
    ("intent/clinc150", "text", 1000),
    ("jailbreak/inthewild", "text", 400),
    ("jailbreak/benign_role_prompts", "text", 500),
    ("pii/presidio_synth", "text", 1000),
)
WORTH = {"en": 6.0, "code": 12.0, "json": 5.0, "domain/mmlu": 12.0, "hi talk": 5.0} | dict.fromkeys(
    ("zh", "de", "fr", "es", "ru", "ja", "pt", "hi"), 2.0
)
"""How much a source counts; 4 for the other sources of English and what is no prose, 1 for languages, less for talk."""

TALK = {"attack", "like", "caption", "chat"}
"""What is written out in signals/train/texts for many languages."""

PULL = 0.003
ENCODINGS = ("o200k", "cl100k")


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
    for name, section in sections().items():
        for kind in sorted(section.kinds.keys() & TALK) if len(name) == 2 else ():
            texts = [section.make(kind, rng) for _ in range(60)]
            found += [
                (f"{name} talk", "\n".join(rng.sample(texts, rng.randint(1, 6))), number % 6 == 0)
                for number in range(30)
            ]
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))[:160]:
        source = path.read_text(errors="ignore")
        for _ in range(4):
            start = rng.randrange(max(1, len(source) - 1500))
            found.append(("code", source[start : start + rng.randint(200, 1500)], held(path.name)))
    for held_out in (False, True):
        prose = [text for name, text, part in found if part is held_out and "/" in name]
        code = [text for name, text, part in found if part is held_out and name == "code"]
        found += [(*made, held_out) for made in shapes(prose, code, f"shapes {held_out}")]
    return [document for document in found if document[1].strip()]


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


def features(text: str) -> NDArray[np.float64]:
    """How often each byte is there, and how often each pair of classes."""
    data = np.frombuffer(text.encode(), np.uint8)
    kinds = _KINDS[data]
    pairs = np.bincount(kinds[:-1] << 4 | kinds[1:], minlength=256)
    return np.concatenate((np.bincount(data, minlength=256), pairs)).astype(np.float64)


_KINDS = np.array(
    [next((at for at, members in enumerate(CLASSES) if byte in members), len(CLASSES)) for byte in range(256)], np.uint8
)


def fit(rows: NDArray[np.float64], counts: NDArray[np.float64], worth: NDArray[np.float64]) -> dict[str, list[float]]:
    """The weights of bytes and pairs: ridge regression of the relative error, pulled towards the bytes' prior."""
    root = np.sqrt(worth)
    scaled = rows / counts[:, None] * root[:, None]
    start = np.concatenate((prior(), np.zeros(256)))
    missing = root - scaled @ start
    weights = start + np.linalg.solve(scaled.T @ scaled + PULL * np.eye(512), scaled.T @ missing)
    rounded = [round(float(weight), 3) for weight in weights]
    return {"bytes": rounded[:256], "pairs": rounded[256:]}


def card(found: list[tuple[str, str, bool]], counts: dict[str, NDArray[np.float64]], checksums: dict[str, str]) -> str:
    """The card: how far off each source's held-out texts are."""
    source = np.array([name for name, _, _ in found])
    test = np.array([held_out for _, _, held_out in found])
    errors = {}
    for encoding in ENCODINGS:
        weights = ByteWeights(encoding=encoding)
        errors[encoding] = np.array([weights.count(text) for _, text, _ in found]) / counts[encoding] - 1
    languages = sorted({name for name in source if len(name) == 2})
    talk = [str(name) for name in sorted(set(source)) if name.endswith(" talk")]
    kinds = [*sorted({*map(str, source)} - {*languages, *talk}), "hi", "zh", "ja", "ru", "ar", "de", "en"]

    def row(name: str, those: NDArray[np.bool_]) -> str:
        cells = []
        for encoding in ENCODINGS:
            off, true = errors[encoding][those], counts[encoding][those]
            whole = float((off * true).sum() / true.sum())
            cells.append(f"{np.abs(off).mean():.1%} | {np.quantile(np.abs(off), 0.9):.1%} | {whole:+.1%}")
        return f"| {name} | {those.sum()} | {' | '.join(cells)} |"

    table = [row(name, test & (source == name)) for name in kinds]
    table.append(row(f"all {len(languages)} languages", test & np.isin(source, languages)))
    table.append(row(f"talk in {len(talk)} languages", test & np.isin(source, talk)))
    return f"""# tokens.json

The tokens that a text has, estimated as a sum of weights of its bytes and its pairs of neighbouring bytes
(`signals/text/estimate.py`): one table for o200k, one for cl100k.

| | |
|---|---|
| SHA-256 | `{hashlib.sha256(WEIGHTS.read_bytes()).hexdigest()}` |
| rebuilt by | `python -m signals.train.tokens --data FOLDER` |
| true counts | bpe-openai {version("bpe-openai")} (MIT), which holds OpenAI's ranks; nothing of it is shipped |
| language | pemistahl/lingua-py test data, Apache-2.0, SHA-256 {checksums["language/sentences"]} |
| talk | our own, `signals/train/texts` |
| prose | the sets of docs/models.md that `SOURCES` names; code is Python's standard library |
| the rest | made by `signals/train/sources/shapes.py` |

Held-out texts, chosen by hash or made with other words and another seed: the mean error of one text, the error that
nine of ten texts stay below, and the error of the sum of all.

| kind | texts | o200k: mean | nine of ten | sum | cl100k: mean | nine of ten | sum |
|---|---|---|---|---|---|---|---|
{chr(10).join(table)}

Limits: what is one token as a whole (a frequent word, a run of equal signs) is not known as such, so single short texts
can be a third off. Texts of languages outside the 75 are taken for their alphabet.
"""


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder of the public data")
    given = parser.parse_args()
    import bpe_openai

    data = Data(given.data)
    found = documents(data)
    source = np.array([name for name, _, _ in found])
    test = np.array([held_out for _, _, held_out in found])
    rows = np.stack([features(text) for _, text, _ in found])
    names, sizes = np.unique(source[~test], return_counts=True)
    worth = {name: WORTH.get(name, 0.2 if name.endswith(" talk") else 1.0 if len(name) == 2 else 4.0) for name in names}
    size = dict(zip(names, sizes, strict=True))
    each = np.array([worth[name] / size[name] for name in source[~test]])
    tables, counts = {}, {}
    for name in ENCODINGS:
        encoding: Any = bpe_openai.get_encoding(f"{name}_base")
        counts[name] = np.array([len(encoding.encode_ordinary(text)) for _, text, _ in found], dtype=np.float64)
        tables[name] = fit(rows[~test], counts[name][~test], each)
    WEIGHTS.write_text(json.dumps(tables) + "\n")
    text = card(found, counts, data.checksums)
    WEIGHTS.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
