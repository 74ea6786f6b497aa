"""Selectors: which of several models takes a request (`pick: [...], by: ...`)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import log as _log
from typing import Any, ClassVar

from decisions.model import Model
from signals.estimate import estimate
from signals.facts import Facts, SlowInput
from signals.reading import Unavailable
from signals.request import Request
from signals.session import session_key
from signals.store import Store

PIN_S = 86_400.0
"""How long a session stays pinned after its last request."""


def request_key(request: Request) -> str:
    """A key of one request: Envoy's request id where there is one, so that equal bodies still spread."""
    return request.headers.get("x-request-id") or hashlib.blake2b(request.body, digest_size=16).hexdigest()


def fraction(*parts: str) -> float:
    """A number in (0, 1) that depends on `parts` alone, evenly spread."""
    digest = hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)


class Selector(ABC):
    """Chooses one of its `models` for a request. `name` is what `by:` calls it."""

    name: ClassVar[str]
    slow: tuple[SlowInput[Any], ...] = ()
    """What has to be fetched before `choose`."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = tuple(models)

    @abstractmethod
    def choose(self, facts: Facts) -> Model:
        """The model that takes the request; always one of those given."""


class Weighted(Selector):
    """Weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005).

    The share of each model is its weight; a key always goes to the same model, and when a model is added or removed
    only the keys that must move do. `sticky` keys by session instead of by request, so no state is kept anywhere.
    """

    name = "weighted"

    def __init__(self, models: Sequence[Model], weights: Mapping[str, float], sticky: bool) -> None:
        super().__init__(models)
        self._weights = [(model, weights.get(model.key, 1.0)) for model in models if weights.get(model.key, 1.0) > 0]
        self._key = session_key if sticky else request_key

    def choose(self, facts: Facts) -> Model:
        key = self._key(facts.request)
        return min(self._weights, key=lambda choice: -_log(fraction(key, choice[0].key)) / choice[1])[0]


class Cheapest(Selector):
    """The lowest estimated price of the call among the models whose context holds it.

    Output length is the request's own cap, or as long as the input where there is none. When none of the contexts
    holds the request the largest one takes it: a refusal is the upstream's to give.
    """

    name = "cheapest"

    def choose(self, facts: Facts) -> Model:
        tokens, output = expected_tokens(facts)
        room = tokens + (_output_cap(facts.request.fields) or 0)
        fitting = [model for model in self.models if model.context is None or room <= model.context]
        if not fitting:
            return max(self.models, key=lambda model: model.context or 0)
        return min(fitting, key=lambda model: model.cost(tokens, output))


class Pinned(Selector):
    """Keeps a session on the model that `chooser` chose for its first request, by a pin in the state store.

    A pinned model that is no longer among the choices loses the session. While the store is away, `chooser` decides.
    """

    name = "pinned"

    def __init__(self, chooser: Selector, store: Store) -> None:
        super().__init__(chooser.models)
        self._chooser = chooser
        self._store = store
        self._by_key = {model.key: model for model in self.models}
        self.slow = (self,)

    async def fetch(self, facts: Facts) -> str:
        """The key of the session's model (the slow input of this selector). Raises `Unavailable`."""
        session = hashlib.blake2b(session_key(facts.request).encode(errors="surrogatepass"), digest_size=16).hexdigest()
        choices = ",".join(sorted(self._by_key))
        return await self._store.pin(f"pin:{choices}:{session}", self._chooser.choose(facts).key, PIN_S)

    def choose(self, facts: Facts) -> Model:
        try:
            pinned = self._by_key.get(facts.got(self))
        except Unavailable:
            pinned = None
        return pinned or self._chooser.choose(facts)


def expected_tokens(facts: Facts) -> tuple[int, int]:
    """Input and output tokens by which a call is priced: as much output as it allows, or as it has input."""
    tokens = facts.get(estimate)
    wanted = _output_cap(facts.request.fields)
    return tokens, tokens if wanted is None else wanted


def _output_cap(fields: Mapping[str, Any]) -> int | None:
    for name in ("max_completion_tokens", "max_output_tokens", "max_tokens"):
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return None
