"""The shipped classifier and embedder: one ONNX file, one run for all heads of all texts in a batch."""

from __future__ import annotations

import hashlib
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from signals.neural import features as read
from signals.neural.features import Features
from signals.neural.memory import trim
from signals.neural.normalise import normalise
from signals.neural.outcomes import OUTCOMES, Outcomes
from signals.neural.session import options
from signals.neural.tokenizer import LEXICON, MODELS, Lexicon
from signals.text import template

log = logging.getLogger("pointsman.neural")

MODEL: Final = MODELS / "heads.onnx"
_OUTPUTS: Final = ("chances", "domain", "feedback", "modality", "embedding", "parts")
"""What the graph gives: `chances` [b, n] ends with those of reasoning, jailbreak and fact_check."""


_CODE: Final = "computer science"
"""The field whose harmless texts (on passwords, injections, keys) look most like attacks."""
DOUBT: Final = 0.2
"""The probability below which no second reader is given the text."""
PART: Final = 1000
"""Characters of a text's beginning, and of its end, that a second reader is given."""
NEAR: Final = 2
"""Sentences before an order, and after it, that are given with it, SIDE characters of their beginnings and ends."""
SIDE: Final = 120


PIECE: Final = 1 << 13
"""Entries that are looked at in one run of the graph, of a text on its own: a few milliseconds."""


def _no_rest() -> None:
    """Nobody else waits."""


def _cut(text: str, most: int = PART) -> str:
    return text if len(text) <= 2 * most else f"{text[:most]}\n{text[-most:]}"


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
class HeadVerdict:
    """What the heads say of one text.

    domain, feedback, modality: label to probability. item: hardness and steepness (`outcomes.Outcomes`). reasoning,
    fact_check: probability. direct: probability that the text as a whole, or one of its windows, attacks the model;
    alone: the same where no second reader stands by, lowered for texts about computer science; planted: that one of its
    sentences is an instruction hidden in a document. windows, segments: how many parts were looked at. known: the share
    of the words that the lexicon holds, 1 of a text with fewer than ten. embedding: float32 [d], length 1; meant: the
    share of the words that it is made of. suspect: the text, or of a long one the window, that is the likeliest attack,
    disguises undone; order: the likeliest instruction with its neighbours. Both are what a second reader is given: ""
    where the score is below DOUBT, else PART characters from the beginning and from the end of what is longer. asked:
    in the same way, the question of a template, or the text.
    """

    domain: dict[str, float]
    item: tuple[float, float]
    reasoning: float
    direct: float
    alone: float
    planted: float
    fact_check: float
    feedback: dict[str, float]
    modality: dict[str, float]
    windows: int
    segments: int
    known: float
    meant: float
    embedding: NDArray[np.float32]
    suspect: str = ""
    order: str = ""
    asked: str = ""


_ROWS: Final = 1024
"""Words that are asked for at once."""


_NO_TEXT: Final = {
    "rows": np.zeros((1, 1), np.int64),
    "scale": np.zeros((1, 1), np.float32),
    "words": np.zeros((1, 1), np.int32),
    "style": np.zeros((1, read.STYLE), np.float32),
}
"""What the graph is given of a text where only parts of it are looked at."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """One text made ready for the graph: itself without disguises, its features, and the spans of its windows (first)
    and segments in `flat`: the text's entries in order, and after them those of each window, every one once.
    `question`: that of a template, which the field is that of, or the text; `asked`: its features, None where it is the
    text."""

    text: str
    features: Features
    flat: NDArray[np.int32]
    spans: NDArray[np.int32]
    windows: int
    question: str
    asked: Features | None = None

    def pieces(self) -> list[tuple[NDArray[np.int32], NDArray[np.int32]]]:
        """`flat` and `spans` cut into what one run of the graph takes: spans that lie in some PIECE entries."""
        if self.flat.shape[1] <= PIECE:
            return [(self.flat, self.spans)]
        made, first = [], 0
        for last in range(1, len(self.spans) + 1):
            if last == len(self.spans) or last == self.windows or self.spans[last, 1] - self.spans[first, 0] > PIECE:
                begin = int(self.spans[first, 0])
                made.append((self.flat[:, begin : int(self.spans[last - 1, 1])], self.spans[first:last] - begin))
                first = last
        return made

    def suspect(self, parts: NDArray[np.floating[Any]]) -> str:
        """The whole text, or the window whose logit is the largest of `parts`."""
        if not self.windows:
            return _cut(self.text)
        return self._said(*read.windows(len(self.features.found))[int(parts.argmax())].tolist())

    def order(self, parts: NDArray[np.floating[Any]]) -> str:
        """The segment whose logit is the largest of `parts`, and the NEAR before and after it."""
        at, segments = int(parts.argmax()), self.spans[self.windows :].tolist()
        before, after = segments[max(0, at - NEAR) : at], segments[at + 1 : at + 1 + NEAR]
        said = [self._said(first, last, SIDE) for first, last in (*before, *after)]
        said.insert(len(before), self._said(*segments[at]))
        return "\n".join(said)

    def _said(self, first: int, last: int, most: int = PART) -> str:
        """The words `first` to `last` (excluded)."""
        found = self.features.found
        return _cut(self.text[int(found.starts[first]) : int(found.starts[last - 1] + found.lengths[last - 1])], most)


class Heads:
    """The shipped model, loaded and warmed up. Threads may share it. Without `outcomes`, as in its training, every
    text is as hard as every other."""

    def __init__(
        self, model: Path = MODEL, lexicon: Path = LEXICON, outcomes: Path | None = OUTCOMES, threads: int = 1
    ) -> None:
        import onnxruntime as ort  # 20 MB: only policies with a neural signal pay

        try:
            self.lexicon = Lexicon.load(lexicon)
            self.outcomes = None if outcomes is None else Outcomes(outcomes)
            self.digest = digest(model, lexicon, *filter(None, [outcomes]))
        except (OSError, ValueError) as error:
            raise ModelError(f"{error}: the shipped model is damaged; reinstall it") from None
        chosen = options(threads)
        chosen.enable_cpu_mem_arena = False
        try:
            self._session = ort.InferenceSession(str(model), chosen, providers=["CPUExecutionProvider"])
            labels = self._session.get_modelmeta().custom_metadata_map
            self.labels = {head: tuple(labels[head].split(",")) for head in ("domain", "feedback", "modality")}
            self._drift = tuple(map(float, labels["drift"].split(",")))
            self._lowered = float(labels.get("lowered", "0"))
            self._code = self.labels["domain"].index(_CODE) if self._lowered else 0
        except Exception as error:  # noqa: BLE001  onnxruntime raises its own unrelated classes
            raise ModelError(f"{model}: cannot be loaded: {str(error)[:300]}") from None
        outputs = {output.name for output in self._session.get_outputs()}
        if missing := {*_OUTPUTS} - outputs:
            raise ModelError(f"{model}: has no output {', '.join(sorted(missing))}")
        width = next(o.shape[1] for o in self._session.get_outputs() if o.name == "embedding")
        if self.outcomes and not self.outcomes.fits(self.lexicon.rows, width):
            raise ModelError(f"{outcomes}: does not belong to {lexicon}; reinstall the shipped model")
        log.info("the shipped model: sha256 %s", self.digest)
        self._vectors = self._embedded()
        self.width = width
        self.run([self.prepare("warm up")])
        trim()

    def _embedded(self) -> NDArray[np.bool_]:
        """Which rows of the lexicon have a vector: the others are known as words only."""
        found = np.zeros(self.lexicon.embedded, np.bool_)
        for start in range(0, len(found), _ROWS):
            words = np.arange(start, min(start + _ROWS, len(found)), dtype=np.int32)[:, None]
            given = {
                "rows": np.zeros(words.shape, np.int64),
                "scale": np.zeros(words.shape, np.float32),
                "words": words,
                "style": np.zeros((len(words), read.STYLE), np.float32),
                "flat": np.zeros((4, 1), np.int32),
                "spans": np.array([[0, 1]], np.int32),
            }
            vectors: NDArray[np.float32] = self._session.run(["embedding"], given)[0]
            found[start : start + _ROWS] = np.abs(vectors).max(1) > 0
        return found

    def prepare(self, text: str, rest: Callable[[], None] = _no_rest) -> Prepared:
        """The features of `text` (disguises undone) and the parts of it to look at. `rest` is called between steps that
        take some milliseconds of a long text each."""
        plain = normalise(text, self.lexicon)
        rest()
        found = read.features(plain, self.lexicon)
        rest()
        segments = read.segments(found.found)
        question = template.asked(plain)
        asked = None if question is plain else read.features(question, self.lexicon)
        if len(found.found) <= read.WINDOW:
            return Prepared(plain, found, found.flat, segments, 0, question, asked)
        count = len(read.windows(len(found.found)))
        flat = np.concatenate((found.flat, read.distinct(found.flat, count)), 1)
        starts = np.arange(len(found.found), flat.shape[1], read.WINDOW, dtype=np.int32)
        windows = np.stack((starts, starts + read.WINDOW), 1)
        return Prepared(plain, found, flat, np.concatenate((windows, segments)), count, question, asked)

    def outputs(self, texts: Sequence[Prepared], rest: Callable[[], None] = _no_rest) -> list[NDArray[np.float32]]:
        """What the graph gives for `texts` (`_OUTPUTS`): a row for each, and then one for each question. It runs once,
        and once more for each further piece of one long text, `rest` in between."""
        found = [text.features for text in texts] + [text.asked for text in texts if text.asked]
        (flat, spans), *more = texts[0].pieces() if len(texts) == 1 else [_together(texts)]
        given: dict[str, Any] = {
            "rows": _pad([one.rows for one in found]),
            "scale": np.array([[one.scale] for one in found], np.float32),
            "words": _pad([one.words for one in found]),
            "style": np.array([one.style for one in found], np.float32),
        }
        made: list[NDArray[np.float32]] = self._session.run(_OUTPUTS, given | {"flat": flat, "spans": spans})
        if more:
            parts = [made[-1]]
            for flat, spans in more:
                rest()
                parts += self._session.run(_OUTPUTS[-1:], _NO_TEXT | {"flat": flat, "spans": spans})
            made[-1] = np.concatenate(parts)
        return made

    def run(self, texts: Sequence[Prepared], rest: Callable[[], None] = _no_rest) -> list[HeadVerdict]:
        """The verdict on each text; `rest` as in `prepare`."""
        chances, domain, feedback, modality, embeddings, parts = self.outputs(texts, rest)
        questions = iter(domain[len(texts) :])
        for index, text in enumerate(texts):
            if text.asked:
                domain[index] = next(questions)
        rows = zip(texts, chances.tolist(), domain.tolist(), feedback.tolist(), modality.tolist(), embeddings)  # noqa: B905
        verdicts, at = [], 0
        for text, (*_, reasoning, direct, fact_check), fields, mood, form, embedding in rows:
            first, at = at + text.windows, at + len(text.spans)
            if text.windows:
                window = _chance(parts[first - text.windows : first, 0], self._drift[0])
                direct = direct if window <= direct else window  # what is no number stays
            planted = _chance(parts[first:at, 1], self._drift[1]) if at > first else 0.0
            item = self.outcomes.item(text.features, embedding) if self.outcomes else (0.0, 1.0)
            if not isfinite(sum(fields, sum(mood, sum(form, sum(item, reasoning + direct + fact_check + planted))))):
                raise ModelError("the shipped model's answer is not a number")  # and would pass every test of a guard
            verdicts.append(
                HeadVerdict(
                    domain=dict(zip(self.labels["domain"], fields, strict=True)),
                    item=item,
                    reasoning=reasoning,
                    direct=direct,
                    alone=_less(direct, self._lowered * fields[self._code]),
                    planted=planted,
                    fact_check=fact_check,
                    feedback=dict(zip(self.labels["feedback"], mood, strict=True)),
                    modality=dict(zip(self.labels["modality"], form, strict=True)),
                    windows=max(1, text.windows),
                    segments=at - first,
                    known=read.known(text.features),
                    meant=read.meant(text.features, self._vectors),
                    embedding=embedding,
                    suspect=text.suspect(parts[first - text.windows : first, 0]) if direct >= DOUBT else "",
                    order=text.order(parts[first:at, 1]) if planted >= DOUBT else "",
                    asked=_cut(text.question),
                )
            )
        return verdicts

    def verdicts(self, texts: Sequence[str], rest: Callable[[], None] = _no_rest) -> list[HeadVerdict]:
        """The verdicts on `texts`, prepared and run here and now; `rest` as in `prepare`."""
        prepared = []
        for text in texts:
            prepared.append(self.prepare(text, rest))
            rest()
        return self.run(prepared, rest)


def _chance(logits: NDArray[np.float32], drift: float) -> float:
    """The probability by the largest of some parts' logits. The more parts there are, the larger is the largest of
    harmless ones: `drift` a unit of the logarithm of their number, which is taken off (docs/models.md)."""
    against = drift * math.log(len(logits)) - float(logits.max())
    return 0.0 if against > 700 else 1 / (1 + math.exp(against))


def _less(chance: float, logit: float) -> float:
    """`chance` with its logit lowered by `logit`."""
    odds = math.exp(-logit)
    return chance * odds / (1 - chance + chance * odds)


def _together(texts: Sequence[Prepared]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """`flat` and `spans` of all `texts`."""
    spans, start = [], 0
    for text in texts:
        spans.append(text.spans + start if start else text.spans)
        start += text.flat.shape[1]
    return _join([text.flat for text in texts], 1), _join(spans, 0)


def _join(parts: Sequence[NDArray[np.int32]], axis: int) -> NDArray[np.int32]:
    return parts[0] if len(parts) == 1 else np.concatenate(parts, axis)


def _pad(ids: Sequence[NDArray[Any]]) -> NDArray[Any]:
    """[n, longest], at least one wide, the shorter ones filled up with 0 (a row of zeros)."""
    longest = max(1, *map(len, ids))
    if len(ids) == 1 and len(ids[0]) == longest:
        return ids[0][None]
    padded = np.zeros((len(ids), longest), ids[0].dtype)
    for index, row in enumerate(ids):
        padded[index, : len(row)] = row
    return padded
