"""How hard a text is for models: an item-response model over the outcomes of many models, shipped as difficulty.npz."""

from __future__ import annotations

from math import exp
from pathlib import Path
from typing import Final
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from signals.neural.features import STYLE, Features
from signals.neural.tokenizer import MODELS

OUTCOMES: Final = MODELS / "difficulty.npz"

F32 = NDArray[np.float32]


class Outcomes:
    """The two-parameter logistic model (Birnbaum 1968): a model of the ability a fails at an item with the probability
    sigmoid(hardness - steepness x a). Both parameters are foretold from the text, as the heads read it: the sum of its
    entries' weights, and a small network on its embedding and style.

    In the file: `wide` int8 [rows] and its `step`; `inner`, `outer` and `line` of the network, each a matrix float16
    [in, out] with a `_bias` float32 [out]; and the `abilities` float32 [n] of models by their `standings` float32 [n],
    rising.
    """

    def __init__(self, path: Path = OUTCOMES) -> None:
        """OSError when the file cannot be read, ValueError when it is not one."""
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
                self._wide = found["wide"].astype(np.float32) * np.float32(found["step"])
                self._layers = {
                    name: (found[name].astype(np.float32), found[f"{name}_bias"].astype(np.float32))
                    for name in ("inner", "outer", "line")
                }
                self._standings, self._abilities = found["standings"], found["abilities"]
        except (KeyError, BadZipFile, EOFError) as error:
            raise ValueError(f"{path}: not a model of outcomes: {error}") from None

    def fits(self, rows: int, width: int) -> bool:
        """Whether it was trained with a lexicon of `rows` entries and an embedding of `width`."""
        return len(self._wide) == rows and len(self._layers["inner"][0]) == width + STYLE

    def ability(self, standing: float) -> float:
        """The ability of a model that answers the share `standing` of the reference's questions rightly; beyond the
        outermost standings of the table that of these."""
        return float(np.interp(standing, self._standings, self._abilities))

    def item(self, text: Features, embedding: F32) -> tuple[float, float]:
        """Hardness and steepness (above 0) of a text."""
        seen = np.concatenate((embedding, np.array(text.style, np.float32)))
        (inner, inner_bias), (outer, outer_bias), (line, line_bias) = self._layers.values()
        hidden = np.maximum(seen @ inner + inner_bias, 0)
        hard, steep = (hidden @ outer + outer_bias + seen @ line + line_bias).tolist()
        return float(self._wide.take(text.rows).sum()) * text.scale + hard, float(np.logaddexp(0, steep))


def fails(item: tuple[float, float], ability: float) -> float:
    """The probability that a model of the `ability` fails at the item."""
    hard, steep = item
    return 1 / (1 + exp(min(700.0, max(-700.0, steep * ability - hard))))
