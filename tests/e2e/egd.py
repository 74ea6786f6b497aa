"""What Envoy Gateway makes of rendered objects, for a real Envoy: a listener, its routes, and the clusters.

It stands in for Envoy Gateway, which no test can run, and does as its sources say (`internal/gatewayapi`,
`internal/xds/translator`): one filter for an EnvoyExtensionPolicy, off but for the routes of the policy's targets; the
order of rules (`sort.go`); a cluster for each rule, whose Backends with `fallback` have the second priority.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from cli.gateways.parts import EXT_PROC
from tests.e2e.proxy import JSON

V3 = "type.googleapis.com/envoy.extensions"
MANAGER = f"{V3}.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = {"name": "envoy.filters.http.router", "typed_config": {"@type": f"{V3}.filters.http.router.v3.Router"}}
BUFFER = "envoy.filters.http.buffer"
OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
ON = {
    "@type": "type.googleapis.com/envoy.config.route.v3.FilterConfig",
    "config": {"@type": f"{V3}.filters.http.ext_proc.v3.ExtProcPerRoute", "overrides": {}},
}


def listener(objects: list[JSON], others: list[JSON]) -> JSON:
    """The listener of the Gateway: the routes of `objects` for their hosts, and `others`, virtual hosts of another
    application."""
    manager: JSON = {
        "@type": MANAGER,
        "stat_prefix": "http-10080",
        "use_remote_address": True,
        "normalize_path": True,
        "merge_slashes": True,
        "path_with_escaped_slashes_action": "UNESCAPE_AND_REDIRECT",
        "route_config": {"name": "http-80", "virtual_hosts": [*_hosts(objects), *copy.deepcopy(others)]},
        "http_filters": [
            {"name": BUFFER, "disabled": True, "typed_config": _buffer(2**32 - 1)},
            *_processors(objects),
            copy.deepcopy(ROUTER),
        ],
    }
    made: JSON = {
        "name": "pointsman/pointsman/http",
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": 0}},
        "default_filter_chain": {
            "filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]
        },
        "per_connection_buffer_limit_bytes": 32 * 1024,
    }
    for proxy in _specs(objects, "EnvoyProxy"):
        (settings,) = proxy["telemetry"]["accessLog"]["settings"]
        assert settings["sinks"] == [{"type": "File", "file": {"path": "/dev/stdout"}}]
        log: JSON = {"@type": f"{V3}.access_loggers.stream.v3.StdoutAccessLog"}
        log["log_format"] = {"json_format": settings["format"]["json"]}
        manager["access_log"] = [{"name": "envoy.access_loggers.stdout", "typed_config": log}]
    for policy in _specs(objects, "ClientTrafficPolicy"):
        removed = [{"remove": name} for name in policy["headers"]["earlyRequestHeaders"]["remove"]]
        early = {"@type": f"{V3}.http.early_header_mutation.header_mutation.v3.HeaderMutation", "mutations": removed}
        manager["early_header_mutation_extensions"] = [
            {"name": "envoy.http.early_header_mutation.header_mutation", "typed_config": early}
        ]
        actions = {"KeepUnchanged": "KEEP_UNCHANGED"}
        manager["path_with_escaped_slashes_action"] = actions[policy["path"]["escapedSlashesAction"]]
        if "connection" in policy:
            made["per_connection_buffer_limit_bytes"] = _bytes(policy["connection"]["bufferLimit"])
    for policy in _specs(objects, "EnvoyPatchPolicy"):
        for patch in policy["jsonPatches"]:
            assert (patch["name"], patch["operation"]["op"]) == (made["name"], "add")
            *path, last = patch["operation"]["path"].split("/")[1:]
            place: Any = made
            for part in path:
                place = place[int(part)] if isinstance(place, list) else place[part]
            place[last] = copy.deepcopy(patch["operation"]["value"])
    return made


def clusters(objects: list[JSON], servers: dict[str, str], router: JSON, keys: str) -> Iterator[JSON]:
    """`servers` are the addresses by names of Services and Backends; `router` is the cluster of the router, which gets
    the name and the limits that it has there; Secrets' values are found below the folder `keys`."""
    (policy,) = _specs(objects, "EnvoyExtensionPolicy")
    made = copy.deepcopy(router)
    made["name"] = made["load_assignment"]["cluster_name"] = f"{_policy(objects)}/0"
    made["circuit_breakers"] = _breakers(policy["extProc"][0]["backendSettings"]["circuitBreaker"])
    del made["health_checks"]
    yield made
    backends = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "Backend"}
    filters = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "HTTPRouteFilter"}
    for name, rule, traffic in _rules(objects):
        if "backendRefs" not in rule:
            continue
        localities = []
        for ref in rule["backendRefs"]:
            backend = backends.get(ref["name"], {})
            host, _, port = servers[ref["name"]].rpartition(":")
            endpoint: JSON = {"address": {"socket_address": {"address": host, "port_value": int(port)}}}
            if backend:
                endpoint["hostname"] = backend["endpoints"][0]["fqdn"]["hostname"]
            localities.append(
                {
                    "lb_endpoints": [{"endpoint": endpoint, "load_balancing_weight": 1}],
                    "priority": int(backend.get("fallback", False)),
                    "load_balancing_weight": 1,
                    "locality": {"region": f"{name}/backend/{len(localities)}"},
                }
            )
        made = {
            "name": name,
            "connect_timeout": "10s",
            "lb_policy": "LEAST_REQUEST",
            "per_connection_buffer_limit_bytes": 32 * 1024,
            "common_lb_config": {"locality_weighted_lb_config": {}},
            "circuit_breakers": _breakers(traffic["circuitBreaker"]),
            "load_assignment": {"cluster_name": name, "endpoints": localities},
        }
        checks = traffic.get("healthCheck", {})
        if (passive := checks.get("passive")) is not None:
            made["outlier_detection"] = {
                "consecutive_5xx": passive["consecutive5XxErrors"],
                "interval": passive["interval"],
                "base_ejection_time": passive["baseEjectionTime"],
                "max_ejection_percent": passive["maxEjectionPercent"],
            }
        first = rule["backendRefs"][0].get("filters", ())
        for one in [filters[each["extensionRef"]["name"]] for each in first]:
            made["typed_extension_protocol_options"] = {OPTIONS: _injecting(one["credentialInjection"], keys)}
        yield made


def _injecting(wanted: JSON, keys: str) -> JSON:
    secret = wanted["credential"]["valueRef"]["name"]
    generic = {
        "@type": f"{V3}.http.injected_credentials.generic.v3.Generic",
        "credential": {
            "name": "credential",
            "sds_config": {"path_config_source": {"path": f"{keys}/{secret}/credential.yaml"}},
        },
        "header": wanted["header"],
    }
    injector = {
        "@type": f"{V3}.filters.http.credential_injector.v3.CredentialInjector",
        "overwrite": wanted["overwrite"],
        "credential": {"name": "envoy.http.injected_credentials.generic", "typed_config": generic},
    }
    codec = {"@type": f"{V3}.filters.http.upstream_codec.v3.UpstreamCodec"}
    return {
        "@type": f"type.googleapis.com/{OPTIONS}",
        "explicit_http_config": {"http_protocol_options": {}},
        "http_filters": [
            {"name": "envoy.filters.http.credential_injector", "typed_config": injector},
            {"name": "envoy.filters.http.upstream_codec", "typed_config": codec},
        ],
    }


def _specs(objects: list[JSON], kind: str) -> list[JSON]:
    return [each["spec"] for each in objects if each["kind"] == kind]


def _policy(objects: list[JSON]) -> str:
    (found,) = [each["metadata"] for each in objects if each["kind"] == "EnvoyExtensionPolicy"]
    return f"envoyextensionpolicy/{found['namespace']}/{found['name']}/extproc"


def _processors(objects: list[JSON]) -> Iterator[JSON]:
    for policy in _specs(objects, "EnvoyExtensionPolicy"):
        for number, one in enumerate(policy["extProc"]):
            name, settings, mode = f"{_policy(objects)}/{number}", one["backendSettings"], one["processingMode"]
            duplex = mode["request"]["body"] == "FullDuplexStreamed"
            yield {
                "name": f"{EXT_PROC}/{name}",
                "disabled": True,
                "typed_config": {
                    "@type": f"{V3}.filters.http.ext_proc.v3.ExternalProcessor",
                    "grpc_service": {
                        "envoy_grpc": {"cluster_name": name},
                        "timeout": "10s",
                        "retry_policy": {
                            "num_retries": settings["retry"]["numRetries"],
                            "retry_on": ",".join(settings["retry"]["retryOn"]["triggers"]),
                        },
                    },
                    "processing_mode": {
                        "request_header_mode": "SEND",
                        "request_body_mode": "FULL_DUPLEX_STREAMED" if duplex else "BUFFERED",
                        "request_trailer_mode": "SEND" if duplex else "SKIP",
                        "response_header_mode": "SEND" if "response" in mode else "SKIP",
                        "response_body_mode": mode.get("response", {}).get("body", "None").upper(),
                    },
                    "allow_mode_override": mode["allowModeOverride"],
                    "failure_mode_allow": one["failOpen"],
                    "message_timeout": f"{int(one['messageTimeout'].removesuffix('ms')) / 1000:g}s",
                    "status_on_error": {"code": one["statusOnError"]},
                    "metadata_options": {
                        "forwarding_namespaces": {"untyped": one["metadata"]["accessibleNamespaces"]},
                        "receiving_namespaces": {"untyped": one["metadata"]["writableNamespaces"]},
                    },
                },
            }


def _rules(objects: list[JSON]) -> Iterator[tuple[str, JSON, JSON]]:
    """Each rule's name, itself, and what the traffic policy of its HTTPRoute says."""
    for route in objects:
        if route["kind"] == "HTTPRoute":
            name = route["metadata"]["name"]
            (traffic,) = [
                policy
                for policy in _specs(objects, "BackendTrafficPolicy")
                if name in [one["name"] for one in policy["targetRefs"]]
            ]
            for number, rule in enumerate(route["spec"]["rules"]):
                yield f"httproute/{route['metadata']['namespace']}/{name}/rule/{number}", rule, traffic


def _hosts(objects: list[JSON]) -> Iterator[JSON]:
    (policy,) = _specs(objects, "EnvoyExtensionPolicy")
    targets = {f"httproute/pointsman/{one['name']}/" for one in policy["targetRefs"]}
    routes: dict[str, list[JSON]] = {}
    hosts = next(each["spec"].get("hostnames", ["*"]) for each in objects if each["kind"] == "HTTPRoute")
    filters = {each["metadata"]["name"]: each["spec"] for each in objects if each["kind"] == "HTTPRouteFilter"}
    for name, rule, traffic in sorted(_rules(objects), key=lambda one: rank(one[1]), reverse=True):
        route = route_of(rule, filters, name)
        route["name"] = f"{name}/match/0"
        if "route" in route:
            route["route"] |= {
                "timeout": traffic["timeout"]["http"]["requestTimeout"],
                "idle_timeout": "900s",
                "retry_policy": _retries(traffic["retry"]),
            }
        route["typed_per_filter_config"] = {
            f"{EXT_PROC}/{_policy(objects)}/0": ON for target in targets if name.startswith(target)
        }
        if "requestBuffer" in traffic:
            size = _bytes(traffic["requestBuffer"]["limit"])
            route["typed_per_filter_config"][BUFFER] = {
                "@type": f"{V3}.filters.http.buffer.v3.BufferPerRoute",
                "buffer": {"max_request_bytes": size},
            }
        for host in hosts:
            routes.setdefault(host, []).append(copy.deepcopy(route))
    for host, some in routes.items():
        yield {"name": f"pointsman/pointsman/http/{host}", "domains": [host], "routes": some}


def rank(rule: JSON) -> tuple[int, int, int]:
    """Exact path, expression, prefix; the longer path; more headers."""
    (match,) = rule["matches"]
    types = ("PathPrefix", "RegularExpression", "Exact")
    return types.index(match["path"]["type"]), len(match["path"]["value"]), len(match.get("headers", ()))


def route_of(rule: JSON, filters: dict[str, JSON], cluster: str) -> JSON:
    """The route of `rule` to `cluster`, if it leads anywhere."""
    (match,) = rule["matches"]
    kind, value = match["path"]["type"], match["path"]["value"]
    where: JSON = {"path": value} if kind == "Exact" else {"prefix": value}
    if kind == "RegularExpression":
        where = {"safe_regex": {"regex": value}}
    where["headers"] = [
        {"name": one["name"], "string_match": {"exact": one["value"]}} for one in match.get("headers", ())
    ]
    route: JSON = {"match": where}
    if "backendRefs" in rule:
        route["route"] = {"cluster": cluster, "timeout": "0s"}
    for each in rule["filters"]:
        spec = filters[each["extensionRef"]["name"]] if each["type"] == "ExtensionRef" else each
        if "directResponse" in spec:
            direct = spec["directResponse"]
            content_type: JSON = {"header": {"key": "content-type", "value": direct["contentType"]}}
            content_type["append_action"] = "OVERWRITE_IF_EXISTS_OR_ADD"
            body = {"inline_string": direct["body"]["inline"]}
            route |= {"direct_response": {"status": direct["statusCode"], "body": body}}
            route["response_headers_to_add"] = [content_type]
        if each["type"] == "ResponseHeaderModifier":
            route["response_headers_to_remove"] = list(each["responseHeaderModifier"]["remove"])
        if each["type"] == "RequestHeaderModifier":
            route["request_headers_to_remove"] = list(each["requestHeaderModifier"]["remove"])
        rewrite = spec.get("urlRewrite", {})
        host, path = rewrite.get("hostname"), rewrite.get("path", {})
        if host == {"type": "Backend"}:
            route["route"]["auto_host_rewrite"] = True
        elif host is not None:
            route["route"]["host_rewrite_literal"] = host
        if path.get("type") == "ReplacePrefixMatch":
            route["route"]["prefix_rewrite"] = path["replacePrefixMatch"]
        elif path:
            replaced = path["replaceRegexMatch"]
            pattern = {"regex": replaced["pattern"]}
            route["route"]["regex_rewrite"] = {"pattern": pattern, "substitution": replaced["substitution"]}
    return route


def _retries(given: JSON) -> JSON:
    previous = f"{V3}.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    made: JSON = {
        "num_retries": given["numRetries"],
        "retry_on": ",".join(given["retryOn"]["triggers"]),
        "retriable_status_codes": given["retryOn"].get("httpStatusCodes", []),
        "retry_host_predicate": [
            {"name": "envoy.retry_host_predicates.previous_hosts", "typed_config": {"@type": previous}}
        ],
        "host_selection_retry_max_attempts": "5",
    }
    if "numAttemptsPerPriority" in given:
        config = {"@type": f"{V3}.retry.priority.previous_priorities.v3.PreviousPrioritiesConfig"}
        config["update_frequency"] = given["numAttemptsPerPriority"]
        made["retry_priority"] = {"name": "envoy.retry_priorities.previous_priorities", "typed_config": config}
    if "perRetry" in given:
        made["per_try_timeout"] = f"{int(given['perRetry']['timeout'].removesuffix('ms')) / 1000:g}s"
    return made


def _breakers(given: JSON) -> JSON:
    names = {
        "maxConnections": "max_connections",
        "maxPendingRequests": "max_pending_requests",
        "maxParallelRequests": "max_requests",
        "maxParallelRetries": "max_retries",
    }
    return {"thresholds": [{names[name]: value for name, value in given.items()}]}


def _buffer(size: int) -> JSON:
    return {"@type": f"{V3}.filters.http.buffer.v3.Buffer", "max_request_bytes": size}


def _bytes(text: str) -> int:
    return int(text.removesuffix("Ki")) * 1024
