"""Runs one exported model: many answers at once, one thread, key/value caches kept for prefixes seen before.

Continuous batching: every turn of the thread takes waiting answers in (each read alone), then writes one token for all
that are under way. The cache of the whole batch is one array that only changes shape when an answer comes or goes.
"""

from __future__ import annotations

import json
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from examples.tinylm.tokenizer import ASSISTANT, END, PAD, RECENT, SYSTEM, USER, Tokenizer

WEIGHTS = Path(__file__).parent / "weights"
MODELS = ("small", "large", "deep")  # those that ship
CONTEXT = 2048  # tokens of prompt and answer together
MAX_TOP = 20
_MAX_BATCH = 32
_MAX_WAITING = 512
_CACHED_TOKENS = 16384  # of all kept prefixes together: 48 MiB for the large model
NEVER = [PAD, SYSTEM, USER, ASSISTANT]  # control tokens that an answer cannot hold


class Overloaded(Exception):
    """More answers wait than the engine keeps."""


class Sampled(NamedTuple):
    """One generated token: its id, its log probability, and the `top` most probable (id, log probability)."""

    token: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Done(NamedTuple):
    """The end of an answer.

    reason: "stop" (the model ended it), "length" (a limit) or "error"; cached: prompt tokens that a kept prefix saved.
    """

    reason: str
    cached: int


def loaded(path: Path) -> onnxruntime.InferenceSession:
    """The network in `path`. It runs in whichever thread asks it."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    return onnxruntime.InferenceSession(path.read_bytes(), options, providers=["CPUExecutionProvider"])


@dataclass(eq=False)
class Job:
    """One answer to write.

    prompt: token ids (1 to ``CONTEXT`` - 1); limit: most tokens to write; temperature: 0 is greedy; top_p: 0..1; top:
    how many alternatives to report; rng: draws the samples; sentences: where there are any, the answer is one of these
    (token ids, ``END`` last); reads: whether the log probabilities of the prompt's tokens are wanted, which are in
    `read` before anything is emitted; emit: called on the engine's thread with each ``Sampled``
    and then one ``Done``; it must not block.
    """

    prompt: list[int]
    limit: int
    emit: Callable[[Sampled | Done], None]
    temperature: float = 0.0
    top_p: float = 1.0
    top: int = 0
    rng: np.random.Generator = field(default_factory=np.random.default_rng)
    sentences: Sequence[tuple[int, ...]] = ()
    reads: bool = False
    read: list[float] = field(default_factory=list)  # of all tokens but the first, of which nobody can say anything
    cancelled: bool = False
    written: list[int] = field(default_factory=list)
    cached: int = 0

    def cancel(self) -> None:
        """Asks the engine to stop at the next token; nothing more is emitted after that. Any thread may call it."""
        self.cancelled = True


class Engine:
    """One model behind a thread. `close` it at the end.

    name: one of `MODELS`; folder: where ``<name>.onnx`` and ``words.json`` are. Raises OSError when one is missing.
    """

    def __init__(self, name: str, folder: Path = WEIGHTS) -> None:
        self.name = f"tinylm-{name}"
        self.tokenizer = Tokenizer(json.loads((folder / "words.json").read_text()))
        self._session = loaded(folder / f"{name}.onnx")
        layers, _, _, heads, _, dim = next(i.shape for i in self._session.get_inputs() if i.name == "past")
        self.empty = np.zeros((layers, 2, 1, heads, 0, dim), np.float32)
        self.tokens_run = 0  # tokens put through the network, kept prefixes not counted
        self._kept: OrderedDict[tuple[int, ...], NDArray[np.float32]] = OrderedDict()
        self._waiting: deque[Job] = deque()
        self._jobs: list[Job] = []  # under way
        self._wake = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Queues `job`. Raises Overloaded, or ValueError for a prompt that is empty or leaves no room."""
        if not 1 <= len(job.prompt) < CONTEXT:
            raise ValueError(f"the prompt has {len(job.prompt)} tokens; this model takes 1 to {CONTEXT - 1}")
        with self._wake:
            if len(self._waiting) >= _MAX_WAITING or self._closing:
                raise Overloaded(f"{self.name} has {len(self._waiting)} answers waiting")
            self._waiting.append(job)
            self._wake.notify()

    def close(self) -> None:
        """Ends the thread; answers under way end with the reason "error"."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def run(
        self, ids: NDArray[np.int64], positions: NDArray[np.int64], past: NDArray[np.float32], valid: NDArray[np.bool_]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The network once; shapes as in ``TinyLM.step``."""
        self.tokens_run += positions.size
        logits, cache = self._session.run(
            ["logits", "present"], {"ids": ids, "positions": positions, "past": past, "valid": valid}
        )
        return logits, cache

    # --- the thread -----------------------------------------------------------------------------------------------

    def _work(self) -> None:
        try:
            self._turns()
        finally:  # whatever ended the thread: nobody waits for ever, and nobody queues any more
            with self._wake:
                self._closing = True
                left = [*self._jobs, *self._waiting]
            for job in left:
                job.emit(Done("error", job.cached))

    def _turns(self) -> None:
        jobs = self._jobs
        past, valid = self.empty[:, :, :0], np.zeros((0, 0), np.bool_)
        while True:
            with self._wake:
                while not jobs and not self._waiting and not self._closing:
                    self._wake.wait()
                if self._closing:
                    break
                room = _MAX_BATCH - len(jobs)
                new = [self._waiting.popleft() for _ in range(min(room, len(self._waiting)))]
            for job in new:
                if job.cancelled:
                    continue
                jobs.append(job)
                logits, cache = self._read(job)
                if self._pick(job, logits, cache):
                    past, valid = _join(past, valid, cache)
                else:
                    jobs.pop()
            going = [i for i, job in enumerate(jobs) if not job.cancelled]
            if len(going) < len(jobs):
                for i, job in enumerate(jobs):
                    if job.cancelled:  # its client may come back with another end to the same beginning
                        self._keep(job, past[:, :, i : i + 1, :, -int(valid[i].sum()) :])
                jobs[:] = [jobs[i] for i in going]
                past, valid = _trim(past[:, :, going], valid[going])
            if not jobs:
                continue
            valid = np.concatenate([valid, np.ones((len(jobs), 1), np.bool_)], axis=1)
            ids = np.array([_last(job) for job in jobs], np.int64)
            positions = np.array([[len(job.prompt) + len(job.written) - 1] for job in jobs], np.int64)
            logits, past = self.run(ids, positions, past, valid)
            going = []
            for i, job in enumerate(jobs):
                if self._pick(job, logits[i, 0], past[:, :, i : i + 1, :, -int(valid[i].sum()) :]):
                    going.append(i)
            if len(going) < len(jobs):
                jobs[:] = [jobs[i] for i in going]
                past, valid = _trim(past[:, :, going], valid[going])

    def _read(self, job: Job) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Puts the prompt through the network, as far as no kept prefix covers it; (logits [vocab], cache)."""
        prompt = job.prompt
        best, length = None, 0
        for ids in self._kept if not job.reads else ():
            same = _common(ids, prompt)
            if same > length:
                best, length = ids, same
        length = min(length, len(prompt) - 1)
        past = self.empty
        if best is not None and length:
            self._kept.move_to_end(best)
            past = self._kept[best][:, :, :, :, :length]
        job.cached = length
        ids_left = np.array([([PAD] * RECENT + prompt)[length:]], np.int64)
        positions = np.arange(length, len(prompt), dtype=np.int64)[None]
        logits, cache = self.run(ids_left, positions, past, np.ones((1, len(prompt)), np.bool_))
        if job.reads:
            job.read = _logprobs(logits[0, :-1])[np.arange(len(prompt) - 1), prompt[1:]].tolist()
        self._keep(job, cache)
        return logits[0, -1], cache

    def _keep(self, job: Job, cache: NDArray[np.float32]) -> None:
        """Keeps the cache of what `job` has read and written so far for answers that begin alike; what it extends goes,
        and so do the longest unused ones when there are too many."""
        ids = (*job.prompt, *job.written)[: cache.shape[4]]
        for old in [old for old in self._kept if ids[: len(old)] == old]:
            del self._kept[old]
        self._kept[ids] = np.ascontiguousarray(cache)
        while sum(map(len, self._kept)) > _CACHED_TOKENS:
            self._kept.popitem(last=False)

    def _pick(self, job: Job, logits: NDArray[np.float32], cache: NDArray[np.float32]) -> bool:
        """Draws the next token of `job`; False when the answer is over. `cache` is what stands before that token."""
        if job.sentences:
            open_ = [one for one in job.sentences if [*one[: len(job.written)]] == job.written]
            goes_on = [one[len(job.written)] for one in open_]
            logits[np.setdiff1d(np.arange(len(logits)), goes_on)] = -np.inf
        logprobs = _logprobs(logits)
        token = _draw(job, logprobs)
        over = token == END or len(job.written) + 1 >= min(job.limit, CONTEXT - len(job.prompt))
        if token != END:
            order = np.argsort(-logprobs)[: job.top] if job.top else ()
            top = tuple((int(i), float(logprobs[i])) for i in order if np.isfinite(logprobs[i]))
            job.written.append(token)
            job.emit(Sampled(token, float(logprobs[token]), top))
        if over:
            self._keep(job, cache)
            job.emit(Done("stop" if token == END else "length", job.cached))
        return not over


def _logprobs(logits: NDArray[np.float32]) -> NDArray[np.float64]:
    """Log probabilities of the tokens, along the last axis; of control tokens as if they did not exist."""
    wide = logits.astype(np.float64)
    wide[..., NEVER] = -np.inf
    wide -= wide.max(axis=-1, keepdims=True)
    found: NDArray[np.float64] = wide - np.log(np.exp(wide).sum(axis=-1, keepdims=True))
    return found


def _last(job: Job) -> list[int]:
    """The token to be read next, after the ``RECENT`` before it."""
    ids = [*job.prompt[-RECENT:], *job.written[-RECENT - 1 :]][-RECENT - 1 :]
    return [PAD] * (RECENT + 1 - len(ids)) + ids


def _draw(job: Job, logprobs: NDArray[np.float64]) -> int:
    if job.temperature <= 0:
        return int(logprobs.argmax())
    scaled = logprobs / job.temperature
    weights = np.exp(scaled - scaled.max())
    weights /= weights.sum()
    if job.top_p < 1:
        order = np.argsort(-weights)
        # The smallest set of tokens that holds top_p of the probability, the one that crosses the line included.
        outside = order[np.cumsum(weights[order]) - weights[order] >= job.top_p]
        weights[outside] = 0.0
        weights /= weights.sum()
    return int(job.rng.choice(len(weights), p=weights))


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    n = 0
    for x, y in zip(a, b, strict=False):
        if x != y:
            break
        n += 1
    return n


def _join(
    past: NDArray[np.float32], valid: NDArray[np.bool_], cache: NDArray[np.float32]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Adds a row to the batch; the shorter side is padded on the left."""
    wide = max(past.shape[4], cache.shape[4])

    def pad(x: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(x, ((0, 0),) * 4 + ((wide - x.shape[4], 0), (0, 0)))

    row = np.arange(wide)[None] >= wide - cache.shape[4]
    valid = np.pad(valid, ((0, 0), (wide - valid.shape[1], 0)))
    return np.concatenate([pad(past), pad(cache)], axis=2), np.concatenate([valid, row])


def _trim(past: NDArray[np.float32], valid: NDArray[np.bool_]) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Cuts padding that no row needs any more."""
    wide = int(valid.sum(axis=1).max(initial=0))
    return past[:, :, :, :, past.shape[4] - wide :], valid[:, valid.shape[1] - wide :]
