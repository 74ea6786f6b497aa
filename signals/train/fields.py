"""`python -m signals.train.fields --data DIR`: trains the fields of the second reader, weighs them against those of the
heads, and writes them into signals/models/reader/. Some fifteen minutes on one core.

`python -m signals.train.second` does the same at its end. The encoder stays as it is: a small
network reads the fields in the means of two of its layers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import helper, numpy_helper
from tokenizers import Tokenizer
from tqdm import tqdm

from signals.neural.heads import Heads as Runtime
from signals.neural.reader import CHUNK
from signals.neural.session import options
from signals.neural.tokenizer import MODELS
from signals.text import template
from signals.train import domain, measure
from signals.train.sources import written
from signals.train.sources.corpus import Corpus
from signals.train.sources.data import Data

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

SEED: Final = 7
LAYERS: Final = (3, 5)
"""The layers, from 0, whose means are looked at: the first that was tuned, and the last."""
HIDDEN: Final = 256
ASKED: Final = 12_000
"""Written questions, at most."""
EPOCHS: Final = 12
SURE: Final = 0.8
"""The probability of the heads' likeliest field from which on the second reader is not asked."""
_WEIGHTS: Final = {
    "written questions": 1.0, "mmlu bare": 1.0, "mmlu": 0.5, "mmlu talk": 0.5, "llmrouter": 0.5, "dm_pubmedqa": 0.5,
    "ok_security_frr": 0.3, "ok_humaneval": 0.3, "gsm8k": 0.3, "gsm8k graded": 0.3, "intents": 0.15,
}  # fmt: skip
"""What a text of each source weighs; others are not learned from."""
_MOST: Final = {"mmlu": 800, "mmlu talk": 4000, "intents": 1200, "written questions": ASKED}
_SLOPES: Final = np.arange(0.1, 1.51, 0.1)


def chosen(texts: Corpus) -> list[tuple[str, str, float]]:
    """(text, domain, weight) of what is learned from; of a template its question."""
    chance, by_source = random.Random(SEED), dict[str, dict[str, str]]()
    for item in texts.items:
        if item.source in _WEIGHTS:
            label = int((item.labels.get("domain") or item.labels["field"])[0])
            of = texts.domains[texts.domain_of[label] if "domain" in item.labels else label]
            by_source.setdefault(item.source, {})[template.asked(item.text)] = of
    found = []
    for name, rows in by_source.items():
        some = list(rows.items())
        some = chance.sample(some, min(len(some), _MOST.get(name, len(some))))
        found += [(text, of, _WEIGHTS[name]) for text, of in some]
    return found


class LayerMeans:
    """The encoder in `folder`: what its layers LAYERS make of texts."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime as ort

        model = onnx.load(folder / "model.onnx")
        names = means(model)
        model.graph.output.extend(
            helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["b", None]) for name in names
        )
        self._names = names
        chosen = options(torch.get_num_threads())
        self._session = ort.InferenceSession(model.SerializeToString(), chosen, providers=["CPUExecutionProvider"])
        self._cutter = Tokenizer.from_file(str(folder / "tokenizer.json"))

    def of(self, texts: Sequence[str], what: str) -> F32:
        """The means float32 [n, layers x 384], one text at a time; of a long one the first CHUNK."""
        codes = self._cutter.encode_batch_fast([text[:4000] for text in texts], add_special_tokens=False)
        rows = []
        for code in tqdm(codes, desc=what, mininterval=10):
            ids = np.array([[0, *code.ids[:CHUNK], 2]], np.int64)
            made = self._session.run(self._names, {"input_ids": ids, "attention_mask": np.ones_like(ids)})
            rows.append(np.concatenate(made, 1)[0])
        return np.stack(rows)


def means(model: onnx.ModelProto) -> list[str]:
    """The names of the means of LAYERS in the graph, which are added where they are missing."""
    graph = model.graph
    last = max(LAYERS)
    users = {name: node for node in graph.node for name in node.input}
    # The mean of the last layer is there: masked, summed, and divided by the number of pieces.
    masked = users[f"/layers.{last}/norm2/LayerNormalization_output_0"]
    summed = users[masked.output[0]]
    divided = users[summed.output[0]]
    found = []
    for layer in LAYERS:
        name = divided.output[0] if layer == last else f"mean_{layer}"
        found.append(name)
        if any(name in node.output for node in graph.node):
            continue
        states = f"/layers.{layer}/norm2/LayerNormalization_output_0"
        for like, given, made in (
            (masked, [states, masked.input[1]], f"masked_{layer}"),
            (summed, [f"masked_{layer}", *summed.input[1:]], f"summed_{layer}"),
            (divided, [f"summed_{layer}", divided.input[1]], name),
        ):
            node = onnx.NodeProto()
            node.CopyFrom(like)
            del node.input[:], node.output[:]
            node.input.extend(given)
            node.output.append(made)
            node.name = made
            graph.node.append(node)
    return found


@dataclass(frozen=True, slots=True)
class FieldNet:
    """A network of one hidden layer: matrix and bias from the means to its units, and from there to the fields."""

    inner: tuple[F32, F32]
    outer: tuple[F32, F32]

    def logits(self, seen: F32) -> F32:
        """Float32 [n, 14]."""
        made: F32 = np.maximum(seen @ self.inner[0] + self.inner[1], 0) @ self.outer[0] + self.outer[1]
        return made


def train(seen: F32, truth: NDArray[np.int64], weights: F32) -> FieldNet:
    """The network (AdamW, dropout) by the means [n, layers x 384], the domain of each and its weight."""
    torch.manual_seed(SEED)
    middle, spread = seen.mean(0), seen.std(0) + 1e-4
    given, goal = torch.from_numpy((seen - middle) / spread), torch.from_numpy(truth)
    share, size, rate, drop = torch.from_numpy(weights), 256, 2e-3, 0.3
    inner, outer = torch.nn.Linear(seen.shape[1], HIDDEN), torch.nn.Linear(HIDDEN, len(written.DOMAINS))
    model = torch.nn.Sequential(torch.nn.Dropout(drop), inner, torch.nn.ReLU(), torch.nn.Dropout(drop), outer)
    optimiser = torch.optim.AdamW(model.parameters(), rate, weight_decay=1e-3)
    steps, step = EPOCHS * -(-len(given) // size), 0
    for _ in range(EPOCHS):
        order = torch.randperm(len(given))
        for at in range(0, len(order), size):
            some = order[at : at + size]
            logits = model(given[some])
            losses = torch.nn.functional.cross_entropy(logits, goal[some], reduction="none", label_smoothing=0.05)
            optimiser.param_groups[0]["lr"] = rate * (1 - step / steps)
            optimiser.zero_grad()
            ((losses * share[some]).sum() / share[some].sum()).backward()
            optimiser.step()
            step += 1

    def plain(layer: torch.nn.Linear) -> tuple[F32, F32]:
        return np.ascontiguousarray(layer.weight.detach().numpy().T), layer.bias.detach().numpy()

    matrix, bias = plain(inner)
    matrix = matrix / spread[:, None]
    return FieldNet((matrix.astype(np.float32), (bias - middle @ matrix).astype(np.float32)), plain(outer))


def graft(folder: Path, net: FieldNet) -> None:
    """Puts the fields into the graph in `folder`, in place of those that it has, as logits behind the two of
    `jailbreak`, and names them in config.json."""
    path = folder / "model.onnx"
    model = onnx.load(path)
    graph = model.graph
    values = dict(
        zip(("field_inner", "field_bias", "field_outer", "field_outer_bias"), (*net.inner, *net.outer), strict=True)
    )
    for part in [part for part in graph.initializer if part.name in values]:
        graph.initializer.remove(part)
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    if not any("fields" in node.output for node in graph.node):
        names = means(model)
        for node in graph.node:
            node.output[:] = ["guards" if name == "logits" else name for name in node.output]
        graph.node.extend(
            [
                helper.make_node("Concat", names, ["means"], axis=1),
                helper.make_node("Gemm", ["means", *[*values][:2]], ["field_sums"]),
                helper.make_node("Relu", ["field_sums"], ["field_units"]),
                helper.make_node("Gemm", ["field_units", *[*values][2:]], ["fields"]),
                helper.make_node("Concat", ["guards", "fields"], ["logits"], axis=1),
            ]
        )
        graph.output[0].type.tensor_type.shape.dim[1].dim_value = 2 + len(net.outer[1])
    onnx.checker.check_model(model)
    onnx.save(model, path)
    config = _config(folder)
    labels = ["direct", "planted", *written.DOMAINS]
    config["id2label"] = {str(index): name for index, name in enumerate(labels)}
    _write(folder, config)


def _config(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found


def _write(folder: Path, config: dict[str, Any]) -> None:
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")


def settle(heads: Sequence[domain.FieldAnswers], reader: Sequence[F32]) -> dict[str, float]:
    """The weights with which the right fields are likeliest: `heads` and `reader` (logits) say something of the same
    groups of texts, and each group weighs the same."""
    logs = [np.log(np.clip(one.chances, 1e-7, 1)) for one in heads]

    def surprise(fast: float, slow: float) -> float:
        made = [domain.softmax(fast * a + slow * b) for a, b in zip(logs, reader, strict=True)]
        right = [m[np.arange(len(m)), one.truth] for m, one in zip(made, heads, strict=True)]
        return -float(np.mean([np.log(chances + 1e-9).mean() for chances in right]))

    pairs = [(round(float(a), 2), round(float(b), 2)) for a in _SLOPES for b in _SLOPES]
    fast, slow = min(pairs, key=lambda pair: surprise(*pair))
    return {"sure": SURE, "fast": fast, "reader": slow}


def make(data: Data, out: Path, tests: Path) -> None:
    """Trains the fields, puts them into the reader in `out`, and measures both readers for domain.md."""
    folder = out / "reader"
    encoder = LayerMeans(folder)
    lessons = chosen(domain.lessons(data, tests))
    truth = np.array([written.DOMAINS.index(of) for _, of, _ in lessons])
    weights = np.array([weight for *_, weight in lessons], np.float32)
    net = train(encoder.of([text for text, *_ in lessons], "fields"), truth, weights)
    finish(TrainedFields(encoder, net), data, out, tests)


@dataclass(frozen=True, slots=True)
class TrainedFields:
    """The encoder and the network that reads it."""

    encoder: LayerMeans
    net: FieldNet


def finish(made: TrainedFields, data: Data, out: Path, tests: Path) -> None:
    """Puts the fields into the reader in `out`, weighs and measures them."""
    folder = out / "reader"
    graft(folder, made.net)
    model = Runtime(out / "heads.onnx", out / "lexicon.npz", None)
    first = [[one for one in asked if not measure.second_half(one[0])] for asked in domain.calibrating(data).values()]
    said = [made.net.logits(made.encoder.of([template.asked(text) for text, _ in asked], "weigh")) for asked in first]
    config = _config(folder)
    config["fields"] = settle([domain.answers(model, asked, "weigh") for asked in first], said)
    _write(folder, config)
    domain.card(data, out, tests)
    card = out / "reader.md"
    if card.exists():
        files = [folder / name for name in ("model.onnx", "config.json")]
        card.write_text(told(card.read_text(), files))


def told(card: str, files: Sequence[Path]) -> str:
    """`card` with the sizes and hashes of `files` as they are now."""
    for path in files:
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        line = f"- `{path.name}`: {path.stat().st_size:,} bytes, sha256 `{digest}`"
        card = re.sub(rf"- `{path.name}`: .*", line, card)
    return card


def main() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False, prog="python -m signals.train.fields", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the folder of public data (docs/models.md)")
    parser.add_argument("--out", type=Path, default=MODELS, help="where the heads and the reader are")
    parser.add_argument("--tests", type=Path, default=Path("tests/data"), help="the hand-written test sets")
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True, warn_only=True)
    make(Data(args.data), args.out, args.tests)


if __name__ == "__main__":
    main()
