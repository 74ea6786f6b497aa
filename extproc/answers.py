"""Answers stepwise decisions inside the ext_proc exchange, calling the models back through Envoy."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import stepwise.answer
from decisions.decision import Trace
from decisions.engine import Engine
from decisions.model import Model, before
from extproc.exchange import ROUTE, Answer
from extproc.wire import Pairs
from signals.request import Request
from stepwise.agent import Agent, Spend
from stepwise.http import DECISION, DIFFICULTY, POLICY
from stepwise.metrics import Metrics
from stepwise.relay import SESSION, relay, unfit
from stepwise.session import Model as Server
from stepwise.spec import Stepwise, StepwiseError, StepwiseSpec
from stepwise.upstream import Endpoint

log = logging.getLogger("pointsman.stepwise")

PRIOR = "difficulty"  # a signal of this name is the policy network's prior


class Answers:
    """The stepwise decisions of the engines in force, ready to answer.

    `through` is the address of Envoy's internal listener (`http://host:port`), where the route header picks the
    model; without it each model's own `url` is called. `folder` is the policy file's. `metrics` outlive the engines.
    `served`: there is a service over HTTP too (stepwise.http), which answers where Envoy cannot stream.
    """

    def __init__(
        self,
        engines: Sequence[Engine],
        folder: Path,
        through: str | None,
        metrics: Metrics | None = None,
        *,
        served: bool = False,
    ) -> None:
        self._engines = {engine.policy: engine for engine in engines}
        self._served = served
        self._ready: dict[tuple[str, StepwiseSpec], Stepwise | Agent] = {}
        servers: list[Server] = []
        for engine in engines:
            for clause in engine.clauses:
                block = clause.stepwise
                if block is None or (engine.policy, block) in self._ready:
                    continue
                ends = {key: endpoint(engine.models[key], through) for key in (block.small, block.large)}
                self._ready[engine.policy, block] = (
                    Agent(block, ends, folder, Spend(engine.shared.settings.get("store")), metrics)
                    if block.per == "request"
                    else block.build(ends, folder, metrics, servers)
                )
        self._named = {
            (engine.policy, clause.name): self._ready[engine.policy, clause.stepwise]
            for engine in engines
            for clause in engine.clauses
            if clause.stepwise is not None
        }
        self._in_force = engines[0].policy

    def find(self, name: str, policy: str = "") -> Stepwise | Agent | None:
        """The decision of that name in `policy` (its hash), or in the one in force."""
        return self._named.get((policy or self._in_force, name))

    async def start(self) -> None:
        """Probe the upstreams, all at once. What cannot work is logged; such decisions take the large model alone."""
        await asyncio.gather(
            *(_start(block, ready) for (_, block), ready in self._ready.items() if isinstance(ready, Stepwise))
        )

    def elsewhere(self, trace: Trace, request: Request) -> Pairs | None:
        """The headers with which the service over HTTP answers; None without it (extproc.exchange.Answerer)."""
        if not self._served:
            return None
        ready = self._ready[trace.policy, trace.decision.stepwise]
        if reason := _unfit(ready, request):
            ready.metrics.ineligible[reason] += 1
            return ()
        told: Pairs = ((DECISION, trace.decision.name or ""), (POLICY, trace.policy))
        if isinstance(ready, Agent) and (session := self._engines[trace.policy].sessions.key(request)):
            told = (*told, (SESSION, session))
        prior = _prior(trace)
        return told if prior is None else (*told, (DIFFICULTY, f"{prior:.2f}"))

    async def answer(self, trace: Trace, request: Request) -> Answer | None:
        """The answer; None when `request` cannot be answered step by step (extproc.exchange.Answerer)."""
        ready = self._ready[trace.policy, trace.decision.stepwise]
        if reason := _unfit(ready, request):
            ready.metrics.ineligible[reason] += 1
            return None
        prior = _prior(trace)
        prior = 0.5 if prior is None else prior
        deadline = stepwise.answer.deadline(request.headers)
        charge = self._charge(trace, request)
        given: stepwise.answer.Answer | None
        if isinstance(ready, Agent):
            headers = {**request.headers, SESSION: self._engines[trace.policy].sessions.key(request)}
            given = await relay(ready, request.fields, headers, deadline=deadline, difficulty=prior, charge=charge)
            assert given is not None  # it is fit
        else:
            given = await stepwise.answer.answer(
                ready, request.fields, request.headers, deadline=deadline, difficulty=prior, charge=charge
            )
        # Not wrapped in a generator: one that was never begun would free nothing when it is closed.
        return Answer(given.status, given.headers, given.body)

    async def close(self) -> None:
        """Close every connection. Answers still under way fail."""
        await asyncio.gather(*(ready.close() for ready in self._ready.values()))

    def _charge(self, trace: Trace, request: Request) -> Callable[[float], None] | None:
        """Who is told what the answer has cost, if anybody wants to know."""
        engine = self._engines[trace.policy]
        return (lambda money: engine.charge(request, money)) if engine.metered else None


async def _start(block: StepwiseSpec, ready: Stepwise) -> None:
    try:
        await ready.start()
    except StepwiseError as error:
        log.error("stepwise_unworkable", extra={"small": block.small, "large": block.large, "why": str(error)})


def _unfit(ready: Stepwise | Agent, request: Request) -> str | None:
    """Why this request takes the decision's plain route, in one word for counting."""
    if request.api != "chat":
        return "not_chat"
    judge = unfit if isinstance(ready, Agent) else stepwise.answer.ineligible
    return judge(request.fields, request.headers)


def _prior(trace: Trace) -> float | None:
    reading = trace.readings.get(PRIOR)
    return None if reading is None else reading.score


def endpoint(model: Model, through: str | None) -> Endpoint:
    """Where `model` is called. Raises ValueError when nobody says where it is served."""
    base = None if through else model.base_path  # the gateway knows it itself
    url = through or model.url
    if url is None:
        raise ValueError(
            f"model {model.key}: stepwise decisions call it, so it needs a `url:` in the policy, or the router "
            "needs the address of Envoy's internal listener (--models-through)"
        )
    headers = {ROUTE: model.key} if through else {}
    return Endpoint(
        before(url, base),
        model.name,
        headers=headers,
        price_input=model.input_price,
        price_output=model.output_price,
        base_path="/v1" if base is None else base,
    )
