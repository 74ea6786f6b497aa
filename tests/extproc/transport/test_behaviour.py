"""What an application may rely on, the same over both transports. The client is grpcio's."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import ssl
import subprocess
from pathlib import Path

import grpc
import grpc.aio
import pytest

from extproc.transport import frames
from extproc.transport.grpcio import GrpcioServer
from extproc.transport.http2 import Http2Server
from extproc.transport.seam import Handler, Receiver, Stream, TransportLimits
from extproc.transport.tls import TlsFiles
from tests.extproc.transport.conftest import METHOD, Connect, Recorder, Start, echo, head, silent, until
from tests.patience import PATIENCE

CALL = METHOD


def without_eof(receiver: Recorder) -> list[str]:
    """Its events; grpc-core may report a half-close before a cancel."""
    return [event for event in receiver.events if event != "half_closed"]


async def test_messages_of_every_size_come_back_in_order(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        for size in (0, 1, 5, 16_379, 16_380, 65_536, 70_000, 3_000_000):
            await call.write(os.urandom(8)[: min(8, size)] + bytes(max(0, size - 8)))
            assert len(await call.read()) == size
        await call.done_writing()
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
    receiver = await running.receiver()
    await receiver.over.wait()
    assert receiver.events == ["message"] * 8 + ["half_closed", "closed"]


async def test_a_unary_call(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        assert await channel.unary_unary(CALL)(b"hello") == b"hello"


async def test_two_hundred_open_streams_are_all_answered(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        calls = [channel.stream_stream(CALL)() for _ in range(200)]
        await asyncio.gather(*(call.write(b"%d" % i) for i, call in enumerate(calls)))
        assert await asyncio.gather(*(call.read() for call in calls)) == [b"%d" % i for i in range(200)]
        assert running.server.streams == 200
        assert running.server.connections == 1
        await asyncio.gather(*(call.done_writing() for call in calls))
        assert {await call.code() for call in calls} == {grpc.StatusCode.OK}
        await until(lambda: running.server.streams == 0)


async def test_metadata_has_lower_case_names_joined_values_and_binary_in_base64(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        pairs = (("x-one", "a b"), ("x-many", "1"), ("x-many", "2"), ("x-raw-bin", b"\0\xff"))
        await channel.unary_unary(CALL)(b"", metadata=grpc.aio.Metadata(*pairs))
    found = (await running.receiver()).stream.metadata
    assert {name: found[name] for name in ("x-one", "x-many", "x-raw-bin")} == {
        "x-one": "a b",
        "x-many": "1,2",
        "x-raw-bin": "AP8",
    }
    assert not any(name.startswith(":") for name in found)


async def test_an_unknown_method_is_unimplemented(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/test.Service/Other")(b"")
    assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def test_status_and_message_reach_the_client(start: Start) -> None:
    def refuse(recorder: Recorder, event: str, data: bytes) -> None:
        if event == "message":
            if data:
                recorder.stream.send(data)
            recorder.stream.finish(9, "50% of Zürich\nis ☂")

    running = await start(refuse)
    async with running.channel() as channel:
        for data in (b"", b"something first"):
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(CALL)(data)
            assert caught.value.code() == grpc.StatusCode.FAILED_PRECONDITION
            assert caught.value.details() == "50% of Zürich\nis ☂"


async def test_what_follows_finish_is_ignored(start: Start) -> None:
    def hasty(recorder: Recorder, event: str, data: bytes) -> None:
        if event == "message":
            recorder.stream.send(b"answer")
            recorder.stream.finish()
            recorder.stream.finish(5, "too late")
            recorder.stream.send(b"too late")

    running = await start(hasty)
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"")
        assert await call.read() == b"answer"
        assert await call.read() is grpc.aio.EOF
        assert await call.code() == grpc.StatusCode.OK
    receiver = await running.receiver()
    await receiver.over.wait()
    assert receiver.events == ["message", "closed"]


async def test_a_server_may_finish_before_any_message(start: Start) -> None:
    def unwilling(handler: Handler) -> Handler:
        def wrapped(stream: Stream) -> Receiver:
            receiver = handler(stream)
            stream.finish(7, "no")
            return receiver

        return wrapped

    running = await start(silent, wrap=unwilling)
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        assert await call.code() == grpc.StatusCode.PERMISSION_DENIED
        assert await call.details() == "no"
    receiver = await running.receiver()
    await receiver.over.wait()
    assert receiver.events == ["closed"]


@pytest.mark.parametrize("where", ["handler", "message", "half_closed", "closed"])
async def test_an_exception_ends_its_own_stream_with_internal(
    start: Start, where: str, caplog: pytest.LogCaptureFixture
) -> None:
    broken = True

    def fragile(recorder: Recorder, event: str, data: bytes) -> None:
        if event == where and broken:
            raise RuntimeError("a bug")
        echo(recorder, event, data)

    def wrap(handler: Handler) -> Handler:
        def wrapped(stream: Stream) -> Receiver:
            if where == "handler" and broken:
                raise RuntimeError("a bug")
            return handler(stream)

        return wrapped

    running = await start(fragile, wrap=wrap)
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        with contextlib.suppress(grpc.aio.AioRpcError):  # the stream may have ended by now
            await call.write(b"x")
            await call.done_writing()
            while await call.read() is not grpc.aio.EOF:
                pass
        expected = grpc.StatusCode.OK if where == "closed" else grpc.StatusCode.INTERNAL
        assert await call.code() == expected
        await until(lambda: running.server.streams == 0)
        broken = False
        assert await channel.unary_unary(CALL)(b"next") == b"next"
    if where != "handler":
        assert running.receivers[0].events.count("closed") == 1
    assert "a bug" in caplog.text


async def test_a_cancelled_stream_is_closed_once(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"x")
        assert await call.read() == b"x"
        call.cancel()
        receiver = await running.receiver()
        await receiver.over.wait()
        assert without_eof(receiver) == ["message", "closed"]
        receiver.stream.send(b"nobody reads this")
        receiver.stream.finish()
        with pytest.raises(ConnectionError):
            await receiver.stream.drain()
        await until(lambda: running.server.streams == 0)
        assert await channel.unary_unary(CALL)(b"next") == b"next"


async def test_a_lost_connection_closes_its_streams(start: Start, connect: Connect) -> None:
    running = await start()
    peer = await connect(running, greet=False)
    peer.write(frames.PREFACE, frames.settings({}))
    peer.open(1, block=head(first=False))
    peer.data(1, b"x")
    await peer.find(frames.DATA)
    assert running.server.connections == 1
    peer.writer.transport.abort()
    receiver = await running.receiver()
    await receiver.over.wait()
    assert without_eof(receiver) == ["message", "closed"]
    await until(lambda: running.server.connections == 0)


async def test_the_clients_deadline_closes_the_stream(start: Start) -> None:
    running = await start(silent)
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)(timeout=0.2)
        assert await call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
        receiver = await running.receiver()
        await receiver.over.wait()
        assert without_eof(receiver) == ["closed"]


async def test_a_producer_that_drains_buffers_little_and_loses_nothing(start: Start) -> None:
    limits = TransportLimits(high_water_bytes=100_000)
    running = await start(silent, limits)
    most = 0
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"go")
        stream = (await running.receiver()).stream

        async def produce() -> None:
            nonlocal most
            for number in range(400):
                stream.send(number.to_bytes(4, "big") * 10_000)
                most = max(most, stream.buffered if hasattr(stream, "buffered") else stream._buffered)  # type: ignore[attr-defined]
                await stream.drain()
            stream.finish()

        task = asyncio.ensure_future(produce())
        await asyncio.sleep(0.3)
        assert not task.done(), "16 MB cannot have gone to a client that reads nothing"
        seen = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            assert message == seen.to_bytes(4, "big") * 10_000
            seen += 1
        await task
    assert seen == 400
    assert most <= 100_000 + 40_005


async def test_a_drain_that_waits_ends_with_the_stream(start: Start) -> None:
    running = await start(silent, TransportLimits(high_water_bytes=1_000))
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"go")
        stream = (await running.receiver()).stream
        for _ in range(100):
            stream.send(bytes(100_000))
        waiting = asyncio.ensure_future(stream.drain())
        await asyncio.sleep(0.1)
        assert not waiting.done()
        call.cancel()
        with pytest.raises(ConnectionError):
            await waiting


async def test_an_answer_that_nobody_reads_ends_with_resource_exhausted(start: Start) -> None:
    running = await start(silent, TransportLimits(max_buffered_bytes=1_000_000))
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"go")
        stream = (await running.receiver()).stream
        for _ in range(200):
            stream.send(bytes(100_000))
            await asyncio.sleep(0)
        with contextlib.suppress(grpc.aio.AioRpcError):
            while await call.read() is not grpc.aio.EOF:
                pass
        assert await call.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_one_large_answer_is_no_overflow(start: Start) -> None:
    running = await start(limits=TransportLimits(max_buffered_bytes=1_000_000))
    async with running.channel() as channel:
        data = bytes(5_000_000)
        assert await channel.unary_unary(CALL)(data) == data


async def test_a_client_that_does_not_read_cannot_make_us_queue_more(start: Start) -> None:
    """Back-pressure through: unread answers stop the reading of requests."""
    running = await start(limits=TransportLimits(stream_window_bytes=200_000, high_water_bytes=100_000))
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()

        async def pump() -> None:
            for _ in range(1_000):
                await call.write(bytes(50_000))
            await call.done_writing()

        writing = asyncio.ensure_future(pump())
        receiver = await running.receiver()
        await asyncio.sleep(1.0)
        assert not writing.done()
        assert len(receiver.messages) < 700  # the rest of 50 MB waits at the client
        got = 0
        while (message := await call.read()) is not grpc.aio.EOF:
            got += len(message)
        assert got == 50_000_000
        await writing


async def test_a_message_beyond_the_limit_is_resource_exhausted(start: Start) -> None:
    running = await start(limits=TransportLimits(max_message_bytes=10_000))
    async with running.channel() as channel:
        assert len(await channel.unary_unary(CALL)(bytes(10_000))) == 10_000
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(CALL)(bytes(10_001))
        assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_drain_lets_live_streams_end_and_takes_no_new_ones(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"x")
        await call.read()
        draining = asyncio.ensure_future(running.server.drain(PATIENCE))
        await asyncio.sleep(0.2)
        assert not draining.done()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(CALL)(b"new", timeout=2)
        assert caught.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
        await call.write(b"y")
        assert await call.read() == b"y"
        await call.done_writing()
        assert await call.code() == grpc.StatusCode.OK
        await asyncio.wait_for(draining, PATIENCE)
    assert running.server.streams == 0


async def test_drain_cuts_what_outlives_its_grace(start: Start) -> None:
    running = await start()
    async with running.channel() as channel:
        call = channel.stream_stream(CALL)()
        await call.write(b"x")
        await call.read()
        await asyncio.wait_for(running.server.drain(0.2), PATIENCE)
        assert await call.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)
        receiver = await running.receiver()
        await asyncio.wait_for(receiver.over.wait(), PATIENCE)
        assert without_eof(receiver) == ["message", "closed"]
    await running.server.close()  # again: nothing happens


async def test_unix_socket(start: Start, tmp_path: Path) -> None:
    path = tmp_path / "p.sock"
    running = await start(listen=f"unix:{path}")
    assert running.target == f"unix:{path}"
    async with running.channel() as channel:
        assert await channel.unary_unary(CALL)(b"x") == b"x"
    await running.server.close()
    assert not path.exists()


async def test_a_bound_tcp_socket_is_taken_over(start: Start) -> None:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    sock.bind(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    running = await start(listen=sock)
    assert running.target == f"127.0.0.1:{port}"
    async with running.channel() as channel:
        assert await channel.unary_unary(CALL)(b"x") == b"x"


@pytest.mark.parametrize(
    "listen", ["", "127.0.0.1", "127.0.0.1:http", "127.0.0.1:70000", "::1:80", "unix:", "unix:" + "p" * 200]
)
async def test_an_address_that_cannot_be_read_is_named(start: Start, listen: str) -> None:
    with pytest.raises(ValueError, match="listen address"):
        await start(listen=listen)


async def test_the_address_is_known_only_after_start() -> None:
    for kind in (Http2Server, GrpcioServer):
        server = kind({})
        with pytest.raises(RuntimeError):
            assert server.address
        await server.close()


def make_certificate(folder: Path, name: str, issuer: str | None = None) -> None:
    """A key and a certificate for localhost, signed by itself or by `issuer`."""
    base = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    files = ["-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.pem")]
    more = ["-CA", str(folder / f"{issuer}.pem"), "-CAkey", str(folder / f"{issuer}.key")] if issuer else []
    usage = ["-addext", f"basicConstraints=critical,CA:{'FALSE' if issuer else 'TRUE'}"]
    usage += [] if issuer else ["-addext", "keyUsage=critical,keyCertSign,cRLSign"]  # Python 3.13's ssl insists
    subject = ["-subj", f"/CN={name}", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-days", "2"]
    done = subprocess.run([*base, *files, *more, *usage, *subject], capture_output=True, check=False, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An authority, a server and a client certificate of it, and a stranger's."""
    folder = tmp_path_factory.mktemp("tls")
    for name, issuer in (("ca", None), ("server", "ca"), ("renewed", "ca"), ("client", "ca"), ("stranger", None)):
        make_certificate(folder, name, issuer)
    return folder


def client_credentials(folder: Path, name: str | None) -> grpc.ChannelCredentials:
    key, chain = ((folder / f"{name}{end}").read_bytes() if name else None for end in (".key", ".pem"))
    return grpc.ssl_channel_credentials((folder / "ca.pem").read_bytes(), key, chain)


async def test_mtls_on_grpcio_serves_its_own_clients_only_and_reloads(tmp_path: Path, certificates: Path) -> None:
    for end in (".key", ".pem"):
        (tmp_path / f"server{end}").write_bytes((certificates / f"server{end}").read_bytes())
    tls = TlsFiles(str(tmp_path / "server.pem"), str(tmp_path / "server.key"), str(certificates / "ca.pem"))
    server = GrpcioServer({METHOD: lambda stream: Recorder(stream, echo)}, tls=tls)
    await server.start("127.0.0.1:0")
    port = server.address.rpartition(":")[2]

    async def call(name: str | None) -> bytes:
        options = [("grpc.use_local_subchannel_pool", 1)]
        credentials = client_credentials(certificates, name)
        async with grpc.aio.secure_channel(f"localhost:{port}", credentials, options) as channel:
            found: bytes = await channel.unary_unary(CALL)(b"x", timeout=PATIENCE)
            return found

    async def served() -> str:
        context = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
        context.load_cert_chain(certificates / "client.pem", certificates / "client.key")
        context.set_alpn_protocols(["h2"])
        _, writer = await asyncio.open_connection("localhost", int(port), ssl=context)
        found = dict(item[0] for item in writer.get_extra_info("peercert")["subject"])
        writer.close()
        return str(found["commonName"])

    assert await call("client") == b"x"
    for stranger in (None, "stranger"):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(stranger)
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
    assert await served() == "server"
    for end in (".key", ".pem"):
        (tmp_path / f"server{end}").write_bytes((certificates / f"renewed{end}").read_bytes())
    assert await served() == "renewed"
    (tmp_path / "server.key").unlink()  # half of a rotation: the old certificate stays
    assert await served() == "renewed"
    assert await call("client") == b"x"
    await server.close()


async def test_tls_with_alpn_on_our_own_transport(certificates: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(certificates / "ca.pem"))
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_cert_chain(certificates / "server.pem", certificates / "server.key")
    context.set_alpn_protocols(["h2"])
    server = Http2Server({METHOD: lambda stream: Recorder(stream, echo)}, tls=context)
    await server.start("127.0.0.1:0")
    port = server.address.rpartition(":")[2]
    credentials = client_credentials(certificates, "client")
    async with grpc.aio.secure_channel(f"localhost:{port}", credentials) as channel:
        data = bytes(1_000_000)
        found: bytes = await channel.unary_unary(CALL)(data, timeout=PATIENCE)
        assert found == data
    without = ssl.create_default_context(cafile=str(certificates / "ca.pem"))
    without.load_cert_chain(certificates / "client.pem", certificates / "client.key")
    reader, writer = await asyncio.open_connection("localhost", int(port), ssl=without)
    with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):  # HTTP/2 was not agreed upon
        await reader.readexactly(1)
    writer.close()
    await server.close()
