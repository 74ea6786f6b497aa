"""How long a client waits: the service's own loop (`stepwise.answer`) answers a sample of the questions."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import orjson
from tqdm import tqdm

from stepwise.answer import Steps
from stepwise.asking.pair import AnswerBudget, PairModel, Setup
from stepwise.asking.ready import Stepwise, StepwiseError
from stepwise.strategy import Strategy
from stepwise.train.project import ProjectSettings
from stepwise.train.tree import Question
from upstream.writer import Call


@dataclass(slots=True)
class Latency:
    """Seconds, one number per question. first: until the first text; whole: until the end. `unjudged`: drafts that the
    strategy could not judge, so that these times say nothing about it."""

    first: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    unjudged: int = 0

    def cells(self) -> tuple[str, str]:
        """First text and whole answer in milliseconds: median (95th percentile)."""
        if self.unjudged or not self.whole:
            return "–", "–"
        low, high = (np.quantile(values, [0.5, 0.95]) * 1000 for values in (self.first, self.whole))
        return f"{low[0]:.0f} ({low[1]:.0f})", f"{high[0]:.0f} ({high[1]:.0f})"


async def measure(
    models: tuple[PairModel, PairModel],
    settings: ProjectSettings,
    strategies: Mapping[str, Strategy],
    questions: Sequence[Question],
    *,
    max_redos: int,
) -> dict[str, Latency]:
    """Answers every question with every strategy, one answer at a time, at temperature 0.

    The strategies take turns at each question, so that other load on the machine affects all of them alike.
    Raises ValueError when an answer fails.
    """
    budget = AnswerBudget(steps=settings.max_steps, seconds=600.0)
    ready = {
        name: Stepwise(Setup(*models, strategy, settings.limits, budget, max_redos, settings.token_budget))
        for name, strategy in strategies.items()
    }
    found = {name: Latency() for name in ready}
    for name in strategies:
        try:
            await ready[name].start()  # the first one probes, for all
        except StepwiseError:  # it cannot work with these models
            del ready[name]
    for question in tqdm(questions, desc="latency"):
        for name, stepwise in ready.items():
            await _time(stepwise, question, found[name])
    for name, stepwise in ready.items():
        found[name].unjudged = sum(stepwise.metrics.safe_side.values())
    return found


async def _time(stepwise: Stepwise, question: Question, into: Latency) -> None:
    body = {"messages": [{"role": "user", "content": question.text}], "stream": True, "temperature": 0.0}
    clock = asyncio.get_running_loop().time
    began, first = clock(), None
    async with await Steps(stepwise).answer(Call(body, {})) as reply:
        data = b""
        async for part in reply.body:
            data += part
            if first is None and b'"content":"' in part:
                first = clock() - began
    if reply.status != 200 or b'data: {"error"' in data:
        raise ValueError(f"question {question.id} was not answered: {_said(data)}")
    into.first.append(clock() - began if first is None else first)
    into.whole.append(clock() - began)


def _said(data: bytes) -> str:
    last = data.strip().removesuffix(b"data: [DONE]").strip().split(b"\n\n")[-1].removeprefix(b"data: ")
    try:
        return str(orjson.loads(last)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return repr(data[-200:])
