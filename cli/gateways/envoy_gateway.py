"""Envoy Gateway (gateway.envoyproxy.io/v1alpha1, seen with 1.9) and Gateway API objects for a policy.

The external processor is attached to the routes, because Envoy Gateway enables the filter a route at a time: a request
whose first match lacks it, or that matches none, never reaches the router. So the last rule takes every path. It
answers 404 (HTTPRouteFilter.spec.directResponse), unless the router has refused the request or given it a route.

Of the rules that match a request the first counts in this order (the Gateway API leaves regular expressions open; this
is Envoy Gateway's): exact path, expression, prefix; the longer path; more headers. So every rule about our own calls
has one and the same expression, and their headers decide.
"""

from __future__ import annotations

import math
from typing import Any

from cli.gateways import allowed
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
RULES = 16  # an HTTPRoute holds no more
LONGEST = 1024  # characters of a path in an HTTPRoute
EVERY = {"type": "PathPrefix", "value": "/"}
CALLS = {"type": "RegularExpression", "value": allowed.CALLS}
REFUSED = f"{NAME}-refused"


def render(engine: Engine, place: Place, cluster: Cluster) -> list[dict[str, Any]]:
    """The objects, in the order in which they are best applied. Raises RenderError for a model without a server."""
    servers = upstreams(engine, place)
    calls = EVERY if engine.settings.pass_unread else CALLS
    routes = _routes(_rules(engine, servers), cluster)
    if place.steps is not None:
        routes.append(_steps_route(place.steps, calls, cluster))
    duplex = within(engine, place)
    references = [
        {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": route["metadata"]["name"]}
        for route in routes
    ]
    return [
        _proxy(cluster),
        _gateway(place, cluster),
        *(_backend(server, cluster) for server in servers),
        *([] if engine.settings.pass_unread else _filters(servers, cluster)),
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


def _rules(engine: Engine, servers: list[Upstream]) -> list[dict[str, Any]]:
    """A rule for each model by the route header, the default, the opened paths, and a refusal of the rest."""
    by_key = {server.key: server for server in servers}
    default = by_key[engine.default.key]
    if engine.settings.pass_unread:
        return [*(_rule(server, _chosen(server, EVERY)) for server in servers), _rule(default, {"path": EVERY})]
    rules = [*(_rule(server, _chosen(server, CALLS)) for server in servers), _rule(default, {"path": CALLS})]
    for opened in allowed.opened(engine):
        if len(opened.text) > (LONGEST if opened.exact else len(allowed.CALLS)):  # it would come before our own calls
            raise RenderError(f"paths: an opened path is too long for Envoy Gateway: {opened.text[:80]!r}…")
        path = {"type": "Exact" if opened.exact else "RegularExpression", "value": opened.text}
        rules.append(_rule(by_key[opened.to], {"path": path}))
    return [*rules, {"matches": [{"path": dict(EVERY)}], "filters": [_extension(REFUSED)]}]


def _chosen(server: Upstream, path: dict[str, str]) -> dict[str, Any]:
    return {"path": path, "headers": [{"type": "Exact", "name": ROUTE_HEADER, "value": server.key}]}


def _routes(rules: list[dict[str, Any]], cluster: Cluster) -> list[dict[str, Any]]:
    """As many HTTPRoutes as the rules need."""
    routes = []
    for start in range(0, len(rules), RULES):
        name = NAME if start == 0 else f"{NAME}-{start // RULES + 1}"
        spec = {"parentRefs": [{"name": NAME}], "rules": rules[start : start + RULES]}
        routes.append(named("HTTPRoute", GATEWAY, name, cluster.namespace, spec))
    return routes


def _steps_route(where: str, path: dict[str, str], cluster: Cluster) -> dict[str, Any]:
    """Requests whose stepwise decision the router answers over HTTP. They carry the route header of a model too, so two
    matches are what makes this rule win (Gateway API: the largest number of header matches)."""
    headers = [{"type": "RegularExpression", "name": name, "value": ".+"} for name in (DECISION_HEADER, ROUTE_HEADER)]
    match = {"path": dict(path), "headers": headers}
    rule = {"matches": [match], "backendRefs": [{"name": cluster.service, "port": port(where)}]}
    return named(
        "HTTPRoute", GATEWAY, f"{NAME}-stepwise", cluster.namespace, {"parentRefs": [{"name": NAME}], "rules": [rule]}
    )


def _rule(server: Upstream, match: dict[str, Any]) -> dict[str, Any]:
    rewrite: dict[str, Any] = {} if is_ip(server.host) else {"hostname": server.host}
    if server.path and match["path"] == EVERY:
        rewrite["path"] = {"type": "ReplacePrefixMatch", "replacePrefixMatch": f"{server.path}/"}
    # See TOLD_HEADERS: the model's copies go before ext_proc adds ours.
    filters: list[dict[str, Any]] = [
        {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": list(TOLD_HEADERS)}}
    ]
    if rewrite:
        filters.insert(0, {"type": "URLRewrite", "urlRewrite": rewrite})
    if server.path and match["path"] != EVERY:
        filters.append(_extension(object_name(server.key)))
    reference = {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": object_name(server.key)}
    # A copy of the path: YAML would write one that stands twice as an alias.
    return {"matches": [match | {"path": dict(match["path"])}], "filters": filters, "backendRefs": [reference]}


def _extension(name: str) -> dict[str, Any]:
    reference = {"group": "gateway.envoyproxy.io", "kind": "HTTPRouteFilter", "name": name}
    return {"type": "ExtensionRef", "extensionRef": reference}


def _filters(servers: list[Upstream], cluster: Cluster) -> list[dict[str, Any]]:
    """What the Gateway API has no filter for: the refusal, and a path before ours where an expression has matched."""
    filters = []
    for server in servers:
        if server.path:
            replacement = {"pattern": "^/", "substitution": f"{server.path}/"}
            spec = {"urlRewrite": {"path": {"type": "ReplaceRegexMatch", "replaceRegexMatch": replacement}}}
            filters.append(named("HTTPRouteFilter", EG, object_name(server.key), cluster.namespace, spec))
    body = {"type": "Inline", "inline": allowed.BODY}
    refusal = {"statusCode": allowed.STATUS, "contentType": allowed.CONTENT_TYPE, "body": body}
    return [*filters, named("HTTPRouteFilter", EG, REFUSED, cluster.namespace, {"directResponse": refusal})]


def _extension_policy(engine: Engine, duplex: bool, cluster: Cluster, routes: list[dict[str, str]]) -> dict[str, Any]:
    mode: dict[str, Any] = {
        "allowModeOverride": True,
        "request": {"body": "FullDuplexStreamed" if duplex else "Buffered"},
    }
    if engine.metered:
        mode["response"] = {"body": "Streamed"}  # budgets read the usage at the end of an answer
    elif engine.settings.response_headers or engine.chained:
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
        # Model names have slashes (`/v1/models/Qwen%2FQwen3-8B`): by default Envoy Gateway sends the client elsewhere
        # before the router has seen the path. The router undoes escapes itself, and writes the path that it has read.
        "path": {"escapedSlashesAction": "KeepUnchanged"},
    }
    settings = engine.settings
    if not settings.pass_unread and not settings.openings:  # what goes unread may take its time
        whole = math.ceil(settings.body_timeout + settings.deadline + MESSAGE_SLACK_S)
        spec["timeout"] = {"http": {"requestReceivedTimeout": f"{whole}s"}}
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
