"""What the Kubernetes targets of `render` share: names, namespaces, the gateway, and where the router's Service is."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from cli.called import CalledWrongly
from cli.gateways.place import Place, Upstream, endpoint, is_ip

NAME = "pointsman"
PORT = 50051
"""The ext_proc port of the router's Service in our manifests."""
_LABEL = re.compile(r"[a-z0-9](?:[-a-z0-9]{0,61}[a-z0-9])?")
_DOMAIN = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[-a-z0-9]*[a-z0-9])?(?:\.[a-z0-9](?:[-a-z0-9]*[a-z0-9])?)*")
_LABEL_KEY = re.compile(r"(?:[a-z0-9.-]{1,253}/)?[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_LABEL_VALUE = re.compile(r"(?:[A-Za-z0-9](?:[-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?")
_IN_CLUSTER = re.compile(r"([^.]+)\.([^.]+)\.svc(?:\.cluster\.local)?")


@dataclass(frozen=True, slots=True)
class Front:
    """The gateway that clients call.

    `name`: a Gateway that is there already (Istio's own: NAMESPACE/NAME), and whose listener `section` is used (None:
    any of them); None: one of our own is written. `namespace` is that Gateway's, or (Istio's own) where the gateway's
    pods run; None: the usual one. `class_name` is the GatewayClass of our own one, None: the usual one. `hosts` are the
    names that clients call, none: every name. `tls` is the Secret with the certificate of our own one, None: plain
    HTTP. `labels` are those of Istio's gateway pods. `gateway_api`: Istio gets objects of the Gateway API.
    """

    name: str | None = None
    namespace: str | None = None
    section: str | None = None
    class_name: str | None = None
    hosts: tuple[str, ...] = ()
    tls: str | None = None
    labels: Mapping[str, str] = field(default_factory=lambda: {"istio": "ingressgateway"})
    gateway_api: bool = False


@dataclass(frozen=True, slots=True)
class Cluster:
    """`namespace` holds the rendered objects and the router's Service (`service`, `port`); `front` is the gateway."""

    namespace: str = NAME
    service: str = NAME
    port: int = PORT
    front: Front = Front()

    @property
    def host(self) -> str:
        return f"{self.service}.{self.namespace}.svc.cluster.local"


def router(service: str | None, address: str | None, namespace: str) -> tuple[str, int]:
    """Name and port of the router's Service, from `--service NAME[:PORT]` and `--router HOST:PORT`.

    The address says what the other leaves open. Raises CalledWrongly, also where the two, or the namespace, disagree.
    """
    name, colon, text = (service or "").partition(":")
    option, number = "--service", PORT
    if colon:
        if not text.isdecimal() or not 0 < int(text) < 65_536:
            raise CalledWrongly(f"--service {service}: write NAME or NAME:PORT, as in --service pointsman:50051")
        number = int(text)
    if address is not None:
        found = "" if "," in address else endpoint(address, "--router")
        if isinstance(found, str):
            raise CalledWrongly(f"--router {address}: in Kubernetes give the router's Service, as NAME:PORT")
        host, *rest = [found[0]] if is_ip(found[0]) else found[0].split(".")
        if rest and rest[0] != namespace:
            raise CalledWrongly(f"--router {address}: the router is in the namespace {namespace!r}: see --namespace")
        if colon and found[1] != number:
            raise CalledWrongly(f"--router {address}: --service {service} says another port")
        number = found[1]
        if not name and host and not is_ip(host):
            name, option = host, "--router"
    return label(name or NAME, option), number


def listening(place: Place, front: Front) -> int:
    """The port of `--listen`. Raises CalledWrongly where there is none, or where it and `--tls` do not fit together."""
    found = endpoint(place.listen, "--listen")
    if isinstance(found, str):
        raise CalledWrongly("--listen: a gateway in Kubernetes has no Unix socket: give host:port")
    if found[1] == 443 and front.tls is None:
        raise CalledWrongly(
            "--listen: port 443 is for TLS: name the Secret with the gateway's certificate (--tls), or another port"
        )
    return found[1]


def listener(place: Place, front: Front) -> dict[str, Any]:
    """The listener of a Gateway of our own (Gateway API)."""
    name = "http" if front.tls is None else "https"
    made: dict[str, Any] = {"name": name, "protocol": name.upper(), "port": listening(place, front)}
    if front.tls is not None:
        made["tls"] = {"mode": "Terminate", "certificateRefs": [{"kind": "Secret", "name": front.tls}]}
    return {**made, "allowedRoutes": {"namespaces": {"from": "Same"}}}


def label(text: str, option: str) -> str:
    """`text`, which is a name as RFC 1123 has labels (Services, namespaces). Raises CalledWrongly."""
    if _LABEL.fullmatch(text) is None:
        raise CalledWrongly(
            f"{option} {text!r}: Kubernetes takes small letters, digits and hyphens here, at most 63, with a letter or "
            "a digit at both ends"
        )
    return text


def domain(text: str, option: str) -> str:
    """`text`, which is a name as RFC 1123 has subdomains (most objects). Raises CalledWrongly."""
    if _DOMAIN.fullmatch(text) is None:
        raise CalledWrongly(
            f"{option} {text!r}: Kubernetes takes small letters, digits, hyphens and dots here, at most 253, with a "
            "letter or a digit beside every dot and at both ends"
        )
    return text


def host_name(text: str) -> str:
    """A host name of `--host`, which may begin with `*.`. Raises CalledWrongly."""
    domain(text.removeprefix("*."), "--host")
    return text


def labels(texts: list[str]) -> dict[str, str]:
    """The labels in `KEY=VALUE[,KEY=VALUE…]` of `--gateway-labels`. Raises CalledWrongly."""
    found = {}
    for text in [one for each in texts for one in each.split(",")]:
        key, equals, value = text.partition("=")
        if not equals or _LABEL_KEY.fullmatch(key) is None or _LABEL_VALUE.fullmatch(value) is None:
            raise CalledWrongly(f"--gateway-labels {text!r}: write KEY=VALUE, as in istio=ingressgateway")
        found[key] = value
    return found


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
    """The port of `host:port` (`--writers`), which the router's Service has too. Raises CalledWrongly."""
    found = endpoint(where, "--writers")
    if isinstance(found, str):
        raise CalledWrongly("--writers: a Service has no Unix socket: give host:port")
    return found[1]


def fqdn(server: Upstream) -> str:
    """The server's host as cluster DNS knows it: `name.namespace.svc` gets the cluster's own suffix."""
    return f"{server.host}.cluster.local" if server.host.endswith(".svc") else server.host


def service_of(server: Upstream) -> tuple[str, str] | None:
    """Name and namespace of the Service that `server` is; None where its host is no Service's name."""
    found = _IN_CLUSTER.fullmatch(server.host)
    return (found[1], found[2]) if found else None


def parents(front: Front) -> list[dict[str, Any]]:
    """`parentRefs` of the routes."""
    reference = {"name": front.name or NAME}
    if front.name is not None and front.namespace is not None:
        reference["namespace"] = front.namespace
    if front.section is not None:
        reference["sectionName"] = front.section
    return [reference]
