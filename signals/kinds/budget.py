"""`budget`: what a tenant, a user or a session has left to spend."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Literal

from pydantic import Field

from signals.bounds import Bounds, header_name, idle
from signals.facts import Facts
from signals.reading import Reading, Unavailable
from signals.request import Request
from signals.services import Services
from signals.signal import Cost, Doubt, Params, Shared, Signal

PERIODS = {"hour": 3600.0, "day": 86400.0, "month": 31 * 86400.0, "session": 7 * 86400.0}

Period = Literal["hour", "day", "month", "session"]


class BudgetParams(Params):
    """How much, for whom, how often, and when it matches."""

    header: str | None = Field(
        None,
        min_length=1,
        description="The trusted header that names who pays (Envoy must set it); left out, the session pays.",
    )
    limit: float = Field(gt=0, description="Money for one period, in the unit of the models' prices.")
    per: Period = Field("day", description="The period: `hour`, `day` or `month` (UTC), or `session` (no period).")
    remaining: Bounds = Field(
        Bounds(at_most=0.0),
        description="The share of the limit that is left, from 1 (all) to 0: `at_least`, `at_most`.",
    )

    def named_headers(self) -> tuple[str, ...]:
        return () if self.header is None else (self.header.lower(),)

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1

    def doubts(self) -> Iterator[Doubt]:
        yield from idle(self.remaining, 0, 1, "remaining")
        if self.header is not None:
            yield from header_name(self.header, "header")


class Ledger:
    """What each payer of one kind has spent in the current period: a slow input, since the store may be remote."""

    def __init__(self, services: Services, header: str | None, per: Period) -> None:
        self._store = services.store
        self._sessions = services.sessions
        self._header = header
        self._per = per

    async def fetch(self, facts: Facts) -> float:
        """Money spent so far. Raises `Unavailable`: `no_identity` when nobody is named, `store_down`."""
        key = self._key(facts.request)
        if key is None:
            raise Unavailable("no_identity")
        return await self._store.number(key)

    def charge(self, request: Request, money: float) -> None:
        """Count what `request` has cost."""
        key = self._key(request)
        if key is not None and money > 0:
            self._store.add(key, money, PERIODS[self._per] * 2)

    def _key(self, request: Request) -> str | None:
        if self._header is None:
            who = self._sessions.key(request)
        elif (payer := request.headers.get(self._header)) is not None and payer:
            # Hashed: a tenant's name has no business in a shared store.
            who = hashlib.blake2b(payer.encode(errors="surrogatepass"), digest_size=16).hexdigest()
        else:
            who = ""
        return f"budget:{self._header or 'session'}:{self._bucket(request.received)}:{who}" if who else None

    def ends(self, when: float) -> float | None:
        """Seconds from `when` to the end of its period; None for a session."""
        if self._per == "session":
            return None
        if self._per != "month":
            return PERIODS[self._per] - when % PERIODS[self._per]
        now = datetime.fromtimestamp(when, UTC)
        first = datetime(now.year + now.month // 12, now.month % 12 + 1, 1, tzinfo=UTC)
        return first.timestamp() - when

    def _bucket(self, when: float) -> str:
        form = {"hour": "%Y%m%d%H", "day": "%Y%m%d", "month": "%Y%m", "session": "session"}[self._per]
        return datetime.fromtimestamp(when, UTC).strftime(form)


class Budget(Signal):
    """Reads the share of the limit that is left: score 1 (nothing spent) to 0. Unknown: `no_identity`, `store_down`.

    The cost of a request is counted when its answer has ended, so requests that run at the same time may together
    overspend by their cost.
    """

    kind = "budget"
    spends = True
    Parameters = BudgetParams
    scored = True
    cost = Cost.REMOTE

    def __init__(self, name: str, params: BudgetParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        header = None if params.header is None else params.header.lower()
        self._ledger = shared.use(Ledger, shared.services, header, params.per)
        self.slow = (self._ledger,)
        self._limit = params.limit
        self._remaining = params.remaining
        self._least = (0.0, 1.0)  # until when, and the least share so far

    def read(self, facts: Facts) -> Reading:
        left = max(0.0, 1.0 - facts.got(self._ledger) / self._limit)
        when = facts.request.received
        ends = self._ledger.ends(when)
        hour = PERIODS["hour"]  # a session has no end: it is watched by the hour
        self._least = (when + (hour - when % hour if ends is None else ends), min(left, self.least(when)))
        return Reading(self._remaining.hold(left), left)

    def renewed(self, when: float) -> tuple[float, Reading] | None:
        seconds = self._ledger.ends(when)
        return None if seconds is None else (seconds, Reading(self._remaining.hold(1.0), 1.0))

    def least(self, when: float) -> float:
        until, least = self._least
        return least if when < until else 1.0
