"""Where a model is served, what it costs, and how it is asked to go on with an answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from upstream.prices import Prices

JSON = dict[str, Any]
"""An object as it is read from JSON."""

HOP = "x-pointsman-hop"
"""Set on every request to a model: a request that carries it is never given to a writer again."""


class ContinuationMode(StrEnum):
    """How an upstream is asked to continue a prefix."""

    FINAL_MESSAGE = "continue_final_message"  # vLLM, SGLang
    PREFIX = "prefix"  # a trailing assistant message with `prefix: true` (DeepSeek, Mistral)
    ASSISTANT = "assistant"  # a plain trailing assistant message
    COMPLETIONS = "completions"  # /v1/completions with a prompt that we render


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a model is served, and its price.

    `url`: base address up to but without `base_path`, such as `http://127.0.0.1:10001`. With `socket`, a Unix socket's
    path, the host part is only what the Host header says. `base_path`: what its server has instead of the `/v1` in
    our calls' paths. `model`: the name in the request body. `price_*`: money per million tokens (see
    `Prices`). `template`: a Jinja
    chat template for `/v1/completions`. `mode`: how to continue a prefix, whatever the probe finds.
    """

    url: str
    model: str
    socket: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    price_input: float = 0.0
    price_output: float = 0.0
    price_cached: float | None = None
    price_written: float | None = None
    template: str | None = None
    mode: ContinuationMode | None = None
    connect_timeout: float = 5.0  # seconds
    first_timeout: float = 60.0  # seconds until the first byte of an answer
    idle_timeout: float = 20.0  # seconds without a byte after that
    base_path: str = "/v1"

    def cost(self, prompt_tokens: int, completion_tokens: int, cached: int = 0, written: int = 0) -> float:
        """Money for this many prompt and completion tokens; see `Prices.cost`."""
        prices = Prices(self.price_input, self.price_output, self.price_cached, self.price_written)
        return prices.cost(prompt_tokens, completion_tokens, cached, written)

    def most(self, prompt_tokens: int, completion_tokens: int) -> float:
        """The most money that this many tokens may cost, whatever the server has, or puts, in its cache."""
        dearest = max(self.price_input, self.price_cached or 0.0, self.price_written or 0.0)
        return Prices(dearest, self.price_output).cost(prompt_tokens, completion_tokens)
