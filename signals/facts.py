"""What is known of one request so far: the request, derived inputs, readings. Each is computed at most once."""

from __future__ import annotations

from typing import Any, Protocol, TypeVar

from signals.reading import Reading, Unavailable
from signals.request import Request

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class QuickInput(Protocol[T_co]):
    """A derived input that several signals share and that is computed in place (automaton hits, token count)."""

    def compute(self, facts: Facts) -> T_co: ...


class SlowInput(Protocol[T_co]):
    """A derived input that is awaited off the hot path (a model's output, a remote answer).

    `fetch` may raise `Unavailable`; whatever it raises makes the readings that need it Unknown.
    """

    async def fetch(self, facts: Facts) -> T_co: ...


class Facts:
    """One request's memo.

    `deadline` is a `time.monotonic()` instant after which slow inputs are not worth having. `readings` holds the
    readings so far by signal name, in the order they were taken. `timings` holds microseconds a signal, when asked.
    """

    __slots__ = ("_memo", "deadline", "readings", "request", "timings")

    def __init__(self, request: Request, deadline: float = float("inf"), timed: bool = False) -> None:
        self.request = request
        self.deadline = deadline
        self.readings: dict[str, Reading] = {}
        self.timings: dict[str, float] | None = {} if timed else None
        self._memo: dict[Any, Any] = {}

    def get(self, source: QuickInput[T]) -> T:
        """The value of a quick input, computed at the first call. A failure is remembered and raised again."""
        memo = self._memo
        if source in memo:
            value = memo[source]
            if value.__class__ is Unavailable:
                raise value
            return value  # type: ignore[no-any-return]
        try:
            value = memo[source] = source.compute(self)
        except Unavailable as error:
            memo[source] = error
            raise
        return value

    def silent(self, readings: dict[str, Reading]) -> None:
        """Take many readings at once: those of signals that one shared input has found to be false.

        A policy of hundreds of keyword signals is read in one step so, when its automaton finds nothing. Not when
        readings are timed: `explain` shows each signal only if it was asked for. Readings that are there stay.
        """
        if self.timings is not None:
            return
        before = dict(self.readings)
        self.readings.update(readings)
        self.readings.update(before)

    def put(self, source: SlowInput[T], value: T | Unavailable) -> None:
        """Remember what `source.fetch` gave, or why it gave nothing."""
        self._memo[source] = value

    def has(self, source: object) -> bool:
        return source in self._memo

    def got(self, source: SlowInput[T]) -> T:
        """The value of a slow input that the gatherer has fetched; raises its `Unavailable` when it failed."""
        value = self._memo.get(source)
        if value is None:
            raise Unavailable("not_fetched")
        if value.__class__ is Unavailable:
            raise value
        return value  # type: ignore[no-any-return]
