"""The stepwise loop over HTTP, for proxies that cannot stream an answer of the external processor's own (before 1.40).

The decision's route points here; which decision it was comes in headers that the external processor sets. The loop is
the same one, and its requests to the models carry the hop header, with which this server refuses to answer: a second
pass is impossible.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Final

import orjson
from aiohttp import web

from stepwise.agent import Agent
from stepwise.answer import Answer, answer, deadline, ineligible
from stepwise.relay import relay
from stepwise.spec import Stepwise
from stepwise.upstream import HOP

DECISION: Final = "x-pointsman-decision"
"""Request header that names the decision."""
POLICY: Final = "x-pointsman-policy"
"""Request header with the hash of the policy whose decision it is; without it, the one in force."""
DIFFICULTY: Final = "x-pointsman-difficulty"
"""Request header with the request's difficulty, 0..1, where a signal has read it."""

Borrow = Callable[[str, str], AbstractAsyncContextManager["Stepwise | Agent | None"]]
"""`borrow(decision, policy)`: that decision (an `Agent` for `per: request`), open for as long as it is borrowed."""

_MAX_BODY = 16 << 20
_MAX_HEADER = 64 << 10  # bytes of one; Envoy takes 60 KiB of all together
_PATH = re.compile(r".*/chat/+completions/*")


def application(borrow: Borrow, healthy: Callable[[], bool], max_body: int = _MAX_BODY) -> web.Application:
    """An application with `POST …/chat/completions` and `GET /healthz` (503 once not `healthy`).

    `borrow` is asked for every request, so a new policy holds from the next request on. `max_body`: bytes; more is
    refused with 413.
    """
    app = web.Application(client_max_size=max_body)
    app.router.add_post("/{path:.*}", _completions(borrow))
    app.router.add_get("/healthz", _health(healthy))
    return app


async def serve(app: web.Application, listen: socket.socket, grace: float = 60.0) -> web.AppRunner:
    """Listens on a bound socket; `cleanup` of what it gives ends it, after `grace` seconds for open answers at most."""
    # A handler is cancelled when its client goes: that is what stops the models.
    runner = web.AppRunner(
        app, handler_cancellation=True, access_log=None, shutdown_timeout=grace, max_field_size=_MAX_HEADER
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listen, backlog=1024).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


def _health(healthy: Callable[[], bool]) -> Callable[[web.Request], Awaitable[web.Response]]:
    async def handle(request: web.Request) -> web.Response:
        return web.Response(text="ok\n") if healthy() else web.Response(status=503, text="draining\n")

    return handle


def _completions(borrow: Borrow) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        if HOP in headers:
            return _refuse(508, "This request has come from here before: the model's route leads back to pointsman.")
        if not _PATH.fullmatch(request.path):
            return _refuse(404, "Only chat completions are answered here.")
        limit = deadline(headers)
        name = headers.get(DECISION, "")
        try:
            body = orjson.loads(await request.read())
        except web.HTTPRequestEntityTooLarge:
            return _refuse(413, "The request body is too large.")
        except ValueError:
            return _refuse(400, "The request body is not JSON.")
        if not isinstance(body, dict):
            return _refuse(400, "The request body is not a JSON object.")
        async with borrow(name, headers.get(POLICY, "")) as stepwise:
            if stepwise is None:
                return _refuse(404, f"There is no stepwise decision {name or '(header ' + DECISION + ' is missing)'}.")
            prior = _share(headers.get(DIFFICULTY, ""))
            if isinstance(stepwise, Agent):
                sent = await relay(stepwise, body, headers, deadline=limit, difficulty=prior, note=True)
                if sent is None:
                    return _refuse(400, "This is no chat completion.")
                async with sent:
                    return await _send(request, sent)
            if reason := ineligible(body, headers):
                stepwise.metrics.ineligible[reason] += 1
                return _refuse(400, f"This request cannot be answered stepwise ({reason}).")
            async with await answer(stepwise, body, headers, deadline=limit, difficulty=prior, note=True) as reply:
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


def _share(text: str) -> float:
    """A number from 0 to 1; 0.5 for anything else."""
    try:
        share = float(text)
    except ValueError:
        return 0.5
    return share if 0.0 <= share <= 1.0 else 0.5


def _refuse(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return web.Response(status=status, body=orjson.dumps({"error": error}), content_type="application/json")
