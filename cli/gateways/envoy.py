"""Envoy's static configuration for a policy: listener, a route per model, ext_proc, clusters, access log.

Envoy shows the router as little as possible: no response unless the policy needs its headers, no trailers where Envoy
lets us skip them. Field names are those of Envoy 1.40's API.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from cli.called import CalledWrongly
from cli.gateways import allowed, api, browsers, credentials, failover, parts
from cli.gateways.parts import BODY_SLACK, EXT_PROC, METADATA, TOLD_HEADERS, as_dict
from cli.gateways.place import Mtls, Place, Secrets, Upstream, endpoint, is_ip, upstreams
from decisions.engine import Engine

SERVICE = "envoy.service.ext_proc.v3.ExternalProcessor"
ROUTER = "pointsman"
ROUTE_HEADER = "x-pointsman-route"
# Not x-pointsman-hop: it must get through, or a router that calls its models through this listener would go in circles.
DECISION_HEADER = "x-pointsman-decision"  # on a request: its answer comes from the router, over HTTP
HOP_HEADER = "x-pointsman-hop"
OUR_HEADERS = (ROUTE_HEADER, DECISION_HEADER, "x-pointsman-model", "x-pointsman-policy")
STEPS = "pointsman-stepwise"
JWT = "envoy.filters.http.jwt_authn"  # identity signals read the claims that Envoy has verified
MESSAGE_SLACK_S = 1.0  # the router keeps its own deadline; Envoy's timer is for a router that hangs
REGEX_SIZE = 100_000  # RE2 instructions; Envoy refuses a path expression of more than 100 unless it is told otherwise
RETRIES = 2  # of a stream to a router that broke before the router had said anything
RETRY_ON = ("connect-failure", "refused-stream", "reset")
AWAY = 503  # what a client gets when no router answers; Envoy's own is 500, which clients need not try again


def render(engine: Engine, place: Place) -> dict[str, Any]:
    """The whole bootstrap as a dictionary for YAML or JSON. Raises CalledWrongly and RenderError when an address is
    missing or wrong."""
    servers = upstreams(engine, place)
    static = api.bootstrap.BootstrapStaticResources(
        listeners=[
            _ingress(engine, place, servers),
            *([_internal(engine, place.internal, servers)] if place.internal is not None else []),
            *failover.listeners(engine, servers),
        ],
        clusters=[
            _router_cluster(place),
            *([_steps_cluster(place.steps)] if place.steps is not None else []),
            *(_model_cluster(server, place) for server in servers),
            *failover.clusters(servers, place),
        ],
        secrets=list(credentials.from_environment(servers, place)),
    )
    limits = api.protobuf.Struct.from_dict({"re2.max_program_size.error_level": REGEX_SIZE})
    runtime = api.bootstrap.RuntimeLayer(name="pointsman", static_layer=limits)
    bootstrap = api.bootstrap.Bootstrap(
        static_resources=static, layered_runtime=api.bootstrap.LayeredRuntime(layers=[runtime])
    )
    if isinstance(place.mtls, Secrets) or any(
        server.credential for server in servers
    ):  # Envoy reads no secrets file without a name of its own
        bootstrap.node = api.core.Node(id=ROUTER, cluster=ROUTER)
    # Costs nothing where no model has fallbacks, and a running Envoy can then be given some (`up`).
    inside = api.internal_listener.InternalListener()
    bootstrap.bootstrap_extensions = [
        api.core.TypedExtensionConfig(name="envoy.bootstrap.internal_listener", typed_config=parts.pack(inside))
    ]
    if place.admin is not None:
        bootstrap.admin = api.bootstrap.Admin(address=parts.address_of(place.admin, "Envoy's admin address"))
    return as_dict(bootstrap)


def ext_proc(engine: Engine, cluster: str = ROUTER, *, duplex: bool) -> api.ext_proc.ExternalProcessor:
    """The filter: which phases the policy needs, how long Envoy waits, what happens when the router is down.

    `cluster` is what Envoy calls the router's cluster. `duplex`: stepwise decisions are answered within the exchange.
    """
    send, skip = api.ext_proc.ProcessingModeHeaderSendMode.SEND, api.ext_proc.ProcessingModeHeaderSendMode.SKIP
    body = api.ext_proc.ProcessingModeBodySendMode
    mode = api.ext_proc.ProcessingMode(
        request_header_mode=send,
        response_header_mode=send if engine.sees_answers else skip,
        request_body_mode=body.FULL_DUPLEX_STREAMED if duplex else body.BUFFERED,
        # For the usage at the end of an answer, a look at it will do; text that is watched is handed over (ADR 19).
        response_body_mode={"none": body.NONE, "usage": body.STREAMED, "text": body.FULL_DUPLEX_STREAMED}[
            engine.watches
        ],
        # Envoy refuses a configuration with FULL_DUPLEX_STREAMED that does not send the trailers.
        request_trailer_mode=send if duplex else skip,
        response_trailer_mode=send if engine.watches == "text" else skip,
    )
    return api.ext_proc.ExternalProcessor(
        stat_prefix="pointsman",
        grpc_service=api.core.GrpcService(
            envoy_grpc=api.core.GrpcServiceEnvoyGrpc(cluster_name=cluster), retry_policy=_retries()
        ),
        processing_mode=mode,
        allow_mode_override=True,
        failure_mode_allow=engine.settings.fail_open,
        status_on_error=api.types.HttpStatus(code=api.types.StatusCode(AWAY)),
        message_timeout=timedelta(seconds=engine.settings.deadline + MESSAGE_SLACK_S),
        metadata_options=api.ext_proc.MetadataOptions(
            forwarding_namespaces=api.ext_proc.MetadataOptionsMetadataNamespaces(untyped=[JWT]),
            # Left empty, our dynamic metadata would be dropped without a word.
            receiving_namespaces=api.ext_proc.MetadataOptionsMetadataNamespaces(untyped=[METADATA]),
        ),
    )


def _retries() -> api.core.RetryPolicy:
    """Begin a stream anew that breaks before the router has said anything, with another router where there is one.

    Envoy repeats what it has sent, as long as that is no more than 64 KiB (ADR 27).
    """
    other = api.core.RetryPolicyRetryHostPredicate(
        name="envoy.retry_host_predicates.previous_hosts",
        typed_config=parts.pack(api.previous_hosts.PreviousHostsPredicate()),
    )
    return api.core.RetryPolicy(
        retry_on=",".join(RETRY_ON),
        num_retries=RETRIES,
        retry_back_off=api.core.BackoffStrategy(
            base_interval=timedelta(milliseconds=25), max_interval=timedelta(milliseconds=250)
        ),
        retry_host_predicate=[other],
        host_selection_retry_max_attempts=3,
    )


def _ingress(engine: Engine, place: Place, servers: list[Upstream]) -> api.listener.Listener:
    """The listener for clients."""
    settings = engine.settings
    # The router removes a client's copies as well; this keeps them from picking the first route.
    guard = api.early_headers.HeaderMutation(
        mutations=[api.mutation_rules.HeaderMutation(remove=name) for name in OUR_HEADERS]
    )
    steps = [] if place.steps is None else [_steps_route()]
    manager = parts.manager("ingress", [*steps, *_routes(engine, servers)])
    duplex = within(engine, place)
    # A client has as long for its headers as for its body, and BUFFERED bodies are waited for by Envoy alone.
    manager.request_headers_timeout = timedelta(seconds=settings.body_timeout)
    if not settings.pass_unread and not settings.openings:  # what goes unread may take its time
        whole = settings.body_timeout + settings.deadline + MESSAGE_SLACK_S
        manager.request_timeout = timedelta(seconds=whole)
    manager.use_remote_address = True
    manager.early_header_mutation_extensions = [
        api.core.TypedExtensionConfig(
            name="envoy.http.early_header_mutation.header_mutation", typed_config=parts.pack(guard)
        )
    ]
    manager.upgrade_configs = [api.hcm.HttpConnectionManagerUpgradeConfig(upgrade_type="websocket")]
    manager.http_filters.insert(
        0, api.hcm.HttpFilter(name=EXT_PROC, typed_config=parts.pack(ext_proc(engine, duplex=duplex)))
    )
    if place.origins:  # before the router: a preflight is no call, and refusals are for pages to read, too
        browsers.allow(manager, place.origins)
    listener = parts.listener("ingress", place.listen, "--listen", manager)
    if not duplex:  # BUFFERED: Envoy answers 413 itself to a body over this
        listener.per_connection_buffer_limit_bytes = settings.max_body + BODY_SLACK
    return listener


def within(engine: Engine, place: Place) -> bool:
    """Whether an answer may take long within the ext_proc exchange, which needs the full-duplex body mode: those of
    stepwise decisions, and kept ones, since equal requests wait for the first one's. (Envoy Gateway cannot fail open
    in that mode; kept answers do without.)

    Raises CalledWrongly where the operator asks for that mode and the policy for something that it does not go with.
    """
    if place.duplex and engine.settings.fail_open:
        raise CalledWrongly("--full-duplex: settings.fail_open has no effect in that mode; leave one of them out")
    return place.duplex or (engine.writes and place.steps is None) or (engine.caches and not engine.settings.fail_open)


def _internal(engine: Engine, where: str, servers: list[Upstream]) -> api.listener.Listener:
    """The listener for the router's own calls to the models: its own paths, and no filter that would call it again.

    The router asks for one certain model, without fallbacks: it deals with failures itself.
    """
    alone = [replace(server, fallback=()) for server in servers]
    return parts.listener("internal", where, "--internal", parts.manager("internal", _open_routes(engine, alone)))


def _routes(engine: Engine, servers: list[Upstream]) -> list[api.route.Route]:
    """Routes to the models for what the policy lets on, and a refusal for the rest.

    All of them are behind the filter, so the router sees what is refused here, and refuses it first.
    """
    if engine.settings.pass_unread:
        return _open_routes(engine, servers)
    by_key = {server.key: server for server in servers}
    limit = engine.settings.max_body + BODY_SLACK
    routes = [
        *(_call_route(f"model-{server.key}", server, limit, _chosen(server)) for server in servers),
        _call_route("default", by_key[engine.default.key], limit),
    ]
    for number, opened in enumerate(allowed.opened(engine), 1):
        match = api.route.RouteMatch(path=opened.text)
        if not opened.exact:
            match = api.route.RouteMatch(safe_regex=api.matcher.RegexMatcher(regex=opened.text))
        server = by_key[opened.to]
        routes.append(_route(f"path-{number}", server, match, allowed.to_opened(server, opened)))
    return [*routes, _refusal()]


def _open_routes(engine: Engine, servers: list[Upstream]) -> list[api.route.Route]:
    """A route to each model for whatever the router sends there, and to the default for all the rest."""
    default = next(server for server in servers if server.key == engine.default.key)
    routes = []
    for name, server, headers in [*((f"model-{s.key}", s, _chosen(s)) for s in servers), ("default", default, [])]:
        if server.base is not None or server.fallback:
            routes.append(_call_route(f"{name}-calls", server, engine.settings.max_body + BODY_SLACK, headers))
        routes.append(_route(name, server, api.route.RouteMatch(prefix="/", headers=headers)))
    return routes


def _chosen(server: Upstream) -> list[api.route.HeaderMatcher]:
    """The router has chosen this model."""
    return [api.route.HeaderMatcher(name=ROUTE_HEADER, string_match=api.matcher.StringMatcher(exact=server.key))]


def _call_route(
    name: str, server: Upstream, limit: int, headers: Sequence[api.route.HeaderMatcher] = ()
) -> api.route.Route:
    """A route for what the router reads; `limit` bytes of a body are kept for the model's fallbacks."""
    calls = api.matcher.RegexMatcher(regex=allowed.CALLS)
    match = api.route.RouteMatch(safe_regex=calls, headers=list(headers))
    route = _route(name, server, match, allowed.to_call(server))
    if server.fallback:
        failover.switch(route, server, limit)
    return route


def _route(
    name: str, server: Upstream, match: api.route.RouteMatch, rewrite: allowed.Rewrite | None = None
) -> api.route.Route:
    action = api.route.RouteAction(
        cluster=f"model-{server.key}",
        timeout=parts.no_timeout(),
        host_rewrite_literal=server.authority,
        retry_policy=api.route.RetryPolicy(retry_on="connect-failure,refused-stream", num_retries=2),
    )
    if server.path and match.prefix:
        action.prefix_rewrite = f"{server.path}/"
    elif rewrite is not None:  # a prefix rewrite would put it in the place of all that was matched
        action.regex_rewrite = api.matcher.RegexMatchAndSubstitute(
            pattern=api.matcher.RegexMatcher(regex=rewrite.pattern), substitution=rewrite.substitution
        )
    return api.route.Route(name=name, match=match, route=action, response_headers_to_remove=list(TOLD_HEADERS))


def _refusal() -> api.route.Route:
    content_type = api.core.HeaderValueOption(
        header=api.core.HeaderValue(key="content-type", value=allowed.CONTENT_TYPE),
        append_action=api.core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
    )
    return api.route.Route(
        name="refused",
        match=api.route.RouteMatch(prefix="/"),
        direct_response=api.route.DirectResponseAction(
            status=allowed.STATUS, body=api.core.DataSource(inline_string=allowed.BODY)
        ),
        response_headers_to_add=[content_type],
    )


def _steps_route() -> api.route.Route:
    """Requests whose stepwise decision the router answers over HTTP; its own, with the hop header, never match."""
    headers = [
        api.route.HeaderMatcher(name=DECISION_HEADER, present_match=True),
        api.route.HeaderMatcher(name=HOP_HEADER, present_match=False),
    ]
    action = api.route.RouteAction(
        cluster=STEPS,
        timeout=timedelta(0),
        retry_policy=api.route.RetryPolicy(retry_on="connect-failure,refused-stream", num_retries=2),
    )
    return api.route.Route(name="stepwise", match=api.route.RouteMatch(prefix="/", headers=headers), route=action)


def _steps_cluster(where: str) -> api.cluster.Cluster:
    hosts, addresses = _hosts(where, "--writers")
    cluster = parts.cluster(STEPS, addresses, all(not host or is_ip(host) for host in hosts))
    cluster.health_checks = [
        _health_check(http_health_check=api.core.HealthCheckHttpHealthCheck(path="/healthz", host=ROUTER))
    ]
    return cluster


def _hosts(where: str, option: str) -> tuple[list[str], list[api.core.Address]]:
    """Several addresses with commas between: their hosts (empty for Unix sockets), and the addresses."""
    written = where.split(",")
    hosts = ["" if isinstance(found := endpoint(text, option), str) else found[0] for text in written]
    if "" in hosts and not all(not host or is_ip(host) for host in hosts):
        raise CalledWrongly(
            f"{option}: Envoy looks names up for a whole cluster, so none can stand beside a Unix socket"
        )
    return hosts, [parts.address_of(text, option) for text in written]


def _health_check(**kind: Any) -> api.core.HealthCheck:
    return api.core.HealthCheck(
        timeout=timedelta(seconds=1),
        interval=timedelta(seconds=1),
        no_traffic_interval=timedelta(seconds=1),
        unhealthy_threshold=2,
        healthy_threshold=1,
        **kind,
    )


def _router_cluster(place: Place) -> api.cluster.Cluster:
    hosts, addresses = _hosts(place.router, "--router")
    literal = all(not host or is_ip(host) for host in hosts)
    cluster = parts.cluster(ROUTER, addresses, literal)
    http2 = api.http.HttpProtocolOptionsExplicitHttpConfig(http2_protocol_options=api.core.Http2ProtocolOptions())
    cluster.typed_extension_protocol_options = {
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": parts.pack(
            api.http.HttpProtocolOptions(explicit_http_config=http2)
        )
    }
    cluster.health_checks = [_health_check(grpc_health_check=api.core.HealthCheckGrpcHealthCheck(service_name=SERVICE))]
    if place.mtls is not None:
        if not literal and len(set(hosts)) > 1:
            raise CalledWrongly("--router: with TLS, give one name that stands for all routers, or their addresses")
        cluster.transport_socket = _tls([host for host in dict.fromkeys(hosts) if host], place.mtls)
    return cluster


def _model_cluster(server: Upstream, place: Place) -> api.cluster.Cluster:
    host = f"[{server.host}]" if ":" in server.host else server.host
    where = parts.address_of(f"{host}:{server.port}", f"model {server.key}")
    cluster = parts.cluster(f"model-{server.key}", [where], server.literal)
    if server.tls:
        cluster.transport_socket = _tls([server.host], Mtls(ca="/etc/ssl/certs/ca-certificates.crt"))
    credentials.add(cluster, server, place)
    cluster.health_checks = failover.probe(server)
    if server.fallback:
        cluster.outlier_detection = failover.passed_over()
    return cluster


def _tls(hosts: list[str], files: Mtls | Secrets) -> api.core.TransportSocket:
    """TLS to one DNS name, or to one or more addresses; the certificate must carry it. Empty for a Unix socket."""
    name = next((host for host in hosts if not is_ip(host)), "")
    # SNI holds names only, so Envoy does not check an address by itself.
    sans = [
        api.tls.SubjectAltNameMatcher(
            san_type=api.tls.SubjectAltNameMatcherSanType.IP_ADDRESS, matcher=api.matcher.StringMatcher(exact=host)
        )
        for host in hosts
        if is_ip(host)
    ]
    validation = api.tls.CertificateValidationContext(match_typed_subject_alt_names=sans)
    context = api.tls.CommonTlsContext()
    if isinstance(files, Secrets):
        context.combined_validation_context = api.tls.CommonTlsContextCombinedCertificateValidationContext(
            default_validation_context=validation, validation_context_sds_secret_config=_secret("router-ca", files)
        )
        context.tls_certificate_sds_secret_configs = [_secret("router-cert", files)]
    else:
        validation.trusted_ca = api.core.DataSource(filename=files.ca)
        context.validation_context = validation
        if files.cert is not None and files.key is not None:
            certificate = api.tls.TlsCertificate(
                certificate_chain=api.core.DataSource(filename=files.cert),
                private_key=api.core.DataSource(filename=files.key),
            )
            context.tls_certificates = [certificate]
    tls = api.tls.UpstreamTlsContext(sni=name, auto_sni_san_validation=bool(name), common_tls_context=context)
    return api.core.TransportSocket(name="envoy.transport_sockets.tls", typed_config=parts.pack(tls))


def _secret(name: str, secrets: Secrets) -> api.tls.SdsSecretConfig:
    source = api.core.ConfigSource(path_config_source=api.core.PathConfigSource(path=f"{secrets.folder}/{name}.yaml"))
    return api.tls.SdsSecretConfig(name=name, sds_config=source)


__all__ = ["ext_proc", "render", "within"]
