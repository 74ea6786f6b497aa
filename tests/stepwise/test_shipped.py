"""The policies that ship in stepwise/models."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

import stepwise
from cli.main import main
from stepwise.policy import StepPolicy

MODELS = Path(stepwise.__path__[0]) / "models"
SHIPPED = sorted(MODELS.glob("*.onnx"))


def test_there_is_one_for_the_example_pair() -> None:
    card = StepPolicy(MODELS / "tinylm.onnx").card
    assert (card.small, card.large) == ("tinylm-small", "tinylm-large")
    assert any(row.kind == "accuracy_loss" for row in card.rows), "a promise to choose from"


def test_inspect_tells_what_it_promises_and_when_it_asks(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["stepwise", "inspect", str(MODELS / "tinylm.onnx")]) == 0
    out = capsys.readouterr().out
    assert "pair: tinylm-small and tinylm-large" in out
    assert "may ask the large model for a mark, by likelihood" in out
    absent = tmp_path / "absent.onnx"
    assert main(["stepwise", "inspect", str(absent)]) == 2
    said = f"pointsman stepwise inspect: {absent}: cannot read the policy file: No such file or directory\n"
    assert capsys.readouterr().err == said


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_the_page_beside_it_is_about_this_file(file: Path) -> None:
    page = file.with_suffix(".md").read_text()
    assert hashlib.sha256(file.read_bytes()).hexdigest() in page
