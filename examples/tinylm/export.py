"""Exports a trained model to ONNX: one graph for reading a prompt and for writing a token, cache in and cache out."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from torch import Tensor, nn

from examples.tinylm.model import TinyLM
from examples.tinylm.tokenizer import RECENT


class _Step(nn.Module):
    def __init__(self, model: TinyLM) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, positions: Tensor, past: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        return self.model.step(ids, positions, past, valid)


def export(model: TinyLM, path: Path) -> None:
    """Writes `model` to `path` (float32, opset 18); batch, time and cache length are free."""
    shape = model.shape
    past = torch.zeros(shape.layers, 2, 2, shape.heads, 3, model.dim)
    valid = torch.ones(2, 5, dtype=torch.bool)
    positions = torch.ones(2, 2, dtype=torch.int64)
    ids = torch.ones(2, RECENT + 2, dtype=torch.int64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own deprecation notes; the parity test is what counts
        torch.onnx.export(
            _Step(model.eval()), (ids, positions, past, valid), str(path), dynamo=False, opset_version=18,
            input_names=["ids", "positions", "past", "valid"], output_names=["logits", "present"],
            dynamic_axes={
                "ids": {0: "batch", 1: "recent_and_time"}, "positions": {0: "batch", 1: "time"},
                "past": {2: "batch", 4: "before"}, "valid": {0: "batch", 1: "all"},
                "logits": {0: "batch", 1: "time"}, "present": {2: "batch", 4: "all"},
            },
        )  # fmt: skip
