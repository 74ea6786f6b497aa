"""`time`: the hour and the day on which a request came."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Literal, Self
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator, model_validator

from signals.facts import Facts
from signals.reading import Reading, of
from signals.signal import Doubt, Params, Shared, Signal

Day = Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]
_DAYS: tuple[Day, ...] = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_CLOCK = re.compile(r"([01]\d|2[0-3]):([0-5]\d)|24:00")


class TimeParams(Params):
    """A span of the day, days of the week, or both."""

    between: list[str] | None = Field(
        None,
        min_length=2,
        max_length=2,
        description='From and to, as in ["22:00", "06:00"]; from is included, to is not; '
        "a later from means over midnight.",
    )
    days: list[Day] | None = Field(
        None,
        min_length=1,
        description="Days of the week (mon … sun). A span over midnight belongs to the day it begins on.",
    )
    timezone: str = Field("UTC", description="An IANA time zone such as Europe/Berlin.")

    @field_validator("between")
    @classmethod
    def _clocks(cls, between: list[str] | None) -> list[str] | None:
        for clock in between or ():
            if not _CLOCK.fullmatch(clock):
                raise ValueError(f"{clock!r} is not a time of day: write HH:MM, 00:00 to 24:00")
        if between and between[0] == between[1]:
            raise ValueError("from and to are the same; leave `between` out for the whole day")
        return between

    @field_validator("timezone")
    @classmethod
    def _zone(cls, timezone: str) -> str:
        try:
            ZoneInfo(timezone)
        except (KeyError, OSError, ValueError):
            raise ValueError(
                f"{timezone!r} is not an IANA time zone (Europe/Berlin, America/New_York, UTC …)"
            ) from None
        return timezone

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.between is None and self.days is None:
            raise ValueError("one of between, days is needed")
        return self

    def doubts(self) -> Iterator[Doubt]:
        whole = self.between in (None, ["00:00", "24:00"])
        if whole and (self.days is None or len(set(self.days)) == len(_DAYS)):
            yield Doubt(
                ("between",) if self.days is None else ("days",), "L322", "always holds: every hour of every day"
            )
        if self.timezone.startswith("Etc/GMT") and self.timezone[7:8] in ("+", "-"):
            message = (
                f"{self.timezone} is UTC{'-' if self.timezone[7] == '+' else '+'}{self.timezone[8:]}: the sign of "
            )
            message += "these zones is turned round, and they know no summer time; name a city, such as Europe/Berlin"
            yield Doubt(("timezone",), "L334", message)
        elif self.timezone in ("EST", "MST", "HST"):
            message = f"{self.timezone} may not follow summer time: name a city, such as America/New_York"
            yield Doubt(("timezone",), "L334", message)


class Time(Signal):
    """Reads the local time at which the request came."""

    kind = "time"
    Parameters = TimeParams
    sure = True

    def __init__(self, name: str, params: TimeParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        start, end = map(_minutes, params.between) if params.between is not None else (0, 24 * 60)
        self._start, self._end = start, end
        self._days = frozenset(map(_DAYS.index, params.days or _DAYS))
        self._zone = ZoneInfo(params.timezone)

    def read(self, facts: Facts) -> Reading:
        now = datetime.fromtimestamp(facts.request.received, self._zone)
        minute = now.hour * 60 + now.minute
        if self._start < self._end:
            return of(self._start <= minute < self._end and now.weekday() in self._days)
        if minute >= self._start:
            return of(now.weekday() in self._days)
        return of(minute < self._end and (now - timedelta(days=1)).weekday() in self._days)


def _minutes(clock: str) -> int:
    hours, minutes = clock.split(":")
    return int(hours) * 60 + int(minutes)
