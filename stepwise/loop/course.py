"""Who writes the next step, and why: the states of an answer and what leads from one to another.

| turn | the strategy's word | a draft is rejected | judging is over | a model fails |
| --- | --- | --- | --- | --- |
| draft | the turn that it says | large; large_rest without a redo left | small_rest | the other model's rest |
| large | the turn that it says | | | the other model's rest |
| small_rest | | | | large_rest |
| large_rest | | | small_rest (no money is left) | small_rest |

Both rests are final but for a failure and for money: nothing is judged there.
"""

from __future__ import annotations

from stepwise.strategy import REJECTED, Judgement, Turn


class Course:
    """The turn of one answer.

    `why`: the action that is recorded for steps which are not drafts (`Record.action`). `settled`: why judging ended.
    `redos`: drafts that the large model wrote anew, one by one; a hand-over is none. `rejected` and `verdict`: tokens
    of the draft that the large model replaces, and what was said of it.
    """

    def __init__(self, turn: Turn, max_redos: int) -> None:
        self.settled: str | None = None
        self.redos = 0
        self.rejected = 0
        self.verdict = REJECTED
        self._max_redos = max_redos
        self._go(turn)

    def _go(self, turn: Turn) -> None:
        self.turn = turn
        self.why = "large" if turn is Turn.LARGE else "rest"

    @property
    def small(self) -> bool:
        """Does the small model write the next step?"""
        return self.turn in (Turn.DRAFT, Turn.SMALL_REST)

    def follow(self, turn: Turn) -> bool:
        """The strategy has said who writes the next step. True when the open stream goes on with it."""
        goes_on = self.turn is Turn.DRAFT and turn in (Turn.DRAFT, Turn.SMALL_REST)
        self._go(turn)
        return goes_on

    def settle(self, reason: str) -> None:
        """A budget has ended judging: the small model writes the rest."""
        self._go(Turn.SMALL_REST)
        self.settled = reason

    def reject(self, action: str, tokens: int, verdict: Judgement, final: bool) -> None:
        """A draft is dropped: the large model writes this step, or all that is left where it is `final`."""
        self.rejected, self.verdict = tokens, verdict
        if final or self.redos >= self._max_redos:
            self.turn, self.why, self.settled = Turn.LARGE_REST, "handover", "redos"
        else:
            self.turn, self.why = Turn.LARGE, action
            self.redos += 1

    def take_over(self, small: bool) -> None:
        """The other model has failed: the small one, or the large one, writes the rest."""
        self.turn = Turn.SMALL_REST if small else Turn.LARGE_REST
        self.why, self.verdict, self.settled = "takeover", REJECTED, "upstream"

    def complete(self) -> None:
        """A step that nobody judged is in the answer; it replaced what was rejected."""
        self.rejected, self.verdict = 0, REJECTED
