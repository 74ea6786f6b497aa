"""Istio objects for a policy: an EnvoyFilter on the ingress gateway, routes, and the way to the router.

The filter goes in right before Envoy's router filter, so that authentication has run; INSERT_FIRST would come before.
"""

from __future__ import annotations

from typing import Any

from cli.gateways import allowed, browsers, replies
from cli.gateways.envoy import DECISION_HEADER, HOP_HEADER, OUR_HEADERS, ROUTE_HEADER, ext_proc, within
from cli.gateways.kubernetes import Cluster, fqdn, named, object_name, port
from cli.gateways.parts import BODY_SLACK, EXT_PROC, STREAM_IDLE_S, TOLD_HEADERS, access_log, as_dict, packed
from cli.gateways.place import Place, RenderError, Upstream, upstreams
from decisions.engine import Engine

NAME = "pointsman"
NETWORKING = "networking.istio.io/v1"
ENVOY_FILTER = "networking.istio.io/v1alpha3"
SELECTOR = {"istio": "ingressgateway"}
CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"
ROUTER_FILTER = "envoy.filters.http.router"
CALLS = {"regex": allowed.CALLS}


def render(engine: Engine, place: Place, cluster: Cluster) -> list[dict[str, Any]]:
    """The objects, in the order in which they are best applied. Raises RenderError for a model without a server."""
    servers = upstreams(engine, place)
    for server in servers:
        if server.literal or "." not in server.host:
            raise RenderError(
                f"model {server.key}: Istio routes to services by name: write {server.host!r} as name.namespace.svc "
                "or as a ServiceEntry's host"
            )
    routes = _routes(engine, servers, place, cluster)
    names = [rule["name"] for rule in routes["spec"]["http"]]
    return [
        _gateway(place, cluster),
        routes,
        _way_to_router(cluster),
        *(_way_to_model(server, cluster) for server in servers if server.tls),
        _filter(engine, place, cluster, names),
    ]


def left_out(engine: Engine) -> list[str]:
    """What Istio's objects cannot do of the policy."""
    texts = []
    for key, model in engine.models.items():
        if model.fallback:
            texts.append(f"model {key}: Istio fails over within one service only, so `fallback` is the router's alone")
        if model.credential is not None:
            texts.append(
                f"model {key}: Istio has no object that puts a credential on the way to one service; let the service "
                "or a proxy before it add it"
            )
    return texts


def _gateway(place: Place, cluster: Cluster) -> dict[str, Any]:
    port = {"number": int(place.listen.rpartition(":")[2]), "name": "http", "protocol": "HTTP"}
    spec = {"selector": SELECTOR, "servers": [{"port": port, "hosts": ["*"]}]}
    return named("Gateway", NETWORKING, NAME, cluster.namespace, spec)


def _routes(engine: Engine, servers: list[Upstream], place: Place, cluster: Cluster) -> dict[str, Any]:
    by_key = {server.key: server for server in servers}
    default = by_key[engine.default.key]
    rules = [] if place.steps is None else [_steps_rule(place.steps, cluster)]
    for name, server, chosen in [*((f"model-{s.key}", s, _chosen(s)) for s in servers), ("default", default, {})]:
        if not engine.settings.pass_unread:
            rules.append(_rule(name, server, {"uri": CALLS, **chosen}, allowed.to_call(server)))
            continue
        if server.base is not None:
            rules.append(_rule(f"{name}-calls", server, {"uri": CALLS, **chosen}, allowed.to_call(server)))
        rules.append(_rule(name, server, {"uri": {"prefix": "/"}, **chosen}))
    if not engine.settings.pass_unread:
        for number, opened in enumerate(allowed.opened(engine), 1):
            uri = {"exact" if opened.exact else "regex": opened.text}
            server = by_key[opened.to]
            rules.append(_rule(f"path-{number}", server, {"uri": uri}, allowed.to_opened(server, opened)))
        rules.append(_refusal())
    if place.origins:
        for rule in rules:
            rule["corsPolicy"] = _cors(place.origins)
    spec = {"hosts": ["*"], "gateways": [NAME], "http": rules}
    return named("VirtualService", NETWORKING, NAME, cluster.namespace, spec)


def _chosen(server: Upstream) -> dict[str, Any]:
    return {"headers": {ROUTE_HEADER: {"exact": server.key}}}


def _cors(origins: tuple[str, ...]) -> dict[str, Any]:
    return {"allowOrigins": [{"exact": origin} for origin in origins], **browsers.fields()}


def _rule(name: str, server: Upstream, match: dict[str, Any], put: allowed.Rewrite | None = None) -> dict[str, Any]:
    rewrite: dict[str, Any] = {"authority": server.authority}
    if server.path and "prefix" in match["uri"]:
        rewrite["uri"] = f"{server.path}/"
    elif put is not None:  # `uri` would put it in the place of all that was matched
        rewrite["uriRegexRewrite"] = {"match": put.pattern, "rewrite": put.substitution}
    # No `timeout`: Istio then has none, as a stream of tokens needs; it refuses to be told 0.
    return {
        "name": f"{NAME}-{name}",
        "match": [match | {"uri": dict(match["uri"])}],  # a copy: YAML would write one that stands twice as an alias
        "route": [{"destination": {"host": fqdn(server), "port": {"number": server.port}}}],
        "rewrite": rewrite,
        "headers": {"response": {"remove": list(TOLD_HEADERS)}},  # the model's copies, before ext_proc adds ours
        "retries": {"attempts": 2, "retryOn": "connect-failure,refused-stream"},
    }


def _refusal() -> dict[str, Any]:
    return {
        "name": f"{NAME}-refused",
        "match": [{"uri": {"prefix": "/"}}],
        "directResponse": {"status": allowed.STATUS, "body": {"string": allowed.BODY}},
        "headers": {"response": {"set": {"content-type": allowed.CONTENT_TYPE}}},
    }


def _steps_rule(where: str, cluster: Cluster) -> dict[str, Any]:
    """Requests whose stepwise decision the router answers over HTTP; its own, with the hop header, never match."""
    match = {"uri": {"prefix": "/"}, "headers": {DECISION_HEADER: {}}, "withoutHeaders": {HOP_HEADER: {}}}
    destination = {"host": cluster.host, "port": {"number": port(where)}}
    retries = {"attempts": 2, "retryOn": "connect-failure,refused-stream"}
    return {"name": f"{NAME}-stepwise", "match": [match], "route": [{"destination": destination}], "retries": retries}


def _way_to_router(cluster: Cluster) -> dict[str, Any]:
    # No `tls`: Istio then uses mutual TLS of its own when the router has a sidecar, and plaintext when it has none.
    policy = {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "http2MaxRequests": 65536}}}
    spec = {"host": cluster.host, "trafficPolicy": policy}
    return named("DestinationRule", NETWORKING, NAME, cluster.namespace, spec)


def _way_to_model(server: Upstream, cluster: Cluster) -> dict[str, Any]:
    spec = {"host": fqdn(server), "trafficPolicy": {"tls": {"mode": "SIMPLE", "sni": server.host}}}
    return named("DestinationRule", NETWORKING, object_name(server.key), cluster.namespace, spec)


def _filter(engine: Engine, place: Place, cluster: Cluster, routes: list[str]) -> dict[str, Any]:
    """The filter itself, and what its connection manager and listener must do for it.

    It is switched off except for our own `routes` (their names), so that other hosts of the gateway are not affected.
    """
    processor = packed(ext_proc(engine, f"outbound|{cluster.port}||{cluster.host}", duplex=within(engine, place)))
    manager = {"filterChain": {"filter": {"name": CONNECTION_MANAGER}}}
    mutations = [{"remove": name} for name in OUR_HEADERS]
    early = {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": mutations,
        },
    }
    log = {
        "name": "envoy.access_loggers.stdout",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": access_log()},
        },
    }
    connection = {
        "@type": "type.googleapis.com/"
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stream_idle_timeout": f"{STREAM_IDLE_S}s",
        "early_header_mutation_extensions": [early],
        "access_log": [log],
        "local_reply_config": as_dict(replies.config()),
    }
    patches = [
        _patch(
            "HTTP_FILTER",
            {"filterChain": {"filter": {"name": CONNECTION_MANAGER, "subFilter": {"name": ROUTER_FILTER}}}},
            {"operation": "INSERT_BEFORE", "value": {"name": EXT_PROC, "disabled": True, "typed_config": processor}},
        ),
        *(_switched_on(route) for route in routes),
        _patch("NETWORK_FILTER", manager, {"operation": "MERGE", "value": {"typed_config": connection}}),
    ]
    if not within(engine, place):
        limit = {"per_connection_buffer_limit_bytes": engine.settings.max_body + BODY_SLACK}
        patches.append(_patch("LISTENER", {}, {"operation": "MERGE", "value": limit}))
    spec = {"workloadSelector": {"labels": SELECTOR}, "configPatches": patches}
    # Where the gateway runs: an EnvoyFilter acts on workloads of its own namespace only.
    return named("EnvoyFilter", ENVOY_FILTER, NAME, "istio-system", spec)


def _switched_on(route: str) -> dict[str, Any]:
    switch = {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
            "overrides": {},
        },
    }
    match = {"context": "GATEWAY", "routeConfiguration": {"vhost": {"route": {"name": route}}}}
    value = {"typed_per_filter_config": {EXT_PROC: switch}}
    return {"applyTo": "HTTP_ROUTE", "match": match, "patch": {"operation": "MERGE", "value": value}}


def _patch(apply_to: str, listener: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    match: dict[str, Any] = {"context": "GATEWAY"}
    if listener:
        match["listener"] = listener
    return {"applyTo": apply_to, "match": match, "patch": patch}
