"""The admin port: `/livez`, `/readyz`, `/metrics`, `/policy`, `/outcomes`, `/debug/decisions`, `/cache`, `/selection`,
for kubelet, Prometheus, scripts and people.

A web framework would cost a good part of the router's memory, so this speaks the little HTTP/1.1 that a probe needs:
one request per connection, limited in size, time and number. Nothing here carries prompt text unless the operator asks
for it (`--console-content`). What can be changed is state: DELETE forgets answers that are kept or what choices have
learned, and choices are given grades of answers and what others have learned. Who may ask what:
`extproc.admin.callers`.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import ipaddress
import logging
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol
from urllib.parse import parse_qs, urlsplit

import orjson

import console
from decisions import describe, explain, learned
from decisions.engine import Engine
from decisions.grading import Taken
from extproc.admin.callers import Callers, Denial, Guard
from extproc.admin.history import EVERY_S, History
from extproc.admin.playground import START_S, Asker, PlaygroundError
from extproc.keeping.key import SCOPES, scope_of
from extproc.records import shown
from extproc.records.metrics import Snapshot
from extproc.transport import address
from signals.reading import Unavailable

if TYPE_CHECKING:
    from extproc.admin.sending import Sender

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8_192
MAX_CONNECTIONS = 64
MAX_BODY_BYTES = 1_048_576
MAX_FOLLOWERS = 16
MOST_REPLAYED = 2_000
TIMEOUT_S = 10.0
FOLLOW_S = 0.25
"""Between two looks at what was decided meanwhile."""
ALIVE_S = 15.0
"""A stream in which nothing happens says so as often as this: proxies close connections that seem dead."""


@dataclass(frozen=True, slots=True)
class Status:
    """Whether the router can take requests. `policy` is the hash in force; `details` is shown as it is."""

    ready: bool
    policy: str
    details: dict[str, Any]


class News(NamedTuple):
    """Decisions that somebody who follows them has not seen, oldest first.

    `seen` says, for each worker by its pid, how many it has recorded by now; `missed` how many it did not keep so long.
    """

    seen: Mapping[str, int]
    decisions: list[dict[str, Any]]
    missed: int


class AdminSource(Protocol):
    """What the admin port shows: one worker, or a supervisor that asks all of its workers."""

    @property
    def engine(self) -> Engine:
        """The policy in force."""
        ...

    async def status(self) -> Status: ...
    async def snapshot(self) -> Snapshot: ...
    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        """The newest traces first."""
        ...

    async def since(self, seen: Mapping[str, int], limit: int) -> News:
        """What was decided since `seen`; with none, the newest `limit` decisions."""
        ...

    async def drop(self, decision: str | None, scope: str | None) -> int:
        """Forget the kept answers of a decision, and of a scope (extproc.keeping.key.scope_of); None: of all. Raises
        Unavailable."""
        ...

    async def grade(self, grades: Sequence[Any]) -> list[Taken]:
        """What becomes of the operator's grades (decisions.grading). Raises Unavailable."""
        ...

    async def learned(self, decision: str | None) -> dict[str, Any]:
        """What the choice of a decision has learned from grades, or all have (decisions.learned). Raises ValueError,
        Unavailable; so do the next two."""
        ...

    async def take_in(self, state: Any) -> int:
        """Add what others have learned; of how many candidates that was."""
        ...

    async def forget(self, decision: str | None) -> list[str]:
        """Let the choice of a decision begin anew, or all of them; of which decisions."""
        ...

    def policy_text(self) -> bytes:
        """The policy file in force, as it was read."""
        ...


@dataclass(frozen=True, slots=True)
class AdminReply:
    """`stream` goes on after `body` for as long as its caller stays."""

    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"
    headers: tuple[tuple[str, str], ...] = ()
    stream: AsyncGenerator[bytes, None] | None = None


class AdminRequest(NamedTuple):
    """One request. `query` has the values of each parameter; `body` is empty but for POST."""

    method: str
    path: str
    query: Mapping[str, list[str]]
    body: bytes

    def number(self, name: str, otherwise: int) -> int:
        """The value of a parameter, at least 0. Raises ValueError where it is no integer."""
        given = [value for value in self.query.get(name, ()) if value]
        try:
            return max(0, int(given[0])) if given else otherwise
        except ValueError:
            raise ValueError(f"{name}: an integer is needed") from None

    def asks(self, what: str) -> dict[str, Any]:
        """The JSON object of the body, which is `what`. Raises ValueError."""
        try:
            found = orjson.loads(self.body)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the body is not JSON: {error}") from None
        if not isinstance(found, dict):
            raise ValueError(what)
        return found


class Serving(NamedTuple):
    """What answers a path, by which methods, and for whom."""

    answer: Callable[[AdminRequest], Awaitable[AdminReply]]
    guard: Guard
    methods: tuple[str, ...] = ("GET", "HEAD")
    seconds: float = TIMEOUT_S


class Allowed(NamedTuple):
    """What the console may do beside showing: `playground` starts the process that answers its questions (none: there
    is no playground); `gateway` is the URL to which it sends requests when asked to (None: it sends none). `content`:
    decisions are shown with what users said, so that they are for close callers only."""

    playground: Sequence[str] = ()
    gateway: str | None = None
    content: bool = False


NOTHING: Final = Allowed()


class Admin:
    """The server. `start` binds, `close` ends it."""

    def __init__(
        self,
        source: AdminSource,
        callers: Callers | None = None,
        history: History | None = None,
        allowed: Allowed = NOTHING,
    ) -> None:
        """`callers` decides who may ask; `history` is what an earlier server has kept of the same source's counts."""
        self._source = source
        self._callers = callers or Callers()
        self._history = history or History()
        self._asker = Asker(allowed.playground) if allowed.playground else None
        self._gateway = allowed.gateway
        self._sender: Sender | None = None
        self._server: asyncio.Server | None = None
        self._made = False  # its socket
        self._local = False  # a Unix socket, which no web page can reach
        self._near = False  # nor can other machines
        self._tasks: set[asyncio.Task[None]] = set()
        self._looking: asyncio.Task[None] | None = None
        self._ending = asyncio.Event()
        self._followers = 0
        self._routes = {
            "/livez": Serving(self._livez, Guard.NOTHING),
            "/readyz": Serving(self._readyz, Guard.NOTHING),
            "/metrics": Serving(self._metrics, Guard.NOTHING),
            "/policy": Serving(self._policy, Guard.TOKEN),
            "/outcomes": Serving(self._outcomes, Guard.CLOSE),
            "/debug/decisions": Serving(self._decisions, Guard.CLOSE if allowed.content else Guard.TOKEN),
            "/debug/tree": Serving(self._tree, Guard.CLOSE, ("POST",)),
            "/playground": Serving(self._playground, Guard.CLOSE, ("POST",), START_S + TIMEOUT_S),
            "/playground/send": Serving(self._send, Guard.CLOSE, ("POST",)),
            "/cache": Serving(self._drop, Guard.TOKEN, ("DELETE",)),
            "/feedback": Serving(self._feedback, Guard.TOKEN, ("POST",)),
            "/selection": Serving(self._selection, Guard.TOKEN, ("GET", "HEAD", "POST", "DELETE")),
            "/openapi.json": Serving(self._openapi, Guard.SHELL),
            "/console/state": Serving(self._state, Guard.CLOSE),
            **dict.fromkeys(console.FILES, Serving(self._console, Guard.SHELL)),
        }

    async def start(self, listen: str | socket.socket) -> None:
        """Serve on `host:port`, `unix:PATH` or a bound socket. Raises ValueError or OSError like a transport."""
        self._made = isinstance(listen, str)
        sock = address.bind(listen) if isinstance(listen, str) else listen
        self.address = address.name(sock)
        self._local = sock.family == socket.AF_UNIX
        self._near = self._local or ipaddress.ip_address(sock.getsockname()[0]).is_loopback
        self._looking = asyncio.create_task(self._look())
        if self._local:
            keep = address.keep_file(asyncio.get_running_loop())
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_HEAD_BYTES, **keep)
        else:
            self._server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_HEAD_BYTES)

    async def close(self, grace: float = 0.5) -> None:
        """Stop accepting, give requests that have begun `grace` seconds to end, then cut them off."""
        self._ending.set()
        if self._asker is not None:
            self._asker.close()
        if self._looking is not None:
            self._looking.cancel()
            await asyncio.gather(self._looking, return_exceptions=True)
        if self._server is not None:
            # A connection that asyncio has accepted becomes a task of ours in three turns of its loop, and only while
            # the server is not closed. One that is lost there would be neither answered nor closed, for ever: a
            # process that is forked later holds it open too.
            for sock in self._server.sockets:
                asyncio.get_running_loop().remove_reader(sock)
            for _ in range(4):
                await asyncio.sleep(0)
            self._server.close()
            if self._made:
                address.unbind(self.address)
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            if len(self._tasks) <= MAX_CONNECTIONS:
                async with asyncio.timeout(TIMEOUT_S) as limit:
                    await self._answer(reader, writer, limit)
                    writer.close()
                    await writer.wait_closed()  # all of it is written
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("admin_request_abandoned", extra={"reason": type(error).__name__})
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: asyncio.Timeout) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, *_ = [*first.split(" "), "", ""]
        headers: dict[str, list[str]] = {}
        for line in fields:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip(" \t"))
        reply = self._refused(target, headers) or await self._reply(method, target, headers, reader, limit)
        lines = [
            f"HTTP/1.1 {reply.status.value} {reply.status.phrase}",
            f"content-type: {reply.content_type}",
            "x-content-type-options: nosniff",
            "cache-control: no-store",
            "connection: close",
            *(f"{name}: {value}" for name, value in reply.headers),
        ]
        if reply.stream is None:
            lines.append(f"content-length: {len(reply.body)}")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else reply.body))
        await writer.drain()
        if reply.stream is not None and method != "HEAD":
            limit.reschedule(None)
            async with contextlib.aclosing(reply.stream) as stream:
                async for piece in stream:
                    if reader.at_eof():
                        break
                    writer.write(piece)
                    async with asyncio.timeout(TIMEOUT_S):  # a caller that reads nothing is let go
                        await writer.drain()
            limit.reschedule(asyncio.get_running_loop().time() + TIMEOUT_S)

    def _refused(self, target: str, headers: Mapping[str, list[str]]) -> AdminReply | None:
        """The answer to a broken request, and to one that comes from a page of another site."""
        if any(not name or name.strip() != name for name in headers) or len(headers.get("host", ())) > 1:
            return AdminReply(HTTPStatus.BAD_REQUEST, b"a broken head\n")  # RFC 9112, sections 3.2 and 5
        denial = None if self._local else self._callers.foreign(target, headers)
        return None if denial is None else _denial(denial)

    async def _reply(
        self,
        method: str,
        target: str,
        headers: Mapping[str, list[str]],
        reader: asyncio.StreamReader,
        limit: asyncio.Timeout,
    ) -> AdminReply:
        try:
            parts = urlsplit(target)
            route = self._routes.get(parts.path)
            if route is None:
                return AdminReply(HTTPStatus.NOT_FOUND, ("try " + " ".join(self._routes) + "\n").encode())
            if method not in route.methods:
                return AdminReply(HTTPStatus.METHOD_NOT_ALLOWED, f"only {' and '.join(route.methods)}\n".encode())
            strict = bool(parts.query) and method == "DELETE"  # what is misread there costs answers
            query = parse_qs(parts.query, keep_blank_values=True, strict_parsing=strict)
            guard = Guard.CLOSE if "follow" in query else route.guard
            denial = self._callers.denied(guard, headers, close=self._near)
            if denial is not None:
                return _denial(denial)
            body = await _body(headers, reader) if method == "POST" else b""
            limit.reschedule(asyncio.get_running_loop().time() + route.seconds)
            return await route.answer(AdminRequest(method, parts.path, query, body))
        except ValueError as error:
            return AdminReply(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        except asyncio.IncompleteReadError:
            raise
        except Exception:  # a broken view must not take probes down with it, and must be seen
            log.exception("admin_request_failed", extra={"path": shown.path(target)})
            return AdminReply(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error, see the log\n")

    async def _look(self) -> None:
        """Look at the counts every few seconds, for `/outcomes`."""
        while True:
            try:
                self._history.add(await self._source.snapshot())
            except Exception:  # the points after this one come all the same
                log.exception("admin_look_failed")
            await asyncio.sleep(EVERY_S)

    async def _livez(self, asked: AdminRequest) -> AdminReply:
        return AdminReply(HTTPStatus.OK, b"ok\n")

    async def _readyz(self, asked: AdminRequest) -> AdminReply:
        status = await self._source.status()
        code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"ready": status.ready, "policy": status.policy, **status.details}, code)

    async def _metrics(self, asked: AdminRequest) -> AdminReply:
        from extproc.admin.exposition import expose  # only a scrape needs it: start-up does not wait for it

        text = expose(await self._source.snapshot())
        return AdminReply(HTTPStatus.OK, text, "text/plain; version=0.0.4; charset=utf-8")

    async def _policy(self, asked: AdminRequest) -> AdminReply:
        form = asked.query.get("form", ["yaml"])[-1]
        if form == "json":
            return _json(describe.as_object(self._source.engine))
        if form != "yaml":
            raise ValueError("form=yaml (the file as it was read) or form=json")
        return AdminReply(HTTPStatus.OK, self._source.policy_text(), "application/yaml")

    async def _outcomes(self, asked: AdminRequest) -> AdminReply:
        try:
            after = float(asked.query.get("after", ["0"])[-1] or 0)
        except ValueError:
            raise ValueError("after: seconds since the epoch are needed") from None
        return _json(self._history.as_object(await self._source.snapshot(), after))

    async def _openapi(self, asked: AdminRequest) -> AdminReply:
        from extproc.admin.openapi import DESCRIPTION  # only those who ask for it need it

        return _json(DESCRIPTION)

    async def _tree(self, asked: AdminRequest) -> AdminReply:
        found = asked.asks("a decision is an object, as /debug/decisions shows it")
        engine = self._source.engine
        try:
            trace = explain.retraced(engine, found)
        except LookupError:
            why = {"error": "another policy is in force by now", "policy": engine.policy}
            return _json(why, HTTPStatus.CONFLICT)
        named = trace.decision.name is None and trace.decision.action == "route"
        return _json({"tree": explain.walk(engine, trace, named=named)})

    async def _playground(self, asked: AdminRequest) -> AdminReply:
        """The question goes to the playground's process, with what that one cannot know."""
        if self._asker is None:
            return AdminReply(HTTPStatus.NOT_FOUND, b"there is no playground: start the router with --playground\n")
        given = asked.asks("a question is an object: policy, request, path, headers, replay")
        in_force = self._source.policy_text().decode("utf-8", "replace")
        question: dict[str, Any] = {"in_force": in_force, "policy": given.get("policy")}
        if question["policy"] is None:
            question["policy"] = in_force
        for name, kind in (("policy", str), ("request", str), ("path", str), ("headers", dict), ("replay", int)):
            if not isinstance(question.setdefault(name, given.get(name)), kind | None):
                raise ValueError(f"{name}: {'a string' if kind is str else 'a number' if kind is int else 'an object'}")
        if not all(isinstance(value, str) for value in (question["headers"] or {}).values()):
            raise ValueError("headers: their values are strings")
        if (limit := question.pop("replay")) is not None:
            question["decisions"] = await self._source.decisions(min(max(0, limit), MOST_REPLAYED))
        try:
            answer = await self._asker.ask(question)
        except PlaygroundError as error:
            return _json({"error": str(error)}, HTTPStatus.SERVICE_UNAVAILABLE)
        return _json(answer, HTTPStatus.BAD_REQUEST if "error" in answer else HTTPStatus.OK)

    async def _send(self, asked: AdminRequest) -> AdminReply:
        """A request goes through the gateway, and its answer comes as it comes."""
        if self._gateway is None:
            return AdminReply(
                HTTPStatus.NOT_FOUND, b"there is nowhere to send to: start the router with --gateway URL\n"
            )
        given = asked.asks("a request is an object: request, path, headers")
        body = given.get("request")
        if not isinstance(body, str):
            raise ValueError("request: a string")
        # An HTTP client takes a tenth of a second to import, in which the event loop has other things to do.
        sending = await asyncio.to_thread(importlib.import_module, "extproc.admin.sending")
        path, headers = sending.checked(given.get("path"), given.get("headers"))
        if self._sender is None:
            self._sender = sending.Sender(self._gateway)
        if self._sender.busy:
            why = b"several requests are under way: wait for an answer\n"
            return AdminReply(HTTPStatus.SERVICE_UNAVAILABLE, why, headers=(("retry-after", "1"),))
        stream = self._sender.send(path, headers, body.encode())
        return AdminReply(HTTPStatus.OK, b": what the gateway answers\n\n", "text/event-stream", (), stream)

    async def _state(self, asked: AdminRequest) -> AdminReply:
        status = await self._source.status()
        return _json(
            {
                "version": version("pointsman"),
                "ready": status.ready,
                "policy": status.policy,
                "details": status.details,
                "playground": self._asker is not None,
                "sends": self._gateway is not None,
            }
        )

    async def _console(self, asked: AdminRequest) -> AdminReply:
        file = console.FILES[asked.path]
        return AdminReply(HTTPStatus.OK, file.content(), file.content_type, console.HEADERS)

    async def _drop(self, asked: AdminRequest) -> AdminReply:
        given = {name: values[-1] for name, values in asked.query.items()}
        decision, scopes = given.pop("decision", None), [name for name in given if name in SCOPES]
        unknown = sorted(given.keys() - set(scopes))
        if unknown or len(scopes) > 1 or "" in (decision, *(given[name] for name in scopes if name != "all")):
            raise ValueError("say which: decision=NAME, and one of tenant=, user=, session=, all=; nothing for all")
        scope = scope_of(scopes[0], given[scopes[0]]) if scopes else None
        try:
            return _json({"dropped": await self._source.drop(decision, scope)})
        except Unavailable:
            return _json({"error": "not all answers could be reached: ask again"}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _feedback(self, asked: AdminRequest) -> AdminReply:
        try:
            grades = orjson.loads(asked.body)
        except orjson.JSONDecodeError as error:
            raise ValueError(f"the body is not JSON: {error}") from None
        if not isinstance(grades, list):
            raise ValueError("a list of grades is needed: [{id, score}, {id, better_than}, …]")
        try:
            told = await self._source.grade(grades)
        except Unavailable:
            return _json({"error": "the state store is away: ask again"}, HTTPStatus.SERVICE_UNAVAILABLE)
        refused = [{"at": at, "why": why} for at, why in enumerate(told) if why != "taken"]
        return _json({"taken": len(told) - len(refused), "refused": refused})

    async def _selection(self, asked: AdminRequest) -> AdminReply:
        if set(asked.query) - {"decision"} or (asked.query and asked.method == "POST"):
            raise ValueError("say which: decision=NAME, or nothing for all; what is posted says it itself")
        decision = asked.query.get("decision", [None])[-1]
        try:
            if asked.method == "DELETE":
                return _json({"forgotten": await self._source.forget(decision)})
            if asked.method == "POST":
                given = asked.asks("what was learned is an object, as GET shows it")
                return _json({"candidates": await self._source.take_in(given)})
            return _json(learned.summed_up(self._source.engine, await self._source.learned(decision)))
        except Unavailable:
            why = {"error": "what was learned could not be reached: ask again"}
            return _json(why, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _decisions(self, asked: AdminRequest) -> AdminReply:
        if "follow" not in asked.query:
            return _json({"decisions": await self._source.decisions(asked.number("limit", 100))})
        limit = asked.number("limit", 0)
        if self._followers >= MAX_FOLLOWERS:
            why = f"{MAX_FOLLOWERS} already follow: try again later\n".encode()
            return AdminReply(HTTPStatus.SERVICE_UNAVAILABLE, why, headers=(("retry-after", "10"),))
        return AdminReply(
            HTTPStatus.OK, b": decisions as they are made\n\n", "text/event-stream", (), self._follow(limit)
        )

    async def _follow(self, limit: int) -> AsyncGenerator[bytes, None]:
        """Server-sent events: one for each decision, and `missed` with a count where there were too many."""
        self._followers += 1
        try:
            seen: Mapping[str, int] = {}
            quiet = 0.0
            while not self._ending.is_set():
                seen, decisions, missed = await self._source.since(seen, limit)
                lines = [b"event: missed\ndata: %d\n\n" % missed] if missed else []
                lines += (b"id: %b\ndata: %b\n\n" % (each["key"].encode(), orjson.dumps(each)) for each in decisions)
                quiet = 0.0 if lines else quiet + FOLLOW_S
                if quiet >= ALIVE_S:
                    quiet = 0.0
                    lines.append(b": still here\n\n")
                yield b"".join(lines)
                limit = 0
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._ending.wait(), FOLLOW_S)
        finally:
            self._followers -= 1


async def _body(headers: Mapping[str, list[str]], reader: asyncio.StreamReader) -> bytes:
    """The body of a request. Raises ValueError for one that is too large, or does not say its length."""
    lengths = headers.get("content-length", [])
    if len(lengths) != 1 or not (lengths[0].isascii() and lengths[0].isdigit()):
        raise ValueError("a body with one content-length is needed")
    if len(lengths[0]) > 19 or int(lengths[0]) > MAX_BODY_BYTES:
        raise ValueError(f"a body of at most {MAX_BODY_BYTES} bytes")
    return await reader.readexactly(int(lengths[0]))


def _denial(denial: Denial) -> AdminReply:
    more = (("www-authenticate", "Bearer"),) if denial.status == 401 else ()
    return AdminReply(HTTPStatus(denial.status), f"{denial.why}\n".encode(), headers=more)


def _json(value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> AdminReply:
    return AdminReply(
        status, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), "application/json"
    )
