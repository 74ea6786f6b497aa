"""`score`: a weighted sum of other signals' scores, of those that match, or the one of them that is the strongest."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Mapping
from itertools import pairwise
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from signals.bounds import check, within
from signals.facts import Facts
from signals.reading import Reading, unknown
from signals.signal import Doubt, Ends, Params, Shared, Signal

_DIGITS: Final = 9
"""The sum of the weights of what matches is rounded to so many, so that 0.7 and 0.1 are 0.8."""
_TEMPERATURE: Final = 0.1
_KEPT: Final = 1024
"""For how many combinations of what matches a score remembers its reading."""


class BandParams(Params):
    """Where a band ends."""

    below: float | None = Field(
        None, description="What the sum is less than; left out, this is the last band, of all greater sums."
    )


_Band = Annotated[
    Annotated[BandParams, Tag("<band>")] | Annotated[float, Tag("<bound>")],
    Discriminator(lambda value: "<band>" if isinstance(value, (dict, BandParams)) else "<bound>"),
]


class ScoreParams(Params):
    """What is added up, the sum's bounds, and its bands."""

    sum: dict[str, float] = Field(min_length=1, description="Weight by the name of a signal or of a rule.")
    of: Literal["scores", "matches"] = Field(
        "scores",
        description="`scores`: weight × score is added; a signal without a score counts 1 where it matches, else 0. "
        "`matches`: the weights of what matches are added.",
    )
    exclusive: Literal["best", "softmax"] | None = Field(
        None,
        description="Instead of a sum, the strongest of the signals that match, by weight × score: the label is its "
        "name, the score its strength (`best`) or its share (`softmax` over those that match).",
    )
    temperature: float | None = Field(
        None, gt=0, description="Of `softmax`: the lower, the greater the share of the strongest; 0.1 unless given."
    )
    default: str | None = Field(None, min_length=1, description="Of `exclusive`: the label where none matches.")
    at_least: float | None = Field(None, description="The least sum that matches.")
    at_most: float | None = Field(None, description="The greatest sum that matches.")
    bands: dict[str, _Band] = Field(
        {},
        description="Names for parts of the range, for the label: {easy: {below: 0.3}, hard: {}}, the first that fits; "
        "or by lower bounds, as in {low: 0, high: 0.7}, the highest one reached.",
    )

    def inputs(self) -> tuple[str, ...]:
        return tuple(self.sum)

    def bounds(self) -> tuple[float | None, float | None] | None:
        return None if self.at_least is None and self.at_most is None else (self.at_least, self.at_most)

    def label_names(self) -> tuple[str, ...] | None:
        if self.exclusive is None:
            return tuple(self.bands) or None
        return tuple(dict.fromkeys((*self.sum, *([] if self.default is None else [self.default]))))

    def combined(self, spans: Mapping[str, Ends]) -> Ends:
        if self.exclusive is not None:
            return (0, 1) if self.exclusive == "softmax" else (None, None)
        ends = [_times(weight, (0, 1) if self.of == "matches" else spans[name]) for name, weight in self.sum.items()]
        lows, highs = [low for low, _ in ends], [high for _, high in ends]
        low = None if None in lows else sum(low for low in lows if low is not None)
        high = None if None in highs else sum(high for high in highs if high is not None)
        return low, high

    def ranges(self) -> dict[str, Ends] | None:
        """The bands, each with the least sum that it has and the one at which it ends."""
        if not self.bands:
            return None
        edges, names = self.edges()
        starts: list[float | None] = [None, *edges]
        found = zip(names, starts, [*edges, None], strict=True)
        return {name: (low, high) for name, low, high in found if name is not None}

    def edges(self) -> tuple[list[float], list[str | None]]:
        """The sums at which bands begin and end, ascending, and the names before, between and behind them."""
        if all(isinstance(band, BandParams) for band in self.bands.values()):
            ends = [(name, band.below) for name, band in self.bands.items() if isinstance(band, BandParams)]
            edges = [below for _, below in ends if below is not None]
            return edges, [*(name for name, _ in ends), *([None] if len(edges) == len(ends) else [])]
        lows = sorted((low, name) for name, low in self.bands.items() if isinstance(low, float))
        return [low for low, _ in lows], [None, *(name for _, name in lows)]

    def unreached(self, low: float | None, high: float | None) -> Iterator[Doubt]:
        for name, (start, end) in (self.ranges() or {}).items():
            if (start is not None and high is not None and start > high) or (
                end is not None and low is not None and end <= low
            ):
                span = " and ".join(
                    f"never {word} {bound:g}" for word, bound in (("below", low), ("above", high)) if bound is not None
                )
                yield Doubt(("bands", name), "L323", f"never reached: the sum is {span}")

    @model_validator(mode="after")
    def _sensible(self) -> Self:
        if self.bounds() is not None:
            check(self.at_least, self.at_most)
        elif not self.bands and self.exclusive is None:
            raise ValueError("one of at_least, at_most, bands, exclusive is needed")
        if self.exclusive is not None and (self.bands or self.of == "matches"):
            raise ValueError("exclusive gives the strongest signal as the label; it goes without bands and of: matches")
        if self.exclusive is None and self.default is not None:
            raise ValueError("default goes with exclusive only")
        if self.exclusive != "softmax" and self.temperature is not None:
            raise ValueError("temperature goes with `exclusive: softmax` only")
        if any(weight == 0 for weight in self.sum.values()):
            raise ValueError("a weight is 0; leave the signal out")
        given: list[Any] = list(self.bands.values())
        ends = [band.below for band in given if isinstance(band, BandParams)]
        if ends and len(ends) < len(given):
            raise ValueError("bands have either all `{below: …}` or all a lower bound")
        if None in ends[:-1]:
            name = list(self.bands)[ends.index(None)]
            raise ValueError(f"band {name!r} has no `below`, so none after it can be reached: it must be the last")
        for (name, this), (_, before) in pairwise(reversed([*zip(self.bands, ends, strict=False)])):
            if this is not None and before is not None and this <= before:
                raise ValueError(f"band {name!r} ends where the one before it does, or below that: no sum is in it")
        if not ends and len(set(given)) < len(given):
            raise ValueError("two bands begin at the same sum")
        return self


def _times(weight: float, span: Ends) -> Ends:
    low, high = (None if end is None else weight * end for end in span)
    return (low, high) if weight > 0 else (high, low)


class Score(Signal):
    """Reads the sum, or the strongest signal. Unknown (`input_unknown`) while any of the signals is Unknown."""

    kind = "score"
    Parameters = ScoreParams
    sure = True
    scored = True
    labelled = True

    def __init__(self, name: str, params: ScoreParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self.inputs = params.inputs()
        self._weights = tuple(params.sum.items())
        self._matches = self.by_matches = params.of == "matches"
        self._bits = tuple((name, 1 << place) for place, name in enumerate(params.sum))
        self._made: dict[int, Reading] = {}  # by what matches
        self._bounded = params.bounds() is not None
        self._least, self._most = params.at_least, params.at_most
        self._edges, self._names = params.edges()
        self._exclusive, self._default = params.exclusive, params.default
        self._temperature = _TEMPERATURE if params.temperature is None else params.temperature

    def read(self, facts: Facts) -> Reading:
        if self._exclusive is not None:
            return self._strongest(facts)
        known = facts.readings.get
        if self._matches:
            found = 0
            for name, bit in self._bits:
                reading = known(name)
                if reading is None or reading.matched is None:
                    return unknown("input_unknown")
                if reading.matched:
                    found |= bit
            made = self._made.get(found)
            if made is None:
                total = sum(
                    weight for (_, weight), (_, bit) in zip(self._weights, self._bits, strict=True) if bit & found
                )
                made = self._sum(round(total, _DIGITS))
                if len(self._made) < _KEPT:
                    self._made[found] = made
            return made
        total = 0.0
        for name, weight in self._weights:
            reading = known(name)
            if reading is None or reading.matched is None:
                return unknown("input_unknown")
            total += weight * (float(reading.matched) if reading.score is None else reading.score)
        return self._sum(total)

    def _sum(self, total: float) -> Reading:
        label = self._names[bisect_right(self._edges, total)]
        return Reading(within(total, self._least, self._most) if self._bounded else label is not None, total, label)

    def _strongest(self, facts: Facts) -> Reading:
        """The strongest of the signals that match; of equals the first."""
        found: dict[str, float] = {}
        for name, weight in self._weights:
            reading = facts.readings.get(name)
            if reading is None or reading.matched is None:
                return unknown("input_unknown")
            if reading.matched:
                found[name] = weight * (1.0 if reading.score is None else reading.score)
        label, score = self._default, 0.0
        if found:
            label = max(found, key=lambda name: found[name])
            score = top = found[label]
            if self._exclusive == "softmax":
                score = 1.0 / sum(math.exp((each - top) / self._temperature) for each in found.values())
        matched = within(score, self._least, self._most) if self._bounded else label is not None
        return Reading(matched, score, label)
