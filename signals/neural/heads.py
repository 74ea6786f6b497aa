"""The shipped classifier and embedder: one ONNX file, one run for all heads of all texts in a batch."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from signals.neural import features as read
from signals.neural.features import Features
from signals.neural.normalise import normalise
from signals.neural.tokenizer import LEXICON, MODELS, Lexicon

log = logging.getLogger("pointsman.neural")

MODEL: Final = MODELS / "heads.onnx"
HEADS: Final = ("domain", "difficulty", "reasoning", "jailbreak", "fact_check", "feedback", "modality")
_FEW_SEGMENTS: Final = 2


def digest(*files: Path) -> str:
    """SHA-256 over the contents of `files`, in hex."""
    found = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while block := file.read(1 << 18):
                found.update(block)
    return found.hexdigest()


class ModelError(ValueError):
    """A model's files are missing, damaged or not what they should be; the text says which and why."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the heads say of one text.

    domain, feedback, modality: label to probability. difficulty, reasoning, fact_check: probability. direct:
    probability that the text as a whole, or one of its windows, attacks the model; planted: that one of its sentences
    is an instruction hidden in a document. windows, segments: how many parts were looked at. embedding: float32 [d],
    length 1.
    """

    domain: dict[str, float]
    difficulty: float
    reasoning: float
    direct: float
    planted: float
    fact_check: float
    feedback: dict[str, float]
    modality: dict[str, float]
    windows: int
    segments: int
    embedding: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Prepared:
    """One text made ready for the graph: its features, and the spans of its windows (first) and segments."""

    features: Features
    spans: NDArray[np.int32]
    windows: int


class Heads:
    """The shipped model, loaded and warmed up. Threads may share it."""

    def __init__(self, model: Path = MODEL, lexicon: Path = LEXICON, threads: int = 1) -> None:
        import onnxruntime as ort  # 20 MB: only policies with a neural signal pay

        try:
            self.lexicon = Lexicon.load(lexicon)
            self.digest = digest(model, model.with_name(f"{model.name}.data"), lexicon)
        except (OSError, ValueError) as error:
            raise ModelError(f"{error}: the shipped model is damaged; reinstall it") from None
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.enable_cpu_mem_arena = False
        options.log_severity_level = 3
        try:
            self._session = ort.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
            labels = self._session.get_modelmeta().custom_metadata_map
            self.labels = {head: tuple(labels[head].split(",")) for head in ("domain", "feedback", "modality")}
        except Exception as error:  # noqa: BLE001  onnxruntime raises its own unrelated classes
            raise ModelError(f"{model}: cannot be loaded: {str(error)[:300]}") from None
        outputs = {output.name for output in self._session.get_outputs()}
        if missing := {*HEADS, "embedding", "parts"} - outputs:
            raise ModelError(f"{model}: has no output {', '.join(sorted(missing))}")
        self._names = [*HEADS, "embedding", "parts"]
        log.info("the shipped model: sha256 %s", self.digest)
        self.width = int(self.run([self.prepare("warm up")])[0].embedding.shape[0])

    def prepare(self, text: str) -> Prepared:
        """The features of `text` (disguises undone) and the parts of it to look at."""
        found = read.features(normalise(text, self.lexicon), self.lexicon)
        segments = read.segments(found.found)
        if len(found.found) <= read.WINDOW:
            return Prepared(found, segments, 0)
        windows = read.windows(len(found.found))
        return Prepared(found, np.concatenate((windows, segments)), len(windows))

    def run(self, texts: Sequence[Prepared]) -> list[Verdict]:
        """The verdict on each text, in one run of the graph."""
        spans = [4 * text.spans for text in texts]
        start = 0
        for text, span in zip(texts, spans, strict=True):
            span += start
            start += 4 * len(text.features.found)
        given: dict[str, Any] = {
            "rows": _pad([text.features.rows for text in texts]),
            "scale": np.array([[text.features.scale] for text in texts], np.float32),
            "words": _pad([text.features.words for text in texts]),
            "style": np.array([text.features.style for text in texts]),
            "flat": _join([text.features.flat.ravel() for text in texts]),
            "spans": _join(spans),
        }
        if not given["spans"].size:
            given["flat"], given["spans"] = np.zeros(1, np.int32), np.zeros((1, 2), np.int32)
        out = dict(zip(self._names, self._session.run(self._names, given), strict=True))
        verdicts, at = [], 0
        for index, text in enumerate(texts):
            parts = out["parts"][at : at + len(text.spans)]
            at += len(text.spans)
            verdicts.append(self._verdict(text, index, out, parts))
        return verdicts

    def _verdict(self, text: Prepared, index: int, out: dict[str, Any], parts: NDArray[np.float32]) -> Verdict:
        def named(head: str) -> dict[str, float]:
            return dict(zip(self.labels[head], out[head][index].tolist(), strict=True))

        direct = float(out["jailbreak"][index])
        if text.windows:
            direct = max(direct, float(parts[: text.windows, 0].max()))
        segments = parts[text.windows :, 1]
        return Verdict(
            domain=named("domain"),
            difficulty=float(out["difficulty"][index]),
            reasoning=float(out["reasoning"][index]),
            direct=direct,
            planted=float(segments.max()) if segments.size else 0.0,
            fact_check=float(out["fact_check"][index]),
            feedback=named("feedback"),
            modality=named("modality"),
            windows=max(1, text.windows),
            segments=len(segments),
            embedding=out["embedding"][index],
        )

    def verdicts(self, texts: Sequence[str]) -> list[Verdict]:
        """The verdicts on `texts`, prepared and run here and now."""
        return self.run([self.prepare(text) for text in texts])


def _join(parts: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)


def _pad(ids: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """int32 [n, longest], at least one wide, the shorter ones filled up with 0 (a row of zeros)."""
    longest = max(1, max(len(row) for row in ids))
    if len(ids) == 1 and len(ids[0]) == longest:
        return ids[0][None]
    padded = np.zeros((len(ids), longest), np.int32)
    for index, row in enumerate(ids):
        padded[index, : len(row)] = row
    return padded
