"""What a program says to its users in some sixty languages: names of fields, notes, "enter your password", "never share
this key". Nobody attacks with such texts, and they speak of what attacks speak of.

They are the translations in the wheel of homeassistant 2026.2.3 (Apache-2.0), which nothing else here needs:
`pip download --no-deps --python-version 3.14 --only-binary=:all: homeassistant==2026.2.3`.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
import zipfile
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from signals.train.sources.data import held

SHA256: Final = "8167820cac4b8defe895fd2c36ac23402a445d1fe6028e8cde24caabb935282c"
_FILE: Final = re.compile(r"homeassistant/components/(\w+)/translations/([\w-]+)\.json")
_HELD: Final = re.compile(r"\{\w+\}|\[%.*?%\]|https?://\S+|[`*]|<[^>]*>")
"""Places for values, references to other texts, addresses and markup."""
_FEWEST: Final = 100
"""Texts of a language below which it is left out."""


def _texts(entry: Any) -> Iterator[str]:
    if isinstance(entry, dict):
        for one in entry.values():
            yield from _texts(one)
    elif isinstance(entry, str):
        yield entry


@cache
def told(wheel: Path) -> list[tuple[str, str, str]]:
    """(text, language as the wheel names it, component) of all texts, in the order of the wheel. SystemExit when it is
    another wheel than the one known."""
    if hashlib.sha256(wheel.read_bytes()).hexdigest() != SHA256:
        raise SystemExit(f"{wheel}: not homeassistant 2026.2.3 (sources/assistant.py says where it is from)")
    found = []
    with zipfile.ZipFile(wheel) as files:
        for name in files.namelist():
            if match := _FILE.fullmatch(name):
                for text in _texts(json.loads(files.read(name))):
                    found.append((_HELD.sub("", text), match[2], match[1]))
    return found


def notes(wheel: Path, chance: random.Random, most: int, held_out: bool = False) -> Iterator[tuple[str, str]]:
    """(text, language) of at most `most` texts in each language: one time in three a single one, else some of the same
    component after one another, as in a manual. The components of one part are never in the other."""
    by_language: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for text, language, component in told(wheel):
        if 20 <= len(text) <= 600 and held(component) is held_out:
            by_language[language][component].append(text)
    for language, components in sorted(by_language.items()):
        if sum(map(len, components.values())) < (_FEWEST // 5 if held_out else _FEWEST):
            continue
        names, found = sorted(components), dict[str, None]()
        for _ in range(2 * most):
            some = components[chance.choice(names)]
            first = chance.randrange(len(some))
            size = 1 if chance.random() < 1 / 3 else chance.randint(2, 8)
            found[chance.choice(["\n", " ", "\n\n"]).join(some[first : first + size])] = None
        yield from ((text, language) for text in list(found)[:most])
