"""Where things are: the addresses that a rendered configuration connects, and how they are read."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from decisions.engine import Engine
from extproc.transport import address


class RenderError(ValueError):
    """The configuration cannot be written; the text says what is missing and what to do."""


@dataclass(frozen=True, slots=True)
class Mtls:
    """Files on Envoy's machine: the authority that signed the router's certificate, and Envoy's own certificate."""

    ca: str
    cert: str | None = None
    key: str | None = None


@dataclass(frozen=True, slots=True)
class Secrets:
    """A folder with Envoy's secrets (SDS) in `router-ca.yaml` and `router-cert.yaml`.

    Only certificates that are named there are read again when they are renewed.
    """

    folder: str


@dataclass(frozen=True, slots=True)
class Place:
    """`listen` and `router` are `host:port`; `router` may be `unix:PATH` too, or several addresses with commas between.
    `upstreams` are URLs by model key and win over the policy's own. `admin` is Envoy's admin address (None: no admin
    port). `internal` is where the router's own calls of the models come in, for stepwise decisions (None: they go to
    the models' own addresses). `steps` is where the router answers stepwise decisions over HTTP, written as `router`,
    for an Envoy before 1.40 (None: within the exchange)."""

    listen: str = "0.0.0.0:10000"
    router: str = "127.0.0.1:50051"
    admin: str | None = "127.0.0.1:9901"
    upstreams: Mapping[str, str] = field(default_factory=dict)
    mtls: Mtls | Secrets | None = None
    internal: str | None = None
    steps: str | None = None


@dataclass(frozen=True, slots=True)
class Upstream:
    """One model's server. `path` is what stands before `/v1` (empty for most)."""

    key: str
    host: str
    port: int
    tls: bool
    path: str

    @property
    def literal(self) -> bool:
        """Whether `host` is an IP address and needs no DNS."""
        return is_ip(self.host)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def upstreams(engine: Engine, place: Place) -> list[Upstream]:
    """Every model's server, in the policy's order. Raises RenderError naming all models that have none."""
    urls = {key: place.upstreams.get(key) or model.url for key, model in engine.models.items()}
    unknown = sorted(set(place.upstreams) - set(urls))
    if unknown:
        raise RenderError(f"no such model in the policy: {', '.join(unknown)}")
    missing = [key for key, url in urls.items() if not url]
    if missing:
        raise RenderError(
            f"no upstream for {', '.join(missing)}: give the model a `url:` in the policy, "
            f"or --upstream {missing[0]}=URL"
        )
    return [_upstream(key, url) for key, url in urls.items() if url]


def endpoint(where: str, what: str) -> str | tuple[str, int]:
    """A Unix socket's path, or host and port. Raises RenderError that names the option."""
    try:
        return address.parse(where)
    except ValueError as error:
        raise RenderError(f"{what}: {error}") from error


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _upstream(key: str, url: str) -> Upstream:
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise RenderError(f"model {key}: url {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise RenderError(f"model {key}: url {url!r}: write http://host:port or https://host, a path is optional")
    tls = parts.scheme == "https"
    path = parts.path.rstrip("/").removesuffix("/v1")
    return Upstream(key, parts.hostname, port or (443 if tls else 80), tls, path)
