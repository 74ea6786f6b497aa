"""Small real ONNX models for the tests, in the layout of a Hugging Face folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from tokenizers import Tokenizer, models, pre_tokenizers, processors

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "good", "bad", "ann", "lee", "paris", "likes", "."]


def tokenizer() -> Tokenizer:
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing("[CLS] $A [SEP]", None, [("[CLS]", 1), ("[SEP]", 2)])
    return made


def folder(where: Path, table: NDArray[np.float32], pooled: bool, labels: list[str] | None, **config: Any) -> Path:
    """A model whose logits are rows of `table` [words, n]: a row a token, or (pooled) their sum over the text."""
    (where / "onnx").mkdir(parents=True)
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["rows"])]
    if pooled:
        nodes += [
            helper.make_node("Cast", ["attention_mask"], ["mask"], to=TensorProto.FLOAT),
            helper.make_node("Unsqueeze", ["mask", "axis2"], ["wide"]),
            helper.make_node("Mul", ["rows", "wide"], ["seen"]),
            helper.make_node("ReduceSum", ["seen", "axis1"], ["logits"], keepdims=0),
        ]
    else:
        nodes.append(helper.make_node("Identity", ["rows"], ["logits"]))
    shape = ["b", table.shape[1]] if pooled else ["b", "t", table.shape[1]]
    names = ["input_ids", "attention_mask"] if pooled else ["input_ids"]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(name, TensorProto.INT64, ["b", "t"]) for name in names],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(table.astype(np.float32), "table"),
            numpy_helper.from_array(np.array([1]), "axis1"),
            numpy_helper.from_array(np.array([2]), "axis2"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    model.ir_version = 9
    onnx.save(model, where / "onnx" / "model.onnx")
    tokenizer().save(str(where / "tokenizer.json"))
    if labels is not None:
        config["id2label"] = {str(i): label for i, label in enumerate(labels)}
    (where / "config.json").write_text(json.dumps(config))
    return where


def mood(where: Path) -> Path:
    """good/bad: the logit of a class is how often its word stands there."""
    table = np.zeros((len(WORDS), 2), np.float32)
    table[WORDS.index("good"), 0] = table[WORDS.index("bad"), 1] = 4
    return folder(where, table, True, ["good", "bad"], max_position_embeddings=10)


def names(where: Path) -> Path:
    """Persons (two words) and places."""
    labels = ["O", "B-PER", "I-PER", "B-LOC"]
    table = np.zeros((len(WORDS), 4), np.float32)
    table[:, 0] = 5
    for word, label in (("ann", 1), ("lee", 2), ("paris", 3)):
        table[WORDS.index(word)] = 10 * np.eye(4)[label]
    return folder(where, table, False, labels, max_position_embeddings=10)


def occasions(where: Path) -> Path:
    """Organisations, which `lee` is here, and dates, which `paris` is."""
    table = np.zeros((len(WORDS), 3), np.float32)
    table[:, 0] = 5
    table[WORDS.index("lee")], table[WORDS.index("paris")] = 10 * np.eye(3)[1:]
    return folder(where, table, False, ["O", "B-ORG", "B-DATE"], max_position_embeddings=10)
