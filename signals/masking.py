"""Masks personal data and secrets in text that is to be kept: what the `pii` signal's detectors are sure of."""

from __future__ import annotations

from functools import cache
from typing import Any

from signals.detectors import DETECTORS, Detector
from signals.patterns import compiled
from signals.pii import findings
from signals.reading import Unavailable
from signals.view import view


@cache
def _detectors() -> list[tuple[Any, Detector]]:
    return [(compiled(detector.pattern.encode()), detector) for detector in DETECTORS]


def masked(text: str) -> str:
    """`text` with every finding replaced by its type in brackets, such as `[email]`.

    All checksummed types, addresses and secrets, disguised ones too; phone numbers, names and places are not looked
    for. Text with too many candidates to check is masked whole.
    """
    try:
        found = findings(text, view(text), _detectors())
    except Unavailable:
        return "[masked]"
    kept: list[str] = []
    at = 0
    for start, end, kind, _ in sorted(found):
        if end <= at:
            continue
        kept.append(text[at:start])
        kept.append(f"[{kind}]")
        at = end
    return "".join(kept) + text[at:]
