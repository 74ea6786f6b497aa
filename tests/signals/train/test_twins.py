"""The second reader's own texts: attacks and their harmless twins in many languages."""

from __future__ import annotations

import random

import pytest

pytest.importorskip("tqdm", reason="needs the extra `train`")

from signals.train.sources import written

KINDS = {"short", "twin", "told", "notice"}


def test_every_language_has_attacks_and_their_twins() -> None:
    chance = random.Random(3)
    languages = {name: section for name, section in written.sections().items() if name.startswith("twins ")}
    assert len(languages) >= 26
    assert sum({"told", "notice"} <= section.kinds.keys() for section in languages.values()) >= 15
    for name, section in languages.items():
        assert {"short", "twin"} <= section.kinds.keys() <= KINDS, name
        for kind in section.kinds:
            made = {section.make(kind, chance) for _ in range(40)}
            assert len(made) >= 2
            assert not any("{" in text or "}" in text for text in made), name
    assert len({languages["twins en"].make("short", chance) for _ in range(1000)}) > 600
