"""The gRPC health service (grpc.health.v1, health.proto), over either transport.

Both methods' messages have one field each, so they are encoded by hand: a request is `service` (1, string), a response
`status` (1, enum).
"""

from __future__ import annotations

from enum import IntEnum

from extproc.transport.seam import Handler, Receiver, Stream

SERVICES = ("", "liveness", "readiness", "envoy.service.ext_proc.v3.ExternalProcessor")
CHECK = "/grpc.health.v1.Health/Check"
WATCH = "/grpc.health.v1.Health/Watch"
LIVENESS = "liveness"

INVALID_ARGUMENT = 3
NOT_FOUND = 5
MAX_NAME = 256


class Status(IntEnum):
    """grpc.health.v1.HealthCheckResponse.ServingStatus."""

    SERVING = 1
    NOT_SERVING = 2
    SERVICE_UNKNOWN = 3


class Health:
    """What the health service says. A new one says NOT_SERVING for everything but `liveness`."""

    def __init__(self) -> None:
        self._statuses = {service: Status.NOT_SERVING for service in SERVICES}
        self._statuses[LIVENESS] = Status.SERVING
        self._watches: set[_Watch] = set()

    def handlers(self) -> dict[str, Handler]:
        """By method path, for a transport."""
        return {CHECK: lambda stream: _Check(self, stream), WATCH: lambda stream: _Watch(self, stream)}

    def serving(self, serving: bool) -> None:
        """Say whether new streams are welcome; `liveness` stays as it is. Those who watch are told."""
        status = Status.SERVING if serving else Status.NOT_SERVING
        for service in SERVICES:
            if service != LIVENESS:
                self._statuses[service] = status
        for watch in list(self._watches):
            watch.tell()

    def status(self, service: str) -> Status | None:
        """None for a service that is not ours."""
        return self._statuses.get(service)


def _service(data: bytes) -> str:
    """The `service` of a request. ValueError when it is none."""
    if not data:
        return ""
    if len(data) < 2 or data[0] != 0x0A or len(data) > MAX_NAME + 3:
        raise ValueError("not a HealthCheckRequest")
    length, start = data[1], 2
    if length & 0x80:
        if len(data) < 3 or data[2] & 0x80:
            raise ValueError("not a HealthCheckRequest")
        length, start = (length & 0x7F) | data[2] << 7, 3
    if len(data) != start + length:
        raise ValueError("not a HealthCheckRequest")
    return data[start:].decode()


def _response(status: Status) -> bytes:
    return bytes((0x08, status))


class _Check(Receiver):
    """One Check: one answer."""

    def __init__(self, health: Health, stream: Stream) -> None:
        self._health = health
        self._stream = stream

    def message(self, data: bytes) -> None:
        try:
            status = self._health.status(_service(data))
        except ValueError as error:
            self._stream.finish(INVALID_ARGUMENT, str(error))
            return
        if status is None:
            self._stream.finish(NOT_FOUND, "unknown service")
            return
        self._stream.send(_response(status))
        self._stream.finish()

    def half_closed(self) -> None:
        """The answer went with the message."""

    def closed(self) -> None:
        """Nothing is held."""


class _Watch(Receiver):
    """One Watch: the status now and at every change, until the client goes."""

    def __init__(self, health: Health, stream: Stream) -> None:
        self._health = health
        self._stream = stream
        self._service: str | None = None
        self._told: Status | None = None

    def message(self, data: bytes) -> None:
        if self._service is not None:
            return
        try:
            self._service = _service(data)
        except ValueError as error:
            self._stream.finish(INVALID_ARGUMENT, str(error))
            return
        self._health._watches.add(self)
        self.tell()

    def tell(self) -> None:
        """Send the status, if it is not the one sent last."""
        assert self._service is not None
        status = self._health.status(self._service) or Status.SERVICE_UNKNOWN
        if status != self._told:
            self._told = status
            self._stream.send(_response(status))

    def half_closed(self) -> None:
        """A unary request: the client has said all, and goes on listening."""

    def closed(self) -> None:
        self._health._watches.discard(self)
