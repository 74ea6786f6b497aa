"""What every kind of selector is: it chooses which of several models takes a request (`pick: [...], by: ...`).

A kind is a subclass of `Selector` in a file of its own; the registry lists them all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple

from pydantic import BaseModel, ConfigDict

from decisions.candidates import able
from decisions.decision import Choice
from decisions.model import Model
from decisions.outcome import Outcome
from signals.facts import Facts, SlowInput
from signals.needs import NEEDS
from signals.signal import Doubt, Shared
from signals.state.standing import Standing

STANDS_IN: Final = "fallback of a model that lacks what is needed"
"""`Choice.why` of a model that is none of those chosen among."""
STAYED: Final = "the session's model"
"""`Choice.why` of a model that nobody has chosen anew for a session."""


class Graded(NamedTuple):
    """A choice whose answer is graded: the key of the candidate, what the selector knew of the request, and with which
    propensity it chose (None: it did not choose, for the session stayed on its model). `owner`: whose choices alone the
    grade counts for (`decisions.candidates.whose`); None: everybody's."""

    arm: str
    context: Any
    propensity: float | None = None
    owner: str | None = None


class Params(BaseModel):
    """Base of every kind's parameters: strict, immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False)

    def check(self, models: Sequence[str]) -> None:
        """Raises ValueError where the parameters do not fit the models chosen among, given by their keys."""

    def doubts(self, models: Sequence[Model]) -> Iterator[Doubt]:
        """What looks like a mistake although it is allowed, by the models chosen among."""
        yield from ()


@dataclass(frozen=True, slots=True, eq=False)
class Pick:
    """A choice of models as the policy has it. The linter looks at it, and its selector is built from it.

    `decision` is the name of the decision, `models` are those chosen among, in the policy's order. `sticky`: a session
    stays on its model.
    """

    decision: str
    models: tuple[Model, ...]
    kind: type[Selector]
    params: Params
    sticky: bool = False


class Selector(ABC):
    """Chooses one of its `models` for a request.

    Models that lack what the request needs (images, tools, …) are no choice, unless all of them do: then the first of
    the chosen one's fallbacks that has it takes the request, if there is one.

    `name` is what `by:` calls the kind, `about` one sentence on how it chooses, for the policy's schema. `beside` names
    the parameters that may stand beside `by: name`, for policies from before kinds had parameters of their own; `twice`
    says what to do about a model that stands in `pick` twice. `slow` has to be fetched before `choose`; `by_session`
    says that what is chosen depends on the session. One that `learns` is told what became of the requests that it has
    chosen for, off their path, and where it is `graded` how good their answers were; `watches_answers` says that the
    answers have to be looked at; `standing` is what a graded one has learned; of one tenant's grades `per_tenant` count
    for everybody, in a half-life of it. These seven may be set by an instance in its `__init__`, which raises OSError
    or ValueError where something that it needs cannot be had.
    """

    name: ClassVar[str]
    about: ClassVar[str]
    Parameters: ClassVar[type[Params]] = Params
    beside: ClassVar[tuple[str, ...]] = ()
    twice: ClassVar[str] = "remove one"
    slow: tuple[SlowInput[Any], ...] = ()
    by_session: bool = False
    learns: bool = False
    graded: bool = False
    watches_answers: bool = False
    standing: Standing | None = None
    per_tenant: int = 0

    def __init__(self, pick: Pick, params: Any, shared: Shared) -> None:
        self.models = tuple(dict.fromkeys(pick.models))
        self._all_able = all(model.capabilities is None for model in self.models)

    def choose(self, facts: Facts) -> Choice:
        """The model that takes the request, which is one of those given or one's fallback, and why."""
        if self._all_able:
            return self.among(self.models, facts)
        chosen = self.preferred(facts)
        model = able(chosen.model, facts)
        return chosen if model is chosen.model else chosen._replace(model=model, why=STANDS_IN)

    def preferred(self, facts: Facts) -> Choice:
        """The model that takes the request, if need be by a fallback; always one of those given."""
        if self._all_able:
            return self.among(self.models, facts)
        needs = facts.get(NEEDS)
        return self.among(tuple(model for model in self.models if not model.lacks(needs)) or self.models, facts)

    def context(self, facts: Facts) -> Any:
        """What a selector that learns has to know of a request once it is over, as JSON has it."""
        return None

    def learn(self, outcome: Outcome, choice: Choice) -> None:
        """What became of a request that `choice` was made for, by this selector or by the one before a reload."""
        raise NotImplementedError

    def grade(self, given: Graded, score: float) -> None:
        """The answer of a choice is worth `score`, 0 to 1. Raises ValueError where the context is not this kind's."""
        raise NotImplementedError

    def compare(self, better: Graded, worse: Graded) -> None:
        """The answer of one choice is better than that of another. Raises ValueError as `grade` does."""
        raise NotImplementedError

    def stub(self, facts: Facts, qualities: Mapping[str, float]) -> None:
        """Let `qualities` by candidate stand for what is known of them, for one request (policy tests). Raises
        ValueError where nothing is known of a quality here."""
        raise ValueError(f"`by: {self.name}` knows of no quality that could be stubbed")

    def stub_seconds(self, facts: Facts, seconds: Mapping[str, float]) -> None:
        """The same for the `seconds` that candidates are expected to take."""
        raise ValueError(f"`by: {self.name}` knows of no time that could be stubbed")

    @property
    def grades_by(self) -> str:
        """The kind that learns from grades: what it has learned is of no use to another."""
        return self.name

    async def take_in(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Learn for everybody what another `standing` like this one's knows. Raises ValueError and `Unavailable`, as
        that does."""
        raise NotImplementedError

    async def forget(self) -> None:
        """Begin anew. Raises `Unavailable`."""
        raise NotImplementedError

    async def settle(self) -> None:  # noqa: B027 - for most kinds it does at once
        """Wait until everything counts that it was told."""

    def summary(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        """Of each candidate by key how many grades count, and its quality by them (0 to 1), where `sums` are those of a
        `standing` like this one's."""
        raise NotImplementedError

    @abstractmethod
    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        """One of `models`, which are some of those given, at least one."""
