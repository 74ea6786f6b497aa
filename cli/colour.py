"""Colours in what commands print: on a terminal only, where nobody has switched them off."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from re import Pattern
from typing import Final

_CODES: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}
"""Select Graphic Rendition (ECMA-48, section 8.3.117), by the names of the marks' groups."""

PROBLEMS: Final = re.compile(
    r"^(?P<bold>[^\n]+?:\d+:\d+:) (?:(?P<yellow>[A-Z]\d{3})(?= .*\[warning\]$)|(?P<red>[A-Z]\d{3})(?= ))"
    r"|(?P<dim>\[warning\]$)"
    r"|(?P<green>(?<=: )ok(?= \([^()]*\)$))",
    re.MULTILINE,
)
"""What `validate` prints."""
CASES: Final = re.compile(
    r"^(?:(?P<green>ok)|(?P<red>FAIL))(?=  )|(?P<bold>^\d+ cases?: \d+ passed, \d+ failed$)", re.MULTILINE
)
"""What `test` prints."""
EXPLAINED: Final = re.compile(
    r"^(?:(?:decision|outcome|choice|cache)  +(?P<bold>[^\n]+)|(?P<cyan>policy|time)(?=   ))"
    r"|(?:^|(?<=: ))(?:(?P<green>true|kept)|(?P<yellow>unknown)|(?P<red>false))(?=$| {2}|,| )"
    r"|(?P<dim>\(not evaluated[^\n]*\)$|not evaluated[^\n]*$)",
    re.MULTILINE,
)
"""What `explain` prints."""


def painted(text: str, marks: Pattern[str], terminal: bool | None = None) -> str:
    """`text` with the groups of `marks` in their colours, as it is printed to standard output.

    `terminal` None: found out. `NO_COLOR` (no-color.org) with any value but an empty one, and a dumb terminal, have
    none.
    """
    if terminal is None:
        terminal = _wanted(os.environ)
    if not terminal:
        return text

    def paint(found: re.Match[str]) -> str:
        whole, start = found[0], found.start()
        named = [name for name in _CODES if name in marks.groupindex and found[name]]
        for name in sorted(named, key=found.start, reverse=True):
            begin, end = found.start(name) - start, found.end(name) - start
            whole = f"{whole[:begin]}\x1b[{_CODES[name]}m{whole[begin:end]}\x1b[0m{whole[end:]}"
        return whole

    return marks.sub(paint, text)


def _wanted(environment: Mapping[str, str]) -> bool:
    return sys.stdout.isatty() and not environment.get("NO_COLOR") and environment.get("TERM") != "dumb"
