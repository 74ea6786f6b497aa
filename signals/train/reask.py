"""Measures `reask`: `python -m signals.train.reask --data FOLDER`.

Pairs of sentences of one language that have nothing to do with each other, and each sentence with the same one in which
a letter is missing and the end is gone.
"""

from __future__ import annotations

import argparse
import random
from collections import defaultdict
from itertools import combinations
from pathlib import Path

from signals.neural.embeddings import repeated
from signals.neural.meanings import Meanings
from signals.neural.shipped import Shipped
from signals.services import Services
from signals.text.alike import Letters
from signals.train.sources.data import Data

LEAST = 0.8
"""The kind's default."""


def rates(texts: list[str], model: Meanings) -> tuple[float, float, float]:
    """Of all pairs of `texts` the share that match and the share that are Unknown; of repetitions the share found."""
    meanings, letters = [model.at_once(text) for text in texts], [Letters(text) for text in texts]
    pairs = [
        repeated(meanings[one], meanings[other], (letters[one], letters[other]))
        for one, other in combinations(range(len(texts)), 2)
    ]
    chance = random.Random(0)
    found = 0
    for text, before in zip(texts, meanings, strict=True):
        place = chance.randrange(len(text))
        again = (text[:place] + text[place + 1 :]).rstrip(".?!。？！ ")
        found += (repeated(model.at_once(again), before, (Letters(again), Letters(text))) or 0.0) >= LEAST
    matched = sum(score is not None and score >= LEAST for score in pairs)
    return matched / len(pairs), pairs.count(None) / len(pairs), found / len(texts)


def distinct(texts: list[str], most: int) -> list[str]:
    """The first `most` of `texts` that do not begin or end as one before: pages of one site share a frame."""
    seen: set[str] = set()
    kept = []
    for text in texts:
        edges = {text[:12], text[-12:]}
        if not edges & seen:
            kept.append(text)
        seen |= edges
    return kept[:most]


def main() -> None:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with language/sentences.jsonl.gz")
    parser.add_argument("--texts", type=int, default=60, help="sentences of each language")
    given = parser.parse_args()
    services = Services()
    model = Meanings(Shipped(services), services)
    languages: dict[str, list[str]] = defaultdict(list)
    for row in Data(given.data).sources["language/sentences"].rows:
        languages[row["language"]].append(row["text"])
    made = {language: rates(distinct(texts, given.texts), model) for language, texts in languages.items()}
    print("language: unrelated pairs that match, that are Unknown; repetitions found")
    for language, shares in sorted(made.items(), key=lambda item: -item[1][0]):
        print(f"{language:10}", *(f"{share:7.1%}" for share in shares))
    print(f"{'mean':10}", *(f"{sum(column) / len(made):7.1%}" for column in zip(*made.values(), strict=True)))


if __name__ == "__main__":
    main()
