"""What the parts of Envoy's configuration are made of, in its own classes: listeners, clusters, the access log."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import yaml

from cli.gateways import api, replies
from cli.gateways.place import endpoint
from config.writers import WRITERS

EXT_PROC = "envoy.filters.http.ext_proc"  # the filter's name, which is also the key of its timings in filter state
METADATA = "pointsman"
TOLD_HEADERS = (
    *(f"x-pointsman-{name}" for name in ("decision", "model", "policy", "route", "fallback")),
    *(name for kind in WRITERS for name in kind.headers),
)
"""What we tell clients with an answer. A model's copies are removed on its route, before ext_proc adds ours: the
response phase does not reach the router for requests that it let pass, or when the policy wants none."""
STREAM_IDLE_S = 900  # a reasoning model may say nothing for minutes
CONNECT_S = 5
STREAMS = 65_536  # requests to one cluster at a time; Envoy's own 1,024 would turn a busy hour into 503s
BODY_SLACK = 65_536  # room above `max_body`, so that the router's own 413 (in the API's shape) comes first


def access_log(ext_proc: str = EXT_PROC) -> dict[str, str]:
    """Field → Envoy command operator, of the JSON access log; `ext_proc` is what the gateway calls the filter."""

    def of_ours(field: str) -> str:
        return f"%DYNAMIC_METADATA({METADATA}:{field})%"

    return {
        "time": "%START_TIME%",
        "method": "%REQ(:METHOD)%",
        "path": "%PATH(NQ:PATH):1024%",  # without the query: some APIs take keys there
        "status": "%RESPONSE_CODE%",
        "details": "%RESPONSE_CODE_DETAILS%",
        "flags": "%RESPONSE_FLAGS%",
        "duration_ms": "%DURATION%",
        "first_byte_ms": "%RESPONSE_DURATION%",
        "bytes_received": "%BYTES_RECEIVED%",
        "bytes_sent": "%BYTES_SENT%",
        "request_id": "%REQ(X-REQUEST-ID):256%",
        "upstream": "%UPSTREAM_CLUSTER%",
        "decision": of_ours("decision"),
        "model": of_ours("model"),
        "policy": of_ours("policy"),
        "ext_proc_header_us": f"%FILTER_STATE({ext_proc}:FIELD:request_header_latency_us)%",
        "ext_proc_body_us": f"%FILTER_STATE({ext_proc}:FIELD:request_body_total_latency_us)%",
    }


def manager(name: str, routes: list[api.route.Route]) -> api.hcm.HttpConnectionManager:
    fields = api.protobuf.Struct.from_dict(access_log())
    log = api.stream_log.StdoutAccessLog(log_format=api.core.SubstitutionFormatString(json_format=fields))
    hosts = [api.route.VirtualHost(name="models", domains=["*"], routes=routes)]
    return api.hcm.HttpConnectionManager(
        stat_prefix=name,
        # Dot segments and doubled slashes are gone before anybody reads the path. Escaped slashes are left to the
        # router: model names have them (`/v1/models/Qwen%2FQwen3-8B`), and what it reads it also writes into the path.
        # Headers with underscores pass: the router and the models read names as they are sent.
        normalize_path=True,
        merge_slashes=True,
        path_with_escaped_slashes_action=api.hcm.HttpConnectionManagerPathWithEscapedSlashesAction.KEEP_UNCHANGED,
        stream_idle_timeout=timedelta(seconds=STREAM_IDLE_S),
        access_log=[api.accesslog.AccessLog(name="envoy.access_loggers.stdout", typed_config=pack(log))],
        local_reply_config=replies.config(),
        route_config=api.route.RouteConfiguration(name="models", virtual_hosts=hosts),
        http_filters=[api.hcm.HttpFilter(name="envoy.filters.http.router", typed_config=pack(api.router.Router()))],
    )


def listener(name: str, where: str, option: str, manager: api.hcm.HttpConnectionManager) -> api.listener.Listener:
    return api.listener.Listener(name=name, address=address_of(where, option), filter_chains=[chain(manager)])


def chain(manager: api.hcm.HttpConnectionManager) -> api.listener.FilterChain:
    return api.listener.FilterChain(
        filters=[api.listener.Filter(name="envoy.http_connection_manager", typed_config=pack(manager))]
    )


def cluster(name: str, addresses: list[api.core.Address], literal: bool) -> api.cluster.Cluster:
    endpoints = [
        api.endpoint.LocalityLbEndpoints(
            lb_endpoints=[
                api.endpoint.LbEndpoint(endpoint=api.endpoint.Endpoint(address=address)) for address in addresses
            ]
        )
    ]
    return api.cluster.Cluster(
        name=name,
        type=api.cluster.ClusterDiscoveryType.STATIC if literal else api.cluster.ClusterDiscoveryType.STRICT_DNS,
        dns_lookup_family=api.cluster.ClusterDnsLookupFamily.AUTO
        if literal
        else api.cluster.ClusterDnsLookupFamily.V4_PREFERRED,
        connect_timeout=connect_timeout(),
        circuit_breakers=breakers(),
        load_assignment=api.endpoint.ClusterLoadAssignment(cluster_name=name, endpoints=endpoints),
    )


def connect_timeout() -> timedelta:
    return timedelta(seconds=CONNECT_S)


def no_timeout() -> timedelta:
    """Of an answer: it may stream for as long as it has something to say."""
    return timedelta(0)


def breakers() -> api.cluster.CircuitBreakers:
    limits = api.cluster.CircuitBreakersThresholds(
        max_connections=STREAMS, max_pending_requests=STREAMS, max_requests=STREAMS, max_retries=STREAMS
    )
    return api.cluster.CircuitBreakers(thresholds=[limits])


def address_of(where: str, what: str) -> api.core.Address:
    parsed = endpoint(where, what)
    if isinstance(parsed, str):
        return api.core.Address(pipe=api.core.Pipe(path=parsed))
    return api.core.Address(socket_address=api.core.SocketAddress(address=parsed[0] or "0.0.0.0", port_value=parsed[1]))


def packed(message: api.Message) -> dict[str, Any]:
    """`message` as an Any in JSON form, with its `@type`."""
    return as_dict(pack(message))


class _Packed(api.protobuf.Any):
    """An Any that has its message still: nobody has to write it as bytes, and to read them, for its JSON form."""

    def __init__(self, message: api.Message, url: str) -> None:
        super().__init__(type_url=url)
        self._message = message

    def to_dict(self, **how: Any) -> dict[str, Any]:
        return {"@type": self.type_url, **self._message.to_dict(**how)}

    def __bytes__(self) -> bytes:
        return bytes(api.protobuf.Any(type_url=self.type_url, value=bytes(self._message)))


def pack(message: api.Message) -> api.protobuf.Any:
    """`message`, which is of Envoy's and no well-known type, as an Any; it must not change afterwards."""
    return _Packed(message, api.pool.type_to_url[type(message)])


def as_dict(message: api.Message) -> dict[str, Any]:
    """`message` in JSON form, with the names of the proto files."""
    fields: dict[str, Any] = message.to_dict(casing=api.Casing.SNAKE)
    return fields


def as_yaml(objects: list[dict[str, Any]]) -> str:
    """`objects` as a stream of YAML documents, written by libyaml where PyYAML has it: in a tenth of the time."""
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    text: str = yaml.dump_all(objects, Dumper=dumper, sort_keys=False, width=120)
    return text
