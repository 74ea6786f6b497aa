"""`header`: a request header's presence or value."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Self

from pydantic import Field, model_validator

from signals.bounds import header_name
from signals.facts import Facts
from signals.presence import Presence
from signals.reading import FALSE, TRUE, Reading, of
from signals.signal import Doubt, Params, Shared, Signal
from signals.text.patterns import Pattern, compiled, doubts


class HeaderParams(Params):
    """Exactly one test of the header `name` (matched without regard to case)."""

    name: str = Field(min_length=1, description="Header name; case does not matter.")
    equals: str | None = Field(None, description="The value is exactly this.")
    in_: list[str] | None = Field(None, alias="in", min_length=1, description="The value is one of these.")
    matches: Pattern | None = Field(None, description="An RE2 expression found anywhere in the value.")
    exists: bool | None = Field(None, description="The header is there (true) or is not (false).")

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        tests = (self.equals, self.in_, self.matches, self.exists)
        if sum(test is not None for test in tests) != 1:
            raise ValueError("exactly one of equals, in, matches, exists is needed")
        return self

    def named_headers(self) -> tuple[str, ...]:
        return (self.name.lower(),)

    def doubts(self) -> Iterator[Doubt]:
        yield from header_name(self.name, "name")
        if self.matches is not None:
            yield from doubts(self.matches, "matches")
        listed = [(("in", index), value) for index, value in enumerate(self.in_ or ())]
        for path, value in [(("equals",), self.equals), *listed]:
            if value and value != value.strip():
                yield Doubt(path, "L323", f"no header has the value {value!r}: the spaces at its ends are never there")
            elif value == "*" or (value and re.fullmatch(r"[\w.@-]+\*", value)):
                message = (
                    f"only the very text {value!r} matches: write `matches:` with an RE2 expression, or `exists: true`"
                )
                yield Doubt(path, "L321", message)


class Header(Signal):
    """Reads one header. A missing header matches only `exists: false`."""

    kind = "header"
    Parameters = HeaderParams
    sure = True

    def __init__(self, name: str, params: HeaderParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._header = params.name.lower()
        self._exists = params.exists
        self._values = frozenset([params.equals] if params.equals is not None else params.in_ or ())
        self._pattern = compiled(params.matches) if params.matches is not None else None
        self._presence = shared.use(Presence)
        if self._exists is not False:
            self._presence.add(self._header, name)

    def read(self, facts: Facts) -> Reading:
        facts.get(self._presence)
        value = facts.request.headers.get(self._header)
        if self._exists is not None:
            return of((value is not None) == self._exists)
        if value is None:
            return FALSE
        if self._pattern is not None:
            return of(self._pattern.search(value) is not None)
        return TRUE if value in self._values else FALSE
