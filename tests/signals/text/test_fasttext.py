"""Our reader of fastText models gives the library's answers, and says what is wrong with any other file."""

from __future__ import annotations

import re
import struct
from pathlib import Path

import pytest

from signals.kinds.language import MODEL, clean, sample
from signals.text.fasttext import FastText
from tests.linear import assert_linear
from tests.signals.help import data
from tests.volume import few_and_many


@pytest.fixture(scope="module")
def model() -> FastText:
    return FastText(MODEL)


@pytest.mark.slow
@few_and_many(500, 6000)
def test_it_answers_as_the_library_does(model: FastText, examples: int) -> None:
    library = pytest.importorskip("fasttext", reason="fasttext-predict has no wheel for this Python")
    peer = library.load_model(str(MODEL)).f
    lines = [clean(sample(row["text"])) for row in data("language/sentences")]
    lines += ["a", "ß", "ab " * 300, "ñ" * 500, "日本語 english ру́сский", "\U0001f600 x", "na\u0308ive"]
    lines = [line for line in lines if line]
    assert len(lines) > 5000
    lines = lines[:: max(1, len(lines) // examples)]
    # A score within rounding of a step of the library's sigmoid may fall on the other side of it.
    steps = 0
    for line in lines:
        answers = peer.predict(f"{line}\n", 99, 0.0, "strict")
        wanted = {label.removeprefix("__label__"): score for score, label in answers}
        found = dict(model.likeliest(line, 99))
        assert found.keys() == wanted.keys(), line
        best, _ = model.likeliest(line, 1)[0]
        assert wanted[best] == pytest.approx(max(wanted.values()), abs=1e-4), line
        steps += any(abs(found[label] - score) > 1e-4 for label, score in wanted.items())
        assert found == pytest.approx(wanted, abs=0.009), line
    assert steps <= max(1, len(lines) / 500)


def test_the_best_come_first(model: FastText) -> None:
    found = model.likeliest("könntest du mir das bitte erklären", 5)
    assert [label for label, _ in found][:1] == ["de"]
    assert len(found) == 5
    assert [score for _, score in found] == sorted((score for _, score in found), reverse=True)


def test_nothing_known_has_no_label(model: FastText) -> None:
    assert model.likeliest("", 5) == []
    assert model.likeliest(" \t ", 5) == []


def test_a_line_takes_time_that_is_linear_in_its_length(model: FastText) -> None:
    assert_linear(lambda size: "zwölf " * (size // 6), lambda line: model.likeliest(line, 5))
    assert_linear(lambda size: "ö" * size, lambda line: model.likeliest(line, 5))


@pytest.mark.parametrize("size", [0, 7, 8, 60, 100, 5_000, 200_000, 700_000, -4])
def test_a_file_that_ends_too_early_is_refused(tmp_path: Path, size: int) -> None:
    path = tmp_path / "short.ftz"
    path.write_bytes(MODEL.read_bytes()[:size])
    with pytest.raises(ValueError, match=re.escape(str(path)) + ": wrong file format"):
        FastText(path)


@pytest.mark.parametrize(
    ("at", "value", "why"),
    [
        (0, 1, "does not begin"),
        (4, 11, "does not begin"),
        (28, 2, "single words"),  # wordNgrams
        (32, 1, "the loss ova"),  # hierarchical softmax
        (40, 2**31 - 1, "buckets"),
        (64, 10, "contradict"),  # entries that are not words and labels together
        (84, 0, "not|negative|format"),  # no letter sequences
    ],
)
def test_what_a_model_says_of_itself_is_checked(tmp_path: Path, at: int, value: int, why: str) -> None:
    changed = bytearray(MODEL.read_bytes())
    struct.pack_into("<i", changed, at, value)
    path = tmp_path / "changed.ftz"
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=f"wrong file format: .*({why})"):
        FastText(path)
