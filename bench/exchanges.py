"""What the router alone takes of an answer: CPU, without Envoy, a client and a model beside it on the same cores.

Routers are driven straight (`bench.direct`) with the messages that Envoy sends for an answer, several rounds in turn,
so that what the machine does besides falls on all alike. `together`: the answer has come at once, as under load.
`apart`: each of its events is a message of its own, as from a model that has just begun to write. What a kept answer
takes is the time from the request's first byte to the answer's last, of one request at a time.

    python -m bench.exchanges                 # a minute
    python -m bench.exchanges --seconds 0.5 --rounds 2
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from bench.__main__ import NATIVE, OUT, ServerProcess, serve
from bench.direct import ClientTurn, run
from bench.envoy import free_port
from bench.messages import body, headers
from bench.watching import ANSWERS, BODY, HEAD, PASSED, POLICIES
from proto import ext_proc_pb2 as pb

MODES: Final = {
    "unwatched": pb.ProcessingMode.NONE,
    "meter": pb.ProcessingMode.STREAMED,
    "patterns": pb.ProcessingMode.FULL_DUPLEX_STREAMED,
}
"""How Envoy shows the answer, as `pointsman render` asks it to."""
KEPT: Final = "decisions:\n  - {name: faq, route: small, cache: {ttl: 1h, scope: all}}\n"
QUESTION: Final = b'{"model":"auto","messages":[{"role":"user","content":"Tell me about the harbour, please."}]}'
ANSWER: Final = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "small",
        "choices": [
            {"index": 0, "message": {"role": "assistant", "content": "Ships come. " * 170}, "finish_reason": "stop"}
        ],
        "usage": {"prompt_tokens": 9, "completion_tokens": 512, "total_tokens": 521},
    }
).encode()


def answer_head(kind: str) -> bytes:
    """The head of a model's answer."""
    message = pb.ProcessingRequest()
    for key, value in {":status": "200", "content-type": kind, "server": "uvicorn"}.items():
        message.response_headers.headers.headers.add(key=key, raw_value=value.encode())
    return message.SerializeToString()


def answer_body(data: bytes, end: bool) -> bytes:
    """A piece of it."""
    message = pb.ProcessingRequest()
    message.response_body.body = data
    message.response_body.end_of_stream = end
    return message.SerializeToString()


def turns(mode: pb.ProcessingMode.BodySendMode, asked: bytes, kind: str, pieces: Sequence[bytes]) -> list[ClientTurn]:
    """An exchange whose answer comes in these pieces; without any it is never asked for."""
    opening = pb.ProcessingRequest.FromString(headers(len(asked)))
    opening.protocol_config.response_body_mode = mode
    found = [ClientTurn((opening.SerializeToString(),)), ClientTurn((body(asked),))]
    shown = [] if mode == pb.ProcessingMode.NONE else [answer_body(piece, False) for piece in pieces]
    if shown:
        shown.append(answer_body(b"", True))
    return [*found, ClientTurn((answer_head(kind), *shown))] if pieces else found


def served(folder: Path, name: str, policy: str) -> ServerProcess:
    """A router of one worker for this policy."""
    path, socket = folder / f"{name}.yaml", f"unix:{folder / name}"
    path.write_text(HEAD.replace("PORT", "1") + policy)
    command = [*serve(path, socket), "--admin", f"127.0.0.1:{free_port()}"]
    return ServerProcess(command, socket, 1, folder / f"{name}.log")


def took(router: ServerProcess, script: Sequence[ClientTurn], seconds: float) -> float:
    """Microseconds of CPU a request."""
    before = router.cpu()
    result = run(router.target, script, seconds, 1, 8)
    if result.failed or not result.requests:
        raise RuntimeError(f"requests failed: {result}")
    return (router.cpu() - before) / result.requests * 1e6


def measure(folder: Path, seconds: float, rounds: int) -> dict[str, dict[str, float]]:
    """Microseconds a request by answer and policy: medians of rounds."""
    routers = {name: served(folder, name, POLICIES[name]) for name in POLICIES if name != PASSED}
    answers = {f"{kind}, together": [b"".join(events)] for kind, events in ANSWERS.items()}
    answers |= {f"{kind}, apart": events for kind, events in ANSWERS.items()}
    scripts = {
        (kind, name): turns(MODES[name], BODY, "text/event-stream", pieces)
        for kind, pieces in answers.items()
        for name in routers
    }
    found: dict[tuple[str, str], list[float]] = {key: [] for key in scripts}
    try:
        for (_, name), script in scripts.items():
            took(routers[name], script, seconds / 4)
        for _ in range(rounds):
            for (kind, name), script in scripts.items():
                found[kind, name].append(took(routers[name], script, seconds))
    finally:
        for router in routers.values():
            router.close()
    return {kind: {name: statistics.median(found[kind, name]) for name in routers} for kind in answers}


def hit(folder: Path, seconds: float) -> dict[str, float]:
    """What a kept answer takes: milliseconds of one request at a time, microseconds of CPU."""
    router = served(folder, "kept", KEPT)
    mode = pb.ProcessingMode.STREAMED
    try:
        run(router.target, turns(mode, QUESTION, "application/json", [ANSWER]), 0.05, 1, 1)
        script = turns(mode, QUESTION, "application/json", [])
        cpu = took(router, script, seconds)
        result = run(router.target, script, seconds, 1, 1).summary()
    finally:
        router.close()
    return {"us": cpu, "p50_ms": result["p50_ms"], "p99_ms": result["p99_ms"]}


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(
        allow_abbrev=False, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1.0)
    parser.add_argument("--rounds", type=int, default=5)
    chosen = parser.parse_args(arguments)
    report: dict[str, Any] = {"native": NATIVE.exists()}
    with tempfile.TemporaryDirectory() as folder:
        report["answers"] = rows = measure(Path(folder), chosen.seconds, chosen.rounds)
        report["kept"] = kept = hit(Path(folder), chosen.seconds)
    print(f"{'µs a request':18} {'unwatched':>10} {'meter':>8} {'patterns':>9} {'µs a KB':>8}")
    for kind, row in rows.items():
        more = (row["patterns"] - row["unwatched"]) / sum(map(len, ANSWERS[kind.partition(",")[0]])) * 1e3
        print(f"{kind:18} {row['unwatched']:10.0f} {row['meter']:8.0f} {row['patterns']:9.0f} {more:8.1f}")
    print(f"a kept answer: {kept['p50_ms']:.2f} ms, 99 % {kept['p99_ms']:.2f} ms, {kept['us']:.0f} µs of CPU")
    OUT.mkdir(exist_ok=True)
    (OUT / "exchanges.json").write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
