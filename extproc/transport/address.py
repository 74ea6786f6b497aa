"""Listening addresses: `host:port`, `unix:PATH` and sockets that are already bound."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import stat
import sys
from typing import Any

_bound: dict[str, int] = {}  # Unix sockets of this process: path → inode


def parse(listen: str) -> str | tuple[str, int]:
    """The path of `unix:PATH`, or host and port of `host:port` (`[::1]:50051` for IPv6, an empty host for all).

    Raises ValueError with what is wrong and what would be right.
    """
    if listen.startswith("unix:"):
        path = listen[5:].removeprefix("//")
        if not path or "\0" in path:
            raise ValueError(f"listen address {listen!r}: give the socket's path, as in unix:/run/pointsman.sock")
        if len(os.fsencode(path)) > 107:  # sun_path holds 108 bytes with the final zero (unix(7))
            raise ValueError(f"listen address {listen!r}: a Unix socket's path may have at most 107 bytes")
        return path
    host, colon, port = listen.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65_535 or (":" in host and host[0] != "["):
        raise ValueError(f"listen address {listen!r}: write host:port, as in 0.0.0.0:50051 or [::]:50051, or unix:PATH")
    return host.strip("[]"), int(port)


def bind(listen: str, share: bool = False) -> socket.socket:
    """A bound stream socket for `listen`, not yet listening; `share`: it joins others that `shared` has opened the port
    of.

    Raises ValueError, and OSError where the port is taken, also by a process that would share it, as Envoy would
    (SO_REUSEPORT): each of the two would get a part of the other's connections.

    A Unix socket left behind by a process that is gone is replaced; one that still answers is an error.
    """
    where = parse(listen)
    if isinstance(where, str):
        _remove_stale(where)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.bind(where)
            _bound[where] = os.stat(where).st_ino
        except OSError as error:
            sock.close()
            raise _told(listen, error) from error
        return sock
    host, port = where
    flags = socket.AI_PASSIVE
    family, kind, proto, _, sockaddr = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=flags)[0]
    sock = socket.socket(family, kind, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if share:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(sockaddr)
    except OSError as error:
        sock.close()
        raise _told(listen, error) from error
    return sock


def shared(sock: socket.socket) -> socket.socket:
    """`sock`, whose TCP port others may bind from now on, too; nobody else had it when it was bound."""
    if sock.family != socket.AF_UNIX:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    return sock


def _told(listen: str, error: OSError) -> OSError:
    taken = "; another process has this address: stop that one, or name another address"
    return OSError(
        error.errno, f"cannot listen on {listen}: {error.strerror}{taken if error.errno == errno.EADDRINUSE else ''}"
    )


def keep_file(loop: asyncio.AbstractEventLoop) -> dict[str, Any]:
    """Options for `create_unix_server`, so that a server which closes leaves the file to `unbind`.

    Since Python 3.13 asyncio's loop removes it, even while other processes share the socket. uvloop does not.
    """
    own = isinstance(loop, asyncio.SelectorEventLoop)
    return {"cleanup_socket": False} if own and sys.version_info >= (3, 13) else {}


def unbind(listen: str) -> None:
    """Remove the file of a Unix socket that `bind` made here, unless a successor has put its own in that place."""
    where = parse(listen)
    if isinstance(where, str) and where in _bound:
        inode = _bound.pop(where)
        if os.path.exists(where) and os.stat(where).st_ino == inode:
            os.unlink(where)


def name(sock: socket.socket) -> str:
    """The address that `sock` is bound to, in the form `parse` reads."""
    if sock.family == socket.AF_UNIX:
        return f"unix:{os.fsdecode(sock.getsockname())}"
    host, port = sock.getsockname()[:2]
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _remove_stale(path: str) -> None:
    try:
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(f"{path}: exists and is not a socket; remove it or listen somewhere else")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
    raise FileExistsError(f"{path}: another process is listening there; stop it or listen somewhere else")
