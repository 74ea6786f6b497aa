"""Istio objects for a policy: an EnvoyFilter on the ingress gateway, routes, and the way to the router.

Others share the gateway, so nothing of theirs may change: the filter is there for all and switched on for our routes
alone, which the EnvoyFilter finds by their names, and whatever Envoy has per route (buffer, idle time, credentials) is
set there. What it has for a whole connection manager (the access log, its own answers) is told to look at our routes
alone. The filter goes in right before Envoy's router filter, so that authentication has run; INSERT_FIRST would come
before, and so might a filter of others that is applied after ours, hence the priority.

The routes are a VirtualService, or an HTTPRoute of the Gateway API. Istio sorts the rules of the latter: exact path,
prefix, expression; the longer path; more headers. So all of ours are expressions, and that of the refusal is short.
What an HTTPRoute has no words for is written into the routes by the EnvoyFilter.

What the way to a model's server has that is not usual (TLS, a credential, failures that are counted) is that of a
subset, to which our routes alone lead. Istio fails over within one service only, so fallbacks are what they are for
plain Envoy (`failover`): the EnvoyFilter adds the aggregate clusters, and listeners inside the gateway's Envoy, which
Istio's bootstrap allows (`envoy.bootstrap.internal_listener`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from cli.gateways import allowed, api, browsers, credentials, failover, replies
from cli.gateways.envoy import DECISION_HEADER, HOP_HEADER, OUR_HEADERS, ROUTE_HEADER, ext_proc, within
from cli.gateways.failover import AWAY_S, FAILURES, FULL, LOOK_S
from cli.gateways.kubernetes import (
    NAME,
    Cluster,
    fqdn,
    listener,
    listening,
    named,
    object_name,
    parents,
    port,
    service_of,
)
from cli.gateways.parts import BODY_SLACK, EXT_PROC, STREAM_IDLE_S, STREAMS, TOLD_HEADERS, access_log, as_dict, packed
from cli.gateways.place import Place, Upstream, unfit, upstreams
from decisions.engine import Engine
from extproc.told import FALLBACK

NETWORKING = "networking.istio.io/v1"
ENVOY_FILTER = "networking.istio.io/v1alpha3"
GATEWAY = "gateway.networking.k8s.io"
HOME = "istio-system"  # where an installation puts the gateway's pods unless told otherwise
CONNECTION_MANAGER = "envoy.filters.network.http_connection_manager"
ROUTER_FILTER = "envoy.filters.http.router"
CALLS = {"regex": allowed.CALLS}
EVERY = {"prefix": "/"}
OURS = f"xds.route_name.startsWith('{NAME}-')"
"""CEL condition for requests on our routes: the names that `_Way` gives."""
PRIORITY = 10
"""Of the EnvoyFilter: after those of others (0 unless given), which then stand before ours."""
RULES = 16  # an HTTPRoute holds no more


def render(engine: Engine, place: Place, cluster: Cluster) -> list[dict[str, Any]]:
    """The objects, in the order in which they are best applied. Raises CalledWrongly and RenderError for a model
    without a server that can stand in them."""
    servers = [_keyed(server, place) for server in upstreams(engine, place)]
    for server in servers:
        if server.literal or "." not in server.host:
            why = (
                f"Istio routes to services by name: write {server.host!r} as name.namespace.svc or as a ServiceEntry's"
            )
            raise unfit(place, server.key, f"{why} host")
    rules = _rules(engine, servers, place, cluster)
    api_form = cluster.front.gateway_api
    routes = _http_routes(rules, place, cluster) if api_form else [_virtual_service(rules, place, cluster)]
    return [
        *([] if cluster.front.name is not None else [_gateway(place, cluster)]),
        *routes,
        _way_to_router(cluster),
        *_ways_to_models(servers, cluster),
        _filter(engine, place, cluster, rules, servers),
    ]


def left_out(engine: Engine, place: Place) -> list[str]:
    """What Istio's objects cannot do of the policy."""
    texts = []
    for key, model in engine.models.items():
        if model.credential is not None and not model.credential.secret:
            texts.append(
                f"model {key}: its credential, since the policy names no secret (`from: {{secret: …, key: …}}`)"
            )
        elif model.credential is not None and place.secrets is None:
            texts.append(
                f"model {key}: its credential, since --secrets does not say in which folder the gateway's pods find it"
            )
    return texts


@dataclass(frozen=True, slots=True)
class _Destination:
    """A service as Istio names it; `subset` is one of ours, which nobody else's routes lead to."""

    host: str
    port: int
    subset: str | None = None

    @property
    def cluster(self) -> str:
        """Its name in Envoy."""
        return f"outbound|{self.port}|{self.subset or ''}|{self.host}"


@dataclass(frozen=True, slots=True)
class _Way:
    """One route: what it matches (`uri`, `headers` as a VirtualService writes them, and a header that must not be
    there), and where it leads (None: the refusal), with which path and authority. `failing`: the server whose fallbacks
    are tried."""

    part: str
    uri: dict[str, str]
    headers: dict[str, dict[str, str]]
    to: _Destination | None = None
    put: allowed.Rewrite | None = None
    authority: str | None = None
    without: str | None = None
    failing: Upstream | None = None

    @property
    def name(self) -> str:
        """Of the route in Envoy, too."""
        return f"{NAME}-{self.part}"

    @property
    def told(self) -> list[str]:
        """The model's copies of our response headers, which go before ext_proc adds ours; see `failover.switch`."""
        return [name for name in TOLD_HEADERS if self.failing is None or name != FALLBACK]


def _rules(engine: Engine, servers: list[Upstream], place: Place, cluster: Cluster) -> list[_Way]:
    by_key = {server.key: server for server in servers}
    default = by_key[engine.default.key]

    def rule(part: str, server: Upstream, uri: dict[str, str], put: allowed.Rewrite | None) -> _Way:
        chosen = {} if part.startswith(("default", "path-")) else {ROUTE_HEADER: {"exact": server.key}}
        failing = server if uri is CALLS and server.fallback else None
        return _Way(part, uri, chosen, _destination(server), put, server.authority, failing=failing)

    rules = []
    if place.steps is not None:  # the router's own requests, with the hop header, never match
        to = _Destination(cluster.host, port(place.steps))
        rules.append(_Way("stepwise", EVERY, {DECISION_HEADER: {}}, to, without=HOP_HEADER))
    for part, server in [*((object_name(server.key), server) for server in servers), ("default", default)]:
        if not engine.settings.pass_unread:
            rules.append(rule(part, server, CALLS, allowed.to_call(server)))
            continue
        if server.base is not None or server.fallback:
            rules.append(rule(f"{part}-calls", server, CALLS, allowed.to_call(server)))
        rules.append(rule(part, server, EVERY, allowed.below(server)))
    if not engine.settings.pass_unread:
        for number, opened in enumerate(allowed.opened(engine), 1):
            uri = {"exact" if opened.exact else "regex": opened.text}
            server = by_key[opened.to]
            rules.append(rule(f"path-{number}", server, uri, allowed.to_opened(server, opened)))
        rules.append(_Way("refused", EVERY, {}))
    return rules


def _keyed(server: Upstream, place: Place) -> Upstream:
    """`server` with a credential where the gateway's pods find it; see `left_out`."""
    found = server.credential is not None and server.credential.secret and place.secrets is not None
    fallback = tuple(_keyed(other, place) for other in server.fallback)
    return replace(server, credential=server.credential if found else None, fallback=fallback)


def _destination(server: Upstream) -> _Destination:
    own = server.tls or server.credential or server.fallback or server.health_check
    return _Destination(fqdn(server), server.port, f"{NAME}-{object_name(server.key)}" if own else None)


def _names(servers: list[Upstream]) -> failover.Names:
    """How Istio calls the clusters of the servers, and what ours are called beside those of others."""
    clusters = {server.key: _destination(server).cluster for server in servers}
    return failover.Names(f"{NAME}-", lambda server: clusters[server.key])


def _gateway(place: Place, cluster: Cluster) -> dict[str, Any]:
    front = cluster.front
    if front.gateway_api:
        spec = {"gatewayClassName": front.class_name or "istio", "listeners": [listener(place, front)]}
        return named("Gateway", f"{GATEWAY}/v1", NAME, cluster.namespace, spec)
    number = listening(place, front)
    server: dict[str, Any] = {"port": {"number": number, "name": "http", "protocol": "HTTP"}}
    if front.tls is not None:
        server["port"] = {"number": number, "name": "https", "protocol": "HTTPS"}
        server["tls"] = {"mode": "SIMPLE", "credentialName": front.tls}
    server["hosts"] = list(front.hosts) or ["*"]
    return named("Gateway", NETWORKING, NAME, cluster.namespace, {"selector": dict(front.labels), "servers": [server]})


def _virtual_service(rules: list[_Way], place: Place, cluster: Cluster) -> dict[str, Any]:
    front = cluster.front
    http = []
    for rule in rules:
        match: dict[str, Any] = {"uri": dict(rule.uri)}  # a copy: YAML would write one that stands twice as an alias
        if rule.headers:
            match["headers"] = dict(rule.headers)
        if rule.without is not None:
            match["withoutHeaders"] = {rule.without: {}}
        written: dict[str, Any] = {"name": rule.name, "match": [match]}
        if rule.to is None:
            written["directResponse"] = {"status": allowed.STATUS, "body": {"string": allowed.BODY}}
            written["headers"] = {"response": {"set": {"content-type": allowed.CONTENT_TYPE}}}
        else:
            destination: dict[str, Any] = {"host": rule.to.host, "port": {"number": rule.to.port}}
            if rule.to.subset is not None:
                destination["subset"] = rule.to.subset
            # No `timeout`: Istio then has none, as a stream of tokens needs; it refuses to be told 0.
            written["route"] = [{"destination": destination}]
            if rule.authority is not None:
                written["rewrite"] = {"authority": rule.authority}
                written["headers"] = {"response": {"remove": rule.told}}
            if rule.put is not None:
                written["rewrite"]["uriRegexRewrite"] = {"match": rule.put.pattern, "rewrite": rule.put.substitution}
            written["retries"] = _retries(rule.failing)
        if place.origins and rule.part != "stepwise":
            origins = [{"exact": origin} for origin in place.origins]
            written["corsPolicy"] = {"allowOrigins": origins, **browsers.fields()}
        http.append(written)
    spec = {"hosts": list(front.hosts) or ["*"], "gateways": [front.name or NAME], "http": http}
    return named("VirtualService", NETWORKING, NAME, cluster.namespace, spec)


def _retries(failing: Upstream | None) -> dict[str, Any]:
    if failing is None:
        return {"attempts": 2, "retryOn": "connect-failure,refused-stream"}
    retries: dict[str, Any] = {"attempts": len(failing.fallback), "retryOn": f"5xx,{FULL}"}
    if failing.per_try_timeout is not None:
        retries["perTryTimeout"] = f"{round(failing.per_try_timeout * 1000)}ms"
    return retries


def _http_routes(rules: list[_Way], place: Place, cluster: Cluster) -> list[dict[str, Any]]:
    """As many HTTPRoutes as the rules need."""
    routes = []
    for start in range(0, len(rules), RULES):
        numbered = NAME if start == 0 else f"{NAME}-{start // RULES + 1}"
        spec: dict[str, Any] = {"parentRefs": parents(cluster.front)}
        if cluster.front.hosts:
            spec["hostnames"] = list(cluster.front.hosts)
        spec["rules"] = [_http_rule(rule, place) for rule in rules[start : start + RULES]]
        routes.append(named("HTTPRoute", f"{GATEWAY}/v1", numbered, cluster.namespace, spec))
    return routes


def _http_rule(rule: _Way, place: Place) -> dict[str, Any]:
    kind, value = next(iter(rule.uri.items()))
    path = {"type": "Exact", "value": value}
    if kind != "exact":  # a prefix would come before every expression
        path = {"type": "RegularExpression", "value": ".*" if rule.uri == EVERY else value}
    match: dict[str, Any] = {"path": path}
    if rule.headers:
        match["headers"] = [
            {"type": "Exact", "name": name, "value": text["exact"]}
            if text
            else {"type": "RegularExpression", "name": name, "value": ".+"}
            for name, text in rule.headers.items()
        ]
    filters: list[dict[str, Any]] = []
    if rule.authority is not None:
        told = {"remove": rule.told}
        filters.append({"type": "URLRewrite", "urlRewrite": {"hostname": rule.authority.partition(":")[0]}})
        filters.append({"type": "ResponseHeaderModifier", "responseHeaderModifier": told})
    if place.origins and rule.part != "stepwise":
        origins = browsers.sites(place.origins)
        if "*" in origins:
            origins = ["*"]  # it may not stand beside others here
        cors = {"allowOrigins": origins, **browsers.fields(), "maxAge": browsers.MAX_AGE_S}
        filters.append({"type": "CORS", "cors": cors})
    written: dict[str, Any] = {"name": rule.name, "matches": [match]}
    if filters:
        written["filters"] = filters
    if rule.to is not None:  # a host name, as a service of another namespace would have to be granted to us
        reference = {"group": "networking.istio.io", "kind": "Hostname", "name": rule.to.host, "port": rule.to.port}
        written["backendRefs"] = [reference]
    return written


def _way_to_router(cluster: Cluster) -> dict[str, Any]:
    # No `tls`: Istio then uses mutual TLS of its own when the router has a sidecar, and plaintext when it has none.
    policy = {"connectionPool": {"http": {"h2UpgradePolicy": "UPGRADE", "http2MaxRequests": STREAMS}}}
    spec = {"host": cluster.host, "trafficPolicy": policy}
    return named("DestinationRule", NETWORKING, NAME, cluster.namespace, spec)


def _ways_to_models(servers: list[Upstream], cluster: Cluster) -> Iterator[dict[str, Any]]:
    """A DestinationRule for each service whose servers have subsets. It lies in the namespace of the service: Istio
    looks in those of the gateway and of the service alone."""
    hosts: dict[str, list[Upstream]] = {}
    for server in servers:
        if _destination(server).subset is not None:
            hosts.setdefault(fqdn(server), []).append(server)
    for host, some in hosts.items():
        service = service_of(some[0])
        home = cluster.namespace if service is None else service[1]
        name = object_name(some[0].key)
        subsets = [_subset(server) for server in some]
        yield named(
            "DestinationRule",
            NETWORKING,
            name if home == cluster.namespace else f"{NAME}-{name}",
            home,
            {"host": host, "subsets": subsets},
        )


def _subset(server: Upstream) -> dict[str, Any]:
    """All of the service (there are no labels), with the way that our requests take to it."""
    policy: dict[str, Any] = {}
    if server.tls:
        policy["tls"] = {"mode": "SIMPLE", "sni": server.host}
    if server.fallback:
        passed_over = {"consecutive5xxErrors": FAILURES, "interval": f"{LOOK_S}s", "baseEjectionTime": f"{AWAY_S}s"}
        policy["outlierDetection"] = {**passed_over, "maxEjectionPercent": 100}
    return {"name": _destination(server).subset, **({"trafficPolicy": policy} if policy else {})}


def _filter(
    engine: Engine, place: Place, cluster: Cluster, rules: list[_Way], servers: list[Upstream]
) -> dict[str, Any]:
    """The filter itself, and what Envoy has to do for it."""
    front = cluster.front
    duplex = within(engine, place)
    processor = packed(ext_proc(engine, f"outbound|{cluster.port}||{cluster.host}", duplex=duplex))
    # An own Gateway of the Gateway API has pods of its own, and a port that its Service may have another of.
    where = {} if front.name is not None else {"portNumber": listening(place, front)}
    manager = {"filterChain": {"filter": {"name": CONNECTION_MANAGER}}}
    before = {"filterChain": {"filter": {"name": CONNECTION_MANAGER, "subFilter": {"name": ROUTER_FILTER}}}}
    names = _names(servers)
    insert = {"name": EXT_PROC, "disabled": True, "typed_config": processor}
    patches = [
        _patch("HTTP_FILTER", {"listener": {**where, **before}}, "INSERT_BEFORE", insert),
        *(
            _patch("HTTP_ROUTE", _route_of(rule), "MERGE", _routed(rule, engine, names, duplex, front.gateway_api))
            for rule in rules
        ),
        _patch("NETWORK_FILTER", {"listener": {**where, **manager}}, "MERGE", {"typed_config": _connection()}),
    ]
    for server in servers:
        if value := as_dict(_of_cluster(server, place)):
            to = _destination(server)
            match = {"cluster": {"service": to.host, "portNumber": to.port, "subset": to.subset}}
            patches.append(_patch("CLUSTER", match, "MERGE", value))
    patches += [_patch("CLUSTER", {}, "ADD", as_dict(one)) for one in failover.clusters(servers, place, names)]
    patches += [_patch("LISTENER", {}, "ADD", as_dict(one)) for one in failover.listeners(engine, servers, names)]
    if front.gateway_api:
        target = {"group": GATEWAY, "kind": "Gateway", "name": front.name or NAME}
        spec: dict[str, Any] = {"targetRefs": [target]}
        home = front.namespace if front.name is not None and front.namespace else cluster.namespace
    else:
        spec = {"workloadSelector": {"labels": dict(front.labels)}}
        home = front.namespace or HOME
    # Where the gateway is: an EnvoyFilter acts on workloads of its own namespace only.
    return named("EnvoyFilter", ENVOY_FILTER, NAME, home, {**spec, "priority": PRIORITY, "configPatches": patches})


def _of_cluster(server: Upstream, place: Place) -> api.cluster.Cluster:
    """What the cluster of the server's subset has that a DestinationRule has no words for."""
    made = api.cluster.Cluster(health_checks=failover.probe(server))
    credentials.add(made, server, place)
    if server.health_check is not None and server.fallback:
        made.outlier_detection = api.cluster.OutlierDetection(successful_active_health_check_uneject_host=False)
    return made


def _connection() -> dict[str, Any]:
    """What Envoy has for all routes together. The headers that only we give requests are taken from those of all
    clients, since it is done before there is a route."""
    early = {
        "name": "envoy.http.early_header_mutation.header_mutation",
        "typed_config": {
            "@type": "type.googleapis.com/"
            "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
            "mutations": [{"remove": name} for name in OUR_HEADERS],
        },
    }
    log = {
        "name": "envoy.access_loggers.stdout",
        "filter": as_dict(replies.where(OURS)),
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
            "log_format": {"json_format": access_log()},
        },
    }
    return {
        "@type": "type.googleapis.com/"
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "early_header_mutation_extensions": [early],
        "access_log": [log],
        "local_reply_config": as_dict(replies.config(OURS)),
    }


def _routed(rule: _Way, engine: Engine, names: failover.Names, duplex: bool, gateway_api: bool) -> dict[str, Any]:
    """What is merged into the route of `rule`."""
    switch = {
        "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
        "config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ext_proc.v3.ExtProcPerRoute",
            "overrides": {},
        },
    }
    value: dict[str, Any] = {"typed_per_filter_config": {EXT_PROC: switch}}
    if not duplex:  # BUFFERED: Envoy answers 413 itself to a body over this
        value["request_body_buffer_limit"] = engine.settings.max_body + BODY_SLACK
    if rule.to is not None:
        value["route"] = {"idle_timeout": f"{STREAM_IDLE_S}s"}
    if rule.failing is not None:
        switched = api.route.Route(route=api.route.RouteAction(), response_headers_to_remove=[FALLBACK])
        failover.switch(switched, rule.failing, engine.settings.max_body + BODY_SLACK, names)
        more = as_dict(switched)
        if not gateway_api:  # the VirtualService says the rest
            retries = more["route"]["retry_policy"]
            kept = ("retriable_request_headers", "retry_priority")
            more["route"]["retry_policy"] = {key: retries[key] for key in kept}
        value = {**value, **more, "route": {**value["route"], **more["route"]}}
    if not gateway_api:
        return value
    if rule.to is None:
        content_type = {"header": {"key": "content-type", "value": allowed.CONTENT_TYPE}}
        value["direct_response"] = {"status": allowed.STATUS, "body": {"inline_string": allowed.BODY}}
        value["response_headers_to_add"] = [{**content_type, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}]
    if rule.to is not None and rule.to.subset is not None and rule.failing is None:
        value["route"]["cluster"] = rule.to.cluster
    if rule.put is not None:
        pattern = {"regex": rule.put.pattern}
        value["route"]["regex_rewrite"] = {"pattern": pattern, "substitution": rule.put.substitution}
    if rule.authority is not None and ":" in rule.authority:
        value["route"]["host_rewrite_literal"] = rule.authority  # the Gateway API takes no port there
    if rule.without is not None:
        value["match"] = {"headers": [{"name": rule.without, "present_match": True, "invert_match": True}]}
    return value


def _route_of(rule: _Way) -> dict[str, Any]:
    return {"routeConfiguration": {"vhost": {"route": {"name": rule.name}}}}


def _patch(to: str, match: dict[str, Any], operation: str, value: dict[str, Any]) -> dict[str, Any]:
    return {
        "applyTo": to,
        "match": {"context": "GATEWAY", **match},
        "patch": {"operation": operation, "value": value},
    }
