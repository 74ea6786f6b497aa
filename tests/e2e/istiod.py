"""What Istio makes of rendered objects, for a real Envoy: the routes of a gateway, and an EnvoyFilter's patches.

It stands in for istiod, which no test can run, and does as its sources say (`pilot/pkg/networking/core`): a listener
with one connection manager, a virtual host for each host name, the clusters' names, and of the Gateway API the order of
rules (`sortHTTPRoutes`). An EnvoyFilter's values are merged as protobuf messages are: fields one by one, lists one
after the other.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from tests.e2e.proxy import JSON

MANAGER = "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
ROUTER = "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"


def gateway(objects: list[JSON], others: list[JSON]) -> JSON:
    """The gateway's listener on port 80: the routes of `objects` for their hosts, and `others`, virtual hosts of
    another application, before the EnvoyFilter of `objects` is applied to all of it."""
    ours = [_virtual_host(each) for each in objects if each["kind"] in ("VirtualService", "HTTPRoute")]
    manager: JSON = {
        "@type": MANAGER,
        "stat_prefix": "outbound_0.0.0.0_80",
        "route_config": {"name": "http.80", "virtual_hosts": copy.deepcopy([*ours, *others])},
        "http_filters": [{"name": "envoy.filters.http.router", "typed_config": {"@type": ROUTER}}],
    }
    chain = {"filters": [{"name": "envoy.filters.network.http_connection_manager", "typed_config": manager}]}
    address = {"socket_address": {"address": "127.0.0.1", "port_value": 0}}
    listener: JSON = {"name": "0.0.0.0_80", "address": address, "filter_chains": [chain]}
    for each in objects:
        if each["kind"] == "EnvoyFilter":
            for patch in each["spec"]["configPatches"]:
                _apply(patch, listener, manager)
    return listener


def clusters(objects: list[JSON], made: JSON) -> JSON:
    """The clusters by name: `made`, those of services, with the subsets of DestinationRules and the EnvoyFilter's."""
    made = copy.deepcopy(made)
    for each in objects:
        for subset in each["spec"].get("subsets", ()) if each["kind"] == "DestinationRule" else ():
            for name in [one for one in made if one.endswith(f"||{each['spec']['host']}")]:
                own = made[name.replace("||", f"|{subset['name']}|")] = copy.deepcopy(made[name])
                own["name"] = own["load_assignment"]["cluster_name"] = name.replace("||", f"|{subset['name']}|")
                if (outlier := subset.get("trafficPolicy", {}).get("outlierDetection")) is not None:
                    own["outlier_detection"] = {
                        "consecutive_5xx": outlier["consecutive5xxErrors"],
                        "interval": outlier["interval"],
                        "base_ejection_time": outlier["baseEjectionTime"],
                        "max_ejection_percent": outlier["maxEjectionPercent"],
                    }
    for patch in patches(objects, "CLUSTER"):
        value = copy.deepcopy(patch["patch"]["value"])
        if patch["patch"]["operation"] == "ADD":
            made[value["name"]] = value
        else:
            match = patch["match"]["cluster"]
            _merge(made[f"outbound|{match['portNumber']}|{match.get('subset', '')}|{match['service']}"], value)
    return made


def listeners(objects: list[JSON]) -> list[JSON]:
    """The listeners that the EnvoyFilter adds."""
    return [
        copy.deepcopy(patch["patch"]["value"])
        for patch in patches(objects, "LISTENER")
        if patch["patch"]["operation"] == "ADD"
    ]


def patches(objects: list[JSON], to: str) -> Iterator[JSON]:
    for each in objects:
        for patch in each["spec"].get("configPatches", ()) if each["kind"] == "EnvoyFilter" else ():
            if patch["applyTo"] == to:
                yield patch


def _apply(patch: JSON, listener: JSON, manager: JSON) -> None:
    value, where = copy.deepcopy(patch["patch"]["value"]), patch["match"]
    assert where["context"] == "GATEWAY"
    if where.get("listener", {}).get("portNumber", 80) != 80:
        return
    match patch["applyTo"], patch["patch"]["operation"]:
        case "HTTP_FILTER", "INSERT_BEFORE":
            assert where["listener"]["filterChain"]["filter"]["subFilter"]["name"] == "envoy.filters.http.router"
            manager["http_filters"].insert(-1, value)
        case "NETWORK_FILTER", "MERGE":
            _merge(manager, value["typed_config"])
        case "LISTENER", "MERGE":
            _merge(listener, value)
        case "HTTP_ROUTE", "MERGE":
            name = where["routeConfiguration"]["vhost"]["route"]["name"]
            for host in manager["route_config"]["virtual_hosts"]:
                for route in host["routes"]:
                    if route["name"] == name:
                        _merge(route, value)
        case ("CLUSTER", _) | ("LISTENER", "ADD"):
            pass
        case other:
            raise AssertionError(other)


def _merge(into: JSON, value: JSON) -> None:
    for key, new in value.items():
        old = into.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            _merge(old, new)
        elif isinstance(old, list) and isinstance(new, list):
            old += new
        else:
            into[key] = new


def _virtual_host(found: JSON) -> JSON:
    spec = found["spec"]
    if found["kind"] == "VirtualService":
        hosts, routes = spec["hosts"], [_of_virtual_service(rule) for rule in spec["http"]]
    else:
        hosts = spec.get("hostnames", ["*"])
        routes = [_of_http_route(rule) for rule in sorted(spec["rules"], key=_rank, reverse=True)]
    return {"name": f"{hosts[0]}:80", "domains": hosts, "routes": routes}


def _rank(rule: JSON) -> tuple[int, int, int]:
    (match,) = rule["matches"]
    kinds = ("RegularExpression", "PathPrefix", "Exact")
    return kinds.index(match["path"]["type"]), len(match["path"]["value"]), len(match.get("headers", ()))


def _headers(headers: dict[str, dict[str, Any]], absent: bool = False) -> Iterator[JSON]:
    for name, text in headers.items():
        if "exact" in text:
            yield {"name": name, "string_match": {"exact": text["exact"]}}
        else:
            yield {"name": name, "present_match": True, "invert_match": absent}


def _of_virtual_service(rule: JSON) -> JSON:
    (match,) = rule["match"]
    kind, value = next(iter(match["uri"].items()))
    path = {"exact": {"path": value}, "prefix": {"prefix": value}, "regex": {"safe_regex": {"regex": value}}}[kind]
    headers = [*_headers(match.get("headers", {})), *_headers(match.get("withoutHeaders", {}), True)]
    made: JSON = {"name": rule["name"], "match": {**path, "headers": headers}}
    response = rule.get("headers", {}).get("response", {})
    made["response_headers_to_remove"] = list(response.get("remove", ()))
    made["response_headers_to_add"] = [_added(name, text) for name, text in response.get("set", {}).items()]
    if "directResponse" in rule:
        direct = rule["directResponse"]
        made["direct_response"] = {"status": direct["status"], "body": {"inline_string": direct["body"]["string"]}}
        return made
    to = rule["route"][0]["destination"]
    name = f"outbound|{to['port']['number']}|{to.get('subset', '')}|{to['host']}"
    made["route"] = {"cluster": name, "timeout": "0s", "retry_policy": _retries(rule.get("retries", {}))}
    if "authority" in rule.get("rewrite", {}):
        made["route"]["host_rewrite_literal"] = rule["rewrite"]["authority"]
    if (put := rule.get("rewrite", {}).get("uriRegexRewrite")) is not None:
        made["route"]["regex_rewrite"] = {"pattern": {"regex": put["match"]}, "substitution": put["rewrite"]}
    return made


def _retries(given: JSON) -> JSON:
    """`pilot/pkg/networking/core/route/retry`: numbers among the conditions are statuses."""
    words = given.get("retryOn", "connect-failure,refused-stream,unavailable,cancelled").split(",")
    codes = [int(word) for word in words if word.isdecimal()]
    predicate = "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"
    made: JSON = {
        "num_retries": given.get("attempts", 2),
        "retry_on": ",".join(
            [word for word in words if not word.isdecimal()] + ["retriable-status-codes"] * bool(codes)
        ),
        "retriable_status_codes": codes,
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": {"@type": f"type.googleapis.com/{predicate}"},
            }
        ],
        "host_selection_retry_max_attempts": "5",
    }
    if "perTryTimeout" in given:
        made["per_try_timeout"] = f"{int(given['perTryTimeout'].removesuffix('ms')) / 1000:.3f}s"
    return made


def _of_http_route(rule: JSON) -> JSON:
    (match,) = rule["matches"]
    path = match["path"]
    where: JSON = {"path": path["value"]} if path["type"] == "Exact" else {"safe_regex": {"regex": path["value"]}}
    where["headers"] = [
        *_headers({each["name"]: {"exact": each["value"]} for each in match.get("headers", ()) if _exact(each)}),
        *_headers({each["name"]: {} for each in match.get("headers", ()) if not _exact(each)}),
    ]
    made: JSON = {"name": rule["name"], "match": where}
    if "backendRefs" in rule:
        (to,) = rule["backendRefs"]
        assert (to["group"], to["kind"]) == ("networking.istio.io", "Hostname")
        made["route"] = {
            "cluster": f"outbound|{to['port']}||{to['name']}",
            "timeout": "0s",
            "retry_policy": _retries({}),
        }
    else:
        made["direct_response"] = {"status": 500}
    for each in rule.get("filters", ()):
        if each["type"] == "URLRewrite":
            made["route"]["host_rewrite_literal"] = each["urlRewrite"]["hostname"]
        elif each["type"] == "ResponseHeaderModifier":
            made["response_headers_to_remove"] = list(each["responseHeaderModifier"]["remove"])
    return made


def _exact(header: JSON) -> bool:
    return header.get("type", "Exact") == "Exact"


def _added(name: str, text: str) -> JSON:
    return {"header": {"key": name, "value": text}, "append_action": "OVERWRITE_IF_EXISTS_OR_ADD"}
