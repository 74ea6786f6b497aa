"""What the tokens of a call cost."""

from __future__ import annotations

from typing import NamedTuple


class Prices(NamedTuple):
    """Money per million tokens: of the input, of the output, and of those input tokens that a model's server had in its
    cache, or put there (None: as any input)."""

    input: float = 0.0
    output: float = 0.0
    cached: float | None = None
    written: float | None = None

    def cost(self, prompt: int, completion: int, cached: int = 0, written: int = 0) -> float:
        """Money for one call: `cached` of the prompt's tokens were in the cache, `written` others were put there."""
        total = self.input * prompt + self.output * completion
        if cached and self.cached is not None:
            total -= (self.input - self.cached) * cached
        if written and self.written is not None:
            total -= (self.input - self.written) * written
        return total / 1e6
