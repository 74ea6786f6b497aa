"""What panels cost beside plain calls: `python -m bench.panel_load`. All rows are ratios within one run.

1. The time to the first text of a cascade that its first member ends, beside a plain call of that member that is held
   until it is complete, which is the same wait for the draft; the server gives its answer at once, so that what differs
   is the router's own work. Each cascade is paired with the plain call beside it, and each comes first in every second
   pair.
2. Many votes of three at the same time, beside as many plain calls as that makes; answers a second, times, memory.
3. How long a client that leaves is followed by the end of every call, as the models' server sees it, for each kind.

The models are played by one other process, so this takes two cores.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp
import orjson
import psutil
from aiohttp import web

from panel.spec import PanelSpec
from upstream.client import ModelClient
from upstream.endpoint import Endpoint
from upstream.writer import Call, Means, Writer

BODY = {"model": "auto", "stream": True, "messages": [{"role": "user", "content": "What is it?"}]}
TOKENS = 24
CASCADE = {"cascade": ["a", "b"], "until": {"sure": 0.9}}
VOTE = {"vote": ["a", "b", "c"]}
GONE: dict[str, dict[str, Any]] = {
    "cascade": CASCADE,
    "agree": {"agree": "a", "then": ["b"]},
    "vote": VOTE,
    "merge": {"merge": ["a", "b"], "writer": "c"},
    "rank": {"rank": ["a", "b", "c"]},
    "rounds": {"rounds": ["a", "b"], "planner": "c"},
    "plan": {"plan": {"one": {"model": "a"}, "other": {"model": "b"}}, "planner": "c"},
}


# The models


def served() -> web.Application:
    """`at-once`, `slowly` (a token every 10 ms) and `never` (after its first token), and when their clients left."""
    gone: list[float] = []

    async def chat(request: web.Request) -> web.StreamResponse:
        model = orjson.loads(await request.read())["model"].split("/")[0]
        reply = web.StreamResponse(headers={"content-type": "text/event-stream"})
        await reply.prepare(request)
        try:
            if model == "at-once":
                await reply.write(b"".join([*map(_token, range(TOKENS)), _END]))
                return reply
            for at in range(TOKENS):
                await reply.write(_token(at))
                await asyncio.sleep(3600 if model == "never" else 0.01)
            await reply.write(_END)
        except (ConnectionError, asyncio.CancelledError):
            gone.append(time.monotonic())
        return reply

    async def left(_: web.Request) -> web.Response:
        told = orjson.dumps(gone)
        gone.clear()
        return web.Response(body=told)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", chat)
    app.router.add_get("/gone", left)
    return app


def _token(at: int) -> bytes:
    top = [{"token": f"w{at} ", "logprob": -0.01}, *({"token": f"x{n}", "logprob": -7.0} for n in range(4))]
    logprobs = {"content": [{**top[0], "top_logprobs": top}]}
    choice = {"index": 0, "delta": {"content": f"w{at} "}, "logprobs": logprobs, "finish_reason": None}
    return b"data: " + orjson.dumps({"choices": [choice]}) + b"\n\n"


_END = (
    b'data: {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}\n\n'
    b'data: {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 24}}\n\ndata: [DONE]\n\n'
)


async def _serve() -> None:
    runner = web.AppRunner(served(), access_log=None, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def models() -> Iterator[str]:
    """The address of the process that plays them."""
    process = subprocess.Popen([sys.executable, "-m", "bench.panel_load", "serve"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{process.stdout.readline().strip()}"
    finally:
        process.kill()
        process.communicate()


# What is measured


def built(url: str, block: dict[str, Any], model: str) -> Writer:
    ends = {name: Endpoint(url, f"{model}/{name}", first_timeout=600.0, idle_timeout=600.0) for name in "abc"}
    block = {**block, "budget": {"seconds": 3600, "each": 3600}, "heartbeat": 300}
    return PanelSpec.model_validate(block).build(Means(ends, Path()))


async def answered(writer: Writer) -> float:
    """Seconds to the first text of an answer, which is read to its end."""
    began, first = time.perf_counter(), 0.0
    async with await writer.answer(Call(BODY, {})) as answer:
        async for part in answer.body:
            first = first or (time.perf_counter() - began if b'"content":"w' in part else 0.0)
    return first


async def called(client: ModelClient) -> float:
    """Seconds to the end of a plain call, with log probabilities as a cascade asks for them."""
    began = time.perf_counter()
    stream = await client.open("/v1/chat/completions", {**BODY, "logprobs": True, "top_logprobs": 5})
    while await stream.next() is not None:
        pass
    stream.close()
    return time.perf_counter() - began


async def overhead(url: str, rounds: int) -> dict[str, float]:
    """Milliseconds, of rounds that alternate: medians, and of what a cascade adds also what one in a hundred is above,
    beside the same of the difference between two plain calls that follow each other."""
    panel, client = built(url, CASCADE, "at-once"), ModelClient(Endpoint(url, "at-once"))
    plain: list[float] = []
    first: list[float] = []
    apart: list[float] = []
    spent = [0.0, 0.0]

    async def taken(which: int) -> tuple[float, float]:
        began = time.process_time()
        seconds = await (answered(panel) if which else called(client))
        return seconds, time.process_time() - began

    for at in range(rounds + 50):
        pair = {which: await taken(which) for which in ((0, 1) if at % 2 else (1, 0))}
        again = await called(client)
        if at >= 50:  # warm
            plain.append(pair[0][0])
            first.append(pair[1][0])
            apart.append(again - pair[0][0])
            spent = [spent[which] + pair[which][1] for which in (0, 1)]
    await client.close()
    await panel.close()
    added = [b - a for a, b in zip(plain, first, strict=True)]
    return {
        "load": os.getloadavg()[0],
        "plain_ms": 1000 * statistics.median(plain),
        "cascade_ms": 1000 * statistics.median(first),
        "added_ms": 1000 * statistics.median(added),
        "added_p99_ms": 1000 * sorted(added)[int(0.99 * rounds)],
        "apart_p99_ms": 1000 * sorted(apart)[int(0.99 * rounds)],
        "plain_cpu_ms": 1000 * spent[0] / rounds,
        "cascade_cpu_ms": 1000 * spent[1] / rounds,
    }


async def many(url: str, at_once: int, rounds: int) -> dict[str, float]:
    """`at_once` votes at the same time, each followed by the next one, beside three times as many plain calls."""
    panel, client = built(url, VOTE, "slowly"), ModelClient(Endpoint(url, "slowly", first_timeout=600.0))
    row: dict[str, float] = {}

    async def plain() -> float:
        return max(await asyncio.gather(*(called(client) for _ in "abc")))

    for name, one in (("plain", plain), ("vote", lambda: answered(panel))):
        times: list[float] = []
        memory: list[float] = []

        async def turns(one: Any = one, times: list[float] = times) -> None:
            for _ in range(rounds):
                times.append(await one())

        await asyncio.gather(*(one() for _ in range(at_once)))  # connections, and whatever is loaded late
        began = time.perf_counter()
        for _ in range(2):
            gc.collect()
            await asyncio.gather(*(turns() for _ in range(at_once)))
            memory.append(psutil.Process().memory_info().rss / 2**20)
        row[f"{name}_per_second"] = len(times) / (time.perf_counter() - began)
        row[f"{name}_p50_ms"] = 1000 * statistics.median(times)
        row[f"{name}_p99_ms"] = 1000 * sorted(times)[int(0.99 * len(times))]
        row[f"{name}_mb"] = memory[0]
        row[f"{name}_grown_mb"] = memory[1] - memory[0]  # the second half beside the first
    await client.close()
    await panel.close()
    return row


async def gone(url: str, clients: int) -> dict[str, float]:
    """Milliseconds from a client's leaving to the end of the last call, by kind: the longest of all clients."""
    row: dict[str, float] = {}
    async with aiohttp.ClientSession() as http:
        for kind, block in GONE.items():
            panel = built(url, block, "never")
            asking = [asyncio.create_task(panel.answer(Call(BODY, {}))) for _ in range(clients)]
            await asyncio.sleep(1.0)  # every call is under way
            began = time.monotonic()
            for task in asking:
                task.cancel()
            for done in await asyncio.gather(*asking, return_exceptions=True):
                if not isinstance(done, BaseException):  # a writer streams already
                    await done.aclose()
            ended: list[float] = []
            until = time.monotonic() + 30
            while time.monotonic() < until and len(ended) < clients:
                await asyncio.sleep(0.2)
                ended += orjson.loads(await (await http.get(f"{url}/gone")).read())
            row[kind] = 1000 * (max(ended) - began)
            await panel.close()
    return row


async def measured(options: argparse.Namespace) -> dict[str, dict[str, float]]:
    with models() as url:
        found = {
            "overhead": await overhead(url, options.rounds),
            "many": await many(url, options.at_once, 2),
            "gone": await gone(url, 20),
        }
    for name, row in found.items():
        print(f"\n{name}\n" + "\n".join(f"  {key:18} {value:9.2f}" for key, value in row.items()))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.panel_load", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=("measure", "serve"), default="measure")
    parser.add_argument("--rounds", type=int, default=400, help="answers of the first row (default: %(default)s)")
    parser.add_argument("--at-once", type=int, default=200, help="votes at the same time (default: %(default)s)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="what was measured, as JSON")
    options = parser.parse_args(argv)
    if options.what == "serve":
        asyncio.run(_serve())
        return 0
    found = asyncio.run(measured(options))
    if options.out is not None:
        options.out.write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
