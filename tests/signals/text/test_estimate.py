"""The estimate of a text's tokens does not depend on where the text is cut to be read."""

from __future__ import annotations

import random

import pytest

from signals.text import estimate


@pytest.mark.parametrize("size", [1, 5, 4_096, 4_097, 20_000])
def test_a_long_text_is_counted_as_if_it_were_read_at_once(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(size)
    text = "".join(draw.choice("abc XYZ 123\n\n.,{}\u00e4\u00df\u65e5\u672c\u8a9e") for _ in range(size))
    whole = estimate.ByteWeights().count(text)
    monkeypatch.setattr(estimate, "_SLICE", 64)
    assert estimate.ByteWeights().count(text) == whole
    assert whole > 0
