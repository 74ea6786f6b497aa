"""Trains the language model: `python -m signals.train.language --data FOLDER --lingua WHEEL`.

Two sources. Real sentences (`language/sentences.jsonl.gz` of the data folder) are few, about 80 a language. The n-gram
frequencies of pemistahl/lingua-py (Apache-2.0; PyPI lingua-language-detector 1.4.2, learnt from the Leipzig corpora)
are plenty: from its frequencies of up to five letters we draw words, letter by letter, and write pseudo-text with them.
A linear classifier on letter sequences (fastText, Joulin et al. 2016) learns both and is then quantised.

Needs the wheel (`pip download --no-deps lingua-language-detector==1.4.2`) and an environment of its own with
`pip install fasttext brotli numpy pydantic google-re2 tqdm`: the trainer and the fasttext-predict that tests compare
with are both called `fasttext`. About a quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import random
import tempfile
import zipfile
from bisect import bisect
from collections import Counter, defaultdict
from itertools import accumulate, pairwise
from pathlib import Path
from typing import Any

from tqdm import tqdm

from signals.kinds.language import COMMON, LANGUAGES, MODEL, MODELLED, WORDS, Guess, Identifier, clean
from signals.train.sources.data import Data

WHEEL_SHA256 = "f43ce6e7b8b9ec083907c34fc1bf5d5bacee7fb3191afa90efb3b321e5a85953"
ORDERS = ("unigrams", "bigrams", "trigrams", "quadrigrams", "fivegrams")

BY_SCRIPT = LANGUAGES - MODELLED
"""Told by their script alone, so the model need not know them."""

CLOSE = frozenset(
    (
        "af",
        "bs",
        "ca",
        "cs",
        "da",
        "en",
        "es",
        "fr",
        "hr",
        "id",
        "ms",
        "nb",
        "nl",
        "nn",
        "pt",
        "sk",
        "sl",
        "sv",
        "xh",
        "zu",
    )
)
"""Languages with a near relative: these get more text."""

DRAWN, DRAWN_CLOSE = 60_000, 260_000
REPEAT = 10
"""Times that each real sentence is given, against the mass of pseudo-text."""

SHORT = 0.3
"""Lines of one to three words for each line of four to twenty: greetings are text, too."""


class WordSampler:
    """Draws words of one language from the conditional letter frequencies P(letter | up to four letters before).

    Where a word begins and ends follows from them: what remains of a context's mass after all its continuations is the
    end, and what remains of a sequence's count after all that could precede it is the beginning.
    """

    def __init__(self, frequencies: list[dict[str, float]], rng: random.Random) -> None:
        self._random = rng.random
        counts = [frequencies[0]]
        for order in frequencies[1:]:
            shorter = counts[-1]
            counts.append({gram: share * shorter.get(gram[:-1], 0.0) for gram, share in order.items()})
        first: list[dict[str, float]] = []
        for gram_counts, longer in pairwise(counts):
            inside: dict[str, float] = defaultdict(float)
            for gram, count in longer.items():
                inside[gram[1:]] += count
            first.append({gram: max(0.0, count - inside[gram]) for gram, count in gram_counts.items()})
        self._starts = [_choices(first[0], None)]
        self._starts += [_choices(longer, shorter) for shorter, longer in pairwise(first)]
        self._next = _choices(frequencies[-1], None, total=1.0)

    def draw(self) -> str:
        word = ""
        for table in self._starts:
            letter = self._pick(table, word)
            if not letter:
                return word
            word += letter
        while len(word) < 30:
            letter = self._pick(self._next, word[-4:])
            if not letter:
                return word
            word += letter
        return word

    def _pick(self, table: dict[str, tuple[list[str], list[float]]], context: str) -> str:
        letters, cumulated = table.get(context, ([], [0.0]))
        if cumulated[-1] <= 0:
            return ""
        return letters[min(bisect(cumulated, self._random() * cumulated[-1]), len(letters) - 1)]


def _choices(
    grams: dict[str, float], ends: dict[str, float] | None, total: float | None = None
) -> dict[str, tuple[list[str], list[float]]]:
    """By context: the next letters ('' for the end) and their cumulated weights."""
    found: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for gram, weight in grams.items():
        if weight > 1e-12:
            found[gram[:-1]].append((gram[-1], weight))
    table = {}
    for context, choices in found.items():
        mass = sum(weight for _, weight in choices)
        whole = total if total is not None else ends.get(context, 0.0) if ends is not None else 0.0
        choices.append(("", max(0.0, whole - mass)))
        table[context] = ([letter for letter, _ in choices], list(accumulate(weight for _, weight in choices)))
    return table


def frequencies(wheel: zipfile.ZipFile, language: str) -> list[dict[str, float]]:
    """Lingua's n-gram frequencies of orders 1 to 5: P(last letter | the others)."""
    import brotli

    found = []
    for order in ORDERS:
        packed = wheel.read(f"lingua/language-models/{language}/{order}.json.br")
        grams: dict[str, float] = {}
        for fraction, listed in json.loads(brotli.decompress(packed))["ngrams"].items():
            over, under = fraction.split("/")
            grams.update(dict.fromkeys(listed.split(" "), int(over) / int(under)))
        found.append(grams)
    return found


def pseudo(wheel: zipfile.ZipFile, language: str) -> list[str]:
    """Lines of drawn words."""
    rng = random.Random(f"language {language}")
    words = WordSampler(frequencies(wheel, language), rng)
    lines = []
    left = DRAWN_CLOSE if language in CLOSE else DRAWN
    while left > 0:
        size = rng.randint(4, 20)
        left -= size
        line = [words.draw() for _ in range(size)]
        lines.append(" ".join(line))
        if rng.random() < SHORT:
            lines.append(" ".join(line[: rng.randint(1, 3)]))
    return lines


def train(data: Data, wheel: zipfile.ZipFile, out: Path) -> None:
    """Train, quantise and save the model."""
    import fasttext

    rows = [row for row in data.sources["language/sentences"].part(held_out=False) if row["language"] not in BY_SCRIPT]
    lines = [f"__label__{row['language']} {clean(row['text'])}" for row in rows] * REPEAT
    for language in tqdm(sorted({row["language"] for row in rows}), desc="pseudo-text"):
        lines += [f"__label__{language} {line}" for line in pseudo(wheel, language)]
    random.Random(0).shuffle(lines)
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("\n".join(lines) + "\n")
        file.flush()
        model: Any = fasttext.train_supervised(file.name, thread=1, seed=0, verbose=1, **SETTINGS)
        model.quantize(input=file.name, thread=1, verbose=1, **QUANTISED)
        model.save_model(str(out))


SETTINGS = {"loss": "ova", "dim": 32, "minn": 2, "maxn": 5, "epoch": 4, "lr": 0.2, "minCount": 10, "bucket": 500_000}
QUANTISED = {"cutoff": 60_000, "retrain": True, "epoch": 1, "lr": 0.1, "qnorm": True, "dsub": 2}


def card(data: Data, out: Path) -> str:
    """The model card, measured on the held-out sentences."""
    identifier = Identifier(out)
    rows = data.sources["language/sentences"].part(held_out=True)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    mistaken: Counter[tuple[str, str]] = Counter()
    squared = 0.0
    for row in rows:
        guess = identifier.guess(row["text"]) or Guess("none", 0.0)
        language = row["language"]
        total[language] += 1
        hit = guess.language == language
        right[language] += hit
        squared += (guess.probability - hit) ** 2
        if not hit:
            mistaken[language, guess.language] += 1
    most = [
        language
        for language, _ in Counter(row["language"] for row in data.sources["language/sentences"].rows).most_common(20)
    ]

    def line(name: str, languages: list[str]) -> str:
        hits, of = sum(right[x] for x in languages), sum(total[x] for x in languages)
        low, high = interval(hits, of)
        return f"| {name} | {of} | {hits / of:.3f} | {low:.3f}–{high:.3f} |"

    worst = sorted((right[x] / total[x], x) for x in total)[:12]
    sentences, wheel = data.checksums["language/sentences"], WHEEL_SHA256
    hardest = ", ".join(f"{x} {share:.2f}" for share, x in worst)
    frequent = ", ".join(f"{a} taken for {b} ({n})" for (a, b), n in mistaken.most_common(8))
    return f"""# language.ftz

Tells 62 languages by their letter sequences; 22 more are told by their script alone (`signals/kinds/language.py`).

| | |
|---|---|
| SHA-256 | `{hashlib.sha256(out.read_bytes()).hexdigest()}` |
| size | {out.stat().st_size:,} bytes |
| form | fastText supervised, one sigmoid a language: {SETTINGS} |
| quantised | {QUANTISED} |
| rebuilt by | `python -m signals.train.language --data FOLDER --lingua WHEEL` |
| sentences | pemistahl/lingua-py test data, Apache-2.0, SHA-256 {sentences}; 85 % of them, chosen by hash |
| frequencies | lingua-language-detector 1.4.2 from PyPI, Apache-2.0, SHA-256 {wheel} |

The frequencies were learnt from the Leipzig corpora (CC BY 4.0).

Beside it: `words.npz` ({WORDS.stat().st_size:,} bytes, SHA-256 `{hashlib.sha256(WORDS.read_bytes()).hexdigest()}`), how
frequent words are in each language: the same frequencies and sentences, and chat replies that we wrote
(`python -m signals.train.words`); `silent.txt`, words that tell no language.

Sentences cut to their first words. An answer is one that is sure enough; the rest is Unknown (the threshold and the
weight of the words were chosen on these sentences, two numbers):

| characters | languages | texts | of the answers right | Unknown |
|---|---|---|---|---|
{short(rows, identifier)}

Measured on held-out sentences (accuracy, 95 % Wilson interval; every guess counts, unsure ones too):

| languages | sentences | accuracy | interval |
|---|---|---|---|
{line("all 75", list(total))}
{line("the 20 with the most rows", most)}
{line("the 20 most asked for: " + " ".join(COMMON), list(COMMON))}

Brier score of the probability: {squared / len(rows):.3f}. Weakest: {hardest}.
Most frequent mistakes: {frequent}.

Limits: Bosnian, Croatian and Serbian, Indonesian and Malay, the Norwegian languages and Danish, Xhosa and Zulu are
nearly the same in writing; a few words do not tell them apart. One word alone that is not frequent is Unknown or, one
time in ten, taken for another language. Code, identifiers and the names that silent.txt lists do not count; other names
count as whatever they look like. Languages that it was not taught get the label of a relative.
"""


def short(rows: list[dict[str, str]], identifier: Identifier) -> str:
    """How few characters are enough: rows of the card's table."""
    lines = []
    for most in (10, 20, 30):
        for name, languages in (("all 75", None), ("the 20 most asked for", COMMON)):
            texts = [(row["language"], cut(row["text"], most)) for row in rows]
            guesses = [
                (language, identifier.guess(text))
                for language, text in texts
                if text and (languages is None or language in languages)
            ]
            answers = [guess.language == language for language, guess in guesses if guess is not None and guess.sure]
            silent = 1 - len(answers) / len(guesses)
            lines.append(f"| {most} | {name} | {len(guesses)} | {sum(answers) / len(answers):.3f} | {silent:.3f} |")
    return "\n".join(lines)


def cut(text: str, most: int) -> str:
    """The first words of `text`, at most so many characters; '' where the first word is longer."""
    if len(text) > most:
        text = text[: most + 1].rpartition(" ")[0]
    return text.strip(" ,.;:!?\"'")


def interval(hits: int, of: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion."""
    z = 1.96
    centre = (hits + z * z / 2) / (of + z * z)
    half = z * math.sqrt(hits * (of - hits) / of + z * z / 4) / (of + z * z)
    return centre - half, centre + half


def wheel_of(parser: argparse.ArgumentParser, path: Path | None) -> Path:
    """`path`, or the parser's error when it is not the wheel that this was written for."""
    if path is None or hashlib.sha256(path.read_bytes()).hexdigest() != WHEEL_SHA256:
        parser.error(f"--lingua must name the wheel that this was written for (SHA-256 {WHEEL_SHA256})")
    return path


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with language/sentences.jsonl.gz")
    parser.add_argument("--lingua", type=Path, help="the wheel of lingua-language-detector 1.4.2")
    parser.add_argument("--card", action="store_true", help="train nothing, measure the model that is there")
    parser.add_argument("--out", type=Path, default=MODEL)
    given = parser.parse_args()
    data = Data(given.data)
    if not given.card:
        with zipfile.ZipFile(wheel_of(parser, given.lingua)) as wheel:
            train(data, wheel, given.out)
    text = card(data, given.out)
    given.out.with_suffix(".md").write_text(text)
    print(text)


if __name__ == "__main__":
    main()
