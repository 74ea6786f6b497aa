"""A model behind an OpenAI-compatible API: requests, and the stream of one answer.

A stream is pulled: nothing is read from the connection unless the reader asks, so a slow client slows the model down
through TCP. Closing a stream early closes its connection, which is what makes servers stop generating.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple, TypeVar

import aiohttp
import orjson

from stepwise.features import certainty
from stepwise.steps import Token, estimate

JSON = dict[str, Any]
_T = TypeVar("_T")

HOP = "x-pointsman-hop"
"""Set on every request to a model: one that carries it is never answered stepwise again."""

_MAX_EVENT = 1 << 20  # bytes of one server-sent event, or of an error's body
_MAX_CONNECTIONS = 4096
_READ_AHEAD = 1 << 15  # bytes read from a connection before the reader asks for more; aiohttp holds twice that


class UpstreamError(Exception):
    """An upstream failed. `kind` is one of a fixed few words, fit for a metric label.

    connect (no connection), status (an HTTP error; `status` and `body` are set), timeout (no byte in time), garbage
    (not an event stream of chat completions), cut (the stream ended before the answer), error (the server reported one
    in the stream), restart (the model began its answer anew instead of continuing it), template (the chat
    template cannot be rendered).
    """

    def __init__(self, kind: str, message: str, *, status: int = 0, body: bytes = b"") -> None:
        super().__init__(message)
        self.kind = kind
        self.status = status
        self.body = body


class DeadlineError(Exception):
    """The answer's own deadline has passed (which is nobody's failure but the caller's limit)."""


class Mode(StrEnum):
    """How an upstream is asked to continue a prefix."""

    FINAL_MESSAGE = "continue_final_message"  # vLLM, SGLang
    PREFIX = "prefix"  # a trailing assistant message with `prefix: true` (DeepSeek, Mistral)
    ASSISTANT = "assistant"  # a plain trailing assistant message
    COMPLETIONS = "completions"  # /v1/completions with a prompt that we render


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served, and its price.

    `url`: base address up to and without `base_path`, such as `http://127.0.0.1:10001`; with `socket`, a Unix socket's
    path, the host part is only what the Host header says. `base_path`: what its server has in the place of the `/v1` in
    our calls' paths. `model`: the name in the request body. `price_*`: money for a
    million tokens. `template`: a Jinja chat template for `/v1/completions`. `mode`: how to
    continue a prefix, whatever the probe finds.
    """

    url: str
    model: str
    socket: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    price_input: float = 0.0
    price_output: float = 0.0
    template: str | None = None
    mode: Mode | None = None
    connect_timeout: float = 5.0  # seconds
    first_timeout: float = 60.0  # seconds until the first byte of an answer
    idle_timeout: float = 20.0  # seconds without a byte after that
    base_path: str = "/v1"

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        """Money for so many tokens."""
        return (prompt_tokens * self.price_input + completion_tokens * self.price_output) / 1e6


@dataclass(slots=True)
class Piece:
    """What one event brought: text with its tokens, and why the text ended, if it did."""

    tokens: list[Token] = field(default_factory=list)
    reasoning: str = ""
    finish: str | None = None
    stop_reason: str | int | None = None


class Counts(NamedTuple):
    """Tokens of one request, as the upstream counted them."""

    prompt: int
    completion: int


class Stream:
    """One open request. Read it with `next` until it gives None, then or earlier `close` it."""

    def __init__(self, response: aiohttp.ClientResponse, endpoint: Endpoint, deadline: float | None) -> None:
        self.counts: Counts | None = None
        self.received = 0  # tokens of the answer so far, by our own count
        self.finished = False
        self.counted_early = False  # the upstream counted before the answer's end
        self._response = response
        self._endpoint = endpoint
        self._deadline = deadline
        self._buffer = bytearray()
        self._ready: deque[Piece] = deque()
        self._wait = endpoint.first_timeout
        self._over = False

    async def next(self) -> Piece | None:
        """The next piece, or None when the answer is complete. Raises UpstreamError and DeadlineError."""
        # The time is for a piece, not for a byte: a server that only sends comments is as good as silent.
        until = asyncio.get_running_loop().time() + self._wait
        while not self._ready:
            if self._over:
                return None
            await self._read(until)
        return self._ready.popleft()

    def close(self) -> None:
        """Closes the connection, whatever is still to come. Never waits."""
        self._over = True
        self._ready.clear()
        self._response.close()

    async def _read(self, until: float) -> None:
        left = until - asyncio.get_running_loop().time()
        try:
            data = await within(self._response.content.readany(), left, self._deadline)
        except TimeoutError:
            if self.finished:  # everything that matters has come
                self.close()
                return
            raise UpstreamError("timeout", f"{self._endpoint.model} sent nothing for {self._wait:g} s") from None
        except aiohttp.ClientError as error:
            raise UpstreamError("cut", f"{self._endpoint.model} broke off: {error}") from error
        if not data:
            if not self.finished:
                raise UpstreamError("cut", f"{self._endpoint.model} ended its stream in the middle of the answer")
            self._over = True
            return
        self._buffer += data
        if b"\n" in data:
            self._parse()
        if len(self._buffer) > _MAX_EVENT:
            raise UpstreamError("garbage", f"{self._endpoint.model} sent an event of over {_MAX_EVENT} bytes")

    def _parse(self) -> None:
        *lines, rest = bytes(self._buffer).split(b"\n")
        self._buffer = bytearray(rest)
        for line in lines:
            if not line.startswith(b"data:"):
                if line.strip() and not line.startswith((b":", b"event:", b"id:", b"retry:")):
                    raise UpstreamError("garbage", f"{self._endpoint.model} sent something that is no event stream")
                continue
            data = line[5:].strip()
            if data == b"[DONE]":
                if not self.finished:
                    raise UpstreamError("cut", f"{self._endpoint.model} said [DONE] without a finish_reason")
                self._over = True
                return
            try:
                self._event(orjson.loads(data))
            except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
                raise UpstreamError("garbage", f"{self._endpoint.model} sent a malformed event: {error!r}") from error

    def _event(self, event: JSON) -> None:
        if error := event.get("error"):
            message = error.get("message") if isinstance(error, dict) else error
            raise UpstreamError("error", f"{self._endpoint.model} reported: {message}")
        if usage := event.get("usage"):
            self.counts = Counts(int(usage["prompt_tokens"]), int(usage["completion_tokens"]))
            self.counted_early = self.counted_early or not self.finished
        choices = event.get("choices") or ()
        if not choices:
            return
        choice = choices[0]
        delta = choice.get("delta") or {}
        text = delta.get("content") or choice.get("text") or ""
        reasoning = delta.get("reasoning_content") or delta.get("reasoning") or ""
        if not isinstance(text, str) or not isinstance(reasoning, str):
            raise TypeError("content is no string")
        piece = Piece(reasoning=reasoning, finish=choice.get("finish_reason"), stop_reason=choice.get("stop_reason"))
        piece.tokens = _tokens(text, choice.get("logprobs"))
        self.received += sum(token.size for token in piece.tokens) + (estimate(reasoning) if reasoning else 0)
        self._wait = self._endpoint.idle_timeout
        if piece.finish:
            self.finished = True
            self._wait = min(self._wait, 2.0)  # only counts and [DONE] are still to come
        if piece.tokens or reasoning or piece.finish:
            self._ready.append(piece)


class Relay:
    """One open request whose answer is passed on as it comes. Read it with `next` until None; `close` it."""

    def __init__(self, response: aiohttp.ClientResponse, endpoint: Endpoint, deadline: float | None) -> None:
        self.status = response.status
        self.content_type = response.headers.get("content-type", "application/json")
        self._response = response
        self._endpoint = endpoint
        self._deadline = deadline

    async def next(self) -> bytes | None:
        """The next bytes, or None at the end. Raises UpstreamError and DeadlineError."""
        try:
            data = await within(self._response.content.readany(), self._endpoint.first_timeout, self._deadline)
        except TimeoutError:
            raise UpstreamError("timeout", f"{self._endpoint.model} sent nothing in time") from None
        except aiohttp.ClientError as error:
            raise UpstreamError("cut", f"{self._endpoint.model} broke off: {error}") from error
        return data or None

    def close(self) -> None:
        """Closes the connection. Never waits."""
        self._response.close()


class Upstream:
    """One model's server. Opens connections as they are needed; `close` it at the end."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def open(
        self, path: str, body: JSON, headers: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> Stream:
        """Sends a streaming request and waits for the answer's head. Raises UpstreamError and DeadlineError.

        `deadline` is on the running loop's clock and holds for the whole stream.
        """
        response = await self._post(path, body, headers, deadline)
        try:
            await self._refuse(response, b"text/event-stream", deadline)
        except BaseException:
            response.close()
            raise
        return Stream(response, self.endpoint, deadline)

    async def relay(
        self, path: str, body: JSON, headers: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> Relay:
        """Sends a request whose answer, whatever it is, is to be passed on. Raises UpstreamError and DeadlineError."""
        return Relay(await self._post(path, body, headers, deadline), self.endpoint, deadline)

    async def ask(
        self, path: str, body: JSON, headers: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> JSON:
        """Sends a request and gives its JSON answer. Raises UpstreamError and DeadlineError."""
        response = await self._post(path, body, headers, deadline)
        try:
            await self._refuse(response, b"application/json", deadline)
            answer = orjson.loads(await self._all(response, deadline))
        except ValueError as error:
            raise UpstreamError("garbage", f"{self.endpoint.model} sent no JSON: {error}") from error
        finally:
            response.close()
        if not isinstance(answer, dict):
            raise UpstreamError("garbage", f"{self.endpoint.model} sent JSON that is no object")
        return answer

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(
        self, path: str, body: JSON, headers: Mapping[str, str] | None, deadline: float | None
    ) -> aiohttp.ClientResponse:
        endpoint = self.endpoint
        url = endpoint.url.rstrip("/") + endpoint.base_path + path.removeprefix("/v1")
        ours = {"content-type": "application/json", "accept-encoding": "identity", HOP: "1"}
        sent = {**(headers or {}), **endpoint.headers, **ours}
        data = orjson.dumps({**body, "model": endpoint.model})
        try:
            post = self._client().post(url, data=data, headers=sent, allow_redirects=False)
            return await within(post, endpoint.first_timeout, deadline)
        except aiohttp.ServerTimeoutError as error:
            raise UpstreamError("connect", f"no connection to {endpoint.model} in time") from error
        except TimeoutError:
            seconds = endpoint.first_timeout
            raise UpstreamError("timeout", f"{endpoint.model} did not answer within {seconds:g} s") from None
        except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
            raise UpstreamError("connect", f"{endpoint.model} has an address that is no URL: {url}") from error
        except aiohttp.ClientConnectionError as error:
            raise UpstreamError("connect", f"no connection to {endpoint.model}: {error}") from error
        except aiohttp.ClientError as error:
            raise UpstreamError("garbage", f"{endpoint.model} does not speak HTTP: {error}") from error

    async def _refuse(self, response: aiohttp.ClientResponse, wanted: bytes, deadline: float | None) -> None:
        """Raises UpstreamError unless this is a good answer of the wanted content type."""
        if response.status != 200:
            body = await self._all(response, deadline)
            message = f"{self.endpoint.model} answered {response.status}"
            raise UpstreamError("status", message, status=response.status, body=body)
        kind = response.headers.get("content-type", "")
        if not kind.lower().startswith(wanted.decode()):
            raise UpstreamError(
                "garbage", f"{self.endpoint.model} sent {kind or 'no content type'}, not {wanted.decode()}"
            )

    async def _all(self, response: aiohttp.ClientResponse, deadline: float | None) -> bytes:
        data = bytearray()
        try:
            while chunk := await within(response.content.readany(), self.endpoint.idle_timeout, deadline):
                data += chunk
                if len(data) > _MAX_EVENT:
                    raise UpstreamError("garbage", f"{self.endpoint.model} sent over {_MAX_EVENT} bytes")
        except TimeoutError:
            raise UpstreamError("timeout", f"{self.endpoint.model} stopped in the middle of an answer") from None
        except aiohttp.ClientError as error:
            raise UpstreamError("cut", f"{self.endpoint.model} broke off: {error}") from error
        return bytes(data)

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:  # made here because it belongs to the running event loop
            endpoint = self.endpoint
            # No connection is used twice: most streams are cut off anyway, and a kept connection that the server has
            # just closed would make a request fail that must not be sent again.
            connector = (
                aiohttp.UnixConnector(endpoint.socket, limit=_MAX_CONNECTIONS, force_close=True)
                if endpoint.socket
                else aiohttp.TCPConnector(limit=_MAX_CONNECTIONS, force_close=True)
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=endpoint.connect_timeout),
                read_bufsize=_READ_AHEAD,
            )
        return self._session


async def within(work: Awaitable[_T], seconds: float, deadline: float | None) -> _T:
    """Awaits `work` for at most `seconds` (then TimeoutError) and never past `deadline` (then DeadlineError)."""
    now = asyncio.get_running_loop().time()
    if deadline is not None and deadline - now < seconds:
        try:
            async with asyncio.timeout_at(deadline):
                return await work
        except aiohttp.ServerTimeoutError:  # a TimeoutError too, but the connection's own
            raise
        except TimeoutError:
            raise DeadlineError("the answer's deadline has passed") from None
    async with asyncio.timeout_at(now + seconds):
        return await work


def _tokens(text: str, logprobs: JSON | None) -> list[Token]:
    """Tokens whose texts, joined, are `text`, from either API's log probabilities."""
    tokens: list[Token] = []
    if logprobs and logprobs.get("content"):
        for entry in logprobs["content"]:
            tops = (_number(other["logprob"]) for other in entry.get("top_logprobs") or ())
            tokens.append(_token(entry["token"], entry["logprob"], tops, entry))
    elif logprobs and logprobs.get("tokens"):
        names = logprobs["tokens"]
        values = logprobs.get("token_logprobs") or [None] * len(names)
        tops_of = logprobs.get("top_logprobs") or [None] * len(names)
        for name, value, top in zip(names, values, tops_of, strict=True):
            tokens.append(_token(name, value, map(_number, (top or {}).values())))
    if not tokens:
        return [Token(text, size=estimate(text))] if text else []
    if "".join(token.text for token in tokens) != text:
        # Bytes of one character spread over tokens, or special tokens: the text is what counts, the first takes it all.
        tokens = [token._replace(text=text if i == 0 else "") for i, token in enumerate(tokens)]
    return tokens


def _token(text: str, logprob: object, tops: Iterable[float | None], raw: object = None) -> Token:
    """One token, with what can be worked out of it alone: the model is still writing the next one."""
    own = _number(logprob)
    top = tuple(sorted((value for value in tops if value is not None), reverse=True))
    return Token(text, own, top, raw=raw, certainty=certainty(own, top))


def _number(value: object) -> float | None:
    if value is None:
        return None
    if not isinstance(value, (int, float)):
        raise TypeError("a log probability is no number")
    return float(value)
