"""How long a well-behaved client waits while a hostile one sends what is costly to read.

One router process with one worker, driven straight over its HTTP/2 transport: Envoy would hold a hostile body back
until it is whole, has limits of its own, and adds the same to everybody. The benign client sends small chat completions
at a fixed rate, and a request's time counts from when it was due, so that a pause shows in every request that it holds
up. The hostile client is a process of its own, which sends one kind after the other as fast as it is answered. Before,
between and after them the benign client is alone (`quiet`): what the machine does besides is in those rows, too.

The router has a policy with guards that read everything and logs every decision with its content; neural kinds run
against a second router, whose policy has a neural guard besides.

    python -m bench.pause                                 # some three minutes
    python -m bench.pause --seconds 3 --only paths
"""

from __future__ import annotations

import argparse
import gzip
import json
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import brotli
import zstandard

from bench import direct, messages
from bench.direct import PROCESS, ClientTurn, LoadResult, _LoadClient, _Script, request_head
from proto import ext_proc_pb2 as pb

OUT = Path(__file__).parent / "out"
LIMIT_MS = 50.0
"""What a benign client may wait at the 99.9th percentile."""
MB = 2**20

POLICY = """\
version: 1
models:
  small: {name: small, url: "http://127.0.0.1:1"}
  large: {name: large, url: "http://127.0.0.1:1"}
default: small
signals:
  forbidden: {keyword: {any: [classified-codeword], in: all}}
  ticket: {regex: {any: ['(?i)\\\\bticket-[0-9]+\\\\b'], in: all}}
  personal: {pii: {types: [email, card, phone], in: all}}
  lists: {structure: {count: list_items, at_least: 50}}
  foreign: {language: {is: [fi]}}
  long: {tokens: {at_least: 50000}}
NEURAL
decisions:
  - {name: guard, when: {any: [forbidden, ticket, personal]}, on_unknown: match, respond: {status: 403, message: No.}}
  - {name: other, when: {any: [lists, foreign, long]}, route: large}
"""
NEURAL = "  attack: {jailbreak: {in: [user]}}"
_GUARD = "  - {name: attack, when: attack, route: large}\n"


class HostileKind(NamedTuple):
    """One kind of hostile request: what its streams send, over how many connections, how many on each at a time."""

    turns: Callable[[], Sequence[ClientTurn]]
    connections: int = 2
    streams: int = 4
    neural: bool = False


def policy(neural: bool) -> str:
    """The policy, with a neural guard or without."""
    return POLICY.replace("NEURAL", NEURAL if neural else "") + (_GUARD if neural else "")


def _head(path: str, mode: pb.ProcessingMode.BodySendMode, fields: Mapping[str, str] = {}, end: bool = False) -> bytes:
    message = pb.ProcessingRequest()
    add = message.request_headers.headers.headers.add
    given = {":method": "POST", ":path": path, ":scheme": "http", "content-type": "application/json", **fields}
    given["x-forwarded-for"] = "198.51.100.9"  # as Envoy would tell the hostile client from the benign one
    for name, value in given.items():
        add(key=name, raw_value=value.encode())
    message.request_headers.end_of_stream = end
    message.protocol_config.request_body_mode = mode
    return message.SerializeToString()


def _whole(body: bytes, headers: Mapping[str, str] = {}) -> Sequence[ClientTurn]:
    return ClientTurn((_head("/v1/chat/completions", pb.ProcessingMode.BUFFERED, headers),)), ClientTurn(
        (messages.body(body),)
    )


def _get(path: str) -> Sequence[ClientTurn]:
    return (ClientTurn((_head(path, pb.ProcessingMode.BUFFERED, {":method": "GET"}, True),)),)


def _chat(content: Any, **more: Any) -> bytes:
    fields = {"model": "auto", "messages": [{"role": "user", "content": content}], **more}
    return json.dumps(fields, ensure_ascii=False, separators=(",", ":")).encode()


def _text(content: Any, **more: Any) -> Sequence[ClientTurn]:
    return _whole(_chat(content, **more))


def _unfinished() -> Sequence[ClientTurn]:
    """A body of 9 MB whose end never comes."""
    head = _head("/v1/chat/completions", pb.ProcessingMode.FULL_DUPLEX_STREAMED)
    chunks = [messages.body(b"x" * 62_000, end=False)] * (9 * MB // 62_000)
    return ClientTurn((head, *chunks)), ClientTurn((messages.body(b""),))


def _bomb(name: str, body: bytes) -> Sequence[ClientTurn]:
    encoded = {
        "gzip": lambda: gzip.compress(body),
        "br": lambda: bytes(brotli.compress(body, quality=5)),
        "zstd": lambda: zstandard.compress(body),
    }[name]()
    return _whole(encoded, {"content-encoding": name})


_REPEATED = b"{" + b'"model":"auto",' * 40_000 + b'"messages":[{"role":"user","content":"\xc3\xa9"}]}'
_DEEP = b'{"model":"auto","messages":[{"role":"user","content":"hi","x":%b%b}]}' % (b"[" * 240, b"]" * 240)

KINDS: dict[str, HostileKind] = {
    "paths: 2,300 x %2F": HostileKind(lambda: _get("/v1/models" + "%2F" * 2_300 + "%3F")),
    "paths: 16 kB of escapes": HostileKind(lambda: _get("/v1/models" + "%25252F" * 2_300)),
    "keys: 40,000 x model": HostileKind(lambda: _whole(_REPEATED)),
    "combining marks: 16,000": HostileKind(lambda: _text("e" + "\u0301" * 16_000)),
    "U+FDFA: 3 MiB": HostileKind(lambda: _text("\ufdfa" * MB)),
    "spaces: 4 MB": HostileKind(lambda: _text(" \n" * 2 * MB)),
    "digits: 4 MB": HostileKind(lambda: _text("4" * 4 * MB)),
    "list items: 3 MB": HostileKind(lambda: _text("- a\n" * 750_000)),
    "unfinished: 40 x 9 MB": HostileKind(_unfinished, 8, 5),
    "nested: 240 deep, logged": HostileKind(lambda: _whole(_DEEP)),
    "texts: 122 kB over 12 connections": HostileKind(lambda: _text("word " * 24_400), 12, 1, neural=True),
    "combining marks: 16,000, neural": HostileKind(lambda: _text("e" + "\u0301" * 16_000), neural=True),
    "bomb: gzip to 9 MB": HostileKind(lambda: _bomb("gzip", _chat("x" * 9 * MB))),
    "bomb: gzip to 100 MB": HostileKind(lambda: _bomb("gzip", b" " * 100 * MB)),
    "bomb: br to 100 MB": HostileKind(lambda: _bomb("br", b" " * 100 * MB)),
    "bomb: zstd to 100 MB": HostileKind(lambda: _bomb("zstd", b" " * 100 * MB)),
    "values: 190,000 numbers": HostileKind(lambda: _text("hi", x=[0] * 190_000)),
    "values: 40,000 messages": HostileKind(
        lambda: _whole(_chat("x").replace(b"}]", b"}" + b',{"role":"user","content":"x"}' * 40_000 + b"]"))
    ),
    "values: too many": HostileKind(lambda: _text("hi", x=[[]] * 2_000_000)),
    "values: 12,000 messages": HostileKind(
        lambda: _whole(_chat("x").replace(b"}]", b"}" + b',{"role":"user","content":"x"}' * 12_000 + b"]"))
    ),
    "prompt: 10 MB": HostileKind(lambda: _text("the quick brown fox " * (10 * MB // 20 - 100))),
}


class _Benign(_LoadClient):
    """Streams that are started when they are due, however many are still open."""

    def started_at(self, due: float) -> None:
        out: list[bytes] = []
        self.start(1, due, out)
        self.send(b"".join(out))

    def answers(self) -> None:
        try:
            data = self.sock.recv(1 << 20)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError("the router closed the connection")
        out: list[bytes] = []
        self.result.requests += self.read(data, out)
        if out or self.unsent:
            self.send(b"".join(out))


def benign(target: str, seconds: float, rate: float) -> LoadResult:
    """What a client sees that sends `rate` requests a second for `seconds`. Raises OSError when the router is gone."""
    result = LoadResult()
    client = _Benign(target, _Script(messages.turns(1024), request_head(PROCESS)), 1, result)
    poll = select.poll()
    poll.register(client.sock, select.POLLIN)
    begin = time.perf_counter()
    sent = 0
    last = begin + seconds
    while True:
        now = time.perf_counter()
        due = begin + sent / rate
        if due >= last:
            if not client.started or now > last + 30:
                break
            poll.poll(100)
        elif now >= due:
            client.started_at(due)
            sent += 1
        else:
            poll.poll(1e3 * (due - now))
        client.answers()
    result.failed += len(client.started)
    result.seconds = time.perf_counter() - begin
    client.sock.close()
    return result


def hostile(name: str, target: str, seconds: float) -> None:
    """Sends one kind for `seconds`; prints when it begins, and how many requests it was."""
    kind = KINDS[name]
    turns = kind.turns()
    print("ready", flush=True)
    try:
        found = direct.run(target, turns, seconds, kind.connections, kind.streams)
        print(json.dumps({"requests": found.requests}))
    except OSError as error:  # the router may close what misbehaves
        print(json.dumps({"error": f"{type(error).__name__}: {error}"[:120]}))


def row(found: LoadResult) -> dict[str, float]:
    """Percentiles and the worst latency."""
    ordered = sorted(found.latencies)
    return found.summary() | {"worst_ms": ordered[-1] if ordered else float("inf")}


def _measure(name: str | None, target: str, seconds: float, rate: float) -> dict[str, Any]:
    """One row: the benign client beside the hostile kind `name` (None: alone)."""
    if name is None:
        return row(benign(target, seconds, rate))
    command = [sys.executable, "-m", "bench.pause", "--hostile", name, target, "--seconds", str(seconds + 1)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        try:
            assert other.stdout is not None
            other.stdout.readline()  # it is ready: what it sends is built
            seen: dict[str, Any] = row(benign(target, seconds, rate))
            said = other.stdout.read().splitlines() if _ends(other, seconds) else []
        finally:
            other.kill()
    return seen | ({"hostile": json.loads(said[-1])} if said else {})


def _ends(process: subprocess.Popen[str], seconds: float) -> bool:
    """Whether a client ends by itself; one whose streams are never answered does not."""
    try:
        process.wait(seconds + 5)
    except subprocess.TimeoutExpired:
        return False
    return True


def routers(folder: Path, wanted: Sequence[HostileKind]) -> Iterator[tuple[bool, str, Any]]:
    """(neural, target, server) of each router that is needed."""
    from bench.__main__ import ServerProcess, serve

    for neural in sorted({kind.neural for kind in wanted}):
        file = folder / f"policy{neural:d}.yaml"
        file.write_text(policy(neural))
        target = f"unix:{folder}/router{neural:d}.sock"
        command = [*serve(file, target), "--decision-log", str(folder / "log"), "--decision-log-content"]
        yield neural, target, ServerProcess(command, target, None, folder / f"router{neural:d}.log")


def run(names: Sequence[str], seconds: float, rate: float) -> dict[str, dict[str, Any]]:
    """Every kind of `names`, beside a quiet row before the first and after the last of each router."""
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory(prefix="pause") as temporary:
        for neural, target, server in routers(Path(temporary), [KINDS[name] for name in names]):
            try:
                benign(target, 1, rate)  # fills what is filled once
                among = " (neural)" if neural else ""
                rows[f"quiet, before{among}"] = _measure(None, target, 2 * seconds, rate)
                for name in names:
                    if KINDS[name].neural == neural:
                        rows[name] = _measure(name, target, seconds, rate)
                        rows[name]["rss_mb"] = server.rss()
                        print(f"{name}: worst {rows[name]['worst_ms']:.1f} ms", file=sys.stderr)
                        time.sleep(1)  # for what is still read of it
                rows[f"quiet, after{among}"] = _measure(None, target, 2 * seconds, rate)
            finally:
                server.close()
    return rows


def table(rows: dict[str, dict[str, Any]]) -> str:
    """One line a row; a mark where the promise is not kept."""
    lines = [f"{'benign client beside':36}{'p50 ms':>9}{'p99 ms':>9}{'p99.9 ms':>10}{'worst ms':>10}{'failed':>8}"]
    for name, one in rows.items():
        late = "" if one["p999_ms"] <= LIMIT_MS and not one["failed"] else f"  over {LIMIT_MS:.0f} ms"
        cells = f"{one['p50_ms']:9.2f}{one['p99_ms']:9.2f}{one['p999_ms']:10.2f}{one['worst_ms']:10.2f}"
        lines.append(f"{name:36}{cells}{one['failed']:8.0f}{late}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=6.0, help="of each kind")
    parser.add_argument("--rate", type=float, default=200.0, help="benign requests a second")
    parser.add_argument("--only", default="", help="kinds whose name contains this")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for pause.json")
    parser.add_argument("--hostile", nargs=2, metavar=("KIND", "TARGET"), help="be the hostile client")
    chosen = parser.parse_args(arguments)
    if chosen.hostile:
        name, target = chosen.hostile
        hostile(name, target, chosen.seconds)
        return 0
    rows = run([name for name in KINDS if chosen.only in name], chosen.seconds, chosen.rate)
    chosen.out.mkdir(exist_ok=True)
    (chosen.out / "pause.json").write_text(json.dumps(rows, indent=1))
    print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
