"""A direct ext_proc load generator: gRPC over HTTP/2 from raw sockets, closed loop, over TCP or a Unix socket.

Envoy limits what can be measured through it to some 18,000 requests a second; this client costs a few microseconds a
request and finds the server's own limit. It speaks as Envoy does: one gRPC stream a request, in BUFFERED mode the body
only after the header reply. Frames are built before the clock starts; only frame heads of the answers are read.

    python -m bench.direct unix:/tmp/p.sock --seconds 5 --connections 2 --streams 16 --body 1024
"""

from __future__ import annotations

import argparse
import json
import select
import socket
import sys
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise

from extproc.transport import frames

PROCESS = "/envoy.service.ext_proc.v3.ExternalProcessor/Process"
_REOPEN = 8_192  # streams of one connection before it is opened anew; what a connection sends is built once


@dataclass(frozen=True)
class ClientTurn:
    """What a client sends at once in a stream; the next turn waits for `replies` messages of the server."""

    messages: tuple[bytes, ...]
    replies: int = 1


@dataclass
class LoadResult:
    """What a run has seen. Latencies in milliseconds, from the first byte of a stream sent to its end received."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    client_cpu: float = 0.0
    latencies: list[float] = field(default_factory=list, repr=False)

    def summary(self) -> dict[str, float]:
        """Requests a second, percentiles and failures."""
        ordered = sorted(self.latencies)
        out = {
            "requests": self.requests,
            "failed": self.failed,
            "requests_per_second": self.requests / self.seconds if self.seconds else 0.0,
            "client_cpu_us": 1e6 * self.client_cpu / max(1, self.requests),
        }
        for name, share in (("p50_ms", 0.5), ("p99_ms", 0.99), ("p999_ms", 0.999)):
            out[name] = ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
        return out


def request_head(path: str, authority: str = "pointsman", extra: Sequence[tuple[str, str]] = ()) -> bytes:
    """A stateless header block for a gRPC request, Huffman coding left out."""
    fields = [(":authority", authority), ("te", "trailers"), ("content-type", "application/grpc"), *extra]
    block = b"\x83\x86\x04" + _text(path.encode())  # :method POST, :scheme http, :path
    for name, value in fields:
        block += b"\x00" + _text(name.encode()) + _text(value.encode())
    return block


def _text(text: bytes) -> bytes:
    if len(text) >= 127:
        raise ValueError("a header text of 127 bytes and more is not built here")
    return bytes((len(text),)) + text


def connect(target: str) -> socket.socket:
    """A blocking socket to `host:port` or `unix:PATH`. Raises OSError."""
    if target.startswith("unix:"):
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.connect(target[5:])
        except OSError:
            sock.close()
            raise
    else:
        host, _, port = target.rpartition(":")
        sock = socket.create_connection((host, int(port)))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return sock


class _Script:
    """The bytes that `_REOPEN` streams send, cut by stream and turn. Message bytes are shared between streams."""

    def __init__(self, turns: Sequence[ClientTurn], head: bytes) -> None:
        self.turns = turns
        self.head = head
        self.bodies = [b"".join(b"\0" + len(m).to_bytes(4, "big") + m for m in turn.messages) for turn in turns]
        self.needed = [turn.replies for turn in turns]

    def pieces(self, turn: int, number: int, largest: int) -> list[tuple[int, bytes]]:
        """(flow-controlled size, frame bytes) of a turn; the client half-closes with the last."""
        out: list[tuple[int, bytes]] = []
        if turn == 0:
            # the first block on a connection says that we keep no table; saying it in each is allowed too
            block = frames.TABLE_SIZE_0 + self.head
            out.append((0, frames.frame(frames.HEADERS, frames.END_HEADERS, number, block)))
        body = self.bodies[turn]
        cuts = [*range(0, len(body), largest), len(body)]
        for start, stop in pairwise(cuts):
            last = stop == len(body) and turn == len(self.turns) - 1
            flags = frames.END_STREAM if last else 0
            out.append((stop - start, frames.head(frames.DATA, flags, number, stop - start) + body[start:stop]))
        return out


class _LoadClient:
    """One connection with `depth` streams in flight."""

    def __init__(self, target: str, script: _Script, depth: int, result: LoadResult) -> None:
        self.target = target
        self.script = script
        self.depth = depth
        self.result = result
        self.stop_at = float("inf")
        self.open()

    def open(self) -> None:
        self.sock = connect(self.target)
        self.next_id = 1
        self.rest = b""
        self.window = 65_535
        self.stream_window = 65_535
        self.largest = 16_384
        self.queue: deque[tuple[int, int, bytes]] = deque()  # stream, size, frame
        self.windows: dict[int, int] = {}
        self.started: dict[int, float] = {}
        self.turn: dict[int, int] = {}
        self.replies: dict[int, int] = {}
        self.received = 0
        self.unsent = b""
        hello = frames.PREFACE + frames.settings({frames.HEADER_TABLE_SIZE: 0, frames.INITIAL_WINDOW_SIZE: 2**31 - 1})
        self.sock.sendall(hello + frames.window_update(0, 2**30))
        # the server's SETTINGS come first: with them the windows are known before anything is sent
        while not self.acknowledged():
            pass
        self.sock.setblocking(False)

    def acknowledged(self) -> bool:
        data = self.sock.recv(65_536)
        if not data:
            raise ConnectionError("the server closed the connection")
        out: list[bytes] = []
        self.read(data, out)
        self.sock.sendall(b"".join(out))
        return any(b"\0\0\0\4\1" in part for part in out)

    def start(self, count: int, now: float, out: list[bytes]) -> None:
        for _ in range(count):
            number = self.next_id
            self.next_id += 2
            self.started[number] = now
            self.turn[number] = 0
            self.replies[number] = 0
            self.windows[number] = self.stream_window
            self.put(number, 0, out)

    def put(self, number: int, turn: int, out: list[bytes]) -> None:
        for size, piece in self.script.pieces(turn, number, self.largest):
            if self.queue or size > self.window or size > self.windows[number]:
                self.queue.append((number, size, piece))
            else:
                self.window -= size
                self.windows[number] -= size
                out.append(piece)

    def retry(self, out: list[bytes]) -> None:
        """Send what a window held back. A stream's frames stay in order because the whole queue does."""
        waiting, self.queue = self.queue, deque()
        held: set[int] = set()
        for number, size, piece in waiting:
            if number not in self.windows:
                continue
            if number in held or size > self.window or size > self.windows[number]:
                held.add(number)
                self.queue.append((number, size, piece))
            else:
                self.window -= size
                self.windows[number] -= size
                out.append(piece)

    def read(self, data: bytes, out: list[bytes]) -> int:
        """Handle what came; returns how many streams ended."""
        if self.rest:
            data = self.rest + data
        done = position = 0
        end = len(data)
        now = time.perf_counter()
        needed = self.script.needed
        while end - position >= 9:
            word, flags, number = frames.read_head(data, position)
            size = word >> 8
            stop = position + 9 + size
            if stop > end:
                break
            kind = word & 0xFF
            if kind == frames.DATA:
                self.received += size
                # counted in gRPC messages where a frame holds whole ones, as all answers of a few bytes do
                if size >= 5 and number in self.turn:
                    self.replies[number] += 1
                    turn = self.turn[number]
                    if self.replies[number] >= needed[turn] and turn + 1 < len(needed):
                        self.turn[number] = turn + 1
                        self.replies[number] = 0
                        self.put(number, turn + 1, out)
            elif kind == frames.SETTINGS and not flags & frames.ACK:
                for key, value in frames.read_setting(data[position + 9 : stop]):
                    if key == frames.INITIAL_WINDOW_SIZE:
                        for other in self.windows:
                            self.windows[other] += value - self.stream_window
                        self.stream_window = value
                    elif key == frames.MAX_FRAME_SIZE:
                        self.largest = value
                out.append(frames.frame(frames.SETTINGS, frames.ACK, 0))
            elif kind == frames.WINDOW_UPDATE:
                grant = int.from_bytes(data[position + 9 : stop], "big")
                if not number:
                    self.window += grant
                elif number in self.windows:
                    self.windows[number] += grant
            elif kind == frames.PING and not flags & frames.ACK:
                out.append(frames.frame(frames.PING, frames.ACK, 0, data[position + 9 : stop]))
            elif kind == frames.GOAWAY:
                raise ConnectionError(f"GOAWAY: {data[position + 9 : stop]!r}")
            if (kind == frames.HEADERS and flags & frames.END_STREAM) or kind == frames.RST_STREAM:
                begun = self.started.pop(number, None)
                if begun is not None:
                    done += 1
                    if kind == frames.RST_STREAM or not (self.turn[number] or self.replies[number]):
                        self.result.failed += 1
                    else:
                        self.result.latencies.append(1e3 * (now - begun))
                    del self.turn[number], self.replies[number], self.windows[number]
            position = stop
        self.rest = data[position:]
        if self.queue:
            self.retry(out)
        if self.received > 2**29:
            out.append(frames.window_update(0, self.received))
            self.received = 0
        return done

    def ready(self) -> bool:
        """The socket can be read. Returns whether this connection goes on."""
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return True
        if not data:
            raise ConnectionError("the server closed the connection")
        out: list[bytes] = []
        done = self.read(data, out)
        self.result.requests += done
        now = time.perf_counter()
        if now < self.stop_at and self.next_id < 2 * _REOPEN:
            self.start(done, now, out)
        if out or self.unsent:
            self.send(b"".join(out))
        if self.started:
            return True
        self.sock.close()
        if now >= self.stop_at:
            return False
        self.open()
        return True

    def begin(self) -> None:
        out: list[bytes] = []
        self.start(self.depth, time.perf_counter(), out)
        self.send(b"".join(out))

    def send(self, data: bytes) -> None:
        data = self.unsent + data
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        self.unsent = data[sent:]


def run(
    target: str, turns: Sequence[ClientTurn], seconds: float, connections: int = 2, streams: int = 16
) -> LoadResult:
    """Drive `connections` × `streams` closed loops for `seconds`. Raises OSError when the server is not there."""
    result = LoadResult()
    script = _Script(turns, request_head(PROCESS))
    clients = [_LoadClient(target, script, streams, result) for _ in range(connections)]
    poll = select.epoll()
    by_fd: dict[int, _LoadClient] = {}
    cpu, begin = time.process_time(), time.perf_counter()

    def watch(client: _LoadClient) -> None:
        by_fd[client.sock.fileno()] = client
        flags = select.EPOLLIN | (select.EPOLLOUT if client.unsent else 0)
        try:
            poll.register(client.sock, flags)
        except FileExistsError:
            poll.modify(client.sock, flags)

    for client in clients:
        client.stop_at = begin + seconds
        client.begin()
        watch(client)
    live = len(clients)
    while live:
        events = poll.poll(seconds + 10)
        if not events:
            raise TimeoutError("the server stopped answering")
        for fd, event in events:
            client = by_fd[fd]
            had, sock = bool(client.unsent), client.sock
            if event & select.EPOLLOUT:
                client.send(b"")
            if event & ~select.EPOLLOUT and not client.ready():
                live -= 1
                continue
            if client.sock is not sock:
                client.begin()
            if client.sock is not sock or bool(client.unsent) != had:
                watch(client)
    poll.close()
    result.seconds = time.perf_counter() - begin
    result.client_cpu = time.process_time() - cpu
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    from bench.messages import duplex_turns, turns  # here, so that the client works without protobuf

    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", help="host:port or unix:PATH of an ext_proc server")
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--connections", type=int, default=2)
    parser.add_argument("--streams", type=int, default=16, help="in flight on each connection")
    parser.add_argument("--body", type=int, default=1024, help="bytes of the chat completion")
    parser.add_argument("--duplex", action="store_true", help="FULL_DUPLEX_STREAMED instead of BUFFERED")
    chosen = parser.parse_args(arguments)
    script = duplex_turns(chosen.body) if chosen.duplex else turns(chosen.body)
    result = run(chosen.target, script, chosen.seconds, chosen.connections, chosen.streams)
    json.dump({**result.summary(), **{k: v for k, v in asdict(result).items() if k == "seconds"}}, sys.stdout)
    print()
    return 1 if result.failed else 0


if __name__ == "__main__":
    sys.exit(main())
