"""`python -m signals.train.domain --data DIR`: trains the domain head alone, on the lexicon and the word vectors of heads.onnx,
writes it into that file and measures it. Some ten minutes on one core.

`python -m signals.train` does the same at its end: beside all other heads this one would learn too few everyday questions.
"""

# ruff: noqa: E501  a page of Markdown

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from signals.neural.heads import Heads as Runtime
from signals.neural.heads import HeadVerdict
from signals.neural.reader import Second
from signals.neural.tokenizer import MODELS, Lexicon
from signals.services import Services
from signals.train import measure
from signals.train.lessons import read_all
from signals.train.networks import export, heads
from signals.train.sources import corpus, written
from signals.train.sources.corpus import Corpus, Item
from signals.train.sources.data import Data

F64 = NDArray[np.float64]
Asked = dict[str, list[tuple[str, str]]]
"""The (text, domain) of several sets, by name."""

SEED: Final = 7
EPOCHS: Final = 8
ASKED: Final = 40_000
"""Written questions that are made; each is learned from once, however often it was made."""
WEIGHT: Final = 1.1
_ASIDE: Final = 26
"""Of 256 of the written questions and topics, those that are kept aside."""


def aside(text: str) -> bool:
    """Whether a written question or topic is kept aside for calibration: decided by SHA-256."""
    return hashlib.sha256(text.encode()).digest()[3] < _ASIDE


def kept_aside() -> list[tuple[str, str]]:
    """(question, domain) of what is kept aside, in English; topics in a frame."""
    chance = random.Random(SEED)
    frames = written.sections()["frames"].kinds["frame"]
    found = []
    for domain in written.DOMAINS:
        kinds = written.sections()[domain].kinds
        found += [(text, domain) for text in kinds["ask"] if aside(text)]
        found += [(chance.choice(frames).replace("{t}", text), domain) for text in kinds["topic"] if aside(text)]
    return found


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"\w+", text.casefold()))


def copies(texts: Iterable[str], tested: Iterable[str]) -> set[str]:
    """Those of `texts` that share three quarters of their words with one of `tested`."""
    others = [_words(text) for text in tested]
    found = set()
    for text in texts:
        words = _words(text)
        if any(4 * len(words & other) >= 3 * len(words | other) for other in others):
            found.add(text)
    return found


def lessons(data: Data, tests: Path) -> Corpus:
    """What the head learns from: the corpus' texts that have a field, and many more written questions."""
    made = corpus.build(data, SEED)
    chance = random.Random(SEED)
    contexts = [row["context"] for row in data.part("injection/bipia_contexts")]
    tested = measure.tested(tests)
    items = [
        item for item in made.items if item.source != "written questions" and item.labels.keys() & {"domain", "field"}
    ]
    asked = list(dict.fromkeys(written.questions(chance, 10 * data.limit if data.limit else ASKED, without=aside)))
    skip = copies((text for text, _ in asked), (*tested, *(text for text, _ in kept_aside())))
    for text, domain in asked:
        if text in skip:
            continue
        some = chance.choice(contexts)
        start = chance.randrange(len(some))
        context = some[start : start + chance.choice((40, 80, 160, 800))]
        label = {"field": (float(written.DOMAINS.index(domain)), WEIGHT)}
        items.append(Item(written.wrapped(text, chance, [context]), label, "written questions"))
    items = [item for item in items if item.text.casefold() not in tested]
    return Corpus(items, made.subjects, made.domains, made.domain_of)


@dataclass(frozen=True, slots=True)
class FieldAnswers:
    """What the head says of some texts: the chances of all domains [n, 14], and the right ones."""

    chances: F64
    truth: NDArray[np.int64]

    @property
    def right(self) -> F64:
        return (self.chances.argmax(1) == self.truth).astype(np.float64)

    def scaled(self, slope: float) -> F64:
        """The chances with their logarithms times `slope`."""
        return softmax(np.log(np.clip(self.chances, 1e-9, 1)) * slope)


def softmax(logits: F64) -> F64:
    shares = np.exp(logits - logits.max(1, keepdims=True))
    made: F64 = shares / shares.sum(1, keepdims=True)
    return made


def answers(model: Runtime, asked: Sequence[tuple[str, str]], what: str) -> FieldAnswers:
    """What `model` says of each (text, domain)."""
    names = sorted(model.labels["domain"])

    def row(verdict: HeadVerdict) -> list[float]:
        return [verdict.domain[name] for name in names]

    verdicts = measure.run(model, [text for text, _ in asked], what)
    return FieldAnswers(
        np.array([row(one) for one in verdicts]), np.array([names.index(domain) for _, domain in asked])
    )


def both(model: Runtime, reader: Second, asked: Sequence[tuple[str, str]], what: str) -> tuple[FieldAnswers, F64]:
    """What both readers say of each (text, domain), and whether the second was asked."""
    names = sorted(model.labels["domain"])
    rows, twice = [], []
    for verdict in measure.run(model, [text for text, _ in asked], what):
        chances = reader.fields_with(verdict) or verdict.domain
        rows.append([chances[name] for name in names])
        twice.append(chances is not verdict.domain)
    truth = np.array([names.index(domain) for _, domain in asked])
    return FieldAnswers(np.array(rows), truth), np.array(twice, np.float64)


def slope(groups: Sequence[FieldAnswers]) -> float:
    """The inverse temperature with which the right domains are likeliest; each group weighs the same."""

    def surprise(at: float) -> float:
        return -float(np.mean([np.log(one.scaled(at)[np.arange(len(one.truth)), one.truth]).mean() for one in groups]))

    return float(min(np.arange(0.3, 2.01, 0.05), key=surprise))


def train(texts: Corpus, built: Lexicon, path: Path) -> export.Own:
    """The head, not calibrated yet. `path`: the graph whose word vectors it reads."""
    model = heads.HeadsNetwork(built.weight, export.word_vectors(path), texts.domain_of)
    heads.train(model, read_all(texts.items, built, "features"), texts.items, SEED, EPOCHS)
    columns = model.slices()["domain"]
    wide = model.wide.detach().numpy()[:, columns] * built.weight[:, None]
    wide[0] = 0
    return export.Own(
        wide,
        (model.inner.weight.detach().numpy(), model.inner.bias.detach().numpy()),
        (model.outer.weight.detach().numpy()[columns], model.outer.bias.detach().numpy()[columns]),
    )


def exams(data: Data, held: str) -> list[tuple[str, str]]:
    """(question, domain) of held-out exam questions: `held` is `mmlu` with choices or `mmlu bare` without."""
    unseen = corpus.build(data, SEED, held_out=True)
    return [
        (item.text, unseen.domains[unseen.domain_of[int(item.labels["domain"][0])]])
        for item in unseen.items
        if item.source == held
    ]


def calibrating(data: Data) -> Asked:
    """The (text, domain) of which one half sets the temperature."""
    return {
        "MMLU with choices": exams(data, "mmlu"),
        "MMLU without choices": exams(data, "mmlu bare"),
        "written questions kept aside": kept_aside(),
    }


def make(data: Data, out: Path, tests: Path) -> None:
    """Trains the head, puts it into heads.onnx in `out` and writes domain.md."""
    path, lexicon = out / "heads.onnx", out / "lexicon.npz"
    built = Lexicon.load(lexicon)
    own = train(lessons(data, tests), built, path)
    export.put(path, "domain", own)
    sets = calibrating(data)
    model = Runtime(path, lexicon, None)
    first = [[one for one in asked if not measure.second_half(one[0])] for asked in sets.values()]
    at = slope([answers(model, asked, "calibrate") for asked in first])
    export.put(path, "domain", own.times(at))
    card(data, out, tests)


def card(data: Data, out: Path, tests: Path) -> None:
    """Measures the head in `out`, and the second reader beside it where it has fields, and writes domain.md."""
    path = out / "heads.onnx"
    model = Runtime(path, out / "lexicon.npz", None)
    aims = calibrating(data)
    config = out / "reader" / "config.json"
    second = config.exists() and "fields" in json.loads(config.read_text())
    rows = []
    for name, asked in (aims | measure.everyday(tests)).items():
        found = answers(model, asked, name)
        fresh = np.array([name not in aims or measure.second_half(text) for text, _ in asked])
        right, sure = found.right, found.chances.max(1)
        other = float((found.chances.argmax(1) == written.DOMAINS.index("other")).mean())
        figure = measure.bootstrap(name, lambda x: float(x.mean()), (right,))
        error = measure.ece(sure[fresh], right[fresh])
        rows.append(
            f"| {name} | {len(asked):,} | {figure.value:.3f} | {figure.low:.3f} – {figure.high:.3f} | {other:.3f} | {error:.3f} |"
        )
    everyday = answers(model, measure.everyday(tests)["everyday questions"], "fields")
    fields = [
        f"| {name} | {int((everyday.truth == index).sum())} | {everyday.right[everyday.truth == index].mean():.2f} |"
        for index, name in enumerate(written.DOMAINS)
    ]
    curve = []
    for least in (0.0, 0.3, 0.5, 0.7, 0.9):
        taken = everyday.chances.max(1) >= least
        curve.append(f"| {least} | {taken.mean():.2f} | {everyday.right[taken].mean():.2f} |")
    asks = sum(len(written.sections()[name].kinds["ask"]) for name in written.DOMAINS)
    topics = sum(len(written.sections()[name].kinds["topic"]) for name in written.DOMAINS)
    text = _CARD.format(
        rows="\n".join(rows), fields="\n".join(fields), curve="\n".join(curve), asks=asks, topics=topics
    )
    if second:
        reader = Second(Services(device="cpu"), out / "reader")
        text = text.replace(_LIMITS, _beside(model, reader, aims, measure.everyday(tests)) + _LIMITS)
        reader.close()
    (out / "domain.md").write_text(text)
    told = f"- `{path.name}`: {path.stat().st_size:,} bytes, sha256 `{hashlib.sha256(path.read_bytes()).hexdigest()}`"
    whole = out / "heads.md"
    if whole.exists():  # where all is trained it is written after this
        whole.write_text(re.sub(rf"- `{path.name}`: .*", told, whole.read_text()))


def _beside(model: Runtime, reader: Second, aims: Asked, others: Asked) -> str:
    """What both readers get right of `aims`, half of which set their weights, and of `others`."""
    rows = []
    for name, asked in (aims | others).items():
        found, twice = both(model, reader, asked, name)
        fresh = np.array([name not in aims or measure.second_half(text) for text, _ in asked])
        figure = measure.bootstrap(name, lambda x: float(x.mean()), (found.right,))
        error = measure.ece(found.chances.max(1)[fresh], found.right[fresh])
        rows.append(
            f"| {name} | {len(asked):,} | {figure.value:.3f} | {figure.low:.3f} – {figure.high:.3f} | {twice.mean():.2f} | {error:.3f} |"
        )
    return _BOTH.format(rows="\n".join(rows), **asdict(reader.fields))


_LIMITS: Final = "## Limits\n"
_BOTH: Final = """\
## With the second reader

With `settings: {{readers: both}}` the second reader ([reader.md](reader.md)) reads what the heads give no field a probability of
{sure}. A network of one hidden layer reads the fields in the means of two layers of its encoder; it
learned from the same texts. The two are weighed as the softmax of {fast} times the logarithm of the heads' probability and {reader} times its logit, set with the temperature's texts.

| texts | number | right | 95 % interval | read twice | ECE |
|---|---|---|---|---|---|
{rows}

"""
_CARD: Final = """\
# The domain head of heads.onnx

What `domain` reads. Generated by `python -m signals.train --data DIR`, or alone by `python -m signals.train.domain`; do not
edit. The file, its hash and the data are in [heads.md](heads.md).

Words, pairs of words, beginnings and ends of words have weights for 57 subjects of MMLU and three classes beside them (talk, code,
word problems); a network of its own reads the text's embedding. A field's probability is the sum of its subjects'. It learned from
exam questions with and without their choices and asked as people ask, and from {asks:,} everyday questions and {topics:,} topics written
for this in English and shorter lists in 17 languages (signals/train/texts), with greetings and templates of retrieval around some. Where a
label or a tag says which part of a template is the question (signals/text/template.py), the field is that of the question alone. A tenth
of the English ones is kept aside: with half of these and of the held-out exam questions the temperature was set.

## Measured on held-out text, through the shipped runtime

The everyday questions were written before this training and apart from what it learns (tests/data/everyday.jsonl; a second
set later, but before it was measured on once, tests/data/everyday2.jsonl): of what
was written for it, whatever shares three quarters of its words with one of them was left out. ECE: expected calibration error, on texts
that calibration did not see.

| texts | number | right | 95 % interval | taken for `other` | ECE |
|---|---|---|---|---|---|
{rows}

Everyday questions by field:

| field | questions | found |
|---|---|---|
{fields}

Everyday questions by what `at_least` asks for:

| likeliest field at least | share of the questions | right among them |
|---|---|---|
{curve}

## Limits

- It knows words. What is asked in words that it has not seen with their field (half of short everyday questions hang on one word)
  is `other` or a guess, with a low probability: give `at_least`.
- Neighbouring fields share words: business and economics, biology and health, physics and engineering.
- In languages other than English it knows short lists of topics; nothing was measured there.
"""


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m signals.train.domain", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data (docs/models.md)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the heads are")
    parser.add_argument("--tests", type=Path, default=Path("tests/data"), help="the hand-written test sets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    make(Data(args.data), args.out, args.tests)


if __name__ == "__main__":
    main()
