"""Independent HTTP/2 peers against our own transport: the `h2` library, nghttp, h2load and curl."""

from __future__ import annotations

import asyncio
import re
import shutil
import struct
import sys
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import h2.settings
import pytest

from extproc.transport import frames
from tests.extproc.transport.conftest import METHOD, Running, Start, until
from tests.patience import PATIENCE

HEADERS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":path", METHOD),
    (":authority", "test"),
    ("te", "trailers"),
    ("content-type", "application/grpc"),
    ("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
]


class H2Client:
    """A client on the `h2` library, which checks everything that the server sends."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
        self.events: list[h2.events.Event] = []
        self.data: dict[int, bytearray] = {}
        self.trailers: dict[int, dict[bytes, bytes]] = {}

    @classmethod
    async def connect(cls, running: Running) -> H2Client:
        host, _, port = running.target.rpartition(":")
        client = cls(*await asyncio.open_connection(host, int(port)))
        client.h2.initiate_connection()
        client.flush()
        return client

    def flush(self) -> None:
        self.writer.write(self.h2.data_to_send())

    async def receive(self) -> None:
        """Handle what comes until nothing does for a moment; grant windows for all data."""
        while True:
            try:
                data = await asyncio.wait_for(self.reader.read(65_536), 0.3)
            except TimeoutError:
                return
            if not data:
                return
            for event in self.h2.receive_data(data):
                self.events.append(event)
                if isinstance(event, h2.events.DataReceived):
                    self.data.setdefault(event.stream_id, bytearray()).extend(event.data)
                    self.h2.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
                elif isinstance(event, h2.events.TrailersReceived):
                    self.trailers[event.stream_id] = dict(event.headers)
            self.flush()

    async def send(self, stream: int, data: bytes) -> None:
        """As fast as the server's windows and frame size let us."""
        while data:
            room = min(self.h2.local_flow_control_window(stream), self.h2.max_outbound_frame_size, len(data))
            if not room:
                await self.receive()
                continue
            self.h2.send_data(stream, data[:room])
            data = data[room:]
            self.flush()

    def found(self, kind: type[h2.events.Event]) -> list[h2.events.Event]:
        return [event for event in self.events if isinstance(event, kind)]


def message(data: bytes) -> bytes:
    return b"\0" + struct.pack(">I", len(data)) + data


async def test_h2_exchanges_messages_of_every_size(start_http2: Start) -> None:
    running = await start_http2()
    client = await H2Client.connect(running)
    await client.receive()
    sizes = [0, 1, 16_379, 16_380, 100_000, 1_000_000]
    for index, size in enumerate(sizes):
        stream = client.h2.get_next_available_stream_id()
        client.h2.send_headers(stream, HEADERS)
        await client.send(stream, message(bytes([index]) * size))
        client.h2.end_stream(stream)
        client.flush()
        await client.receive()
        assert client.data[stream] == message(bytes([index]) * size)
        assert client.trailers[stream] == {b"grpc-status": b"0"}
    replies = client.found(h2.events.ResponseReceived)
    assert [dict(reply.headers)[b":status"] for reply in replies] == [b"200"] * len(sizes)  # type: ignore[attr-defined]
    assert not client.found(h2.events.StreamReset)
    assert not client.found(h2.events.ConnectionTerminated)
    client.writer.close()


async def test_h2_cancels_pings_and_changes_its_settings(start_http2: Start) -> None:
    running = await start_http2()
    client = await H2Client.connect(running)
    client.h2.send_headers(1, HEADERS)
    client.h2.ping(b"12345678")
    await client.send(1, message(b"before"))
    client.flush()
    await client.receive()
    assert len(client.found(h2.events.PingAckReceived)) == 1
    client.h2.reset_stream(1, frames.CANCEL)
    client.h2.update_settings(
        {h2.settings.SettingCodes.INITIAL_WINDOW_SIZE: 7, h2.settings.SettingCodes.HEADER_TABLE_SIZE: 0}
    )
    client.flush()
    receiver = await running.receiver()
    await receiver.over.wait()
    await client.receive()
    assert len(client.found(h2.events.SettingsAcknowledged)) == 2
    client.h2.send_headers(3, HEADERS)
    await client.send(3, message(b"after, in pieces of seven bytes"))
    client.h2.end_stream(3)
    client.flush()
    await client.receive()
    assert client.data[3] == message(b"after, in pieces of seven bytes")
    client.writer.close()


async def run(*command: str, check: bool = True) -> str:
    """The output of a peer's command."""
    process = await asyncio.create_subprocess_exec(
        *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    out, _ = await asyncio.wait_for(process.communicate(), PATIENCE)
    if check:
        assert process.returncode == 0, out.decode(errors="replace")
    return out.decode(errors="replace")


def needs(tool: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(
        shutil.which(tool) is None, reason=f"{tool} is not installed (Debian: nghttp2-client, curl)"
    )


GRPC = ["te: trailers", "content-type: application/grpc"]


@needs("nghttp")
async def test_nghttp_uploads_a_message_and_prints_the_answer(start_http2: Start, tmp_path: Path) -> None:
    running = await start_http2()
    body = tmp_path / "body"
    body.write_bytes(message(b"x" * 300_000))
    headers = [part for header in GRPC for part in ("-H", header)]
    printed = await run("nghttp", "-v", "--no-dep", *headers, "-d", str(body), f"http://{running.target}{METHOD}")
    assert ":status: 200" in printed
    assert "grpc-status: 0" in printed
    assert running.receivers[0].messages == [b"x" * 300_000]


@needs("nghttp")
async def test_nghttp_sends_continuation_padding_and_trailers(start_http2: Start, tmp_path: Path) -> None:
    running = await start_http2()
    body = tmp_path / "body"
    body.write_bytes(message(b"padded"))
    headers = [part for header in [*GRPC, f"x-long: {'abc ' * 4_000}end"] for part in ("-H", header)]
    more = ["--continuation", "--padding=100", "--trailer=x-end: yes", "--window-bits=16", "--expect-continue"][:3]
    printed = await run("nghttp", "-v", *more, *headers, "-d", str(body), f"http://{running.target}{METHOD}")
    assert "grpc-status: 0" in printed
    assert running.receivers[0].messages == [b"padded"]
    assert len(running.receivers[0].stream.metadata["x-long"]) == 16_003


@pytest.mark.slow
@needs("h2load")
async def test_h2load_finds_every_request_answered(start_http2: Start, tmp_path: Path) -> None:
    running = await start_http2()
    body = tmp_path / "body"
    body.write_bytes(message(b"x" * 1_000))
    headers = [part for header in GRPC for part in ("-H", header)]
    load = ["-n", "20000", "-c", "8", "-m", "50", "-d", str(body)]
    printed = await run("h2load", *load, *headers, f"http://{running.target}{METHOD}")
    assert "20000 done, 20000 succeeded, 0 failed, 0 errored, 0 timeout" in printed
    assert re.search(r"status codes: 20000 2xx", printed)
    await until(lambda: running.server.streams == 0 and running.server.connections == 0)
    assert {tuple(receiver.events) for receiver in running.receivers} == {("message", "half_closed", "closed")}


@needs("curl")
@pytest.mark.parametrize(
    ("more", "status"),
    [([], "405"), (["-X", "POST", "-d", ""], "415"), (["-H", "content-type: application/grpc", "-d", ""], "200")],
    ids=["GET", "a form", "gRPC without a message"],
)
async def test_curl_is_answered_in_http(start_http2: Start, more: list[str], status: str) -> None:
    running = await start_http2()
    command = ["curl", "-sS", "-v", "--http2-prior-knowledge", "-m", "10", *more, f"http://{running.target}{METHOD}"]
    printed = await run(*command)
    assert f"HTTP/2 {status}" in printed
    assert ("grpc-status: 0" in printed) == (status == "200")


@needs("curl")
async def test_curl_without_http2_is_turned_away(start_http2: Start) -> None:
    running = await start_http2()
    printed = await run("curl", "-sS", "-m", "10", "--http1.1", f"http://{running.target}/", check=False)
    assert "HTTP/0.9" in printed or "Empty reply" in printed or "reset" in printed


@pytest.mark.e2e
async def test_our_load_generator_agrees_with_the_server(tmp_path: Path) -> None:
    """bench.direct in a process of its own against bench.echo in another: every stream ends, over a Unix socket."""
    target = f"unix:{tmp_path}/p.sock"
    server = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.echo", target, stdout=asyncio.subprocess.PIPE
    )
    assert server.stdout is not None
    assert (await asyncio.wait_for(server.stdout.readline(), PATIENCE)).decode().strip() == target
    for more in ([], ["--duplex", "--body", "200000"]):
        printed = await run(sys.executable, "-m", "bench.direct", target, "--seconds", "0.5", *more)
        assert '"failed": 0,' in printed
        assert int(re.findall(r'"requests": (\d+)', printed)[0]) > 10
    server.terminate()
    assert await asyncio.wait_for(server.wait(), PATIENCE) == 0
