from __future__ import annotations

from typing import Any

import pytest

from signals.request import Message
from tests.signals.help import build, complaint, reading, request


def share(percent: float, keys: int = 4000, called: str = "it", **params: Any) -> set[int]:
    signal = build("sample", called=called, percent=percent, key={"header": "X-Id"}, **params)
    return {i for i in range(keys) if reading(signal, request("", headers={"x-id": f"user-{i}"})).matched}


@pytest.mark.parametrize("percent", [0, 1, 10, 50, 100])
def test_the_share_is_what_it_says(percent: float) -> None:
    found = len(share(percent)) / 4000
    # Five standard deviations; the hash is fixed, so this never varies.
    assert found == pytest.approx(percent / 100, abs=5 * (percent / 100 * (1 - percent / 100) / 4000) ** 0.5)


def test_a_larger_share_contains_the_smaller() -> None:
    assert share(5) < share(10) < share(50)


def test_salts_part_and_join() -> None:
    assert share(50, called="a") == share(50, called="a")
    assert share(50, called="a") == share(50, called="b", salt="a")
    both = len(share(50, called="a") & share(50, called="b")) / 4000
    assert both == pytest.approx(0.25, abs=0.04)


def test_the_hash_never_changes() -> None:
    # A new version must not move anybody to the other side.
    assert sorted(share(50, keys=12)) == [1, 6, 7, 9]


@pytest.mark.parametrize(
    ("key", "given", "other", "same"),
    [
        ("user", request("a", fields={"user": "u"}), request("b", fields={"safety_identifier": "u"}), True),
        ("user", request("a", fields={"user": "u"}), request("b", fields={"metadata": {"user_id": "u"}}), True),
        (
            "session",
            request("a"),
            request(messages=[Message("user", "a"), Message("assistant", "x"), Message("user", "b")]),
            True,
        ),
        ("session", request("a", headers={"x-session-id": "s"}), request("b", headers={"x-session-id": "s"}), True),
        ("session", request("a"), request("b"), False),
        ("body", request("a", body=b"1"), request("a", body=b"1"), True),
        ("body", request("a", body=b"1"), request("a", body=b"2"), False),
    ],
)
def test_keys(key: str, given: Any, other: Any, same: bool) -> None:
    sides = []
    for salt in range(64):
        signal = build("sample", percent=50, key=key, salt=str(salt))
        sides.append(reading(signal, given).matched == reading(signal, other).matched)
    assert all(sides) is same


@pytest.mark.parametrize(
    ("key", "given"),
    [
        ("user", request("a", fields={"user": 7, "metadata": []})),
        ("session", request()),
        ("body", request("a", body=b"")),
        ({"header": "x-id"}, request("a")),
    ],
)
def test_no_key_is_unknown(key: Any, given: Any) -> None:
    assert reading(build("sample", percent=100, key=key), given).error == "no_key"


def test_wrong_parameters_are_explained() -> None:
    assert "less than or equal to 100" in complaint("sample", percent=101)
    assert "key" in complaint("sample", percent=1, key="colour")
