"""What a rendered gateway lets on: the paths of the calls that the router reads, and those that the policy opens.

The router refuses everything else itself, and turns disguised spellings of its calls into their plain form before the
gateway picks a route again. The gateway's own list holds whatever the router says, and when it is away: then with
`fail_open` its calls go on unread, and nothing else does.
"""

from __future__ import annotations

import re
from typing import Final

from decisions.engine import Opening
from extproc import openai, paths
from extproc.refusal import Refusal

_CHARACTERS: Final = r"[\w!$&'()*+,=:@.~-]"  # of a plain path, besides `/`
_SEGMENT: Final = r"[\w!$%&'()*+,=:@.~-]+"  # in a plain path of ours, other characters stand as escapes
_BASE: Final = rf"(?:/{_SEGMENT})*/(?:v[0-9]{{1,3}}[a-z0-9]{{0,8}}|(?i:openai)|deployments/{_SEGMENT})"

CALLS: Final = (
    rf"(?:/{_SEGMENT})*/chat/completions|(?:{_BASE})?/(?:completions|embeddings|messages(?:/count_tokens)?|models(?:/.+)?|"
    rf"responses(?:/{_SEGMENT}(?:/(?:cancel|input_items))?)?)"
)
"""RE2 expression for the whole of a path without its query: the plain forms of what `extproc.paths.read` understands,
and what it replaces by `/v1` (Azure's deployments, no version)."""

STATUS: Final = 404
BODY: Final = openai.error(None, Refusal(STATUS, paths.NOT_SERVED, "unknown_path")).decode()
"""What the gateway answers to every other path; it is what the router says of it."""
CONTENT_TYPE: Final = dict(openai.JSON_HEADERS)["content-type"]


def expression(opening: Opening) -> str | None:
    """RE2 expression for an opened path that ends in `*`, as `paths.opening` reads it; None: the path is exact."""
    if not opening.match.endswith("*"):
        return None
    start, segment = opening.match[:-1], rf"(?:[\w!$&'()*+,=:@~-]{_CHARACTERS}*)"  # no dot segments, no empty ones
    rest = rf"(?:{segment}(?:/{segment})*/?)?" if start.endswith("/") else rf"{_CHARACTERS}*(?:/{segment})*/?"
    return re.escape(start) + rest
