"""`knowledge`: the label of the nearest of many labelled examples, which a file holds."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import orjson
from pydantic import Field, model_validator

from signals import files
from signals.facts import Facts
from signals.neural.embeddings import ENCODER, Embedding, source
from signals.reading import Reading
from signals.request import Scope
from signals.signal import Cost, Ends, Shared, Signal, TextParams

if TYPE_CHECKING:
    from signals.neural.folder import Mounted
    from signals.neural.meanings import Meanings

MOST: Final = 5000
"""Examples of one file, each of which is embedded when a policy is loaded (some milliseconds)."""
_CLOSE: Final = 0.55
"""The least cosine with which a label counts, where neither the file nor the signal says another."""


class KnowledgeParams(TextParams):
    """Which file, which of its labels, and how near the text must be to their examples."""

    file: str = Field(
        min_length=1,
        description="A JSON file, relative to the policy: {labels: {name: [examples] or {examples: […], at_least: "
        "0.7}}, groups: {name: [labels]}}.",
    )
    is_: list[str] | None = Field(
        None, alias="is", min_length=1, description="Labels and groups that match; left out, every label."
    )
    match: Literal["best", "enough"] | None = Field(
        None,
        description="`best` (unless given): the nearest of all labels must be one of them. `enough`: one of them must "
        "be near enough, whatever else is nearer.",
    )
    at_least: float | None = Field(
        None, ge=0, le=1, description="The least cosine of a label for which the file has none; 0.55 unless given."
    )
    over: list[str] | None = Field(
        None,
        min_length=1,
        description="Labels and groups: instead of `match`, those of `is` must be nearer than these, by `margin`.",
    )
    margin: float | None = Field(None, ge=-1, le=1, description="Of `over`: by how much; 0 unless given.")
    nearest: int = Field(
        1, ge=1, le=100, description="A label is as near as its nearest examples on average, this many of them."
    )
    encoder: str | None = ENCODER

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.over is not None and (self.is_ is None or self.match is not None or self.at_least is not None):
            raise ValueError("over compares labels with those of `is`: it needs `is`, and goes without match, at_least")
        if self.over is None and self.margin is not None:
            raise ValueError("margin goes with over only")
        return self

    def span(self) -> Ends:
        return (0, 1) if self.over is None else (-1, 1)


class Base:
    """The examples of one file, embedded. `labels` are its labels, `least` what the file says of how near they must be,
    `groups` the labels of a group.

    OSError and ValueError when the file cannot be used.
    """

    def __init__(self, model: Meanings | Mounted, path: Path) -> None:
        import numpy as np  # not at the top: whoever only checks a policy need not wait for it

        try:
            found = orjson.loads(files.read(path, files.POLICY))
        except orjson.JSONDecodeError as error:
            raise ValueError(f"{path.name}: not JSON: {error}") from None
        given = found.get("labels") if isinstance(found, dict) else None
        if not isinstance(given, dict) or not given:
            raise ValueError(f"{path.name}: an object with `labels` is needed")
        groups = found.get("groups", {})
        if unknown := sorted(found.keys() - {"labels", "groups"}):
            raise ValueError(f"{path.name}: unknown key {unknown[0]!r}: it has labels and groups")
        self.labels = tuple(given)
        self.least: dict[str, float] = {}
        texts: list[str] = []
        self._starts: list[int] = []
        for name, entry in given.items():
            examples, least = self._entry(path.name, name, entry)
            if least is not None:
                self.least[name] = least
            self._starts.append(len(texts))
            texts += examples
        if len(texts) > MOST:
            raise ValueError(f"{path.name}: {len(texts)} examples, and {MOST} is the most")
        self.groups = self._grouped(path.name, groups)
        self._examples = model.embed(texts)
        self._ends = [*self._starts[1:], len(texts)]
        self._np: Any = np

    @staticmethod
    def _entry(file: str, name: str, entry: Any) -> tuple[list[str], float | None]:
        least = None
        if isinstance(entry, dict):
            if unknown := sorted(entry.keys() - {"examples", "at_least"}):
                raise ValueError(f"{file}: unknown key {unknown[0]!r} of label {name!r}: it has examples and at_least")
            least, entry = entry.get("at_least"), entry.get("examples")
        if (
            not isinstance(entry, list)
            or not entry
            or not all(isinstance(text, str) and text.strip() for text in entry)
        ):
            raise ValueError(f"{file}: label {name!r} needs a list of examples, each a text")
        if least is not None and (isinstance(least, bool) or not isinstance(least, int | float) or not 0 <= least <= 1):
            raise ValueError(f"{file}: at_least of label {name!r}: a number from 0 to 1 is needed")
        return entry, least

    def _grouped(self, file: str, groups: Any) -> dict[str, tuple[str, ...]]:
        if not isinstance(groups, dict):
            raise ValueError(f"{file}: groups: an object of lists of labels is needed")
        for name, members in groups.items():
            if name in self.labels:
                raise ValueError(f"{file}: group {name!r} has the name of a label")
            if not isinstance(members, list) or not members:
                raise ValueError(f"{file}: group {name!r} needs a list of labels")
            if unknown := [one for one in members if one not in self.labels]:
                raise ValueError(f"{file}: group {name!r} has no label {unknown[0]!r} to take")
        return {name: tuple(members) for name, members in groups.items()}

    def named(self, names: list[str]) -> frozenset[str]:
        """The labels that `names`, of labels and groups, mean. ValueError for a name that is neither."""
        found: set[str] = set()
        for name in names:
            if name in self.groups:
                found.update(self.groups[name])
            elif name in self.labels:
                found.add(name)
            else:
                near = get_close_matches(name, [*self.labels, *self.groups], 1)
                raise ValueError(f"no label or group {name!r}{f' (did you mean {near[0]!r}?)' if near else ''}")
        return frozenset(found)

    def scores(self, vector: Any, nearest: int) -> dict[str, float]:
        """How near the text of this embedding is to each label: cosines, 0 at the least."""
        cosines = self._examples @ vector
        found = {}
        for label, start, end in zip(self.labels, self._starts, self._ends, strict=True):
            own = cosines[start:end]
            if nearest > 1 and len(own) > 1:
                some = min(nearest, len(own))
                value = float(self._np.partition(own, len(own) - some)[-some:].mean())
            else:
                value = float(own.max())
            found[label] = max(0.0, value)
        return found


class _Nearness:
    """Quick input: how near the text of a scope is to each label of a base."""

    def __init__(self, base: Base, embedding: Embedding, scope: Scope, nearest: int) -> None:
        self._base, self._embedding, self._scope, self._nearest = base, embedding, scope, nearest

    def compute(self, facts: Facts) -> dict[str, float]:
        vector = facts.got(self._embedding)
        return self._base.scores(vector, self._nearest) if facts.request.text(self._scope) else {}


class Knowledge(Signal):
    """Reads how near the text is to the labels that match. Label: the nearest one of all that is near enough."""

    kind = "knowledge"
    Parameters = KnowledgeParams
    scored = True
    labelled = True
    cost = Cost.NEURAL

    def __init__(self, name: str, params: KnowledgeParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        model = source(shared, params.encoder)
        base = shared.use(Base, model, shared.services.folder / params.file)
        self._wanted = frozenset(base.labels) if params.is_ is None else base.named(params.is_)
        self._over = None if params.over is None else base.named(params.over)
        self._margin = params.margin or 0.0
        self._best = params.match != "enough"
        usual = _CLOSE if params.at_least is None else params.at_least
        self._least = {label: base.least.get(label, usual) for label in base.labels}
        embedding = shared.use(Embedding, model, params.in_)
        self._nearness = shared.use(_Nearness, base, embedding, params.in_, params.nearest)
        self.slow = (embedding,)

    def read(self, facts: Facts) -> Reading:
        scores = facts.get(self._nearness)
        if not scores:
            return Reading(False, 0.0)
        best = max(scores, key=lambda label: scores[label])
        label = best if scores[best] >= self._least[best] else None
        score = max(scores[name] for name in self._wanted)
        if self._over is not None:
            score -= max(scores[name] for name in self._over)
            return Reading(score >= self._margin, score, label)
        if self._best:
            return Reading(label in self._wanted, score, label)
        return Reading(any(scores[name] >= self._least[name] for name in self._wanted), score, label)
