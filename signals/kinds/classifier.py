"""`classifier`: any text classifier in a folder of Hugging Face layout (ONNX)."""

from __future__ import annotations

from difflib import get_close_matches
from typing import TYPE_CHECKING, Literal, Self

from pydantic import Field, model_validator

from signals.facts import Facts
from signals.neural.embeddings import mounted
from signals.neural.fair import client_of
from signals.reading import Reading
from signals.request import Scope
from signals.signal import Cost, Shared, Signal, TextParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from signals.neural.folder import Mounted, Windows


class ClassifierParams(TextParams):
    """A model, the class whose probability counts, and how a long text is cut."""

    path: str = Field(
        min_length=1,
        description="The folder with `model.onnx` (or `onnx/model.onnx`), `tokenizer.json` and `config.json`, "
        "relative to the policy.",
    )
    label: str = Field(min_length=1, description="The class that matches, as `id2label` of config.json names it.")
    at_least: float = Field(0.5, ge=0, le=1, description="The least probability that matches.")
    window: int = Field(510, ge=8, description="Tokens of a window; never more than the model takes.")
    stride: int = Field(255, ge=1, description="Tokens between the starts of two windows.")
    aggregate: Literal["max", "mean"] = Field(
        "max", description="A label's greatest or mean probability over the windows."
    )

    @model_validator(mode="after")
    def _overlap(self) -> Self:
        # A long text would have a window for every token otherwise, and each is a run of the model.
        if self.stride * 8 < self.window:
            raise ValueError(f"stride: {self.stride} is less than an eighth of the window of {self.window} tokens")
        return self

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, None

    def span(self) -> tuple[float | None, float | None]:
        return 0, 1


class _Probabilities:
    """Slow input: the labels' probabilities for the text of a scope, and the number of windows."""

    def __init__(self, model: Mounted, scope: Scope, how: Windows) -> None:
        self._model, self._scope, self._how = model, scope, how

    async def fetch(self, facts: Facts) -> tuple[NDArray[np.float32], int]:
        request = facts.request
        text, client = request.text(self._scope), client_of(request)
        return await self._model.probabilities(text, facts.deadline, self._how, client)


class Classifier(Signal):
    """Reads the probability of one class. The label is the likeliest class; without text nothing matches."""

    kind = "classifier"
    Parameters = ClassifierParams
    answers = True
    scored = True
    labelled = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: ClassifierParams, shared: Shared) -> None:
        from signals.neural.folder import Windows

        super().__init__(name, params, shared)
        model = mounted(shared, params.path, "sequence")
        self._labels = model.model.labels
        if params.label not in self._labels:
            close = get_close_matches(params.label, self._labels, 1)
            hint = f" (did you mean {close[0]}?)" if close else f"; it has {', '.join(self._labels[:20])}"
            raise ValueError(f"label: the model in {params.path} has no class {params.label}{hint}")
        self._index, self._least, self._scope = self._labels.index(params.label), params.at_least, params.in_
        how = Windows(params.window, params.stride, params.aggregate == "mean")
        self._chances = shared.use(_Probabilities, model, params.in_, how)
        self.slow = (self._chances,)

    def read(self, facts: Facts) -> Reading:
        chances, windows = facts.got(self._chances)
        if not facts.request.text(self._scope):
            return Reading(self._least <= 0, 0.0)
        score = float(chances[self._index])
        label = self._labels[int(chances.argmax())]
        return Reading(score >= self._least, score, label, evidence=(f"windows={windows}",))
