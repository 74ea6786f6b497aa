"""What the kinds of selectors have in common that learn from grades of their answers."""

from __future__ import annotations

from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from decisions.candidates import expected_tokens, whose
from decisions.decision import Choice
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.selectors.selector import STAYED, Graded, Params, Pick, Selector
from signals.facts import Facts
from signals.signal import Doubt, Shared
from signals.state.standing import Standing
from signals.text.frame import FRAME

DAY_H: Final = 24.0
USUAL: Final = 0.5
"""The quality of a model whose `quality` the policy does not tell."""
CLASSES: Final = 256
"""Into how many classes the frames of prompts fall."""
TENANTS: Final = 10_000
"""Tenants of which a decision learns apart; of further ones only what counts for everybody."""
STUBBED: Final = "best of the qualities in the case"
"""`Choice.why` in a policy's own test that says what is known of the candidates."""


_CLASSES_KNOWN: Final = 1000
"""Classes of requests whose worths are remembered."""
Known = tuple[Standing, ...]
"""Standings whose sums are known together."""


class Stubbed:
    """Quick input: the qualities, or the seconds, by candidate that a policy's test says; there only where one does."""

    def compute(self, facts: Facts) -> Mapping[str, float]:
        return {}


class LearnerParams(Params):
    """What counts beside quality, and how long what was learned counts."""

    cost: float = Field(
        0.0, ge=0, description="Weight of the call's estimated price (1 for the dearest candidate) against quality."
    )
    half_life: float = Field(
        7 * DAY_H, ge=0.001, le=10_000, description="Hours after which what was learned counts half as much."
    )

    per_tenant: int = Field(
        10,
        ge=0,
        description="With `settings.tenant`: how many of a tenant's grades in a half-life count for everybody's "
        "choices; the others count for its own.",
    )
    failures: bool = Field(
        True, description="Whether a failure of the model's server (status 500 and above) is a grade of 0."
    )

    def doubts(self, models: Sequence[Model]) -> Iterator[Doubt]:
        unpriced = next((model for model in models if not model.priced), None)
        if self.cost and unpriced is not None:
            message = f"{unpriced.key!r} has no price and so counts as free: give every model a `price`"
            yield Doubt((), "L326", f"{message}, or `price: {{input: 0, output: 0}}` when it is free")


class ClassParams(LearnerParams):
    """What a class of requests is."""

    per: Literal["decision", "template"] = Field(
        "decision",
        description="What is learned by itself: the decision as a whole, or each kind of prompt in it, told by its "
        "first words and its labels.",
    )


class Learner(Selector):
    """A selector that learns from grades: 0 (bad) to 1 (good), given to its choices one by one.

    `sums` is how many numbers are kept of a candidate. `standing` has all grades. Where the policy says who asks, the
    choices go by two others: by what counts for everybody, which has few grades of each tenant, and by what the one
    that asks has said besides. So nobody can turn the choices of others, whatever grades it gives to its own answers,
    and who is alone loses nothing.
    """

    sums: ClassVar[int]

    def __init__(self, pick: Pick, params: LearnerParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self.learns = self.graded = True
        self.watches_answers = True  # the id of an answer stands in it
        self.cost = params.cost
        self._rates = {model: (model.cost(1, 0), model.cost(0, 1)) for model in self.models}
        self._every_rate = list(self._rates.values())
        self._decision = pick.decision
        self._stubbed = Stubbed()
        self._failures = params.failures
        self.per_tenant = params.per_tenant
        self._name = f"{self.name}:{pick.decision}"
        self._half_life = params.half_life * 3600.0
        self._standings, self._store = shared.services.standings, shared.services.store
        self._tenant = shared.services.tenant
        self.standing: Standing = self._standings.of(self._store, self._name, self.sums, self._half_life)
        self._common = self.standing
        if self._tenant is not None:
            self._common = self._standings.of(self._store, f"{self._name}:common", self.sums, self._half_life)
        self._everybody: Known = (self._common,)
        self._tally = self._standings.tally

    def learn(self, outcome: Outcome, choice: Choice) -> None:
        failed = outcome.status is not None and outcome.status >= 500 and outcome.model is choice.model.plain
        if failed and self._failures:
            self.grade(given(choice, outcome.trace.context), 0.0)

    def grade(self, given: Graded, score: float) -> None:
        for known in self.learning(given):
            self.take(given, score, known)
        if given.propensity is not None:
            self._tally.add(self._decision, given.arm, score, given.propensity)

    def known(self, facts: Facts) -> Known:
        """What the choice for a request goes by."""
        if self._tenant is None:
            return self._everybody
        return self._known(whose(facts.request.headers.get(self._tenant, "")))

    def _known(self, owner: str) -> Known:
        return (self._common, self._own(owner)) if owner in self._common else self._everybody

    def learning(self, given: Graded) -> list[Known]:
        """What learns from a grade: of each the last standing, which is known together with those before."""
        if self._tenant is None:
            return [self._everybody]
        everything: list[Known] = [(self.standing,)]
        if given.owner is None:
            return [*everything, self._everybody]
        if given.owner not in self._common:
            if self._common.count > TENANTS:
                return everything
            self._common.add(given.owner, (1.0, *(0.0,) * (self.sums - 1)))
        return [*everything, self._known(given.owner)]

    def _own(self, owner: str) -> Standing:
        return self._standings.passing(self._store, f"{self._name}:{owner}", self.sums, self._half_life)

    async def take_in(self, sums: Mapping[str, Sequence[float]]) -> None:
        for standing in dict.fromkeys((self.standing, self._common)):
            await standing.take_in(sums)

    async def forget(self) -> None:
        await self._common.share()
        owners = [self._own(key) for key in self._common.all() if key.startswith("tenant ")]
        for standing in dict.fromkeys((self.standing, *owners, self._common)):
            await standing.forget()

    def stub(self, facts: Facts, qualities: Mapping[str, float]) -> None:
        facts.put(self._stubbed, qualities)

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        if facts.has(self._stubbed):
            qualities = facts.get(self._stubbed)
            prices = self.prices(models, facts)
            worth = [qualities.get(one.key, expected(one)) - price for one, price in zip(models, prices, strict=True)]
            return Choice(models[worth.index(max(worth))], STUBBED, 1.0, self.name)
        known = self.known(facts)
        for standing in known:
            standing.refresh()
        if self._common is not self.standing:
            self.standing.refresh()  # what is shown
        return self.chosen(models, facts, known)

    @abstractmethod
    def chosen(self, models: Sequence[Model], facts: Facts, known: Known) -> Choice:
        """As `among`, by what was learned."""

    @abstractmethod
    def take(self, given: Graded, score: float, known: Known) -> None:
        """Let the last of `known` learn from a grade. Raises ValueError where the context is not this kind's."""

    def compare(self, better: Graded, worse: Graded) -> None:
        self.grade(better, 1.0)
        self.grade(worse, 0.0)

    def prices(self, models: Sequence[Model], facts: Facts) -> list[float]:
        """What each of `models` costs, weighed: `cost` for the dearest."""
        if not self.cost:
            return [0.0] * len(models)
        asked, answered = expected_tokens(facts)
        rates = self._every_rate if models is self.models else map(self._rates.__getitem__, models)
        costs = [of_input * asked + of_output * answered for of_input, of_output in rates]
        return _weighed(self.cost, costs)


class ClassLearner(Learner):
    """A learner that keeps sums of each candidate in each class of requests. The context is the name of the class."""

    def __init__(self, pick: Pick, params: ClassParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._by_template = params.per == "template"
        self._worths: OrderedDict[tuple[Known, str], tuple[Any, dict[Model, float]]] = OrderedDict()

    def context(self, facts: Facts) -> str:
        if not self._by_template:
            return ""
        return f"{sum(facts.get(FRAME)) % CLASSES:02x}"

    @abstractmethod
    def valued(self, model: Model, sums: Sequence[float]) -> float:
        """How good a candidate is by its sums in a class: 0 to 1."""

    def worth(self, context: str, model: Model, known: Known | None = None) -> float:
        """How good a candidate is in a class, by what was learned: 0 to 1."""
        return self.valued(model, self.told(context, model.key, known or self._everybody))

    def summary(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        """Over all classes, by how many grades each has."""
        models = {model.key: model for model in self.models}
        totals = dict.fromkeys(models, (0.0, 0.0))
        for name, some in sums.items():
            key = name.partition("|")[2]
            if key in models and some[0] > 0:
                count, total = totals[key]
                totals[key] = count + some[0], total + some[0] * self.valued(models[key], some)
        return {
            key: (count, total / count if count else self.valued(models[key], (0.0,) * self.sums))
            for key, (count, total) in totals.items()
        }

    def worths(self, models: Sequence[Model], facts: Facts, known: Known) -> list[float]:
        """That of each of `models`, less its weighed price."""
        stamp = tuple(standing.stamp() for standing in known)
        context = self.context(facts)
        before, found = self._worths.get((known, context), (None, {}))
        if before != stamp:
            # Equals are those that differ by no more than the time between two grades makes them.
            found = {model: round(self.worth(context, model, known), 6) for model in self.models}
            self._worths[known, context] = stamp, found
            if len(self._worths) > _CLASSES_KNOWN:
                self._worths.popitem(last=False)
        if not self.cost:
            return [found[model] for model in models]
        return [found[model] - price for model, price in zip(models, self.prices(models, facts), strict=True)]

    def told(self, context: str, arm: str, known: Known) -> Sequence[float]:
        """The sums of a candidate in a class."""
        key = f"{context}|{arm}"
        found = [some for standing in known if (some := standing.told(key)) is not None]
        if len(found) == 1:
            return found[0]
        return [sum(each) for each in zip(*found, strict=True)] or (0.0,) * self.sums

    def put(self, given: Graded, amounts: Sequence[float], known: Known) -> None:
        """Add to the sums of a choice. Raises ValueError."""
        if type(given.context) is not str or len(given.context) > 2:
            raise ValueError("not the name of a class")
        known[-1].add(f"{given.context}|{given.arm}", amounts)


def given(choice: Choice, context: Any) -> Graded:
    """What is graded of a choice."""
    return Graded(choice.model.key, context, None if choice.why == STAYED else choice.propensity)


def expected(model: Model) -> float:
    """The quality of a model before anything was learned of it."""
    return USUAL if model.quality is None else model.quality


def weighed(weight: float, models: Sequence[Model], facts: Facts) -> list[float]:
    """What each of `models` costs, weighed: `weight` for the dearest."""
    if not weight:
        return [0.0] * len(models)
    tokens = expected_tokens(facts)
    return _weighed(weight, [model.cost(*tokens) for model in models])


def _weighed(weight: float, costs: list[float]) -> list[float]:
    most = max(costs)
    scale = weight / most if most > 0 else 0.0
    return [scale * cost for cost in costs]
