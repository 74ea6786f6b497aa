"""Which request headers are there, found once for all the signals that need one."""

from __future__ import annotations

from signals.facts import Facts
from signals.reading import FALSE, Reading


class Presence:
    """Quick input: settles every signal whose header is missing, so that of many tenants' signals only one is read."""

    def __init__(self) -> None:
        self._needed: dict[str, list[str]] = {}

    def add(self, header: str, signal: str) -> None:
        """A signal that is simply false without `header` (lower-case)."""
        self._needed.setdefault(header, []).append(signal)

    def compute(self, facts: Facts) -> None:
        headers = facts.request.headers
        silent: dict[str, Reading] = {}
        for header, signals in self._needed.items():
            if header not in headers:
                for signal in signals:
                    silent[signal] = FALSE
        facts.silent(silent)
