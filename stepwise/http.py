"""The stepwise loop over HTTP, for proxies that cannot stream an answer of the external processor's own (before 1.40).

The decision's route points here; which decision it was comes in a header that Envoy sets. The loop is the same one, and
its requests to the models carry the hop header, with which this server refuses to answer: a second pass is impossible.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import orjson
from aiohttp import web

from stepwise.agent import Agent
from stepwise.answer import Answer, answer, deadline, ineligible
from stepwise.relay import relay
from stepwise.spec import Stepwise
from stepwise.upstream import HOP

DECISION = "x-pointsman-decision"
"""Request header that names the decision."""

_MAX_BODY = 16 << 20


def application(find: Callable[[str], Stepwise | Agent | None], max_body: int = _MAX_BODY) -> web.Application:
    """An application with `POST /v1/chat/completions` and `GET /healthz`.

    `find`: the ready stepwise decision (an `Agent` for `per: request`) of that name (an empty one when the header is
    missing), or None. It is asked for every request, so a new policy holds from the next request on. `max_body`: bytes;
    more is refused with 413.
    """
    app = web.Application(client_max_size=max_body)
    app.router.add_post("/v1/chat/completions", _completions(find))
    app.router.add_get("/healthz", _health)
    return app


async def serve(app: web.Application, address: str, *, shared: bool = False) -> web.AppRunner:
    """Listens on `host:port` or `unix:PATH`; `cleanup` of what it gives ends it. Raises OSError and ValueError.

    `shared`: several workers listen on the same port (SO_REUSEPORT).
    """
    # A handler is cancelled when its client goes: that is what stops the models.
    runner = web.AppRunner(app, handler_cancellation=True, access_log=None)
    await runner.setup()
    try:
        if address.startswith("unix:"):
            await web.UnixSite(runner, address.removeprefix("unix:")).start()
        else:
            host, _, port = address.rpartition(":")
            if not host or not port.isdigit():
                raise ValueError(f"{address} is no address: give host:port or unix:PATH")
            await web.TCPSite(runner, host.strip("[]"), int(port), reuse_port=shared or None).start()
    except BaseException:
        await runner.cleanup()
        raise
    return runner


async def _health(request: web.Request) -> web.Response:
    return web.Response(text="ok\n")


def _completions(
    find: Callable[[str], Stepwise | Agent | None],
) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def handle(request: web.Request) -> web.StreamResponse:
        headers = {name.lower(): value for name, value in request.headers.items()}
        if HOP in headers:
            return _refuse(508, "This request has come from here before: the model's route leads back to pointsman.")
        name = headers.get(DECISION, "")
        stepwise = find(name)
        limit = deadline(headers)
        if stepwise is None:
            return _refuse(404, f"There is no stepwise decision {name or '(header ' + DECISION + ' is missing)'}.")
        try:
            body = orjson.loads(await request.read())
        except ValueError:
            return _refuse(400, "The request body is not JSON.")
        if not isinstance(body, dict):
            return _refuse(400, "The request body is not a JSON object.")
        if isinstance(stepwise, Agent):
            sent = await relay(stepwise, body, headers, deadline=limit)
            if sent is None:
                return _refuse(400, "This is no chat completion.")
            async with sent:
                return await _send(request, sent)
        if reason := ineligible(body, headers, request.path):
            stepwise.metrics.ineligible[reason] += 1
            return _refuse(400, f"This request cannot be answered stepwise ({reason}).")
        async with await answer(stepwise, body, headers, deadline=limit) as reply:
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


def _refuse(status: int, message: str) -> web.Response:
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return web.Response(status=status, body=orjson.dumps({"error": error}), content_type="application/json")
