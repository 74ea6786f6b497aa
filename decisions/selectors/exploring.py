"""What selectors that learn leave to chance, so that they go on learning of every candidate."""

from __future__ import annotations

from typing import Final

from decisions.candidates import fraction, request_key
from signals.facts import Facts

EXPLORED: Final = "explored"
"""`Choice.why` of a candidate that was taken to learn of it."""


def explored(best: int, count: int, share: float, facts: Facts) -> tuple[int, float]:
    """Which of `count` candidates takes the request, by its place, and its propensity: `best`, but for a `share` of the
    requests, which go to all alike. The same request always gets the same answer."""
    if share <= 0 or count < 2:
        return best, 1.0
    drawn = fraction(request_key(facts.request), "explore")
    at = min(int(drawn / share * count), count - 1) if drawn < share else best
    return at, share / count + (1.0 - share if at == best else 0.0)
