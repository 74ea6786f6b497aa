"""Answers stepwise decisions inside the ext_proc exchange, calling the models back through Envoy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

import stepwise.answer
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.model import Model
from extproc.exchange import ROUTE, Answer
from signals.request import Request
from stepwise.agent import Agent, Spend
from stepwise.metrics import Metrics
from stepwise.relay import relay
from stepwise.spec import Stepwise, StepwiseError, StepwiseSpec
from stepwise.upstream import Endpoint

log = logging.getLogger("pointsman.stepwise")

DIFFICULTY = "difficulty"  # a signal of this name is the policy network's prior


class Answers:
    """The stepwise decisions of the engines in force, ready to answer.

    `through` is the address of Envoy's internal listener (`http://host:port`), where the route header picks the
    model; without it each model's own `url` is called. `folder` is the policy file's. `metrics` outlive the engines.
    """

    def __init__(
        self, engines: Sequence[Engine], folder: Path, through: str | None, metrics: Metrics | None = None
    ) -> None:
        self._ready: dict[tuple[str, StepwiseSpec], Stepwise | Agent] = {}
        for engine in engines:
            for clause in engine.clauses:
                block = clause.stepwise
                if block is None or (engine.policy, block) in self._ready:
                    continue
                ends = {key: endpoint(engine.models[key], through) for key in (block.small, block.large)}
                self._ready[engine.policy, block] = (
                    Agent(block, ends, folder, Spend(engine.shared.settings.get("store")), metrics)
                    if block.per == "request"
                    else block.build(ends, folder, metrics)
                )
        # The service over HTTP answers for the policy in force, which comes first.
        self._named = {
            clause.name: self._ready[engine.policy, clause.stepwise]
            for engine in engines[:1]
            for clause in engine.clauses
            if clause.stepwise is not None
        }

    def find(self, name: str) -> Stepwise | Agent | None:
        """The decision of that name in the policy in force, for `stepwise.http.application`."""
        return self._named.get(name)

    async def start(self) -> None:
        """Probe the upstreams. What cannot work is logged; such decisions take the large model alone."""
        for (_, block), ready in self._ready.items():
            if isinstance(ready, Agent):
                continue
            try:
                await ready.start()
            except StepwiseError as error:
                log.error("stepwise_unworkable", extra={"small": block.small, "large": block.large, "why": str(error)})

    async def answer(self, trace: Trace, request: Request) -> Answer | None:
        """The answer; None when `request` cannot be answered step by step (extproc.exchange.Answerer)."""
        ready = self._ready[trace.policy, trace.decision.stepwise]
        reading = trace.readings.get(DIFFICULTY)
        prior = reading.score if reading is not None and reading.score is not None else 0.5
        deadline = stepwise.answer.deadline(request.headers)
        if isinstance(ready, Agent):
            sent = await relay(ready, request.fields, request.headers, deadline=deadline, difficulty=prior)
            return None if sent is None else Answer(sent.status, sent.headers, sent.body)
        path = request.headers.get(":path", "/v1/chat/completions")
        if reason := stepwise.answer.ineligible(request.fields, request.headers, path):
            ready.metrics.ineligible[reason] += 1
            return None
        given = await stepwise.answer.answer(
            ready, request.fields, request.headers, deadline=deadline, difficulty=prior
        )
        # Not wrapped in a generator: one that was never begun would free nothing when it is closed.
        return Answer(given.status, given.headers, given.body)

    async def close(self) -> None:
        """Close every connection. Answers still under way fail."""
        await asyncio.gather(*(ready.close() for ready in self._ready.values()))


def endpoint(model: Model, through: str | None) -> Endpoint:
    """Where `model` is called. Raises ValueError when nobody says where it is served."""
    url = through or model.url
    if url is None:
        raise ValueError(
            f"model {model.key}: stepwise decisions call it, so it needs a `url:` in the policy, or the router "
            "needs the address of Envoy's internal listener (--models-through)"
        )
    headers = {ROUTE: model.key} if through else {}
    return Endpoint(
        url.rstrip("/").removesuffix("/v1"),
        model.name,
        headers=headers,
        price_input=model.input_price,
        price_output=model.output_price,
    )
