"""Requests to the large model beside the answer: a mark for a draft, and a warm-up of its prefix cache.

Their answers are no part of the text; their tokens count as discarded.
"""

from __future__ import annotations

import asyncio

from stepwise.asking import verify
from stepwise.asking.continuation import Continuation, build
from stepwise.asking.pair import Setup
from stepwise.loop.transcript import Transcript
from stepwise.steps import Step
from stepwise.strategy import NoJudgement
from upstream.books import Books
from upstream.client import DeadlineError, UpstreamError
from upstream.endpoint import JSON
from upstream.usage import TokenCounts, read
from upstream.writer import Call

_LONG = 10.0  # seconds without a mark after which its server hangs, whatever ends the waiting


class Aside:
    """The requests of one answer."""

    def __init__(self, setup: Setup, call: Call, books: Books, transcript: Transcript) -> None:
        self._large = setup.large
        self._marks = setup.marks or "digit"
        self._metrics = setup.metrics
        self._call = call
        self._books = books
        self._transcript = transcript
        self._warming: asyncio.Task[None] | None = None
        self._marking: asyncio.Task[float] | None = None

    def mark(self, step: Step) -> asyncio.Task[float]:
        """Has the large model mark a draft, as `verify` does, while the small one goes on."""
        self._marking = asyncio.create_task(self.verify(step))
        self._marking.add_done_callback(lambda task: task.cancelled() or task.exception())  # perhaps nobody waits
        return self._marking

    async def verify(self, step: Step) -> float:
        """The large model's opinion of a draft, 0..1, from one token. Raises NoJudgement."""
        model, drafted = self._large, verify.Drafted(self._call.body, self._transcript.text, step.text)
        if model.hung is not None:
            raise NoJudgement("verify_failed", f"{model.name} gave no mark in time before")
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            asked = verify.request(self._marks, drafted, model.capability.mode, model.template)
            answer = await self._ask(asked, self._transcript.tokens + step.size)
        except UpstreamError as error:
            self._metrics.upstream_errors[model.name, error.kind] += 1
            if error.kind == "timeout":
                model.hangs()
            raise NoJudgement("verify_failed", str(error)) from error
        except (DeadlineError, asyncio.CancelledError):  # the answer has ended, or its client has left, meanwhile
            if loop.time() - started > _LONG:
                model.hangs()
            raise
        return verify.mark(self._marks, answer, step.text)

    def warm(self) -> None:
        """Has the large model read the prefix, in the background, because it may soon be needed."""
        if self._warming is None or self._warming.done():
            self._warming = asyncio.create_task(self._warm(self._transcript.text, self._transcript.tokens))

    async def _warm(self, prefix: str, tokens: int) -> None:
        model = self._large
        try:
            how = Continuation(max_tokens=1, template=model.template)
            path, body = build(model.capability.mode, self._call.body, prefix, how)
            del body["stream"], body["stream_options"]
            await self._ask((path, body), tokens)
        except (UpstreamError, DeadlineError):
            self._metrics.upstream_errors[model.name, "warm"] += 1

    async def _ask(self, asked: tuple[str, JSON], prefix: int) -> JSON:
        """The large model's answer to a request that continues `prefix` tokens. Raises UpstreamError and DeadlineError.

        What it reads is estimated while nobody has counted it: whoever leaves meanwhile pays for it, too.
        """
        large = self._large
        self._books.begun(large.name, prefix)
        try:
            answer = await large.upstream.ask(*asked, self._call.forwarded, self._call.deadline)
            given = answer.get("usage")
            if given and not isinstance(given, dict):
                raise UpstreamError("garbage", f"{large.name} sent a malformed usage")
        except UpstreamError:
            self._books.ended(large.name, prefix)
            raise
        said = read(given)
        if said.prompt is not None:
            self._books.ended(large.name, prefix)
        self._books.aside(
            large.name, TokenCounts(said.prompt or 0, said.completion or 1, said.cached or 0, said.written or 0)
        )
        return answer

    def close(self) -> None:
        for task in (self._warming, self._marking):
            if task is not None:
                task.cancel()
