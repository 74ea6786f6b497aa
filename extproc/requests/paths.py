"""Which call a request path names.

No spelling of a path may lead around a guard, so a path is brought into its plain form first: percent escapes are
undone however often they were applied, control characters, empty and dot segments and path parameters are removed,
backslashes become slashes, and letters are compared without regard to case. Servers differ in which of these they undo.
So the upstream gets the path as it was read here: a path that was not spelled plainly is replaced by its plain form.

Everything takes time in proportion to the length of the path.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Final
from urllib.parse import unquote

from decisions.engine import Opening, Settings
from extproc.apis.registry import SHAPES, spoken
from extproc.apis.shape import ApiShape, Found, quoted, versioned
from extproc.apis.shape import Target as Target
from extproc.refusal import Refusal

LONGEST: Final = 16_384
"""The most characters of a path; a longer one names nothing."""
ESCAPES: Final = 500
"""The most percent signs before the query; a path with more names nothing, since each costs up to a microsecond."""
ROUNDS: Final = 4
"""How often percent escapes are undone; a path that is still escaped then names nothing."""

_CONTROLS: Final = dict.fromkeys((*range(32), 127))
_PLAIN: Final = re.compile(r"/[A-Za-z0-9!$&'()*+,=:@._~/-]*")


_CALLS: Final[dict[tuple[str, ...], tuple[ApiShape, str]]] = {
    end: (shape, operation) for shape in SHAPES for end, operation in shape.calls.items()
}
_SEGMENTS: Final = max(map(len, _CALLS))
_STORED: Final = frozenset(end[0] for shape in SHAPES if shape.stored for end in shape.calls if len(end) == 1)


def read(path: str) -> Target | None:
    """What `path` (with its query) names; None when that is nothing that is understood."""
    if len(path) <= 256:
        return _read(path)
    if len(path) > LONGEST or path.partition("?")[0].count("%") > ESCAPES:
        return None
    return _read.__wrapped__(path)


def keyless(path: str) -> str | None:
    """`path` without the key that a client has put into its query, as Google's clients do; None where there is none."""
    given, _, query = path.partition("?")
    parts = query.split("&")
    kept = [part for part in parts if unquote(part.partition("=")[0]) != "key"]
    if len(kept) == len(parts):
        return None
    return f"{given}?{'&'.join(kept)}" if kept else given


@lru_cache(maxsize=1024)
def _read(path: str) -> Target | None:
    given, mark, query = path.partition("#")[0].partition("?")
    segments = plain(given)
    if segments is None:
        return None
    found = _named([segment.lower() for segment in segments], segments, query)
    if found is None:
        return None
    target, base = found.target, found.base
    if (at := _deployments(base)) >= 0:  # the API without deployments, which Azure has as well as everybody else
        base = base[: at - 1 if at and base[at - 1].lower() == "openai" else at]
        query = "&".join(part for part in query.split("&") if not part.lower().startswith("api-version="))
        base = [*base, "v1"]
    elif not base:
        base = ["v1"]
    elif versioned(base[-1]):
        base = [*base[:-1], base[-1].lower()]
    canonical = "/" + quoted((*base, *found.end))
    if mark and not query:
        mark = ""
    if found.model:
        before, after = canonical + "/", found.after + mark + query
        canonical = before + quoted(found.model) + found.after
        if found.after:
            target = target._replace(around=(before, after))
    if canonical == given:
        return target
    return target._replace(path=canonical + mark + query)


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


def _named(low: list[str], segments: list[str], query: str) -> Found | None:
    """The call that the segments end in, the model list, a stored response or a grade; `low`: in small letters."""
    for size in range(_SEGMENTS, 0, -1):
        call = _CALLS.get(tuple(low[-size:])) if len(low) >= size else None
        if call is None:
            continue
        shape, operation = call
        base = segments[:-size]
        at = _deployments(base)
        if at >= 0 or _base(low[-size - 1 : -size]) or shape.anywhere:
            model = "/".join(base[at + 1 :]) if at >= 0 else None
            return Found(Target(shape.name, operation, model), base, low[-size:], [])
    for shape in SHAPES:
        found = shape.find(segments, query) if segments else None
        if found is not None:
            return found
    if low[-1:] == ["feedback"] and _base(low[-2:-1]):
        return Found(Target(None, "feedback"), segments[:-1], ["feedback"], [])
    for at in (at for at, segment in enumerate(low) if segment == "models" or segment in _STORED):
        if not (_base(low[max(at - 1, 0) : at]) or (at > 1 and low[at - 2] == "deployments")):
            continue
        left = len(segments) - at - 1
        if low[at] == "models":
            rest = segments[at + 1 :]
            return Found(Target(None, "models", "/".join(rest) or None), segments[:at], ["models"], rest)
        if left == 1 or (left == 2 and low[-1] in ("cancel", "input_items")):
            return Found(Target(None, "stored"), segments[:at], [low[at], segments[at + 1], *low[at + 2 :]], [])
    return None


def _base(low: Sequence[str]) -> bool:
    """Whether an API's name may follow these segments: no segment at all, a version, or `openai`."""
    return not low or low[-1] == "openai" or versioned(low[-1])


def _deployments(segments: Sequence[str]) -> int:
    """Where `deployments` stands, of Azure's `/openai/deployments/NAME`; -1 where it does not.

    All that follows is the name: Azure's SDKs write a model's name into the path as it is, with its slashes.
    """
    for at in range(len(segments) - 1):
        if segments[at].lower() == "deployments":
            return at
    return -1


def unread(headers: Mapping[str, str], settings: Settings) -> Opening | None:
    """What opens the path of a request that names no call; None: `unread: pass`, which opens every path.

    Raises `Refusal` (404) when the policy does not open it.
    """
    opened = opening(headers.get(":path", ""), settings.openings)
    if opened is None and not settings.pass_unread:
        raise not_served(spoken(headers))
    return opened


def not_served(shape: ApiShape) -> Refusal:
    """The refusal of a path that names nothing; rendered gateways say it, too."""
    text = f"This gateway does not serve this path; GET {shape.version}/models lists the models that it serves."
    return Refusal(404, text, "unknown_path")


def opening(path: str, openings: Sequence[Opening]) -> Opening | None:
    """The first of `openings` that fits `path`, which must be spelled plainly: no escapes, dot or empty segments."""
    given = path.partition("#")[0].partition("?")[0]
    if not openings or len(given) > LONGEST or _PLAIN.fullmatch(given) is None or "//" in given or "/." in given:
        return None
    for one in openings:
        if given.startswith(one.match[:-1]) if one.match.endswith("*") else given == one.match:
            return one
    return None
