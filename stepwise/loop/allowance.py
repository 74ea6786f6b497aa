"""What an answer may still take: steps, time, money and tokens."""

from __future__ import annotations

import asyncio

from stepwise.asking.pair import Setup
from upstream.books import Books, Open

_STEP_TOKENS = 128  # what a step of the large model is taken to cost before it is asked for


class Allowance:
    """The budget of one answer, held against its books. `limit`: the tokens that the client allows, if it says so."""

    def __init__(self, setup: Setup, books: Books, limit: int | None) -> None:
        self._budget = setup.budget
        self._large = setup.large
        self._books = books
        self._limit = limit
        self._started = asyncio.get_running_loop().time()

    def left(self, written: int) -> int | None:
        """Tokens that the client still allows; None where it sets no limit."""
        return None if self._limit is None else self._limit - written

    def unjudged(self, steps: int, written: int, told: Open | None) -> str | None:
        """Which budget has ended judging, if one has. `written`: tokens of the answer so far."""
        budget = self._budget
        if steps >= budget.steps:
            return "steps"
        if asyncio.get_running_loop().time() - self._started >= budget.seconds:
            return "seconds"
        if budget.money is not None:
            prompt = self._books.prompt_tokens(self._large.name, written)
            step = self._large.upstream.endpoint.cost(prompt, _STEP_TOKENS)
            if self._books.cost(told) + step > budget.money:
                return "money"
        return None

    def exhausted(self, written: int, told: Open | None) -> bool:
        """Is there nothing left to write with? `written`: tokens of the answer.

        The client's limit counts between streams alone: a stream keeps to it by itself.
        """
        spent = self._books.written + (0 if told is None else told.received)
        left = self.left(written)
        return spent >= self._budget.tokens or (told is None and left is not None and left <= 0)

    def overspent(self, told: Open | None) -> bool:
        """Is the money used up?"""
        return self._budget.money is not None and self._books.cost(told) >= self._budget.money
