"""Writers' answers over HTTP, for proxies that cannot stream an answer of the external processor's own (before 1.40).

The decision's route leads here, and headers that the external processor sets say which decision it was. The writers
are the same. Their requests to the models carry the hop header, and this server refuses every request that has it, so
that no request can go in a circle.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress

import orjson
from aiohttp import web

from extproc.answers import DECISION, POLICY, PRIOR, SESSION, deadline
from extproc.apis.chat import CHAT
from extproc.apis.registry import BY_NAME
from extproc.apis.shape import JSON, ApiShape
from extproc.refusal import Refusal
from extproc.requests.head import too_large
from extproc.requests.paths import read
from extproc.transport import address
from signals.reading import Reading
from signals.state.session import USUAL
from upstream.answer import Answer
from upstream.endpoint import HOP
from upstream.writer import DIFFICULTY, Call, Writer

Borrow = Callable[[str, str], AbstractAsyncContextManager[Writer | None]]
"""`borrow(decision, policy)`: the writer of that decision, open for as long as it is borrowed."""

_MAX_BODY = 16 << 20
_MAX_HEADER = 64 << 10  # bytes of one; Envoy takes 60 KiB of all together


def application(borrow: Borrow, healthy: Callable[[], bool], max_body: int = _MAX_BODY) -> web.Application:
    """An application with `POST` of the calls that a model answers, and `GET /healthz` (503 once not `healthy`).

    `borrow` is asked for every request, so a new policy holds from the next request on. `max_body`: bytes; more is
    refused with 413.
    """
    app = web.Application(client_max_size=max_body)
    app.router.add_post("/{path:.*}", _completions(borrow, max_body))
    app.router.add_get("/healthz", _health(healthy))
    return app


class Port:
    """Where the application is served: `address`, as it is listened on."""

    def __init__(self, runner: web.AppRunner, address: str, made: bool) -> None:
        self.address = address
        self._runner = runner
        self._made = made  # its socket is ours to take away

    @classmethod
    async def open(cls, app: web.Application, listen: str | socket.socket, grace: float = 60.0) -> Port:
        """Listen at an address, or on a bound socket. `close` waits `grace` seconds for open answers at most.

        Raises ValueError or OSError when the address is wrong or taken.
        """
        bound = address.bind(listen) if isinstance(listen, str) else listen
        # A handler is cancelled when its client goes: that is what stops the models.
        runner = web.AppRunner(
            app, handler_cancellation=True, access_log=None, shutdown_timeout=grace, max_field_size=_MAX_HEADER
        )
        await runner.setup()
        try:
            await web.SockSite(runner, bound, backlog=1024).start()
        except BaseException:
            await runner.cleanup()
            raise
        return cls(runner, address.name(bound), isinstance(listen, str))

    async def close(self, left: float) -> None:
        """Stop listening, and wait `left` seconds for open answers at most; what is left ends with this process."""
        with suppress(TimeoutError):
            await asyncio.wait_for(self._runner.cleanup(), left)
        if self._made:
            address.unbind(self.address)


def _health(healthy: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if healthy() else web.Response(status=503, text="draining\n")

    return handle


def _completions(borrow: Borrow, max_body: int) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        if HOP in headers:
            text = "This request has come from here before: the model's route leads back to pointsman."
            return _refuse(Refusal(508, text, "second_pass"))
        target = read(request.raw_path)
        shape = None if target is None or target.api is None or target.operation else BY_NAME[target.api]
        if shape is None or not shape.generates:
            return _refuse(Refusal(404, "Only calls that a model answers are answered here.", "unknown_path"))
        limit = deadline(headers)
        name = headers.get(DECISION, "")
        try:
            body = orjson.loads(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refuse(too_large(max_body), shape)
        except ValueError:
            return _refuse(Refusal(400, "The request body is not valid JSON.", "invalid_json"), shape)
        if not isinstance(body, dict):
            return _refuse(Refusal(400, "The request body must be a JSON object.", "invalid_type"), shape)
        async with borrow(name, headers.get(POLICY, "")) as writer:
            if writer is None:
                said = f"no decision {name!r} that is answered here" if name else f"no header {DECISION}"
                return _refuse(Refusal(404, f"There is {said}.", "unknown_decision"), shape)
            score = _share(headers.get(PRIOR, ""))
            call = Call(
                body,
                headers,
                shape.name,
                deadline=limit,
                readings={} if score is None else {DIFFICULTY: Reading(None, score)},
                session=headers.get(SESSION) or USUAL.named(headers),
                note=True,
            )
            if reason := writer.unfit(call):
                writer.metrics.ineligible[reason] += 1
                text = f"This request cannot be answered as its decision says ({reason})."
                return _refuse(Refusal(400, text, "ineligible"), shape)
            async with await writer.answer(call) as reply:
                return await _send(request, reply)

    return handle


async def _send(request: web.Request, reply: Answer) -> web.StreamResponse:
    response = web.StreamResponse(status=reply.status, headers=reply.headers)
    await response.prepare(request)
    try:
        async for part in reply.body:
            await response.write(part)  # waits while the client does not read, and the models wait with it
        await response.write_eof()
    except ConnectionResetError:
        pass  # the client has gone; leaving the answer frees everything
    return response


def _share(text: str) -> float | None:
    """A number from 0 to 1; None for anything else."""
    try:
        share = float(text)
    except ValueError:
        return None
    return share if 0.0 <= share <= 1.0 else None


def _refuse(refusal: Refusal, shape: ApiShape = CHAT) -> web.Response:
    return web.Response(status=refusal.status, body=shape.error(refusal), content_type=JSON)
