"""Which call a request path names.

A guard that one spelling of a path can walk around is none, so a path is brought into its plain form first: percent
escapes undone however often they were applied, control characters, empty and dot segments and path parameters removed,
backslashes turned, letters compared without regard to case. Some servers undo some of these, none undoes others. What
is read here is what the upstream gets: a path that was not spelled plainly is replaced by its plain form.

Everything is linear in the length of the path.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import quote, unquote

from decisions.engine import Opening
from extproc.apis.registry import SHAPES
from extproc.apis.shape import ApiShape
from extproc.apis.shape import Target as Target

LONGEST: Final = 16_384
"""Characters; a longer path names nothing."""
ESCAPES: Final = 3_000
"""Percent signs before the query; a path with more names nothing, since each costs up to a microsecond."""
ROUNDS: Final = 4
"""How often percent escapes are undone; a path that is still escaped then names nothing."""
NOT_SERVED: Final = "This gateway does not serve this path; GET /v1/models lists the models that it serves."
"""What a client is told whose path names nothing; rendered gateways say it too."""

_CONTROLS: Final = dict.fromkeys((*range(32), 127))
_SAFE: Final = "!$&'()*+,=:@-._~"
_PLAIN: Final = re.compile(r"/[A-Za-z0-9!$&'()*+,=:@._~/-]*")
_VERSION: Final = re.compile(r"v[0-9]{1,3}[a-z0-9]{0,8}")


_CALLS: Final[dict[tuple[str, ...], tuple[ApiShape, str]]] = {
    end: (shape, operation) for shape in SHAPES for end, operation in shape.calls.items()
}
_SEGMENTS: Final = max(map(len, _CALLS))


def read(path: str) -> Target | None:
    """What `path` (with its query) names; None when that is nothing that is understood."""
    if len(path) <= 256:
        return _read(path)
    if len(path) > LONGEST or path.partition("?")[0].count("%") > ESCAPES:
        return None
    return _read.__wrapped__(path)


@lru_cache(maxsize=1024)
def _read(path: str) -> Target | None:
    given, mark, query = path.partition("#")[0].partition("?")
    segments = plain(given)
    if segments is None:
        return None
    found = _named([segment.lower() for segment in segments], segments)
    if found is None:
        return None
    target, base, tail = found
    if (at := _deployments(base)) >= 0:  # the API without deployments, which Azure has as well as everybody else
        base = base[: at - 1 if at and base[at - 1].lower() == "openai" else at]
        query = "&".join(part for part in query.split("&") if not part.lower().startswith("api-version="))
        base = [*base, "v1"]
    elif not base:
        base = ["v1"]
    elif _versioned(base):
        base = [*base[:-1], base[-1].lower()]
    canonical = "/" + "/".join(quote(segment, safe=_SAFE) for segment in (*base, *tail))
    if canonical == given:
        return target
    return target._replace(path=canonical + (mark + query if query else ""))


def plain(path: str) -> list[str] | None:
    """The segments of `path` (without its query) in plain form; None where its escapes do not end."""
    for _ in range(ROUNDS):
        before, path = path, unquote(path) if "%" in path else path
        if path == before:
            break
    else:
        if "%" in path and unquote(path) != path:
            return None
    path = path.translate(_CONTROLS).replace("\\", "/").partition("?")[0].partition("#")[0]
    segments: list[str] = []
    for segment in path.split("/"):
        segment = segment.partition(";")[0].strip()
        if segment == "..":
            if segments:
                segments.pop()
        elif segment and segment != ".":
            segments.append(segment)
    return segments


def _named(low: list[str], segments: list[str]) -> tuple[Target, list[str], list[str]] | None:
    """The target, the segments before its name, and those of its name; `low` are the segments in small letters."""
    for size in range(_SEGMENTS, 0, -1):
        call = _CALLS.get(tuple(low[-size:])) if len(low) >= size else None
        if call is None:
            continue
        base = segments[:-size]
        at = _deployments(base)
        if at >= 0 or _base(low[-size - 1 : -size]) or call[0].anywhere:
            return Target(call[0].name, call[1], "/".join(base[at + 1 :]) if at >= 0 else None), base, low[-size:]
    for at in (at for at, segment in enumerate(low) if segment in ("models", "responses")):
        if not (_base(low[max(at - 1, 0) : at]) or low[max(at - 2, 0) : at][:1] == ["deployments"]):
            continue
        base, rest = segments[:at], segments[at + 1 :]
        if low[at] == "models":
            return Target(None, "models", "/".join(rest) or None), base, [low[at], *rest]
        if len(rest) == 1 or (len(rest) == 2 and low[-1] in ("cancel", "input_items")):
            return Target(None, "stored"), base, [low[at], rest[0], *low[at + 2 :]]
        break
    return None


def _base(low: Sequence[str]) -> bool:
    """Whether an API's name may follow these segments: none, a version, `openai`."""
    return not low or low[-1] == "openai" or _versioned(low)


def _versioned(segments: Sequence[str]) -> bool:
    return _VERSION.fullmatch(segments[-1].lower()) is not None


def _deployments(segments: Sequence[str]) -> int:
    """Where `deployments` stands, of Azure's `/openai/deployments/NAME`; -1 where it does not.

    All that follows is the name: Azure's SDKs write a model's name into the path as it is, with its slashes.
    """
    for at in range(len(segments) - 1):
        if segments[at].lower() == "deployments":
            return at
    return -1


def opening(path: str, openings: Sequence[Opening]) -> Opening | None:
    """The first of `openings` that fits `path`, which must be spelled plainly: no escapes, dot or empty segments."""
    given = path.partition("#")[0].partition("?")[0]
    if not openings or len(given) > LONGEST or _PLAIN.fullmatch(given) is None or "//" in given or "/." in given:
        return None
    for one in openings:
        if given.startswith(one.match[:-1]) if one.match.endswith("*") else given == one.match:
            return one
    return None
