"""What every kind of signal is, and what the kinds share when an engine is built."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol, TypeAlias, TypeVar, runtime_checkable

from pydantic import BaseModel, ConfigDict, Field

from signals.facts import Facts, SlowInput
from signals.reading import Reading, Span
from signals.request import Request, Scope
from signals.services import Services


class Cost(IntEnum):
    """How much a reading costs; the engine asks cheaper classes first.

    INSTANT: microseconds, in the event loop. FAST: at most a millisecond, in the event loop. NEURAL: a model, outside
    of the event loop. REMOTE: another service.
    """

    INSTANT = 0
    FAST = 1
    NEURAL = 2
    REMOTE = 3


class Lazily(Protocol):
    """How a derived signal is read that need not have all of its inputs."""

    def take(self, facts: Facts) -> Reading | None:
        """The reading, remembered in `facts`; None while it waits for slow inputs."""
        ...

    def unread(self, facts: Facts) -> set[str]:
        """The signals with slow inputs to fetch before there can be a reading."""
        ...


class Doubt(NamedTuple):
    """Parameters that can be used but probably do not do what their author meant.

    `path` is their place below the parameters, `code` one of config.problem.CODES, `message` what happens and what to
    do.
    """

    path: tuple[str | int, ...]
    code: str
    message: str


Ends: TypeAlias = tuple[float | None, float | None]
"""The two ends of a range of numbers; None where it has none."""


class Params(BaseModel):
    """Base of every kind's parameters: strict, immutable, unknown keys refused."""

    # The check of a kind's parameters is made when a policy first has that kind: few have more than a handful.
    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, hide_input_in_errors=True, allow_inf_nan=False, defer_build=True
    )

    def inputs(self) -> tuple[str, ...]:
        """The names of other signals that this one combines."""
        return ()

    def bounds(self) -> Ends | None:
        """The least and the greatest score with which the signal matches, where nothing else decides; else None.

        A kind that returns bounds must give every known reading a score, and signals whose parameters differ only in
        `at_least` and `at_most` the same score. The linter then sees that one of them implies another.
        """
        return None

    def needs(self) -> frozenset[str]:
        """The capabilities (signals.needs) that every request needs for which the signal matches."""
        return frozenset()

    def span(self) -> Ends:
        """The least and the greatest score that there can be; None where there is no end. The linter then finds bounds
        within which every score lies, and bounds within which none does."""
        return None, None

    def combined(self, spans: Mapping[str, Ends]) -> Ends:
        """As `span`, of a signal that combines others: `spans` are theirs, by name."""
        return self.span()

    def ranges(self) -> Mapping[str, Ends] | None:
        """Where the score decides on the label: the labels that there are, each with the least score that has it and
        the one from which on another has it (None: no end). None where something else decides. The linter then finds
        tests of labels that never hold, and knows how tests of the score and of the label hang together."""
        return None

    def label_names(self) -> Sequence[str] | None:
        """The labels that readings can have, where the parameters say them."""
        ranges = self.ranges()
        return None if ranges is None else tuple(ranges)

    def unreached(self, low: float | None, high: float | None) -> Iterator[Doubt]:
        """The labels that no score from `low` to `high` (None: no end) has."""
        yield from ()

    def named_headers(self) -> tuple[str, ...]:
        """The request headers that the signal reads, in small letters."""
        return ()

    def named_models(self) -> Mapping[str, str]:
        """The models that the signal is about: the parameter that names each, and its key in the policy."""
        return {}

    def doubts(self) -> Iterator[Doubt]:
        """What looks like a mistake although it is allowed."""
        yield from ()

    def scopes(self) -> tuple[Scope, ...]:
        """The texts of the request that the signal reads; none for one that reads something else."""
        return ()

    def placed(self) -> bool:
        """Whether the signal can say where in the text it has found something (`Signal.spans`)."""
        return False

    def longest(self) -> int | None:
        """The most characters of what a signal that is `placed` finds; None where that is not known."""
        return None


def within(default: Scope) -> Any:
    """The field `in:` of a kind that reads the text of one scope."""
    return Field(
        default,
        alias="in",
        description="The text to read: user (the last user message), latest (everything since the assistant's last "
        "answer: user text, tool results, documents), conversation (all but system messages), system, tools (tool "
        "results) or all (every string that the model may be shown); in decisions with `on: answer`: answer (what the "
        "model answers).",
    )


class TextParams(Params):
    """Parameters of a kind that reads the text of one scope."""

    in_: Scope = within("user")

    def scopes(self) -> tuple[Scope, ...]:
        return (self.in_,)


class SearchParams(TextParams):
    """Parameters of a kind that searches the text of one scope."""

    exact: bool = Field(
        False,
        description="Search the text only as it was written; left out, it is searched without disguises too "
        "(invisible, look-alike, full-width and typographic characters, words split over two parts of a message).",
    )


class Signal(ABC):
    """A named, configured detector. A kind is a subclass; the registry lists them all.

    `read` is synchronous, pure and quick. What takes longer is declared in `slow`: the gatherer awaits those inputs
    first (once per request, shared by all signals that name them) and `read` then finds them with `facts.got`.
    `inputs` names other signals whose readings this one combines (only derived kinds have any; `read` finds them
    in `facts.readings`); one that need not have all of these readings says in `lazily` how it is read, and `by_matches`
    says of one that only counts which of them match. `scored` says that readings carry a score that a rule may test,
    `labelled` that they carry a label, `sure` that they are never
    Unknown. `cost`, `slow` and `finds` may be set by an instance in its `__init__`.

    `spends` says that what a signal reads is the money that requests have cost. `answers` says that the kind can read
    what a model answers (`in: answer`), `whole` that it says something of a text as a whole, so that a few words
    tell it little, `timed` that it reads when the answers of models came, and with which status.

    `reads` are the scopes whose text the signal reads. Where some of that text cannot be read (token ids, references
    to what the upstream keeps, documents that are not text) the reading is Unknown (`unreadable`), unless the signal
    `finds`: then a match in a part of the text is one in the whole, and only "not found" is Unknown.
    """

    kind: ClassVar[str]
    Parameters: ClassVar[type[Params]]
    scored: ClassVar[bool] = False
    labelled: ClassVar[bool] = False
    sure: ClassVar[bool] = False
    spends: ClassVar[bool] = False
    answers: ClassVar[bool] = False
    whole: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    cost: Cost = Cost.INSTANT
    slow: tuple[SlowInput[Any], ...] = ()
    inputs: tuple[str, ...] = ()
    lazily: Lazily | None = None
    by_matches: bool = False
    finds: bool = False
    reads: tuple[Scope, ...] = ()

    def __init__(self, name: str, params: Any, shared: Shared) -> None:
        self.name = name
        self.params: Params = params
        self.reads = params.scopes()

    @abstractmethod
    def read(self, facts: Facts) -> Reading:
        """The reading for one request. May raise `Unavailable`; any exception becomes an Unknown reading."""

    def renewed(self, when: float) -> tuple[float, Reading] | None:
        """Of a signal that `spends`: how many seconds after `when` (since the epoch) its period begins anew, and what
        it reads then. None where it has no period."""
        return None

    def least(self, when: float) -> float | None:
        """Of a signal that `spends`: the least share that anyone has left in the period of `when`, as far as it has
        been read. None for all others."""
        return None

    def spans(self, facts: Facts) -> list[Span]:
        """Where the text holds what the signal, which is `placed`, has matched; in any order, overlapping ones too.

        May raise `Unavailable`.
        """
        raise NotImplementedError

    def silent(self, facts: Facts) -> bool:
        """Whether a signal that is `placed` has not even a candidate in the text, so that it would find nothing in any
        part of it either. False where that cannot be told at once."""
        return False


T = TypeVar("T")


@runtime_checkable
class Charges(Protocol):
    """A shared object that is told what answers cost: the ledger of budgets."""

    def charge(self, request: Request, money: float) -> None: ...


@runtime_checkable
class Freezes(Protocol):
    """A shared object that signals add to, and that takes its final form when the last one was built: an automaton."""

    def freeze(self) -> None:
        """Raises ValueError when what was added cannot be built together."""
        ...


@runtime_checkable
class Closes(Protocol):
    """A shared object that holds a thread or a connection: a model."""

    def close(self) -> None: ...


class Shared:
    """What the signals of one engine have in common: automata, pattern sets, models.

    `services` is what the process and the policy's settings give to signals. `use(factory, *args)` gives the same
    object for the same factory and arguments, so that all keyword signals end up in one automaton. An object may have
    the capabilities `Freezes`, `Closes` and `Charges`; it is asked for each when the engine is complete, when it ends,
    and when an answer has cost something.
    """

    def __init__(self, services: Services | None = None) -> None:
        self.services = services or Services()
        self._made: dict[Hashable, Any] = {}

    def use(self, factory: Callable[..., T], *args: Hashable) -> T:
        key = (factory, args)
        if key not in self._made:
            self._made[key] = factory(*args)
        made: T = self._made[key]
        return made

    def searcher(self, factory: Callable[[], T], scope: Scope) -> T:
        """What searches the texts of requests, or, for the scope `answer`, those of answers: two objects, so that what
        is looked for in answers makes no request slower."""
        key = (factory, scope == "answer")
        if key not in self._made:
            self._made[key] = factory()
        made: T = self._made[key]
        return made

    def freeze(self) -> None:
        """Call once, after the last signal was built. Raises ValueError as `Freezes.freeze` does."""
        for made in self._made.values():
            if isinstance(made, Freezes):
                made.freeze()

    @property
    def metered(self) -> bool:
        """Whether some shared object counts money."""
        return any(isinstance(made, Charges) for made in self._made.values())

    def charge(self, request: Request, money: float) -> None:
        """Tell those shared objects what `request` has cost."""
        for made in self._made.values():
            if isinstance(made, Charges):
                made.charge(request, money)

    def close(self) -> None:
        """Release the threads and connections of shared objects. What the process owns (`services`) stays."""
        for made in self._made.values():
            if isinstance(made, Closes):
                made.close()
