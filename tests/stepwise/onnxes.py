"""Tiny policy networks, built node by node."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from stepwise import features

ROWS = [
    {"kind": "accuracy_loss", "target": 0.01, "kappa": 0.8, "delta": 0.1},
    {"kind": "accuracy_loss", "target": 0.05, "kappa": 0.5, "delta": 0.1},
    {"kind": "cost", "target": 0.4, "kappa": 0.6, "delta": 0.1},
]


def metadata(names: Sequence[str] = features.NAMES, **changes: object) -> dict[str, str]:
    """A policy file's metadata; a change to None leaves the key out."""
    values: dict[str, object] = {
        "format": "1",
        "features": json.dumps(list(names)),
        "features_version": str(features.VERSION),
        "pair": json.dumps({"small": "tiny", "large": "huge"}),
        "steps": json.dumps({"min_tokens": 1, "max_tokens": 512}),
        "kappa": json.dumps(ROWS),
        "calibration_size": "500",
        "commit": "0123abc",
        **changes,
    }
    return {f"pointsman.{key}": str(value) for key, value in values.items() if value is not None}


def write(
    path: Path,
    *,
    names: Sequence[str] = features.NAMES,
    weights: Mapping[str, float] | None = None,
    bias: float = 0.0,
    mean: Mapping[str, float] | None = None,
    hidden: int = 0,
    meta: dict[str, str] | None = None,
    outputs: Sequence[str] = ("keep",),
) -> Path:
    """keep = sigmoid(weights · (features - mean) + bias [+ the sum of hidden]); hidden_out = hidden + 1."""
    width = len(names)
    column = np.zeros((width, 1), np.float32)
    for name, value in (weights or {}).items():
        column[list(names).index(name)] = value
    centre = np.array([(mean or {}).get(name, 0.0) for name in names], np.float32)
    nodes = [
        helper.make_node("Sub", ["features", "mean"], ["centred"]),
        helper.make_node("MatMul", ["centred", "weights"], ["product"]),
        helper.make_node("Squeeze", ["product", "axis"], ["flat"]),
        helper.make_node("Add", ["flat", "bias"], ["logit"]),
    ]
    inputs = [helper.make_tensor_value_info("features", TensorProto.FLOAT, ["batch", width])]
    outs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch"]) for name in outputs]
    constants = {
        "mean": centre,
        "weights": column,
        "bias": np.array(bias, np.float32),
        "axis": np.array([1], np.int64),
        "one": np.array(1.0, np.float32),
    }
    last = "logit"
    if hidden:
        inputs.append(helper.make_tensor_value_info("hidden", TensorProto.FLOAT, ["batch", hidden]))
        outs.append(helper.make_tensor_value_info("hidden_out", TensorProto.FLOAT, ["batch", hidden]))
        nodes += [
            helper.make_node("ReduceSum", ["hidden", "axis"], ["total"], keepdims=0),
            helper.make_node("Add", ["logit", "total"], ["remembered"]),
            helper.make_node("Add", ["hidden", "one"], ["hidden_out"]),
        ]
        last = "remembered"
    nodes += [helper.make_node("Sigmoid", [last], [name]) for name in outputs]
    graph = helper.make_graph(
        nodes, "policy", inputs, outs, [onnx.numpy_helper.from_array(value, name) for name, value in constants.items()]
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, metadata(names) if meta is None else meta)
    onnx.save(model, str(path))
    return path
