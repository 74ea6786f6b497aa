"""Any Hugging Face folder with an ONNX file can be mounted; a wrong one is one clear error."""

from __future__ import annotations

import asyncio
import json
import os
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from signals.neural.folder import Folder, Mounted, Windows, load
from signals.neural.heads import ModelError
from signals.neural.service import Limits
from signals.reading import Unavailable
from signals.services import Services
from tests.patience import PATIENCE
from tests.signals.neural import models

CPU = Services(device="cpu")


def test_a_sequence_classifier_gives_probabilities(tmp_path: Path) -> None:
    model = Folder(models.mood(tmp_path / "m"), "sequence", "cpu")
    assert model.labels == ("good", "bad")
    assert len(model.digest) == 64
    good, both = (model.windows(model.encode(text)[0], 8, 4)[0][1] for text in ("good .", "good bad likes"))
    answers = model.run([good, both])
    assert answers[0][0] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-5)
    assert answers[1][0] == pytest.approx(0.5)


async def test_a_long_text_is_read_in_overlapping_windows(tmp_path: Path) -> None:
    mounted = Mounted(models.mood(tmp_path / "m"), "sequence", replace(CPU, max_input_tokens=1000))
    try:
        text = "likes " * 50 + "bad"
        chances, windows = await mounted.probabilities(text, time.monotonic() + PATIENCE, Windows(8, 4))
        assert windows == 12
        assert chances[1] == pytest.approx(1 / (1 + np.exp(-4)), abs=1e-5)
        mean, _ = await mounted.probabilities(text, time.monotonic() + PATIENCE, Windows(8, 4, mean=True))
        assert 0.5 < mean[1] < 0.6
    finally:
        mounted.close()


async def test_beyond_the_cap_is_unknown_not_cut(tmp_path: Path) -> None:
    mounted = Mounted(models.mood(tmp_path / "m"), "sequence", replace(CPU, max_input_tokens=20))
    try:
        await mounted.look("likes " * 20, time.monotonic() + PATIENCE)
        for text in ("likes " * 21, "x" * 2000):
            with pytest.raises(Unavailable, match="too_long"):
                await mounted.look(text, time.monotonic() + PATIENCE)
    finally:
        mounted.close()


async def test_a_long_text_is_cut_into_tokens_off_the_event_loop(tmp_path: Path) -> None:
    mounted = Mounted(models.names(tmp_path / "m"), "token", replace(CPU, max_input_tokens=2000))
    seen: list[tuple[str, int]] = []
    encode = mounted.model._tokenizer.encode

    class Tokenizer:
        def encode(self, text: str, **given: bool) -> object:
            seen.append((threading.current_thread().name, len(text)))
            return encode(text, **given)

    mounted.model._tokenizer = Tokenizer()
    try:
        for text in ("ann lee " * 5, "ann lee " * 500):
            found = await mounted.entities(text, time.monotonic() + PATIENCE, "10.0.0.1")
            assert [entity.label for entity in found] == ["PER"] * text.count("ann")
        with pytest.raises(Unavailable, match="too_long"):
            await mounted.look("ann " * 2001, time.monotonic() + PATIENCE)
        assert seen == [("MainThread", 40), ("model-m-tokens", 4000), ("model-m-tokens", 8004)]
    finally:
        mounted.close()


async def test_a_text_that_lost_a_window_wants_no_other(tmp_path: Path) -> None:
    narrow = replace(CPU, max_input_tokens=1000, limits=Limits(queue=3, batch=1))
    mounted = Mounted(models.mood(tmp_path / "m"), "sequence", narrow)
    try:
        with pytest.raises(Unavailable, match="overloaded"):
            await mounted.look("likes " * 200, time.monotonic() + PATIENCE)
        await asyncio.sleep(0)
        assert not mounted.service._waiting
        _, [(at, answer)] = await mounted.look("good", time.monotonic() + PATIENCE)
        assert at == 0
        assert answer[0] > 0.9
    finally:
        mounted.close()


async def test_a_token_classifier_gives_spans_of_the_text(tmp_path: Path) -> None:
    mounted = Mounted(models.names(tmp_path / "m"), "token", replace(CPU, max_input_tokens=1000))
    try:
        text = "good " * 11 + "ann lee likes paris ."
        found = await mounted.entities(text, time.monotonic() + PATIENCE)
        assert [(text[e.start : e.end], e.label) for e in found] == [("ann lee", "PER"), ("paris", "LOC")]
        assert all(e.score > 0.9 for e in found)
        assert await mounted.entities("", time.monotonic() + PATIENCE) == []
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


_BAD = [1_000_000_000, 10**12, 10**30, -1, 1.5, "7", True, [], float("nan")]
_NAMES = ["onnx/model.onnx", "tokenizer.json", "config.json", "1_Pooling/config.json"]
_ODD = {"device": "neither|not a regular file", "pipe": "neither|not a regular file", "huge": "larger than"}


def _odd(name: str, kind: str) -> Callable[[Path], object]:
    """In the place of a file something that never ends, never comes, or is a terabyte of nothing."""

    def change(where: Path) -> None:
        file = where / name
        file.parent.mkdir(exist_ok=True)
        file.unlink(missing_ok=True)
        if kind == "device":
            file.symlink_to("/dev/zero")
        elif kind == "pipe":
            os.mkfifo(file)
        else:
            with file.open("wb") as made:
                made.truncate(1 << 40)

    return change


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
        (_config(id2label={"0": "good", "1": "a\r\nb"}), r"id2label: 'a\\r\\nb' is not a label's name"),
        *((_config(pad_token_id=bad), "pad_token_id: .* is not a whole number from 0 to 10$") for bad in _BAD),
        *((_config(max_position_embeddings=bad), "max_position_embeddings: .* is not a whole num") for bad in _BAD[1:]),
        *((_config(vocab_size=bad), "vocab_size: .* is not a whole number") for bad in _BAD[1:]),
        (_config(max_position_embeddings=0), "max_position_embeddings: 0 leaves no place"),
        (_config(max_position_embeddings=2), "max_position_embeddings: 2 leaves no place"),
        (_config(model_type="roberta", pad_token_id=9), "max_position_embeddings: 10 leaves no place .* the 12 posi"),
        (lambda where: (where / "config.json").write_text("[" * 100_000), "not readable as JSON"),
        (lambda where: (where / "config.json").write_text('{"pad_token_id": 1' + "0" * 5000 + "}"), "not readable"),
        *((_odd(name, kind), complaint) for name in _NAMES for kind, complaint in _ODD.items()),
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
    first = load(where, "sequence", CPU)
    assert load(where, "sequence", CPU) is first
    _config(max_position_embeddings=20)(where)
    assert load(where, "sequence", CPU) is not first
    assert load(where, "sequence", Services(device="cpu")) is not load(where, "sequence", CPU)
