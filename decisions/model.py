"""The language models that a policy can send requests to."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal, NamedTuple

from upstream.prices import Prices

Thinking = Literal["reasoning_effort", "enable_thinking", "thinking", "anthropic", "adaptive", "none"]
"""How a model family switches its reasoning on and off.

reasoning_effort: OpenAI's field (gpt-oss and most gateways too); enable_thinking: `chat_template_kwargs` of Qwen3
behind vLLM or SGLang; thinking: `chat_template_kwargs` of DeepSeek V3.1 and Granite; anthropic: the `thinking` object
of /v1/messages with a budget of tokens; adaptive: the same, where the model itself finds its budget, and
`output_config.effort` beside it; none: the model has no such switch.
"""

Family = Literal["max_tokens", "max_completion_tokens"]
"""The field of chat completions that limits the output tokens of a model family."""


Capability = Literal["tools", "vision", "audio", "files", "json_schema", "thinking"]
"""What a model can do beside writing text: call tools, see images, hear, read files, keep to a JSON schema, reason."""


FALLBACKS: Final = 8
"""The most models that can take a model's place, one after the other."""


class Credential(NamedTuple):
    """Where a gateway finds what it sends to a model's server: `prefix` and the `key` of `secret`, in `header`.

    Plain Envoy can take it from the environment variable `env` instead. `secret` and `key` are empty where only that is
    given, `env` where it is not.
    """

    header: str
    prefix: str
    secret: str
    key: str
    env: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class Model:
    """One destination. Prices are money per million tokens, `cached_price` that of input tokens which its server had in
    its cache, `write_price` of those that it put there (None: as any); `context` and `max_output` tokens, None when not
    declared.

    `capabilities` None: not declared, so the model is taken to have all. `quality` is the operator's own estimate, 0 to
    1. `aliases` are further names by which clients may ask for it; one that ends in `*` is a beginning.
    `family` None: the served name tells (`extproc.apis.chat`). `base_path` is what its server has before the name of a
    call (`/api/paas/v4`, '' for nothing); None: what the client has there, which is `/v1` nearly always. `fallback` are
    the models that take its place, one after the other, those of its fallbacks after its own. `priced`: somebody has
    written down what it costs, be it nothing. `stream_usage`: its server takes `stream_options.include_usage`.
    `per_try_timeout` and `health_check` are for gateways: how many seconds pass until its fallbacks are tried where no
    answer begins, and the path by which its server says that it is well (None: no limit, not asked).
    """

    key: str
    name: str
    input_price: float = 0.0
    output_price: float = 0.0
    context: int | None = None
    thinking: Thinking = "reasoning_effort"
    url: str | None = None
    aliases: tuple[str, ...] = ()
    capabilities: frozenset[str] | None = None
    quality: float | None = None
    max_output: int | None = None
    family: Family | None = None
    base_path: str | None = None
    fallback: tuple[Model, ...] = ()
    credential: Credential | None = None
    priced: bool = True
    cached_price: float | None = None
    write_price: float | None = None
    stream_usage: bool = True
    per_try_timeout: float | None = None
    health_check: str | None = None
    _prices: Prices = field(init=False, repr=False)

    def __post_init__(self) -> None:
        prices = Prices(self.input_price, self.output_price, self.cached_price, self.write_price)
        object.__setattr__(self, "_prices", prices)

    @property
    def plain(self) -> Model:
        """The model itself, without what a candidate for a choice changes in its requests."""
        return self

    def lacks(self, needs: frozenset[str]) -> frozenset[str]:
        """Those of `needs` that the model cannot do."""
        return frozenset() if self.capabilities is None else needs - self.capabilities

    def cost(self, input_tokens: int, output_tokens: int, cached: int = 0, written: int = 0) -> float:
        """The price of one call, in the policy's money; `cached` of the input tokens were in the server's cache, and
        `written` of them were put there."""
        return self._prices.cost(input_tokens, output_tokens, cached, written)


def before(path: str, base_path: str | None) -> str:
    """What stands before the base path in the path of a model's URL. The URL may be written without its base path."""
    return path.rstrip("/").removesuffix("/v1" if base_path is None else base_path)


class UnknownModel(Exception):
    """The request names a model that the policy does not know (`unknown_models: refuse`)."""

    def __init__(self, model: str) -> None:
        super().__init__(model)
        self.model = model
