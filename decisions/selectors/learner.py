"""What the kinds of selectors have in common that learn from grades of their answers."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Literal

from pydantic import Field

from decisions.candidates import expected_tokens
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
STUBBED: Final = "best of the qualities in the case"
"""`Choice.why` in a policy's own test that says what is known of the candidates."""


class Stubbed:
    """Quick input: the qualities by candidate that a policy's test says; there only where one does."""

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

    A failure of the model's server is a grade of 0. `sums` is how many numbers are kept of a candidate.
    """

    sums: ClassVar[int]

    def __init__(self, pick: Pick, params: LearnerParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self.learns = self.graded = True
        self.watches_answers = True  # the id of an answer stands in it
        self.cost = params.cost
        self._decision = pick.decision
        self._stubbed = Stubbed()
        name = f"{self.name}:{pick.decision}"
        half_life = params.half_life * 3600.0
        standings = shared.services.standings
        self.standing: Standing = standings.of(shared.services.store, name, self.sums, half_life)
        self._tally = standings.tally

    def learn(self, outcome: Outcome, choice: Choice) -> None:
        if outcome.status is not None and outcome.status >= 500 and outcome.model is choice.model.plain:
            self.grade(given(choice, outcome.trace.context), 0.0)

    def grade(self, given: Graded, score: float) -> None:
        self.take(given, score)
        if given.propensity is not None:
            self._tally.add(self._decision, given.arm, score, given.propensity)

    def stub(self, facts: Facts, qualities: Mapping[str, float]) -> None:
        facts.put(self._stubbed, qualities)

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        if facts.has(self._stubbed):
            qualities = facts.get(self._stubbed)
            prices = self.prices(models, facts)
            worth = [qualities.get(one.key, expected(one)) - price for one, price in zip(models, prices, strict=True)]
            return Choice(models[worth.index(max(worth))], STUBBED, 1.0, self.name)
        self.standing.refresh()
        return self.chosen(models, facts)

    @abstractmethod
    def chosen(self, models: Sequence[Model], facts: Facts) -> Choice:
        """As `among`, by what was learned."""

    @abstractmethod
    def take(self, given: Graded, score: float) -> None:
        """Learn from a grade. Raises ValueError where the context is not this kind's."""

    def compare(self, better: Graded, worse: Graded) -> None:
        self.grade(better, 1.0)
        self.grade(worse, 0.0)

    def prices(self, models: Sequence[Model], facts: Facts) -> list[float]:
        """What each of `models` costs, weighed: `cost` for the dearest."""
        return weighed(self.cost, models, facts)


class ClassLearner(Learner):
    """A learner that keeps sums of each candidate in each class of requests. The context is the name of the class."""

    def __init__(self, pick: Pick, params: ClassParams, shared: Shared) -> None:
        super().__init__(pick, params, shared)
        self._by_template = params.per == "template"
        self._stamp = (-1, -1, -1)
        self._worths: dict[str, dict[Model, float]] = {}

    def context(self, facts: Facts) -> str:
        if not self._by_template:
            return ""
        return f"{sum(facts.get(FRAME)) % CLASSES:02x}"

    @abstractmethod
    def valued(self, model: Model, sums: Sequence[float]) -> float:
        """How good a candidate is by its sums in a class: 0 to 1."""

    def worth(self, context: str, model: Model) -> float:
        """How good a candidate is in a class, by what was learned: 0 to 1."""
        return self.valued(model, self.known(context, model.key) or (0.0,) * self.sums)

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

    def worths(self, models: Sequence[Model], facts: Facts) -> list[float]:
        """That of each of `models`, less its weighed price."""
        stamp = self.standing.stamp()
        if stamp != self._stamp:
            self._stamp, self._worths = stamp, {}
        context = self.context(facts)
        found = self._worths.get(context)
        if found is None:
            found = self._worths[context] = {model: self.worth(context, model) for model in self.models}
        # Equals are those that differ by no more than the time between two grades makes them.
        prices = self.prices(models, facts)
        return [round(found[model] - price, 6) for model, price in zip(models, prices, strict=True)]

    def known(self, context: str, arm: str) -> Sequence[float] | None:
        """The sums of a candidate in a class; None where there are none."""
        return self.standing.told(f"{context}|{arm}")

    def put(self, given: Graded, amounts: Sequence[float]) -> None:
        """Add to the sums of a choice. Raises ValueError."""
        if type(given.context) is not str or len(given.context) > 2:
            raise ValueError("not the name of a class")
        self.standing.add(f"{given.context}|{given.arm}", amounts)


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
    costs = [model.cost(*tokens) for model in models]
    most = max(costs)
    return [weight * cost / most for cost in costs] if most > 0 else costs
