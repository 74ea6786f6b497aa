"""`regex`: regular expressions in the request's text."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import Field

from signals.facts import Facts
from signals.reading import FALSE, Reading
from signals.signal import Doubt, SearchParams, Shared, Signal
from signals.text.hits import Hits
from signals.text.patterns import Pattern, PatternSet, doubts, plain_pattern


class RegexParams(SearchParams):
    """Patterns and the text to search."""

    any: list[Pattern] = Field(min_length=1, description="RE2 expressions; one found anywhere in the text is enough.")

    def doubts(self) -> Iterator[Doubt]:
        return doubts(self.any, "any")


class Regex(Signal):
    """Reads whether a pattern is in the text. Evidence names the patterns by their place in the list."""

    kind = "regex"
    Parameters = RegexParams
    finds = True

    def __init__(self, name: str, params: RegexParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        patterns = shared.use(PatternSet)
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

    def read(self, facts: Facts) -> Reading:
        hits = facts.get(self._found) & self._any
        if not hits:
            return FALSE
        return Reading(True, 1.0, evidence=tuple(f"any[{i}]" for i, bit in enumerate(self._bits) if hits & bit))
