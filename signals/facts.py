"""What is known of one request so far: the request, derived inputs, readings. Each is computed at most once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from signals.reading import FALSE, Reading, Unavailable
from signals.request import Request

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class QuickInput(Protocol[T_co]):
    """A derived input that several signals share and that is computed in place (automaton hits, token count)."""

    def compute(self, facts: Facts) -> T_co: ...

    def __hash__(self) -> int: ...


class SlowInput(Protocol[T_co]):
    """A derived input that is awaited off the hot path (a model's output, a remote answer).

    `fetch` may raise `Unavailable`; whatever it raises makes the readings that need it Unknown.
    """

    async def fetch(self, facts: Facts) -> T_co: ...


class Facts:
    """What was found out about one request, each thing once.

    `deadline` is a `time.monotonic()` instant after which slow inputs are not worth having. `readings` holds the
    readings so far by signal name, in the order they were taken; `telling` those of them that are not simply `FALSE`,
    which is what metadata and metrics look at. `timings` holds microseconds per signal, when asked for. `shadow` says
    that another engine decides the request, so that nothing may be written to the store for it. `open` is what the
    named rules that are not settled yet (decisions.rule) remember, `tried` how often they have looked for what they
    said of an earlier request that was alike (below 0: they need not look again).
    """

    __slots__ = ("_memo", "_strict", "deadline", "open", "readings", "request", "shadow", "telling", "timings", "tried")

    def __init__(self, request: Request, deadline: float = float("inf"), timed: bool = False) -> None:
        self.request = request
        self.deadline = deadline
        self.readings: dict[str, Reading] = {}
        self.telling: dict[str, Reading] = {}
        self.timings: dict[str, float] | None = {} if timed else None
        self._memo: dict[Any, Any] = {}
        self._strict = timed
        self.shadow = False
        self.open: dict[str, tuple[int, dict[bool, set[str]]]] | None = None
        self.tried = 0

    @property
    def known(self) -> int:
        """How many things have been found out so far."""
        return len(self.readings) + len(self._memo)

    def copy(self) -> Facts:
        """The same facts, which from now on grow apart from these. Safe while another thread adds to these."""
        other = Facts(self.request, self.deadline)
        other.readings = self.readings.copy()
        other.telling = self.telling.copy()
        other.timings = None if self.timings is None else self.timings.copy()
        other._memo = self._memo.copy()
        other._strict = self._strict
        other.shadow = self.shadow
        return other

    def get(self, source: QuickInput[T]) -> T:
        """The value of a quick input, computed at the first call. A failure is remembered and raised again."""
        memo = self._memo
        value = memo.get(source, memo)
        if value is not memo:
            if value.__class__ is Unavailable:
                raise value
            return value  # type: ignore[no-any-return]
        try:
            value = memo[source] = source.compute(self)
        except Unavailable as error:
            memo[source] = error
            raise
        return value

    def stub(self, readings: Mapping[str, Reading]) -> None:
        """Use `readings` instead of asking their signals. From now on `silent` takes no readings."""
        self._strict = True
        self.readings.update(readings)
        self.telling.update({name: reading for name, reading in readings.items() if reading is not FALSE})

    def silent(self, readings: Mapping[str, Reading], telling: bool = False) -> None:
        """Take many readings at once, of signals that have not been read: one shared input has settled them all.

        In this way a policy with hundreds of keyword signals is read in one step when its automaton finds nothing.
        Nothing is taken when readings are timed or stubbed, since `explain` and policy tests show a signal only if it
        was asked for. `telling`: the readings are not simply `FALSE`.
        """
        if self._strict or self.request.sealed:  # what cannot be read may make each of them Unknown
            return
        self.readings.update(readings)
        if telling:
            self.telling.update(readings)

    def whole(self, names: frozenset[str]) -> bool:
        """Whether the signals of these names have been read, and what follows from them may be taken without being
        asked for, as `silent` says."""
        return not self._strict and names <= self.readings.keys()

    def put(self, source: SlowInput[T] | QuickInput[T], value: T | Unavailable) -> None:
        """Remember what `source` gave to whoever asked it, or why it gave nothing."""
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
