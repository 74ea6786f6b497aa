"""The shipped table of meanings: what it holds, and that its cosines go with what people say."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from signals.neural.heads import ModelError
from signals.neural.meanings import TABLE, MeaningTable

PAIRS = Path("tests/data/alike.tsv")


@pytest.fixture(scope="module")
def model() -> MeaningTable:
    return MeaningTable()


def test_the_card_is_that_of_the_file() -> None:
    assert hashlib.sha256(TABLE.read_bytes()).hexdigest() in TABLE.with_suffix(".md").read_text()


def test_all_shipped_models_together_have_forty_megabytes() -> None:
    assert sum(path.stat().st_size for path in TABLE.parent.rglob("*") if path.is_file()) <= 40_000_000


def test_cosines_go_with_the_marks_of_people(model: MeaningTable) -> None:
    made: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for line in PAIRS.read_text().splitlines():
        language, mark, *texts = line.split("\t")
        one, other = (model.meaning(text).vector for text in texts)
        made[language].append((float(mark), float(one @ other)))
    found = {language: np.corrcoef(np.array(values).T)[0, 1] for language, values in made.items()}
    assert found.keys() == {"en", "de", "es", "zh", "fr", "ja"}
    assert min(found.values()) >= 0.6, found


def test_a_question_in_another_language_is_near(model: MeaningTable) -> None:
    asked = model.meaning("How do I reset my password?").vector
    near = model.meaning("¿Cómo restablezco mi contraseña?").vector
    far = model.meaning("La reina visitó Escocia en mayo.").vector
    assert asked @ near > asked @ far + 0.2


def test_damaged_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "meanings.npz"
    for data in (b"", b"PK\x03\x04", TABLE.read_bytes()[:5000]):
        path.write_bytes(data)
        with pytest.raises(ModelError, match="damaged"):
            MeaningTable(path)
    np.savez(path, pieces=np.frombuffer(b"a\nb", np.uint8), halves=np.zeros((3, 2), np.uint8), scales=np.ones(2))
    with pytest.raises(ModelError, match="belong together"):
        MeaningTable(path)
