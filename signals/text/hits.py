"""Which of many things that are searched for at once are in the text of a request."""

from __future__ import annotations

from signals.facts import Facts
from signals.reading import Reading
from signals.request import Scope


class Searcher:
    """Looks for many things in one pass. A class and no protocol, so that compiled code calls `scan` directly."""

    def scan(self, text: str) -> int:
        """The numbers of those found in `text`, as the bits of an integer."""
        raise NotImplementedError


class Hits:
    """Quick input: which of the things that a searcher looks for are in the text of one scope (bits of an integer).

    Searched are the text as it was written and, unless `exact`, every other spelling of it (`Request.spellings`).
    """

    def __init__(self, searcher: Searcher, scope: Scope, exact: bool = False) -> None:
        self._searcher = searcher
        self._scope = scope
        self._exact = exact
        self.silent: dict[str, Reading] = {}
        """The readings of the signals that are false when nothing at all was found."""

    def compute(self, facts: Facts) -> int:
        hits = 0
        if self._exact:
            hits = self._searcher.scan(facts.request.text(self._scope))
        else:
            for text, plain in facts.request.spellings(self._scope):
                hits |= self._searcher.scan(text)
                if plain is not text:
                    hits |= self._searcher.scan(plain)
        if not hits:
            facts.silent(self.silent)
        return hits
