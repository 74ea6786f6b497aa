"""The `stepwise:` block of a decision, and what is built from it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, create_model, model_validator

from signals import files
from signals.signal import Doubt
from stepwise import agent
from stepwise.agent import Agent, LoopTerms, Spend
from stepwise.answer import Steps
from stepwise.asking.continuation import compiled
from stepwise.asking.pair import AnswerBudget, Setup
from stepwise.asking.ready import Servers, Stepwise, StepwiseError
from stepwise.kind import KIND
from stepwise.metrics import StepwiseMetrics
from stepwise.policy import GOAL, Device, PolicyTarget, StepPolicy, StepPolicyError
from stepwise.registry import BY_NAME, STRATEGIES
from stepwise.relay import Loop
from stepwise.steps import Ends, StepLimits
from stepwise.strategies import cold_start, policy
from stepwise.strategy import Share, Strategy, StrategyKind, Wanted
from upstream.writer import Means, Writer, WriterKind, WriterSpec, parameter_fields

_SHIPPED = Path(__file__).parent / "models"
_SPECIFIC = frozenset[str]().union(*(kind.keys for kind in STRATEGIES))


class _Block(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TargetSpec(_Block):
    """What the policy has to achieve: exactly one of the two."""

    accuracy_loss: Share | None = None
    """Of the questions that the large model answers correctly, at most this share may be answered wrongly."""
    cost: Share | None = None
    """The expected cost, as a share of what the large model alone would cost."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.accuracy_loss is None) == (self.cost is None):
            raise ValueError("target needs exactly one of accuracy_loss and cost")
        return self

    def resolve(self) -> PolicyTarget:
        if self.accuracy_loss is not None:
            return PolicyTarget("accuracy_loss", self.accuracy_loss)
        assert self.cost is not None
        return PolicyTarget("cost", self.cost)


class StepSpec(_Block):
    """Where steps end. Left out: as in the policy's training, or 8, 512 and `auto` without a policy."""

    ends: Ends | None = None
    """What ends a step: a `blank` line, a `line`, a `sentence`, or, by how long the step has become, each: `auto`."""
    min_tokens: Annotated[int, Field(ge=1)] | None = None
    """No step ends before it has this many tokens of the model that writes it."""
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    """Every step ends when it has this many, wherever that is."""
    judge_every: Annotated[int, Field(ge=1)] = 64
    """A draft is judged in its middle, too, whenever it has grown by so many tokens: one that would be the whole answer
    is not written to its end to be rejected."""


class TemplatesSpec(_Block):
    """Chat templates (Jinja), in files beside the policy file, of models that think before they answer.

    These are continued by `/v1/completions`. Left out: what the model's server says, where it does (llama.cpp's).
    """

    small: str | None = None
    """That of the model that drafts."""
    large: str | None = None
    """That of the model that corrects."""


class BudgetSpec(_Block):
    """Limits of one answer; `session` is for `per: request`."""

    steps: Annotated[int, Field(ge=1)] = 30
    """After this many steps, the model that is writing writes the rest."""
    seconds: Annotated[float, Field(gt=0)] = 120.0
    """The same after this many seconds."""
    money: Annotated[float, Field(ge=0)] | None = None
    """The large model is asked only while the answer costs less than this, by the models' prices."""
    tokens: Annotated[int, Field(ge=1)] = 16384
    """Both models together write at most this many tokens, rejected ones included; then the answer ends."""
    session: Annotated[float, Field(gt=0)] | None = None
    """`per: request` only: the most that a session may cost."""


if TYPE_CHECKING:
    StrategyName = str
else:
    StrategyName = Literal[tuple(kind.name for kind in STRATEGIES)]


class _ModelPair(WriterSpec):
    """The beginning of a block: the two models, and the strategy that judges drafts."""

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


if TYPE_CHECKING:
    _Parameters = _ModelPair
else:
    # The strategies bring their own keys.
    _Parameters = create_model(
        "_Parameters",
        __base__=_ModelPair,
        **parameter_fields(kind.parameters for kind in STRATEGIES),
    )


class StepwiseSpec(_Parameters):
    """Parameters of a `stepwise` decision."""

    kind: ClassVar[WriterKind] = KIND

    max_redos: Annotated[int, Field(ge=0)] = 8
    """Steps rewritten one by one before the large model takes over for good."""
    step: StepSpec = StepSpec()
    templates: TemplatesSpec = TemplatesSpec()
    budget: BudgetSpec = BudgetSpec()
    per: Literal["answer", "request"] = "answer"
    """What a model is chosen for: each step within an answer, or each request of an agent's loop."""
    choose: Literal["model", "effort"] = "model"
    """`per: request` only: between the two models, or between efforts of the large one."""
    efforts: tuple[str, ...] = ("low", "medium", "high")
    """`choose: effort`: values of `reasoning_effort`, the cheapest first."""
    device: Device = "auto"
    """Where the policy network runs. `cuda` without a usable GPU is an error."""
    warm_below: Share | None = None
    """When a step scores less than this, the large model reads the answer so far in advance. Left out: never."""
    capabilities: str | None = None
    """A file that remembers what the upstreams can do, so that the router can start while one of them is down."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.small == self.large and self.choose == "model":
            raise ValueError("small and large must be two models")
        if self.policy is None and self.strategy == policy.KIND.name:
            raise ValueError("strategy: policy needs a policy")
        taken = self._strategy.keys
        strange = (_SPECIFIC & self.model_fields_set) - taken
        if strange:
            known = ", ".join(sorted(taken)) or "none"
            raise ValueError(f"strategy {self.chosen} does not take {', '.join(sorted(strange))} (its own: {known})")
        if self.chosen == cold_start.KIND.name and self.target is not None and self.target.cost is None:
            raise ValueError(
                "target: accuracy_loss needs a trained policy; without one give target: {cost: …} or share"
            )
        if self.per == "answer" and (self.choose == "effort" or self.budget.session is not None):
            raise ValueError("choose: effort and budget.session are for per: request")
        if self.per == "request" and not self._strategy.loops:
            able = " or ".join(kind.name for kind in STRATEGIES if kind.loops)
            raise ValueError(f"per: request takes strategy {able}")
        if self.choose == "effort" and len(self.efforts) < 2:
            raise ValueError("efforts needs at least two values")
        return self

    @property
    def chosen(self) -> str:
        """The strategy, its default applied."""
        return self.strategy or (policy if self.policy is not None else cold_start).KIND.name

    @property
    def goal(self) -> PolicyTarget:
        """The target, its default applied."""
        return self.target.resolve() if self.target else GOAL

    @property
    def models(self) -> tuple[str, ...]:
        return self.small, self.large

    @property
    def fallback(self) -> str:
        return self.large

    @property
    def how(self) -> str:
        return f"answered step by step by the models {self.small} and {self.large}"

    @classmethod
    def mentions(cls, data: Mapping[str, object]) -> Iterator[tuple[tuple[str | int, ...], object]]:
        for key in ("small", "large"):
            yield (key,), data.get(key)

    def doubts(self) -> Iterator[Doubt]:
        if self.small == self.large:
            yield Doubt(("large",), "L331", f"small and large are both {self.large!r}: no step is ever cheaper")

    @property
    def _strategy(self) -> StrategyKind:
        return BY_NAME[self.chosen]

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
        raise StepPolicyError(f"policy {self.policy}: no such file; looked for {looked}")

    def check(self, folder: Path, names: Mapping[str, str]) -> None:
        small, large = names[self.small], names[self.large]
        for name in (self.templates.small, self.templates.large):
            _template(folder, name)
        if self.per == "answer":
            strategy = self._made(folder, small, large, device="cpu")  # whatever this machine has
            try:
                self._limits(strategy)
            finally:
                strategy.close()
        elif (file := self.loop(folder).policy) is not None:
            network = StepPolicy(file, device="cpu", names=agent.NAMES, version=agent.VERSION)
            try:
                network.card.of_pair(small, large).row(self.goal)
            finally:
                network.close()

    def build(self, means: Means) -> Writer:
        """The writer. Raises PolicyError and StepwiseError."""
        if self.per == "request":
            terms, spend = self.loop(means.folder), Spend(means.store)
            return Loop(Agent(terms, means.endpoints, spend, means.counters.of(StepwiseMetrics)))
        return Steps(self.stepwise(means))

    def loop(self, folder: Path) -> LoopTerms:
        """The terms of `per: request`. Raises PolicyError."""
        return LoopTerms(
            self.small,
            self.large,
            self.efforts if self.choose == "effort" else (),
            self.budget.session,
            self.policy_path(folder) if self.chosen == policy.KIND.name else None,
            self.device,
            self.goal,
        )

    def stepwise(self, means: Means) -> Stepwise:
        """What writes answers for `per: answer`. Raises PolicyError and StepwiseError."""
        small, large = (
            replace(means.endpoints[model], template=_template(means.folder, name))
            for model, name in ((self.small, self.templates.small), (self.large, self.templates.large))
        )
        strategy = self._made(means.folder, small.model, large.model, self.device)
        try:
            limits = self._limits(strategy)
        except ValueError:
            strategy.close()
            raise
        servers = means.common.of(Servers)
        budget = self.budget
        return Stepwise(
            Setup(
                small=servers.of(self.small, small),
                large=servers.of(self.large, large),
                strategy=strategy,
                limits=limits,
                budget=AnswerBudget(budget.steps, budget.seconds, budget.money, budget.tokens),
                max_redos=self.max_redos,
                token_budget=strategy.token_budget,
                verdict_tokens=self.step.judge_every,
                warm_below=self.warm_below,
                metrics=means.counters.of(StepwiseMetrics),
            ),
            means.folder / self.capabilities if self.capabilities else None,
        )

    def _made(self, folder: Path, small: str, large: str, device: Device) -> Strategy:
        """The strategy, for models of these names. Raises ValueError."""
        kind = self._strategy
        given = self.model_dump(include=set(kind.parameters), exclude_none=True)
        target = self.target.resolve() if self.target else None
        file = self.policy_path(folder) if "policy" in kind.takes else None
        return kind.make(Wanted(given, target, file, device, small, large))

    def _limits(self, strategy: Strategy) -> StepLimits:
        """Where steps end: as the strategy was trained, else as the block says."""
        trained = strategy.limits or StepLimits(ends=Ends.AUTO)
        mine = StepLimits(
            self.step.min_tokens or trained.min_tokens,
            self.step.max_tokens or trained.max_tokens,
            self.step.ends or trained.ends,
        )
        if strategy.limits is not None and mine != trained:
            raise StepwiseError(
                f"step: min_tokens, max_tokens and ends are {mine}, but the policy was trained with {trained}; leave "
                "them out"
            )
        return mine


def _template(folder: Path, name: str | None) -> str | None:
    """The chat template in this file. Raises StepwiseError."""
    if name is None:
        return None
    path = folder / name
    try:
        text = files.read(path, files.POLICY).decode()
        compiled(text)
    except OSError as error:
        raise StepwiseError(f"templates: {f'{path}: {error.strerror}' if error.strerror else error}") from None
    except ValueError as error:
        raise StepwiseError(f"templates: {path}: {error}") from None
    return text
