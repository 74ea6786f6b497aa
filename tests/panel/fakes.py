"""A panel over real HTTP servers that play models."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from panel.answer import Panel
from panel.spec import PanelSpec
from signals.state.store import Store
from tests.patience import PATIENCE
from tests.stepwise.fakes import FakeModel, words
from upstream.usage import Spent
from upstream.writer import Call, Means

ASK = [{"role": "user", "content": "What is it?"}]


async def until(reached: Callable[[], bool]) -> None:
    """Wait until it is so, and ask less and less often: many tables may wait at the same time."""
    pause, deadline = 0.002, time.monotonic() + PATIENCE
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not come to that")
        await asyncio.sleep(pause)
        pause = min(2 * pause, 0.05)


def says(name: str, *texts: str, **more: Any) -> FakeModel:
    """A model that gives these answers, one after the other, and the last one for ever; a ✗ is improbable to it."""
    return FakeModel(name, lambda _, number: texts[min(number, len(texts) - 1)], **more)


class Caller(FakeModel):
    """Calls tools after its text: `calls` are their ids, names and arguments, and of the latter a piece is sent at a
    time. `index`: of each; None: as OpenAI counts them."""

    calls: tuple[tuple[str, str, str], ...] = ()
    index: int | None = None
    mixed = False  # the first call goes on after the last one

    async def _event(self, sink: Any, event: Any) -> None:
        choice = (event.get("choices") or [{}])[0]
        if choice.get("finish_reason"):
            for part in self._parts():
                delta = {"index": 0, "delta": {"tool_calls": [part]}, "finish_reason": None}
                await super()._event(sink, {"choices": [delta]})
            if self.calls and choice["finish_reason"] == "stop":
                choice["finish_reason"] = "tool_calls"
        await super()._event(sink, event)

    def _parts(self) -> Iterator[dict[str, Any]]:
        for at, (id_, name, arguments) in enumerate(self.calls):
            index = at if self.index is None else self.index
            yield {"index": index, "id": id_, "type": "function", "function": {"name": name, "arguments": ""}}
            for begin in range(0, len(arguments), 7):
                yield {"index": index, "function": {"arguments": arguments[begin : begin + 7]}}
        if self.mixed:
            yield {"index": 0, "function": {"arguments": " "}}


class Reader(FakeModel):
    """Says how probable it finds a draft, as `confidence` has it."""

    async def _answer(self, reader: Any, sink: Any, path: str, body: Any, *more: Any) -> bool:
        if "prompt_logprobs" not in body:
            return await super()._answer(reader, sink, path, body, *more)
        read = words(body["messages"][-1]["content"])
        said = [{"logprob": self.confidence(token), "rank": 1, "decoded_token": token} for token in read]
        template = {"logprob": -9.0, "rank": 5, "decoded_token": "<|assistant|>"}
        entries = [None, {"1": template}, *({str(at): one} for at, one in enumerate(said))]
        usage = {"prompt_tokens": 10 + len(read), "completion_tokens": 1}
        return await self._whole(sink, 200, {"choices": [], "usage": usage, "prompt_logprobs": entries})


def calls(name: str, text: str, *called: tuple[str, str, str], **more: Any) -> Caller:
    """A model that says this and then calls these tools."""
    made = Caller(name, lambda _, number: text, **more)
    made.calls = called
    return made


@dataclass
class Given:
    """What a client got. `events` are those of a stream, without [DONE]."""

    status: int
    headers: dict[str, str]
    raw: bytes

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def events(self) -> list[dict[str, Any]]:
        lines = [line for line in self.raw.decode().split("\n") if line.startswith("data: ")]
        return [json.loads(line[6:]) for line in lines if line != "data: [DONE]"]

    @property
    def text(self) -> str:
        """Of a chat completion, streamed or whole."""
        if self.headers["content-type"].startswith("text/event-stream"):
            choices = [choice for event in self.events for choice in event.get("choices", ())]
            return "".join(choice["delta"].get("content") or "" for choice in choices)
        text: str = self.body["choices"][0]["message"]["content"]
        return text

    @property
    def usage(self) -> dict[str, Any]:
        found: dict[str, Any] = (
            next(event["usage"] for event in reversed(self.events) if event.get("usage"))
            if self.headers["content-type"].startswith("text/event-stream")
            else self.body["usage"]
        )
        return found

    @property
    def calls(self) -> list[tuple[str, str, bool]]:
        """Who was asked, what for, and whether it was released."""
        return [(call["model"], call["why"], call["released"]) for call in self.usage["pointsman"]["calls"]]


@dataclass
class Table:
    """A panel and its members' servers."""

    panel: Panel
    models: dict[str, FakeModel]
    charged: list[Spent]

    def call(self, api: str = "chat", headers: dict[str, str] | None = None, **body: Any) -> Call:
        fields = {"model": "auto", **({"messages": ASK} if api == "chat" else {}), **body}
        if api == "chat" and fields.get("stream"):
            fields.setdefault("stream_options", {"include_usage": True})
        return Call(fields, headers or {}, api, charge=self.charged.append)

    async def ask(self, api: str = "chat", headers: dict[str, str] | None = None, **body: Any) -> Given:
        call = self.call(api, headers, **body)
        assert self.panel.unfit(call) is None
        async with await self.panel.answer(call) as answer:
            raw = b"".join([part async for part in answer.body])
            return Given(answer.status, dict(answer.headers), raw)

    @property
    def asked(self) -> dict[str, int]:
        """How many requests each member's server has got."""
        return {name: len(model.requests) for name, model in self.models.items()}

    async def quiet(self) -> None:
        await until(lambda: not any(model.connections for model in self.models.values()))


@asynccontextmanager
async def table(
    models: list[FakeModel],
    block: dict[str, Any],
    folder: Path = Path(),
    wait: float = 10 * PATIENCE,
    store: Store | None = None,
) -> AsyncIterator[Table]:
    """A panel ready to answer, which waits so many seconds for a server. At the end nothing may be left over: no task,
    no connection."""
    before = asyncio.all_tasks()
    async with AsyncExitStack() as stack:
        for model in models:
            await model.start()
            stack.push_async_callback(model.stop)
        ends = {model.name: model.endpoint(first_timeout=wait, idle_timeout=wait) for model in models}
        panel = PanelSpec.model_validate(block).build(Means(ends, folder, store))
        assert isinstance(panel, Panel)
        stack.push_async_callback(panel.close)
        made = Table(panel, {model.name: model for model in models}, [])
        yield made
        await made.quiet()
    # Of tables side by side, each sees the tasks of all: hundreds that look at them again and again take long.
    while left := asyncio.all_tasks() - before:
        _, late = await asyncio.wait(left, timeout=PATIENCE)
        assert not late, late
