"""The outcome of a policy for one request, and the trace of how it came about."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from decisions.model import Model
from signals.reading import Reading
from upstream.writer import WriterSpec

Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


@dataclass(frozen=True, slots=True, eq=False)
class Changes:
    """What a decision's `set:` changes in the request. None leaves a field alone; `max_tokens` is a cap."""

    reasoning_effort: Effort | None = None
    thinking: bool | None = None
    thinking_budget: int | None = None
    max_tokens: int | None = None
    system: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def body(self) -> bool:
        """Whether the request's body changes."""
        fields = (self.reasoning_effort, self.thinking, self.thinking_budget, self.max_tokens, self.system)
        return any(value is not None for value in fields)


CacheScope = Literal["tenant", "user", "session", "all"]
"""Who shares kept answers."""


class Cache(NamedTuple):
    """What a decision's `cache:` keeps: answers for `ttl` seconds, for the same `scope` only. `any_temperature`: those
    of calls that leave something to chance, too. `similar`: how alike questions are that share an answer though they
    are put in another way, as the cosine of their embeddings; None: only the same letters do."""

    ttl: float = 3600.0
    scope: CacheScope = "tenant"
    any_temperature: bool = False
    similar: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Decision:
    """A named outcome with everything needed to act on it.

    `name` is None when no decision of the policy matched, or the request kept the model that it named. `action` is
    `route`, `respond`, `default`, or the name of the `writer`'s kind. `model` is None for `respond`, and for a request
    that is passed on untouched (`unknown_models: pass`). `writer` writes the answer instead of `model`, which takes the
    requests that the writer cannot answer. `fallback` says why the default model was taken although something failed (a
    closed set: it labels a metric); None in the normal case. `headers` go with the answer of a `respond`. `cache` says
    how answers are kept, None: they are not.
    """

    name: str | None
    action: str
    model: Model | None
    status: int | None = None
    message: str | None = None
    changes: Changes | None = None
    writer: WriterSpec | None = None
    fallback: str | None = None
    headers: tuple[tuple[str, str], ...] = ()
    cache: Cache | None = None


class Choice(NamedTuple):
    """Which of several models a selector took.

    `why` is a phrase of the kind's own fixed list, so that it can label a metric. `propensity` is the probability with
    which this selector takes this model for this request, over what it leaves to chance (above 0; 1.0 where it leaves
    nothing): logs of choices can be evaluated by it for another selector (Horvitz and Thompson, 1952). `by` is the name
    of the kind in the policy.
    """

    model: Model
    why: str
    propensity: float
    by: str


_NONE: Final[Mapping[str, Any]] = {}


made: Final = tuple.__new__
"""Makes a NamedTuple of all its fields in half the time: its own `__new__` is Python, and is never compiled."""


class Trace(NamedTuple):
    """Which rule saw which reading, in which order, at what cost. Explain, metrics, logs and tests are views of it.

    `readings` are the signals that were read, in order, `telling` those that are not simply false; `results` the
    rules evaluated, in order, with True, False or None (Unknown, or left open because it could no longer make a
    difference). `timings` are microseconds per signal, present when detail was asked for. `estimated_input_tokens` is
    for token rate limits and logs. `observed` are the guards that would have refused but only watch (`observe: true`).
    `kept`: the decision is that of an earlier request of the session (`sticky: session`). `lacking` are the candidates,
    by key, that cannot do what the request needs, and what they lack; the model that takes it all the same among them.
    `choice`: what a selector chose, where the decision leaves its model to one; `context`: what it has to know of the
    request to learn from what becomes of it.
    """

    decision: Decision
    policy: str
    readings: Mapping[str, Reading]
    results: Mapping[str, bool | None]
    microseconds: float
    timings: Mapping[str, float] | None = None
    estimated_input_tokens: int | None = None
    telling: Mapping[str, Reading] = _NONE
    observed: tuple[str, ...] = ()
    kept: bool = False
    lacking: Mapping[str, tuple[str, ...]] = _NONE
    choice: Choice | None = None
    context: Any = None
