"""Any Hugging Face folder with an ONNX file: sequence and token classifiers, and sentence encoders.

The folder holds `model.onnx` or `onnx/model.onnx`, `tokenizer.json` and `config.json`; for an encoder also, as
sentence-transformers writes it, `1_Pooling/config.json`. Everything is checked at load, and a short text is run.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from signals import files
from signals.neural.heads import ModelError, digest
from signals.neural.service import Service
from signals.neural.session import options
from signals.reading import Unavailable
from signals.services import Device, Services

log = logging.getLogger("pointsman.neural")

Task = Literal["sequence", "token", "encoder"]
F32 = NDArray[np.float32]
Cut = tuple[list[int], list[tuple[int, int]]]
"""A text's token ids, and the characters [start, end) of each."""

_FILES: Final = ("model.onnx", "onnx/model.onnx")
_INPUTS: Final = frozenset(("input_ids", "attention_mask", "token_type_ids"))
_LONGEST: Final = 512
"""Window in tokens where config.json does not say how long an input may be."""
_MOST_TOKENS: Final = 1 << 24
_MOST_IDS: Final = 1 << 24
"""What config.json may say of an input's length and of the number of tokens; no model has as many."""
_SIZES: Final = {**dict.fromkeys(_FILES, 1 << 31), "tokenizer.json": 64 << 20} | dict.fromkeys(
    ("config.json", "1_Pooling/config.json"), 4 << 20
)
"""Bytes of a file, at most. An ONNX file, being one Protobuf message, has less than 2 GiB."""
_AT_ONCE: Final = 2000
"""Characters that the event loop itself cuts into tokens, and tokens that it makes entities of: a millisecond."""


def providers(device: Device) -> list[str]:
    """ONNX Runtime's providers for `device`. ModelError when CUDA is asked for and not there."""
    import onnxruntime as ort

    there = "CUDAExecutionProvider" in ort.get_available_providers()
    if device == "cuda" and not there:
        raise ModelError(
            "device: cuda, but ONNX Runtime sees no CUDA; install onnxruntime-gpu on a machine with an NVIDIA GPU, "
            "or use device: auto"
        )
    return ["CUDAExecutionProvider", "CPUExecutionProvider"] if there and device != "cpu" else ["CPUExecutionProvider"]


@dataclass(frozen=True, slots=True)
class Entity:
    """A stretch of text that a token classifier labelled: characters [start, end), the type without B-/I-, and the
    mean probability of its tokens."""

    start: int
    end: int
    label: str
    score: float


class Windows(NamedTuple):
    """How a long text is cut: tokens of a window and between the starts of two, and whether the answers' mean counts
    or the greatest."""

    size: int = _LONGEST
    stride: int = _LONGEST // 2
    mean: bool = False


WINDOWS: Final = Windows()


class Folder:
    """One mounted model. `task` is what the caller needs of it; ModelError says what is wrong with the folder."""

    def __init__(self, path: Path, task: Task, device: Device = "auto", threads: int = 1) -> None:
        import onnxruntime as ort  # a second and 20 MB: only policies that mount a model pay

        self.path, self.task = path, task
        model = next((path / name for name in _FILES if (path / name).is_file()), None)
        if model is None:
            raise ModelError(f"{path}: has neither {_FILES[0]} nor {_FILES[1]}")
        try:
            for name, most in _SIZES.items():
                if (path / name).exists():
                    files.check(path / name, most)
        except OSError as error:
            raise ModelError(str(error)) from None
        config = self._json("config.json")
        self._tokenizer = self._load_tokenizer()
        self.labels = self._labels(config) if task != "encoder" else ()
        self.digest = digest(model)
        wanted = providers(device)
        try:
            self._session = ort.InferenceSession(str(model), options(threads), providers=wanted)
        except Exception as error:  # noqa: BLE001  onnxruntime raises its own unrelated classes
            raise ModelError(f"{model}: cannot be loaded (truncated or not ONNX?): {str(error)[:300]}") from None
        self.device = "cuda" if self._session.get_providers()[0] == "CUDAExecutionProvider" else "cpu"
        if device == "cuda" and self.device != "cuda":
            raise ModelError(
                f"{model}: device: cuda, but ONNX Runtime could not start CUDA (driver or library missing)"
            )
        self._inputs = [given.name for given in self._session.get_inputs()]
        if "input_ids" not in self._inputs or not set(self._inputs) <= _INPUTS:
            raise ModelError(
                f"{model}: its inputs are {', '.join(self._inputs)}; needed are {', '.join(sorted(_INPUTS))}"
            )
        names = [given.name for given in self._session.get_outputs()]
        usual = ("sentence_embedding", "last_hidden_state", "token_embeddings") if task == "encoder" else ("logits",)
        self._output = next((name for name in usual if name in names), names[0])
        self._multi = config.get("problem_type") == "multi_label_classification"
        self._pooling = self._pool_mode() if task == "encoder" else "mean"
        self._prefix, self._suffix, self._pad = self._special(config)
        limit = self._whole(config, "max_position_embeddings", _MOST_TOKENS)
        room = len(self._prefix) + len(self._suffix)
        # RoBERTa counts positions from the padding id on.
        room += self._pad + 1 if config.get("model_type") in ("roberta", "xlm-roberta", "camembert") else 0
        limit = _LONGEST if limit is None else limit
        self.longest = limit - room
        if self.longest < 1:
            raise ModelError(
                f"{path / 'config.json'}: max_position_embeddings: {limit} leaves no place for a text "
                f"beside the {room} positions that are not a text's"
            )
        self._warm(model)
        log.info("model %s: %s on %s, sha256 %s", path, task, self.device, self.digest)

    def _json(self, name: str) -> dict[str, Any]:
        file = self.path / name
        try:
            found = json.loads(files.read(file, _SIZES[name]))
        except FileNotFoundError:
            raise ModelError(f"{self.path}: has no {name}") from None
        except (OSError, ValueError, RecursionError) as error:
            raise ModelError(f"{file}: not readable as JSON: {error}") from None
        if not isinstance(found, dict):
            raise ModelError(f"{file}: not a JSON object")
        return found

    def _whole(self, config: dict[str, Any], key: str, most: int) -> int | None:
        """The whole number from 0 to `most` that config.json has under `key`, None where it has none."""
        found = config.get(key)
        if found is None or (type(found) is int and 0 <= found <= most):
            return found
        raise ModelError(
            f"{self.path / 'config.json'}: {key}: {str(found)[:40]} is not a whole number from 0 to {most}"
        )

    def _load_tokenizer(self) -> Any:
        from tokenizers import Tokenizer

        file = self.path / "tokenizer.json"
        if not file.is_file():
            raise ModelError(f"{self.path}: has no tokenizer.json")
        try:
            loaded = Tokenizer.from_file(str(file))
        except Exception as error:  # noqa: BLE001  the Rust library raises bare Exception
            raise ModelError(f"{file}: not a tokenizer: {str(error)[:200]}") from None
        loaded.no_truncation()
        loaded.no_padding()
        return loaded

    def _labels(self, config: dict[str, Any]) -> tuple[str, ...]:
        found = config.get("id2label")
        if not isinstance(found, dict) or sorted(found) != sorted(str(i) for i in range(len(found))) or len(found) < 2:
            raise ModelError(
                f"{self.path / 'config.json'}: id2label must name the classes 0, 1, …; it is {str(found)[:100]}"
            )
        labels = tuple(str(found[str(i)]) for i in range(len(found)))
        if bad := next((label for label in labels if not label.isprintable() or not 0 < len(label) <= 200), None):
            raise ModelError(f"{self.path / 'config.json'}: id2label: {bad[:40]!a} is not a label's name")
        return labels

    def _pool_mode(self) -> Literal["mean", "cls"]:
        if not (self.path / "1_Pooling" / "config.json").is_file():
            return "mean"
        config = self._json("1_Pooling/config.json")
        if config.get("pooling_mode_cls_token"):
            return "cls"
        if config.get("pooling_mode_mean_tokens", True):
            return "mean"
        raise ModelError(f"{self.path}/1_Pooling/config.json: only mean and cls pooling are known")

    def _special(self, config: dict[str, Any]) -> tuple[list[int], list[int], int]:
        """Ids before and after a text, and the padding id."""
        bare = self._tokenizer.encode("a", add_special_tokens=False).ids
        full = self._tokenizer.encode("a").ids
        at = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), None)
        if at is None or not bare:
            raise ModelError(f"{self.path}/tokenizer.json: cannot tell its special tokens from a text's")
        # A model has at least the rows that its tokenizer has ids; what pads a batch must be one of them.
        rows = max(self._whole(config, "vocab_size", _MOST_IDS) or 0, self._tokenizer.get_vocab_size())
        pad = self._whole(config, "pad_token_id", rows - 1)
        return full[:at], full[at + len(bare) :], pad or 0

    def _warm(self, model: Path) -> None:
        try:
            out = self._raw(
                [self._prefix + self._tokenizer.encode("warm up", add_special_tokens=False).ids + self._suffix]
            )
        except Exception as error:  # noqa: BLE001  onnxruntime raises its own unrelated classes
            raise ModelError(f"{model}: a first run failed: {str(error)[:300]}") from None
        want = 2 if self.task == "sequence" else 3
        pooled = self.task == "encoder" and out.ndim == 2
        if not np.isfinite(out).all():
            raise ModelError(f"{model}: a first run gave values that are not finite")
        if not pooled and (out.ndim != want or (self.task != "encoder" and out.shape[-1] != len(self.labels))):
            raise ModelError(
                f"{model}: gave shape {out.shape}; a {self.task} model with {len(self.labels)} labels gives "
                f"{'[batch, labels]' if want == 2 else '[batch, tokens, labels or units]'}"
            )
        self.width = int(out.shape[-1])

    def encode(self, text: str) -> Cut:
        """Ids of `text` without special tokens, and the characters [start, end) of each."""
        found = self._tokenizer.encode(text, add_special_tokens=False)
        return found.ids, found.offsets

    def windows(self, ids: Sequence[int], window: int, stride: int) -> list[tuple[int, list[int]]]:
        """Overlapping windows of ids (special tokens added), each with the index at which it starts."""
        window = min(window, self.longest)
        stride = max(1, min(stride, window))
        starts = range(0, max(1, len(ids) - window + stride), stride)
        return [(at, [*self._prefix, *ids[at : at + window], *self._suffix]) for at in starts]

    def run(self, texts: list[list[int]]) -> list[F32]:
        """For each list of ids: probabilities float32 [labels] or [tokens, labels], or an embedding of length 1.

        ModelError when they are not numbers: no test of a guard would hold for those.
        """
        answers = self._answers(self._raw(texts), texts)
        if not all(np.isfinite(answer).all() for answer in answers):
            raise ModelError(f"{self.path}: the model's answer is not a number")
        return answers

    def _answers(self, out: F32, texts: list[list[int]]) -> list[F32]:
        sizes = [len(ids) for ids in texts]
        if self.task == "encoder":
            if out.ndim == 3:
                mask = (np.arange(out.shape[1])[None] < np.array(sizes)[:, None])[..., None]
                pooled = out[:, 0] if self._pooling == "cls" else (out * mask).sum(1) / mask.sum(1)
                out = np.asarray(pooled, np.float32)
            return list(out / np.maximum(np.linalg.norm(out, axis=1, keepdims=True), 1e-9))
        if self._multi:
            out = np.asarray(1 / (1 + np.exp(-out)), np.float32)
        else:
            out = np.exp(out - out.max(-1, keepdims=True))
            out /= out.sum(-1, keepdims=True)
        if self.task == "sequence":
            return list(out)
        skip, tail = len(self._prefix), len(self._suffix)
        return [row[skip : size - tail] for row, size in zip(out, sizes, strict=True)]

    def _raw(self, texts: list[list[int]]) -> F32:
        """The output, float32, of one padded batch."""
        longest = max(len(ids) for ids in texts)
        ids = np.full((len(texts), longest), self._pad, np.int64)
        mask = np.zeros_like(ids)
        for row, given in enumerate(texts):
            ids[row, : len(given)] = given
            mask[row, : len(given)] = 1
        every = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
        feed = {name: every[name] for name in self._inputs}
        if self.device == "cuda":
            import onnxruntime as ort

            binding = self._session.io_binding()
            for name, value in feed.items():
                binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(value, "cuda", 0))
            binding.bind_output(self._output, "cuda")
            self._session.run_with_iobinding(binding)
            out = binding.copy_outputs_to_cpu()[0]
        else:
            out = self._session.run([self._output], feed)[0]
        return np.asarray(out, np.float32)


def load(path: Path, task: Task, services: Services) -> Folder:
    """The model in `path`; engines that live at the same time share one copy while its files stay as they are."""
    names = (*_FILES, "tokenizer.json", "config.json", "1_Pooling/config.json")
    files = tuple(
        (name, s.st_mtime_ns, s.st_size) for name in names if (path / name).is_file() for s in [(path / name).stat()]
    )
    device, threads = services.device, services.threads
    key = (str(path.resolve()), task, device, threads, files)
    return services.inference.loaded(Folder, key, lambda: Folder(path, task, device, threads))


class Mounted:
    """A mounted model behind its service. A text of more tokens than `services.max_input_tokens` is
    Unavailable("too_long")."""

    def __init__(self, path: Path, task: Task, services: Services) -> None:
        self.model = load(path, task, services)
        self.cap = services.max_input_tokens
        limits, meter = services.limits, services.inference.meter
        self.service: Service[list[int], F32] = Service(meter(path.name), self.model.run, len, limits=limits, hang=30)
        # On a CPU a batch of long windows takes as long as one after the other, and all others wait for it.
        self.service.work = (4 if self.model.device == "cpu" else 64) * _LONGEST
        # Long texts are cut into tokens off the event loop, and there, too, clients take turns.
        self._cutter: Service[str, Cut] = Service(meter(f"{path.name}-tokens"), self._cut, len, limits=limits, hang=30)
        self._cutter.padded = False

    def _cut(self, texts: list[str]) -> list[Cut | Unavailable]:
        return [self._tokens(text) for text in texts]

    def _tokens(self, text: str) -> Cut | Unavailable:
        found = self.model.encode(text)
        return Unavailable("too_long") if len(found[0]) > self.cap else found

    async def look(
        self, text: str, deadline: float, client: str = "", how: Windows = WINDOWS
    ) -> tuple[list[tuple[int, int]], list[tuple[int, F32]]]:
        """The characters of each token, and for each window the token it starts at and what the model says of it."""
        # A token has seldom more than a few dozen characters; this only spares the tokeniser absurd input.
        if len(text) > 64 * self.cap:
            raise Unavailable("too_long")
        cut = self._tokens(text) if len(text) <= _AT_ONCE else await self._cutter.ask(text, deadline, client)
        if isinstance(cut, Unavailable):
            raise cut
        ids, offsets = cut
        parts = self.model.windows(ids, how.size, how.stride)
        tasks = [asyncio.ensure_future(self.service.ask(part, deadline, client)) for _, part in parts]
        try:
            answers = await asyncio.gather(*tasks)
        finally:
            for task in tasks:  # where one has failed, nobody wants the others
                task.cancel()
        return offsets, [(at, answer) for (at, _), answer in zip(parts, answers, strict=True)]

    async def probabilities(self, text: str, deadline: float, how: Windows, client: str = "") -> tuple[F32, int]:
        """Each label's greatest (or mean) probability over the windows, and how many windows there were."""
        _, answers = await self.look(text, deadline, client, how)
        table = np.stack([answer for _, answer in answers])
        return (table.mean(0) if how.mean else table.max(0)), len(answers)

    async def embedding(self, text: str, deadline: float, client: str = "") -> F32:
        """The text's embedding of length 1; a long text's is the mean of its windows'."""
        _, answers = await self.look(text, deadline, client)
        total = np.mean([answer for _, answer in answers], axis=0)
        return np.asarray(total / max(float(np.linalg.norm(total)), 1e-9), np.float32)

    def embed(self, texts: list[str]) -> F32:
        """Embeddings of short texts here and now, float32 [n, d]: for examples, while an engine is built."""
        model = self.model
        return np.stack(
            [
                model.run([model.windows(model.encode(text[: 64 * _LONGEST])[0], _LONGEST, _LONGEST)[0][1]])[0]
                for text in texts
            ]
        )

    async def entities(self, text: str, deadline: float, client: str = "") -> list[Entity]:
        """What a token classifier found, in order; where windows overlap, a token counts where it has most context."""
        offsets, answers = await self.look(text, deadline, client)
        if len(offsets) <= _AT_ONCE:
            return self._entities(offsets, answers)
        return await asyncio.to_thread(self._entities, offsets, answers)

    def _entities(self, offsets: list[tuple[int, int]], answers: list[tuple[int, F32]]) -> list[Entity]:
        if not offsets:
            return []
        best = np.zeros((len(offsets), len(self.model.labels)), np.float32)
        depth = np.full(len(offsets), -1)
        for at, table in answers:
            size = len(table)
            context = np.minimum(np.arange(size), np.arange(size)[::-1])
            better = context > depth[at : at + size]
            best[at : at + size][better] = table[better]
            depth[at : at + size][better] = context[better]
        return _spans(best, offsets, self.model.labels)

    def close(self) -> None:
        self.service.close()
        self._cutter.close()


def _spans(table: F32, offsets: Sequence[tuple[int, int]], labels: Sequence[str]) -> list[Entity]:
    """Entities from each token's probabilities; neighbours of one type belong together unless a B- begins anew."""
    found: list[Entity] = []
    total, count, before = 0.0, 0, -2
    best, probabilities = table.argmax(1), table.max(1).tolist()
    outside = np.array([_kind(label) == "O" for label in labels])
    for at in np.flatnonzero(~outside[best]).tolist():
        start, end = offsets[at]
        label, score = labels[best[at]], probabilities[at]
        kind, touches = _kind(label), at == before + 1
        before = at
        if touches and found[-1].label == kind and label[:2] != "B-" and start - found[-1].end <= 1:
            total, count = total + score, count + 1
            found[-1] = Entity(found[-1].start, end, kind, total / count)
        else:
            total, count = score, 1
            found.append(Entity(start, end, kind, score))
    return found


def _kind(label: str) -> str:
    return label[2:] if label[:2] in ("B-", "I-", "E-", "S-", "L-", "U-") else label
