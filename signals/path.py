"""Paths into decoded JSON, such as `metadata.tier` or `messages[0].role`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Annotated, Any, Final

from pydantic import AfterValidator

MISSING: Final = object()
"""What `look_up` gives where a path leads nowhere."""

_STEP = re.compile(r"""\.?([^.\[\]"'\s]+)|\[(-?\d+)\]|\[(?:"([^"]*)"|'([^']*)')\]""")


def parse_path(path: str) -> tuple[str | int, ...]:
    """The steps of a path such as `metadata.tier`, `messages[0].role` or `claims["https://x.org/groups"]`.

    ValueError when it is not one.
    """
    steps: list[str | int] = []
    at = 0
    while at < len(path):
        found = _STEP.match(path, at)
        # A leading dot, and a name glued to a bracket's end, are mistakes that the pattern alone would let pass.
        if found is None or (found[1] is not None and path[at].startswith(".") != bool(steps)):
            raise ValueError(f'{path!r} is not a path: write names and [indices], as in messages[0].role or a["b.c"]')
        steps.append(
            int(found[2]) if found[2] is not None else next(part for part in found.group(1, 3, 4) if part is not None)
        )
        at = found.end()
    if not steps:
        raise ValueError("the path is empty")
    return tuple(steps)


def look_up(value: Any, steps: tuple[str | int, ...]) -> Any:
    """What lies at the end of a path, or MISSING."""
    for step in steps:
        if isinstance(step, int):
            if not isinstance(value, list) or not -len(value) <= step < len(value):
                return MISSING
            value = value[step]
        else:
            if not isinstance(value, Mapping) or step not in value:
                return MISSING
            value = value[step]
    return value


def _checked(path: str) -> str:
    parse_path(path)
    return path


Path = Annotated[str, AfterValidator(_checked)]
"""A parameter that holds a path into decoded JSON."""
