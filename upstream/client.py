"""A model behind an OpenAI-compatible API: requests, and the stream of one answer.

A stream is pulled: nothing is read from the connection unless the reader asks, so a slow client slows the model down
through TCP. Closing a stream early closes its connection, which is what makes servers stop generating.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import aiohttp
import orjson

from upstream import events, tokens
from upstream.endpoint import HOP, JSON, Endpoint
from upstream.tokens import Token, estimate
from upstream.usage import TokenCounts, counts, timed

_T = TypeVar("_T")

_MAX_EVENT = 1 << 20  # bytes of one server-sent event, or of an error's body
_MAX_CONNECTIONS = 4096
_READ_AHEAD = 1 << 15  # bytes read from a connection before the reader asks for more; aiohttp holds twice that


_TOLD = {
    "connect": "could not be reached",
    "timeout": "did not answer in time",
    "garbage": "sent something that is no answer",
    "cut": "broke off in the middle of its answer",
    "error": "reported an error in the middle of its answer",
    "restart": "began its answer anew instead of continuing it",
    "template": "has a chat template that cannot render this conversation",
}


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

    @property
    def told(self) -> str:
        """What a client may be told of it, after the model's name: no address, no text of the server's."""
        return f"answered {self.status}" if self.kind == "status" else _TOLD[self.kind]

    @property
    def broken(self) -> bool:
        """Whether the server has failed, and not this one request."""
        return self.kind in ("connect", "timeout", "garbage", "cut") or self.status >= 500


class DeadlineError(Exception):
    """The answer's own deadline has passed. The upstream has not failed; the caller's limit is over."""


@dataclass(slots=True)
class Delta:
    """The content of one event: text with its tokens, pieces of tool calls as they came, and why the text ended, if it
    did."""

    tokens: list[Token] = field(default_factory=list)
    reasoning: str = ""
    tools: list[JSON] = field(default_factory=list)
    finish: str | None = None
    stop_reason: str | int | None = None


class CompletionStream:
    """One open request. Read it with `next` until it gives None, which closes it; or `close` it, earlier or when `next`
    raises."""

    def __init__(self, response: aiohttp.ClientResponse, endpoint: Endpoint, deadline: float | None) -> None:
        self.counts: TokenCounts | None = None
        self.received = 0  # tokens of the answer so far, by our own count
        self.finished = False
        self.counted_early = False  # the upstream counted before the answer's end
        self._response = response
        self._endpoint = endpoint
        self.deadline = deadline  # on the loop's clock; a reader may move it
        self._lines = events.Lines()
        self._ready: deque[Delta] = deque()
        self._wait = endpoint.first_timeout
        self._over = False

    async def next(self) -> Delta | None:
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
            data = await within(self._response.content.readany(), left, self.deadline)
        except (TimeoutError, aiohttp.ClientError) as error:
            if self.finished:  # everything that matters has come
                self.close()
                return
            if isinstance(error, TimeoutError):
                raise UpstreamError("timeout", f"{self._endpoint.model} sent nothing for {self._wait:g} s") from None
            raise UpstreamError("cut", f"{self._endpoint.model} broke off: {error}") from error
        if not data:
            if not self.finished:
                raise UpstreamError("cut", f"{self._endpoint.model} ended its stream in the middle of the answer")
            self._over = True
            return
        self._take(self._lines.feed(data))
        if self._lines.waiting > _MAX_EVENT:
            raise UpstreamError("garbage", f"{self._endpoint.model} sent an event of over {_MAX_EVENT} bytes")

    def _take(self, lines: list[bytes]) -> None:
        for line in lines:
            try:
                data = events.payload(line)
            except ValueError:
                raise UpstreamError(
                    "garbage", f"{self._endpoint.model} sent something that is no event stream"
                ) from None
            if data is None:
                continue
            if data == b"[DONE]":
                if not self.finished:
                    raise UpstreamError("cut", f"{self._endpoint.model} said [DONE] without a finish_reason")
                self._over = True
                self._response.close()  # whatever the server does with the connection now
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
            self.counts = counts(usage)
            if self.counts is None:
                raise ValueError("a usage without its counts")
            self.counted_early = self.counted_early or not self.finished
        elif (counted := timed(event.get("timings"))) is not None:
            self.counts = counted
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
        finish = choice.get("finish_reason")
        if not isinstance(finish, str | None):
            raise TypeError("finish_reason is no string")
        piece = Delta(reasoning=reasoning, finish=finish, stop_reason=choice.get("stop_reason"))
        piece.tokens = tokens.read(text, choice.get("logprobs"))
        piece.tools = [_tool(call) for call in delta.get("tool_calls") or ()]
        self.received += sum(token.size for token in piece.tokens) + (estimate(reasoning) if reasoning else 0)
        self.received += sum(estimate(str(call)) for call in piece.tools)
        self._wait = self._endpoint.idle_timeout
        if piece.finish:
            self.finished = True
            self._wait = min(self._wait, 2.0)  # only counts and [DONE] are still to come
        if piece.tokens or reasoning or piece.tools or piece.finish:
            self._ready.append(piece)


def _tool(call: JSON) -> JSON:
    """A piece of a tool call as it came. Raises TypeError or AttributeError where a field has another type."""
    said = call.get("function") or {}
    texts = (call.get("id"), said.get("name"), said.get("arguments"))
    if not isinstance(call.get("index"), int | None) or not all(isinstance(text, str | None) for text in texts):
        raise TypeError("a tool call has a field of another type")
    return {**call}


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


class ModelClient:
    """One model's server. Opens connections as they are needed; `close` it at the end."""

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self._session: aiohttp.ClientSession | None = None

    async def open(
        self, path: str, body: JSON, headers: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> CompletionStream:
        """Sends a streaming request and waits for the answer's head. Raises UpstreamError and DeadlineError.

        `deadline` is on the running loop's clock and holds for the whole stream.
        """
        response = await self._post(path, body, headers, deadline)
        try:
            await self._refuse(response, b"text/event-stream", deadline)
        except BaseException:
            response.close()
            raise
        return CompletionStream(response, self.endpoint, deadline)

    async def relay(
        self, path: str, body: JSON, headers: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> Relay:
        """Sends a request whose answer, whatever it is, is to be passed on. Raises UpstreamError and DeadlineError."""
        return Relay(await self._post(path, body, headers, deadline), self.endpoint, deadline)

    async def ask(
        self, path: str, body: JSON, headers: Mapping[str, str] | None = None, deadline: float | None = None
    ) -> JSON:
        """Sends a request and gives its JSON answer. Raises UpstreamError and DeadlineError."""
        return await self._object(await self._post(path, body, headers, deadline), deadline)

    async def _object(self, response: aiohttp.ClientResponse, deadline: float | None) -> JSON:
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

    async def look(self, path: str, headers: Mapping[str, str] | None = None, deadline: float | None = None) -> JSON:
        """The JSON object at `path`, which is none of the API's. Raises UpstreamError and DeadlineError."""
        return await self._object(await self._send("GET", path, None, headers, deadline), deadline)

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _post(
        self, path: str, body: JSON, headers: Mapping[str, str] | None, deadline: float | None
    ) -> aiohttp.ClientResponse:
        endpoint = self.endpoint
        try:
            data = orjson.dumps({**body, "model": endpoint.model})
        except orjson.JSONEncodeError:  # it reads more levels than it writes
            raise UpstreamError("status", "the request is nested too deeply for this decision", status=400) from None
        return await self._send("POST", endpoint.base_path + path.removeprefix("/v1"), data, headers, deadline)

    async def _send(
        self, method: str, path: str, data: bytes | None, headers: Mapping[str, str] | None, deadline: float | None
    ) -> aiohttp.ClientResponse:
        endpoint = self.endpoint
        url = endpoint.url.rstrip("/") + path
        ours = {"content-type": "application/json", "accept-encoding": "identity", HOP: "1"}
        sent = {**(headers or {}), **endpoint.headers, **ours}
        try:
            sending = self._client().request(method, url, data=data, headers=sent, allow_redirects=False)
            return await within(sending, endpoint.first_timeout, deadline)
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
            wrong = f"{self.endpoint.model} sent {kind or 'no content type'}, not {wanted.decode()}"
            hint = ": its server does not stream its answers" if kind.startswith("application/json") else ""
            raise UpstreamError("garbage", wrong + hint)

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
