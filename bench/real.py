"""Stepwise answers on a server and a model that are not ours: `python -m bench.real [--questions 30] [--out FOLDER]`.

llama.cpp's server with SmolLM2 135M (`make real`) is both models, so that only the loop is measured and no policy: half
of the drafts are rejected by chance. For each question: how many steps the answer has; whether it was drafted and then
rewritten as a whole, although not every draft was rejected; whether its borders are clean (the tokens of the text are
the text again, and no blank lines or spaces are doubled); whether the server's own log has the requests that `usage`
claims; and how long after a client has left the server computes for nobody.

Writes `real.json` and `real.md`. Fails where a border is not clean or a request is not told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp

from examples.llama import MISSING, PATIENCE, Llama, llama
from stepwise.answer import Steps
from stepwise.asking import ready
from stepwise.asking.pair import PairModel, Setup
from stepwise.asking.ready import Stepwise, unknown
from stepwise.steps import Ends, StepLimits
from stepwise.strategies.chance import Random
from upstream.client import ModelClient
from upstream.endpoint import JSON
from upstream.writer import Call

_PAIRS = (("rain", "snow"), ("bread", "soup"), ("a bicycle", "a train"), ("tea", "coffee"), ("a cat", "a dog"))
QUESTIONS = tuple(
    text
    for thing, two in _PAIRS
    for text in (
        f"Explain in a few paragraphs what {thing} is.",
        f"Write three sentences about {thing}.",
        f"List four facts about {two}, one a line.",
        f"Compare {thing} and {two}.",
        f"A shop sells {thing} for 3 dollars and {two} for 5. What do 4 of each cost? Work it out step by step.",
        f"Write a short story about {two}.",
    )
)
"""Paragraphs, single lines, lists, sums: what ends a step differs among them."""
_SEVERAL = 64
"""Tokens of two or three steps: see `stepwise.steps.Ends.AUTO`."""
_DOUBLED = re.compile(r"\n\n\n|[a-z][.!?][A-Z][a-z]|[.!?]  \S")


class Measured(NamedTuple):
    """One answer. `steps`: who wrote each, and why; `tokens`: how long they are together. `told`: requests by `usage`;
    `logged`: by the server's log."""

    question: str
    steps: list[tuple[str, str]]
    tokens: int
    clean: bool
    told: int
    logged: int

    @property
    def whole(self) -> bool:
        """The whole answer is one step, drafted and then written anew, although it is as long as several."""
        return self.steps == [("large", "redo")] and self.tokens > _SEVERAL


def pair(server: Llama, share: float = 0.5) -> Stepwise:
    """The server as both models. `share` of the drafts are rejected."""
    end = server.patient
    small, large = (PairModel(name, ModelClient(end), unknown(end)) for name in ("small", "large"))
    return Stepwise(Setup(small, large, Random(share, seed=3), StepLimits(ends=Ends.AUTO)))


def asked(question: str, tokens: int, *, stream: bool = False) -> Call:
    body: JSON = {"messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": tokens}
    return Call({**body, "stream": stream}, {})


async def idle(server: Llama) -> None:
    """Until the server computes nothing: it notices a client that has gone a token later."""
    async with asyncio.timeout(PATIENCE), aiohttp.ClientSession(server.url) as http:
        while any(slot["is_processing"] for slot in await (await http.get("/slots")).json()):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def finished(server: Llama) -> int:
    """`server.finished`, once nothing is under way."""
    await idle(server)
    await asyncio.sleep(0.2)  # for the log
    return server.finished


async def same(server: Llama, text: str) -> bool:
    """Whether the tokens of `text` are the text again."""
    async with aiohttp.ClientSession(server.url) as http:
        tokens = await (await http.post("/tokenize", json={"content": text})).json()
        back: JSON = await (await http.post("/detokenize", json=tokens)).json()
    return bool(back["content"] == text)


async def answer(server: Llama, stepwise: Stepwise, question: str, tokens: int) -> tuple[Measured, JSON]:
    """Asks one question; what was found, and the answer."""
    before = await finished(server)
    async with await Steps(stepwise).answer(asked(question, tokens)) as reply:
        whole = json.loads(b"".join([part async for part in reply.body]))
    text, usage = whole["choices"][0]["message"]["content"], whole["usage"]["pointsman"]
    clean = await same(server, text) and not _DOUBLED.search(text)
    told = sum(model["requests"] for model in usage["models"].values())
    steps = [(step["model"], step["action"]) for step in usage["steps"]]
    written = sum(step["tokens"] for step in usage["steps"])
    return Measured(question, steps, written, clean, told, await finished(server) - before), whole


async def cancelled(server: Llama, stepwise: Stepwise, question: str) -> float:
    """Milliseconds from a client's leaving until the server computes for nobody."""
    async with await Steps(stepwise).answer(asked(question, 1500, stream=True)) as reply:
        await anext(reply.body)
    left = time.perf_counter()
    await idle(server)
    return 1e3 * (time.perf_counter() - left)


async def measured(server: Llama, questions: Sequence[str], tokens: int) -> dict[str, Any]:
    """Everything, as one JSON object."""
    ready._PROBE = PATIENCE  # a busy machine may be slow
    stepwise = pair(server)
    await stepwise.start()
    try:
        found = [(await answer(server, stepwise, question, tokens))[0] for question in questions]
        waits = [await cancelled(server, stepwise, question) for question in questions[:10]]
    finally:
        await stepwise.close()
    counts = [len(one.steps) for one in found]
    return {
        "questions": len(found),
        "steps": {"median": statistics.median(counts), "least": min(counts), "most": max(counts)},
        "written by the large model": sum(model == "large" for one in found for model, _ in one.steps) / sum(counts),
        "rewritten as a whole": sum(one.whole for one in found),
        "borders not clean": [one.question for one in found if not one.clean],
        "requests": {"told": sum(one.told for one in found), "logged": sum(one.logged for one in found)},
        "requests not told": [one.question for one in found if one.told != one.logged],
        "cancel": {"median_ms": round(statistics.median(waits), 1), "most_ms": round(max(waits), 1)},
    }


def table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    rows = [f"| {name} | {json.dumps(value)} |" for name, value in result.items()]
    return "\n".join(["| llama.cpp with SmolLM2 135M, twice | |", "|---|---|", *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the benchmark; the exit status: 1 where something is not as it should be, 2 without the server."""
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m bench.real", description="A real server.")
    parser.add_argument("--questions", type=int, default=len(QUESTIONS), help="how many, of 30")
    parser.add_argument("--tokens", type=int, default=160, help="the most of one answer")
    parser.add_argument("--out", type=Path, default=Path("bench/out"))
    options = parser.parse_args(argv)
    if MISSING:
        print(f"bench.real: {' and '.join(MISSING)}: not installed; `make real` installs them", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory() as folder, llama(Path(folder)) as server:
        result = asyncio.run(measured(server, QUESTIONS[: options.questions], options.tokens))
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "real.json").write_text(json.dumps(result, indent=2) + "\n")
    (options.out / "real.md").write_text(table(result) + "\n")
    print(table(result))
    return 1 if result["borders not clean"] or result["requests not told"] or result["rewritten as a whole"] else 0


if __name__ == "__main__":
    sys.exit(main())
