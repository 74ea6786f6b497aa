"""Where things are: the addresses that a rendered configuration connects, and how they are read."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from cli.called import CalledWrongly
from decisions.engine import Engine
from decisions.model import Credential, Model, before
from extproc.transport import address


class RenderError(ValueError):
    """The configuration of this gateway cannot be written for this policy; the text says why and what to do."""


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
    for an Envoy before 1.40 (None: within the exchange). `secrets` is the folder in which Envoy finds the models'
    credentials (SDS), `variables` that with those which are in environment variables (None: in the bootstrap);
    `origins` are those of the web pages that may call from a browser (CORS). `examples` are the models for which `up`
    has put example servers into `upstreams`: their calls are under `/v1`, and they want no credentials. `duplex`:
    bodies are handed over as they come, whatever the policy needs."""

    listen: str = "0.0.0.0:10000"
    router: str = "127.0.0.1:50051"
    admin: str | None = "127.0.0.1:9901"
    upstreams: Mapping[str, str] = field(default_factory=dict)
    mtls: Mtls | Secrets | None = None
    internal: str | None = None
    steps: str | None = None
    secrets: str | None = None
    variables: str | None = None
    origins: tuple[str, ...] = ()
    examples: frozenset[str] = frozenset()
    duplex: bool = False


@dataclass(frozen=True, slots=True)
class Upstream:
    """One model's server.

    `path` is what stands before the base path of its API (empty for most). `base` is that base path, where the policy
    gives one; None: what the client has there stays, nearly always `/v1`. `name` is the model's in bodies.
    `fallback` are the servers that take its place when it fails, one after the other; `per_try_timeout` and
    `health_check` are the model's.
    """

    key: str
    host: str
    port: int
    tls: bool
    path: str
    base: str | None = None
    name: str = ""
    credential: Credential | None = None
    fallback: tuple[Upstream, ...] = ()
    per_try_timeout: float | None = None
    health_check: str | None = None

    @property
    def literal(self) -> bool:
        """Whether `host` is an IP address and needs no DNS."""
        return is_ip(self.host)

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def upstreams(engine: Engine, place: Place) -> list[Upstream]:
    """Every model's server, in the policy's order. Raises CalledWrongly naming all models that have none."""
    urls = {key: place.upstreams.get(key) or model.url for key, model in engine.models.items()}
    unknown = sorted(set(place.upstreams) - set(urls))
    if unknown:
        raise CalledWrongly(f"--upstream: no such model in the policy: {', '.join(unknown)}")
    missing = [key for key, url in urls.items() if not url]
    if missing:
        raise CalledWrongly(
            f"no upstream for {', '.join(missing)}: give the model a `url:` in the policy, "
            f"or --upstream {missing[0]}=URL"
        )
    servers: dict[str, Upstream] = {}
    for key, url in urls.items():
        servers[key] = _upstream(engine.models[key], url or "", place)
    return [
        replace(server, fallback=tuple(servers[other.key] for other in engine.models[key].fallback))
        for key, server in servers.items()
    ]


def endpoint(where: str, what: str) -> str | tuple[str, int]:
    """A Unix socket's path, or host and port. Raises CalledWrongly that names the option."""
    try:
        return address.parse(where)
    except ValueError as error:
        raise CalledWrongly(f"{what}: {error}") from error


def is_ip(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def unfit(place: Place, key: str, why: str) -> ValueError:
    """The error that a model's server cannot stand in a configuration: the policy's, or the call's that names it."""
    return CalledWrongly(f"--upstream {key}: {why}") if key in place.upstreams else RenderError(f"model {key}: {why}")


def _upstream(model: Model, url: str, place: Place) -> Upstream:
    key, example = model.key, model.key in place.examples
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError as error:
        raise unfit(place, key, f"url {url!r}: {error}") from error
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise unfit(place, key, f"url {url!r}: write http://host:port or https://host, a path is optional")
    tls = parts.scheme == "https"
    base = None if example else model.base_path
    path = before(parts.path, base)
    made = Upstream(key, parts.hostname, port or (443 if tls else 80), tls, path, base, model.name)
    if example:
        return made
    return replace(
        made,
        credential=model.credential,
        per_try_timeout=model.per_try_timeout,
        health_check=model.health_check,
    )
