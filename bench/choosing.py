"""Microseconds a choice of models, by kind of selector: `python -m bench.choosing [--candidates 16]`.

Each kind has learned from a few hundred grades and chooses for the same requests, whose facts that any policy reads
(the estimate of tokens) are known. What a kind reads of a request for itself alone (`bandit`: the frame and the style
of the prompt) has a column of its own. Beside it a piece of work of fixed size is measured, the parsing of a request of
1 KB with Python's `json`: rounds are interleaved, so that a noisy machine is noisy for all, and the ratio is what
counts. It is processor time, for a choice waits for nothing, and the figure is the least of the rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Callable, Sequence
from typing import Any

from bench.messages import chat_completion
from bench.signals import TEXT
from decisions.model import Model
from decisions.selectors.learner import Learner
from decisions.selectors.registry import BY_NAME
from decisions.selectors.selector import Graded, Pick, Selector
from signals.facts import Facts
from signals.request import Message, Request
from signals.signal import Shared
from signals.text.estimate import estimate

KINDS = {
    "weighted": {},
    "cheapest": {},
    "fastest": {},
    "factors": {"quality": 1.0, "cost": 0.3, "latency": 0.2},
    "bandit": {"cost": 0.3},
    "ema": {"cost": 0.3},
    "pheromone": {"cost": 0.3},
    "elo": {"cost": 0.3},
}
REQUESTS = 200
ROUNDS = 40


def selector(kind: str, params: dict[str, Any], candidates: int) -> Selector:
    models = tuple(Model(f"m{at}", f"m{at}", 0.1 * (at + 1), 0.2) for at in range(candidates))
    cls = BY_NAME[kind]
    given = cls.Parameters.model_validate(params)
    made = cls(Pick("choice", models, cls, given), given, Shared())
    for number, each in enumerate(requests(300) if isinstance(made, Learner) else ()):
        made.grade(Graded(made.choose(each).model.key, made.context(each)), number % 3 / 2)
    return made


def requests(count: int) -> list[Facts]:
    """Requests with the facts that any policy reads."""
    found = []
    for number in range(count):
        messages = (Message("user", f"Question {number}: {TEXT}"),)
        found.append(Facts(Request("chat", b"{}", {}, "auto", messages, {"x-request-id": f"r{number}"})))
        found[-1].get(estimate)
    return found


def microseconds(work: Callable[[Any], object], items: Sequence[Any]) -> float:
    started = time.thread_time_ns()
    for item in items:
        work(item)
    return (time.thread_time_ns() - started) / len(items) / 1000


async def main() -> None:
    """In an event loop, as a router has it, so that what is learned is learned beside it."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--candidates", type=int, default=16)
    args = parser.parse_args()
    selectors = {kind: selector(kind, params, args.candidates) for kind, params in KINDS.items()}
    body = [chat_completion(1024)] * REQUESTS
    parsing = float("inf")
    alone, read = dict.fromkeys(KINDS, float("inf")), dict.fromkeys(KINDS, float("inf"))
    for _ in range(ROUNDS):
        parsing = min(parsing, microseconds(json.loads, body))
        for kind, each in selectors.items():
            asked = requests(REQUESTS)
            first = microseconds(each.context, asked)
            alone[kind] = min(alone[kind], microseconds(each.choose, asked))
            read[kind] = min(read[kind], first)
            await each.settle()
    print(f"{args.candidates} candidates; parsing 1 KB of JSON takes {parsing:.1f} µs")
    print(f"{'by':12} {'choose':>10} {'ratio':>7} {'read for it':>12}")
    for kind in KINDS:
        print(f"{kind:12} {alone[kind]:7.1f} µs {alone[kind] / parsing:7.2f} {read[kind]:9.1f} µs")


if __name__ == "__main__":
    asyncio.run(main())
