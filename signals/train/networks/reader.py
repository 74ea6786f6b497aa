"""Trains the second reader of `jailbreak`, signals/models/reader/ (second.py is the command).

The first layers of multilingual-e5-small with the pieces that real text needs, tuned on the attacks and harmless texts
of the first reader's training and on more that were written for this (texts/twins*.txt). Two logits: that a text
attacks the model, and that a line of a document gives the model an order. The word vectors stay as they are, so that
what is learned in one language holds in others.
"""

from __future__ import annotations

import json
import random
import re
import sysconfig
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from math import cos, pi
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors
from torch import nn
from tqdm import tqdm

from signals.neural.heads import NEAR
from signals.train.networks import e5
from signals.train.sources import attacks, corpus, written
from signals.train.sources.data import Data, library, said

LAYERS: Final = 6
PIECES: Final = 40000
"""Pieces that are kept of the 250,000: all that the texts here need, then the commonest of all languages."""
LEARNED: Final = 64
"""Pieces of a text in training, at most: less than the reader reads, and much cheaper."""
STEPS: Final = 220
"""Batches of a training."""
FROZEN: Final = 3
"""Layers that stay as they are, beside the word vectors."""
SEED: Final = 11
_TAKEN: Final = {
    "written attacks": 2400, "written harmless": 2600, "written sayings": 1300, "written prose": 1300,
    "notes of a program": 2800, "written role attacks": 2000,
    "written role play": 2000, "sentences": 1300, "written questions": 700, "intents": 500,
    "written agents": 600, "role prompts": 800, "mmlu": 250, "mmlu bare": 300, "mmlu talk": 150, "llmrouter": 250,
    "written puzzles": 250, "written documents": 250, "library": 250, "written feedback": 120, "written modality": 120,
    "written fact_check": 120, "gsm8k": 80, "gsm8k graded": 50, "contexts": 200, "rs_bbh": 150, "rs_aqua": 120,
    "ok_pubmed_tool": 250, "ok_bfcl_tools": 300,
}  # fmt: skip
"""How many texts of a source are read, at most; all of the others."""


@dataclass(frozen=True, slots=True)
class Lesson:
    """A text, whether it is an attack, whether it stands in a document (else a user says it), its source."""

    text: str
    attack: bool
    planted: bool
    source: str


def tokenizer(pieces: Sequence[str], scores: Sequence[float]) -> Tokenizer:
    """A unigram tokeniser of some pieces; the first four are those of XLM-RoBERTa: begin, padding, end, unknown."""
    made = Tokenizer(models.Unigram(list(zip(pieces, map(float, scores), strict=True)), unk_id=3))
    made.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(Regex(r"\s+"), " ")])
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


def kept(source: e5.E5Package, texts: Iterable[str]) -> list[int]:
    """The pieces that `texts` need, and the commonest others up to PIECES, in order."""
    whole = tokenizer(source.pieces, source.scores.tolist())
    counts: Counter[int] = Counter()
    for code in whole.encode_batch_fast(list(texts), add_special_tokens=False):
        counts.update(code.ids)
    needed = [piece for piece, count in counts.most_common() if count > 1][: PIECES - 10000]
    found = dict.fromkeys([*range(4), *needed])
    for piece in range(4, len(source.pieces)):
        if len(found) == PIECES:
            break
        found[piece] = None
    return sorted(found)


def _between(document: str, line: str, chance: random.Random) -> str:
    """`line` among a few lines of `document`, as the reader is given it."""
    around = [part for part in re.split(r"\n|(?<=[.!?])\s", document) if part.strip()]
    at = chance.randrange(len(around) + 1)
    before, after = around[max(0, at - chance.randint(0, NEAR)) : at], around[at : at + chance.randint(0, NEAR)]
    return "\n".join([*before, line, *after]) if line else "\n".join([*before, *after])


def lessons(data: Data, seed: int, without: Collection[str] = (), skip: Collection[str] = ()) -> list[Lesson]:
    """What is learned from, without the sources `without` and the texts `skip`."""
    chance = random.Random(seed)
    by_source: dict[str, list[corpus.Item]] = {}
    for item in corpus.build(data, seed).items:
        if "jailbreak" in item.labels and item.source not in without:
            by_source.setdefault(item.source, []).append(item)
    found = []
    for name, items in by_source.items():
        some = chance.sample(items, min(len(items), _TAKEN.get(name, len(items))))
        some *= 3 if name.startswith("atk_") else 1  # there are few of them
        found += [Lesson(item.text, item.labels["jailbreak"][0] > 0.5, False, name) for item in some]
    hosts = [row["context"] for row in data.part("injection/bipia_contexts")]
    hosts += [attacks.document(chance) for _ in range(200)]
    hosts += list(library(Path(sysconfig.get_path("stdlib")), 200, 1))
    for name in ("ok_pubmed_tool", "ok_bfcl_react"):
        if name not in without:
            requests = [row["request"] for row in data.part(f"wild/{name}")[:150]]
            hosts += [said(request, "tool") or said(request, "user") for request in requests]
    goals = [*written.twins("told", chance, 750), *(text for text, _ in written.spoken("plant", chance, 450))]
    goals += [*attacks.plants(chance, 350), *attacks.direct(chance, 150)]
    goals += [row["text"] for row in data.part("injection/bipia_attacks")] * 2
    calm = [
        *written.twins("notice", chance, 600),
        *(text for text, _ in written.spoken("doc", chance, 450)),
        *[""] * 900,
    ]
    calm += written.remarks(chance, 200)
    for label, lines in ((True, goals), (False, calm)):
        found += [Lesson(_between(chance.choice(hosts), line, chance), label, True, "planted") for line in lines]
    public = {text.casefold() for held in (False, True) for text in data.texts(held)}  # written means not copied
    return [
        lesson
        for lesson in found
        if lesson.text.strip()
        and lesson.text.casefold() not in skip
        and not (
            lesson.source in ("written injections", "written twins", "planted") and lesson.text.casefold() in public
        )
    ]


def chunk(ids: list[int], chance: random.Random) -> list[int]:
    """One chunk of a text as the reader sees it: of long ones the first, the last or any."""
    if len(ids) > LEARNED:
        start = chance.choice([0, len(ids) - LEARNED, chance.randrange(len(ids) - LEARNED + 1)])
        ids = ids[start : start + LEARNED]
    return [0, *ids, 2]


def batch(rows: Sequence[list[int]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of some texts, padded."""
    ids = torch.ones(len(rows), max(map(len, rows)), dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return ids, mask


def train(model: e5.Reader, cutter: Tokenizer, texts: Sequence[Lesson], steps: int = STEPS, size: int = 48) -> None:
    """Tunes `model` in place: AdamW, bfloat16 where the processor has it, texts of a like length together."""
    chance = random.Random(SEED)
    torch.manual_seed(SEED)
    for part in (model.words, model.places, model.norm, *model.layers[:FROZEN]):
        part.requires_grad_(False)
    cut = cutter.encode_batch_fast([text.text[:6000] for text in texts], add_special_tokens=False)
    codes = [code.ids for code in cut]
    batches: list[list[int]] = []
    while len(batches) < steps:
        order = list(range(len(texts)))
        chance.shuffle(order)
        for at in range(0, len(order), 50 * size):
            some = sorted(order[at : at + 50 * size], key=lambda i: min(LEARNED, len(codes[i])))
            fresh = [some[i : i + size] for i in range(0, len(some), size)]
            chance.shuffle(fresh)
            batches += fresh
    batches = batches[:steps]
    free = [part for part in model.parameters() if part.requires_grad]
    rate = 3e-4
    optimiser = torch.optim.AdamW(free, rate, weight_decay=0.01, fused=True)
    model.train()
    with tqdm(batches, mininterval=10) as bar:
        total = 0.7
        for step, chosen in enumerate(bar):
            share = step / len(batches)
            for group in optimiser.param_groups:
                group["lr"] = rate * min(1.0, share / 0.06, 0.02 + 0.5 * (1 + cos(pi * share)))
            ids, mask = batch([chunk(codes[i], chance) for i in chosen])
            truth = torch.tensor([float(texts[i].attack) for i in chosen])
            column = torch.tensor([int(texts[i].planted) for i in chosen])
            with torch.autocast("cpu", torch.bfloat16, e5.HALVES):
                logits = model(ids, mask)
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                logits.float().gather(1, column[:, None])[:, 0], truth * 0.96 + 0.02
            )
            loss.backward()
            torch.nn.utils.clip_grad_norm_(free, 1.0)
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            total = 0.98 * total + 0.02 * loss.item()
            bar.set_postfix(loss=f"{total:.3f}", refresh=False)
    model.eval()


class _Shipped(nn.Module):
    """The reader with its word vectors in the 4 bits in which they came: training has left them as they are."""

    def __init__(self, model: e5.Reader) -> None:
        super().__init__()
        self.nibbles: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("nibbles", torch.from_numpy(model.stored["nibbles"].copy()))
        self.register_buffer("scale", torch.from_numpy(model.stored["scale"][..., None].copy()))
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        pairs = self.nibbles[input_ids].float()
        high = torch.floor(pairs / 16)
        halves = torch.cat((pairs - 16 * high, high), -1) - 8
        words = (halves * self.scale[input_ids].float()).flatten(2)
        return self.model.head(self.model.mean(words, attention_mask))  # type: ignore[no-any-return]


def export(model: e5.Reader, cutter: Tokenizer, out: Path, bands: dict[str, dict[str, float]]) -> None:
    """Writes the folder of a Hugging Face classifier that signals/neural/reader.py loads: word vectors in 4 bits,
    matrices in 8 (dynamic quantisation, a scale for each column)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    out.mkdir(parents=True, exist_ok=True)
    sample = (torch.tensor([[0, 5, 6, 2], [0, 7, 2, 1]]), torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0]]))
    with TemporaryDirectory() as folder:
        plain = Path(folder) / "plain.onnx"
        axes = {name: {0: "batch", 1: "length"} for name in ("input_ids", "attention_mask")}
        torch.onnx.export(
            _Shipped(model).eval(), sample, str(plain), dynamo=False, opset_version=17, dynamic_axes=axes,
            input_names=["input_ids", "attention_mask"], output_names=["logits"],
        )  # fmt: skip
        quantize_dynamic(
            plain, out / "model.onnx", op_types_to_quantize=["MatMul"], per_channel=True, weight_type=QuantType.QInt8
        )
    cutter.post_processor = processors.TemplateProcessing("<s> $A </s>", None, [("<s>", 0), ("</s>", 2)])
    (out / "tokenizer.json").write_text(cutter.to_str(pretty=False))
    config = {
        "model_type": "bert", "id2label": {"0": "direct", "1": "planted"}, "problem_type": "multi_label_classification",
        "pad_token_id": 1, "vocab_size": len(model.words.weight), "max_position_embeddings": e5.LONGEST, "bands": bands,
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
