"""A real HTTP server that plays a model, faults included, and small helpers."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from extproc.serving.overhttp import Port, application
from stepwise.answer import Steps
from stepwise.asking.pair import AnswerBudget, PairModel, Setup
from stepwise.asking.probe import QUESTION
from stepwise.asking.ready import Stepwise, unknown
from stepwise.steps import StepLimits
from stepwise.strategy import AnswerContext, Draft, Judgement, Run, StepJudge, Strategy, Turn
from tests.patience import PATIENCE
from upstream.answer import Answer
from upstream.client import ModelClient
from upstream.endpoint import ContinuationMode, Endpoint
from upstream.writer import Call

PROBE_TEXT = "First add twelve and thirty five, then take away eight, which leaves the number thirty nine."


def words(text: str) -> list[str]:
    """`text` in tokens: words with the space before them, blank lines alone."""
    tokens: list[str] = []
    for part in text.replace("\n\n", "\0").replace(" ", "\1 ").split("\1"):
        while "\0" in part:
            head, part = part.split("\0", 1)
            tokens += [head] if head else []
            tokens.append("\n\n")
        tokens += [part] if part else []
    return tokens


def writer(steps: list[str]) -> Callable[[str, int], str]:
    """A model that knows its solution by heart: it goes on after as many steps as the prefix has."""

    def write(prefix: str, request: int) -> str:
        done = prefix.split("\n\n")
        rest = steps[len(done) - 1 :]
        if rest and done[-1]:
            rest = [rest[0][len(done[-1]) :], *rest[1:]]
        return "\n\n".join(rest)

    return write


@dataclass
class Fault:
    """What goes wrong in one request, after so many tokens."""

    kind: str  # kill, hang, garbage, cut, error, status, slow, nodone, html, badjson, silent
    after: int = 0
    status: int = 500


@dataclass
class FakeModel:
    """A model and its server."""

    name: str
    write: Callable[[str, int], str]
    modes: frozenset[str] = frozenset(ContinuationMode)
    refused: frozenset[str] = frozenset()
    top: int = 5  # -1: no log probabilities
    usage: bool = True
    running_usage: bool = False
    stop_reason: bool = True
    streams: bool = True  # False: it answers as a whole, whatever it is asked
    confidence: Callable[[str], float] = lambda text: -0.5 if "✗" in text else -0.01
    faults: dict[int, Fault] = field(default_factory=dict)  # by the number of the (not probing) request
    delay: float = 0.0
    chunk: int = 1  # tokens in one event
    finish: str = "stop"
    thoughts: str = ""  # sent before the answer of a chat completion, in a field of their own
    probe_text: str = PROBE_TEXT
    template: str = ""  # told at /props, as llama.cpp's server does
    requests: list[dict[str, Any]] = field(default_factory=list)
    heads: list[dict[str, str]] = field(default_factory=list)
    probes: int = 0
    mark: str = "7"  # of a step, when the probe asks for one
    counts_marks: bool = True  # what is not streamed has its usage
    marking: asyncio.Event | None = None  # what is not streamed is answered only once this is set
    sent: int = 0  # tokens written to sockets
    connections: int = 0
    gone: int = 0  # connections the client closed in the middle of an answer
    released: asyncio.Semaphore | None = None  # one permit for each token, when a test holds the reins
    url: str = ""
    _server: asyncio.Server | None = None
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    def endpoint(self, **more: Any) -> Endpoint:
        return Endpoint(self.url, self.name, price_input=1.0, price_output=2.0, **more)

    async def _connection(self, reader: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        try:
            while await self._request(reader, sink):
                pass
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            self.connections -= 1
            self._tasks.discard(task)
            sink.close()

    async def _request(self, reader: asyncio.StreamReader, sink: asyncio.StreamWriter) -> bool:
        head = await reader.readuntil(b"\r\n\r\n")
        line, *fields = head.decode().split("\r\n")
        if line.startswith("GET "):
            told = line.split()[1] == "/props" and self.template
            answer = {"chat_template": self.template, "eos_token": "</s>"} if told else {"error": "not found"}
            return await self._whole(sink, 200 if told else 404, answer)
        headers = {name.lower(): value for name, value in (field.split(": ", 1) for field in fields if field)}
        if headers.get("transfer-encoding") == "chunked":  # what Envoy makes of a body that went through the processor
            data = b""
            while size := int(await reader.readline(), 16):
                data += await reader.readexactly(size)
                await reader.readline()
            await reader.readline()
        else:
            data = await reader.readexactly(int(headers["content-length"]))
        body = json.loads(data)
        path = line.split()[1]
        probing = body.get("messages", [{}])[0].get("content") == QUESTION or QUESTION in str(body.get("prompt"))
        if probing:
            self.probes += 1
            fault = self.faults.get(-1)
        else:
            fault = self.faults.get(len(self.requests), self.faults.get(-2))
            self.requests.append(body)
            self.heads.append(headers)
        if fault and fault.kind == "kill" and fault.after == 0:
            sink.transport.abort()
            return False
        if fault and fault.kind == "silent":
            await self._hang(reader)
            return False
        if fault and fault.kind in ("status", "html"):
            text = b'{"error":{"message":"no","type":"x","code":"y"}}' if fault.kind == "status" else b"<html>hello"
            status = fault.status if fault.kind == "status" else 200
            kind = b"application/json" if fault.kind == "status" else b"text/html"
            sink.write(b"HTTP/1.1 %d X\r\ncontent-type: %s\r\ncontent-length: %d\r\n\r\n" % (status, kind, len(text)))
            sink.write(text)
            await sink.drain()
            return True
        return await self._answer(reader, sink, path, body, probing, fault)

    async def _hang(self, reader: asyncio.StreamReader) -> None:
        """Until the client goes."""
        await reader.read(1)
        self.gone += 1

    def _mode(self, path: str, body: dict[str, Any]) -> tuple[str | None, str]:
        if path == "/v1/completions":
            prompt = body["prompt"]
            return ContinuationMode.COMPLETIONS, prompt.split("\n\n", 1)[1] if "\n\n" in prompt else ""
        last = body["messages"][-1]
        if last["role"] != "assistant":
            return None, ""
        if body.get("continue_final_message"):
            return ContinuationMode.FINAL_MESSAGE, last["content"]
        return (ContinuationMode.PREFIX if last.get("prefix") else ContinuationMode.ASSISTANT), last["content"]

    async def _answer(
        self, reader: asyncio.StreamReader, sink: asyncio.StreamWriter, path: str, body: dict[str, Any], probing: bool,
        fault: Fault | None,
    ) -> bool:  # fmt: skip
        mode, prefix = self._mode(path, body)
        wants_running = bool((body.get("stream_options") or {}).get("continuous_usage_stats"))
        if mode in self.refused:
            return await self._whole(sink, 400, {"error": {"message": f"{mode} is unknown here"}})
        if mode is not None and mode not in self.modes:
            prefix = ""  # silently ignored
        begun = prefix if self.probe_text.startswith(prefix) else prefix.removeprefix("<think>\n")
        known = self.probe_text[len(begun) :]
        text = known if probing else self.write(prefix, len(self.requests) - 1)
        if probing and "one digit" in str(body.get("prompt") or body["messages"][-1].get("content")):
            text = self.mark
        tokens = words(text)
        finish, reason = self.finish, None
        limit = body.get("max_tokens")
        if limit is not None and len(tokens) > limit:
            tokens, finish = tokens[:limit], "length"
        for stop in body.get("stop") or ():
            whole = "".join(tokens)
            if stop in whole:
                tokens, finish = words(whole[: whole.index(stop)]), "stop"
                reason = stop if self.stop_reason else None
        prompt_tokens = 10 + len(words(prefix))
        usage = {"prompt_tokens": prompt_tokens, "completion_tokens": len(tokens), "total_tokens": 0}
        if not (body.get("stream") and self.streams):
            message = {"role": "assistant", "content": "".join(tokens)}
            logprobs = {"content": [self._entry(token) for token in tokens]} if body.get("logprobs") else None
            choice = {"index": 0, "message": message, "finish_reason": finish, "logprobs": logprobs}
            if path == "/v1/completions":
                choice = self._choice(path, tokens, body) | {"finish_reason": finish}
            if self.marking is not None and not probing and not await self._marked(reader, self.marking):
                return False
            counted = {"usage": usage} if self.counts_marks else {}
            return await self._whole(sink, 200, {"choices": [choice], **counted})
        sink.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n"
            b"transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
        )
        closed = asyncio.create_task(reader.read(1))
        self._tasks.add(closed)
        try:
            if self.thoughts and not prefix and path != "/v1/completions":
                await self._event(sink, {"choices": [{"index": 0, "delta": {"reasoning_content": self.thoughts}}]})
            for at in range(0, len(tokens) + 1, self.chunk):
                if fault and at >= fault.after and not await self._go_wrong(sink, fault, closed):
                    return False
                if at >= len(tokens):
                    break
                if self.released is not None and not probing:
                    await self._permit(closed)
                if self.delay and not probing:
                    await asyncio.sleep(self.delay)
                if closed.done():
                    self.gone += 1
                    return False
                part = tokens[at : at + self.chunk]
                event = {"choices": [self._choice(path, part, body)]}
                if self.running_usage and wants_running:
                    event["usage"] = {**usage, "completion_tokens": at + len(part)}  # type: ignore[assignment]
                await self._event(sink, event)
                self.sent += 0 if probing else len(part)
            last: dict[str, Any] = {"index": 0, "finish_reason": finish, "stop_reason": reason}
            last |= {"text": ""} if path == "/v1/completions" else {"delta": {}}
            await self._event(sink, {"choices": [last]})
            if self.usage:
                await self._event(sink, {"choices": [], "usage": usage})
            if fault and fault.kind == "nodone":
                await closed
                return False
            sink.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            await sink.drain()
            return False
        finally:
            closed.cancel()
            await asyncio.wait([closed])
            self._tasks.discard(closed)

    async def _marked(self, reader: asyncio.StreamReader, marking: asyncio.Event) -> bool:
        """Whether the client is still there once `marking` is set."""
        closed, turn = asyncio.create_task(reader.read(1)), asyncio.create_task(marking.wait())
        self._tasks |= {closed, turn}
        try:
            await asyncio.wait([closed, turn], return_when=asyncio.FIRST_COMPLETED)
            self.gone += closed.done()
            return not closed.done()
        finally:
            for task in (closed, turn):
                task.cancel()
            await asyncio.wait([closed, turn])
            self._tasks -= {closed, turn}

    async def _permit(self, closed: asyncio.Task[bytes]) -> None:
        assert self.released is not None
        turn = asyncio.create_task(self.released.acquire())
        await asyncio.wait([turn, closed], return_when=asyncio.FIRST_COMPLETED)
        if not turn.done():
            turn.cancel()
            await asyncio.wait([turn])

    async def _go_wrong(self, sink: asyncio.StreamWriter, fault: Fault, closed: asyncio.Task[bytes]) -> bool:
        """True when the answer goes on nevertheless."""
        match fault.kind:
            case "kill":
                await sink.drain()
                sink.transport.abort()
                return False
            case "hang":
                await closed
                self.gone += 1
                return False
            case "comments":
                while not closed.done():
                    sink.write(b"8\r\n: wait\n\n\r\n")
                    await sink.drain()
                    await asyncio.wait([closed], timeout=0.05)
                self.gone += 1
                return False
            case "garbage":
                sink.write(b"5\r\n\xff\xfe\x00\n\n\r\n")
            case "badjson":
                sink.write(b'10\r\ndata: {"choices\n\n\r\n')
            case "cut":
                sink.write(b"0\r\n\r\n")
            case "midtoken":
                sink.write(b'1f\r\ndata: {"choices": [{"delta": {"\r\n0\r\n\r\n')
            case "done":
                sink.write(b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
            case "error":
                await self._event(sink, {"error": {"message": "out of memory"}})
            case "slow":
                await asyncio.sleep(0.02)
                return True
            case _:
                return True
        await sink.drain()
        return False

    def _choice(self, path: str, tokens: list[str], body: dict[str, Any]) -> dict[str, Any]:
        choice: dict[str, Any] = {"index": 0, "finish_reason": None}
        text = "".join(tokens)
        if path == "/v1/completions":
            choice["text"] = text
            if body.get("logprobs") and self.top >= 0:
                values = [self.confidence(token) for token in tokens]
                choice["logprobs"] = {
                    "tokens": tokens,
                    "token_logprobs": values,
                    "top_logprobs": [
                        {top["token"]: top["logprob"] for top in self._entry(token)["top_logprobs"]} for token in tokens
                    ],
                }
            return choice
        choice["delta"] = {"content": text}
        if body.get("logprobs") and self.top >= 0:
            choice["logprobs"] = {"content": [self._entry(token, body.get("top_logprobs") or 0) for token in tokens]}
        return choice

    def _entry(self, token: str, top: int = 5) -> dict[str, Any]:
        value = self.confidence(token)
        rest = math.log(max(1e-6, (1 - math.exp(value)) / 5))
        tops = [{"token": token, "logprob": value}, *({"token": str(i), "logprob": rest} for i in range(4))]
        return {"token": token, "logprob": value, "top_logprobs": tops[: min(top, self.top)]}

    async def _event(self, sink: asyncio.StreamWriter, event: dict[str, Any]) -> None:
        data = b"data: " + json.dumps(event).encode() + b"\n\n"
        sink.write(b"%x\r\n%s\r\n" % (len(data), data))
        await sink.drain()

    async def _whole(self, sink: asyncio.StreamWriter, status: int, body: dict[str, Any]) -> bool:
        data = json.dumps(body).encode()
        sink.write(
            b"HTTP/1.1 %d X\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % (status, len(data))
        )
        sink.write(data)
        await sink.drain()
        return True


class Marked(Strategy):
    """Rejects every draft that has a ✗ in it, and remembers the rejected ones."""

    name = "marked"

    def __init__(self) -> None:
        self.rejected: list[str] = []
        self.open = 0

    def begin(self, context: AnswerContext) -> Run:
        self.open += 1
        return MarkedRun(self)


class MarkedRun(StepJudge):
    def __init__(self, rule: Marked) -> None:
        self.rule = rule

    def turn(self, state: object) -> Turn:
        return Turn.DRAFT

    async def judge(self, draft: Draft) -> Judgement:
        await asyncio.sleep(0)
        if "✗" in draft.step.text:
            self.rule.rejected.append(draft.step.text)
            return Judgement(False, 0.1)
        return Judgement(True, 0.9)

    def close(self) -> None:
        self.rule.open -= 1


async def answer(stepwise: Stepwise, body: dict[str, Any], headers: dict[str, str], **more: Any) -> Answer:
    """What a stepwise decision answers, fit or not."""
    return await Steps(stepwise).answer(Call(body, headers, **more))


@dataclass
class Pair:
    """Two models with their servers, and a stepwise decision over them."""

    small: FakeModel
    large: FakeModel
    stepwise: Stepwise
    strategy: Strategy

    async def quiet(self) -> None:
        """Until no connection to a model is open any more (at most ten seconds)."""
        for _ in range(1000):
            if not self.small.connections and not self.large.connections:
                return
            await asyncio.sleep(0.01)
        raise AssertionError("connections left open")

    async def ask(self, question: str = "What is it?", *, stream: bool = True, **more: Any) -> tuple[int, Any]:
        """Status, and the JSON answer or the list of events (the last without its [DONE])."""
        body = {"model": "auto", "messages": [{"role": "user", "content": question}], "stream": stream, **more}
        if stream:
            body.setdefault("stream_options", {"include_usage": True})
        async with await answer(self.stepwise, body, {}) as reply:
            data = b"".join([part async for part in reply.body])
        if not reply.headers["content-type"].startswith("text/event-stream"):
            return reply.status, json.loads(data)
        *events, done = data.decode().strip().split("\n\n")
        assert done == "data: [DONE]"
        return reply.status, [json.loads(event.removeprefix("data: ")) for event in events]


@asynccontextmanager
async def served(decisions: dict[str, Any], listen: str = "127.0.0.1:0", **more: Any) -> AsyncIterator[str]:
    """Decisions by name, over HTTP; the URL."""

    writers = {name: Steps(one) if isinstance(one, Stepwise) else one for name, one in decisions.items()}

    def borrow(name: str, policy: str) -> AbstractAsyncContextManager[Any]:
        return nullcontext(writers.get(name))

    port = await Port.open(application(borrow, lambda: True, **more), listen)
    try:
        yield f"http://{port.address}"
    finally:
        await port.close(PATIENCE)


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(choice["delta"].get("content", "") for event in events for choice in event.get("choices", ()))


@asynccontextmanager
async def pair(
    small: FakeModel | list[str],
    large: FakeModel | list[str],
    strategy: Strategy | None = None,
    *,
    limits: StepLimits | None = None,
    budget: AnswerBudget | None = None,
    start: bool = True,
    hasty: str = "",
    template: str | None = None,
    **more: Any,
) -> AsyncIterator[Pair]:
    """A pair ready to answer. At the end nothing may be left over: no task, no connection, no run.

    `hasty`: names of the models that are given up after 0.3 seconds of silence (a healthy one may be slow here).
    """
    before = asyncio.all_tasks()
    small = small if isinstance(small, FakeModel) else FakeModel("tiny", writer(small))
    large = large if isinstance(large, FakeModel) else FakeModel("huge", writer(large))
    strategy = strategy or Marked()
    await small.start()
    await large.start()
    models = []
    for name, model in (("small", small), ("large", large)):
        slow = dict.fromkeys(("connect_timeout", "first_timeout", "idle_timeout"), 10 * PATIENCE)
        end = model.endpoint(template=template, **slow)
        models.append(PairModel(name, ModelClient(end), unknown(end)))
    stepwise = Stepwise(
        Setup(
            models[0],
            models[1],
            strategy,
            limits=limits or StepLimits(min_tokens=1),
            budget=budget or AnswerBudget(),
            **more,
        )
    )
    both = Pair(small, large, stepwise, strategy)
    try:
        if start:
            await stepwise.start()
        for known in models:
            if known.name in hasty:
                known.upstream.endpoint = replace(known.upstream.endpoint, first_timeout=0.3, idle_timeout=0.3)
        yield both
    finally:
        await stepwise.close()
        try:
            await both.quiet()
        finally:
            await small.stop()
            await large.stop()
            await asyncio.sleep(0)
        assert getattr(strategy, "open", 0) == 0, "a run was not closed"
        left = {task for task in asyncio.all_tasks() - before if not task.done()}
        assert not left, left
