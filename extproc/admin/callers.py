"""Who may ask the admin port: by which name, from which page, with which token.

A foreign web page must not read the port through its visitor's browser. The page's owner can let a name of theirs
resolve to our address (DNS rebinding), but the request then carries that name; so requests that name another host than
ours are refused. Requests that name an IP address are served, since the kubelet and Prometheus use the pod's.
"""

from __future__ import annotations

import hmac
import ipaddress
import logging
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Final, NamedTuple

from signals.files import read

log = logging.getLogger(__name__)

LEAST_TOKEN: Final = 16
"""Characters of a token; it is guessed by nobody who asks a few thousand times a second."""
MOST_TOKEN: Final = 4_096


class Guard(Enum):
    """What a route of the admin port asks of its caller.

    NOTHING: probes and scrapes. SHELL: what holds nothing of this router, so that a browser can ask for the token.
    TOKEN: a token, where the router has one. CLOSE: the same; and without one, that the port is on a loopback address
    or a Unix socket.
    """

    NOTHING = 0
    SHELL = 1
    TOKEN = 2
    CLOSE = 3


class Denial(NamedTuple):
    """Why a request is not answered: the status, and a line for its sender."""

    status: int
    why: str


Headers = Mapping[str, list[str]]
"""The values of each header of a request, by its name in small letters."""


class Callers:
    """Decides about requests. `hosts` are names, beside `localhost`, under which they may come; `token` is the file
    of the secret that they must carry (`authorization: Bearer SECRET`), read anew each time so that it can be replaced.

    Raises ValueError where `token` cannot be read or is too short.
    """

    def __init__(self, hosts: Iterable[str] = (), token: Path | None = None) -> None:
        self._hosts = frozenset(map(_name, (*hosts, "localhost")))
        self._token = token
        if token is not None:
            try:
                secret(token)
            except OSError as error:
                raise ValueError(f"{token}: it cannot be read: {error.strerror or error}") from None

    def foreign(self, target: str, headers: Headers) -> Denial | None:
        """The refusal of a request that names another host than ours, or comes from a page of another site."""
        authorities = headers.get("host", [])
        if not target.startswith("/"):  # absolute form: it counts instead of Host (RFC 9112, section 3.2.2)
            authorities = [*authorities, target.partition("://")[2].partition("/")[0]]
        if not all(map(self._known, authorities)):
            return Denial(421, "not a name of this server: --admin-host NAME allows one")
        for origin in headers.get("origin", ()):
            if origin.partition("://")[2].lower() not in map(str.lower, authorities):
                return Denial(403, "pages of other sites may not read this")
        # Browsers send no Origin for a picture or a script of another site, but this (W3C Fetch Metadata).
        elsewhere = {"cross-site", "same-site"} & set(headers.get("sec-fetch-site", ()))
        if elsewhere and headers.get("sec-fetch-mode") != ["navigate"]:
            return Denial(403, "pages of other sites may not read this")
        return None

    def denied(self, guard: Guard, headers: Headers, *, close: bool) -> Denial | None:
        """Why a route with this guard does not answer. `close`: the port cannot be reached from other machines."""
        if guard is Guard.NOTHING:
            return None
        if self._token is None:
            if close or guard is Guard.TOKEN:
                return None
            return Denial(403, "this port can be reached from other machines: it needs --admin-token-file FILE")
        if guard is Guard.SHELL:
            return None
        given = headers.get("authorization", [])
        try:
            wanted = f"Bearer {secret(self._token)}"
        except (OSError, ValueError) as error:
            log.error("admin_token_unreadable", extra={"path": str(self._token), "why": type(error).__name__})
            return Denial(503, "the token cannot be read; see the log")
        if len(given) == 1 and hmac.compare_digest(given[0].encode("latin-1"), wanted.encode()):
            return None
        return Denial(401, "it needs the token: `authorization: Bearer TOKEN`, with that of --admin-token-file")

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


def secret(file: Path) -> str:
    """The token in `file`, without the blanks and ends of lines around it.

    Raises OSError, and ValueError for what no header can carry or is too short.
    """
    found = read(file, MOST_TOKEN).decode("latin-1").strip()
    if len(found) < LEAST_TOKEN:
        raise ValueError(f"{file}: a token of at least {LEAST_TOKEN} characters is needed (openssl rand -hex 32)")
    if not (found.isascii() and found.isprintable()) or " " in found:
        raise ValueError(f"{file}: a token is printable ASCII without blanks")
    return found


def _is_address(text: str, kind: type[ipaddress.IPv4Address] | type[ipaddress.IPv6Address]) -> bool:
    try:
        kind(text)
    except ValueError:
        return False
    return True


def _name(text: str) -> str:
    """A host's name to compare: in lower case, without the dot of the DNS root."""
    return text.lower().removesuffix(".")
