"""Writes the trained heads, the embedding and the segment head as one ONNX graph with small integer tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from signals.neural.features import STYLE

F32 = NDArray[np.float32]
OPSET = 17


@dataclass(slots=True)
class Weights:
    """Everything that the graph holds. wide [rows, K] already times the entries' weights, table [words, d], inner and
    outer (matrix, bias) of the deep part, domain_of: the domain of each of the first columns, parts [rows, 2] and
    parts_bias [2] of the direct and the planted head over spans, weight [rows] of the entries, slopes and shifts of the
    calibration by head. length: (class, share, slope, shift): in that class of the domain head, `share` of difficulty's
    logit gives way to slope x length + shift."""

    wide: F32
    table: F32
    inner: tuple[F32, F32]
    outer: tuple[F32, F32]
    slices: dict[str, slice]
    domain_of: Sequence[int]
    parts: F32
    parts_bias: F32
    weight: F32
    calibration: dict[str, tuple[float, float]]
    length: tuple[int, float, float, float]


def quantise(table: F32) -> tuple[NDArray[np.int8], F32]:
    """int8 values and a float32 step for each column; what few values lie far out are clipped."""
    top = np.maximum(np.quantile(np.abs(table), 0.99995, axis=0), 1e-6)
    step = (top / 127).astype(np.float32)
    return np.clip(np.rint(table / step), -127, 127).astype(np.int8), step


class _Graph:
    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, value: NDArray[np.generic]) -> str:
        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.array(value, order="C"), name))
        return name

    def add(self, operator: str, *inputs: str, out: str = "", **attributes: Any) -> str:
        name = out or f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [name], **attributes))
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, np.int64))

    def number(self, value: float) -> str:
        return self.constant(np.array(value, np.float32))


def build(weights: Weights) -> onnx.ModelProto:
    """The graph. Inputs: rows int32 [b, n] and words int32 [b, m] (padded with 0), scale float32 [b, 1], style float32
    [b, 7], flat int32 [p], spans int32 [s, 2] into flat. Outputs: probabilities float32 by head, embedding float32
    [b, d] of length 1, parts float32 [s, 2] (direct, planted)."""
    graph = _Graph()
    add, constant = graph.add, graph.constant

    def bag(table: F32, ids: str) -> str:
        values, step = quantise(table)
        picked = add("Cast", add("Gather", constant(values), ids, axis=0), to=TensorProto.FLOAT)
        return add("Mul", add("ReduceSum", picked, graph.ints(1), keepdims=0), constant(step))

    wide = add("Mul", bag(weights.wide, "rows"), "scale")
    sums = bag(weights.table, "words")
    length = add("Add", add("ReduceL2", sums, axes=[1], keepdims=1), graph.number(1e-6))
    add("Div", sums, length, out="embedding")
    seen = add("Concat", "embedding", "style", axis=1)
    hidden = add("Relu", add("Gemm", seen, constant(weights.inner[0].T), constant(weights.inner[1])))
    logits = add("Add", wide, add("Gemm", hidden, constant(weights.outer[0].T), constant(weights.outer[1])))

    def columns(source: str, first: int, last: int) -> str:
        return add("Slice", source, graph.ints(first), graph.ints(last), graph.ints(1))

    for head, part in weights.slices.items():
        slope, shift = weights.calibration.get(head, (1.0, 0.0))
        picked = columns(logits, part.start, part.stop)
        if head == "difficulty":
            index, share, by_length, start = weights.length
            chance = columns("subjects", index, index + 1)
            line = add(
                "Add", add("Mul", columns("style", STYLE - 1, STYLE), graph.number(by_length)), graph.number(start)
            )
            less = add("Mul", picked, graph.number(-share))
            picked = add("Add", picked, add("Mul", chance, add("Add", line, less)))
        picked = add("Mul", picked, graph.number(slope))
        if head == "domain":
            subjects = add("Softmax", picked, axis=1, out="subjects")
            gather = np.zeros((len(weights.domain_of), max(weights.domain_of) + 1), np.float32)
            gather[np.arange(len(weights.domain_of)), weights.domain_of] = 1
            add("MatMul", subjects, constant(gather), out="domain")
        elif part.stop - part.start == 1:
            flat = add("Add", picked, graph.number(shift))
            add("Sigmoid", add("Squeeze", flat, graph.ints(1)), out=head)
        else:
            add("Softmax", picked, axis=1, out=head)
    together = np.concatenate((weights.parts, (weights.weight**2)[:, None]), 1).astype(np.float16)
    together[0] = 0
    picked = add("Cast", add("Gather", constant(together), "flat", axis=0), to=TensorProto.FLOAT)
    running = add("CumSum", picked, constant(np.array(0, np.int64)))
    running = add("Concat", constant(np.zeros((1, 3), np.float32)), running, axis=0)
    ends = [add("Gather", "spans", constant(np.array(i, np.int64)), axis=1) for i in (0, 1)]
    inside = add("Sub", add("Gather", running, ends[1], axis=0), add("Gather", running, ends[0], axis=0))
    size = add("Sqrt", add("Max", columns(inside, 2, 3), graph.number(1.0)))
    scores = add("Add", add("Div", columns(inside, 0, 2), size), constant(weights.parts_bias))
    slopes = np.array([weights.calibration.get(name, (1.0, 0.0)) for name in ("jailbreak", "planted")], np.float32)
    scores = add("Add", add("Mul", scores, constant(slopes[:, 0])), constant(slopes[:, 1]))
    add("Sigmoid", scores, out="parts")

    def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [
        value("rows", TensorProto.INT32, "b", "n"),
        value("scale", TensorProto.FLOAT, "b", 1),
        value("words", TensorProto.INT32, "b", "m"),
        value("style", TensorProto.FLOAT, "b", STYLE),
        value("flat", TensorProto.INT32, "p"),
        value("spans", TensorProto.INT32, "s", 2),
    ]
    outputs = [value("domain", TensorProto.FLOAT, "b", max(weights.domain_of) + 1)]
    for head, part in weights.slices.items():
        if head != "domain":
            size_of = part.stop - part.start
            outputs.append(value(head, TensorProto.FLOAT, "b", *((size_of,) if size_of > 1 else ())))
    outputs.append(value("embedding", TensorProto.FLOAT, "b", weights.table.shape[1]))
    outputs.append(value("parts", TensorProto.FLOAT, "s", 2))
    model = helper.make_model(
        helper.make_graph(graph.nodes, "pointsman", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="pointsman",
    )
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def save(model: onnx.ModelProto, labels: dict[str, Sequence[str]], path: Path) -> None:
    """The graph with the names of the classes (`head` to comma-separated labels) in its metadata."""
    helper.set_model_props(model, {head: ",".join(names) for head, names in labels.items()})
    data = f"{path.name}.data"
    (path.parent / data).unlink(missing_ok=True)  # onnx would append to it
    # The tables lie beside the graph: ONNX Runtime maps them, so that only the rows in use take memory, once for all
    # workers.
    onnx.save(model, path, save_as_external_data=True, location=data, size_threshold=4096)
