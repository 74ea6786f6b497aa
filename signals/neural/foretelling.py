"""How good the answers of models to a text will be, foretold from the grades of their answers to other texts.

A file of `pointsman select train` holds figures of the text (`abilities`: a few sums over its words; `neighbours`: the
mean grades of the most similar graded questions), and for each model the weights by which they tell its chance.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any, Final, Literal
from zipfile import BadZipFile
from zlib import error as ZlibError

import numpy as np
from numpy.typing import NDArray

from signals import files
from signals.neural.features import Features, features
from signals.neural.normalise import normalise
from signals.neural.tokenizer import Lexicon

F32 = NDArray[np.float32]
F64 = NDArray[np.float64]

Way = Literal["abilities", "neighbours"]
VERSION: Final = 2
SHARP: Final = 16.0
"""How surely the likeliest category is taken, by the score that each gets."""
WEIGHT: Final = 3.0
"""How much a category counts among the other figures, which are of about unit size."""
NEAREST: Final = 40
"""Questions that are asked for their grades."""
LEAST: Final = 1e-6
_PARTS: Final = ("rows", "weights", "starts", "scales", "grades", "common")
_LARGEST: Final = 1 << 30
"""Bytes of a file."""


@dataclass(frozen=True, slots=True, eq=False)
class TextFigures:
    """What a text is told by. `abilities`: `weights` float16 [entries, k] of the lexicon's `rows` int32, rising; the
    last of the k columns score categories, each of which is as common as `common` float32 says.
    `neighbours`: of each graded question the `rows`, one after the other, which begin at `starts` int32 [n], with the
    lengths `scales` float32 [n], and the `grades` float32 [n, models] less those of an average question, 0 unknown."""

    way: Way
    rows: NDArray[np.int32]
    weights: NDArray[np.float16] = field(default_factory=lambda: np.zeros((0, 0), np.float16))
    starts: NDArray[np.int32] = field(default_factory=lambda: np.zeros(0, np.int32))
    scales: F32 = field(default_factory=lambda: np.zeros(0, np.float32))
    grades: F32 = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    common: F32 = field(default_factory=lambda: np.zeros(0, np.float32))

    def of(self, text: Features, weight: F32) -> F64:
        """The figures of a text, float64 [k]; `weight` are those of the lexicon's rows."""
        if self.way == "abilities":
            at = np.searchsorted(self.rows, text.rows)
            at[at == len(self.rows)] = 0
            known = self.rows[at] == text.rows
            some = at[known]
            found: F64 = weight[text.rows[known]].astype(np.float64) @ self.weights[some].astype(np.float64)
            scaled: F64 = figured((found * text.scale)[None], self.common)[0]
            return scaled
        alike = np.zeros(len(weight), np.float32)
        alike[text.rows] = weight[text.rows] ** 2 * text.scale
        near = np.add.reduceat(alike[self.rows], self.starts) * self.scales
        best = np.argpartition(near, -NEAREST)[-NEAREST:] if len(near) > NEAREST else np.arange(len(near))
        share = near[best].astype(np.float64)
        grades: F64 = share @ self.grades[best].astype(np.float64)
        grades /= share.sum() + 1.0
        return grades


@dataclass(frozen=True, slots=True, eq=False)
class Foretelling:
    """A trained file: `prices` of models by their names (NaN unknown), and what was measured (`card`).

    The chance of a model is sigmoid(w0 + w . figures), by a row of `weights` float64 [models, 1 + k]. `bars` float64
    [2, n] are shares of good answers, and the chances that have to be foretold so that they are kept.
    """

    lexicon: Lexicon
    figures: TextFigures
    prices: dict[str, float]
    weights: F64
    bars: F64
    card: dict[str, Any]

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.prices)

    @property
    def way(self) -> Way:
        return self.figures.way

    def chances(self, text: str) -> F64:
        """The chance of each model to answer `text` well, in the order of `models`. Linear in the text."""
        read = features(normalise(text, self.lexicon), self.lexicon)
        found: F64 = chances(self.weights, self.figures.of(read, self.lexicon.weight)[None])[0]
        return found

    def bar(self, share: float) -> float:
        """The chance that has to be foretold so that the `share` of answers is good."""
        return float(np.interp(share, self.bars[0], self.bars[1]))

    def save(self, path: Path) -> None:
        """Raises OSError."""
        figures = self.figures
        about = {"version": VERSION, "way": figures.way, "models": self.models, "entries": self.lexicon.rows}
        arrays = {name: getattr(figures, name) for name in _PARTS}
        with path.open("wb") as file:
            np.savez_compressed(
                file,
                about=np.frombuffer(json.dumps(about | {"card": self.card}).encode(), np.uint8),
                prices=np.array([self.prices[name] for name in self.models], np.float64),
                models=self.weights,
                bars=self.bars,
                **arrays,
            )

    @classmethod
    def load(cls, path: Path, lexicon: Lexicon | None = None) -> Foretelling:
        """OSError when the file cannot be read, ValueError when it is not one."""
        lexicon = lexicon or Lexicon.load()
        try:
            with np.lib.npyio.NpzFile(BytesIO(files.read(path, _LARGEST)), allow_pickle=False) as found:
                about = json.loads(bytes(found["about"]))
                if about["version"] != VERSION or about["entries"] != lexicon.rows:
                    raise ValueError("it belongs to another version of Pointsman; train it anew")
                parts = {name: found[name] for name in _PARTS}
                prices = dict(zip(about["models"], found["prices"].tolist(), strict=True))
                made = cls(
                    lexicon, TextFigures(about["way"], **parts), prices, found["models"], found["bars"], about["card"]
                )
                if len(made.chances("a text to see whether its parts belong together")) != len(made.models):
                    raise ValueError("its models are others than those it has weights of")
                float(made.card["cost"]), made.bar(0.5)
                return made
        except (KeyError, TypeError, BadZipFile, ZlibError, EOFError, IndexError, ValueError) as error:
            raise ValueError(f"{path}: not a file of `pointsman select train`: {error}") from None


def figured(sums: F64, common: F32) -> F64:
    """Figures [n, k] of texts by their sums over words [n, k], the last of which score categories."""
    count = len(common)
    if not count:
        return sums
    scores = np.clip((sums[:, -count:] + common) * SHARP, -300, 300)
    shares = np.exp(scores - scores.max(1, keepdims=True))
    found: F64 = np.hstack([sums[:, :-count], WEIGHT * shares / shares.sum(1, keepdims=True)])
    return found


def chances(weights: F64, figures: F64) -> F64:
    """The chances [n, models] of models with `weights` [models, 1 + k] at texts with `figures` [n, k]."""
    found: F64 = 1 / (1 + np.exp(-np.clip(weights[:, 0] + figures @ weights[:, 1:].T, -30, 30)))
    return found
