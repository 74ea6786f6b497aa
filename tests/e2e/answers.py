"""An Answerer for the end-to-end tests: server-sent events, slowly or without end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator

from decisions.decision import Trace
from extproc.wire import Pairs
from signals.request import Request
from upstream.answer import Answer
from upstream.writer import Charge


class Words:
    """Streams what the request's last message asks for: `count N PAUSE`, `endless`, `break`, or `plain`."""

    def __init__(self) -> None:
        self.sent = 0
        self.open = 0

    async def answer(self, trace: Trace, request: Request, charge: Charge | None = None) -> Answer | None:
        words = request.text("user").split()
        if words[0] == "plain":
            return None
        return Answer(200, {"content-type": "text/event-stream"}, self._body(words))

    def elsewhere(self, trace: Trace, request: Request) -> Pairs | None:
        return None

    async def _body(self, words: list[str]) -> AsyncGenerator[bytes, None]:
        self.open += 1
        self.sent = 0
        try:
            if words[0] == "break":
                yield b"data: 0\n\n"
                raise ValueError("broken on purpose")
            if words[0] == "endless":
                while True:
                    yield b"x" * 16_384
                    self.sent += 16_384
                    await asyncio.sleep(0)
            for number in range(int(words[1])):
                yield b"data: %d\n\n" % number
                await asyncio.sleep(float(words[2]))
        finally:
            self.open -= 1
