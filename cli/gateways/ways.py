"""Checks the ways to the models in a deployed set: credentials, fallbacks, tries, and limits that count tokens.

A set says them in its gateway's own objects. What plain Envoy and Istio have is looked at in Envoy's terms, after the
patches of an EnvoyFilter; what Envoy Gateway has, in its own. Only what the policy asks for is missed, and more than
that is nobody's mistake.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from cli.gateways import allowed
from cli.gateways.credentials import CLIENTS
from cli.gateways.envoy import ROUTE_HEADER
from cli.gateways.envoy_gateway import standbys
from cli.gateways.failover import FULL
from cli.gateways.parts import METADATA
from cli.gateways.place import Place, Upstream, upstreams
from config.problem import Severity
from decisions.engine import Engine
from decisions.model import Credential, Model

JSON = Mapping[str, Any]
TOKENS: Final = "estimated_input_tokens"
"""The one number among what the router writes into the metadata."""
_ROUTER_LOST: Final = frozenset(("connect-failure", "refused-stream", "reset"))
_COST: Final = re.compile(rf"%DYNAMIC_METADATA\({METADATA}:([^)%]*)\)(?::\d+)?%")
_ISTIOS: Final = {"num_retries": 2, "retry_on": "connect-failure,refused-stream"}
"""What Istio gives a route of the Gateway API (and more)."""


@dataclass(frozen=True, slots=True)
class Manifest:
    """One YAML document and where it begins."""

    file: str
    line: int
    data: dict[str, Any]

    @property
    def kind(self) -> str:
        return str(self.data.get("kind", ""))

    @property
    def name(self) -> str:
        return str((self.data.get("metadata") or {}).get("name"))

    @property
    def spec(self) -> dict[str, Any]:
        spec = self.data.get("spec")
        return spec if isinstance(spec, dict) else {}


Say = Callable[[Manifest, str, str, Severity], None]
"""Takes the object, the code, the message."""


@dataclass(slots=True)
class _Route:
    """A route that leads to a model: the one that was chosen, or the default. `calls`: it is for our calls alone."""

    found: Manifest
    model: Model
    chosen: bool
    calls: bool
    to: JSON
    """Envoy's route action: `cluster`, `retry_policy`."""


@dataclass(slots=True)
class _Envoy:
    """Envoy's parts by their names. `passed_over` are those services' subsets (Istio) whose failures are counted."""

    routes: list[_Route] = field(default_factory=list)
    clusters: dict[str, dict[str, Any]] = field(default_factory=dict)
    listeners: dict[str, JSON] = field(default_factory=dict)
    passed_over: set[tuple[str, str]] = field(default_factory=set)


def tries(found: Manifest, policy: JSON | None, say: Say) -> None:
    """`policy` is how streams to the router are begun anew: Envoy's retry policy in the processor's `grpc_service`."""
    if not policy or not _words(policy) >= _ROUTER_LOST or not _count(policy):
        text = "a stream to a router that dies before it has said anything is not begun anew with another one"
        say(found, "D416", f"{text} (retry policy of the external processor): render it again", "warning")


def check(engine: Engine, objects: list[Manifest], say: Say) -> None:
    """Says what of the ways to the models is missing or weaker than the policy asks for."""
    made = _Envoy()
    for found in objects:
        if "static_resources" in found.data:
            _bootstrap(engine, found, made)
    filters = [found for found in objects if found.kind == "EnvoyFilter"]
    if filters:
        _istio(engine, objects, made)
    _envoy(engine, made, say, "istio" if filters else "envoy")
    if any(found.kind == "EnvoyExtensionPolicy" for found in objects):
        _envoy_gateway(engine, objects, say)
    for found in objects:
        _limits(found, say)


# Plain Envoy, and Istio


def _bootstrap(engine: Engine, found: Manifest, made: _Envoy) -> None:
    static = found.data["static_resources"]
    made.clusters |= {str(one.get("name")): one for one in static.get("clusters", ())}
    made.listeners |= {str(one.get("name")): one for one in static.get("listeners", ())}
    for listener in static.get("listeners", ()):
        names = [one.get("name") for one in _http_filters(listener)]
        for route in _routes(listener) if "envoy.filters.http.ext_proc" in names else ():
            match = route.get("match") or {}
            path = (match.get("safe_regex") or {}).get("regex") or match.get("prefix")
            headers = {one.get("name"): one.get("string_match") or {} for one in match.get("headers", ())}
            key = str(headers.get(ROUTE_HEADER, {}).get("exact")) if headers else None
            _add(engine, made, found, (key, str(path)), route.get("route"))


def _add(engine: Engine, made: _Envoy, found: Manifest, where: tuple[str | None, str], to: JSON | None) -> None:
    """`where` is the model that is asked for (None: none), and the path."""
    key, path = where
    model = engine.default if key is None else engine.models.get(key)
    calls = path == allowed.CALLS
    if model is not None and to is not None and (calls or key is not None or path == "/"):
        made.routes.append(_Route(found, model, key is not None, calls, to))


def _istio(engine: Engine, objects: list[Manifest], made: _Envoy) -> None:
    patches = [
        (str(patch.get("applyTo")), patch.get("match") or {}, patch.get("patch") or {})
        for found in objects
        if found.kind == "EnvoyFilter"
        for patch in found.spec.get("configPatches", ())
    ]
    routed: dict[str, dict[str, Any]] = {}
    for to, match, patch in patches:
        value = patch.get("value") or {}
        if to == "HTTP_ROUTE":
            where = ((match.get("routeConfiguration") or {}).get("vhost") or {}).get("route") or {}
            _merge(routed.setdefault(str(where.get("name")), {}), value)
        elif to == "CLUSTER":
            of = match.get("cluster") or {}
            name = f"outbound|{of.get('portNumber')}|{of.get('subset', '')}|{of.get('service')}"
            _merge(made.clusters.setdefault(str(value.get("name", name)), {}), value)
        elif to == "LISTENER" and patch.get("operation") == "ADD":
            made.listeners[str(value.get("name"))] = value
    for found in objects:
        if found.kind == "DestinationRule":
            for subset in found.spec.get("subsets", ()):
                if "outlierDetection" in (subset.get("trafficPolicy") or {}):
                    made.passed_over.add((str(found.spec.get("host")), str(subset.get("name"))))
        for name, where, action in _istios_routes(found):
            action = copy.deepcopy(action)
            _merge(action, routed.get(name, {}).get("route") or {})
            _add(engine, made, found, where, action)


def _istios_routes(found: Manifest) -> Iterator[tuple[str, tuple[str | None, str], dict[str, Any]]]:
    """Of each rule its name, the model that it asks for and its path, and Envoy's route action."""
    for rule in found.spec.get("http", ()) if found.kind == "VirtualService" else ():
        to = ((rule.get("route") or [{}])[0] or {}).get("destination") or {}
        if to:
            port = (to.get("port") or {}).get("number")
            action: dict[str, Any] = {"cluster": f"outbound|{port}|{to.get('subset', '')}|{to.get('host')}"}
            retries = rule.get("retries") or {}
            action["retry_policy"] = {
                "num_retries": retries.get("attempts", 0),
                "retry_on": retries.get("retryOn", ""),
                "per_try_timeout": retries.get("perTryTimeout"),
            }
            for match in rule.get("match") or [{}]:
                headers = match.get("headers") or {}
                key = str((headers.get(ROUTE_HEADER) or {}).get("exact")) if headers else None
                yield str(rule.get("name")), (key, str(next(iter((match.get("uri") or {}).values()), "/"))), action
    for rule in found.spec.get("rules", ()) if found.kind == "HTTPRoute" else ():
        for to in rule.get("backendRefs", ())[:1]:
            action = {"cluster": f"outbound|{to.get('port')}||{to.get('name')}", "retry_policy": dict(_ISTIOS)}
            for match in rule.get("matches") or [{}]:
                yield str(rule.get("name")), _asked(match), action


def _envoy(engine: Engine, made: _Envoy, say: Say, family: str) -> None:
    own = {}  # the cluster of each model's own server
    for route in made.routes:
        if route.chosen:
            own[route.model.key] = _members(made, str(route.to.get("cluster")))[0]
    for route in made.routes:
        model, to = route.model, str(route.to.get("cluster"))
        if model.credential is not None:
            weak = [name for name in dict.fromkeys((to, *_members(made, to)[:1])) if not _keyed(made, name, model)]
            given = any(_typed(made.clusters.get(name, {})) for name in weak)
            if weak:
                lone = family == "istio" and not given
                text = "Istio's own clusters have none: render with --secrets" if lone else _KEY
                say(route.found, "D414", f"model {model.key!r}: {text}", "warning" if lone else "error")
        wanted = [own.get(other.key, "") for other in model.fallback]
        if not wanted or (not route.calls and _has_calls(made.routes, route)):
            _tried(route, say)
            continue
        _failing_over(made, route, wanted, say)
    for key, cluster in own.items():
        model = engine.models[key]
        _watched(made, model, cluster, next(r.found for r in made.routes if r.model.key == key), say)


_KEY: Final = (
    "its credential is not sent in the place of the client's (credential injector with `overwrite`, after what clients "
    "send is removed): render it again"
)


def _has_calls(routes: list[_Route], route: _Route) -> bool:
    return any(one.calls and one.model is route.model and one.chosen == route.chosen for one in routes)


def _members(made: _Envoy, cluster: str) -> list[str]:
    """The clusters of the servers that a cluster stands for, one after the other: those of an aggregate, and what
    listeners inside Envoy lead to."""
    typed = ((made.clusters.get(cluster, {}).get("cluster_type") or {}).get("typed_config")) or {}
    return [_inside(made, str(one)) for one in typed.get("clusters", ())] or [cluster]


def _inside(made: _Envoy, cluster: str) -> str:
    for locality in (made.clusters.get(cluster, {}).get("load_assignment") or {}).get("endpoints", ()):
        for one in locality.get("lb_endpoints", ()):
            address = ((one.get("endpoint") or {}).get("address") or {}).get("envoy_internal_address") or {}
            listener = made.listeners.get(str(address.get("server_listener_name")), {})
            for route in _routes(listener):
                return str((route.get("route") or {}).get("cluster"))
    return cluster


def _failing_over(made: _Envoy, route: _Route, wanted: list[str], say: Say) -> None:
    model, retries = route.model, route.to.get("retry_policy") or {}
    there = _members(made, str(route.to.get("cluster")))[1:]
    if there != wanted:
        names = ", ".join(other.key for other in model.fallback)
        text = f"model {model.key!r}: its fallbacks ({names}) do not take its place in their order"
        say(route.found, "D415", f"{text}: render it again", "warning")
    elif not _fails_over(retries, len(wanted)):
        text = f"model {model.key!r}: the next fallback is not tried on a connection error, a 5xx and {FULL}"
        say(route.found, "D415", f"{text} (retry policy of its route): render it again", "warning")
    _patient(route.found, model, retries.get("per_try_timeout"), say)


def _fails_over(retries: JSON, fallbacks: int) -> bool:
    words = _words(retries)
    full = str(FULL) in words or FULL in retries.get("retriable_status_codes", ())
    return "5xx" in words and full and _count(retries) >= fallbacks and "retry_priority" in retries


def _tried(route: _Route, say: Say) -> None:
    retries = route.to.get("retry_policy") or {}
    words = _words(retries)
    if not ({"connect-failure", "refused-stream"} <= words or "5xx" in words) or not _count(retries):
        text = f"model {route.model.key!r}: a request that did not reach its server is not tried again"
        say(route.found, "D416", f"{text} (retry policy of its route): render it again", "warning")


def _watched(made: _Envoy, model: Model, cluster: str, found: Manifest, say: Say) -> None:
    """`cluster` is that of the model's own server."""
    there = made.clusters.get(cluster, {})
    if model.fallback:
        _, _, subset, host = [*cluster.split("|"), "", "", ""][:4]
        own = "max_ejection_percent" in (there.get("outlier_detection") or {})  # Envoy's own 10 % leave a server in
        _counted(found, model, own or (host, subset) in made.passed_over, say)
    paths = [(one.get("http_health_check") or {}).get("path") for one in there.get("health_checks", ())]
    _asked_after(found, model, paths, say)


def _keyed(made: _Envoy, cluster: str, model: Model) -> bool:
    """Whether `cluster` sends the credential of `model`, and none of the client's."""
    injected: JSON = {}
    removed: set[str] = set()
    for one in _typed(made.clusters.get(cluster, {})):
        if "CredentialInjector" in str(one.get("@type")):
            injected = one
            break
        removed |= {str(each.get("remove")) for each in (one.get("mutations") or {}).get("request_mutations", ())}
    generic = ((injected.get("credential") or {}).get("typed_config")) or {}
    wanted = model.credential
    assert wanted is not None
    return (
        bool(injected.get("overwrite"))
        and str(generic.get("header", "authorization")).lower() == wanted.header
        and str(generic.get("header_value_prefix", "")) == wanted.prefix
        and set(CLIENTS) <= removed
    )


def _typed(cluster: JSON) -> list[JSON]:
    """The filters of a cluster."""
    options = cluster.get("typed_extension_protocol_options") or {}
    http = options.get("envoy.extensions.upstreams.http.v3.HttpProtocolOptions") or {}
    return [one.get("typed_config") or {} for one in http.get("http_filters", ())]


# Envoy Gateway


def _envoy_gateway(engine: Engine, objects: list[Manifest], say: Say) -> None:
    """An AIGatewayRoute has credentials and standbys of its own, and an InferencePool its own picker."""
    filters = {found.name: found.spec for found in objects if found.kind == "HTTPRouteFilter"}
    spare = {found.name for found in objects if found.kind == "Backend" and found.spec.get("fallback")}
    policies = [found for found in objects if found.kind == "BackendTrafficPolicy"]
    servers = _servers(engine)
    for found in (one for one in objects if one.kind == "HTTPRoute"):
        traffic = _traffic(policies, found.name)
        backends: dict[str, Model] = {}  # → the model whose server it is
        for rule in found.spec.get("rules", ()):
            refs = rule.get("backendRefs") or []
            for match in rule.get("matches") or [{}] if refs else ():
                key, path = _asked(match)
                model = engine.default if key is None else engine.models.get(key)
                if model is None or any(ref.get("kind") == "InferencePool" for ref in refs):
                    continue
                calls = path == allowed.CALLS
                if key is None and not calls and path != "/":
                    model = backends.get(str(refs[0].get("name")))
                elif key is not None:
                    backends[str(refs[0].get("name"))] = model
                if model is None:
                    continue
                if model.credential is not None and not _injected(rule, filters, model.credential):
                    say(found, "D414", f"model {model.key!r}: {_INJECTED}", "error")
                expected = standbys(servers[model.key]) if calls and model.key in servers else ()
                if expected:
                    there = [ref for ref in refs[1:] if ref.get("name") in spare]
                    _standing_by(found, model, traffic, (len(there), len(expected)), say)
                elif not _eg_tries(traffic):
                    text = f"model {model.key!r}: a request that did not reach its server is not tried again"
                    say(found, "D416", f"{text} (`retry` of a BackendTrafficPolicy): render it again", "warning")
                active = (traffic.get("healthCheck") or {}).get("active") or {}
                _asked_after(found, model, [(active.get("http") or {}).get("path")], say)


_INJECTED: Final = (
    "its credential is not sent in the place of the client's (`credentialInjection` with `overwrite` at its backend, "
    "and a RequestHeaderModifier that removes what clients send): render it again"
)


def _servers(engine: Engine) -> dict[str, Upstream]:
    """The models' servers, of those for which the policy says where all of their fallbacks are."""
    nowhere = {key: "http://nowhere.invalid" for key, model in engine.models.items() if not model.url}
    return {
        server.key: server
        for server in upstreams(engine, Place(upstreams=nowhere))
        if not nowhere.keys() & {server.key, *(other.key for other in server.fallback)}
    }


def _traffic(policies: Iterable[Manifest], route: str) -> JSON:
    """What BackendTrafficPolicies say of a route: those of the Gateway, and over them those of the route itself."""
    merged: dict[str, Any] = {}
    for kind in ("Gateway", "HTTPRoute"):
        for found in policies:
            targets = [
                *found.spec.get("targetRefs", ()),
                *([found.spec["targetRef"]] if "targetRef" in found.spec else []),
            ]
            if any(one.get("kind") == kind and (kind == "Gateway" or one.get("name") == route) for one in targets):
                merged |= found.spec
    return merged


def _standing_by(found: Manifest, model: Model, traffic: JSON, numbers: tuple[int, int], say: Say) -> None:
    """`numbers`: how many standbys there are, and how many are wanted."""
    retry, checks = traffic.get("retry") or {}, traffic.get("healthCheck") or {}
    on = retry.get("retryOn") or {}
    there, wanted = numbers
    if there < wanted:
        text = f"model {model.key!r}: {there} of its {wanted} standbys (Backends with `fallback: true`) take its place"
        say(found, "D415", f"{text}: render it again", "warning")
    elif (
        not {"5xx", "retriable-status-codes"} <= set(on.get("triggers", ()))
        or FULL not in on.get("httpStatusCodes", ())
        or int(retry.get("numRetries", 2)) < wanted
        or retry.get("numAttemptsPerPriority") != 1
    ):
        text = f"model {model.key!r}: its standbys are not tried on a connection error, a 5xx and {FULL}"
        say(found, "D415", f"{text} (`retry` of a BackendTrafficPolicy): render it again", "warning")
    _patient(found, model, (retry.get("perRetry") or {}).get("timeout"), say)
    _counted(found, model, bool(checks.get("passive")), say)


def _eg_tries(traffic: JSON) -> bool:
    retry = traffic.get("retry")
    if retry is None or int(retry.get("numRetries", 2)) < 1:
        return False
    triggers = set((retry.get("retryOn") or {}).get("triggers", ("connect-failure", "refused-stream")))
    return {"connect-failure", "refused-stream"} <= triggers or "5xx" in triggers


def _injected(rule: JSON, filters: Mapping[str, JSON], wanted: Credential) -> bool:
    removed = {
        str(name).lower()
        for one in rule.get("filters", ())
        for name in (one.get("requestHeaderModifier") or {}).get("remove", ())
    }
    first = (rule.get("backendRefs") or [{}])[0]
    for one in first.get("filters", ()):
        spec = filters.get(str((one.get("extensionRef") or {}).get("name")), {}).get("credentialInjection") or {}
        if spec.get("overwrite") and str(spec.get("header", "authorization")).lower() == wanted.header:
            return set(CLIENTS) <= removed
    return False


# Whatever the gateway


def _asked(match: JSON) -> tuple[str | None, str]:
    """Of a match of an HTTPRoute: the model that it asks for (None: none), and the path."""
    headers = {str(one.get("name", "")).lower(): one.get("value") for one in match.get("headers", ())}
    path = match.get("path") or {}
    every = (path.get("type", "PathPrefix"), path.get("value", "/")) in (
        ("PathPrefix", "/"),
        ("RegularExpression", ".*"),
    )
    return str(headers.get(ROUTE_HEADER)) if headers else None, "/" if every else str(path.get("value"))


def _patient(found: Manifest, model: Model, there: Any, say: Say) -> None:
    wanted = model.per_try_timeout
    given = seconds(str(there))
    if wanted is not None and (given is None or given > wanted):
        text = f"model {model.key!r}: its fallbacks wait {there or 'without end'} for an answer to begin"
        say(found, "D415", f"{text}, the policy says {wanted:g}s (`per_try_timeout`): render it again", "warning")


def _counted(found: Manifest, model: Model, there: bool, say: Say) -> None:
    if not there:
        text = f"model {model.key!r}: a server that fails on end is asked by every request (no outlier detection)"
        say(found, "D415", f"{text}: render it again", "warning")


def _asked_after(found: Manifest, model: Model, paths: Iterable[Any], say: Say) -> None:
    if model.health_check is not None and model.health_check not in paths:
        text = f"model {model.key!r}: its server is not asked at {model.health_check!r} whether it is well"
        say(found, "D415", f"{text} (`health_check`): render it again", "warning")


def _limits(found: Manifest, say: Say) -> None:
    """Limits that take their cost from our metadata."""
    for rule in ((found.spec.get("rateLimit") or {}).get("global") or {}).get("rules", ()):
        for cost in (rule.get("cost") or {}).values():
            metadata = cost.get("metadata") or {}
            if metadata.get("namespace") == METADATA and metadata.get("key") != TOKENS:
                say(found, "D417", f"a limit of tokens counts {metadata.get('key')!r}, {_NO_NUMBER}", "error")
    chains = [_http_filters(one) for one in (found.data.get("static_resources") or {}).get("listeners", ())]
    if found.kind == "EnvoyFilter":
        chains += [[(patch.get("patch") or {}).get("value") or {}] for patch in found.spec.get("configPatches", ())]
    for filters in chains:
        for index, one in enumerate(filters):
            typed = one.get("typed_config") or {}
            keys = [key for text in _texts(typed.get("rate_limits")) for key in _COST.findall(text)]
            if not keys:
                continue
            later = [str((each.get("typed_config") or {}).get("@type")) for each in filters[index:]]
            for key in dict.fromkeys(keys):
                if key != TOKENS:
                    say(found, "D417", f"a limit of tokens counts {key!r}, {_NO_NUMBER}", "error")
            if any(name.endswith("ext_proc.v3.ExternalProcessor") for name in later):
                text = "a limit of tokens stands before the external processor, when nothing is written yet"
                say(found, "D417", f"{text}: put it behind", "error")
            if str(typed.get("@type")).endswith("LocalRateLimit"):
                for name in ("filter_enabled", "filter_enforced"):
                    if not ((typed.get(name) or {}).get("default_value") or {}).get("numerator"):
                        say(found, "D417", f"a limit of tokens lets everything pass: `{name}` is 0 %", "error")


_NO_NUMBER: Final = f"which the router does not write as a number: {TOKENS!r} is the one"


def seconds(text: str) -> float | None:
    """A duration as gateways write it (`1500ms`, `1h30m`); None for anything else, and for none."""
    total = 0.0
    for number, unit in re.findall(r"(\d+(?:\.\d+)?)(ms|s|m|h)", text):
        total += float(number) * {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}[unit]
    return total or None


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    for one in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _texts(one)


def _words(policy: JSON) -> set[str]:
    return {word.strip() for word in str(policy.get("retry_on", "")).split(",")}


def _count(policy: JSON) -> int:
    return int(policy.get("num_retries", 1))  # Envoy's own number


def _manager(listener: JSON) -> JSON:
    for chain in listener.get("filter_chains", ()):
        for network in chain.get("filters", ()):
            typed: JSON = network.get("typed_config") or {}
            if "HttpConnectionManager" in str(typed.get("@type")):
                return typed
    return {}


def _http_filters(listener: JSON) -> list[JSON]:
    return list(_manager(listener).get("http_filters", ()))


def _routes(listener: JSON) -> Iterator[JSON]:
    for host in (_manager(listener).get("route_config") or {}).get("virtual_hosts", ()):
        yield from host.get("routes", ())


def _merge(into: dict[str, Any], value: JSON) -> None:
    """As an EnvoyFilter's patch is merged: fields one by one, lists one after the other."""
    for key, new in value.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            into[key] = [*old, *new]
        else:
            into[key] = copy.deepcopy(new)
