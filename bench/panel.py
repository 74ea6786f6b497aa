"""What panels gain and cost on examples/tinylm's test problems, beside their simplest rivals.

1. `python -m bench.panel calibrate --out sure.json`: how sure the small model is of its answers to the calibration
   problems, and which of them are right; writes the curve that a cascade's `until.calibration` names. With
   `--verifier` it is the large model's, which reads the answers.
2. `python -m bench.panel --calibration sure.json`: accuracy, tokens of the large model, money and time to the first
   text of each panel, with 95 % intervals by question, and in how many of 200 halves of the test problems the
   calibration's promise is kept.
3. `python -m bench.panel choose`: what votes of the two small models gain on the calibration problems, by members,
   samples and temperature, before anything is asked of the test problems.

Answers are greedy, so that a run can be made again; samples of a vote have a temperature and a seed each. With
`--kept FILE` every answer of a model is kept there, and what was asked once is not asked again: then answers come at
once and as a whole, so times mean nothing, and a vote that is decided spares little.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import math
import random
import sqlite3
import sys
import time
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import aiohttp
import orjson
from aiohttp import web

from examples.tinylm import problems
from examples.tinylm.engine import WEIGHTS
from examples.tinylm.server import serve
from panel.certainty import MEASURES, Curve, Surety, calibrated
from panel.extract import groups, number
from panel.kinds.drafts import TEMPERATURE
from panel.spec import PanelSpec
from panel.verifier import ASKED, messages, read
from upstream.client import ModelClient
from upstream.endpoint import Endpoint
from upstream.tokens import TOP
from upstream.writer import Call, Means, Writer

CONCURRENT = 24
HALVES = 200
PRICES = {"small": (0.05, 0.20), "deep": (0.05, 0.20), "large": (0.50, 2.00), "again": (0.50, 2.00)}
"""As in examples/panels.yaml; `again` is the large model once more, for panels of three."""
SERVED = {"small": "tinylm-small", "deep": "tinylm-deep", "large": "tinylm-large", "again": "tinylm-large"}
LARGE = ("large", "again")
QUALITY = {"small": 0.68, "deep": 0.82, "large": 0.99}
"""The share of 600 calibration problems that each gets right."""
TOKENS = 300  # the most of one answer


@dataclass(frozen=True, slots=True)
class PanelRun:
    """One question's answer. `large`: tokens that the large model wrote, `tokens`: those of all models. `first`:
    seconds to the first text."""

    right: bool
    large: int
    tokens: int
    money: float
    first: float
    calls: int


@dataclass(frozen=True, slots=True)
class OpenDraft:
    """One draft of the small model: its measures, and whether it is right."""

    measures: dict[str, float]
    right: bool


@cache
def made_of(model: str) -> str:
    """Which weights a model of tinylm has."""
    return hashlib.sha256((WEIGHTS / f"{model.removeprefix('tinylm-')}.onnx").read_bytes()).hexdigest()


@asynccontextmanager
async def remembered(url: str, file: Path) -> AsyncIterator[str]:
    """The address of a server that answers as the one at `url` does, and keeps each answer in `file`: the same model
    with the same weights is not asked the same thing again."""
    book = sqlite3.connect(file, isolation_level=None)
    book.execute("PRAGMA synchronous = OFF")
    book.execute("CREATE TABLE IF NOT EXISTS answers (asked TEXT PRIMARY KEY, said BLOB)")
    plenty = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=plenty, timeout=aiohttp.ClientTimeout(total=None)) as http:

        async def said(body: dict[str, Any]) -> bytes:
            asked = orjson.dumps([made_of(body["model"]), body], option=orjson.OPT_SORT_KEYS)
            key = hashlib.sha256(asked).hexdigest()
            found = book.execute("SELECT said FROM answers WHERE asked = ?", (key,)).fetchone()
            if found is not None:
                return zlib.decompress(found[0])
            # Where nobody looks at single tokens, the text is written and read at once: a fifth of the work.
            whole = bool(body.get("stream")) and not body.get("logprobs")
            more = {"stream": False, "stream_options": None} if whole else {}
            async with http.post(f"{url}/v1/chat/completions", json={**body, **more}) as reply:
                reply.raise_for_status()
                text = await reply.read()
            if whole:
                text = as_stream(orjson.loads(text))
            book.execute("INSERT OR REPLACE INTO answers VALUES (?, ?)", (key, zlib.compress(text)))
            return text

        async def answer(request: web.Request) -> web.Response:
            body = orjson.loads(await request.read())
            kind = "text/event-stream" if body.get("stream") else "application/json"
            # Whoever leaves does not end it: another panel will ask the same.
            return web.Response(body=await asyncio.shield(said(body)), content_type=kind)

        app = web.Application(client_max_size=1 << 23)
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
        try:
            yield f"http://127.0.0.1:{runner.addresses[0][1]}"
        finally:
            await runner.cleanup()
            book.close()


def as_stream(answer: dict[str, Any]) -> bytes:
    """A whole answer as a stream that has it in one piece."""
    choice = answer["choices"][0]
    piece = {"index": 0, "delta": {"content": choice["message"]["content"]}, "finish_reason": None}
    last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    events = ({"choices": [piece]}, {"choices": [last]}, {"choices": [], "usage": answer["usage"]})
    return b"".join(b"data: " + orjson.dumps(event) + b"\n\n" for event in events) + b"data: [DONE]\n\n"


@asynccontextmanager
async def endpoints(kept: Path | None) -> AsyncIterator[dict[str, Endpoint]]:
    """tinylm's models, served; with `kept`, their answers are kept there."""
    async with serve() as running, AsyncExitStack() as stack:
        url = running.url if kept is None else await stack.enter_async_context(remembered(running.url, kept))
        yield {
            name: Endpoint(
                url,
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


async def texts(
    end: Endpoint, made: Sequence[problems.Problem], large: bool, more: dict[str, Any]
) -> list[tuple[str, PanelRun]]:
    """The answers of one model alone. `more`: fields of the calls, such as a sample's temperature and seed."""
    client = ModelClient(end)
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(problem: problems.Problem) -> tuple[str, PanelRun]:
        async with gate:
            body = {**asked(problem), "stream": True, "stream_options": {"include_usage": True}, **more}
            began, first, text = time.perf_counter(), 0.0, ""
            stream = await client.open("/v1/chat/completions", body)
            while (piece := await stream.next()) is not None:
                if piece.tokens and not first:
                    first = time.perf_counter() - began
                text += "".join(token.text for token in piece.tokens)
            counts = stream.counts
            assert counts is not None
            stream.close()
            money, wrote = end.cost(counts.prompt, counts.completion), counts.completion
            run = PanelRun(problems.check(problem, text), wrote if large else 0, wrote, money, first, 1)
            return text, run

    try:
        return await asyncio.gather(*(one(problem) for problem in made))
    finally:
        await client.close()


async def plain(
    end: Endpoint, made: Sequence[problems.Problem], large: bool, more: dict[str, Any] | None = None
) -> list[PanelRun]:
    """As `texts`, without the texts."""
    return [run for _, run in await texts(end, made, large, more or {})]


async def panel(writer: Writer, made: Sequence[problems.Problem], temperature: float) -> list[PanelRun]:
    """The answers of a panel, streamed. `temperature`: what the client asks for."""
    gate = asyncio.Semaphore(CONCURRENT)

    async def one(problem: problems.Problem) -> PanelRun:
        async with gate:
            body = {**asked(problem), "stream": True, "stream_options": {"include_usage": True}}
            body["temperature"] = temperature or 0  # as `asked` writes it, since what is kept goes by the bytes
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
            wrote = {name: took["completion_tokens"] for name, took in ours["models"].items()}
            large = sum(count for name, count in wrote.items() if name in LARGE)
            right = problems.check(problem, text)
            return PanelRun(right, large, sum(wrote.values()), ours["cost"], first, len(ours["calls"]))

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
    tokens = sum(run.large for run in runs) / max(1, sum(run.large for run in large))
    money = sum(run.money for run in runs) / sum(run.money for run in large)
    first = sorted(run.first for run in runs)[len(runs) // 2] * 1000
    calls = sum(run.calls for run in runs) / len(runs)
    wrote = sum(run.tokens for run in runs) / len(runs)
    return f"| {name} | {share(runs)} | {tokens:.1%} | {money:.1%} | {wrote:.0f} | {first:.0f} | {calls:.2f} |"


def share(runs: Sequence[PanelRun]) -> str:
    """How many are right."""
    right = sum(run.right for run in runs)
    low, high = interval(right, len(runs))
    return f"{right / len(runs):.1%} ({low:.1%}–{high:.1%})"


def interval(right: int, asked: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share."""
    z, share = 1.96, right / asked
    middle = (share + z * z / (2 * asked)) / (1 + z * z / asked)
    half = z / (1 + z * z / asked) * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    return max(0.0, middle - half), min(1.0, middle + half)


def paired(one: Sequence[PanelRun], other: Sequence[PanelRun]) -> str:
    """By how many points `one` is better, with its 95 % interval by question."""
    steps = [a.right - b.right for a, b in zip(one, other, strict=True)]
    mean = sum(steps) / len(steps)
    spread = 1.96 * math.sqrt(sum((step - mean) ** 2 for step in steps) / len(steps) / len(steps))
    return f"{100 * mean:+.1f} ({100 * (mean - spread):+.1f} to {100 * (mean + spread):+.1f}) points"


async def choose(options: argparse.Namespace) -> None:
    """Prints what votes of the two small models gain on calibration problems, by members, samples and temperature."""
    made = [problems.make(problems.SPLITS["calibration"] + at) for at in range(options.count)]
    most = max(options.samples)
    print(
        "| temperature | members | samples of each | right | points over the small model |",
        "|---|---|---|---|---|",
        sep="\n",
    )
    async with endpoints(options.kept) as ends:
        small = await plain(ends["small"], made, False)
        for name, alone in (("small", small), ("deep", await plain(ends["deep"], made, False))):
            print(f"| greedy | {name} | 1 | {share(alone)} | {paired(alone, small)} |")
        for temperature in options.temperature:
            drawn = {
                name: [await texts(ends[name], made, False, sample(temperature, at)) for at in range(most)]
                for name in ("small", "deep")
            }
            for members in (("small",), ("deep",), ("deep", "small")):
                for count in (1, *options.samples):
                    if count * len(members) == 2:  # nobody is the majority of two
                        continue
                    asked = [one for name in members for one in drawn[name][:count]]
                    weights = [QUALITY[name] for name in members for _ in range(count)]
                    votes = [elected([one[at] for one in asked], weights) for at in range(len(made))]
                    said = f"{share(votes)} | {paired(votes, small)}"
                    print(f"| {temperature:g} | {' and '.join(members)} | {count} | {said} |")


def sample(temperature: float, at: int) -> dict[str, Any]:
    """What a vote asks for its sample `at`."""
    return {"temperature": temperature, "seed": at}


def elected(answers: Sequence[tuple[str, PanelRun]], weights: Sequence[float]) -> PanelRun:
    """The answer that a vote would release, where the voters have these weights."""
    found = groups([number(text) for text, _ in answers])
    best = max(found, key=lambda group: (sum(weights[place] for place in group), -group[0]), default=[0])
    return answers[best[0]][1]


def cards(members: Sequence[str]) -> dict[str, Any]:
    """What a panel is told of its members, where they are not one model."""
    return {"cards": {name: {"quality": QUALITY[name]} for name in members}} if len(members) > 1 else {}


async def calibrate(options: argparse.Namespace) -> Curve:
    """The curve of the measure `by`; how much each measure would release is printed."""
    by, count = options.by, options.count
    made = [problems.make(problems.SPLITS["calibration"] + at) for at in range(count)]
    async with endpoints(options.kept) as ends:
        verifier = ends["large"] if options.verifier else None
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
    (warm,) = options.temperature
    number_ = {"answers": "number"}
    for members in (["small"], ["deep"], ["deep", "small"]):
        for samples in options.samples:
            blocks[f"vote, {' and '.join(members)} × {samples}"] = {
                "vote": members,
                "samples": samples,
                **number_,
                **cards(members),
            }
    for samples in (3, 5):
        blocks[f"agree, small × {samples}, then large"] = {
            "agree": "small",
            "samples": samples,
            "then": ["large"],
            **number_,
        }
    for name, three in (
        ("always three", ["small", "large", "again"]),
        ("each of the three", ["small", "deep", "large"]),
    ):
        known = cards(three) if "deep" in three else {}
        blocks[f"vote, {name}"] = {"vote": three, **number_, **known}
        blocks[f"rank, {name}"] = {"rank": three, "judges": ["large"], **number_, **known}
        blocks[f"merge, {name}"] = {"merge": three, "writer": "large", **known}
    # A writer that reads no drafts writes to the limit, which takes long: only where it is asked for.
    wanted = [name for name in blocks if any(text in name for text in options.only)]
    blocks = {name: blocks[name] for name in wanted if "merge" in options.only or "merge" not in name}
    found: dict[str, list[PanelRun]] = {}
    async with endpoints(options.kept) as ends:
        seen: list[OpenDraft] = []
        if any("cascade" in block for block in blocks.values()):
            seen = await drafts(ends["small"], made, ends["large"] if verified else None)
        for name in ("small", "deep", "large"):
            found[f"{name} alone"] = await plain(ends[name], made, name == "large")
        for name in ("small", "deep"):
            found[f"{name}, one sample"] = await plain(ends[name], made, False, sample(warm, 0))
        for name, block in blocks.items():
            block = {**block, "budget": {"seconds": 3600, "each": 3600}, "heartbeat": 300}
            writer = PanelSpec.model_validate(block).build(Means(ends, file.parent))
            found[name] = await panel(writer, made, warm if "vote" in block and "samples" in block else 0.0)
            await writer.close()
    large, small = found["large alone"], found["small alone"]
    lines = [
        f"{options.count} test problems; tokens of the large model, and money, beside the large model alone; tokens of "
        f"all by question; votes and single samples at a temperature of {warm:g}",
        "",
        "| answered by | right | tokens of large | money | tokens of all | first text, ms | calls |",
        "|---|---|---|---|---|---|---|",
        *(row(name, runs, large) for name, runs in found.items()),
        "",
    ]
    gap = sum(run.right for run in large) - sum(run.right for run in small)
    for name, runs in found.items():
        closed = (sum(run.right for run in runs) - sum(run.right for run in small)) / max(1, gap)
        lines.append(f"{name}: {closed:.1%} of the gap; {paired(runs, small)} over the small one")
    for name in found:
        kind, _, who = name.partition(", ")
        rivals = {
            "agree": [other for other in found if other.startswith(("vote, always", "vote, each"))],
            "rank": [f"vote, {who}"],
            "merge": ["large alone"],
            "vote": ["deep alone", "small, one sample", "deep, one sample"],
        }.get(kind, [])
        for rival in rivals:
            if rival in found:
                cost = sum(run.money for run in found[name]) / sum(run.money for run in found[rival])
                lines.append(f"{name} beside {rival}: {paired(found[name], found[rival])}; {cost:.2f} of its money")
    for sure in options.sure if seen else ():
        promised, good, released = kept(by, seen, sure)
        lines.append(f"sure {sure}: kept in {good} of {promised} of {HALVES} halves; {released:.1%} released")
    print("\n".join(lines))
    return found


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.panel", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", nargs="?", choices=("measure", "calibrate", "choose"), default="measure")
    parser.add_argument("--count", type=int, default=2000, help="problems (default: %(default)s)")
    parser.add_argument("--calibration", type=Path, default=Path("examples/panels.sure.json"), metavar="FILE")
    parser.add_argument("--by", choices=tuple(MEASURES), default="product", help="the measure that is calibrated")
    parser.add_argument("--verifier", action="store_true", help="calibrate by what the large model says of the answers")
    parser.add_argument("--only", nargs="+", default=[""], metavar="TEXT", help="panels whose name has one of these")
    parser.add_argument("--kept", type=Path, metavar="FILE", help="where answers of the models are kept")
    parser.add_argument("--samples", type=int, nargs="+", default=[5], help="of each member of a vote")
    parser.add_argument(
        "--temperature", type=float, nargs="+", default=[TEMPERATURE], help="of samples; several for `choose`"
    )
    parser.add_argument("--sure", type=float, nargs="+", default=[0.9, 0.95, 0.97])
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="what was measured, as JSON; of `calibrate`, the curve"
    )
    options = parser.parse_args(argv)
    if options.what == "calibrate":
        curve = asyncio.run(calibrate(options))
        pairs = [[float(f"{a:.6g}"), b] for a, b in zip(curve.thresholds, curve.right, strict=True)]
        out: Path = options.out or options.calibration
        verifier = {"verifier": curve.verifier} if curve.verifier else {}
        out.write_text(json.dumps({"by": curve.by, "model": curve.model, **verifier, "curve": pairs}) + "\n")
        print(f"{out}: the measure {curve.by}, from {options.count} problems")
    elif options.what == "choose":
        asyncio.run(choose(options))
    else:
        if len(options.temperature) != 1:
            parser.error("--temperature: one at a time, but for `choose`")
        found = asyncio.run(measured(options))
        if options.out is not None:
            options.out.write_text(json.dumps({name: [asdict(run) for run in runs] for name, runs in found.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
