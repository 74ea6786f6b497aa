"""`regex`: regular expressions in the request's text."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from re import _parser
from typing import Any, Final

from pydantic import Field

from signals.facts import Facts
from signals.reading import FALSE, MASKED, Reading, Span
from signals.signal import Doubt, SearchParams, Shared, Signal
from signals.text.hits import Hits
from signals.text.patterns import Pattern, PatternSet, compiled, doubts, places, plain_pattern
from signals.text.places import Where

_WIDEST: Final = 1 << 20
"""Characters that count as no end."""


def widest(pattern: str) -> int | None:
    """The most characters that `pattern` finds; None where there is no end, or where it cannot be told."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            most: int = _parser.parse(pattern).getwidth()[1]
    except (re.error, OverflowError, RecursionError):  # RE2 knows what Python's expressions do not
        return None
    return most if most <= _WIDEST else None


class RegexParams(SearchParams):
    """Patterns and the text to search."""

    any: list[Pattern] = Field(min_length=1, description="RE2 expressions; one found anywhere in the text is enough.")

    def placed(self) -> bool:
        return True

    def longest(self) -> int | None:
        widths = [widest(pattern) for pattern in self.any]
        return max((width for width in widths if width is not None), default=None)

    def doubts(self) -> Iterator[Doubt]:
        return doubts(self.any, "any")


class Regex(Signal):
    """Reads whether a pattern is in the text. Evidence names the patterns by their place in the list."""

    kind = "regex"
    Parameters = RegexParams
    finds = True
    answers = True

    def __init__(self, name: str, params: RegexParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        patterns = shared.searcher(PatternSet, params.in_)
        self._found = shared.use(Hits, patterns, params.in_, params.exact)
        self._bits = [1 << patterns.add(pattern) for pattern in params.any]
        if not params.exact:
            self._bits = [
                bit | 1 << patterns.add(plain_pattern(pattern))
                for bit, pattern in zip(self._bits, params.any, strict=True)
            ]
        self._any = 0
        for bit in self._bits:
            self._any |= bit
        self._found.silent[name] = FALSE
        self._where = Where(params.in_, params.exact)
        self._patterns = list(dict.fromkeys(params.any))
        if not params.exact:
            self._patterns = list(dict.fromkeys([*params.any, *map(plain_pattern, params.any)]))
        self._compiled: list[Any] = []  # only who asks for places needs them one by one

    def read(self, facts: Facts) -> Reading:
        hits = facts.get(self._found) & self._any
        if not hits:
            return FALSE
        return Reading(True, 1.0, evidence=tuple(f"any[{i}]" for i, bit in enumerate(self._bits) if hits & bit))

    def spans(self, facts: Facts) -> list[Span]:
        if not self._compiled:
            self._compiled = [compiled(pattern.encode()) for pattern in self._patterns]
        found = self._where.found(facts.request, lambda text: places(self._compiled, text))
        return [Span(start, end, MASKED) for start, end in found]

    def silent(self, facts: Facts) -> bool:
        return not facts.get(self._found) & self._any
