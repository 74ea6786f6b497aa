"""The token estimate of a whole request, shared by everything that needs its size."""

from __future__ import annotations

from signals.facts import Facts


class Estimate:
    """Input tokens of a request: about four bytes of UTF-8 text each."""

    def compute(self, facts: Facts) -> int:
        return len(facts.request.text("all").encode()) // 4 + 1


estimate = Estimate()
