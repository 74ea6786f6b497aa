"""The gRPC health service (grpc.health.v1, Check and Watch) over the transport seam.

Its messages have one field each, which protobuf's wrapper types share on the wire, so no schema of its own is needed.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.message import DecodeError
from google.protobuf.wrappers_pb2 import StringValue  # HealthCheckRequest: string service = 1

from extproc.transport.seam import Handler, Stream

CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"

SERVICES = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
"""What can be asked for: the whole server, and what Kubernetes and Envoy ask."""

# HealthCheckResponse: ServingStatus status = 1
_SERVING = b"\x08\x01"
_NOT_SERVING = b"\x08\x02"
_SERVICE_UNKNOWN = b"\x08\x03"

_INVALID_ARGUMENT = 3
_NOT_FOUND = 5
_UNAVAILABLE = 14


class Health:
    """Which services serve. Everything is NOT_SERVING at first, except `liveness`."""

    def __init__(self) -> None:
        self._status = {service: _SERVING if service == "liveness" else _NOT_SERVING for service in SERVICES}
        self._watchers: dict[str, set[_Watch]] = {service: set() for service in SERVICES}

    def set(self, service: str, serving: bool) -> None:
        """Change one service and tell its watchers. Raises KeyError for a service not in SERVICES."""
        status = _SERVING if serving else _NOT_SERVING
        if self._status[service] != status:
            self._status[service] = status
            for watch in self._watchers[service]:
                watch.stream.send(status)

    def set_all(self, serving: bool) -> None:
        """Change every service but `liveness`: a server that drains is alive."""
        for service in SERVICES:
            if service != "liveness":
                self.set(service, serving)

    def end(self) -> None:
        """End every Watch, which would otherwise hold a drain up until its grace is over."""
        for watchers in self._watchers.values():
            for watch in list(watchers):
                watch.stream.finish(_UNAVAILABLE, "the server is going away")

    def handlers(self) -> Mapping[str, Handler]:
        """For a transport, beside those of the other services."""
        return {CHECK: lambda stream: _Check(self, stream), WATCH: lambda stream: _Watch(self, stream)}

    def _check(self, service: str) -> bytes | None:
        return self._status.get(service)

    def _watch(self, service: str, watch: _Watch) -> None:
        watchers = self._watchers.get(service)
        if watchers is not None:
            watchers.add(watch)
        watch.stream.send(self._status.get(service, _SERVICE_UNKNOWN))

    def _unwatch(self, service: str, watch: _Watch) -> None:
        watchers = self._watchers.get(service)
        if watchers is not None:
            watchers.discard(watch)


def _service(data: bytes) -> str | None:
    """The service that a request names; None when it is no request."""
    try:
        return StringValue.FromString(data).value
    except DecodeError:
        return None


class _Check:
    def __init__(self, health: Health, stream: Stream) -> None:
        self.health = health
        self.stream = stream

    def message(self, data: bytes) -> None:
        service = _service(data)
        status = None if service is None else self.health._check(service)
        if service is None:
            self.stream.finish(_INVALID_ARGUMENT, "not a HealthCheckRequest")
        elif status is None:
            self.stream.finish(_NOT_FOUND, "unknown service")
        else:
            self.stream.send(status)
            self.stream.finish()

    def half_closed(self) -> None:
        self.stream.finish(_INVALID_ARGUMENT, "no HealthCheckRequest")

    def closed(self) -> None:
        pass


class _Watch:
    """Open until the client leaves; an unknown service is watched too, as the protocol asks, and never changes."""

    def __init__(self, health: Health, stream: Stream) -> None:
        self.health = health
        self.stream = stream
        self.service: str | None = None

    def message(self, data: bytes) -> None:
        service = _service(data)
        if service is None or self.service is not None:
            self.stream.finish(_INVALID_ARGUMENT, "one HealthCheckRequest is expected")
            return
        self.service = service
        self.health._watch(service, self)

    def half_closed(self) -> None:
        if self.service is None:
            self.stream.finish(_INVALID_ARGUMENT, "no HealthCheckRequest")

    def closed(self) -> None:
        if self.service is not None:
            self.health._unwatch(self.service, self)
