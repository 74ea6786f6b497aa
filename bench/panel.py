"""What panels gain and cost on examples/tinylm's test problems, beside their simplest rivals.

1. `python -m bench.panel calibrate --out sure.json`: how sure the small model is of its answers to the calibration
   problems, and which of them are right; writes the curve that a cascade's `until.calibration` names. With
   `--verifier` it is the large model's, which reads the answers.
2. `python -m bench.panel --calibration sure.json`: accuracy, tokens of the large model, money and time to the first
   text of each panel, with 95 % intervals by question, and in how many of 200 halves of the test problems the
   calibration's promise is kept.

Answers are greedy, so that a run can be made again; samples of a vote have a temperature and a seed each.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import random
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from examples.tinylm import problems
from examples.tinylm.server import serve
from panel.certainty import MEASURES, Curve, Surety, calibrated
from panel.spec import PanelSpec
from panel.verifier import ASKED, messages, read
from upstream.client import ModelClient
from upstream.endpoint import Endpoint
from upstream.tokens import TOP
from upstream.writer import Call, Means, Writer

CONCURRENT = 24
HALVES = 200
PRICES = {"small": (0.05, 0.20), "large": (0.50, 2.00), "again": (0.50, 2.00)}  # as in examples/tinylm.yaml
"""`again` is the large model once more, for panels of three."""
SERVED = {"small": "tinylm-small", "large": "tinylm-large", "again": "tinylm-large"}
TOKENS = 300  # the most of one answer


@dataclass(frozen=True, slots=True)
class PanelRun:
    """One question's answer. `large`: tokens that the large model wrote. `first`: seconds to the first text."""

    right: bool
    large: int
    money: float
    first: float
    calls: int


@dataclass(frozen=True, slots=True)
class OpenDraft:
    """One draft of the small model: its measures, and whether it is right."""

    measures: dict[str, float]
    right: bool


@asynccontextmanager
async def endpoints() -> AsyncIterator[dict[str, Endpoint]]:
    """tinylm's two models, served."""
    async with serve() as running:
        yield {
            name: Endpoint(
                running.url,
                SERVED[name],
                price_input=money[0],
                price_output=money[1],
                first_timeout=600.0,
                idle_timeout=600.0,
            )
            for name, money in PRICES.items()
        }


def asked(problem: problems.Problem) -> dict[str, Any]:
    """The call of a client."""
    return {
        "model": "auto",
        "temperature": 0,
        "max_tokens": TOKENS,
        "messages": [{"role": "user", "content": problem.question}],
    }


async def drafts(end: Endpoint, made: Sequence[problems.Problem], verifier: Endpoint | None = None) -> list[OpenDraft]:
    """The small model's answers to these problems, with what every measure says of them, by its own probabilities or by
    those of a verifier."""
    client, reader = ModelClient(end), None if verifier is None else ModelClient(verifier)
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(problem: problems.Problem) -> OpenDraft:
        async with gate:
            body = {**asked(problem), "stream": True, "logprobs": True, "top_logprobs": TOP}
            stream = await client.open("/v1/chat/completions", body)
            surety, text, finish = Surety(), "", None
            while (piece := await stream.next()) is not None:
                for token in piece.tokens:
                    surety.feed(token)
                    text += token.text
                finish = piece.finish or finish
            stream.close()
            if reader is not None:
                ask = {**ASKED, "messages": messages(body, text)}
                surety = read(await reader.ask("/v1/chat/completions", ask), text) or Surety()
            whole = finish == "stop" and surety.tokens > 0
            return OpenDraft(
                {name: measure.read(surety) if whole else 0.0 for name, measure in MEASURES.items()},
                problems.check(problem, text),
            )

    try:
        return await asyncio.gather(*(one(problem) for problem in made))
    finally:
        await client.close()
        if reader is not None:
            await reader.close()


async def plain(end: Endpoint, made: Sequence[problems.Problem], large: bool) -> list[PanelRun]:
    """The answers of one model alone."""
    client = ModelClient(end)
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(problem: problems.Problem) -> PanelRun:
        async with gate:
            body = {**asked(problem), "stream": True, "stream_options": {"include_usage": True}}
            began, first, text = time.perf_counter(), 0.0, ""
            stream = await client.open("/v1/chat/completions", body)
            while (piece := await stream.next()) is not None:
                if piece.tokens and not first:
                    first = time.perf_counter() - began
                text += "".join(token.text for token in piece.tokens)
            counts = stream.counts
            assert counts is not None
            stream.close()
            money = end.cost(counts.prompt, counts.completion)
            return PanelRun(problems.check(problem, text), counts.completion if large else 0, money, first, 1)

    try:
        return await asyncio.gather(*(one(problem) for problem in made))
    finally:
        await client.close()


async def panel(writer: Writer, made: Sequence[problems.Problem]) -> list[PanelRun]:
    """The answers of a panel, streamed."""
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(problem: problems.Problem) -> PanelRun:
        async with gate:
            body = {**asked(problem), "stream": True, "stream_options": {"include_usage": True}}
            began, first, text = time.perf_counter(), 0.0, ""
            usage: dict[str, Any] = {}
            async with await writer.answer(Call(body, {})) as answer:
                data = b""
                async for part in answer.body:
                    if not first and b'"content":"' in part:
                        first = time.perf_counter() - began
                    data += part
            for line in data.split(b"\n"):
                if line.startswith(b"data: {"):
                    event = orjson.loads(line[6:])
                    usage = event.get("usage") or usage
                    text += "".join(choice["delta"].get("content") or "" for choice in event.get("choices", ()))
            ours = usage["pointsman"]
            large = sum(took["completion_tokens"] for name, took in ours["models"].items() if name != "small")
            return PanelRun(problems.check(problem, text), large, ours["cost"], first, len(ours["calls"]))

    return await asyncio.gather(*(one(problem) for problem in made))


def kept(curve_by: str, seen: Sequence[OpenDraft], sure: float) -> tuple[int, int, float]:
    """In how many of `HALVES` halves the other half can promise `sure`, in how many of these the promise is kept, and
    which share of the drafts is released then, on average."""
    draw = random.Random(7)
    made, good, released = 0, 0, 0.0
    for _ in range(HALVES):
        order = draw.sample(range(len(seen)), len(seen))
        half = len(order) // 2
        curve = calibrated(curve_by, "", [(seen[at].measures[curve_by], seen[at].right) for at in order[:half]])
        threshold = curve.threshold(sure)
        if threshold is None:
            continue
        out = [seen[at] for at in order[half:] if seen[at].measures[curve_by] >= threshold]
        made += 1
        good += sum(draft.right for draft in out) >= sure * len(out)
        released += len(out) / half
    return made, good, released / max(1, made)


def row(name: str, runs: Sequence[PanelRun], large: Sequence[PanelRun]) -> str:
    """A line of the table."""
    right = sum(run.right for run in runs)
    low, high = interval(right, len(runs))
    tokens = sum(run.large for run in runs) / max(1, sum(run.large for run in large))
    money = sum(run.money for run in runs) / sum(run.money for run in large)
    first = sorted(run.first for run in runs)[len(runs) // 2] * 1000
    calls = sum(run.calls for run in runs) / len(runs)
    share = f"{right / len(runs):.1%} ({low:.1%}–{high:.1%})"
    return f"| {name} | {share} | {tokens:.1%} | {money:.1%} | {first:.0f} | {calls:.2f} |"


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, right / asked
    middle = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return middle - half, middle + half


def paired(one: Sequence[PanelRun], other: Sequence[PanelRun]) -> str:
    """By how many points `one` is better, with its 95 % interval by question."""
    steps = [a.right - b.right for a, b in zip(one, other, strict=True)]
    mean = sum(steps) / len(steps)
    spread = 1.96 * math.sqrt(sum((step - mean) ** 2 for step in steps) / len(steps) / len(steps))
    return f"{100 * mean:+.1f} ({100 * (mean - spread):+.1f} to {100 * (mean + spread):+.1f}) points"


async def calibrate(by: str, count: int, verified: bool) -> Curve:
    """The curve of the measure `by`; how much each measure would release is printed."""
    made = [problems.make(problems.SPLITS["calibration"] + at) for at in range(count)]
    async with endpoints() as ends:
        verifier = ends["large"] if verified else None
        seen = await drafts(ends["small"], made, verifier)
        curves = {}
        for name in MEASURES:
            ranked = [(draft.measures[name], draft.right) for draft in seen]
            curve = curves[name] = calibrated(
                name, ends["small"].model, ranked, verifier=verifier.model if verifier is not None else ""
            )
            parts = []
            for sure in (0.9, 0.95, 0.98):
                threshold = curve.threshold(sure)
                share = sum(d.measures[name] >= threshold for d in seen) / count if threshold is not None else 0.0
                parts.append(f"{sure}: {share:.1%} released")
            print(f"{name:7} {', '.join(parts)}")
    return curves[by]


async def measured(options: argparse.Namespace) -> dict[str, list[PanelRun]]:
    """What every panel did, question by question; printed as a table."""
    made = [problems.make(problems.SPLITS["test"] + at) for at in range(options.count)]
    file: Path = options.calibration
    curve = Curve.read(file)
    by, verified = curve.by, bool(curve.verifier)
    blocks: dict[str, dict[str, Any]] = {
        f"cascade, sure {sure}": {
            "cascade": ["small", "large"],
            "until": {"sure": sure, "by": by, "calibration": file.name},
            **({"verifier": "large"} if verified else {}),
        }
        for sure in options.sure
    }
    blocks["vote, small × 5"] = {"vote": ["small"], "samples": 5, "answers": "number"}
    for samples in (3, 5):
        blocks[f"agree, small × {samples}, then large"] = {
            "agree": "small",
            "samples": samples,
            "answers": "number",
            "then": ["large"],
        }
    three = ["small", "large", "again"]
    blocks["vote, always three"] = {"vote": three, "answers": "number"}
    blocks["rank, always three"] = {"rank": three, "judges": ["large"], "answers": "number"}
    blocks = {name: block for name, block in blocks.items() if options.only in name}
    found: dict[str, list[PanelRun]] = {}
    async with endpoints() as ends:
        seen = await drafts(ends["small"], made, ends["large"] if verified else None)
        found["small alone"] = await plain(ends["small"], made, False)
        found["large alone"] = await plain(ends["large"], made, True)
        for name, block in blocks.items():
            block = {**block, "budget": {"seconds": 3600, "each": 3600}, "heartbeat": 300}
            writer = PanelSpec.model_validate(block).build(Means(ends, file.parent))
            found[name] = await panel(writer, made)
            await writer.close()
    large, small = found["large alone"], found["small alone"]
    lines = [
        f"{options.count} test problems; tokens and money beside the large model alone",
        "",
        "| answered by | right | tokens of large | money | first text, ms | calls |",
        "|---|---|---|---|---|---|",
        *(row(name, runs, large) for name, runs in found.items()),
        "",
    ]
    gap = sum(run.right for run in large) - sum(run.right for run in small)
    for name, runs in found.items():
        share = (sum(run.right for run in runs) - sum(run.right for run in small)) / max(1, gap)
        lines.append(f"{name}: {share:.1%} of the gap; {paired(runs, small)} over the small one")
    for sure in options.sure:
        promised, good, released = kept(by, seen, sure)
        lines.append(f"sure {sure}: kept in {good} of {promised} of {HALVES} halves; {released:.1%} released")
    print("\n".join(lines))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.panel", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=("measure", "calibrate"), default="measure")
    parser.add_argument("--count", type=int, default=2000, help="problems (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, default=Path("examples/panels.sure.json"), metavar="FILE")
    parser.add_argument("--by", choices=tuple(MEASURES), default="product", help="the measure that is calibrated")
    parser.add_argument("--verifier", action="store_true", help="calibrate by what the large model says of the answers")
    parser.add_argument("--only", default="", metavar="TEXT", help="panels whose name has this text")
    parser.add_argument("--sure", type=float, nargs="+", default=[0.9, 0.95, 0.97])
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="what was measured, as JSON; of `calibrate`, the curve"
    )
    options = parser.parse_args(argv)
    if options.what == "calibrate":
        curve = asyncio.run(calibrate(options.by, options.count, options.verifier))
        pairs = [[float(f"{a:.6g}"), b] for a, b in zip(curve.thresholds, curve.right, strict=True)]
        out: Path = options.out or options.calibration
        verifier = {"verifier": curve.verifier} if curve.verifier else {}
        out.write_text(json.dumps({"by": curve.by, "model": curve.model, **verifier, "curve": pairs}) + "\n")
        print(f"{out}: the measure {curve.by}, from {options.count} problems")
    else:
        found = asyncio.run(measured(options))
        if options.out is not None:
            options.out.write_text(json.dumps({name: [asdict(run) for run in runs] for name, runs in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
