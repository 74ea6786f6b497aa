from __future__ import annotations

import pytest

from tests.signals.help import complaint, matched, request

GIVEN = request("hi", headers={"x-tier": "gold", "x-empty": ""})


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "X-Tier", "equals": "gold"}, True),
        ({"name": "x-tier", "equals": "Gold"}, False),
        ({"name": "x-tier", "in": ["silver", "gold"]}, True),
        ({"name": "x-tier", "in": ["silver"]}, False),
        ({"name": "x-tier", "matches": "^g.*d$"}, True),
        ({"name": "x-tier", "matches": "^d"}, False),
        ({"name": "x-tier", "exists": True}, True),
        ({"name": "x-none", "exists": True}, False),
        ({"name": "x-none", "exists": False}, True),
        ({"name": "x-none", "equals": "gold"}, False),
        ({"name": "x-none", "matches": ""}, False),
        ({"name": "x-empty", "exists": True}, True),
    ],
)
def test_header(params: dict[str, object], expected: bool) -> None:
    if params.get("matches") == "":
        params = params | {"matches": "^"}
    assert matched("header", GIVEN, **params) is expected


def test_wrong_parameters_are_explained() -> None:
    assert "exactly one of" in complaint("header", name="x")
    assert "exactly one of" in complaint("header", name="x", equals="a", exists=True)
    assert "not an RE2 expression" in complaint("header", name="x", matches="(")
    assert "at least 1" in complaint("header", name="", equals="a")
    assert "at least 1" in complaint("header", name="x", **{"in": []})
