"""Who writes an answer instead of the plain route: the protocol, what a writer is asked, and what it is built with.

A decision of the policy names its writer by a key (`stepwise:`), whose value is that writer's own block. Adding a
writer takes one file, with a `WriterKind`, a `WriterSpec` and a `Writer`, and one line in `config.writers`.
"""

from __future__ import annotations

import pkgutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Final, NamedTuple, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from signals.metrics import MetricSample
from signals.reading import Reading
from signals.signal import Doubt
from signals.state.store import Store
from upstream.answer import Answer
from upstream.endpoint import JSON, Endpoint
from upstream.usage import Spent

_FORWARDED = (
    "authorization", "api-key", "x-api-key", "openai-organization", "openai-project", "traceparent", "tracestate",
    "baggage", "x-request-id", "x-session-id",
)  # fmt: skip

DIFFICULTY: Final = "difficulty"
"""The name of the signal whose score tells writers in advance how hard a call is."""

Charge = Callable[[Spent], None]
"""Who is told what an answer has taken."""

MOST_TOLD: Final = 100
"""Steps or calls of one answer that are told."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that a writer may answer, with everything that it needs for that.

    `body` is the client's call of the API `api` (see `extproc.requests.paths`), `headers` are the client's, in lower
    case. `deadline` is on the running loop's clock, None when there is none. `readings` are what the policy's signals
    said, by name. `session` is the key of the conversation (signals.state.session), for a writer that is `by_session`;
    '' when it is not known. `charge` is called once with what the answer has taken, even if it failed. `note`: a
    stream whose client asked for no usage has it in a comment, for the proxy that it passes.
    """

    body: JSON
    headers: Mapping[str, str]
    api: str = "chat"
    deadline: float | None = None
    readings: Mapping[str, Reading] = field(default_factory=dict)
    session: str = ""
    charge: Charge | None = None
    note: bool = False

    @property
    def forwarded(self) -> dict[str, str]:
        """The client's headers that the writer's requests to the models carry."""
        return {name: self.headers[name] for name in _FORWARDED if name in self.headers}

    @property
    def difficulty(self) -> float:
        """How hard the signal named `DIFFICULTY` finds the call, 0..1; 0.5 where nobody has read it."""
        reading = self.readings.get(DIFFICULTY)
        return 0.5 if reading is None or reading.score is None else reading.score


@dataclass(slots=True)
class WriterMetrics:
    """What the writers of one kind count. `ineligible`: requests that took the plain route, by their `unfit` reason."""

    ineligible: Counter[str] = field(default_factory=Counter)

    def samples(self) -> Iterator[MetricSample]:
        """Every counter as it stands, in the terms of the kind's `families`."""
        yield from ()


class Writer(Protocol):
    """Writes the answers of one decision. `start` it, `close` it at the end."""

    @property
    def kind(self) -> WriterKind: ...

    @property
    def by_session(self) -> bool:
        """Whether an answer depends on the session's earlier ones, so that `Call.session` must be worked out."""
        ...

    @property
    def problem(self) -> str | None:
        """Why it cannot answer as its decision says, for whoever runs it; None when it can, as far as it knows."""
        ...

    @property
    def metrics(self) -> WriterMetrics: ...

    def unfit(self, call: Call) -> str | None:
        """Why this call must take the decision's plain route, as one fixed word for counting; None when it can be
        answered."""
        ...

    async def start(self) -> None:
        """Does whatever takes time before the first answer. A failure is logged; it does not stop other writers."""
        ...

    async def answer(self, call: Call) -> Answer:
        """The answer to a call that is fit, before its first byte. Cancel at any moment: everything is freed."""
        ...

    async def close(self) -> None:
        """Close every connection. Answers still under way fail."""
        ...


class WriterParameter(NamedTuple):
    """One key of a writer's block that is one kind's own: its type, as pydantic takes it, and what it is.

    Kinds may share a key, which then has one type.
    """

    type: Any
    about: str


def parameter_fields(kinds: Iterable[Mapping[str, WriterParameter]]) -> dict[str, Any]:
    """The fields for the own keys of all `kinds`, as `pydantic.create_model` takes them. Each may be left out; one that
    several kinds share says what it is for each."""
    types: dict[str, Any] = {}
    about: dict[str, dict[str, None]] = {}
    for parameters in kinds:
        for name, each in parameters.items():
            types.setdefault(name, each.type)
            about.setdefault(name, {})[each.about] = None
    return {name: (types[name] | None, Field(None, description=" ".join(about[name]))) for name in types}


class Planned(NamedTuple):
    """A call of a model that an answer may take: which, what for, whether every answer takes it, and how often at
    most."""

    model: str
    why: str
    always: bool
    times: int = 1


class WriterSpec(BaseModel, ABC):
    """A writer's block in the policy: its parameters, and what the other rooms must know about them."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
    kind: ClassVar[WriterKind]

    @property
    @abstractmethod
    def models(self) -> tuple[str, ...]:
        """The models, by key, that this writer may call."""

    @property
    @abstractmethod
    def fallback(self) -> str:
        """The model, by key, of the plain route: it takes the calls that are unfit."""

    @property
    @abstractmethod
    def how(self) -> str:
        """What happens to a call, in one phrase for people: `answered step by step by …`."""

    @classmethod
    @abstractmethod
    def mentions(cls, data: Mapping[str, object]) -> Iterator[tuple[tuple[str | int, ...], object]]:
        """Where below the block, as it was read and before it is checked, a model is named, and what stands there."""

    def doubts(self) -> Iterator[Doubt]:
        """What is allowed but probably not meant."""
        yield from ()

    def check(self, folder: Path, names: Mapping[str, str]) -> None:
        """Raises ValueError or OSError where `build` would, for a reason that lies in the block or in a file that it
        names. `folder` is the policy file's; `names` are the models' names at their servers, by key."""
        return None

    def planned(self) -> tuple[Planned, ...]:
        """The calls that an answer may take, in their order, where that is known in advance; else none."""
        return ()

    def bars(self, headers: Mapping[str, str]) -> bool:
        """Whether the model of the plain route must not see a request with these headers (names in lower case)."""
        return False

    @abstractmethod
    def build(self, means: Means) -> Writer:
        """The writer, not yet started. Raises ValueError when it cannot work."""


@dataclass(frozen=True, slots=True)
class WriterKind:
    """One kind of writer, in a few words that cost nothing to load: its `runtime` is loaded by the first policy that
    uses it.

    `name` is its key in a decision, and the decision's action in every output. `about` describes the key in the
    policy's schema. `otherwise` completes "or the plain route where …". `runtime` names its `WriterSpec` as
    `module:class`. `families` are the counters of its metrics: name, help, labels. `headers` are the names of the
    response headers that it tells clients, beside `x-pointsman-model`.
    """

    name: str
    about: str
    otherwise: str
    runtime: str
    families: tuple[tuple[str, str, tuple[str, ...]], ...] = ()
    headers: tuple[str, ...] = ()

    def spec(self) -> type[WriterSpec]:
        """The class of its block, which brings all that it runs on."""
        found: object = pkgutil.resolve_name(self.runtime)
        assert isinstance(found, type)
        assert issubclass(found, WriterSpec)
        return found


class OneEach:
    """What several writers share: one object per class, made when it is first asked for."""

    def __init__(self) -> None:
        self._made: dict[type[object], object] = {}

    def of(self, kind: type[T]) -> T:
        """The object of this class."""
        made = self._made.get(kind)
        if made is None:
            made = self._made[kind] = kind()
        assert isinstance(made, kind)
        return made

    def samples(self) -> Iterator[MetricSample]:
        """The counters of all objects that have any."""
        for made in self._made.values():
            if isinstance(made, WriterMetrics):
                yield from made.samples()


@dataclass(frozen=True, slots=True)
class Means:
    """What a writer is built with.

    `endpoints`: by model key, those of the spec's `models`. `folder` is the policy file's. `store` is the replicas'
    common state (None: this process alone). `counters` outlive the policies; `common` belongs to those that came into
    force together.
    """

    endpoints: Mapping[str, Endpoint]
    folder: Path
    store: Store | None = None
    counters: OneEach = field(default_factory=OneEach)
    common: OneEach = field(default_factory=OneEach)
