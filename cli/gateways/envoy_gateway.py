"""Envoy Gateway (gateway.envoyproxy.io/v1alpha1, seen with 1.9) and Gateway API objects for a policy.

The external processor is attached to the routes, because Envoy Gateway enables the filter per route: a request
whose first match lacks it, or that matches none, never reaches the router. So the last rule takes every path. It
answers 404 (HTTPRouteFilter.spec.directResponse), unless the router has refused the request or given it a route.

Of the rules that match a request the first counts in this order (the Gateway API leaves regular expressions open; this
is Envoy Gateway's): exact path, expression, prefix; the longer path; more headers. So every rule about our own calls
has one and the same expression, and their headers decide.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from cli.called import CalledWrongly
from cli.gateways import allowed, browsers, replies
from cli.gateways.credentials import CLIENTS
from cli.gateways.envoy import (
    AWAY,
    DECISION_HEADER,
    JWT,
    MESSAGE_SLACK_S,
    OUR_HEADERS,
    RETRIES,
    RETRY_ON,
    ROUTE_HEADER,
    within,
)
from cli.gateways.failover import ASK_S, AWAY_S, FAILURES, FULL, LOOK_S, MISSES, PATIENCE_S
from cli.gateways.kubernetes import (
    NAME,
    Cluster,
    Front,
    fqdn,
    listener,
    named,
    object_name,
    parents,
    port,
    service_of,
)
from cli.gateways.parts import BODY_SLACK, EXT_PROC, METADATA, STREAMS, TOLD_HEADERS, access_log, as_dict
from cli.gateways.place import Place, RenderError, Upstream, is_ip, unfit, upstreams
from decisions.engine import Engine
from decisions.model import Credential

EG = "gateway.envoyproxy.io/v1alpha1"
GATEWAY = "gateway.networking.k8s.io/v1"
RULES = 16  # an HTTPRoute holds no more
LONGEST = 1024  # characters of a path in an HTTPRoute
EVERY = {"type": "PathPrefix", "value": "/"}
CALLS = {"type": "RegularExpression", "value": allowed.CALLS}
REFUSED = f"{NAME}-refused"
FALLBACK = f"{NAME}-fallback"
SECRET_KEY = "credential"  # the one key that Envoy Gateway reads of a secret (HTTPRouteFilter.credentialInjection)
BREAKER = dict.fromkeys(("maxConnections", "maxParallelRequests", "maxPendingRequests", "maxParallelRetries"), STREAMS)


def render(engine: Engine, place: Place, cluster: Cluster) -> list[dict[str, Any]]:
    """The objects, in the order in which they are best applied. Raises CalledWrongly and RenderError for a model
    without a server that can stand in them."""
    servers = upstreams(engine, place)
    for server in servers:
        if not server.literal and "." not in server.host:
            raise unfit(place, server.key, f"{server.host!r} is not a full name: write it as name.namespace.svc")
    front = cluster.front
    if front.name is not None and front.section is None and place.steps is not None:
        raise CalledWrongly(
            f"--writers: a client's own {DECISION_HEADER} must not reach the routes, and only a listener of ours can "
            "take it away: name it with --section"
        )
    rules = _rules(engine, servers)
    groups = _groups(rules)
    objects = {name: [rule.object() for rule in some] for name, some in groups.items()}
    if not engine.settings.pass_unread:
        objects[NAME].append({"matches": [{"path": dict(EVERY)}], "filters": [_extension(REFUSED)]})
    grouped = {name: _routes(name, some, cluster) for name, some in objects.items()}
    if place.steps is not None:
        grouped[NAME].append(_steps_route(place.steps, EVERY if engine.settings.pass_unread else CALLS, cluster))
    routes = [route for some in grouped.values() for route in some]
    duplex = within(engine, place)
    standbys = {server.key: server for rule in rules for server in rule.standbys}
    own = front.name is None
    roomy = {}
    if not own and front.section is None and not duplex:  # what the ClientTrafficPolicy would do, for our routes alone
        roomy = {"requestBuffer": {"limit": _buffer(engine)}}
    return [
        *([_proxy(cluster), _gateway(place, cluster)] if own else []),
        *_grants(servers, cluster),
        *(_backend(server, cluster) for server in servers if _service(server) is None),
        *(_backend(server, cluster, standby=True) for server in standbys.values()),
        *_filters(rules, engine.settings.pass_unread, cluster),
        *routes,
        _extension_policy(engine, duplex, cluster, _references(routes)),
        *([_client_policy(engine, duplex, cluster)] if own or front.section is not None else []),
        *(
            _traffic_policy(name, {**_treatment(groups[name]), **roomy}, cluster, _references(some))
            for name, some in grouped.items()
            if some
        ),
        *([_cors_policy(place.origins, cluster, routes)] if place.origins else []),
        *([_replies(place, cluster)] if own else []),
    ]


def left_out(engine: Engine, place: Place, cluster: Cluster) -> list[str]:
    """What Envoy Gateway cannot do of the policy (fallbacks that need another body, path or credential), and what would
    change the routes of others on a Gateway that is there."""
    texts = []
    for server in upstreams(engine, place):
        if server.credential is not None and server.credential.prefix:
            prefix = server.credential.prefix
            texts.append(
                f"model {server.key}: the prefix {prefix!r} of its credential, since Envoy Gateway takes the whole "
                f"header from the secret {server.credential.secret!r}: let it say {(prefix + '…')!r} there"
            )
        for other in server.fallback:
            if other not in standbys(server):
                texts.append(
                    f"model {server.key}: Envoy Gateway does not fail over to {other.key}, since its name or path is "
                    "another, or one of them has a credential"
                )
    if cluster.front.name is not None:
        whole = f"Gateway {cluster.front.name}"
        texts.append(f"{whole}: our access log and the shape of its own errors, which it would have for all its routes")
        if cluster.front.section is None:
            texts.append(
                f"{whole}: a client may choose a model by {ROUTE_HEADER} while no router is there (fail_open), and "
                "paths with %2F (names of models) are redirected; with --section, a listener of ours, both are seen to"
            )
    return texts


_Treated = tuple[bool, float | None, str | None, str | None]
"""Whether there are standbys, how long one try waits, and where (path, host) a server is asked whether it is well."""


@dataclass(frozen=True, slots=True)
class _Rule:
    """A rule of an HTTPRoute that leads to a server; `call`: it is for what the router reads."""

    server: Upstream
    path: dict[str, str]
    chosen: bool
    rewrite: allowed.Rewrite | None = None
    call: bool = False

    @property
    def standbys(self) -> tuple[Upstream, ...]:
        return standbys(self.server) if self.call else ()

    @property
    def treatment(self) -> _Treated:
        """What decides on its traffic policy.

        Unless it is told a host, Envoy Gateway asks a Service under the name that clients call, which may be `*`; each
        of several Backends is asked under its own.
        """
        server, failing_over = self.server, bool(self.standbys)
        host = None if server.health_check is None or failing_over or ":" in server.host else server.host
        return failing_over, server.per_try_timeout if failing_over else None, server.health_check, host

    def filter(self) -> tuple[str, dict[str, Any]] | None:
        """The name and the content of its HTTPRouteFilter: what the Gateway API has no filter for."""
        spec: dict[str, Any] = {}
        if self.rewrite is not None:
            replacement = {"pattern": self.rewrite.pattern, "substitution": self.rewrite.substitution}
            spec["urlRewrite"] = {"path": {"type": "ReplaceRegexMatch", "replaceRegexMatch": replacement}}
        if self.standbys:
            spec.setdefault("urlRewrite", {})["hostname"] = {"type": "Backend"}
        kind = "as-is" if self.rewrite is None else "below" if self.rewrite.pattern == "^/" else "versioned"
        return (object_name(self.server.key) + ("" if self.call else f"-{kind}"), spec) if spec else None

    def object(self) -> dict[str, Any]:
        server = self.server
        # See TOLD_HEADERS: the model's copies go before ext_proc adds ours.
        filters: list[dict[str, Any]] = [
            {"type": "ResponseHeaderModifier", "responseHeaderModifier": {"remove": list(TOLD_HEADERS)}}
        ]
        if server.credential is not None:
            filters.append({"type": "RequestHeaderModifier", "requestHeaderModifier": {"remove": list(CLIENTS)}})
        rewrite: dict[str, Any] = {} if is_ip(server.host) or self.standbys else {"hostname": server.host}
        if server.path and self.path == EVERY:
            rewrite["path"] = {"type": "ReplacePrefixMatch", "replacePrefixMatch": f"{server.path}/"}
        if rewrite:
            filters.insert(0, {"type": "URLRewrite", "urlRewrite": rewrite})
        extra = self.filter()
        if extra is not None:
            filters.append(_extension(extra[0]))
        match: dict[str, Any] = {"path": dict(self.path)}  # a copy: YAML would write one that stands twice as an alias
        if self.chosen:
            match["headers"] = [{"type": "Exact", "name": ROUTE_HEADER, "value": server.key}]
        names = [object_name(server.key), *(_standby(other) for other in self.standbys)]
        backends: list[dict[str, Any]] = [
            {"group": "gateway.envoyproxy.io", "kind": "Backend", "name": name} for name in names
        ]
        if (service := _service(server)) is not None:
            name, namespace = service
            backends = [{"kind": "Service", "name": name, "namespace": namespace, "port": server.port}]
        if server.credential is not None:
            # Here and not at the rule: a rule's own is that of the rule which a request matches first.
            backends[0]["filters"] = [_extension(_key(server))]
        return {"matches": [match], "filters": filters, "backendRefs": backends}


def standbys(server: Upstream) -> tuple[Upstream, ...]:
    """Those of the server's fallbacks that take the very request which it gets."""
    if server.credential is not None:
        return ()  # Envoy Gateway makes of backends with filters of their own one cluster each, and chooses by weight
    same = (server.name, server.path, server.base, None)
    return tuple(one for one in server.fallback if (one.name, one.path, one.base, one.credential) == same)


def _service(server: Upstream) -> tuple[str, str] | None:
    """Name and namespace of the Service whose pods Envoy Gateway is to call itself.

    Other names are a Backend's, and so are those of servers with TLS (which a Backend says) and with standbys (Envoy
    Gateway does not mix both kinds in one rule).
    """
    return None if server.tls or standbys(server) else service_of(server)


def _grants(servers: list[Upstream], cluster: Cluster) -> list[dict[str, Any]]:
    """Leave to send our requests to Services of other namespaces, which those namespaces give."""
    found: dict[str, set[str]] = {}
    for name, namespace in filter(None, map(_service, servers)):
        if namespace != cluster.namespace:
            found.setdefault(namespace, set()).add(name)
    source = {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": cluster.namespace}
    return [
        named(
            "ReferenceGrant",
            f"{GATEWAY}beta1",
            f"{NAME}-{cluster.namespace}"[:63],
            namespace,
            {"from": [dict(source)], "to": [{"group": "", "kind": "Service", "name": name} for name in sorted(names)]},
        )
        for namespace, names in found.items()
    ]


def _key(server: Upstream) -> str:
    return f"{object_name(server.key)}-key"


def _standby(server: Upstream) -> str:
    return f"{object_name(server.key)}-standby"


def _references(routes: list[dict[str, Any]]) -> list[dict[str, str]]:
    return [
        {"group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "name": route["metadata"]["name"]}
        for route in routes
    ]


def _proxy(cluster: Cluster) -> dict[str, Any]:
    # What Envoy Gateway calls the filter of an EnvoyExtensionPolicy (`internal/xds/translator/extproc.go`).
    name = f"{EXT_PROC}/envoyextensionpolicy/{cluster.namespace}/{NAME}/extproc/0"
    log = {
        "settings": [
            {
                "format": {"type": "JSON", "json": access_log(name)},
                "sinks": [{"type": "File", "file": {"path": "/dev/stdout"}}],
            }
        ]
    }
    return named("EnvoyProxy", EG, NAME, cluster.namespace, {"telemetry": {"accessLog": log}})


def _gateway(place: Place, cluster: Cluster) -> dict[str, Any]:
    parameters = {"group": "gateway.envoyproxy.io", "kind": "EnvoyProxy", "name": NAME}
    spec = {
        "gatewayClassName": cluster.front.class_name or "eg",
        "infrastructure": {"parametersRef": parameters},
        "listeners": [listener(place, cluster.front)],
    }
    return named("Gateway", GATEWAY, NAME, cluster.namespace, spec)


def _backend(server: Upstream, cluster: Cluster, *, standby: bool = False) -> dict[str, Any]:
    if is_ip(server.host):
        endpoint: dict[str, Any] = {"ip": {"address": server.host, "port": server.port}}
    else:
        endpoint = {"fqdn": {"hostname": fqdn(server), "port": server.port}}
    spec: dict[str, Any] = {"endpoints": [endpoint]}
    if server.tls:
        spec["tls"] = {"wellKnownCACertificates": "System", **({} if is_ip(server.host) else {"sni": server.host})}
    if standby:
        spec["fallback"] = True
    return named("Backend", EG, _standby(server) if standby else object_name(server.key), cluster.namespace, spec)


def _rules(engine: Engine, servers: list[Upstream]) -> list[_Rule]:
    """A rule per model by the route header, the default, the opened paths; everything but the refusal of the rest."""
    by_key = {server.key: server for server in servers}
    rules = []
    for server, chosen in [*((server, True) for server in servers), (by_key[engine.default.key], False)]:
        if not engine.settings.pass_unread or server.base is not None or standbys(server):
            # Expressions count before prefixes.
            rules.append(_Rule(server, CALLS, chosen, allowed.to_call(server), call=True))
        if engine.settings.pass_unread:
            rules.append(_Rule(server, EVERY, chosen))
    for opened in [] if engine.settings.pass_unread else allowed.opened(engine):
        if len(opened.text) > (LONGEST if opened.exact else len(allowed.CALLS)):  # it would come before our own calls
            raise RenderError(f"paths: an opened path is too long for Envoy Gateway: {opened.text[:80]!r}…")
        path = {"type": "Exact" if opened.exact else "RegularExpression", "value": opened.text}
        server = by_key[opened.to]
        rules.append(_Rule(server, path, False, allowed.to_opened(server, opened)))
    return rules


def _routes(name: str, rules: list[dict[str, Any]], cluster: Cluster) -> list[dict[str, Any]]:
    """As many HTTPRoutes as the rules need."""
    routes = []
    for start in range(0, len(rules), RULES):
        numbered = name if start == 0 else f"{name}-{start // RULES + 1}"
        routes.append(_http_route(numbered, rules[start : start + RULES], cluster))
    return routes


def _http_route(name: str, rules: list[dict[str, Any]], cluster: Cluster) -> dict[str, Any]:
    hosts = {"hostnames": list(cluster.front.hosts)} if cluster.front.hosts else {}
    spec = {"parentRefs": parents(cluster.front), **hosts, "rules": rules}
    return named("HTTPRoute", GATEWAY, name, cluster.namespace, spec)


def _steps_route(where: str, path: dict[str, str], cluster: Cluster) -> dict[str, Any]:
    """Requests whose stepwise decision the router answers over HTTP. They carry the route header of a model too, so two
    matches are what makes this rule win (Gateway API: the largest number of header matches)."""
    headers = [{"type": "RegularExpression", "name": name, "value": ".+"} for name in (DECISION_HEADER, ROUTE_HEADER)]
    match = {"path": dict(path), "headers": headers}
    rule = {"matches": [match], "backendRefs": [{"name": cluster.service, "port": port(where)}]}
    return _http_route(f"{NAME}-stepwise", [rule], cluster)


def _extension(name: str) -> dict[str, Any]:
    reference = {"group": "gateway.envoyproxy.io", "kind": "HTTPRouteFilter", "name": name}
    return {"type": "ExtensionRef", "extensionRef": reference}


def _filters(rules: list[_Rule], pass_unread: bool, cluster: Cluster) -> list[dict[str, Any]]:
    """What the rules want that the Gateway API has no filter for, and the refusal."""
    specs = dict(extra for rule in rules if (extra := rule.filter()) is not None)
    for server in {rule.server.key: rule.server for rule in rules}.values():
        if server.credential is not None:
            specs[_key(server)] = {"credentialInjection": _injection(server.key, server.credential)}
    if not pass_unread:
        body = {"type": "Inline", "inline": allowed.BODY}
        refusal = {"statusCode": allowed.STATUS, "contentType": allowed.CONTENT_TYPE, "body": body}
        specs[REFUSED] = {"directResponse": refusal}
    return [named("HTTPRouteFilter", EG, name, cluster.namespace, spec) for name, spec in specs.items()]


def _injection(key: str, credential: Credential) -> dict[str, Any]:
    if not credential.secret:
        raise RenderError(
            f"model {key}: name the secret with its credential (`from: {{secret: …, key: {SECRET_KEY}}}`)"
        )
    if credential.key != SECRET_KEY:
        raise RenderError(
            f"model {key}: Envoy Gateway takes a whole header from the key `{SECRET_KEY}` of a secret: write "
            f"`key: {SECRET_KEY}`, and let the secret say {(credential.prefix + '…')!r}"
        )
    reference = {"group": "", "kind": "Secret", "name": credential.secret}
    return {"header": credential.header, "overwrite": True, "credential": {"valueRef": reference}}


def _extension_policy(engine: Engine, duplex: bool, cluster: Cluster, routes: list[dict[str, str]]) -> dict[str, Any]:
    mode: dict[str, Any] = {
        "allowModeOverride": True,
        "request": {"body": "FullDuplexStreamed" if duplex else "Buffered"},
    }
    if engine.watches != "none":  # a look at the usage at its end, or the answer itself
        mode["response"] = {"body": "FullDuplexStreamed" if engine.watches == "text" else "Streamed"}
    elif engine.sees_answers:
        mode["response"] = {}  # present and empty: the headers, without the body
    processor: dict[str, Any] = {
        "backendRefs": [{"kind": "Service", "name": cluster.service, "port": cluster.port}],
        "backendSettings": {
            "circuitBreaker": dict(BREAKER),  # one stream for each request under way
            "retry": {"numRetries": RETRIES, "retryOn": {"triggers": list(RETRY_ON)}},
        },
        "messageTimeout": _duration(engine.settings.deadline + MESSAGE_SLACK_S),
        "statusOnError": AWAY,
        "processingMode": mode,
        "metadata": {"accessibleNamespaces": [JWT], "writableNamespaces": [METADATA]},
    }
    if not duplex and engine.watches != "text":  # Envoy Gateway refuses failOpen with FullDuplexStreamed
        processor["failOpen"] = engine.settings.fail_open
    spec = {"targetRefs": routes, "extProc": [processor]}
    return named("EnvoyExtensionPolicy", EG, NAME, cluster.namespace, spec)


def _client_policy(engine: Engine, duplex: bool, cluster: Cluster) -> dict[str, Any]:
    """For our own Gateway, or our listener of another one: all that comes in there has it."""
    front = cluster.front
    spec: dict[str, Any] = {
        "targetRefs": [_target(front)],
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
        spec["connection"] = {"bufferLimit": _buffer(engine)}
    return named("ClientTrafficPolicy", EG, NAME, _home(cluster), spec)


def _buffer(engine: Engine) -> str:
    return f"{math.ceil((engine.settings.max_body + BODY_SLACK) / 1024)}Ki"


def _target(front: Front) -> dict[str, str]:
    """The Gateway, or its listener, as the target of a policy."""
    target = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": front.name or NAME}
    return target if front.section is None else {**target, "sectionName": front.section}


def _home(cluster: Cluster) -> str:
    """The namespace of the Gateway: a policy acts on targets of its own namespace only."""
    return (cluster.front.name and cluster.front.namespace) or cluster.namespace


def _traffic_policy(name: str, more: dict[str, Any], cluster: Cluster, routes: list[dict[str, str]]) -> dict[str, Any]:
    # A stream of tokens may last for as long as it has something to say.
    timeout = {"http": {"requestTimeout": "0s", "streamIdleTimeout": "15m"}}
    spec = {
        "targetRefs": routes,
        "mergeType": "StrategicMerge",  # else nothing of the Gateway's own policy (a rate limit) would be left
        "timeout": timeout,
        "circuitBreaker": dict(BREAKER),
        **more,
    }
    return named("BackendTrafficPolicy", EG, name, cluster.namespace, spec)


def _groups(rules: list[_Rule]) -> dict[str, list[_Rule]]:
    """The rules by the name of their routes and their traffic policy, which a whole route has."""
    names: dict[_Treated, str] = {(False, None, None, None): NAME, (True, None, None, None): FALLBACK}
    groups: dict[str, list[_Rule]] = {NAME: []}
    for rule in rules:
        own = f"{FALLBACK if rule.standbys else NAME}-{object_name(rule.server.key)}"
        groups.setdefault(names.setdefault(rule.treatment, own), []).append(rule)
    return groups


def _treatment(rules: list[_Rule]) -> dict[str, Any]:
    """What the traffic policy of one group says: retries, on a server's standbys too, and when a server is passed over.
    Envoy Gateway has one rank of standbys, in which Envoy takes turns."""
    failing_over, patience, path, host = rules[0].treatment if rules else (False, None, None, None)
    checks: dict[str, Any] = {}
    if path is not None:
        asked = {"interval": f"{ASK_S}s", "timeout": f"{PATIENCE_S}s", "unhealthyThreshold": MISSES}
        http = {"path": path} if host is None else {"path": path, "hostname": host}
        checks["active"] = {"type": "HTTP", **asked, "healthyThreshold": 1, "http": http}
    retry: dict[str, Any] = {"numRetries": 2, "retryOn": {"triggers": ["connect-failure", "refused-stream"]}}
    if failing_over:
        retry = {
            "numRetries": max(len(rule.standbys) for rule in rules),
            "numAttemptsPerPriority": 1,
            "retryOn": {"triggers": ["5xx", "retriable-status-codes"], "httpStatusCodes": [FULL]},
        }
        if patience is not None:
            retry["perRetry"] = {"timeout": _duration(patience)}
        passive = {"consecutive5XxErrors": FAILURES, "interval": f"{LOOK_S}s", "baseEjectionTime": f"{AWAY_S}s"}
        checks["passive"] = {**passive, "maxEjectionPercent": 100}
    return {"retry": retry, **({"healthCheck": checks} if checks else {})}


def _cors_policy(origins: tuple[str, ...], cluster: Cluster, routes: list[dict[str, Any]]) -> dict[str, Any]:
    cors = {"allowOrigins": browsers.sites(origins), **browsers.fields()}
    targets = [_target(cluster.front)] if cluster.front.name is None else _references(routes)
    return named("SecurityPolicy", EG, NAME, cluster.namespace, {"targetRefs": targets, "cors": cors})


def _replies(place: Place, cluster: Cluster) -> dict[str, Any]:
    """Envoy's own answers in the API's shape. Nothing but a patch reaches them: `responseOverride` takes the router's
    and the models' answers as well. It counts where EnvoyGateway.extensionApis.enableEnvoyPatchPolicy is set."""
    made = listener(place, cluster.front)
    chain = "/default_filter_chain" if cluster.front.tls is None else "/filter_chains/0"
    patch = {
        "type": "type.googleapis.com/envoy.config.listener.v3.Listener",
        "name": f"{cluster.namespace}/{NAME}/{made['name']}",  # as Envoy Gateway names a Gateway's listeners
        "operation": {
            "op": "add",
            "path": f"{chain}/filters/0/typed_config/local_reply_config",
            "value": as_dict(replies.config()),
        },
    }
    spec = {"targetRef": _target(cluster.front), "type": "JSONPatch", "jsonPatches": [patch]}
    return named("EnvoyPatchPolicy", EG, NAME, cluster.namespace, spec)


def _duration(seconds: float) -> str:
    """Gateway API duration (GEP-2257): whole milliseconds."""
    return f"{round(seconds * 1000)}ms"
