"""The health service, asked by grpcio's own health client over both transports."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from extproc.serving.health import CHECK, SERVICES, WATCH, Health
from extproc.transport.grpcio import GrpcioServer
from extproc.transport.http2 import Http2Server
from extproc.transport.seam import Server

SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def health() -> Health:
    return Health()


@pytest.fixture(params=[Http2Server, GrpcioServer], ids=["http2", "grpcio"])
async def channel(request: pytest.FixtureRequest, health: Health) -> AsyncIterator[grpc.aio.Channel]:
    server: Server = request.param(health.handlers())
    await server.start("127.0.0.1:0")
    async with grpc.aio.insecure_channel(server.address) as opened:
        yield opened
    await server.close()


def ask(service: str) -> health_pb2.HealthCheckRequest:
    return health_pb2.HealthCheckRequest(service=service)


async def test_check_follows_what_is_set(channel: grpc.aio.Channel, health: Health) -> None:
    stub = health_pb2_grpc.HealthStub(channel)

    async def all_of_them() -> list[int]:
        return [(await stub.Check(ask(service))).status for service in SERVICES]

    assert await all_of_them() == [NOT_SERVING, SERVING, NOT_SERVING, NOT_SERVING]
    health.set_all(True)
    assert await all_of_them() == [SERVING] * 4
    health.set("readiness", False)
    assert await all_of_them() == [SERVING, SERVING, NOT_SERVING, SERVING]
    health.set_all(False)
    assert await all_of_them() == [NOT_SERVING, SERVING, NOT_SERVING, NOT_SERVING]


async def test_check_of_an_unknown_service_is_not_found(channel: grpc.aio.Channel) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await health_pb2_grpc.HealthStub(channel).Check(ask("nobody"))
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


@pytest.mark.parametrize("method", [CHECK, WATCH])
@pytest.mark.parametrize("requests", [[], [b"\xff\xff"], [b"\x0a\x01\xff"]], ids=["none", "no protobuf", "no text"])
async def test_what_is_no_request_is_an_invalid_argument(
    channel: grpc.aio.Channel, method: str, requests: list[bytes]
) -> None:
    call = channel.stream_stream(method)(iter(requests))
    assert await call.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_watch_tells_every_change_once(channel: grpc.aio.Channel, health: Health) -> None:
    call = health_pb2_grpc.HealthStub(channel).Watch(ask("readiness"))
    seen = [(await call.read()).status]
    for serving in (True, True, False, True):
        health.set("readiness", serving)
        health.set("", serving)  # another service's change is not told
    for _ in range(3):
        seen.append((await call.read()).status)
    assert seen == [NOT_SERVING, SERVING, NOT_SERVING, SERVING]
    call.cancel()


async def test_watch_of_an_unknown_service_stays_open(channel: grpc.aio.Channel, health: Health) -> None:
    call = health_pb2_grpc.HealthStub(channel).Watch(ask("nobody"))
    assert (await call.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    health.set_all(True)
    assert not call.done()
    call.cancel()


async def test_a_watcher_that_left_is_forgotten(channel: grpc.aio.Channel, health: Health) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for _ in range(20):
        call = stub.Watch(ask(""))
        await call.read()
        call.cancel()
    while any(health._watchers.values()):
        await stub.Check(ask("liveness"))
    health.set_all(True)
    assert (await stub.Check(ask(""))).status == SERVING
    assert not any(health._watchers.values())


def test_only_known_services_can_be_set(health: Health) -> None:
    with pytest.raises(KeyError):
        health.set("nobody", True)
