"""The estimate of a text's tokens depends neither on where the text is cut nor on how its bytes are added."""

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


@pytest.mark.parametrize("size", [1, 2, 3, 63, 64, 65, 255, 256, 257, 900, 901])
def test_bytes_are_added_alike_with_numpy_and_without(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    draw = random.Random(size)
    text = "".join(draw.choice("abc XYZ 123\n\n.,{}\u00e4\u00df\u65e5\u672c\u8a9e") for _ in range(size))
    counts = []
    for short in (0, 1_000_000):
        monkeypatch.setattr(estimate, "_SHORT", short)
        for cut in (64 * 1024, 100):
            monkeypatch.setattr(estimate, "_SLICE", cut)
            counts.append(estimate.ByteWeights().count(text))
    assert counts == [counts[0]] * 4
