"""How many values a body holds is told alike wherever it is cut to be counted."""

from __future__ import annotations

import json
import random

import pytest

from extproc.bodies import jsonbody
from extproc.bodies.jsonbody import _too_many, values_at_most


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
