"""How a command was called: what its arguments must be, whatever the files hold that they name."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from typing import TypeVar
from urllib.parse import urlsplit

_Number = TypeVar("_Number", int, float)


class CalledWrongly(ValueError):
    """An argument is missing, is not what can stand there, or does not go with another one or with the files that are
    named beside it. The text names the option. The command ends with status 2."""


def number(least: _Number, most: _Number | None = None) -> Callable[[str], _Number]:
    """The `type` of an argument that is a number from `least` on, at most `most`, and whole where these are."""

    def read(text: str) -> _Number:
        try:
            found = type(least)(text)
            if math.isfinite(found) and least <= found and (most is None or found <= most):
                return found
        except ValueError:
            pass
        which = "a whole number" if isinstance(least, int) else "a number"
        span = f"from {least} on" if most is None else f"from {least} to {most}"
        raise argparse.ArgumentTypeError(f"{text!r}: write {which} {span}")

    return read


def url(text: str) -> str:
    """The `type` of an argument that is the address of a server, with or without a path."""
    try:
        parts = urlsplit(text)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port over 65535, or of half an IPv6 address
        fine = False
    if not fine or not text.isprintable() or " " in text or parts.username or parts.query or parts.fragment:
        raise argparse.ArgumentTypeError(f"{text!r}: write a URL such as http://127.0.0.1:10000")
    return text
