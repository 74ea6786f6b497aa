"""How many values and strings a body holds is told alike wherever it is cut to be counted."""

from __future__ import annotations

import json
import random

import pytest

from extproc.bodies import jsonbody
from extproc.bodies.jsonbody import _too_many, load, unambiguous, values_at_most
from extproc.refusal import Refusal


@pytest.mark.parametrize("part", [1, 2, 3, 7, 64])
def test_values_are_counted_alike_wherever_a_body_is_cut(part: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(part)
    bodies = []
    for _ in range(200):
        words = ["".join(draw.choices('a\\",[{\u00e9', k=draw.randrange(12))) for _ in range(draw.randrange(1, 6))]
        bodies.append(json.dumps({"a": words, "b": {"c": [1, {}, []]}}, ensure_ascii=draw.random() < 0.5).encode())
    monkeypatch.setattr(jsonbody, "_PART", part)
    for body in bodies:
        bare = "".join(json.dumps(json.loads(body)).replace("\\\\", "").replace('\\"', "").split('"')[::2]).encode()
        values = values_at_most(bare)
        quotes = body.replace(b"\\\\", b"").replace(b'\\"', b"").count(b'"')
        assert quotes <= 4 * (values - 1)
        assert _too_many(body, values - 1)
        assert not _too_many(body, values)


@pytest.mark.parametrize("size", [10, 300_000])
@pytest.mark.parametrize("escaped", [r"\"", r"\\", r"\u0022", r"\n", "x"])
def test_a_key_that_stands_twice_is_found_in_long_bodies_as_in_short_ones(size: int, escaped: str) -> None:
    text = escaped * (size // len(escaped) + 1)
    for body, twice in (
        ('{"a": {"k": "%s", "l": 1}}', False),
        ('{"a": {"k": "%s", "k": 1}}', True),
        ('{"a": {"k": 1, "k": "%s"}}', True),
        ('{"a": {"k": "%s", "l": "k"}}', False),
    ):
        given = (body % text).encode()
        found = None
        try:
            unambiguous(given, load(given, 1_000), None)
        except Refusal as refusal:
            found = refusal.code
        assert found == ("duplicate_key" if twice else None)
