"""The notes of a program and the plain prose that trainings learn from as harmless."""

from __future__ import annotations

import hashlib
import json
import random
import zipfile
from pathlib import Path

import pytest

pytest.importorskip("tqdm", reason="needs the extra `train`")

from signals.train.sources import assistant, written
from signals.train.sources.data import held


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Forty components in German, one in Welsh."""
    path = tmp_path / "homeassistant.whl"
    with zipfile.ZipFile(path, "w") as files:
        for number in range(40):
            told = {
                "title": "Zu kurz",
                "config": {
                    "step": {str(n): f"Bitte {{name}} Teil {number} von {n} <b>eingeben</b>." for n in range(5)}
                },
            }
            files.writestr(f"homeassistant/components/part{number}/translations/de.json", json.dumps(told))
        files.writestr(
            "homeassistant/components/part1/translations/cy.json", json.dumps({"a": "Rhowch y cyfrinair yma."})
        )
        files.writestr(
            "homeassistant/components/part1/strings.json", json.dumps({"a": "This is no translation at all."})
        )
    monkeypatch.setattr(assistant, "SHA256", hashlib.sha256(path.read_bytes()).hexdigest())
    assistant.told.cache_clear()
    return path


def test_what_is_held_out_is_of_other_components(wheel: Path) -> None:
    parts = [list(assistant.notes(wheel, random.Random(1), 30, held_out)) for held_out in (False, True)]
    assert all(parts)
    for held_out, found in zip((False, True), parts, strict=True):
        assert {language for _, language in found} == {"de"}  # of Welsh there is too little
        assert len({text for text, _ in found}) == len(found) <= 30
        numbers = {text.split(" Teil ")[1].split()[0] for text, _ in found}
        assert {held(f"part{number}") for number in numbers} == {held_out}
        assert not any(sign in text for text, _ in found for sign in ("{name}", "<b>", "Zu kurz"))


def test_another_wheel_is_refused(wheel: Path) -> None:
    wheel.write_bytes(wheel.read_bytes() + b" ")
    assistant.told.cache_clear()
    with pytest.raises(SystemExit, match=r"not homeassistant 2026\.2\.3"):
        list(assistant.notes(wheel, random.Random(1), 30))


def test_prose_and_logs_are_varied_and_filled() -> None:
    for made in (written.prose, written.logs):
        texts = list(made(random.Random(1), 500))
        assert len(set(texts)) > 400
        assert not any(sign in text for text in texts for sign in ("{t}", "{n}", " | ", "prose:"))
    assert any("\n" not in text for text in written.prose(random.Random(2), 50))
