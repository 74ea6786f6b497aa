"""The frame of a prompt: its first words, its labels (`Question:`) and its options, which tell one task from others.

Programs put what they ask for into the same few words every time, and these say more of the task than the subject does.
"""

from __future__ import annotations

import re
from math import log1p
from typing import Final
from zlib import crc32

from signals.facts import Facts

READ: Final = 2000
"""Characters of the beginning of a text that are looked at."""
STYLE: Final = 5
_FIRST: Final = 4
_LABELS: Final = 6
_LABEL: Final = re.compile(r"^[ \t]{0,8}([A-Za-z][A-Za-z ]{0,20}):", re.MULTILINE)
_OPTION: Final = re.compile(r"^[ \t]{0,8}\(?(?:[A-J]|[1-9])[.):][ \t]", re.MULTILINE)
_DIGITS: Final = b"0123456789"
_CAPITALS: Final = bytes(range(65, 91))
_SIGNS: Final = b"!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
_USUAL: Final = ((5.5, 1.5), (0.03, 0.05), (0.04, 0.04), (0.04, 0.03), (0.01, 0.02))
"""About the mean and the spread of each figure of style in prompts."""
_MOST: Final = 2.5


def frame(text: str) -> list[int]:
    """Hashes (32 bits) of the first words, of each label, and of how many options there are to choose from, without
    repetition, in rising order."""
    text = text[:READ]
    found = {" ".join(text[:200].split(None, _FIRST)[:_FIRST]).lower()}
    for at, label in enumerate(_LABEL.finditer(text)):
        if at == _LABELS:
            break
        found.add(label[1].lower() + ":")
    found.add(f"{len(_OPTION.findall(text))} options")
    return sorted(crc32(each.encode(errors="surrogatepass")) for each in found)


def style(text: str) -> tuple[float, ...]:
    """STYLE figures of about unit size: length; shares of digits, capitals, signs and line feeds (of ASCII)."""
    length, text = len(text), text[:READ]
    data = text.encode("ascii", "ignore")
    size = max(1, len(data))
    shares = [(len(data) - len(data.translate(None, some))) / size for some in (_DIGITS, _CAPITALS, _SIGNS, b"\n")]
    figures = zip((log1p(length), *shares), _USUAL, strict=True)
    return tuple(min(_MOST, max(-_MOST, (value - mean) / spread)) for value, (mean, spread) in figures)


class Frame:
    """Quick input: the frame of what the user says last."""

    def compute(self, facts: Facts) -> list[int]:
        return frame(facts.request.text("user"))


FRAME: Final = Frame()
