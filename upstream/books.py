"""What one answer by several models has taken so far: requests, tokens and money, model by model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from upstream.endpoint import JSON, Endpoint
from upstream.usage import Spent, TokenCounts


@dataclass(slots=True)
class Account:
    """One model's share."""

    requests: int = 0
    prompt: int = 0  # tokens, as the upstream counted them
    completion: int = 0
    cached: int = 0  # of `prompt`: tokens that the upstream had in its cache
    cache_written: int = 0  # of `prompt`: tokens that it put there
    discarded: int = 0  # of `completion`: tokens that are not in the answer
    uncounted: list[int] = field(default_factory=list)  # prefixes of requests whose prompt was never counted
    base: int | None = None  # prompt tokens of the question alone, once known

    def take(self, counts: TokenCounts) -> None:
        """What the upstream counted for one request."""
        self.prompt += counts.prompt
        self.completion += counts.completion
        self.cached += counts.cached
        self.cache_written += counts.written


class Open(NamedTuple):
    """A request that is not over: `prefix` are the tokens of the answer that it was asked to continue, `received` those
    that have come."""

    model: str
    prefix: int
    received: int


class Books:
    """The accounts of one answer, by model key. Money is in the unit of the endpoints' prices."""

    def __init__(self, endpoints: Mapping[str, Endpoint], question: Callable[[], int]) -> None:
        """`question`: the prompt tokens of the question alone, estimated; asked for where no upstream counts them."""
        self.accounts = {name: Account() for name in endpoints}
        self._endpoints = endpoints
        self._question = question

    @property
    def written(self) -> int:
        """Tokens that the models have written, discarded ones included."""
        return sum(account.completion for account in self.accounts.values())

    def asked(self, model: str) -> None:
        """A request was sent to `model`."""
        self.accounts[model].requests += 1

    def stream(self, open: Open, used: int, counts: TokenCounts | None) -> None:
        """A stream is over; `used` of its tokens are in the answer. `counts`: what the upstream counted, if it did."""
        account = self.accounts[open.model]
        account.discarded += max(0, open.received - used)
        if counts is None:
            account.completion += open.received
            account.uncounted.append(open.prefix)
        else:
            account.take(counts)
            account.base = max(0, counts.prompt - open.prefix)

    def begun(self, model: str, prefix: int) -> None:
        """A request beside the answer was sent, which continues `prefix` tokens. It is estimated until `ended`."""
        self.asked(model)
        self.accounts[model].uncounted.append(prefix)

    def ended(self, model: str, prefix: int) -> None:
        """The upstream has counted a request that was `begun`, or has not answered it."""
        self.accounts[model].uncounted.remove(prefix)

    def aside(self, model: str, counts: TokenCounts) -> None:
        """A request was answered whose text is no part of the answer."""
        account = self.accounts[model]
        account.take(counts)
        account.discarded += counts.completion

    def prompt_tokens(self, model: str, prefix: int) -> int:
        """The prompt tokens of a request to `model` that continues `prefix` tokens, by what was counted so far: for it,
        else for another model, whose chat template is not much longer or shorter."""
        known = [account.base for account in (self.accounts[model], *self.accounts.values())]
        base = next((base for base in known if base is not None), None)
        return (self._question() if base is None else base) + prefix

    def cost(self, open: Open | None = None) -> float:
        """Money so far, that of the `open` request included."""
        total = 0.0
        for name, account in self.accounts.items():
            prompt, completion = self._prompt(name), account.completion
            if open is not None and open.model == name:
                prompt += self.prompt_tokens(name, open.prefix)
                completion += open.received
            total += self._endpoints[name].cost(prompt, completion, account.cached, account.cache_written)
        return total

    def spent(self) -> Spent:
        """What all models together have taken."""
        accounts = self.accounts.values()
        return Spent(
            sum(self._prompt(name) for name in self.accounts),
            self.written,
            self.cost(),
            sum(account.cached for account in accounts),
            None,
            sum(account.cache_written for account in accounts),
        )

    def usage(self, ours: JSON, open: Open | None = None) -> JSON:
        """Tokens of all models, discarded ones included, in OpenAI's shape. Under `pointsman` are `ours` and then each
        model's share, the cost, and whether something had to be estimated."""
        models = {
            name: {
                "requests": account.requests,
                "prompt_tokens": self._prompt(name),
                "completion_tokens": account.completion,
                "discarded_tokens": account.discarded,
            }
            for name, account in self.accounts.items()
        }
        prompt = sum(model["prompt_tokens"] for model in models.values())
        completion = sum(model["completion_tokens"] for model in models.values())
        spent = self.spent()
        details = {"cached_tokens": spent.cached, "cache_write_tokens": spent.written}
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            **({"prompt_tokens_details": details} if spent.cached or spent.written else {}),
            "pointsman": {
                **ours,
                "models": models,
                "cost": round(self.cost(open), 9),
                "estimated": any(account.uncounted for account in self.accounts.values()),
            },
        }

    def _prompt(self, model: str) -> int:
        account = self.accounts[model]
        return account.prompt + sum(self.prompt_tokens(model, length) for length in account.uncounted)
