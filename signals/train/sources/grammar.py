"""A tiny text generator: a rule is a list of sentences; `{name}` in one is replaced by a sentence of rule `name`."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Final

Rules = Mapping[str, Sequence[str]]
_SLOT: Final = re.compile(r"\{(\w+)\}")


def lines(text: str) -> list[str]:
    """One sentence a line; `|` parts short alternatives on the same line."""
    return [part.strip() for line in text.strip().splitlines() for part in line.split(" | ") if part.strip()]


def expand(sentence: str, rules: Rules, chance: random.Random) -> str:
    """`sentence` with all its slots replaced, at random. KeyError names a rule that does not exist."""
    for _ in range(8):
        if "{" not in sentence:
            return sentence
        sentence = _SLOT.sub(lambda found: chance.choice(rules[found[1]]), sentence)
    return sentence


_NEAR: Final = dict(zip("qwertyuiopasdfghjklzxcvbnm", "wqeryutoipsafdghkjlxzvcbmn", strict=True))


def typo(text: str, chance: random.Random) -> str:
    """One slip of the keyboard: a letter dropped, doubled, swapped or replaced by a neighbour."""
    if len(text) < 8:
        return text
    at = chance.randrange(1, len(text) - 2)
    kind = chance.randrange(4)
    if kind == 0:
        return text[:at] + text[at + 1 :]
    if kind == 1:
        return text[:at] + text[at] + text[at:]
    if kind == 2:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    return text[:at] + _NEAR.get(text[at], text[at]) + text[at + 1 :]


def casual(text: str, chance: random.Random) -> str:
    """The same text as hurried people write it: lower case, no full stop, a slip now and then."""
    draw = chance.random()
    if draw < 0.35:
        text = text.lower()
    elif draw < 0.38:
        text = text.upper()
    if chance.random() < 0.35:
        text = text.rstrip(".!?")
    if chance.random() < 0.2:
        text = text.replace("'", "").replace(",", "")
    if chance.random() < 0.12:
        text = typo(text, chance)
    return text
