"""Fuzzing of what reads a peer's bytes: the HTTP/2 transport, the ext_proc messages, whole requests, and answers.

An input is one read of a socket (transport) or one gRPC message (messages): pieces of a corpus of good and bad bytes,
put together and damaged. A transport input goes to a connection that lives until an input ends it, so that deep states
are reached; then nothing may be left of it. Any exception is a finding, and is printed with the inputs that led to it.

    python -m tests.fuzz transport --inputs 10000000
    python -m tests.fuzz messages --inputs 10000000
    python -m tests.fuzz requests --inputs 10000000                # with a guard: see tests.fuzz.requests
    python -m tests.fuzz answers --inputs 1000000                  # streams of models: see tests.fuzz.answers
    python -m tests.fuzz messages --atheris -max_total_time=600    # guided by coverage; needs the `fuzz` extra
"""

from __future__ import annotations

import argparse
import random
import resource
import struct
import sys
import time
from collections.abc import Callable

from extproc import wire
from extproc.transport import frames
from extproc.transport.frames import END_HEADERS, END_STREAM, PADDED, PRIORITIZED, frame
from extproc.transport.seam import Stream, TransportLimits
from proto import ext_proc_pb2 as pb
from tests.extproc.transport.conftest import METHOD, head, text
from tests.extproc.transport.memory import InMemory
from tests.fuzz import answers, requests

LIMITS = TransportLimits(
    max_message_bytes=4_000,
    max_partial_bytes=8_000,
    max_control_frames=200,
    max_concurrent_streams=5,
    max_header_bytes=2_048,
    max_frame_bytes=16_384,
    stream_window_bytes=65_535,
    max_buffered_bytes=2_000,
    high_water_bytes=1_000,
)


class Receiver:
    """Echoes, finishes and fails, as the first byte of a message says."""

    live = 0

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        Receiver.live += 1

    def message(self, data: bytes) -> None:
        kind = data[0] & 7 if data else 0
        if kind == 1:
            self.stream.finish(len(data) % 17, "finished")
        elif kind != 2:
            self.stream.send(data)

    def half_closed(self) -> None:
        self.stream.finish()

    def closed(self) -> None:
        Receiver.live -= 1


def frame_corpus() -> list[bytes]:
    """Whole frames, most of them good."""
    block = head()
    stateless = head(first=False)
    message = b"\0\0\0\0\5hello"
    long = b"\0" + struct.pack(">I", 3_000) + bytes(900)
    bomb = block + b"\x90" * 50
    corpus = []
    for number in (1, 3, 5, 7, 9, 201):
        for one in (
            block,
            stateless,
            head(METHOD, ("grpc-timeout", "1S")),
            head("/other"),
            block[:9],
            b"\x20\x82",
            bomb,
        ):
            corpus.append(frame(frames.HEADERS, END_HEADERS, number, one))
            corpus.append(frame(frames.HEADERS, END_HEADERS | END_STREAM, number, one))
        corpus += [
            frame(frames.HEADERS, 0, number, block[:20]) + frame(frames.CONTINUATION, END_HEADERS, number, block[20:]),
            frame(frames.HEADERS, END_HEADERS | PADDED | PRIORITIZED, number, b"\3\0\0\0\0\7" + block + b"\0\0\0"),
            frame(frames.HEADERS, END_HEADERS | END_STREAM, number, b"\0" + text("x") + text("y")),
            frame(frames.DATA, 0, number, message),
            frame(frames.DATA, END_STREAM, number, message),
            frame(frames.DATA, 0, number, b"\0\0\0\0\1\1"),
            frame(frames.DATA, 0, number, message * 5 + message[:3]),
            frame(frames.DATA, PADDED, number, b"\2" + message + b"\0\0"),
            frame(frames.DATA, 0, number, long),
            frame(frames.DATA, 0, number, bytes(900)),
            frame(frames.DATA, END_STREAM, number),
            frames.rst_stream(number, frames.CANCEL),
            frames.window_update(number, 1_000),
            frame(frames.PRIORITY, 0, number, bytes(5)),
        ]
    corpus += [
        frames.window_update(0, 100_000),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 0}),
        frames.settings({frames.INITIAL_WINDOW_SIZE: 1_000_000, frames.MAX_FRAME_SIZE: 20_000, 99: 1}),
        frame(frames.SETTINGS, frames.ACK, 0),
        frame(frames.PING, 0, 0, bytes(8)),
        frame(frames.GOAWAY, 0, 0, bytes(8)),
        frame(0x42, 0, 0, b"unknown"),
        frames.PREFACE,
    ]
    return corpus


def message_corpus() -> list[bytes]:
    """One message of every kind."""
    out = []
    for kind in ("request_headers", "response_headers"):
        request = pb.ProcessingRequest()
        for name, value in ((":path", b"/v1/chat/completions"), ("authorization", b"Bearer x"), ("x", b"\xff\xfe")):
            getattr(request, kind).headers.headers.add(key=name, raw_value=value)
        getattr(request, kind).headers.headers.add(key="content-type", value="application/json")
        request.protocol_config.request_body_mode = pb.ProcessingMode.FULL_DUPLEX_STREAMED
        request.attributes["envoy.filters.http.ext_proc"].update(
            {"source.address": "10.0.0.1", "list": [1, {"a": None}]}
        )
        request.metadata_context.filter_metadata["jwt"].update({"sub": "user", "deep": {"er": [True]}})
        out.append(request.SerializeToString())
    for kind in ("request_body", "response_body"):
        request = pb.ProcessingRequest()
        getattr(request, kind).body = b'{"model":"auto","messages":[{"role":"user","content":"hi"}]}'
        getattr(request, kind).end_of_stream = True
        out.append(request.SerializeToString())
    trailers = pb.ProcessingRequest()
    trailers.request_trailers.trailers.headers.add(key="grpc-status", raw_value=b"0")
    return [*out, trailers.SerializeToString(), b""]


def damage(chosen: random.Random, data: bytes) -> bytes:
    """A few bytes changed, cut out, doubled or put in."""
    raw = bytearray(data)
    for _ in range(chosen.choice((0, 0, 1, 1, 2, 5))):
        at = chosen.randrange(len(raw)) if raw else 0
        kind = chosen.randrange(5)
        if kind == 0 and raw:
            raw[at] ^= 1 << chosen.randrange(8)
        elif kind == 1 and raw:
            raw[at] = chosen.choice((0, 1, 0x20, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del raw[at : at + chosen.randrange(1, 9)]
        elif kind == 3:
            raw[at:at] = chosen.randbytes(chosen.randrange(1, 9))
        else:
            raw[at:at] = raw[at : at + chosen.randrange(1, 30)]
    return bytes(raw)


class TransportTarget:
    """Feeds connections one after the other."""

    def __init__(self) -> None:
        self.connections = 0
        self.fed: list[bytes] = []
        self.running: InMemory | None = None

    def __call__(self, data: bytes) -> None:
        running = self.running
        if running is None:
            self.running = running = InMemory({METHOD: Receiver}, LIMITS)
            self.connections += 1
            self.fed = []
            if self.connections % 4:  # a quarter of them begins with the preface, and with fuzz inside it
                running.feed(frames.PREFACE + frames.settings({}) + frame(frames.SETTINGS, frames.ACK, 0))
        self.fed.append(data)
        running.feed(data)
        if not running.wire.open or len(self.fed) >= 50:
            running.wire.take()  # whole frames only
            running.lose()
            running.check_empty()
            assert Receiver.live == 0
            self.running = None


class MessageTarget:
    """Decodes messages and reads every part of them."""

    def __init__(self) -> None:
        self.fed: list[bytes] = []

    def __call__(self, data: bytes) -> None:
        self.fed = [data]
        try:
            found = wire.decode(data)
        except ValueError:
            return
        if found is not None:
            for name in found.headers:
                found.headers.get(name)
            found.terms()
            found.attributes()


def fuzz(target: Callable[[bytes], None], corpus: list[bytes], inputs: int, seed: int) -> None:
    """Feed `inputs` inputs; what is drawn depends on `seed` alone."""
    chosen = random.Random(seed)
    begin = time.monotonic()
    for number in range(1, inputs + 1):
        data = b"".join(chosen.choices(corpus, k=chosen.choice((1, 1, 2, 3))))
        target(damage(chosen, data))
        if number % 100_000 == 0:
            print(f"{number} inputs, {time.monotonic() - begin:.0f} s, {rss():.1f} MB", flush=True)


def rss() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("target", choices=("transport", "messages", "requests", "answers"))
    parser.add_argument("--inputs", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--atheris", action="store_true", help="further arguments go to libFuzzer")
    known, more = parser.parse_known_args()
    if known.target == "requests":
        return 1 if requests.run(known.inputs, known.seed) else 0
    if known.target == "answers":
        return 1 if answers.run(known.inputs, known.seed, damage) else 0
    target = TransportTarget() if known.target == "transport" else MessageTarget()
    corpus = frame_corpus() if known.target == "transport" else message_corpus()
    if known.atheris:
        import atheris

        atheris.instrument_all()
        atheris.Setup([sys.argv[0], *more], target)
        atheris.Fuzz()
        return 0
    try:
        fuzz(target, corpus, known.inputs, known.seed)
    except BaseException:
        print("the inputs since the connection was opened:", *(data.hex() for data in target.fed), sep="\n")
        raise
    return 0


if __name__ == "__main__":
    sys.exit(main())
