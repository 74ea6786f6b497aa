"""Parameters that many kinds share: a number's bounds, the name of a header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Self

from pydantic import Field, model_validator

from signals.signal import Doubt, Params

HEADER_NAME: Final = r"^[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}$"
"""The name of a header (RFC 9110, section 5.1), as a field's pattern."""
SAID: Final = "patternErrorMessage"
"""The key of a JSON Schema under which editors (VS Code's) look for what to say of text that a pattern refuses."""


def said(words: str) -> dict[str, Any]:
    """What is said of a value that a field's `pattern` refuses: what is needed there. For `json_schema_extra`."""
    return {SAID: words}


class Bounds(Params):
    """At least one bound; both include the bound itself."""

    at_least: float | None = Field(None, description="The least value that matches.")
    at_most: float | None = Field(None, description="The greatest value that matches.")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        check(self.at_least, self.at_most)
        return self

    def hold(self, value: float) -> bool:
        """Whether `value` lies within."""
        return within(value, self.at_least, self.at_most)


def check(at_least: float | None, at_most: float | None) -> None:
    """ValueError when there is no bound, or the bounds leave nothing between them."""
    if at_least is None and at_most is None:
        raise ValueError("one of at_least, at_most is needed")
    if at_least is not None and at_most is not None and at_least > at_most:
        raise ValueError(f"at_least {at_least:g} is greater than at_most {at_most:g}")


def within(value: float, at_least: float | None, at_most: float | None) -> bool:
    """Whether `value` lies between the bounds that are there, both included."""
    return (at_least is None or value >= at_least) and (at_most is None or value <= at_most)


def idle(params: Any, low: float | None, high: float | None, *path: str | int) -> Iterator[Doubt]:
    """A doubt about the bounds `at_least` and `at_most` of `params`, at `path`, when either all or none of the numbers
    from `low` to `high` (None: no end) lie within them."""
    least, most = params.at_least, params.at_most
    span = f"{'' if low is None else f'never below {low:g}'}{' and ' if None not in (low, high) else ''}"
    span += "" if high is None else f"never above {high:g}"
    if high is not None and least is not None and least > high:
        yield Doubt((*path, "at_least"), "L323", f"never holds: the number is {span}; lower the bound")
    elif low is not None and most is not None and most < low:
        yield Doubt((*path, "at_most"), "L323", f"never holds: the number is {span}; raise the bound")
    elif (least is None or (low is not None and least <= low)) and (
        most is None or (high is not None and most >= high)
    ):
        at = "at_least" if least is not None else "at_most"
        other = "raise" if least is not None else "lower"
        if least is not None or most is not None:
            yield Doubt((*path, at), "L322", f"always holds: the number is {span}; {other} the bound, or leave it out")


def header_name(name: str, *path: str | int) -> Iterator[Doubt]:
    """A doubt about `name`, at `path`, when no request has a header of that name (RFC 9110, section 5.1)."""
    if not re.fullmatch(r":?[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        better = name.strip().rstrip(":")
        yield Doubt(
            path, "L323", f"no request has a header {name!r}: write the bare name, such as {better or 'x-name'!r}"
        )
