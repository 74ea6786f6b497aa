"""Any Hugging Face folder with an ONNX file can be mounted; a wrong one is one clear error."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from signals.neural.folder import Folder, Mounted, Windows, load
from signals.neural.heads import ModelError
from signals.reading import Unavailable
from tests.signals.neural import models


def test_a_sequence_classifier_gives_probabilities(tmp_path: Path) -> None:
    model = Folder(models.mood(tmp_path / "m"), "sequence", "cpu")
    assert model.labels == ("good", "bad")
    assert len(model.digest) == 64
    good, both = (model.windows(model.encode(text)[0], 8, 4)[0][1] for text in ("good .", "good bad likes"))
    answers = model.run([good, both])
    assert answers[0][0] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-5)
    assert answers[1][0] == pytest.approx(0.5)


async def test_a_long_text_is_read_in_overlapping_windows(tmp_path: Path) -> None:
    mounted = Mounted(models.mood(tmp_path / "m"), "sequence", "cpu", 1, 1000)
    try:
        text = "likes " * 50 + "bad"
        chances, windows = await mounted.probabilities(text, time.monotonic() + 30, Windows(8, 4))
        assert windows == 12
        assert chances[1] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-5)
        mean, _ = await mounted.probabilities(text, time.monotonic() + 30, Windows(8, 4, mean=True))
        assert 0.5 < mean[1] < 0.6
    finally:
        mounted.close()


async def test_beyond_the_cap_is_unknown_not_cut(tmp_path: Path) -> None:
    mounted = Mounted(models.mood(tmp_path / "m"), "sequence", "cpu", 1, 20)
    try:
        await mounted.look("likes " * 20, time.monotonic() + 30)
        for text in ("likes " * 21, "x" * 2000):
            with pytest.raises(Unavailable, match="too_long"):
                await mounted.look(text, time.monotonic() + 30)
    finally:
        mounted.close()


async def test_a_token_classifier_gives_spans_of_the_text(tmp_path: Path) -> None:
    mounted = Mounted(models.names(tmp_path / "m"), "token", "cpu", 1, 1000)
    try:
        text = "good " * 11 + "ann lee likes paris ."
        found = await mounted.entities(text, time.monotonic() + 30)
        assert [(text[e.start : e.end], e.label) for e in found] == [("ann lee", "PER"), ("paris", "LOC")]
        assert all(e.score > 0.9 for e in found)
        assert await mounted.entities("", time.monotonic() + 30) == []
    finally:
        mounted.close()


def _without(name: str) -> Callable[[Path], object]:
    return lambda where: (where / name).unlink()


def _config(**changes: object) -> Callable[[Path], object]:
    def change(where: Path) -> object:
        file = where / "config.json"
        return file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


def _truncate(where: Path) -> object:
    file = where / "onnx" / "model.onnx"
    return file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (_without("onnx/model.onnx"), "has neither model.onnx nor onnx/model.onnx"),
        (_without("tokenizer.json"), "has no tokenizer.json"),
        (_without("config.json"), "has no config.json"),
        (_truncate, "cannot be loaded"),
        (lambda where: (where / "tokenizer.json").write_text("{"), "not a tokenizer"),
        (lambda where: (where / "config.json").write_text("["), "not readable as JSON"),
        (_config(id2label={"0": "a", "1": "b", "2": "c"}), "3 labels"),
        (_config(id2label={"1": "a", "2": "b"}), "id2label must name the classes"),
        (_config(id2label=None), "id2label must name the classes"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(tmp_path: Path, harm: Callable[[Path], object], complaint: str) -> None:
    where = models.mood(tmp_path / "m")
    harm(where)
    with pytest.raises(ModelError, match=complaint):
        Folder(where, "sequence", "cpu")


def test_a_sequence_model_is_no_token_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="gave shape"):
        Folder(models.mood(tmp_path / "m"), "token", "cpu")


def test_cuda_without_a_gpu_is_an_error(tmp_path: Path) -> None:
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has CUDA")
    with pytest.raises(ModelError, match="device: cuda"):
        Folder(models.mood(tmp_path / "m"), "sequence", "cuda")


def test_engines_share_a_model_until_its_files_change(tmp_path: Path) -> None:
    where = models.mood(tmp_path / "m")
    first = load(where, "sequence", "cpu", 1)
    assert load(where, "sequence", "cpu", 1) is first
    _config(max_position_embeddings=20)(where)
    assert load(where, "sequence", "cpu", 1) is not first
