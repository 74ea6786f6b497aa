"""The HTTP server in front of the engines, for OpenAI's and Anthropic's SDKs.

`/v1/models`, `/v1/chat/completions` and `/v1/completions`, streamed or not, with what vLLM adds and Pointsman uses:
`stop_reason`, `continue_final_message`, `add_generation_prompt`, `prompt_logprobs` (0, of chat completions); and in
other shapes (`shapes.py`) `/v1/responses` and `/v1/messages`. What the models cannot do is refused, not ignored.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import orjson
from aiohttp import web

from examples.tinylm import talk
from examples.tinylm.engine import CONTEXT, MAX_TOP, MODELS, WEIGHTS, Done, Engine, Job, Overloaded, Sampled
from examples.tinylm.shapes import Malformed, Messages, Responses, Shape
from examples.tinylm.tokenizer import END, SPECIAL, Stream, Tokenizer, render

Json = dict[str, Any]
_MAX_BODY = 8 * 1_048_576
_DEFAULT_TOKENS = 512
_IMPOSSIBLE = -9999.0  # JSON has no infinity; OpenAI and vLLM write this, too
_ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant", "tool": "user"}
_UNSUPPORTED = {
    "n": (None, 1), "best_of": (None, 1), "echo": (None, False), "suffix": (None, ""), "logit_bias": (None, {}),
    "presence_penalty": (None, 0), "frequency_penalty": (None, 0), "tool_choice": (None, "auto", "none"),
}  # fmt: skip


class ApiError(Exception):
    """Answered as OpenAI does: {"error": {message, type, param, code}}."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def response(self) -> web.Response:
        error = {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}
        return _json({"error": error}, self.status)

    @property
    def kind(self) -> str:
        return {404: "not_found_error", 503: "overloaded_error"}.get(self.status, "invalid_request_error")


class Piece(NamedTuple):
    """One token as the client reads it. text: what it adds to the answer ("" for a part of a character)."""

    text: str
    raw: bytes
    sampled: Sampled


@dataclass
class Text:
    """From sampled tokens to readable pieces: numbers in reading order, whole characters, cut at a stop string.

    stop: up to 4 non-empty strings. `hit` is the one that was found; it and what follows it is not part of the answer.
    """

    tokenizer: Tokenizer
    stop: Sequence[str] = ()
    hit: str | None = None
    _stream: Stream[Sampled] = field(init=False)
    _open: list[tuple[bytes, Sampled]] = field(default_factory=list)
    _held: list[Piece] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._stream = Stream(self.tokenizer)

    def push(self, sampled: Sampled) -> list[Piece]:
        """Takes one sampled token; returns the pieces that are settled now."""
        return self._settle(self._stream.push(sampled.token, sampled), last=False)

    def flush(self) -> list[Piece]:
        """The answer is over: everything that was held back."""
        return self._settle(self._stream.flush(), last=True)

    def _settle(self, read: list[Sampled], *, last: bool) -> list[Piece]:
        for sampled in read:
            self._open.append((self.tokenizer.raw(sampled.token), sampled))
            self._characters(last=False)
        if last:
            self._characters(last=True)
        if self.hit is not None:
            return []
        text = "".join(piece.text for piece in self._held)
        cut = min(((at, s) for s in self.stop if (at := text.find(s)) >= 0), default=None)
        if cut is not None:
            self.hit = cut[1]
            return self._release(cut[0], cut=True)
        # The end of the text may be the beginning of a stop string.
        back = max((n for s in self.stop for n in range(1, len(s)) if text.endswith(s[:n])), default=0)
        return self._release(len(text) - (0 if last else back), cut=False)

    def _characters(self, *, last: bool) -> None:
        """Moves whole characters from `_open` to `_held`; a character's text goes with its last byte's token."""
        data = b"".join(raw for raw, _ in self._open)
        text = data.decode("utf-8", errors="replace")
        unfinished = not last and text.endswith("\ufffd") and len(data) < 4 and data[:1] >= b"\xc2"
        if self._open and not unfinished:
            *first, (raw, sampled) = self._open
            self._held += [Piece("", r, s) for r, s in first] + [Piece(text, raw, sampled)]
            self._open.clear()

    def _release(self, length: int, *, cut: bool) -> list[Piece]:
        """The held pieces that lie within the first `length` characters; with `cut` the rest is thrown away."""
        out: list[Piece] = []
        while self._held and (len(self._held[0].text) <= length if not cut else length > 0):
            piece = self._held.pop(0)
            if len(piece.text) > length:
                piece = piece._replace(text=piece.text[:length])
            length -= len(piece.text)
            out.append(piece)
        if cut:
            self._held.clear()
        return out


@dataclass(frozen=True)
class Call:
    """A request that has been checked."""

    chat: bool
    engine: Engine
    prompt: list[int]
    sentences: tuple[tuple[int, ...], ...]
    stop: tuple[str, ...]
    limit: int
    temperature: float
    top_p: float
    seed: int | None
    logprobs: bool
    top: int
    stream: bool
    usage: bool
    reads: bool


class Server:
    """The application: some engines and their HTTP routes."""

    def __init__(self, engines: Sequence[Engine]) -> None:
        self.engines = {engine.name: engine for engine in engines}
        self.running = 0  # answers under way
        self.requests = 0  # completions asked for since the start
        self._ids = itertools.count(1)

    def application(self) -> web.Application:
        app = web.Application(client_max_size=_MAX_BODY, middlewares=[_errors])
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{name:.+}", self._model)
        app.router.add_get("/health", self._health)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._completions)
        app.router.add_post("/v1/responses", self._responses)
        app.router.add_post("/v1/messages", self._messages)
        return app

    async def _health(self, _: web.Request) -> web.Response:
        return _json({"status": "ok"})

    async def _models(self, _: web.Request) -> web.Response:
        return _json({"object": "list", "data": [_describe(name) for name in self.engines]})

    async def _model(self, request: web.Request) -> web.Response:
        name = request.match_info["name"]
        self._engine(name)
        return _json(_describe(name))

    def _engine(self, name: object) -> Engine:
        engine = self.engines.get(name) if isinstance(name, str) else None
        if engine is None:
            known = ", ".join(self.engines)
            message = f"The model {name!r} does not exist; this server has {known}."
            raise ApiError(404, message, "model", "model_not_found")
        return engine

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True)

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=False)

    async def _responses(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True, shape=Responses)

    async def _messages(self, request: web.Request) -> web.StreamResponse:
        return await self._answer(request, chat=True, shape=Messages)

    async def _answer(
        self, request: web.Request, *, chat: bool, shape: type[Shape] | None = None
    ) -> web.StreamResponse:
        try:
            body = orjson.loads(await request.read())
        except ValueError as error:
            raise ApiError(400, f"the body is not JSON: {error}") from error
        if not isinstance(body, dict):
            raise ApiError(400, "the body must be a JSON object")
        try:
            call = self._check(body if shape is None else shape.chat(body), chat=chat)
        except Malformed as error:
            raise ApiError(400, str(error), error.param) from error
        except ApiError as error:
            if shape is None or error.param not in shape.names:
                raise
            name = shape.names[error.param]  # what this API calls it
            raise ApiError(error.status, str(error).replace(error.param, name, 1), name, error.code) from error
        self.requests += 1
        self.running += 1
        loop = asyncio.get_running_loop()
        events: asyncio.Queue[Sampled | Done] = asyncio.Queue()  # never holds more than CONTEXT events

        def emit(event: Sampled | Done) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(events.put_nowait, event)

        job = Job(
            call.prompt, call.limit, emit, call.temperature, call.top_p, call.top, np.random.default_rng(call.seed)
        )
        job.sentences, job.reads = call.sentences, call.reads
        try:
            try:
                call.engine.submit(job)
            except Overloaded as error:
                raise ApiError(503, str(error), code="overloaded") from error
            prefix = shape.prefix if shape else "chatcmpl" if chat else "cmpl"
            identity = f"{prefix}-tiny{next(self._ids)}"
            answer = _Answer(call, job, events, identity)
            if shape is not None:
                made = shape(identity, call.engine.name)
                return await (answer.stream_as(request, made) if call.stream else answer.whole_as(made))
            return await (answer.stream(request) if call.stream else answer.whole())
        except ConnectionResetError:  # the client left between two chunks: nobody is there to tell
            return web.Response(status=499)
        finally:
            job.cancel()
            self.running -= 1

    def _check(self, body: Json, *, chat: bool) -> Call:
        engine = self._engine(body.get("model"))
        for name, allowed in _UNSUPPORTED.items():
            if body.get(name) not in allowed:
                raise ApiError(400, f"{name}: {body[name]!r} is not supported by this model", name)
        form = body.get("response_format")
        if form is not None and (not isinstance(form, dict) or form.get("type") != "text"):
            raise ApiError(400, "response_format: only text is supported by this model", "response_format")
        sentences: tuple[tuple[int, ...], ...] = ()
        if chat:
            turns, resume = _turns(body)
            prompt = render(engine.tokenizer, turns, open_turn=not resume)
            # Whoever asks without a number asks for no sum. There the small model drifts off into nonsense, so that
            # each chooses, by its own probabilities, among the sentences that it has learned for such questions.
            if not resume and not any(c.isdigit() for role, text in turns if role == "user" for c in text):
                said = talk.sentences(engine.name)
                sentences = tuple((*engine.tokenizer.encode(sentence), END) for sentence in said)
        else:
            prompt = _plain_prompt(engine.tokenizer, body)
        if len(prompt) >= CONTEXT:
            message = f"This model's context is {CONTEXT} tokens; the prompt has {len(prompt)}."
            raise ApiError(400, message, "messages" if chat else "prompt", "context_length_exceeded")
        limit_name = "max_completion_tokens" if chat and body.get("max_completion_tokens") is not None else "max_tokens"
        default = _DEFAULT_TOKENS if chat else 16  # OpenAI's own defaults differ in the same way
        stop = body.get("stop")
        stop = [] if stop is None else [stop] if isinstance(stop, str) else stop
        if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(s, str) and s for s in stop):
            raise ApiError(400, "stop must be a non-empty string or a list of at most 4 of them", "stop")
        logprobs, top = body.get("logprobs"), 0
        if chat:
            top = int(_number(body, "top_logprobs", 0, (0, MAX_TOP), whole=True))
            if top and not logprobs:
                raise ApiError(400, "top_logprobs needs logprobs: true", "top_logprobs")
        elif logprobs is not None:
            top = int(_number(body, "logprobs", 0, (0, MAX_TOP), whole=True))
        options = body.get("stream_options") or {}
        if not isinstance(options, dict) or (options and not body.get("stream")):
            raise ApiError(400, "stream_options must be an object and needs stream: true", "stream_options")
        reads = body.get("prompt_logprobs")
        if reads not in (None, 0) or reads is False or (reads is not None and (body.get("stream") or not chat)):
            message = "prompt_logprobs: this server gives those of the tokens themselves (0), of whole chat completions"
            raise ApiError(400, message, "prompt_logprobs")
        seed = body.get("seed")
        return Call(
            chat=chat,
            engine=engine,
            prompt=prompt,
            sentences=sentences,
            stop=tuple(stop),
            limit=int(_number(body, limit_name, default, (1, 10**9), whole=True)),
            temperature=_number(body, "temperature", 1.0, (0.0, 2.0)),
            top_p=_number(body, "top_p", 1.0, (0.0, 1.0)),
            seed=None if seed is None else int(_number(body, "seed", 0, (-(2**63), 2**63 - 1), whole=True)) % 2**63,
            logprobs=bool(logprobs) if chat else logprobs is not None,
            top=top,
            stream=bool(body.get("stream")),
            usage=bool(options.get("include_usage")),
            reads=reads is not None,
        )


class _Answer:
    """One answer being written, in the shape of the API that was called."""

    def __init__(self, call: Call, job: Job, events: asyncio.Queue[Sampled | Done], identity: str) -> None:
        self._call, self._job, self._events = call, job, events
        self._head = {
            "id": identity,
            "object": "text_completion" if not call.chat else "chat.completion" + (".chunk" if call.stream else ""),
            "created": int(time.time()),
            "model": call.engine.name,
        }
        self._written = 0
        self._offset = 0
        self._cached = 0
        self._reason = ""
        self._hit: str | None = None

    async def _pieces(self) -> AsyncIterator[list[Piece]]:
        """The pieces as they settle; at the end `_reason` and `_hit` are set."""
        text = Text(self._call.engine.tokenizer, self._call.stop)
        while not self._reason:
            event = await self._events.get()
            if isinstance(event, Done):
                settled = text.flush()
                self._cached = event.cached
                self._reason = event.reason
            else:
                self._written += 1
                settled = text.push(event)
            if text.hit is not None:
                self._job.cancel()
                self._hit, self._reason, self._cached = text.hit, "stop", self._job.cached
            if settled:
                yield settled
        if self._reason == "error":
            raise ApiError(503, f"{self._call.engine.name} has stopped", code="stopped")

    async def whole(self) -> web.Response:
        pieces = [piece async for settled in self._pieces() for piece in settled]
        choice = self._choice(pieces, self._reason)
        read = {"prompt_logprobs": self._prompt_logprobs()} if self._call.reads else {}
        return _json({**self._head, "choices": [choice], "usage": self._usage(), **read})

    def _prompt_logprobs(self) -> list[Json | None]:
        """As vLLM has them: nothing for the first token, an object with the token itself for each other one; those of a
        number in reading order."""
        tokenizer, prompt = self._call.engine.tokenizer, self._job.prompt
        stream: Stream[tuple[int, float]] = Stream(tokenizer)
        read: list[tuple[int, float]] = []
        for token, logprob in zip(prompt[1:], self._job.read, strict=True):
            read += stream.push(token, (token, max(logprob, _IMPOSSIBLE)))
        read += stream.flush()
        return [None, *({str(i): {"logprob": p, "rank": None, "decoded_token": _name(tokenizer, i)}} for i, p in read)]

    async def whole_as(self, shape: Shape) -> web.Response:
        text = "".join([piece.text async for settled in self._pieces() for piece in settled])
        return _json(shape.whole(text, self._reason, self._hit, self._usage()))

    async def stream_as(self, request: web.Request, shape: Shape) -> web.StreamResponse:
        response = await _opened(request)
        said: list[str] = []

        async def tell(events: list[Json]) -> None:
            for event in events:
                await response.write(b"event: " + event["type"].encode() + b"\n")
                await _event(response, event)

        try:
            await tell(shape.begin(self._usage()))
            async for settled in self._pieces():
                if text := "".join(piece.text for piece in settled):
                    said.append(text)
                    await tell(shape.delta(text))
            await tell(shape.end("".join(said), self._reason, self._hit, self._usage()))
        except ApiError as error:  # the head is out: the error can only go into the stream
            await tell([shape.failed(str(error))])
        await response.write_eof()
        return response

    async def stream(self, request: web.Request) -> web.StreamResponse:
        response = await _opened(request)
        rest: Json = {"usage": None} if self._call.usage else {}
        try:
            if self._call.chat:
                role = {"role": "assistant", "content": ""}
                first = {"index": 0, "delta": role, "logprobs": None, "finish_reason": None}
                await _event(response, {**self._head, "choices": [first], **rest})
            async for settled in self._pieces():
                await _event(response, {**self._head, "choices": [self._choice(settled, None)], **rest})
            await _event(response, {**self._head, "choices": [self._choice([], self._reason)], **rest})
            if self._call.usage:
                await _event(response, {**self._head, "choices": [], "usage": self._usage()})
        except ApiError as error:  # the head is out: the error can only go into the stream
            body = error.response().body
            assert isinstance(body, bytes)
            await response.write(b"data: " + body + b"\n\n")
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _usage(self) -> Json:
        prompt = len(self._call.prompt)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": self._written,
            "total_tokens": prompt + self._written,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }

    def _choice(self, pieces: list[Piece], reason: str | None) -> Json:
        text = "".join(piece.text for piece in pieces)
        logprobs = None
        if self._call.logprobs and pieces:
            logprobs = self._chat_logprobs(pieces) if self._call.chat else self._plain_logprobs(pieces)
        end: Json = {"finish_reason": reason}
        if reason is not None:
            end["stop_reason"] = self._hit
        if not self._call.chat:
            return {"index": 0, "text": text, "logprobs": logprobs, **end}
        if not self._call.stream:
            message = {"role": "assistant", "content": text, "refusal": None}
            return {"index": 0, "message": message, "logprobs": logprobs, **end}
        return {"index": 0, "delta": {"content": text} if pieces else {}, "logprobs": logprobs, **end}

    def _chat_logprobs(self, pieces: list[Piece]) -> Json:
        tokenizer = self._call.engine.tokenizer
        entries = []
        for text, data, sampled in pieces:
            top = [
                {"token": _name(tokenizer, i), "logprob": p, "bytes": list(tokenizer.raw(i))} for i, p in sampled.top
            ]
            entries.append({"token": text, "logprob": sampled.logprob, "bytes": list(data), "top_logprobs": top})
        return {"content": entries, "refusal": None}

    def _plain_logprobs(self, pieces: list[Piece]) -> Json:
        tops, offsets = [], []
        for piece in pieces:
            top: dict[str, float] = {}
            for i, p in piece.sampled.top:  # tokens of like text share a key: the more probable one is reported
                top.setdefault(_name(self._call.engine.tokenizer, i), p)
            tops.append(top or None)
            offsets.append(self._offset)
            self._offset += len(piece.text)
        return {
            "tokens": [piece.text for piece in pieces],
            "token_logprobs": [piece.sampled.logprob for piece in pieces],
            "top_logprobs": tops,
            "text_offset": offsets,
        }


def _name(tokenizer: Tokenizer, token: int) -> str:
    return SPECIAL[token] if token < len(SPECIAL) else tokenizer.raw(token).decode("utf-8", errors="replace")


def _number(body: Json, name: str, default: float, ends: tuple[float, float], *, whole: bool = False) -> float:
    low, high = ends
    value = body.get(name)
    if value is None:
        return default
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        kind = "a whole number" if whole else "a number"
        raise ApiError(400, f"{name} must be {kind} from {low:g} to {high:g}, not {value!r}", name)
    return value


def _turns(body: Json) -> tuple[list[tuple[str, str]], bool]:
    """The messages as (role, text), and whether the last one is to be continued."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list of at least one message", "messages")
    turns = []
    for i, message in enumerate(messages):
        role = message.get("role") if isinstance(message, dict) else None
        if role not in _ROLES:
            raise ApiError(400, f"messages[{i}].role must be one of {', '.join(_ROLES)}, not {role!r}", "messages")
        turns.append((_ROLES[role], _content(message.get("content"), i)))
    resume, opened = body.get("continue_final_message", False), body.get("add_generation_prompt")
    if resume and opened:
        message = "continue_final_message and add_generation_prompt cannot both be true"
        raise ApiError(400, message, "add_generation_prompt")
    if resume and turns[-1][0] != "assistant":
        raise ApiError(400, "continue_final_message needs a final assistant message", "continue_final_message")
    if not resume and opened is False:
        raise ApiError(400, "add_generation_prompt: false needs continue_final_message: true", "add_generation_prompt")
    return turns, bool(resume)


def _content(content: object, i: int) -> str:
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(p, dict) and isinstance(p.get("text"), str) for p in content):
        return "".join(part["text"] for part in content)
    raise ApiError(400, f"messages[{i}].content must be text or a list of text parts", "messages")


def _plain_prompt(tokenizer: Tokenizer, body: Json) -> list[int]:
    prompt = body.get("prompt")
    if isinstance(prompt, list) and prompt and all(isinstance(i, int) and not isinstance(i, bool) for i in prompt):
        if not all(0 <= i < tokenizer.size for i in prompt):
            raise ApiError(400, f"token ids must be from 0 to {tokenizer.size - 1}", "prompt")
        return list(prompt)
    if isinstance(prompt, list) and len(prompt) == 1:
        prompt = prompt[0]
    if not isinstance(prompt, str) or not prompt:
        raise ApiError(400, "prompt must be one non-empty string or a list of token ids", "prompt")
    return tokenizer.encode(prompt, special=True)


def _describe(name: str) -> Json:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tinylm", "max_model_len": CONTEXT}


def _json(body: Json, status: int = 200) -> web.Response:
    return web.Response(body=orjson.dumps(body), status=status, content_type="application/json")


async def _opened(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"content-type": "text/event-stream", "cache-control": "no-cache"})
    response.headers["x-accel-buffering"] = "no"
    await response.prepare(request)
    return response


async def _event(response: web.StreamResponse, body: Json) -> None:
    await response.write(b"data: " + orjson.dumps(body) + b"\n\n")


@web.middleware
async def _errors(request: web.Request, handler: Any) -> web.StreamResponse:
    try:
        answer: web.StreamResponse = await handler(request)
    except ApiError as error:
        failed = error
    except web.HTTPException as error:
        failed = ApiError(error.status, f"{request.method} {request.path}: {error.reason}")
    else:
        return answer
    if request.path == "/v1/messages":
        return _json({"type": "error", "error": {"type": failed.kind, "message": str(failed)}}, failed.status)
    return failed.response()


@dataclass(frozen=True)
class Running:
    """A server that listens. url: base address without /v1; server: its counters."""

    url: str
    server: Server


@asynccontextmanager
async def serve(
    models: Sequence[str] = MODELS, host: str = "127.0.0.1", port: int = 0, folder: Path = WEIGHTS
) -> AsyncIterator[Running]:
    """Serves `models` until the block is left; port 0 takes a free one. Raises OSError when it cannot listen."""
    engines = [Engine(name, folder) for name in models]
    server = Server(engines)
    # handler_cancellation: a client that goes away ends its answer.
    runner = web.AppRunner(server.application(), handler_cancellation=True, access_log=None, shutdown_timeout=1.0)
    try:
        await runner.setup()
        site = web.TCPSite(runner, host, port)
        await site.start()
        bound = runner.addresses[0]
        yield Running(f"http://{bound[0]}:{bound[1]}", server)
    finally:
        await runner.cleanup()
        for engine in engines:
            await asyncio.to_thread(engine.close)
