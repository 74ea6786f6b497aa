"""The training of the table of meanings, on a language of three words."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from signals.neural.meanings import MeaningTable  # noqa: E402
from signals.train import meanings  # noqa: E402


def test_what_is_saved_is_what_was_learned(tmp_path: Path) -> None:
    table = torch.from_numpy(np.random.default_rng(1).normal(size=(3, meanings.WIDTH)).astype(np.float32))
    meanings.save(tmp_path / "m.npz", [" cat", " dog", " house"], table)
    loaded = MeaningTable(tmp_path / "m.npz")
    wanted = table[0] + table[2]
    found = loaded.meaning("Cat, house")
    assert found.known
    assert float(torch.nn.functional.normalize(wanted, dim=0) @ torch.from_numpy(found.vector)) > 0.98


def test_changed_texts_keep_their_language() -> None:
    known = [("one two three four five six", "en"), ("eins zwei drei vier fünf sechs", "de")]
    made = list(meanings.changed(known, random.Random(1)))
    assert len(made) == 2
    for text, language in made:
        assert set(text.split(" ")) <= set(dict(map(reversed, known))[language].split(" "))
