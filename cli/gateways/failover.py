"""The models that take a failed one's place (`fallback`), for Envoy.

A request to a model with fallbacks goes to an aggregate cluster: the model's own server first, then one listener inside
this Envoy per fallback. Envoy tries the next one on a connection error, a 5xx and a 429, as long as nothing of an
answer was sent on, and where none has begun in time. A server that fails time and again, or does not say that it is
well, is passed over for a while. Such a listener turns the request into one for its own model: it writes the model's
name into the body (Lua; every other byte stays), its path and its host, and sends it on to the model's cluster, which
adds the credential. The external processor is not asked again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Final

from cli.gateways import allowed, api, credentials, parts
from cli.gateways.place import Place, Upstream
from decisions.engine import Engine
from extproc.apis.registry import SHAPES
from extproc.told import FALLBACK

FULL = 429
"""The status of a server that takes no more for now."""
FAILURES = 5  # Envoy's own number
LOOK_S = 1
AWAY_S = 10
ASK_S, PATIENCE_S, MISSES = 5, 2, 2
"""How often a server is asked whether it is well, how long it has for saying so, and how often it may not."""
_LISTENERS_WORD = f"""%CEL(upstream.address.startsWith('envoy://') ? response.headers['{FALLBACK}'] : '')%"""
"""What a listener inside Envoy says of who has answered, and nothing of any other server."""
_LUA = """\
-- The string that begins after `at`: where it ends.
local function closing(text, at)
  while true do
    at = text:find('["\\\\]', at + 1)
    if at == nil or text:byte(at) == 34 then return at end
    at = at + 1
  end
end

-- Where the value of the top-level "model" begins and ends.
local function model(text)
  local depth, at = 0, 0
  while true do
    at = text:find('["{}%[%]]', at + 1)
    if at == nil then return nil end
    local byte = text:byte(at)
    if byte == 34 then
      local close = closing(text, at)
      if close == nil then return nil end
      local name = depth == 1 and text:sub(at + 1, close - 1):gsub("\\\\u00(%x%x)", function(hex)
        return string.char(tonumber(hex, 16))
      end)
      local value = name == "model" and text:match('^%s*:%s*()"', close + 1)
      if value then return value, closing(text, value) end
      at = close
    elseif byte == 123 or byte == 91 then
      depth = depth + 1
    else
      depth = depth - 1
    end
  end
end

function envoy_on_request(handle)
  local body = handle:body()
  if body == nil then return end
  local text = body:getBytes(0, body:length())
  local first, last = model(text)
  if last == nil then return end
  local size = body:setBytes(text:sub(1, first - 1) .. NAME .. text:sub(last + 1))
  if handle:headers():get("content-length") then handle:headers():replace("content-length", tostring(size)) end
end
"""


@dataclass(frozen=True, slots=True)
class Names:
    """How the parts are called: `before` comes before the names of ours, `model` is the cluster of a model's server."""

    before: str = ""
    model: Callable[[Upstream], str] = lambda server: f"model-{server.key}"

    def aggregate(self, server: Upstream) -> str:
        return f"{self.before}failover-{server.key}"

    def listener(self, server: Upstream, rank: int) -> str:
        return f"{self.before}fallback-{rank}-{server.key}"


PLAIN: Final = Names()


def switch(route: api.route.Route, server: Upstream, limit: int, names: Names = PLAIN) -> None:
    """Let `route`, which leads to `server`, go on to its fallbacks: calls only, not what is asked of stored responses.

    `limit` bytes of a body are kept for another try; a longer one has none.
    """
    assert route.route is not None
    priority = api.previous_priorities.PreviousPrioritiesConfig(update_frequency=1)
    route.route.cluster = names.aggregate(server)
    route.route.retry_policy = api.route.RetryPolicy(
        retry_on="5xx,retriable-status-codes",
        retriable_status_codes=[FULL],
        retriable_request_headers=[
            api.route.HeaderMatcher(name=":method", string_match=api.matcher.StringMatcher(exact="POST"))
        ],
        num_retries=len(server.fallback),
        retry_priority=api.route.RetryPolicyRetryPriority(
            name="envoy.retry_priorities.previous_priorities", typed_config=parts.pack(priority)
        ),
    )
    if server.per_try_timeout is not None:  # until an answer begins; one that streams may take its time
        route.route.retry_policy.per_try_timeout = timedelta(seconds=server.per_try_timeout)
    route.request_body_buffer_limit = limit
    # Left in place, since what a listener says is there by now, and put anew: what the model's own server says there is
    # not to be believed.
    route.response_headers_to_remove.remove(FALLBACK)
    route.response_headers_to_add.append(_told(_LISTENERS_WORD))


def passed_over() -> api.cluster.OutlierDetection:
    """After how many failures on end a server is passed over at once, and for how long (each time a little longer)."""
    return api.cluster.OutlierDetection(
        interval=timedelta(seconds=LOOK_S),
        base_ejection_time=timedelta(seconds=AWAY_S),
        max_ejection_percent=100,  # of one server: less, and it would stay
        successful_active_health_check_uneject_host=False,  # it may be well and fail all the same
    )


def probe(server: Upstream) -> list[api.core.HealthCheck]:
    """How `server` is asked whether it is well, if it is."""
    if server.health_check is None:
        return []
    check = api.core.HealthCheckHttpHealthCheck(path=server.health_check, host=server.authority)
    every = timedelta(seconds=ASK_S)
    return [
        api.core.HealthCheck(
            timeout=timedelta(seconds=PATIENCE_S),
            interval=every,
            no_traffic_interval=every,
            unhealthy_threshold=MISSES,
            healthy_threshold=1,
            http_health_check=check,
        )
    ]


def clusters(servers: list[Upstream], place: Place, names: Names = PLAIN) -> Iterator[api.cluster.Cluster]:
    """For each model with fallbacks the aggregate, and a cluster for each of the listeners."""
    for server in servers:
        if not server.fallback:
            continue
        inside = [names.listener(server, rank) for rank in range(1, len(server.fallback) + 1)]
        for name in inside:
            address = api.core.EnvoyInternalAddress(server_listener_name=name)
            yield parts.cluster(name, [api.core.Address(envoy_internal_address=address)], True)
        members = api.aggregate.ClusterConfig(clusters=[names.model(server), *inside])
        aggregate = api.cluster.Cluster(
            name=names.aggregate(server),
            lb_policy=api.cluster.ClusterLbPolicy.CLUSTER_PROVIDED,
            cluster_type=api.cluster.ClusterCustomClusterType(
                name="envoy.clusters.aggregate", typed_config=parts.pack(members)
            ),
            connect_timeout=parts.connect_timeout(),
            circuit_breakers=parts.breakers(),
        )
        credentials.add(aggregate, server, place)  # Envoy takes the filters of this cluster, not of its members
        yield aggregate


def listeners(engine: Engine, servers: list[Upstream], names: Names = PLAIN) -> Iterator[api.listener.Listener]:
    """The listeners inside Envoy, one for each fallback of each model."""
    for server in servers:
        for rank, other in enumerate(server.fallback, 1):
            to = names.model(other)
            manager = parts.manager(
                names.listener(server, rank), [*_named(server, other, to), _route(server, other, to)]
            )
            yield _listener(manager, server, other, engine.settings.max_body + parts.BODY_SLACK)


def _listener(
    manager: api.hcm.HttpConnectionManager, server: Upstream, other: Upstream, limit: int
) -> api.listener.Listener:
    """One that is called as its `manager` counts."""
    if other.name != server.name:
        code = "local NAME = " + _quoted(json.dumps(other.name)) + "\n" + _LUA
        lua = api.lua.Lua(default_source_code=api.core.DataSource(inline_string=code))
        manager.http_filters.insert(0, api.hcm.HttpFilter(name="envoy.filters.http.lua", typed_config=parts.pack(lua)))
    return api.listener.Listener(
        name=manager.stat_prefix,
        internal_listener=api.listener.ListenerInternalListenerConfig(),
        filter_chains=[parts.chain(manager)],
        per_connection_buffer_limit_bytes=limit,
    )


def _named(server: Upstream, other: Upstream, to: str) -> Iterator[api.route.Route]:
    """Routes of the calls that name their model in the path."""
    for shape in SHAPES:
        if shape.model_in:
            route = _route(server, other, to, allowed.to_other_named(other, shape))
            route.match = api.route.RouteMatch(safe_regex=api.matcher.RegexMatcher(regex=shape.model_in))
            yield route


def _route(server: Upstream, other: Upstream, to: str, rewrite: allowed.Rewrite | None = None) -> api.route.Route:
    """A route to `other`, whose cluster is `to`, for what was sent to `server` first."""
    rewrite = rewrite or allowed.to_other(other)
    action = api.route.RouteAction(
        cluster=to,
        timeout=parts.no_timeout(),
        host_rewrite_literal=other.authority,
        retry_policy=api.route.RetryPolicy(retry_on="connect-failure,refused-stream", num_retries=2),
        regex_rewrite=api.matcher.RegexMatchAndSubstitute(
            pattern=api.matcher.RegexMatcher(regex=rewrite.pattern), substitution=rewrite.substitution
        ),
    )
    return api.route.Route(
        name=f"model-{other.key}",
        match=api.route.RouteMatch(prefix="/"),
        route=action,
        # What lets the request in at the one server is not the other's business.
        request_headers_to_remove=[server.credential.header] if server.credential is not None else [],
        response_headers_to_remove=list(parts.TOLD_HEADERS),
        response_headers_to_add=[_told(other.key.replace("%", "%%"))],  # no command operator
    )


def _told(value: str) -> api.core.HeaderValueOption:
    """The response header that says who has answered, whatever it was before."""
    return api.core.HeaderValueOption(
        header=api.core.HeaderValue(key=FALLBACK, value=value),
        append_action=api.core.HeaderValueOptionHeaderAppendAction.OVERWRITE_IF_EXISTS_OR_ADD,
        keep_empty_value=True,  # else the header that is to be overwritten stays
    )


def _quoted(text: str) -> str:
    """`text` as a Lua string."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"
