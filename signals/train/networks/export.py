"""Writes the trained heads, the embedding and the segment head as one ONNX graph with small integer tables."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
    calibration by head. drift: what windows and segments lose for each unit of the logarithm of
    their number."""

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
    drift: tuple[float, float] = (0.0, 0.0)


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


CHANCES: Final = ("reasoning", "jailbreak", "fact_check")
"""The heads of one logit, in the order in which the graph gives their probabilities."""


def build(weights: Weights) -> onnx.ModelProto:
    """The graph. Inputs: rows int64 [b, n] and words int32 [b, m] (padded with 0), scale float32 [b, 1], style float32
    [b, 7], flat int32 [4, p], spans int32 [s, 2] of first and one past the last of the p. Outputs, float32: chances
    [b, 3] (see CHANCES), domain, feedback and modality [b, classes], embedding [b, d] of length 1, parts [s, 2]
    (direct, planted), logits. Calibration is folded into the weights."""
    graph = _Graph()
    add, constant = graph.add, graph.constant
    slope, shift = np.ones(weights.wide.shape[1], np.float32), np.zeros(weights.wide.shape[1], np.float32)
    for head, part in weights.slices.items():
        slope[part], shift[part] = weights.calibration.get(head, (1.0, 0.0))

    def bag(table: F32, ids: str, factor: F32) -> str:
        """The sum of the table's rows, float32 [b, columns] times `factor`: ones times rows, all of small integers."""
        values, step = quantise(table)
        ones = add(
            "ConstantOfShape",
            add("Shape", ids, start=1),
            value=helper.make_tensor("", TensorProto.UINT8, [1], [1]),
        )
        total = add("MatMulInteger", ones, add("Gather", constant(values), ids, axis=0))
        return add("Mul", add("Cast", total, to=TensorProto.FLOAT), constant(step * factor))

    wide = add("Mul", bag(weights.wide, "rows", slope), "scale")
    sums = bag(weights.table, "words", np.ones(weights.table.shape[1], np.float32))
    length = add("Add", add("ReduceL2", sums, axes=[1], keepdims=1), graph.number(1e-6))
    add("Div", sums, length, out="embedding")
    seen = add("Concat", "embedding", "style", axis=1)
    hidden = add("Relu", add("Gemm", seen, constant(weights.inner[0].T), constant(weights.inner[1])))
    outer, bias = weights.outer[0].T * slope, weights.outer[1] * slope + shift
    logits = add("Add", wide, add("Gemm", hidden, constant(outer), constant(bias.astype(np.float32))))

    sizes = [part.stop - part.start for part in weights.slices.values()]
    names = [f"logits_{head}" for head in weights.slices]
    graph.nodes.append(helper.make_node("Split", [logits, graph.ints(*sizes)], names, axis=1))
    subjects = add("Softmax", "logits_domain", axis=1)
    gather = np.zeros((len(weights.domain_of), max(weights.domain_of) + 1), np.float32)
    gather[np.arange(len(weights.domain_of)), weights.domain_of] = 1
    add("MatMul", subjects, constant(gather), out="domain")
    add("Sigmoid", add("Concat", *(f"logits_{head}" for head in CHANCES), axis=1), out="chances")
    for head in ("feedback", "modality"):
        add("Softmax", f"logits_{head}", axis=1, out=head)

    # Sums over spans of words: differences of running sums. The third column is the square of a span's length.
    together, added = spans(weights)
    picked = add("Cast", add("Gather", constant(together), "flat", axis=0), to=TensorProto.FLOAT)
    running = add("CumSum", add("ReduceSum", picked, graph.ints(0), keepdims=0), constant(np.array(0, np.int64)))
    running = add("Concat", constant(np.zeros((1, 3), np.float32)), running, axis=0)
    graph.nodes.append(helper.make_node("Split", [add("Gather", running, "spans", axis=0)], ["first", "last"], axis=1))
    inside = add("Squeeze", add("Sub", "last", "first"), graph.ints(1))
    graph.nodes.append(helper.make_node("Split", [inside, graph.ints(2, 1)], ["hits", "squares"], axis=1))
    size = add("Sqrt", add("Max", "squares", graph.number(1.0)))
    scores = add("Add", add("Div", "hits", size), constant(added))
    add("Identity", scores, out="parts")

    def value(name: str, kind: int, *shape: str | int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, kind, shape)

    inputs = [
        value("rows", TensorProto.INT64, "b", "n"),
        value("scale", TensorProto.FLOAT, "b", 1),
        value("words", TensorProto.INT32, "b", "m"),
        value("style", TensorProto.FLOAT, "b", STYLE),
        value("flat", TensorProto.INT32, 4, "p"),
        value("spans", TensorProto.INT32, "s", 2),
    ]
    outputs = [
        value("chances", TensorProto.FLOAT, "b", len(CHANCES)),
        value("domain", TensorProto.FLOAT, "b", max(weights.domain_of) + 1),
        *(
            value(head, TensorProto.FLOAT, "b", weights.slices[head].stop - weights.slices[head].start)
            for head in ("feedback", "modality")
        ),
        value("embedding", TensorProto.FLOAT, "b", weights.table.shape[1]),
        value("parts", TensorProto.FLOAT, "s", 2),
    ]
    model = helper.make_model(
        helper.make_graph(graph.nodes, "pointsman", inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="pointsman",
    )
    model.ir_version = 9
    onnx.checker.check_model(model)
    return model


def word_vectors(path: Path) -> F32:
    """The word vectors float32 [words, d] in the graph at `path`: `build` adds their table and its steps right after
    the wide one and its."""
    values, steps = (numpy_helper.to_array(part) for part in onnx.load(path).graph.initializer[2:4])
    found: F32 = values.astype(np.float32) * steps
    return found


@dataclass(slots=True)
class Own:
    """A domain head with a network of its own. wide [rows, classes] already times the entries' weights; inner (matrix,
    bias) from the embedding and the style to its units, outer (matrix, bias) from there to the classes."""

    wide: F32
    inner: tuple[F32, F32]
    outer: tuple[F32, F32]

    def times(self, slope: float) -> Own:
        """The same with all logits times `slope`."""
        return Own(self.wide * slope, self.inner, (self.outer[0] * slope, self.outer[1] * slope))


def columns(model: onnx.ModelProto) -> dict[str, slice]:
    """Which columns of the graph's logits belong to which head."""
    split = next(node for node in model.graph.node if node.op_type == "Split" and "logits_domain" in node.output)
    sizes = next(numpy_helper.to_array(part) for part in model.graph.initializer if part.name == split.input[1])
    ends = np.cumsum(sizes).tolist()
    names = [name.removeprefix("logits_") for name in split.output]
    return {name: slice(end - size, end) for name, end, size in zip(names, ends, sizes.tolist(), strict=True)}


def graft(model: onnx.ModelProto, head: str, own: Own) -> None:
    """Puts `own` into the graph in place of one of its heads. The other heads stay as they are: units that they read
    are kept, and those of `own` come behind them."""
    mine = columns(model)[head]
    parts = {part.name: part for part in model.graph.initializer}
    first, second = (node.input[1:3] for node in model.graph.node if node.op_type == "Gemm")
    names = (*(part.name for part in model.graph.initializer[:2]), *first, *second)
    wide, step, inner, inner_bias, outer, bias = (np.array(numpy_helper.to_array(parts[name])) for name in names)
    wide[:, mine], step[mine] = quantise(own.wide)
    outer[:, mine] = 0
    read = outer.any(1)
    below = np.zeros((len(own.inner[1]), outer.shape[1]), np.float32)
    below[:, mine] = own.outer[0].T
    outer = np.concatenate((outer[read], below))
    bias[mine] = own.outer[1]
    inner = np.concatenate((inner[:, read], own.inner[0].T), 1)
    inner_bias = np.concatenate((inner_bias[read], own.inner[1]))
    for name, value in zip(names, (wide, step, inner, inner_bias, outer, bias), strict=True):
        parts[name].CopyFrom(numpy_helper.from_array(np.array(value, order="C"), name))
    onnx.checker.check_model(model)


def put(path: Path, head: str, own: Own) -> None:
    """`graft` for the graph in the file at `path`."""
    model = onnx.load(path)
    graft(model, head, own)
    onnx.save(model, path)


def renew(path: Path, weights: Weights) -> None:
    """Puts what `weights` know of attacks into the graph at `path`: the head `jailbreak`, the two over spans and their
    drift. All other heads stay as they are."""
    model = onnx.load(path)
    mine, (slope, shift) = weights.slices["jailbreak"], weights.calibration.get("jailbreak", (1.0, 0.0))
    own = Own(weights.wide[:, mine], weights.inner, (weights.outer[0][mine], weights.outer[1][mine])).times(slope)
    graft(model, "jailbreak", Own(own.wide, own.inner, (own.outer[0], own.outer[1] + np.float32(shift))))
    parts = {part.name: part for part in model.graph.initializer}
    table = next(node.input[0] for node in model.graph.node if "flat" in node.input)
    last = next(node.input[0] for node in model.graph.node if "parts" in node.output)
    bias = next(node.input[1] for node in model.graph.node if last in node.output)
    together, added = spans(weights)
    parts[table].CopyFrom(numpy_helper.from_array(together, table))
    parts[bias].CopyFrom(numpy_helper.from_array(added, bias))
    onnx.save(model, path)
    mark(path, drift=_drift(weights))


def spans(weights: Weights) -> tuple[NDArray[np.float16], F32]:
    """What is summed over spans of words, [rows, 3], and what is added to the first two sums: the heads over windows
    and segments, and the square of a span's length."""
    slopes, shifts = np.array(
        [weights.calibration.get(name, (1.0, 0.0)) for name in ("window", "planted")], np.float32
    ).T
    together = np.concatenate((weights.parts * slopes, (weights.weight**2)[:, None]), 1).astype(np.float16)
    together[0] = 0
    return together, (weights.parts_bias * slopes + shifts).astype(np.float32)


def _drift(weights: Weights) -> str:
    return ",".join(f"{value:.4f}" for value in weights.drift)


def save(weights: Weights, labels: dict[str, Sequence[str]], path: Path) -> None:
    """The graph with the names of the classes (`head` to comma-separated labels) and the drift in its metadata."""
    model = build(weights)
    helper.set_model_props(
        model, {head: ",".join(names) for head, names in labels.items()} | {"drift": _drift(weights)}
    )
    onnx.save(model, path)


def mark(path: Path, **values: str) -> None:
    """Writes `values` into the metadata of the graph at `path`."""
    model = onnx.load(path)
    helper.set_model_props(model, {prop.key: prop.value for prop in model.metadata_props} | values)
    onnx.save(model, path)
