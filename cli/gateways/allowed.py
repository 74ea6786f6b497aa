"""Which paths a rendered gateway lets pass: those of the calls that the router reads, and those that the policy opens.

The router refuses everything else itself, and turns disguised spellings of its calls into their plain form before the
gateway picks a route again. The gateway's own list holds whatever the router says, and also when the router is down:
with `fail_open` the router's calls then go on unread, and nothing else does.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from cli.gateways.place import Upstream
from decisions.engine import Engine
from extproc.apis.registry import SHAPES
from extproc.apis.shape import JSON, SEGMENT, ApiShape, quoted
from extproc.requests import paths

_REST: Final = r"[\w!$&'()*+,=:@.~/-]*"  # without escapes; empty and dot segments are gone when a gateway reads it
_BASE: Final = rf"(?:/{SEGMENT})*/(?:v[0-9]{{1,3}}[a-z0-9]{{0,8}}|(?i:openai)|deployments/{SEGMENT})"


def _calls() -> str:
    anywhere, based = [], ["models(?:/.+)?", "feedback"]
    for shape in SHAPES:
        ends = ["/".join(end) for end in shape.calls]
        if shape.stored:  # an answer's id, which stands where further segments of a call do
            ends = [rf"{end}(?:/{SEGMENT}(?:/(?:cancel|input_items))?)?" for end in ends if "/" not in end]
        if shape.anywhere:
            anywhere += [rf"(?:/{SEGMENT})*/{end}" for end in ends]
        else:
            based += ends
        if shape.route:
            anywhere.append(shape.route)
    return "|".join((*anywhere, rf"(?:{_BASE})?/(?:{'|'.join(based)})"))


CALLS: Final = _calls()
"""RE2 expression for the whole of a path without its query: the plain forms of what `extproc.requests.paths.read`
understands, and what it replaces by `/v1` (Azure's deployments, no version)."""

_ENDS: Final = sorted("/".join(end) for shape in SHAPES for end in shape.calls if end[:-1] not in shape.calls)
"""What the names of calls begin with."""
_CALL: Final = rf"^(?:/[^/]+)*?/({'|'.join(sorted((*_ENDS, 'models')))})(/|$)"
"""Of a path that fits `CALLS`: what stands before a call's name, and the name."""
_POSTED: Final = rf"^.*?/({'|'.join(_ENDS)})((?:/[^/]+){{0,2}})$"
"""The same of the path that a server gets, which may have `/models` before: but for the model list."""
_VERSION: Final = r"/v[0-9]{1,3}[a-z0-9]{0,8}/"

_REFUSAL: Final = paths.not_served(SHAPES[0])
STATUS: Final = _REFUSAL.status
BODY: Final = SHAPES[0].error(_REFUSAL).decode()
"""What the gateway answers to every other path; it is what the router says of it."""
CONTENT_TYPE: Final = JSON


class Path(NamedTuple):
    """A path that the policy opens: `text` is exact, or an RE2 expression for the whole of a path; `to` a model."""

    text: str
    exact: bool
    to: str


class Rewrite(NamedTuple):
    """How a gateway changes a path on its way to a server: an RE2 expression, and the text that replaces its match
    (`\\1` is the expression's first group)."""

    pattern: str
    substitution: str


def to_call(server: Upstream) -> Rewrite | None:
    """For paths that fit `CALLS`: the server's own base path replaces the client's."""
    if server.base is None:
        return below(server)
    return Rewrite(_CALL, rf"{_literal(server.path + server.base)}/\1\2")


def to_other(server: Upstream) -> Rewrite:
    """For calls that were already sent to another server, under its own base path."""
    base = "/v1" if server.base is None else server.base
    return Rewrite(_POSTED, rf"{_literal(server.path + base)}/\1\2")


def to_other_named(server: Upstream, shape: ApiShape) -> Rewrite:
    """The same for calls of an API whose paths name the model (`ApiShape.model_in`)."""
    base = shape.version if server.base is None else server.base
    name = quoted(server.name.split("/"))
    return Rewrite(shape.model_in, rf"{_literal(server.path + base)}\1{_literal(name)}\2")


def to_opened(server: Upstream, path: Path) -> Rewrite | None:
    """For an opened path: a version at its beginning is the client's base path."""
    if server.base is None or re.match(_VERSION, path.text) is None:
        return below(server)
    return Rewrite(f"^{_VERSION}", f"{_literal(server.path + server.base)}/")


def below(server: Upstream) -> Rewrite | None:
    """For any path: the path of the server's URL comes before it."""
    return Rewrite("^/", f"{_literal(server.path)}/") if server.path else None


def _literal(text: str) -> str:
    return text.replace("\\", r"\\")


def opened(engine: Engine) -> list[Path]:
    """The openings of the policy that can ever take effect, in its order.

    Those left out never can: the paths are the router's own, or an earlier entry covers them. So a gateway may match
    exact paths first, then long expressions, then short ones.
    """
    found = []
    openings = engine.settings.openings
    for number, opening in enumerate(openings):
        if understood(opening.match) or any(earlier.covers(opening) for earlier in openings[:number]):
            continue
        start = opening.match.removesuffix("*")
        exact = start == opening.match
        found.append(Path(start if exact else re.escape(start) + _REST, exact, opening.to))
    return found


def understood(match: str) -> bool:
    """Whether the router reads every path that fits `match` of an opening, so that it is never asked."""
    start = match.removesuffix("*")
    tried = [start] if start == match else [start + "x", start + "x/x/x/x"]
    return all(paths.read(path) is not None for path in tried)
