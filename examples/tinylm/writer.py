"""Both models in this process, many answers in one batch: the quick way to collect (``--writer
examples.tinylm.writer``).

It writes what the server would write: the same networks, tokens, log probabilities and step ends; at a temperature
above 0 it draws from the same probabilities, but not the same tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from examples.tinylm.engine import CONTEXT, NEVER, WEIGHTS, Engine, Sampled
from examples.tinylm.server import Piece, Text
from examples.tinylm.tokenizer import END, PAD, RECENT, render
from stepwise.asking.verify import likelihood
from stepwise.policy import Marks
from stepwise.steps import Splitter, StepLimits
from stepwise.train.tree import Question, Written
from upstream.tokens import TOP, Token

_BATCH = 64
_CELLS = 64 * 400**2
"""Pairs of tokens that the texts of a batch may have: attention holds a number of each, for every head."""
_LONGEST = 512  # tokens of one text


class _Ask(NamedTuple):
    """ids: the prompt; prefix: the answer so far; stop: end after the first step; last: tokens at the end to be
    scored."""

    ids: list[int]
    prefix: str
    stop: bool
    last: int


class _Batcher:
    """Collects what is asked for while the event loop turns, then does it in batches."""

    def __init__(self, work: Callable[[list[_Ask]], list[Any]]) -> None:
        self._work = work
        self._waiting: list[tuple[_Ask, asyncio.Future[Any]]] = []
        self._task: asyncio.Task[None] | None = None

    async def __call__(self, ask: _Ask) -> Any:
        result: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((ask, result))
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await result

    async def _run(self) -> None:
        while self._waiting:
            before = -1
            while before != len(self._waiting):  # until nobody adds anything any more
                before = len(self._waiting)
                for _ in range(5):
                    await asyncio.sleep(0)
            self._waiting.sort(key=lambda item: len(item[0].ids))
            size = _together([len(ask.ids) for ask, _ in self._waiting])
            part, self._waiting = self._waiting[:size], self._waiting[size:]
            try:
                done = self._work([ask for ask, _ in part])
            except Exception as error:  # noqa: BLE001 - whoever asked gets it
                for _, result in part:
                    result.set_exception(error)
                continue
            for (_, result), value in zip(part, done, strict=True):
                if not result.done():  # its asker was cancelled
                    result.set_result(value)


def _together(sizes: Sequence[int]) -> int:
    """How many of some texts, the shortest first, run in one batch: one at least."""
    taken = 1
    while taken < min(len(sizes), _BATCH) and (taken + 1) * sizes[taken] ** 2 <= _CELLS:
        taken += 1
    return taken


class _Model:
    def __init__(self, engine: Engine, limits: StepLimits, top: int, temperature: float) -> None:
        self.engine = engine
        self._limits, self._top, self._temperature = limits, top, temperature
        self._chance = np.random.default_rng(0)
        self.write, self.score = _Batcher(self._write), _Batcher(self._score)

    def prompt(self, question: Question, prefix: str) -> list[int]:
        return render(self.engine.tokenizer, [("user", question.text), ("assistant", prefix)], open_turn=False)

    def _write(self, asks: list[_Ask]) -> list[Written]:
        ids, positions, valid = _pad([ask.ids for ask in asks])
        past = np.repeat(self.engine.empty, len(asks), axis=2)
        texts = [Text(self.engine.tokenizer) for _ in asks]
        splitters = [Splitter(self._limits, ask.prefix) for ask in asks]
        out: list[list[Token]] = [[] for _ in asks]
        ended = [False] * len(asks)
        alive, at = np.arange(len(asks)), positions[:, -1]
        while len(alive):
            logits, past = self.engine.run(ids, positions, past, valid)
            logprobs = _log_softmax(logits[:, -1])
            chosen = self._drawn(logprobs).argmax(axis=1)
            best = -np.sort(np.partition(-logprobs, self._top, axis=1)[:, : self._top], axis=1)
            going = []
            for row, i in enumerate(alive):
                token = int(chosen[row])
                top = tuple((0, float(p)) for p in best[row])  # which tokens they are does not matter here
                ended[i] = token == END
                pieces = (
                    texts[i].flush() if ended[i] else texts[i].push(Sampled(token, float(logprobs[row, token]), top))
                )
                fresh = [_token(piece) for piece in pieces]
                out[i] += fresh
                steps = [step for token_ in fresh for step in splitters[i].feed(token_)]
                full = len(out[i]) >= _LONGEST or len(asks[i].ids) + len(out[i]) + 10 >= CONTEXT
                if not (ended[i] or full or (steps and asks[i].stop)):
                    going.append(row)
            alive, at, past = alive[going], at[going] + 1, past[:, :, going]
            ids, positions = np.concatenate([ids[going, -RECENT:], chosen[going, None]], axis=1), at[:, None]
            valid = np.concatenate([valid[going], np.ones((len(going), 1), np.bool_)], axis=1)
        return [Written(tuple(tokens), end) for tokens, end in zip(out, ended, strict=True)]

    def _drawn(self, logprobs: Any) -> Any:
        """Numbers of which the largest is at the token to be written: drawn by its probability (Gumbel's maximum)."""
        if not self._temperature:
            return logprobs
        return logprobs / self._temperature + self._chance.gumbel(size=logprobs.shape)

    def _score(self, asks: list[_Ask]) -> list[list[Piece]]:
        """The last tokens of each prompt, as a client of the server would read them."""
        ids, positions, valid = _pad([ask.ids for ask in asks])
        logits, _ = self.engine.run(ids, positions, np.repeat(self.engine.empty, len(asks), axis=2), valid)
        scores = []
        for row, ask in enumerate(asks):
            logprobs = _log_softmax(logits[row, -ask.last - 1 : -1])
            text, last = Text(self.engine.tokenizer), ids[row, -ask.last :].tolist()
            read = [Sampled(i, float(p), ()) for i, p in zip(last, logprobs[np.arange(ask.last), last], strict=True)]
            scores.append([piece for sampled in read for piece in text.push(sampled)] + text.flush())
        return scores


class Writer:
    """The two models as ``stepwise.train`` wants them, and the large one as a judge of steps. `small`: which of the
    small ones it is; `temperature`: 0 is greedy."""

    marks: Marks = "likelihood"

    def __init__(
        self, limits: StepLimits, folder: Path = WEIGHTS, small: str = "small", temperature: float = 0.0
    ) -> None:
        self._small = _Model(Engine(small, folder), limits, TOP, temperature)
        self._large = _Model(Engine("large", folder), limits, 0, temperature)

    async def small(self, question: Question, prefix: str) -> Written:
        written: Written = await self._small.write(_Ask(self._small.prompt(question, prefix), prefix, False, 0))
        return written

    async def large(self, question: Question, prefix: str, *, rest: bool = False) -> Written:
        written: Written = await self._large.write(_Ask(self._large.prompt(question, prefix), prefix, not rest, 0))
        return written

    async def verify(self, question: Question, prefix: str, step: str) -> tuple[float, int]:
        """How likely `step` is to the large model, and the tokens it read for that."""
        before = self._large.prompt(question, prefix)
        size = len(self._large.engine.tokenizer.encode(step))
        if not size:
            return 1.0, 0
        ids = [*before, *self._large.engine.tokenizer.encode(step)]
        pieces: list[Piece] = await self._large.score(_Ask(ids, prefix, False, size))
        return likelihood(((p.text, p.sampled.logprob) for p in reversed(pieces)), step), size

    def close(self) -> None:
        self._small.engine.close()
        self._large.engine.close()


@asynccontextmanager
async def open_writer(limits: StepLimits, temperature: float = 0.0) -> AsyncIterator[Writer]:
    """What ``--writer`` opens."""
    writer = Writer(limits, temperature=temperature)
    try:
        yield writer
    finally:
        writer.close()


def _pad(rows: list[list[int]]) -> tuple[Any, Any, Any]:
    """ids int64 [rows, RECENT + longest], positions int64 and valid bool [rows, longest], padded on the left."""
    wide = max(map(len, rows))
    ids = np.array([[PAD] * (RECENT + wide - len(row)) + row for row in rows], np.int64)
    valid = np.array([[False] * (wide - len(row)) + [True] * len(row) for row in rows])
    return ids, np.maximum(valid.cumsum(axis=1) - 1, 0), valid


def _log_softmax(logits: Any) -> Any:
    logits = logits.astype(np.float64)
    logits[:, NEVER] = -np.inf
    logits -= logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _token(piece: Piece) -> Token:
    return Token(piece.text, piece.sampled.logprob, tuple(p for _, p in piece.sampled.top))
