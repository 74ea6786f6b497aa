from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.signals.help import complaint, matched, request

BERLIN = ZoneInfo("Europe/Berlin")


def at(*when: int, zone: ZoneInfo = BERLIN, fold: int = 0) -> Any:
    return request("", received=datetime(*when, tzinfo=zone, fold=fold).timestamp())  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ((2026, 3, 2, 8, 59), False),
        ((2026, 3, 2, 9, 0), True),
        ((2026, 3, 2, 17, 29), True),
        ((2026, 3, 2, 17, 30), False),
    ],
)
def test_from_is_included_and_to_is_not(when: tuple[int, ...], expected: bool) -> None:
    assert matched("time", at(*when), between=["09:00", "17:30"], timezone="Europe/Berlin") is expected


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ((2026, 3, 6, 21, 59), False),
        ((2026, 3, 6, 22, 0), True),  # Friday
        ((2026, 3, 7, 5, 59), True),  # Saturday morning belongs to Friday's night
        ((2026, 3, 7, 6, 0), False),
        ((2026, 3, 7, 23, 0), False),  # Saturday
        ((2026, 3, 6, 3, 0), False),  # Thursday's night
    ],
)
def test_a_span_over_midnight_belongs_to_the_day_it_begins_on(when: tuple[int, ...], expected: bool) -> None:
    assert matched("time", at(*when), between=["22:00", "06:00"], days=["fri"], timezone="Europe/Berlin") is expected


def test_days_alone_and_the_end_of_the_day() -> None:
    assert matched("time", at(2026, 3, 7, 12, 0), days=["sat", "sun"], timezone="Europe/Berlin") is True
    assert matched("time", at(2026, 3, 9, 12, 0), days=["sat", "sun"], timezone="Europe/Berlin") is False
    assert matched("time", at(2026, 3, 9, 23, 59), between=["23:00", "24:00"], timezone="Europe/Berlin") is True


def test_clocks_that_change() -> None:
    night = {"between": ["02:00", "03:00"], "timezone": "Europe/Berlin"}
    # On 29 March 2026 the hour from two to three is missing, on 25 October it comes twice.
    before, after = at(2026, 3, 29, 1, 59), at(2026, 3, 29, 3, 0)
    assert after.received - before.received == 60
    assert (matched("time", before, **night), matched("time", after, **night)) == (False, False)
    first, second = at(2026, 10, 25, 2, 30), at(2026, 10, 25, 2, 30, fold=1)
    assert second.received - first.received == 3600
    assert (matched("time", first, **night), matched("time", second, **night)) == (True, True)


def test_the_zone_counts() -> None:
    noon = at(2026, 7, 1, 12, 0, zone=ZoneInfo("UTC"))
    assert matched("time", noon, between=["12:00", "13:00"]) is True
    assert matched("time", noon, between=["14:00", "15:00"], timezone="Europe/Berlin") is True
    assert matched("time", noon, between=["08:00", "09:00"], timezone="America/New_York") is True


def test_wrong_parameters_are_explained() -> None:
    assert "one of between, days" in complaint("time")
    assert "not a time of day" in complaint("time", between=["9:00", "10:00"])
    assert "not a time of day" in complaint("time", between=["09:00", "25:00"])
    assert "are the same" in complaint("time", between=["09:00", "09:00"])
    assert "at least 2 items" in complaint("time", between=["09:00"])
    assert "not an IANA time zone" in complaint("time", days=["mon"], timezone="Mars/Base")
    assert "not an IANA time zone" in complaint("time", days=["mon"], timezone="../etc/passwd")
    assert "Input should be" in complaint("time", days=["monday"])
