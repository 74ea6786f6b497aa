from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signals.path import MISSING, look_up, parse_path
from tests.signals.help import build, complaint, matched, reading, request

FIELDS: dict[str, Any] = {
    "reasoning_effort": "high",
    "max_tokens": 2000,
    "temperature": 0.0,
    "stream": True,
    "user": None,
    "metadata": {"tier": "gold", "a.b": {"c d": 1}},
    "messages": [{"role": "system"}, {"role": "user"}],
}


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"path": "reasoning_effort", "equals": "high"}, True),
        ({"path": "reasoning_effort", "equals": "low"}, False),
        ({"path": "reasoning_effort", "in": ["medium", "high"]}, True),
        ({"path": "max_tokens", "at_least": 1000}, True),
        ({"path": "max_tokens", "at_most": 1999.5}, False),
        ({"path": "max_tokens", "at_least": 1, "at_most": 2000}, True),
        ({"path": "max_tokens", "equals": 2000.0}, True),
        ({"path": "temperature", "equals": False}, False),
        ({"path": "temperature", "equals": 0}, True),
        ({"path": "stream", "equals": True}, True),
        ({"path": "stream", "equals": 1}, False),
        ({"path": "stream", "at_least": 0}, False),
        ({"path": "user", "exists": True}, True),
        ({"path": "nothing", "exists": True}, False),
        ({"path": "nothing", "exists": False}, True),
        ({"path": "nothing", "equals": "x"}, False),
        ({"path": "metadata.tier", "matches": "^go"}, True),
        ({"path": "max_tokens", "matches": "2"}, False),
        ({"path": 'metadata["a.b"]["c d"]', "equals": 1}, True),
        ({"path": "messages[0].role", "equals": "system"}, True),
        ({"path": "messages[-1].role", "equals": "user"}, True),
        ({"path": "messages[2].role", "exists": True}, False),
        ({"path": "messages.role", "exists": True}, False),
        ({"path": "metadata[0]", "exists": True}, False),
        ({"path": "metadata", "equals": "gold"}, False),
    ],
)
def test_parameter(params: dict[str, Any], expected: bool) -> None:
    assert matched("parameter", request("hi", fields=FIELDS), **params) is expected


def test_the_score_is_the_number() -> None:
    assert reading(build("parameter", path="max_tokens", at_least=5000), request("", fields=FIELDS)).score == 2000.0


@pytest.mark.parametrize("path", ["", ".a", "a..b", "a.", "a[", "a[x]", "a]", "[0]b", "a b"])
def test_what_is_no_path_is_refused(path: str) -> None:
    assert "path" in complaint("parameter", path=path, exists=True)


@given(
    st.lists(
        st.integers(0, 3)
        | st.text(st.characters(exclude_characters="\"'", exclude_categories=["Cs"]), min_size=1, max_size=3),
        min_size=1,
        max_size=4,
    )
)
def test_a_path_leads_where_it_says(steps: list[int | str]) -> None:
    value: Any = "goal"
    for step in reversed(steps):
        value = {step: value} if isinstance(step, str) else [None] * step + [value]
    path = "".join(f"[{step}]" if isinstance(step, int) else f'["{step}"]' for step in steps)
    assert parse_path(path) == tuple(steps)
    assert look_up(value, parse_path(path)) == "goal"
    assert look_up(value, (*parse_path(path), "further")) is MISSING


def test_wrong_parameters_are_explained() -> None:
    assert "exactly one of" in complaint("parameter", path="a")
    assert "exactly one of" in complaint("parameter", path="a", equals=1, at_least=2)
    assert "greater than" in complaint("parameter", path="a", at_least=2, at_most=1)
    assert "not an RE2 expression" in complaint("parameter", path="a", matches="(")
