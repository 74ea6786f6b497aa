"""Envoy Gateway (gateway.envoyproxy.io/v1alpha1, seen with 1.9) and Gateway API objects for a policy.

The external processor is attached to the routes, because Envoy Gateway enables the filter a route at a time: a request
whose first match lacks it never reaches the router.
"""

from __future__ import annotations

import math
from typing import Any

from cli.gateways.envoy import (
    BODY_SLACK,
    DECISION_HEADER,
    JWT,
    MESSAGE_SLACK_S,
    METADATA,
    OUR_HEADERS,
    ROUTE_HEADER,
    TOLD_HEADERS,
    access_log,
    within,
)
from cli.gateways.kubernetes import Cluster, fqdn, named, object_name, port
from cli.gateways.place import Place, RenderError, Upstream, is_ip, upstreams
from decisions.engine import Engine

EG = "gateway.envoyproxy.io/v1alpha1"
GATEWAY = "gateway.networking.k8s.io/v1"
NAME = "pointsman"
RULES = 15  # an HTTPRoute holds 16 rules; one is kept for the default


def render(engine: Engine, place: Place, cluster: Cluster) -> list[dict[str, Any]]:
    """The objects, in the order in which they are best applied. Raises RenderError for a model without a server."""
    servers = upstreams(engine, place)
    routes = _routes(engine, servers, cluster)
    if place.steps is not None:
        routes.append(_steps_route(place.steps, cluster))
    duplex = within(engine, place)
    references = [
        {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": route["metadata"]["name"]}
        for route in routes
    ]
    return [
        _proxy(cluster),
        _gateway(place, cluster),
        *(_backend(server, cluster) for server in servers),
        *routes,
        _extension_policy(engine, duplex, cluster, references),
        _client_policy(engine, duplex, cluster),
        _traffic_policy(cluster, references),
    ]


def _proxy(cluster: Cluster) -> dict[str, Any]:
    log = {
        "settings": [
            {
                "format": {"type": "JSON", "json": access_log("envoy.filters.http.ext_proc/extproc/0")},
                "sinks": [{"type": "File", "file": {"path": "/dev/stdout"}}],
            }
        ]
    }
    return named("EnvoyProxy", EG, NAME, cluster.namespace, {"telemetry": {"accessLog": log}})


def _gateway(place: Place, cluster: Cluster) -> dict[str, Any]:
    spec = {
        "gatewayClassName": "eg",
        "infrastructure": {
            "parametersRef": {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": NAME},
        },
        "listeners": [
            {
                "name": "http",
                "protocol": "HTTP",
                "port": int(place.listen.rpartition(":")[2]),
                "allowedRoutes": {"namespaces": {"from": "Same"}},
            }
        ],
    }
    return named("Gateway", GATEWAY, NAME, cluster.namespace, spec)


def _backend(server: Upstream, cluster: Cluster) -> dict[str, Any]:
    if is_ip(server.host):
        endpoint: dict[str, Any] = {"ip": {"address": server.host, "port": server.port}}
    elif "." not in server.host:
        raise RenderError(f"model {server.key}: {server.host!r} is not a full name: write it as name.namespace.svc")
    else:
        endpoint = {"fqdn": {"hostname": fqdn(server), "port": server.port}}
    spec: dict[str, Any] = {"endpoints": [endpoint]}
    if server.tls:
        spec["tls"] = {"wellKnownCACertificates": "System", **({} if is_ip(server.host) else {"sni": server.host})}
    return named("Backend", EG, object_name(server.key), cluster.namespace, spec)


def _routes(engine: Engine, servers: list[Upstream], cluster: Cluster) -> list[dict[str, Any]]:
    """HTTPRoutes with a rule for each model by the route header, and the default last."""
    by_key = {server.key: server for server in servers}
    routes = []
    for start in range(0, len(servers), RULES):
        chunk = servers[start : start + RULES]
        rules = [_rule(server, [{"type": "Exact", "name": ROUTE_HEADER, "value": server.key}]) for server in chunk]
        if start == 0:
            rules.append(_rule(by_key[engine.default.key], []))
        name = NAME if start == 0 else f"{NAME}-{start // RULES + 1}"
        spec = {"parentRefs": [{"name": NAME}], "rules": rules}
        routes.append(named("HTTPRoute", GATEWAY, name, cluster.namespace, spec))
    return routes


def _steps_route(where: str, cluster: Cluster) -> dict[str, Any]:
    """Requests whose stepwise decision the router answers over HTTP. They carry the route header of a model too, so two
    matches are what makes this rule win (Gateway API: the largest number of header matches)."""
    headers = [{"type": "RegularExpression", "name": name, "value": ".+"} for name in (DECISION_HEADER, ROUTE_HEADER)]
    match = {"path": {"type": "PathPrefix", "value": "/"}, "headers": headers}
    rule = {"matches": [match], "backendRefs": [{"name": cluster.service, "port": port(where)}]}
    return named(
        "HTTPRoute", GATEWAY, f"{NAME}-stepwise", cluster.namespace, {"parentRefs": [{"name": NAME}], "rules": [rule]}
    )


def _rule(server: Upstream, headers: list[dict[str, str]]) -> dict[str, Any]:
    match: dict[str, Any] = {"path": {"type": "PathPrefix", "value": "/"}}
    if headers:
        match["headers"] = headers
    rewrite: dict[str, Any] = {} if is_ip(server.host) else {"hostname": server.host}
    if server.path:
        rewrite["path"] = {"type": "ReplacePrefixMatch", "replacePrefixMatch": f"{server.path}/"}
    # See TOLD_HEADERS: the model's copies go before ext_proc adds ours.
    filters = [{"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": list(TOLD_HEADERS)}}]
    if rewrite:
        filters.insert(0, {"type": "URLRewrite", "urlRewrite": rewrite})
    rule: dict[str, Any] = {"matches": [match], "filters": filters}
    reference = {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": object_name(server.key)}
    return rule | {"backendRefs": [reference]}


def _extension_policy(engine: Engine, duplex: bool, cluster: Cluster, routes: list[dict[str, str]]) -> dict[str, Any]:
    mode: dict[str, Any] = {
        "allowModeOverride": True,
        "request": {"body": "FullDuplexStreamed" if duplex else "Buffered"},
    }
    if engine.metered:
        mode["response"] = {"body": "Streamed"}  # budgets read the usage at the end of an answer
    elif engine.settings.response_headers:
        mode["response"] = {}  # present and empty: the headers, without the body
    processor: dict[str, Any] = {
        "backendRefs": [{"kind": "Service", "name": cluster.service, "port": cluster.port}],
        "messageTimeout": _duration(engine.settings.deadline + MESSAGE_SLACK_S),
        "processingMode": mode,
        "metadata": {"accessibleNamespaces": [JWT], "writableNamespaces": [METADATA]},
    }
    if not duplex:  # Envoy Gateway refuses failOpen with FullDuplexStreamed
        processor["failOpen"] = engine.settings.fail_open
    spec = {"targetRefs": routes, "extProc": [processor]}
    return named("EnvoyExtensionPolicy", EG, NAME, cluster.namespace, spec)


def _client_policy(engine: Engine, duplex: bool, cluster: Cluster) -> dict[str, Any]:
    spec: dict[str, Any] = {
        "targetRefs": [{"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": NAME}],
        "headers": {"earlyRequestHeaders": {"remove": list(OUR_HEADERS)}},
    }
    if not duplex:  # the default is 32 KiB, and a longer prompt would get 413 from Envoy
        limit = math.ceil((engine.settings.max_body + BODY_SLACK) / 1024)
        spec["connection"] = {"bufferLimit": f"{limit}Ki"}
    return named("ClientTrafficPolicy", EG, NAME, cluster.namespace, spec)


def _traffic_policy(cluster: Cluster, routes: list[dict[str, str]]) -> dict[str, Any]:
    # A stream of tokens may last for as long as it has something to say.
    timeout = {"http": {"requestTimeout": "0s", "streamIdleTimeout": "15m"}}
    retry = {"numRetries": 2, "retryOn": {"triggers": ["connect-failure", "refused-stream"]}}
    return named(
        "BackendTrafficPolicy", EG, NAME, cluster.namespace, {"targetRefs": routes, "timeout": timeout, "retry": retry}
    )


def _duration(seconds: float) -> str:
    """Gateway API duration (GEP-2257): whole milliseconds."""
    return f"{round(seconds * 1000)}ms"
