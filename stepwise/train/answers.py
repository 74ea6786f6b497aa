"""Whether an answer is right: by its exact words, as a number, or as mathematics (with `math-verify`, if installed)."""

from __future__ import annotations

import math
import re

_MARKED = re.compile(r"(?:####|\banswer(?:\s+is|\s*[:=]))\s*(.+)", re.IGNORECASE)
_NUMBER = re.compile(r"-?\d[\d,]*(?:\.\d+)?(?:/\d+)?")


def final(text: str) -> str:
    r"""What `text` gives as its answer: the last `\boxed{}`, else what follows the last "answer:" or "####", else the
    last number, else nothing."""
    at = text.rfind("\\boxed{")
    if at >= 0:
        depth = 0
        for i in range(at + 6, len(text)):
            depth += {"{": 1, "}": -1}.get(text[i], 0)
            if depth == 0:
                return text[at + 7 : i].strip()
    marked = _MARKED.findall(text)
    if marked:
        return str(marked[-1]).strip().rstrip(".").strip()
    numbers = _NUMBER.findall(text)
    return numbers[-1] if numbers else ""


def number(text: str) -> float | None:
    """The one number that `text` is (thousands separators, a fraction, a unit behind it, $ allowed), else None."""
    found = _NUMBER.findall(text)
    if len(found) != 1:
        return None
    over, _, under = found[0].replace(",", "").partition("/")
    try:
        return float(over) / float(under) if under else float(over)
    except ZeroDivisionError:
        return None


def right(expected: str, text: str) -> bool:
    """Whether `text` ends in `expected`: the same words, the same number (to 1e-6), or the same mathematics."""
    given = final(text)
    if not given:
        return False
    if " ".join(given.casefold().split()) == " ".join(expected.casefold().split()):
        return True
    a, b = number(given), number(expected)
    if a is not None and b is not None:
        return math.isclose(a, b, rel_tol=1e-6, abs_tol=1e-9)
    try:
        from math_verify import parse, verify
    except ImportError:
        return False
    return bool(verify(parse(f"${expected}$"), parse(f"${given}$")))
