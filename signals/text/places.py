"""Where in the text of a request something is."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from signals.request import Request, Scope
from signals.text.view import Origin


class Where(NamedTuple):
    """The text of a scope; `exact`: only as it was written, without its view."""

    scope: Scope
    exact: bool

    def found(self, request: Request, places: Callable[[str], list[tuple[int, int]]]) -> list[tuple[int, int]]:
        """What `places` finds in the text and in its view, as characters of the text."""
        text = request.text(self.scope)
        found = places(text)
        plain = text if self.exact else request.spellings(self.scope)[0][1]
        if plain is not text and (seen := places(plain)):
            origin = Origin(text)
            found += [origin.span(start, end) for start, end in seen]
        return found
