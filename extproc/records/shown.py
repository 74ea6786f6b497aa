"""How words of a client are shown in logs, traces and on the admin port: bounded, on one line, without credentials."""

from __future__ import annotations

import re
from typing import Final

LONGEST: Final = 256
"""The most characters that are shown of a client's word; a longer one ends in `…`."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")
"""Control characters (Unicode Cc), and those that end a line or turn its direction around."""

_QUERY = re.compile(r"[?#;]|%(?:25)*(?:3f|23|3b)", re.IGNORECASE)
"""Where a path ends: a query, a fragment or a path parameter, also where it is percent-encoded."""

_USERINFO = re.compile(r"(//)[^/]*@")


def word(text: str, longest: int = LONGEST) -> str:
    """`text` with a space for every control character, of `longest` characters at most."""
    cut = text if len(text) <= longest else text[: longest - 1] + "…"
    return cut if cut.isascii() and cut.isprintable() else _CONTROL.sub(" ", cut)


def path(text: str) -> str:
    """A request's path without its query, whose values may be keys (`?api-key=`, `?sig=`), and without userinfo."""
    cut = text[: 4 * LONGEST]
    end = _QUERY.search(cut)
    return word(_USERINFO.sub(r"\1", cut if end is None else cut[: end.start()]), 4 * LONGEST)
