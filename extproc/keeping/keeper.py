"""Answers of one worker that are given again: looked up before a request is sent on, kept once they have come whole.

Equal requests at the same time ask the model once: the first one leads, and the others wait for its answer a while.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol

import numpy as np  # at the top: the first request's token estimate needs it, and would wait for it
import orjson

from decisions.decision import Cache, Trace
from decisions.engine import Engine
from decisions.model import Model
from extproc.apis.registry import BY_NAME
from extproc.apis.shape import EVENTS, JSON
from extproc.keeping.capture import Capture
from extproc.keeping.key import directives, key, question, unkept, who
from extproc.keeping.shelf import LONG, KeptAnswer, MemoryShelf, Shelf, ShelfPlace, StoreShelf
from extproc.watching.shapes import SHAPES, asks_json
from extproc.watching.watch import Watch
from extproc.wire import Pairs
from signals.neural.fair import client_of
from signals.neural.kinds import shipped
from signals.neural.shipped import LEAST_MEANT
from signals.reading import Unavailable
from signals.request import Request
from upstream import usage

log = logging.getLogger("pointsman.cache")

WAIT_S: Final = 10.0
"""How long a request waits for the answer of an equal one."""
_STEPS: Final = 127
"""Of an embedding's numbers, from 0 to 1, as they are kept."""
BRIEF_S: Final = 0.5
"""The same where Envoy's timer runs meanwhile (every body mode but FULL_DUPLEX_STREAMED)."""


class Apart(Protocol):
    """Work in a thread."""

    def __call__(self, work: Callable[[], Any]) -> Awaitable[Any]: ...


class Keeper:
    """What a worker keeps, whatever policy is in force."""

    def __init__(self) -> None:
        self._memory = MemoryShelf(0)
        self._flights: dict[str, asyncio.Future[KeptAnswer | None]] = {}
        self._writing: set[asyncio.Task[None]] = set()

    def ask(self, engine: Engine, trace: Trace, request: Request) -> Keeping:
        """One request, whose decision keeps answers."""
        return Keeping(self, engine, trace, request)

    def shelf(self, engine: Engine) -> Shelf:
        """Where the policy of `engine` keeps answers."""
        settings = engine.settings.cache
        if settings.store is not None:
            return StoreShelf(settings.store, settings.answer)
        if self._memory.limit != settings.memory:
            self._memory.fit(settings.memory)
        return self._memory

    def write(self, shelf: Shelf, place: ShelfPlace, kept: KeptAnswer, ttl: float) -> None:
        """Keep an answer, soon."""
        if isinstance(shelf, MemoryShelf):
            shelf.keep(place, kept, ttl)
            return
        task = asyncio.get_running_loop().create_task(shelf.put(place, kept, ttl))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def drop(self, engine: Engine, decision: str | None, scope: str | None) -> int:
        """Forget the answers of a decision, and of a scope (`extproc.keeping.key.scope_of`); None: of all. Raises
        Unavailable."""
        return await self.shelf(engine).drop(decision, scope)

    def counts(self) -> dict[str, float]:
        """`bytes`, `entries` and `evicted_total` of what this process keeps."""
        memory = self._memory
        return {
            "bytes": float(memory.bytes),
            "entries": float(len(memory)),
            "evicted_total": float(memory.evicted),
        }

    # One flight per key

    def under_way(self, digest: str) -> asyncio.Future[KeptAnswer | None] | None:
        """The answer that an equal request waits for."""
        return self._flights.get(digest)

    def lead(self, digest: str) -> asyncio.Future[KeptAnswer | None]:
        """This request is the one that asks the model."""
        flight = self._flights[digest] = asyncio.get_running_loop().create_future()
        return flight

    def land(self, digest: str, flight: asyncio.Future[KeptAnswer | None], kept: KeptAnswer | None) -> None:
        """The answer has come, or (None) there is none to share."""
        if self._flights.get(digest) is flight:
            del self._flights[digest]
        if not flight.done():
            flight.set_result(kept)


class Keeping:
    """What keeping does for one request. `result` is told to whoever counts: `hit`, `miss`, or why the answer is not
    kept (`api`, `no_store`, `no_scope`, `sampled`, `stateful`, `unreadable`).
    """

    __slots__ = (
        "_asked",
        "_capture",
        "_engine",
        "_flight",
        "_keeper",
        "_kept",
        "_place",
        "_request",
        "_trace",
        "result",
    )

    def __init__(self, keeper: Keeper, engine: Engine, trace: Trace, request: Request) -> None:
        self._keeper = keeper
        self._engine = engine
        self._trace = trace
        self._request = request
        self._asked = b""  # the embedding of the question, where others may put it in another way
        self._place: ShelfPlace | None = None
        self._flight: asyncio.Future[KeptAnswer | None] | None = None
        self._capture: Capture | None = None
        self._kept: KeptAnswer | None = None
        cache = self._cache
        asker = who(engine, request, cache.scope)
        self.result = unkept(request, cache) or ("miss" if asker is not None else "no_scope")

    @property
    def _cache(self) -> Cache:
        cache = self._trace.decision.cache
        assert cache is not None
        return cache

    # Asking

    async def find(self, apart: Apart, wait: float = WAIT_S) -> tuple[str, bytes] | None:
        """The content type and the body of an answer that is kept, in the form that the client wants; None where the
        model must be asked. Only to be asked where the `result` is a miss so far.

        Waits at most `wait` seconds for an equal request. Never raises for what a client sends.
        """
        request, engine, trace = self._request, self._engine, self._trace
        asker = who(engine, request, self._cache.scope)
        assert asker is not None
        asked = None if self._cache.similar is None else question(request)
        if asked is not None:
            self._asked = await self._meaning(asked.text)
        work = partial(key, request, engine, trace.decision, asker, asked if self._asked else None)
        try:
            made = await apart(work) if request.size > LONG else work()
        except (TypeError, ValueError, RecursionError):  # a number or a text that JSON has no one form for
            self.result = "unreadable"
            return None
        self._place = ShelfPlace(trace.decision.name or "", made)
        said = directives(request.headers)
        if "no-cache" in said:  # the client wants a new answer, which may be kept
            return None
        kept = self._fresh(await self._keeper.shelf(engine).get(self._place), said.get("max-age", ""))
        if kept is None:
            kept = self._fresh(await self._shared(made.digest, wait), said.get("max-age", ""))
        if kept is None:
            return None
        try:
            if not await self._passes(kept, apart):
                return None
            writing = partial(_written, kept, request)
            found: tuple[str, bytes] = await apart(writing) if len(kept.body) > LONG else writing()
        except (ValueError, TypeError, KeyError, AttributeError) as error:  # kept by another version, say
            log.warning("kept_answer_unreadable", extra={"error": type(error).__name__})
            return None
        self._kept = kept
        self.result = "hit"
        return found

    async def _shared(self, digest: str, wait: float) -> KeptAnswer | None:
        """The answer of an equal request that is under way; None where there is none, and this one leads."""
        flight = self._keeper.under_way(digest)
        if flight is None:
            self._flight = self._keeper.lead(digest)
            return None
        done, _ = await asyncio.wait((flight,), timeout=wait)
        return flight.result() if done else None

    def _fresh(self, kept: KeptAnswer | None, most: str) -> KeptAnswer | None:
        """`kept`, unless it is older than the policy or the client (`max-age`) wants it."""
        if kept is None or kept.age() > self._cache.ttl or (most.isdecimal() and kept.age() > int(most[:9])):
            return None
        least = self._cache.similar
        return kept if least is None or _cosine(self._asked, kept.asked) >= least else None

    async def _meaning(self, text: str) -> bytes:
        """The embedding of a question; b'' where it cannot be had, or knows too few of the words."""
        engine = self._engine
        deadline = time.monotonic() + engine.settings.deadline
        try:
            verdict = await shipped(engine.shared).verdict(text, deadline, client_of(self._request))
        except Unavailable:
            return b""
        known = verdict.meant >= LEAST_MEANT
        return np.rint(verdict.embedding * _STEPS).astype(np.int8).tobytes() if known else b""

    async def _passes(self, kept: KeptAnswer, apart: Apart) -> bool:
        """Whether no decision on answers acts on what is kept: that was judged for another request, maybe by another
        policy."""
        judge = self._engine.judge(self._trace, self._request)
        if judge is None:
            return True
        judge.apart = apart
        deadline = time.monotonic() + self._engine.settings.deadline
        request = self._request
        watch = Watch(SHAPES[request.api], judge, False, json=asks_json(request.fields))
        shown = watch.feed(kept.body, True)
        while watch.waiting:
            shown += await watch.judged(deadline)
        return shown == kept.body and not judge.acted

    # Answering

    def told(self) -> Pairs:
        """What the client is told."""
        if self._kept is not None:
            return (("x-pointsman-cache", f"hit; age={int(self._kept.age())}"),)
        return (("x-pointsman-cache", "miss"),) if self.result == "miss" else ()

    def reference(self, compared: Model | None) -> float | None:
        """What the answer that was kept costs on `compared`, or, where nothing is compared, on the decision's own
        model; None where there is no price, or nothing kept."""
        model = compared or self._trace.decision.model
        if self._kept is None or model is None or (compared is None and not model.priced):
            return None
        used, _ = usage.last(self._kept.body)
        return model.cost(used.prompt or 0, used.completion or 0, used.cached or 0, used.written or 0)

    # Keeping

    def begin(self, status: int, kind: str, coded: bool, model: Model | None) -> None:
        """The head of the model's answer has come: its `status`, its media type `kind`, whether it is `coded`, and
        the `model` that answers."""
        decision, streamed = self._trace.decision, kind == EVENTS
        its_own = decision.writer is not None or model is decision.model  # no other has answered in the model's place
        readable = status == 200 and not coded and (streamed or kind == JSON)
        if self._place is not None and self._kept is None and its_own and readable:
            self._capture = Capture(self._request.api, streamed, self._engine.settings.cache.answer)
        else:
            self.end()

    def take(self, data: bytes, end: bool) -> None:
        """A piece of the answer, as the model sent it; `end`: the last one."""
        capture = self._capture
        if capture is None:
            return
        capture.take(data)
        if not (end or capture.lost):
            return
        body = capture.end()
        if body is not None:
            self._keep(KeptAnswer(body, time.time(), self._asked))
        self.end()

    def judged(self, acted: bool) -> None:
        """The whole answer was judged; it is not kept where a decision has acted on it."""
        if acted:
            self.end()
        else:
            self.take(b"", True)

    def end(self) -> None:
        """No answer comes that is kept, or the exchange is over: nobody is to wait any longer."""
        self._capture = None
        if self._flight is not None and self._place is not None:
            self._keeper.land(self._place.key.digest, self._flight, None)
            self._flight = None

    def _keep(self, kept: KeptAnswer) -> None:
        place, keeper = self._place, self._keeper
        assert place is not None
        keeper.write(keeper.shelf(self._engine), place, kept, self._cache.ttl)
        if self._flight is not None:
            keeper.land(place.key.digest, self._flight, kept)
            self._flight = None


def _cosine(one: bytes, other: bytes) -> float:
    """Of two embeddings; 1 where neither question may be put in another way: then their letters are the same."""
    if one == other:
        return 1.0
    if len(one) != len(other):  # of another table, say
        return 0.0
    first, second = (np.frombuffer(each, np.int8).astype(np.float32) for each in (one, other))
    return float(first @ second / np.sqrt(first @ first * (second @ second)))


def _written(kept: KeptAnswer, request: Request) -> tuple[str, bytes]:
    """The kept answer in the form that `request` wants."""
    if not request.asking.streams(request):
        return JSON, kept.body
    shape = BY_NAME[request.api]
    options = request.fields.get("stream_options")
    asked = isinstance(options, dict) and options.get("include_usage") is True
    return shape.streamed_as(request.framing), SHAPES[request.api].stream(orjson.loads(kept.body), asked)
