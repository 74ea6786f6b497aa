"""Sends a request of the playground through the gateway, as a client would, and tells what comes back as it comes.

Only to the gateway that the operator has named, only calls that a model answers, and few at a time: each costs what it
costs any client. Imported by the first request that is sent, since it brings an HTTP client.
"""

from __future__ import annotations

import asyncio
import codecs
import logging
import re
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, Final

import aiohttp
import orjson

from extproc.requests.paths import read
from signals.bounds import HEADER_NAME

log = logging.getLogger("pointsman.admin")

AT_ONCE: Final = 4
SECONDS: Final = 120.0
"""For one answer."""
LONGEST: Final = 4 * 2**20
"""Bytes of an answer that are told."""
BEAT_S: Final = 1.0
"""A caller who has gone is noticed as soon as this, however long the model is silent."""
_NAME: Final = re.compile(HEADER_NAME)
_NOT_OURS: Final = frozenset(
    ("connection", "content-length", "expect", "host", "keep-alive", "te", "trailer", "transfer-encoding", "upgrade")
)
"""Headers that belong to the connection (RFC 9110, section 7.6.1)."""
_BEAT: Final = b": still here\n\n"


def checked(path: object, headers: object) -> tuple[str, dict[str, str]]:
    """The path and the headers of a request that may be sent. Raises ValueError."""
    target = read(path) if isinstance(path, str) and path.startswith("/") else None
    if target is None or target.api is None or target.operation:
        raise ValueError("path: that of a call which a model answers, such as /v1/chat/completions")
    given = headers if isinstance(headers, dict) else {}
    for name, value in given.items():
        if not (isinstance(name, str) and _NAME.fullmatch(name) and isinstance(value, str) and _visible(value)):
            raise ValueError("headers: names and values that HTTP takes")
        if name.lower() in _NOT_OURS or name.lower().startswith("x-pointsman-"):
            raise ValueError(f"headers: {name} is not a client's to set")
    return str(path), {"content-type": "application/json", **{name.lower(): value for name, value in given.items()}}


def _visible(value: str) -> bool:
    return value.isascii() and value.isprintable()


class Sender:
    """`gateway` is the URL at which clients reach it: `http://host:port`, or `https://`."""

    def __init__(self, gateway: str) -> None:
        self._gateway = gateway.rstrip("/")
        self._open = 0

    @property
    def busy(self) -> bool:
        """Whether no further request can be sent at the moment."""
        return self._open >= AT_ONCE

    async def send(self, path: str, headers: Mapping[str, str], body: bytes) -> AsyncGenerator[bytes, None]:
        """Server-sent events: `head` (status, headers), `body` (a piece of the answer's text), and at last `end`
        (seconds, bytes) or `error` (why it broke off). The data of each is JSON."""
        self._open += 1
        try:
            events: asyncio.Queue[bytes | None] = asyncio.Queue(16)
            task = asyncio.create_task(self._ask(events, path, headers, body))
            try:
                while True:
                    try:
                        event = await asyncio.wait_for(events.get(), BEAT_S)
                    except TimeoutError:
                        event = _BEAT
                    if event is None:
                        return
                    yield event
            finally:
                task.cancel()
                await asyncio.gather(task, return_exceptions=True)
        finally:
            self._open -= 1

    async def _ask(
        self, events: asyncio.Queue[bytes | None], path: str, headers: Mapping[str, str], body: bytes
    ) -> None:
        try:
            async with aclosing(self._answer(path, headers, body)) as answer:
                async for event in answer:
                    await events.put(event)
        except Exception:
            log.exception("playground_send_failed")
            await events.put(_event("error", {"error": "internal error, see the router's log"}))
        await events.put(None)

    async def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> AsyncGenerator[bytes, None]:
        begun, size = time.monotonic(), 0
        text = codecs.getincrementaldecoder("utf-8")("replace")
        limits = aiohttp.ClientTimeout(total=SECONDS, connect=5.0)
        try:
            async with (
                aiohttp.ClientSession(timeout=limits) as session,
                session.post(self._gateway + path, data=body, headers=headers, allow_redirects=False) as answer,
            ):
                yield _event(
                    "head",
                    {"status": answer.status, "headers": {str(name): value for name, value in answer.headers.items()}},
                )
                async for piece in answer.content.iter_any():
                    size += len(piece)
                    if size > LONGEST:
                        yield _event("error", {"error": f"the answer is longer than {LONGEST} bytes"})
                        return
                    yield _event("body", text.decode(piece))
        except TimeoutError:
            yield _event("error", {"error": f"no answer, or not all of it, within {SECONDS:g} seconds"})
        except aiohttp.ClientError as error:
            yield _event("error", {"error": f"the gateway at {self._gateway} does not answer: {type(error).__name__}"})
        else:
            yield _event("end", {"seconds": round(time.monotonic() - begun, 4), "bytes": size})


def _event(name: str, data: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (name.encode(), orjson.dumps(data))
