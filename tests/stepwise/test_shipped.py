"""The policies that ship in stepwise/models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import stepwise
from stepwise.policy import StepPolicy

MODELS = Path(stepwise.__path__[0]) / "models"
SHIPPED = sorted(MODELS.glob("*.onnx"))


def test_there_is_one_for_the_example_pair() -> None:
    card = StepPolicy(MODELS / "tinylm.onnx").card
    assert (card.small, card.large) == ("tinylm-small", "tinylm-large")
    assert any(row.kind == "accuracy_loss" for row in card.rows), "a promise to choose from"


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_page_beside_it_is_about_this_file(file: Path) -> None:
    page = file.with_suffix(".md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in page
