"""The parts of an unfinished answer: the request that a model is answering, and the step that it is writing."""

from __future__ import annotations

from stepwise.asking.continuation import Joint
from stepwise.loop.transcript import Transcript
from stepwise.steps import Splitter, Step, StepLimits
from upstream.books import Open
from upstream.client import CompletionStream, Delta
from upstream.tokens import Token


class Opened:
    """One request to a model, which goes on from the answer as it is (`transcript`).

    `model`: its name in the configuration. `used`: tokens of the stream that are in the answer. `ended`: the stream's
    last piece, once it has come. `stop`: where it was asked to stop. `began`: what the prompt has put before its text.
    """

    def __init__(
        self, model: str, stream: CompletionStream, transcript: Transcript, stop: str | None, began: str = ""
    ) -> None:
        self.stream = stream
        self.stop = stop
        self.used = 0
        self.ended: Delta | None = None
        self._model = model
        self._prefix = transcript.tokens
        self._joint = Joint(transcript.text)
        self._began = began

    async def next(self) -> Delta | None:
        """The next piece, without a repeated prefix; None at the end. Raises UpstreamError and DeadlineError."""
        piece = await self.stream.next()
        if piece is None:
            return None
        piece.tokens = [used for token in piece.tokens for used in self._joint.feed(token)]
        if piece.finish:
            piece.tokens += self._joint.finish()
            self.ended = piece
        if self._began:
            piece.tokens.insert(0, Token(self._began, size=0))
            self._began = ""
        return piece

    def tell(self) -> Open:
        """The request as the books count it."""
        return Open(self._model, self._prefix, self.stream.received)


class Passage:
    """The unfinished step: where it ends, and how much of it the client has got.

    `fresh`: the draft's first token has not been looked at yet.
    """

    def __init__(self, limits: StepLimits, prefix: str = "") -> None:
        self.fresh = True
        self._splitter = Splitter(limits, prefix)
        self._shown = 0  # tokens of the step that are in the answer already
        self._judged = 0  # tokens of the step when it was last judged

    @property
    def unfinished(self) -> tuple[Token, ...]:
        """The tokens of the step that have come so far."""
        return self._splitter.unfinished

    @property
    def size(self) -> int:
        """How many tokens that is."""
        return self._splitter.size

    @property
    def thought(self) -> bool:
        """Whether the step is a thought so far."""
        return self._splitter.thought

    def due(self, every: int) -> bool:
        """Whether the step has grown by so many tokens since this was last so."""
        if self.size < self._judged:
            self._judged = 0
        if self.size < self._judged + every:
            return False
        self._judged = self.size
        return True

    @property
    def waiting(self) -> bool:
        """Whether a blank line was seen of which it is not known yet whether it ends the step."""
        return self._splitter.waiting

    @property
    def shown(self) -> tuple[Token, ...]:
        """The tokens of the unfinished step that the client has got."""
        return self.unfinished[: self._shown]

    def feed(self, token: Token) -> list[Step]:
        """Takes the next token; gives the steps that it completed."""
        return self._splitter.feed(token)

    def finish(self) -> Step | None:
        """The text has ended: gives the step that is left, if any."""
        return self._splitter.finish()

    def rest(self, step: Step) -> tuple[Token, ...]:
        """Those tokens of a complete step that the client has not got yet; from now on they count as sent."""
        rest = step.tokens[self._shown :]
        self._shown = max(0, self._shown - len(step.tokens))
        return rest

    def show(self) -> tuple[Token, ...]:
        """Those tokens of the unfinished step that the client has not got yet; from now on they count as sent."""
        fresh = self.unfinished[self._shown :]
        self._shown += len(fresh)
        return fresh
