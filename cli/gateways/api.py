"""Envoy's configuration API, as envoy-data-plane's generated classes: one name per proto package."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

with warnings.catch_warnings():  # the generated classes use a form of pydantic's validators that newer ones deprecate
    warnings.simplefilter("ignore", DeprecationWarning)
    import betterproto2
    from betterproto2 import Casing, Message
    from envoy_data_plane.envoy.config.accesslog import v3 as accesslog
    from envoy_data_plane.envoy.config.bootstrap import v3 as bootstrap
    from envoy_data_plane.envoy.config.cluster import v3 as cluster
    from envoy_data_plane.envoy.config.common.mutation_rules import v3 as mutation_rules
    from envoy_data_plane.envoy.config.core import v3 as core
    from envoy_data_plane.envoy.config.endpoint import v3 as endpoint
    from envoy_data_plane.envoy.config.listener import v3 as listener
    from envoy_data_plane.envoy.config.route import v3 as route
    from envoy_data_plane.envoy.extensions.access_loggers.filters.cel import v3 as cel
    from envoy_data_plane.envoy.extensions.access_loggers.stream import v3 as stream_log
    from envoy_data_plane.envoy.extensions.bootstrap.internal_listener import v3 as internal_listener
    from envoy_data_plane.envoy.extensions.clusters.aggregate import v3 as aggregate
    from envoy_data_plane.envoy.extensions.filters.http.cors import v3 as cors
    from envoy_data_plane.envoy.extensions.filters.http.credential_injector import v3 as credential_injector
    from envoy_data_plane.envoy.extensions.filters.http.ext_proc import v3 as ext_proc
    from envoy_data_plane.envoy.extensions.filters.http.header_mutation import v3 as header_mutation
    from envoy_data_plane.envoy.extensions.filters.http.lua import v3 as lua
    from envoy_data_plane.envoy.extensions.filters.http.router import v3 as router
    from envoy_data_plane.envoy.extensions.filters.http.upstream_codec import v3 as upstream_codec
    from envoy_data_plane.envoy.extensions.filters.network.http_connection_manager import v3 as hcm
    from envoy_data_plane.envoy.extensions.http.early_header_mutation.header_mutation import v3 as early_headers
    from envoy_data_plane.envoy.extensions.http.injected_credentials.generic import v3 as generic_credential
    from envoy_data_plane.envoy.extensions.retry.host.previous_hosts import v3 as previous_hosts
    from envoy_data_plane.envoy.extensions.retry.priority.previous_priorities import v3 as previous_priorities
    from envoy_data_plane.envoy.extensions.transport_sockets.tls import v3 as tls
    from envoy_data_plane.envoy.extensions.upstreams.http import v3 as http
    from envoy_data_plane.envoy.type import v3 as types
    from envoy_data_plane.envoy.type.matcher import v3 as matcher
    from envoy_data_plane.google import protobuf
    from envoy_data_plane.message_pool import default_message_pool as pool
    from pydantic_core import SchemaValidator

__all__ = [
    "Casing",
    "Message",
    "accesslog",
    "aggregate",
    "bootstrap",
    "cel",
    "cluster",
    "core",
    "cors",
    "credential_injector",
    "early_headers",
    "endpoint",
    "ext_proc",
    "generic_credential",
    "hcm",
    "header_mutation",
    "http",
    "internal_listener",
    "listener",
    "lua",
    "matcher",
    "mutation_rules",
    "pool",
    "previous_hosts",
    "previous_priorities",
    "protobuf",
    "route",
    "router",
    "stream_log",
    "tls",
    "types",
    "upstream_codec",
]


@cache
def _validator(kind: Any) -> SchemaValidator:
    return SchemaValidator(kind.__pydantic_core_schema__)


def _validate(message: Any) -> None:
    fields = vars(message).copy()
    del fields["_unknown_fields"]
    kind: Any = type(message)
    _validator(kind).validate_python(fields)


def _keep_what_stays() -> None:
    """Let the generated classes keep what is the same for every message of a class.

    For each message, betterproto2 reads the annotations of its class, builds the class's validator and spells its
    fields anew: half of the time that rendering takes. A release that has other names for these only takes that time.
    """
    own: Any = Message
    hints = vars(own).get("_type_hints")
    if isinstance(hints, classmethod):
        own._type_hints = classmethod(cache(hints.__func__))  # type: ignore[arg-type]
    if "_validate" in vars(own):
        own._validate = _validate
    spelled = vars(betterproto2).get("snake_case")
    if callable(spelled):
        vars(betterproto2)["snake_case"] = cache(spelled)


_keep_what_stays()
