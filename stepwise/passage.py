"""What an answer under way is made of: the request that a model is answering, and the step that it is writing."""

from __future__ import annotations

from stepwise.continuation import Joint
from stepwise.steps import Splitter, Step, StepLimits
from upstream.books import Open
from upstream.client import Piece, Stream
from upstream.tokens import Token


class Opened:
    """One request to a model, which goes on from the answer's beginning.

    `model`: its name in the configuration. `used`: tokens of the stream that are in the answer. `ended`: the stream's
    last piece, once it has come. `stopped`: it was asked to stop at a blank line.
    """

    def __init__(self, model: str, stream: Stream, prefix: str, stopped: bool) -> None:
        self.stream = stream
        self.stopped = stopped
        self.used = 0
        self.ended: Piece | None = None
        self._model = model
        self._prefix = len(prefix)
        self._joint = Joint(prefix)

    async def next(self) -> Piece | None:
        """The next piece, its meeting with the prefix settled; None at the end. Raises UpstreamError, DeadlineError."""
        piece = await self.stream.next()
        if piece is None:
            return None
        piece.tokens = [used for token in piece.tokens for used in self._joint.feed(token)]
        if piece.finish:
            piece.tokens += self._joint.finish()
            self.ended = piece
        return piece

    def tell(self) -> Open:
        """What the books are to know of it."""
        return Open(self._model, self._prefix, self.stream.received)


class Passage:
    """The step under way: where it ends, and how much of it the client has.

    `fresh`: the draft's first token has not been looked at.
    """

    def __init__(self, limits: StepLimits, prefix: str = "") -> None:
        self.fresh = True
        self._splitter = Splitter(limits, prefix)
        self._shown = 0  # tokens of the step that are in the answer already

    @property
    def unfinished(self) -> tuple[Token, ...]:
        """The tokens of the step that have come so far."""
        return self._splitter.unfinished

    @property
    def waiting(self) -> bool:
        """Has a blank line been seen that may or may not turn out to end the step?"""
        return self._splitter.waiting

    @property
    def cut(self) -> int | None:
        """Tokens of the step that the client has, should it end here; None where it has nothing of it."""
        return sum(token.size for token in self.unfinished[: self._shown]) if self._shown else None

    def feed(self, token: Token) -> list[Step]:
        """Takes the next token; gives the steps that it completed."""
        return self._splitter.feed(token)

    def finish(self) -> Step | None:
        """The text has ended: what is left, if anything."""
        return self._splitter.finish()

    def rest(self, step: Step) -> tuple[Token, ...]:
        """The tokens of a step that is complete which were not said yet; now they are."""
        rest = step.tokens[self._shown :]
        self._shown = max(0, self._shown - len(step.tokens))
        return rest

    def show(self) -> tuple[Token, ...]:
        """The tokens of the step under way that were not said yet; now they are."""
        fresh = self.unfinished[self._shown :]
        self._shown += len(fresh)
        return fresh
