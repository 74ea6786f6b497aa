"""The `stepwise:` block of a decision, and what is built from it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stepwise import probe
from stepwise.features import TOP
from stepwise.metrics import Metrics
from stepwise.policy import Device, Policy, PolicyError, Target
from stepwise.probe import Capability
from stepwise.session import Budget, Model, Setup
from stepwise.steps import Limits
from stepwise.strategies import (
    ColdStart,
    Confidence,
    Fixed,
    Glimpse,
    PolicyStrategy,
    Random,
    Strategy,
    Verify,
)
from stepwise.upstream import DeadlineError, Endpoint, Upstream, UpstreamError

StrategyName = Literal[
    "policy", "glimpse", "confidence", "cold-start", "verify", "random", "first-n", "always-small", "always-large"
]
Share = Annotated[float, Field(ge=0, le=1)]

_SHIPPED = Path(__file__).parent / "models"
_PARAMETERS: Mapping[str, frozenset[str]] = {
    "policy": frozenset({"policy", "target", "device"}),
    "glimpse": frozenset({"threshold"}),
    "confidence": frozenset({"share"}),
    "cold-start": frozenset({"share", "target"}),
    "verify": frozenset({"threshold"}),
    "random": frozenset({"p", "seed"}),
    "first-n": frozenset({"n"}),
    "always-small": frozenset(),
    "always-large": frozenset(),
}
_SPECIFIC = frozenset().union(*_PARAMETERS.values())
_RETRY = 10.0  # seconds between two probes of an upstream that could not be asked
_PROBE = 20.0  # seconds that a probe may take
_PATIENCE = 3.0  # seconds that an answer waits for one


class StepwiseError(ValueError):
    """A stepwise block that cannot work. The message says why and what to do."""


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TargetSpec(_Block):
    """What the policy must keep to: exactly one of the two."""

    accuracy_loss: Share | None = None
    """At most this share of the questions that the large model gets right may be lost."""
    cost: Share | None = None
    """Expected cost, as a share of the large model's alone."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.accuracy_loss is None) == (self.cost is None):
            raise ValueError("target needs exactly one of accuracy_loss and cost")
        return self

    def resolve(self) -> Target:
        if self.accuracy_loss is not None:
            return Target("accuracy_loss", self.accuracy_loss)
        assert self.cost is not None
        return Target("cost", self.cost)


class StepSpec(_Block):
    """Where steps end. Left out: as the policy was trained, else 8 and 512."""

    min_tokens: Annotated[int, Field(ge=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None


class BudgetSpec(_Block):
    """Limits of one answer; `session` is for `per: request`."""

    steps: Annotated[int, Field(ge=1)] = 30
    """After so many steps, whoever writes then writes the rest."""
    seconds: Annotated[float, Field(gt=0)] = 120.0
    """Likewise after so much time."""
    money: Annotated[float, Field(ge=0)] | None = None
    """The large model is asked only while the answer stays under this, by the models' prices."""
    tokens: Annotated[int, Field(ge=1)] = 16384
    """Both models together write at most this many tokens, rejected ones included; then the answer ends."""
    session: Annotated[float, Field(gt=0)] | None = None
    """`per: request` only: a session never costs more than this."""


class StepwiseSpec(_Block):
    """Parameters of a `stepwise` decision."""

    small: str
    """Name of the model that drafts."""
    large: str
    """Name of the model that corrects."""
    strategy: StrategyName | None = None
    """Who judges a draft. Left out: `policy` when a policy is named, else `cold-start`."""
    policy: str | None = None
    """A trained policy: a shipped one's name, a path, or a name of an .onnx file beside the policy file."""
    target: TargetSpec | None = None
    """Left out: `{accuracy_loss: 0.01}` for a policy."""
    threshold: float | None = None
    """`glimpse`: entropy in nats (0.5). `verify`: score from 0 to 1 (0.7)."""
    share: Share | None = None
    """`confidence`, `cold-start`: share of the steps to be written by the large model (0.2)."""
    p: Share | None = None
    """`random`: probability that a draft is rejected (0.2)."""
    n: Annotated[int, Field(ge=0)] | None = None
    """`first-n`: steps written by the large model (1)."""
    seed: int | None = None
    """`random` (0)."""
    max_redos: Annotated[int, Field(ge=0)] = 8
    """Steps rewritten one by one before the large model takes over for good."""
    step: StepSpec = StepSpec()
    budget: BudgetSpec = BudgetSpec()
    per: Literal["answer", "request"] = "answer"
    """What is routed: the steps inside an answer, or each request of an agent's loop."""
    choose: Literal["model", "effort"] = "model"
    """`per: request` only: between the two models, or between efforts of the large one."""
    efforts: tuple[str, ...] = ("low", "medium", "high")
    """`choose: effort`: values of `reasoning_effort`, the cheapest first."""
    device: Device = "auto"
    """Where the policy network runs. `cuda` without a usable GPU is an error."""
    warm_below: Share | None = None
    """Scores under this have the large model read the prefix in advance. Left out: never."""
    capabilities: str | None = None
    """A file that remembers what the upstreams can do, for a start while one of them is down."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.small == self.large and self.choose == "model":
            raise ValueError("small and large must be two models")
        if self.policy is None and self.strategy == "policy":
            raise ValueError("strategy: policy needs a policy")
        strange = (_SPECIFIC & self.model_fields_set) - _PARAMETERS[self.chosen]
        if strange:
            known = ", ".join(sorted(_PARAMETERS[self.chosen])) or "none"
            raise ValueError(f"strategy {self.chosen} does not take {', '.join(sorted(strange))} (its own: {known})")
        if self.chosen == "cold-start" and self.target is not None and self.target.cost is None:
            raise ValueError(
                "target: accuracy_loss needs a trained policy; without one give target: {cost: …} or share"
            )
        if self.per == "answer" and (self.choose == "effort" or self.budget.session is not None):
            raise ValueError("choose: effort and budget.session are for per: request")
        if self.per == "request" and self.chosen not in ("policy", "cold-start"):
            raise ValueError("per: request takes strategy policy or cold-start")
        if self.choose == "effort" and len(self.efforts) < 2:
            raise ValueError("efforts needs at least two values")
        return self

    @property
    def chosen(self) -> StrategyName:
        """The strategy, its default applied."""
        return self.strategy or ("policy" if self.policy is not None else "cold-start")

    @property
    def goal(self) -> Target:
        """The target, its default applied."""
        return self.target.resolve() if self.target else Target("accuracy_loss", 0.01)

    def policy_path(self, folder: Path) -> Path:
        """The file of `policy`; names are looked for in `folder` and among the shipped ones. Raises PolicyError."""
        assert self.policy is not None
        if self.policy.endswith(".onnx"):
            return folder / self.policy
        places = [folder / f"{self.policy}.onnx", _SHIPPED / f"{self.policy}.onnx"]
        for place in places:
            if place.exists():
                return place
        looked = " and ".join(str(place) for place in places)
        raise PolicyError(f"policy {self.policy}: no such file; looked for {looked}")

    def build(
        self,
        endpoints: Mapping[str, Endpoint],
        folder: Path,
        metrics: Metrics | None = None,
        servers: list[Model] | None = None,
    ) -> Stepwise:
        """A ready object for `per: answer`. `endpoints`: by model name, `folder`: that of the YAML file. `servers` are
        shared with other decisions, so that each is probed once; those that are missing are added.

        Raises PolicyError and StepwiseError.
        """
        servers = [] if servers is None else servers
        small, large = endpoints[self.small], endpoints[self.large]
        limits = Limits()
        token_budget = 4096
        strategy: Strategy
        if self.chosen == "policy":
            policy = Policy(self.policy_path(folder), device=self.device)
            try:
                card = policy.card
                if (card.small, card.large) != (small.model, large.model):
                    raise PolicyError(
                        f"{policy.path}: trained for {card.small} and {card.large}, but this decision has "
                        f"{small.model} and {large.model}; train one for this pair, or use strategy: cold-start"
                    )
                limits, token_budget = card.steps, card.token_budget
                strategy = PolicyStrategy(policy, card.kappa(self.goal))
                self._same_steps(limits)
            except ValueError:
                policy.close()
                raise
        else:
            strategy = self._handcrafted()
            limits = Limits(
                self.step.min_tokens or limits.min_tokens,
                self.step.max_tokens or limits.max_tokens,
            )
        budget = self.budget
        return Stepwise(
            Setup(
                small=_server(servers, self.small, small),
                large=_server(servers, self.large, large),
                strategy=strategy,
                limits=limits,
                budget=Budget(budget.steps, budget.seconds, budget.money, budget.tokens),
                max_redos=self.max_redos,
                token_budget=token_budget,
                warm_below=self.warm_below,
                metrics=metrics or Metrics(),
            ),
            folder / self.capabilities if self.capabilities else None,
        )

    def _same_steps(self, limits: Limits) -> None:
        mine = (self.step.min_tokens or limits.min_tokens, self.step.max_tokens or limits.max_tokens)
        if mine != (limits.min_tokens, limits.max_tokens):
            raise StepwiseError(
                f"step: min_tokens and max_tokens are {mine[0]} and {mine[1]}, but the policy was trained with "
                f"{limits.min_tokens} and {limits.max_tokens}; leave them out"
            )

    def _handcrafted(self) -> Strategy:
        share = self.share
        match self.chosen:
            case "glimpse":
                return Glimpse() if self.threshold is None else Glimpse(self.threshold)
            case "confidence":
                return Confidence() if share is None else Confidence(share)
            case "verify":
                return Verify() if self.threshold is None else Verify(self.threshold)
            case "random":
                return Random(0.2 if self.p is None else self.p, self.seed or 0)
            case "first-n":
                return Fixed.first_n(1 if self.n is None else self.n)
            case "always-small":
                return Fixed.always_small()
            case "always-large":
                return Fixed.always_large()
        cost = self.target.cost if self.target else None
        share = cost if share is None else share
        return ColdStart() if share is None else ColdStart(share)


class Stepwise:
    """A stepwise decision, ready to answer. `start` it, `close` it at the end."""

    def __init__(self, setup: Setup, capabilities: Path | None = None) -> None:
        self.problem: str | None = None  # why the strategy cannot work with these upstreams, once that is known
        self._setup = setup
        self._marks: bool | None = None  # can the large model mark steps, where the strategy wants it to
        self._fallback = replace(setup, strategy=Fixed.always_large())
        self._capabilities = capabilities
        self._probing: asyncio.Task[None] | None = None

    @property
    def metrics(self) -> Metrics:
        return self._setup.metrics

    async def start(self, headers: Mapping[str, str] | None = None) -> None:
        """Probes both upstreams. One that cannot be reached is tried again when an answer needs it.

        Raises StepwiseError when what they can do is known and the strategy cannot work with it.
        """
        await self._prepare(headers or {}, _PROBE)
        self.problem = self._unworkable()
        if self.problem:
            raise StepwiseError(self.problem)

    async def ready(self, headers: Mapping[str, str], deadline: float | None) -> Setup:
        """What an answer needs: the large model alone while the strategy cannot work or nobody knows whether it can.

        `deadline`: on the running loop's clock.
        """
        left = _PATIENCE if deadline is None else deadline - asyncio.get_running_loop().time()
        await self._prepare(headers, max(0.0, min(left, _PATIENCE)))
        self.problem = self._unworkable()  # another decision may have probed the same model anew
        if self.problem:
            self.metrics.safe_side["unworkable"] += 1
            return self._fallback
        if self._setup.large.capability.mode is None and not isinstance(self._setup.strategy, Fixed):
            self.metrics.safe_side["unprobed"] += 1
            return self._fallback
        return self._setup

    async def close(self) -> None:
        """Closes every connection and the policy. Answers still under way fail."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.wait([self._probing])
        if isinstance(self._setup.strategy, PolicyStrategy):
            self._setup.strategy.policy.close()
        await self._setup.small.upstream.close()
        await self._setup.large.upstream.close()

    def records(self) -> dict[str, Capability]:
        """What is known of the upstreams, by model name."""
        return {
            model.name: model.capability for model in (self._setup.small, self._setup.large) if model.capability.checked
        }

    async def _prepare(self, headers: Mapping[str, str], seconds: float) -> None:
        """Probes what has to be probed, once for all who ask, and waits for it so long at most."""
        models = (self._setup.small, self._setup.large)
        if self._probing is None or self._probing.done():
            due = [model for model in models if self._due(model)]
            if not due:
                return
            self._probing = asyncio.create_task(self._probe_all(due, dict(headers)))
        done, _ = await asyncio.wait([self._probing], timeout=seconds)
        for task in done:
            task.result()  # upstream failures are dealt with in there: anything else is a defect, and shows here

    def _due(self, model: Model) -> bool:
        if model.asked is None:
            return True
        return (not model.capability.checked or model.suspect) and time.monotonic() - model.asked > _RETRY

    async def _probe_all(self, models: list[Model], headers: Mapping[str, str]) -> None:
        await asyncio.gather(*(self._probe(model, headers) for model in models))
        large = self._setup.large
        if isinstance(self._setup.strategy, Verify) and self._marks is None and large.capability.checked:
            limit = asyncio.get_running_loop().time() + _PROBE
            try:
                self._marks = await probe.marks(large.upstream, headers, limit)
            except (UpstreamError, DeadlineError):
                self.metrics.upstream_errors[large.name, "probe_marks"] += 1
        self._remember()

    async def _probe(self, model: Model, headers: Mapping[str, str]) -> None:
        async with model.probing:  # another decision with the same model may be at it already
            if self._due(model):
                limit = asyncio.get_running_loop().time() + _PROBE
                try:
                    model.capability = await probe.probe(model.upstream, headers, limit)
                    model.suspect = False
                except (UpstreamError, DeadlineError) as error:
                    kind = error.kind if isinstance(error, UpstreamError) else "timeout"
                    self.metrics.upstream_errors[model.name, f"probe_{kind}"] += 1
                model.asked = time.monotonic()
        if not model.capability.checked and self._capabilities is not None:
            known = probe.load(self._capabilities).get(model.name)
            if known is not None and known.model == model.upstream.endpoint.model:
                model.capability = known

    def _remember(self) -> None:
        if self._capabilities is not None and (records := self.records()):
            try:
                probe.save(self._capabilities, {**probe.load(self._capabilities), **records})
            except OSError:
                self.metrics.upstream_errors["-", "capabilities_not_saved"] += 1

    def _unworkable(self) -> str | None:
        """Why the strategy cannot work with what the upstreams can do; None when it can, or nothing is known."""
        small, large, strategy = self._setup.small, self._setup.large, self._setup.strategy
        name = strategy.name
        if name in ("always-small", "always-large"):
            return None
        given = small.capability.top_logprobs
        if small.capability.checked and given < strategy.needs_top:
            gives = f"only {given} top log probabilities" if given >= 0 else "no log probabilities"
            return (
                f"strategy {name} needs {max(strategy.needs_top, 1)} of them, but {small.name} gives {gives}: "
                "switch them on at the server, or use strategy: verify"
            )
        if self._marks is False:
            return (
                f"strategy verify needs marks, but {large.name}, asked to rate a step with one digit, gave none: use a "
                "strategy that looks at the small model's probabilities, such as cold-start"
            )
        if large.capability.checked and large.capability.mode is None:
            tried = "; ".join(f"{mode}: {outcome}" for mode, outcome in large.capability.modes.items())
            return (
                f"{large.name} cannot continue a prefix ({tried}), so it cannot write single steps: serve it with vLLM "
                "or SGLang, or give it a chat template for /v1/completions"
            )
        return None


def _server(servers: list[Model], name: str, endpoint: Endpoint) -> Model:
    """The one of `servers` that this is; a new one is added."""
    for server in servers:
        if server.name == name and server.upstream.endpoint == endpoint:
            return server
    servers.append(Model(name, Upstream(endpoint), unknown(endpoint)))
    return servers[-1]


def unknown(endpoint: Endpoint) -> Capability:
    """Before the first probe: nothing is known, and only what the operator says is taken for granted."""
    return Capability(endpoint.model, 0.0, endpoint.mode, {}, TOP, False, False, False)
