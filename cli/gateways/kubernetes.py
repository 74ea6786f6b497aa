"""What the Kubernetes targets of `render` share: names, namespaces, and where the router's Service is."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

from cli.gateways.place import RenderError, Upstream, endpoint


@dataclass(frozen=True, slots=True)
class Cluster:
    """`namespace` holds the rendered objects and the router's Service (`service`, `port`)."""

    namespace: str = "pointsman"
    service: str = "pointsman"
    port: int = 50051

    @property
    def host(self) -> str:
        return f"{self.service}.{self.namespace}.svc.cluster.local"


def named(kind: str, api: str, name: str, namespace: str, spec: dict[str, Any]) -> dict[str, Any]:
    """One Kubernetes object."""
    return {
        "apiVersion": api,
        "kind": kind,
        "metadata": {"name": name, "namespace": namespace, "labels": {"app.kubernetes.io/part-of": "pointsman"}},
        "spec": spec,
    }


def object_name(key: str) -> str:
    """A model key as part of an object's name (RFC 1123); one that has to be changed gets a hash to stay unique."""
    plain = re.sub(r"[^a-z0-9-]+", "-", key.lower()).strip("-")[:40]
    return f"model-{plain}" if plain == key else f"model-{plain}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def port(where: str) -> int:
    """The port of `host:port` (`--stepwise`), which the router's Service has too. Raises RenderError."""
    found = endpoint(where, "--stepwise")
    if isinstance(found, str):
        raise RenderError("--stepwise: a Service has no Unix socket: give host:port")
    return found[1]


def fqdn(server: Upstream) -> str:
    """The server's host as cluster DNS knows it: `name.namespace.svc` gets the cluster's own suffix."""
    return f"{server.host}.cluster.local" if server.host.endswith(".svc") else server.host
