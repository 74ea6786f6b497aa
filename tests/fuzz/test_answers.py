"""A short run of the answers' fuzzer, and that it finds what there is to find."""

from __future__ import annotations

import pytest

from extproc.watching import messages, shape
from tests.fuzz import answers
from tests.fuzz.__main__ import damage


@pytest.mark.slow
@pytest.mark.no_cover
def test_disturbed_answers_are_read_or_refused() -> None:
    lines: list[str] = []
    assert answers.run(1_000, 11, damage, lines.append) == 0, "\n".join(lines)


@pytest.mark.volume
def test_many_disturbed_answers_are_read_or_refused() -> None:
    lines: list[str] = []
    assert answers.run(30_000, 12, damage, lines.append) == 0, "\n".join(lines)


@pytest.mark.slow
def test_a_hole_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    with monkeypatch.context() as patch:
        patch.setattr(shape, "SILENT", frozenset((*shape.SILENT, "text")))
        assert answers.run(500, 11, damage, lines.append) > 5
    assert "a marked text was not found" in lines[0]
    with monkeypatch.context() as patch:
        patch.setattr(messages, "_place", lambda fields: 1 // 0)
        assert answers.run(500, 11, damage, lines.append) > 5
    assert any("ZeroDivisionError" in line for line in lines)
