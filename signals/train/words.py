"""Makes the table of frequent words: `python -m signals.train.words --data FOLDER --lingua WHEEL`. Needs brotli.

Three sources: the letter frequencies of pemistahl/lingua-py (the wheel and its licence are those of
signals/train/language.py), which are exact for words of up to four letters and near for longer ones; the training
part of the sentences; and chat replies that we wrote (replies.txt) and the sentences of texts/*.txt, since what people
answer in a chat is not what newspapers write. Some ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import random
import zipfile
from collections import Counter, defaultdict
from pathlib import Path
from typing import Final

from tqdm import tqdm

from signals.kinds.language import MODELLED, WORDS, clean
from signals.text.words import save
from signals.train.language import frequencies, wheel_of
from signals.train.sources.data import Data
from signals.train.sources.written import sections

_LEAST, _LONGEST = 2e-5, 9
_TALK: Final = ("attack", "like", "caption", "chat")
_SHARES: Final = {"lingua": 0.5, "sentences": 0.15, "replies": 0.35}
REPLIES: Final = Path(__file__).with_name("replies.txt")


def of_letters(orders: list[dict[str, float]]) -> dict[str, float]:
    """The words that the conditional frequencies of one to five letters imply, each with its share of all words.

    How often a sequence begins a word is how often it is there less how often another letter precedes it; how often it
    is a word is how often it begins one less how often it begins a longer one.
    """
    counts = [orders[0]]
    for order in orders[1:]:
        counts.append({gram: share * counts[-1].get(gram[:-1], 0.0) for gram, share in order.items()})
    begins: list[dict[str, float]] = []
    for size in range(4):
        inside: dict[str, float] = defaultdict(float)
        for gram, count in counts[size + 1].items():
            inside[gram[1:]] += count
        begins.append({gram: count - inside[gram] for gram, count in counts[size].items() if count > inside[gram]})
    total = sum(begins[0].values())
    found: dict[str, float] = {}
    for size in range(3):
        longer: dict[str, float] = defaultdict(float)
        for gram, count in begins[size + 1].items():
            longer[gram[:-1]] += count
        for gram, count in begins[size].items():
            if (share := (count - longer[gram]) / total) > _LEAST:
                found[gram] = share
    after: dict[str, list[tuple[str, float]]] = defaultdict(list)
    for gram, share in orders[4].items():
        after[gram[:4]].append((gram[4], share))
    left = [(gram, count / total) for gram, count in begins[3].items() if count / total > _LEAST]
    while left:
        word, share = left.pop()
        following = after.get(word[-4:], [])
        if (ends := share * (1 - sum(chance for _, chance in following))) > _LEAST:
            found[word] = ends
        if len(word) < _LONGEST:
            left += [(word + letter, share * chance) for letter, chance in following if share * chance > _LEAST]
    return found


def replies() -> dict[str, list[str]]:
    """What people answer in chats, by language."""
    found = {}
    for line in REPLIES.read_text().splitlines():
        language, _, listed = line.partition(": ")
        found[language] = listed.split(" | ")
    return found


def counted(texts: list[str]) -> Counter[str]:
    return Counter(word for text in texts for word in clean(text).split())


def table(data: Data, letters: dict[str, dict[str, float]]) -> dict[str, dict[str, float]]:
    """By language and word the probability: the sources' shares, where a language has them all."""
    chance = random.Random(0)
    sentences: dict[str, list[str]] = defaultdict(list)
    for row in data.part("language/sentences"):
        sentences[row["language"]].append(row["text"])
    for name, section in sections().items():
        language = "nb" if name == "no" else name
        for kind in _TALK:
            if language in MODELLED and kind in section.kinds:
                sentences[language] += [section.make(kind, chance) for _ in range(60)]
    chats = replies()
    made = {}
    for language in sorted(MODELLED):
        parts: dict[str, dict[str, float]] = {
            "lingua": letters[language],
            "sentences": dict(counted(sentences[language])),
            "replies": dict(counted(chats.get(language, []))),
        }
        scales = {name: _SHARES[name] / sum(part.values()) for name, part in parts.items() if part}
        words: dict[str, float] = defaultdict(float)
        for name, scale in scales.items():
            for word, count in parts[name].items():
                words[word] += scale * count / sum(_SHARES[name] for name in scales)
        made[language] = dict(words)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with language/sentences.jsonl.gz")
    parser.add_argument("--lingua", type=Path, help="the wheel of lingua-language-detector 1.4.2")
    parser.add_argument("--letters", type=Path, help="keep what the wheel gives here between runs (JSON)")
    parser.add_argument("--out", type=Path, default=WORDS)
    given = parser.parse_args()
    if given.letters is not None and given.letters.exists():
        letters = json.loads(given.letters.read_bytes())
    else:
        with zipfile.ZipFile(wheel_of(parser, given.lingua)) as wheel:
            letters = {language: of_letters(frequencies(wheel, language)) for language in tqdm(sorted(MODELLED))}
        if given.letters is not None:
            given.letters.write_text(json.dumps(letters))
    save(given.out, table(Data(given.data), letters))


if __name__ == "__main__":
    main()
