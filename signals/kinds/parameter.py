"""`parameter`: a field of the request's body."""

from __future__ import annotations

from typing import Any, Self

from pydantic import Field, model_validator

from signals.bounds import check, within
from signals.facts import Facts
from signals.path import MISSING, Path, look_up, parse_path
from signals.reading import FALSE, Reading, of
from signals.signal import Params, Shared, Signal
from signals.text.patterns import Pattern, compiled


class ParameterParams(Params):
    """Where to look, and exactly one test (at_least and at_most may be given together)."""

    path: Path = Field(
        description='Path into the JSON body: `reasoning_effort`, `metadata.tier`, `messages[0].role`, `a["b.c"]`.'
    )
    equals: str | int | float | bool | None = Field(
        None, description="The value is exactly this (a number, string or boolean)."
    )
    in_: list[str | int | float | bool] | None = Field(
        None, alias="in", min_length=1, description="The value is one of these."
    )
    at_least: float | None = Field(None, description="The value is a number and at least this.")
    at_most: float | None = Field(None, description="The value is a number and at most this.")
    exists: bool | None = Field(
        None, description="There is such a field, null included (true), or there is not (false)."
    )
    matches: Pattern | None = Field(None, description="The value is a string in which this RE2 expression is found.")

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        bounded = self.at_least is not None or self.at_most is not None
        tests = (self.equals, self.in_, self.exists, self.matches)
        if sum(test is not None for test in tests) + bounded != 1:
            raise ValueError("exactly one of equals, in, at_least/at_most, exists, matches is needed")
        if bounded:
            check(self.at_least, self.at_most)
        return self


class Parameter(Signal):
    """Reads one field of the body. A missing field, and a value of another type, match `exists: false` only."""

    kind = "parameter"
    Parameters = ParameterParams
    sure = True
    scored = True

    def __init__(self, name: str, params: ParameterParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._steps = parse_path(params.path)
        self._exists = params.exists
        self._least, self._most = params.at_least, params.at_most
        self._pattern = compiled(params.matches) if params.matches is not None else None
        listed = [params.equals] if params.equals is not None else params.in_ or []
        self._values = frozenset(map(_typed, listed))

    def read(self, facts: Facts) -> Reading:
        value = look_up(facts.request.fields, self._steps)
        if self._exists is not None:
            return of((value is not MISSING) == self._exists)
        if self._values:
            return of(isinstance(value, str | int | float) and _typed(value) in self._values)
        if self._pattern is not None:
            return of(isinstance(value, str) and self._pattern.search(value) is not None)
        if isinstance(value, bool) or not isinstance(value, int | float):
            return FALSE
        return Reading(within(value, self._least, self._most), float(value))


def _typed(value: Any) -> tuple[bool, Any]:
    """`value` with its type where that matters: in JSON, unlike in Python, true is not 1; 1 and 1.0 are the same."""
    return isinstance(value, bool), value
