"""The admin port: `/livez`, `/readyz`, `/metrics`, `/policy`, `/debug/decisions`, `/cache`, for kubelet, Prometheus and
people.

A web framework would cost a good part of the router's memory, so this speaks the little HTTP/1.1 that a probe needs:
GET and HEAD, one request per connection, limited in size, time and number. It is meant for the pod's own network;
nothing here carries prompt text, and nothing can be changed but by DELETE, which forgets answers that are kept.

A foreign web page must not read it through its visitor's browser. The page's owner can let a name of theirs resolve to
our address (DNS rebinding), but the request then carries that name; so requests that name another host than ours are
refused. Requests that name an IP address are served, since the kubelet and Prometheus use the pod's.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

import orjson

from extproc import shown
from extproc.keeping.key import SCOPES, scope_of
from extproc.metrics import Snapshot
from extproc.transport import address

log = logging.getLogger(__name__)

MAX_HEAD_BYTES = 8_192
MAX_CONNECTIONS = 64
TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Status:
    """Whether the router can take requests. `policy` is the hash in force; `details` is shown as it is."""

    ready: bool
    policy: str
    details: dict[str, Any]


class Source(Protocol):
    """What the admin port shows: one worker, or a supervisor that asks all of its workers."""

    async def status(self) -> Status: ...
    async def snapshot(self) -> Snapshot: ...
    async def decisions(self, limit: int) -> list[dict[str, Any]]:
        """The newest traces first."""
        ...

    async def drop(self, decision: str | None, scope: str | None) -> int:
        """Forget the kept answers of a decision, and of a scope (extproc.keeping.key.scope_of); None: of all."""
        ...

    def policy_text(self) -> bytes:
        """The policy file in force, as it was read."""
        ...


@dataclass(frozen=True, slots=True)
class Reply:
    status: HTTPStatus
    body: bytes
    content_type: str = "text/plain; charset=utf-8"


class Admin:
    """The server. `start` binds, `close` ends it."""

    def __init__(self, source: Source, hosts: Iterable[str] = ()) -> None:
        """`hosts` are names, beside `localhost`, under which requests may come."""
        self._source = source
        self._hosts = frozenset(map(_name, (*hosts, "localhost")))
        self._server: asyncio.Server | None = None
        self._made = False  # its socket
        self._local = False  # a Unix socket, which no web page can reach
        self._tasks: set[asyncio.Task[None]] = set()
        self._routes: dict[str, Callable[[dict[str, list[str]]], Awaitable[Reply]]] = {
            "/livez": self._livez,
            "/readyz": self._readyz,
            "/metrics": self._metrics,
            "/policy": self._policy,
            "/debug/decisions": self._decisions,
        }

    async def start(self, listen: str | socket.socket) -> None:
        """Serve on `host:port`, `unix:PATH` or a bound socket. Raises ValueError or OSError like a transport."""
        self._made = isinstance(listen, str)
        sock = address.bind(listen) if isinstance(listen, str) else listen
        self.address = address.name(sock)
        self._local = sock.family == socket.AF_UNIX
        if self._local:
            keep = address.keep_file(asyncio.get_running_loop())
            self._server = await asyncio.start_unix_server(self._serve, sock=sock, limit=MAX_HEAD_BYTES, **keep)
        else:
            self._server = await asyncio.start_server(self._serve, sock=sock, limit=MAX_HEAD_BYTES)

    async def close(self, grace: float = 0.5) -> None:
        """Stop accepting, give requests that have begun `grace` seconds to end, then cut them off."""
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
                async with asyncio.timeout(TIMEOUT_S):
                    await self._answer(reader, writer)
                    writer.close()
                    await writer.wait_closed()  # all of it is written
        except (TimeoutError, ConnectionError, asyncio.IncompleteReadError, asyncio.LimitOverrunError) as error:
            log.debug("admin_request_abandoned", extra={"reason": type(error).__name__})
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *fields = head.removesuffix("\r\n\r\n").split("\r\n")
        method, target, *_ = [*first.split(" "), "", ""]
        reply = self._refused(target, fields) or await self._reply(method, target)
        lines = (
            f"HTTP/1.1 {reply.status.value} {reply.status.phrase}",
            f"content-type: {reply.content_type}",
            f"content-length: {len(reply.body)}",
            "cache-control: no-store",
            "connection: close",
        )
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if method == "HEAD" else reply.body))
        await writer.drain()

    def _refused(self, target: str, fields: list[str]) -> Reply | None:
        """The answer to a request that names another host than ours, or comes from a page of another site."""
        headers: dict[str, list[str]] = {}
        for line in fields:
            name, _, value = line.partition(":")
            headers.setdefault(name.lower(), []).append(value.strip(" \t"))
        if any(not name or name.strip() != name for name in headers) or len(headers.get("host", ())) > 1:
            return Reply(HTTPStatus.BAD_REQUEST, b"a broken head\n")  # RFC 9112, sections 3.2 and 5
        if self._local:
            return None
        authorities = headers.get("host", [])
        if not target.startswith("/"):  # absolute form: it counts instead of Host (RFC 9112, section 3.2.2)
            authorities = [*authorities, target.partition("://")[2].partition("/")[0]]
        if not all(map(self._known, authorities)):
            return Reply(HTTPStatus.MISDIRECTED_REQUEST, b"not a name of this server: --admin-host NAME allows one\n")
        for origin in headers.get("origin", ()):
            if origin.partition("://")[2].lower() not in map(str.lower, authorities):
                return Reply(HTTPStatus.FORBIDDEN, b"pages of other sites may not read this\n")
        return None

    def _known(self, authority: str) -> bool:
        """Whether a Host is an address or one of our names; the port does not matter."""
        host, port = authority, ""
        if not authority.endswith("]"):
            host, _, port = authority.rpartition(":") if ":" in authority else (authority, "", "")
        if port and not (port.isascii() and port.isdigit()):
            return False
        if host.startswith("[") and host.endswith("]"):
            return _is_address(host[1:-1], ipaddress.IPv6Address)
        return _is_address(host, ipaddress.IPv4Address) or _name(host) in self._hosts

    async def _reply(self, method: str, target: str) -> Reply:
        try:
            parts = urlsplit(target)
            if parts.path == "/cache":
                if method != "DELETE":
                    return Reply(HTTPStatus.METHOD_NOT_ALLOWED, b"only DELETE\n")
                return await self._drop(parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query)))
            if method not in ("GET", "HEAD"):
                return Reply(HTTPStatus.METHOD_NOT_ALLOWED, b"only GET and HEAD\n")
            route = self._routes.get(parts.path)
            if route is None:
                return Reply(HTTPStatus.NOT_FOUND, ("try " + " ".join(self._routes) + "\n").encode())
            return await route(parse_qs(parts.query))
        except ValueError as error:
            return Reply(HTTPStatus.BAD_REQUEST, f"{error}\n".encode())
        except Exception:  # a broken view must not take probes down with it, and must be seen
            log.exception("admin_request_failed", extra={"path": shown.path(target)})
            return Reply(HTTPStatus.INTERNAL_SERVER_ERROR, b"internal error, see the log\n")

    async def _livez(self, query: dict[str, list[str]]) -> Reply:
        return Reply(HTTPStatus.OK, b"ok\n")

    async def _readyz(self, query: dict[str, list[str]]) -> Reply:
        status = await self._source.status()
        code = HTTPStatus.OK if status.ready else HTTPStatus.SERVICE_UNAVAILABLE
        return _json({"ready": status.ready, "policy": status.policy, **status.details}, code)

    async def _metrics(self, query: dict[str, list[str]]) -> Reply:
        from extproc.exposition import expose  # only a scrape needs it: start-up does not wait for it

        text = expose(await self._source.snapshot())
        return Reply(HTTPStatus.OK, text, "text/plain; version=0.0.4; charset=utf-8")

    async def _policy(self, query: dict[str, list[str]]) -> Reply:
        return Reply(HTTPStatus.OK, self._source.policy_text(), "application/yaml")

    async def _drop(self, query: dict[str, list[str]]) -> Reply:
        given = {name: values[-1] for name, values in query.items()}
        decision, scopes = given.pop("decision", None), [name for name in given if name in SCOPES]
        unknown = sorted(given.keys() - set(scopes))
        if unknown or len(scopes) > 1 or "" in (decision, *(given[name] for name in scopes if name != "all")):
            raise ValueError("say which: decision=NAME, and one of tenant=, user=, session=, all=; nothing for all")
        scope = scope_of(scopes[0], given[scopes[0]]) if scopes else None
        return _json({"dropped": await self._source.drop(decision, scope)})

    async def _decisions(self, query: dict[str, list[str]]) -> Reply:
        limit = int(query.get("limit", ["100"])[0])
        return _json({"decisions": await self._source.decisions(max(0, limit))})


def _is_address(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _name(text: str) -> str:
    """A host's name to compare: in lower case, without the dot of the DNS root."""
    return text.lower().removesuffix(".")


def _json(value: dict[str, Any], status: HTTPStatus = HTTPStatus.OK) -> Reply:
    return Reply(
        status, orjson.dumps(value, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE), "application/json"
    )
