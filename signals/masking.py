"""Masks personal data and secrets in text that is to be kept: what the `pii` signal's detectors are sure of."""

from __future__ import annotations

from functools import cache

from signals.detectors import DETECTORS, Detector
from signals.patterns import compiled
from signals.pii import findings
from signals.reading import Unavailable


@cache
def _detectors() -> list[tuple[Detector, object]]:
    return [(detector, compiled(detector.pattern.encode())) for detector in DETECTORS]


def masked(text: str) -> str:
    """`text` with every finding replaced by its type in brackets, such as `[email]`.

    All checksummed types, addresses and secrets; phone numbers, names and places are not looked for. Text with too
    many candidates to check is masked whole.
    """
    data = text.encode(errors="replace")
    spans: list[tuple[int, int, str]] = []
    try:
        for detector, pattern in _detectors():
            spans += [(start, end, detector.kind) for start, end, _ in findings(pattern, detector, data)]
    except Unavailable:
        return "[masked]"
    if not spans:
        return text
    kept: list[bytes] = []
    at = 0
    for start, end, kind in sorted(spans):
        if end <= at:
            continue
        kept.append(data[at:start] if start >= at else b"")
        kept.append(b"[%s]" % kind.encode())
        at = end
    kept.append(data[at:])
    return b"".join(kept).decode(errors="replace")
