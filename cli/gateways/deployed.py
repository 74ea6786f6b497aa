"""Checks a deployed set of gateway configuration against a policy: what would route wrongly, drop or refuse requests.

It reads plain Envoy bootstraps, Envoy Gateway and Gateway API objects, and Istio objects, from the YAML files of a
folder: what `pointsman render` writes, also after it was edited by hand.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from cli.gateways import allowed, ways
from cli.gateways.envoy import DECISION_HEADER, OUR_HEADERS, ROUTE_HEADER
from cli.gateways.parts import EXT_PROC, METADATA
from cli.gateways.ways import Manifest
from config.document import not_yaml
from config.problem import Problem, Severity
from decisions.engine import Engine

ENVOY_GATEWAY_BUFFER = 32 * 1024  # ClientTrafficPolicy.spec.connection.bufferLimit when it is left out
ENVOY_BUFFER = 1024 * 1024  # per_connection_buffer_limit_bytes when it is left out
ENVOY_STREAMS = 1024  # requests to one cluster at a time, where no circuit breaker says otherwise
AI_GATEWAY_HEADER = "x-ai-eg-model"
_EVERY = (("PathPrefix", "/"), ("RegularExpression", ".*"))
"""The matches of an HTTPRoute that take every path."""
_QUANTITY = re.compile(r"(\d+)(Ki|Mi|Gi|k|M|G)?")
_UNITS = {None: 1, "Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}
_FILTER = "ext_proc.v3.ExternalProcessor"
_HCM = "http_connection_manager.v3.HttpConnectionManager"


def check(engine: Engine, folder: Path) -> list[Problem]:
    """What is wrong with the set in `folder` for the policy of `engine`, in file order.

    Raises ValueError when `folder` holds no configuration that could be checked, or a file that is not YAML.
    """
    found = problems(engine, list(_objects(folder)))
    if found is None:
        raise ValueError(
            f"{folder}: no external processor in its YAML files: neither an Envoy bootstrap with the filter, nor an "
            "EnvoyExtensionPolicy, nor an EnvoyFilter"
        )
    return found


def problems(engine: Engine, objects: list[Manifest]) -> list[Problem] | None:
    """What is wrong with `objects` as a set; None where no external processor is among them. Raises ValueError where a
    value in them is not of the kind that its schema says."""
    checked = _Inspection(engine)
    for found in objects:
        with _shaped(f"{found.file}:{found.line}"):
            checked.look_at(found)
    if not checked.filters:
        return None
    with _shaped(", ".join(dict.fromkeys(found.file for found in objects))):
        checked.conclude()
        ways.check(engine, objects, checked.say)
    return sorted(checked.problems)


@contextmanager
def _shaped(where: str) -> Iterator[None]:
    """Raises ValueError, which says `where`, for a value of another kind than the gateway's schema says, such as a text
    in the place of a list. The schemas themselves are not here: they are the gateway's business."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{where}: a value in it is not of the kind that its schema says ({error}): ask the gateway what it is, by "
            "`envoy --mode validate` or `kubectl apply --dry-run=server`, or render it again"
        ) from error


def _given(value: Any) -> Any:
    """`value` without what is null in it, which is as good as left out."""
    if isinstance(value, dict):
        return {key: _given(one) for key, one in value.items() if one is not None}
    return [_given(one) for one in value if one is not None] if isinstance(value, list) else value


def _objects(folder: Path) -> Iterator[Manifest]:
    for path in _files(folder):
        try:
            loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # as in `config.document`
            nodes = list(yaml.compose_all(path.read_text(encoding="utf-8"), Loader=loader))
            for node in nodes:
                data = yaml.SafeLoader("").construct_document(node) if node is not None else None
                items = data.get("items") if isinstance(data, dict) and data.get("kind") == "List" else [data]
                for item in items if isinstance(items, list) else ():
                    if isinstance(item, dict):
                        yield Manifest(str(path), node.start_mark.line + 1, _given(item))
        except yaml.MarkedYAMLError as error:
            raise ValueError(str(not_yaml(error, path.read_text(encoding="utf-8"), str(path)))) from None
        except yaml.YAMLError:
            raise ValueError(f"{path}: not YAML: a control character is in it") from None
        except UnicodeDecodeError:
            raise ValueError(f"{path}: not YAML: the file is not UTF-8") from None


def _files(folder: Path) -> list[Path]:
    """The YAML files of `folder`, which may be one itself. Raises ValueError where there is none."""
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise ValueError(f"--rendered {folder}: there is no such folder; name the one with the gateway's files")
    files = sorted(path for path in folder.rglob("*.y*ml") if path.is_file())
    if not files:
        raise ValueError(f"--rendered {folder}: no external processor, since no YAML file (*.yaml, *.yml) is in it")
    return files


class _Inspection:
    def __init__(self, engine: Engine) -> None:
        self.problems: list[Problem] = []
        self.filters: list[Manifest] = []
        self._engine = engine
        self._routes: dict[str, list[tuple[Manifest, set[str], bool]]] = {}  # family → (object, models, has a default)
        self._let_on: dict[str, list[tuple[Manifest, str | None]]] = {}  # family → (object, path; None: any) to a model
        self._names: list[tuple[Manifest, str]] = []  # of Istio's routes
        self._switched: set[str] = set()  # routes on which a filter is that is off elsewhere
        self._off = False  # there is such a filter
        self._buffers: list[tuple[Manifest, int]] = []
        self._attached: set[tuple[str, str]] = set()
        self._http_routes: list[Manifest] = []
        self._strips: dict[str, bool] = {}
        self._modes: list[tuple[Manifest, str]] = []
        self._own_gateway = False  # the set has the Gateway itself
        self._steps = False  # a route leads to the router's stepwise answers over HTTP
        self._looks: dict[str, Callable[[Manifest], None]] = {
            "HTTPRoute": self._http_route,
            "AIGatewayRoute": self._ai_route,
            "EnvoyExtensionPolicy": self._extension_policy,
            "ClientTrafficPolicy": self._client_policy,
            "BackendTrafficPolicy": self._traffic_policy,
            "VirtualService": self._virtual_service,
            "EnvoyFilter": self._envoy_filter,
        }

    def look_at(self, found: Manifest) -> None:
        self._own_gateway = self._own_gateway or found.kind == "Gateway"
        if "static_resources" in found.data:
            self._bootstrap(found)
        elif (look := self._looks.get(found.kind)) is not None:
            look(found)

    def conclude(self) -> None:
        """Reports what can only be seen from the whole set."""
        for kind, family in {(found.kind, self._family(found)) for found in self.filters}:
            self._conclude_routes(family)
            self._conclude_paths(family)
            if not self._strips.get("istio" if kind == "EnvoyFilter" else family, False):
                text = f"a client's own {ROUTE_HEADER} header is not removed before the first route is chosen"
                mend = "render it again"
                if family == "gateway" and kind == "EnvoyExtensionPolicy" and not self._own_gateway:
                    mend = "render it with --section, for a listener that is ours alone"
                self.say(self.filters[0], "D406", f"{text}: it picks the filter set of that route; {mend}", "warning")
        for found in self._http_routes:
            name = found.name
            on_gateway = any(kind == "Gateway" for kind, _ in self._attached)
            if not on_gateway and self._attached and ("HTTPRoute", name) not in self._attached:
                text = f"HTTPRoute {name!r} has no EnvoyExtensionPolicy: requests that match it first never reach us"
                self.say(found, "D405", text)
        for found, name in self._names if self._off else ():
            if name not in self._switched:
                text = f"route {name!r} does not switch the filter on"
                self.say(found, "D405", f"{text}: requests that match it first never reach us")
        self._conclude_modes()
        self._conclude_buffers()

    def _conclude_modes(self) -> None:
        if not self._engine.writes or self._steps:
            return
        for found, mode in self._modes:
            if mode != "duplex":
                text = "stepwise and panel decisions answer with a stream: the request body mode must be full duplex"
                self.say(found, "D404", f"{text} (or render with --writers, for an Envoy before 1.40)")

    def _conclude_routes(self, family: str) -> None:
        routes = self._routes.get(family, [])
        if not routes:
            self.say(
                self.filters[0], "D401", f"no route matches on {ROUTE_HEADER}: every request takes its first route"
            )
            return
        reached = set().union(*(models for _, models, _ in routes))
        first = routes[0][0]
        for key in self._engine.models:
            if key not in reached:
                self.say(first, "D401", f"no route for model {key!r}: match header {ROUTE_HEADER} exactly {key!r}")
        for found, models, _ in routes:
            for key in sorted(models - set(self._engine.models)):
                text = f"a route for {key!r}, which is no model of the policy: nothing is ever sent there"
                self.say(found, "D401", text, "warning")
        if not any(default for _, _, default in routes):
            self.say(
                first, "D402", "no route that takes whatever comes: requests find no route before we have chosen one"
            )

    def _conclude_paths(self, family: str) -> None:
        """Reports what routes without a header match let pass, whatever the router says, and also when it is down."""
        routes = self._let_on.get(family, [])
        if self._engine.settings.pass_unread or not routes:
            return
        everything = [found for found, path in routes if path is None]
        for found in everything:
            text = "a route for every path leads to a model, so what the policy refuses unread is refused by us alone"
            self.say(found, "D410", f"{text}; render it again, or set settings.unread: pass")
        known = {path for _, path in routes}
        for opened in () if everything else allowed.opened(self._engine):
            if opened.text not in known:
                text = f"no route for the path {opened.text!r}, which the policy opens"
                self.say(routes[0][0], "D411", f"{text}: the gateway refuses it; render it again")

    def _conclude_buffers(self) -> None:
        duplex = bool(self._modes) and all(mode == "duplex" for _, mode in self._modes)
        if duplex or (self._engine.writes and not self._steps):
            return  # nothing is buffered in full-duplex mode
        wanted = self._engine.settings.max_body
        gateway = [found for found in self.filters if found.kind == "EnvoyExtensionPolicy"]
        if gateway and not any(found.kind.endswith("TrafficPolicy") for found, _ in self._buffers):
            self._buffers.append((gateway[0], ENVOY_GATEWAY_BUFFER))
        for found, limit in self._buffers:
            if limit < wanted:
                self.say(
                    found,
                    "D403",
                    f"the buffer holds {limit} bytes, the policy takes bodies up to {wanted}: longer prompts get 413 "
                    "from Envoy; raise the limit, or lower settings.max_body",
                )

    def _family(self, found: Manifest) -> str:
        if found.kind == "EnvoyFilter" and "istio" not in self._routes and self._http_routes:
            return "gateway"  # Istio takes routes of the Gateway API, too
        return {"EnvoyExtensionPolicy": "gateway", "EnvoyFilter": "istio"}.get(found.kind, "envoy")

    def _route(self, family: str, found: Manifest, models: set[str], default: bool) -> None:
        self._routes.setdefault(family, []).append((found, models, default))

    def _lets_on(self, family: str, found: Manifest, path: str | None) -> None:
        """A route to a model without a header match; `path` is what it asks of paths, None when that is nothing."""
        self._let_on.setdefault(family, []).append((found, path))

    # Gateway API and Envoy Gateway

    def _http_route(self, found: Manifest) -> None:
        self._http_routes.append(found)
        models: set[str] = set()
        default = False
        for rule in found.spec.get("rules", ()):
            self._names.append((found, str(rule.get("name", ""))))
            for match in rule.get("matches") or [{}]:
                headers = {str(h.get("name", "")).lower(): h for h in match.get("headers", ())}
                if DECISION_HEADER in headers:
                    self._steps = True
                    continue
                named = [headers[ROUTE_HEADER]] if ROUTE_HEADER in headers else []
                models |= {str(header.get("value")) for header in named}
                path = match.get("path") or {}
                any_path = (path.get("type", "PathPrefix"), path.get("value", "/")) in _EVERY
                default = default or (any_path and not headers)
                if not headers and rule.get("backendRefs"):
                    self._lets_on("gateway", found, None if any_path else str(path.get("value")))
        self._route("gateway", found, models, default)

    def _ai_route(self, found: Manifest) -> None:
        """Envoy AI Gateway routes by the model's name, which it reads from the body that we have rewritten."""
        keys = {model.name: key for key, model in self._engine.models.items()}
        named = {
            str(header.get("value"))
            for rule in found.spec.get("rules", ())
            for match in rule.get("matches", ())
            for header in match.get("headers", ())
            if str(header.get("name", "")).lower() == AI_GATEWAY_HEADER
        }
        # AI Gateway answers 404 itself to what matches none, so there is no default to look for.
        self._route("gateway", found, {keys.get(name, name) for name in named}, True)

    def _extension_policy(self, found: Manifest) -> None:
        spec = found.spec
        targets = [*spec.get("targetRefs", ()), *([spec["targetRef"]] if "targetRef" in spec else [])]
        self._attached |= {(str(target.get("kind")), str(target.get("name"))) for target in targets}
        for processor in spec.get("extProc", ()):
            self.filters.append(found)
            mode = processor.get("processingMode") or {}
            request = (mode.get("request") or {}).get("body")
            self._mode(found, {"FullDuplexStreamed": "duplex", "Buffered": "buffered"}.get(str(request), str(request)))
            response = mode.get("response")
            self._response(found, response is not None, (response or {}).get("body"))
            self._namespaces(found, (processor.get("metadata") or {}).get("writableNamespaces", ()))
            if processor.get("failOpen") and request == "FullDuplexStreamed":
                self.say(found, "D404", "failOpen with FullDuplexStreamed: Envoy Gateway refuses this object")
            self._timeout(found, processor.get("messageTimeout", "200ms"))
            settings = processor.get("backendSettings") or {}
            self._streams(found, (settings.get("circuitBreaker") or {}).get("maxParallelRequests"))
            retry = settings.get("retry") or {}
            triggers = (retry.get("retryOn") or {}).get("triggers", ())
            ways.tries(
                found, {**retry, "num_retries": retry.get("numRetries", 2), "retry_on": ",".join(triggers)}, self.say
            )

    def _client_policy(self, found: Manifest) -> None:
        limit = (found.spec.get("connection") or {}).get("bufferLimit", ENVOY_GATEWAY_BUFFER)
        self._buffers.append((found, _bytes(limit)))
        removed = ((found.spec.get("headers") or {}).get("earlyRequestHeaders") or {}).get("remove", ())
        self._strips["gateway"] = self._strips.get("gateway", False) or ROUTE_HEADER in {
            str(n).lower() for n in removed
        }

    def _traffic_policy(self, found: Manifest) -> None:
        """On a Gateway of others the room for bodies is given to our routes."""
        if (limit := (found.spec.get("requestBuffer") or {}).get("limit")) is not None:
            self._buffers.append((found, _bytes(limit)))

    # Istio

    def _virtual_service(self, found: Manifest) -> None:
        models: set[str] = set()
        default = False
        for rule in found.spec.get("http", ()):
            self._names.append((found, str(rule.get("name", ""))))
            for match in rule.get("match") or [{}]:
                headers = match.get("headers") or {}
                self._steps = self._steps or DECISION_HEADER in headers
                if ROUTE_HEADER in headers:
                    models.add(str(headers[ROUTE_HEADER].get("exact")))
                uri = match.get("uri") or {}
                any_path = not uri or uri.get("prefix") == "/"
                default = default or (any_path and not headers)
                if not headers and "route" in rule:
                    self._lets_on("istio", found, None if any_path else str(next(iter(uri.values()))))
        self._route("istio", found, models, default)

    def _envoy_filter(self, found: Manifest) -> None:
        for patch in found.spec.get("configPatches", ()):
            value = (patch.get("patch") or {}).get("value") or {}
            typed = value.get("typed_config") or {}
            if patch.get("applyTo") == "HTTP_ROUTE" and EXT_PROC in (value.get("typed_per_filter_config") or {}):
                if (limit := value.get("request_body_buffer_limit")) and (found, int(limit)) not in self._buffers:
                    self._buffers.append((found, int(limit)))
                where = (patch.get("match") or {}).get("routeConfiguration") or {}
                self._switched.add(str(((where.get("vhost") or {}).get("route") or {}).get("name")))
            elif str(typed.get("@type", "")).endswith(_FILTER):
                self._off = self._off or bool(value.get("disabled"))
                self._filter(found, typed)
            elif str(typed.get("@type", "")).endswith(_HCM):
                self._strip("istio", typed)
            elif patch.get("applyTo") == "LISTENER" and "per_connection_buffer_limit_bytes" in value:
                self._buffers.append((found, int(value["per_connection_buffer_limit_bytes"])))

    # Plain Envoy

    def _bootstrap(self, found: Manifest) -> None:
        for listener in found.data["static_resources"].get("listeners", ()):
            manager = next(
                (
                    network["typed_config"]
                    for chain in listener.get("filter_chains", ())
                    for network in chain.get("filters", ())
                    if str(network.get("typed_config", {}).get("@type", "")).endswith(_HCM)
                ),
                None,
            )
            processors = [
                http["typed_config"]
                for http in (manager or {}).get("http_filters", ())
                if str(http.get("typed_config", {}).get("@type", "")).endswith(_FILTER)
            ]
            if manager is None or not processors:
                continue
            self._buffers.append((found, int(listener.get("per_connection_buffer_limit_bytes", ENVOY_BUFFER))))
            self._strip("envoy", manager)
            for processor in processors:
                self._filter(found, processor)
                name = ((processor.get("grpc_service") or {}).get("envoy_grpc") or {}).get("cluster_name")
                for cluster in found.data["static_resources"].get("clusters", ()):
                    if cluster.get("name") == name:
                        (breaker, *_) = (cluster.get("circuit_breakers") or {}).get("thresholds") or [{}]
                        self._streams(found, breaker.get("max_requests"))
            models: set[str] = set()
            default = False
            for host in (manager.get("route_config") or {}).get("virtual_hosts", ()):
                for route in host.get("routes", ()):
                    headers = (route.get("match") or {}).get("headers", ())
                    self._steps = self._steps or any(h.get("name") == DECISION_HEADER for h in headers)
                    named = [h for h in headers if h.get("name") == ROUTE_HEADER]
                    models |= {str((h.get("string_match") or {}).get("exact")) for h in named}
                    default = default or not headers
                    if not headers and "route" in route:
                        self._lets_on("envoy", found, _path_of(route.get("match") or {}))
            self._route("envoy", found, models, default)

    def _strip(self, family: str, manager: dict[str, Any]) -> None:
        removed = {
            str(mutation.get("remove", "")).lower()
            for extension in manager.get("early_header_mutation_extensions", ())
            for mutation in (extension.get("typed_config") or {}).get("mutations", ())
        }
        self._strips[family] = self._strips.get(family, False) or set(OUR_HEADERS) <= removed

    # The filter, however it is written

    def _filter(self, found: Manifest, processor: dict[str, Any]) -> None:
        self.filters.append(found)
        mode = processor.get("processing_mode") or {}
        body = str(mode.get("request_body_mode", "NONE"))
        self._mode(found, {"FULL_DUPLEX_STREAMED": "duplex", "BUFFERED": "buffered"}.get(body, body))
        answers = mode.get("response_body_mode", "NONE")
        self._response(
            found, mode.get("response_header_mode", "SEND") != "SKIP", None if answers == "NONE" else answers
        )
        receiving = ((processor.get("metadata_options") or {}).get("receiving_namespaces") or {}).get("untyped", ())
        self._namespaces(found, receiving)
        self._timeout(found, processor.get("message_timeout", "200ms"))
        ways.tries(found, (processor.get("grpc_service") or {}).get("retry_policy"), self.say)

    def _mode(self, found: Manifest, mode: str) -> None:
        self._modes.append((found, mode))
        if mode not in ("duplex", "buffered") and not self._engine.writes:
            self.say(
                found, "D404", f"the request body mode is {mode}: rules on the body need it buffered or full duplex"
            )

    def _response(self, found: Manifest, sent: bool, body: str | None) -> None:
        engine = self._engine
        if engine.watched is not None and not (sent and str(body).replace("_", "").lower() == "fullduplexstreamed"):
            text = "the text of answers is not handed over to us (full duplex, with trailers)"
            why = "the decisions with `on: answer` depend on Envoy granting it for each answer, and `respond` is a cut"
            self.say(found, "D412", f"{text}: {why}; render it again", "warning")
        if engine.metered and not (sent and body):
            text = "the answers are not shown to us, so that nothing of what they take is counted"
            why = "settings.meter: on has no effect"
            if engine.shared.metered or engine.caches:
                why = "no budget is ever charged" if engine.shared.metered else "no answer is ever kept"
            severity: Severity = "error" if engine.shared.metered else "warning"
            self.say(found, "D412", f"{text}, and {why}: render it again", severity)
        if engine.settings.response_headers and not sent:
            text = "the response headers are not sent to us: clients will not see x-pointsman-decision"
            self.say(found, "D407", f"{text} (or set settings.response_headers: false)", "warning")

    def _namespaces(self, found: Manifest, receiving: Any) -> None:
        if METADATA not in receiving:
            self.say(
                found, "D408", f"dynamic metadata is dropped: {METADATA!r} is not among the namespaces we may write"
            )

    def _timeout(self, found: Manifest, text: Any) -> None:
        allowed = ways.seconds(str(text))
        if allowed is not None and allowed <= self._engine.settings.deadline:
            self.say(
                found,
                "D409",
                f"Envoy waits {text}, the router's own deadline is {self._engine.settings.deadline * 1000:g}ms: slow "
                "requests end in 504 instead of the default model",
            )

    def _streams(self, found: Manifest, limit: Any) -> None:
        """`limit` is that of the circuit breaker on the way to the router, which gets a stream for each request."""
        if limit is None or int(limit) <= ENVOY_STREAMS:
            text = f"the circuit breaker lets {limit or ENVOY_STREAMS} requests at a time go to the router"
            self.say(found, "D413", f"{text}: more fail with 503, or go unread with fail_open; raise it", "warning")

    def say(self, found: Manifest, code: str, message: str, severity: Severity = "error") -> None:
        self.problems.append(Problem(found.file, found.line, 1, code, severity, message))


def _path_of(match: dict[str, Any]) -> str | None:
    """What a route of Envoy's asks of paths; None when every path will do."""
    if match.get("prefix") in ("", "/"):
        return None
    return str(match.get("path") or (match.get("safe_regex") or {}).get("regex") or match)


def _bytes(quantity: Any) -> int:
    match = _QUANTITY.fullmatch(str(quantity))
    return int(match[1]) * _UNITS[match[2]] if match else 0
