"""`tokens`: how long the request is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Self

import orjson
from pydantic import Field, model_validator

from signals.bounds import Bounds
from signals.facts import Facts, QuickInput
from signals.reading import Reading, Unavailable
from signals.signal import Cost, Shared, Signal
from signals.text.estimate import Estimate, estimate, whole


class TokensParams(Bounds):
    """The bounds of the number of input tokens."""

    at_least: float | None = Field(None, ge=0, description="The least number of tokens that matches.")
    at_most: float | None = Field(None, ge=0, description="The greatest number of tokens that matches.")
    encoding: Literal["o200k", "cl100k"] | None = Field(
        None, description="Count with this encoding instead of estimating; needs the package bpe-openai."
    )
    estimate: bool = Field(
        False,
        description="Estimate the tokens of `encoding` (o200k where none is named) by a table: no package needed.",
    )
    method: Literal["tokens", "bytes"] = Field(
        "tokens",
        description="`bytes`: a quarter of the bytes of the messages and tool definitions, as some routers count, "
        "instead of tokens.",
    )

    @model_validator(mode="after")
    def _one_method(self) -> Self:
        if self.method == "bytes" and (self.encoding is not None or self.estimate):
            raise ValueError("method: bytes counts no tokens; leave encoding and estimate out")
        return self

    def bounds(self) -> tuple[float | None, float | None]:
        return self.at_least, self.at_most

    def span(self) -> tuple[float | None, float | None]:
        return 0, None


class Tokens(Signal):
    """Reads the number of input tokens of the whole request, tools and images included. The score is that number."""

    kind = "tokens"
    Parameters = TokensParams
    sure = True
    scored = True

    def __init__(self, name: str, params: TokensParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        count: QuickInput[int] = estimate
        if params.method == "bytes":
            count = shared.use(Quarters)
        elif params.estimate and params.encoding not in (None, "o200k"):
            count = shared.use(Estimate, params.encoding)
        elif params.encoding is not None and not params.estimate:
            count = shared.use(Exact, params.encoding)
            self.cost = Cost.FAST
        self._size = shared.use(Size, count)
        self._bounds = params
        self._size.add(name, params.at_least)

    def read(self, facts: Facts) -> Reading:
        count = facts.get(self._size)
        return Reading(self._bounds.hold(count), float(count))


class Size:
    """Quick input: a count of tokens. Where it is below the bounds of all signals, it settles them all at once."""

    def __init__(self, count: QuickInput[int]) -> None:
        self._count = count
        self._names: list[str] = []
        self._least = float("inf")

    def add(self, name: str, at_least: float | None) -> None:
        """A signal that is false below `at_least` (None: one that is not)."""
        self._names.append(name)
        self._least = min(self._least, at_least or 0.0)

    def compute(self, facts: Facts) -> int:
        count = facts.get(self._count)
        if count < self._least:
            facts.silent(dict.fromkeys(self._names, Reading(False, float(count))), telling=True)
        return count


class Quarters:
    """Quick input: a quarter of the bytes of a request's text and tool definitions, rounded up."""

    def compute(self, facts: Facts) -> int:
        request = facts.request
        offered = request.asking.offered(request)
        size = len(request.spoken().rstrip("\n").encode(errors="surrogatepass"))
        return -(-(size + (len(orjson.dumps(offered)) if offered else 0)) // 4)


class Exact:
    """Quick input: the tokens of a request, its texts counted with one of OpenAI's encodings."""

    def __init__(self, encoding: str) -> None:
        """ValueError when the package that knows the encodings is not installed."""
        try:
            import bpe_openai
        except ImportError:
            raise ValueError(
                f"encoding: {encoding} needs the package bpe-openai (pip install bpe-openai); "
                "with `estimate: true` they are estimated"
            ) from None
        encode: Callable[[str], list[Any]] = bpe_openai.get_encoding(f"{encoding}_base").encode_ordinary
        self._count: Callable[[str], int] = lambda text: len(encode(text))

    def compute(self, facts: Facts) -> int:
        try:
            return whole(facts.request, self._count)
        except ValueError:  # more tokens than the package counts
            raise Unavailable("too_long") from None
