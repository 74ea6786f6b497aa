"""Selectors: which of several models takes a request (`pick: [...], by: ...`)."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from math import log as _log
from typing import Any, ClassVar

from decisions.model import Model
from signals.facts import Facts, SlowInput
from signals.needs import NEEDS
from signals.reading import Unavailable
from signals.request import Request
from signals.state.session import USUAL, Sessions
from signals.state.store import Store
from signals.text.estimate import estimate

PIN_S = 86_400.0
"""How long a session stays pinned after its last request, in seconds."""


def request_key(request: Request) -> str:
    """A key of one request: Envoy's request id where there is one, so that equal bodies still spread."""
    return request.headers.get("x-request-id") or hashlib.blake2b(request.body, digest_size=16).hexdigest()


def fraction(*parts: str) -> float:
    """A number in (0, 1) that depends on `parts` alone, evenly spread."""
    digest = hashlib.blake2b("\0".join(parts).encode(errors="surrogatepass"), digest_size=8).digest()
    return (int.from_bytes(digest, "big") + 1) / (2**64 + 2)


def able(model: Model, facts: Facts) -> Model:
    """`model`, or where it lacks what the request needs the first of its fallbacks that has it, if there is one."""
    if model.capabilities is None or not model.fallback or not model.lacks(needs := facts.get(NEEDS)):
        return model
    return next((other for other in model.fallback if not other.lacks(needs)), model)


class Selector(ABC):
    """Chooses one of its `models` for a request. `name` is what `by:` calls it.

    Models that lack what the request needs (images, tools, …) are no choice, unless all of them do: then the first of
    the chosen one's fallbacks that has it takes the request, if there is one.
    """

    name: ClassVar[str]
    slow: tuple[SlowInput[Any], ...] = ()
    """What has to be fetched before `choose`."""

    def __init__(self, models: Sequence[Model]) -> None:
        self.models = tuple(models)
        self._all_able = all(model.capabilities is None for model in models)

    def choose(self, facts: Facts) -> Model:
        """The model that takes the request: one of those given, or one's fallback."""
        chosen = self.preferred(facts)
        return chosen if self._all_able else able(chosen, facts)

    def preferred(self, facts: Facts) -> Model:
        """The model that takes the request, if need be by a fallback; always one of those given."""
        if self._all_able:
            return self.among(self.models, facts)
        needs = facts.get(NEEDS)
        return self.among(tuple(model for model in self.models if not model.lacks(needs)) or self.models, facts)

    @abstractmethod
    def among(self, models: Sequence[Model], facts: Facts) -> Model:
        """One of `models`, which are some of those given, at least one."""


class First(Selector):
    """The first that can: a model, and those that take its place."""

    name = "first"

    def among(self, models: Sequence[Model], facts: Facts) -> Model:
        return models[0]


class Weighted(Selector):
    """Weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005).

    The share of each model is its weight; a key always goes to the same model, and when a model is added or removed
    only the keys that must move do. `sticky` keys by session instead of by request. A model of weight 0 takes a request
    only where no other can.
    """

    name = "weighted"

    def __init__(
        self, models: Sequence[Model], weights: Mapping[str, float], sticky: bool, sessions: Sessions = USUAL
    ) -> None:
        super().__init__(models)
        self._weights = {model: weights.get(model.key, 1.0) for model in models}
        self._sessions = sessions if sticky else None

    def among(self, models: Sequence[Model], facts: Facts) -> Model:
        key = facts.get(self._sessions) if self._sessions is not None else request_key(facts.request)
        weights = self._weights
        weighed = [model for model in models if weights[model] > 0] or models
        return min(weighed, key=lambda model: -_log(fraction(key, model.key)) / (weights[model] or 1.0))


class Cheapest(Selector):
    """The lowest estimated price of the call among the models whose context holds it.

    Output length is the request's own cap, or as long as the input where there is none. When none of the contexts
    holds the request the largest one takes it: a refusal is the upstream's to give.
    """

    name = "cheapest"

    def among(self, models: Sequence[Model], facts: Facts) -> Model:
        tokens, output = expected_tokens(facts)
        room = tokens + (facts.request.asking.most(facts.request) or 0)
        fitting = [model for model in models if model.context is None or room <= model.context]
        if not fitting:
            return max(models, key=lambda model: model.context or 0)
        return min(fitting, key=lambda model: model.cost(tokens, output))


class Pinned(Selector):
    """Keeps a session on the model that `chooser` chose for its first request, by a pin in the state store.

    Pins are by `scope`, the name of the decision, so that they outlive a policy whose choice has one model more. A
    model that is no longer among the choices loses the session; one that lacks what a request needs loses that request.
    While the store is away, `chooser` decides.
    """

    name = "pinned"

    def __init__(self, chooser: Selector, store: Store, scope: str = "", sessions: Sessions = USUAL) -> None:
        super().__init__(chooser.models)
        self._chooser = chooser
        self._store = store
        self._scope = scope
        self._sessions = sessions
        self._by_key = {model.key: model for model in self.models}
        self.slow = (self,)

    async def fetch(self, facts: Facts) -> str:
        """The key of the session's model (the slow input of this selector). Raises `Unavailable`."""
        session = facts.get(self._sessions)
        if not session:
            raise Unavailable("no_session")
        key = f"pin:{self._scope}:{session}"
        if facts.shadow:
            return await self._store.text(key) or ""
        chosen = self._chooser.preferred(facts).key
        pinned = await self._store.pin(key, chosen, PIN_S)
        if pinned in self._by_key:
            return pinned
        await self._store.keep(key, chosen, PIN_S)
        return chosen

    def among(self, models: Sequence[Model], facts: Facts) -> Model:
        try:
            pinned = self._by_key.get(facts.got(self))
        except Unavailable:
            pinned = None
        return pinned if pinned is not None and pinned in models else self._chooser.among(models, facts)


class Kept:
    """Slow input: the decision on which an earlier request of the session has put it; '' where none has."""

    name = "sticky"

    def __init__(self, store: Store, sessions: Sessions = USUAL) -> None:
        self.store = store
        self.sessions = sessions
        self.slow: tuple[SlowInput[Any], ...] = (self,)

    def key(self, facts: Facts) -> str:
        """Where the store has it. Raises `Unavailable` where nothing tells the session."""
        session = facts.get(self.sessions)
        if not session:
            raise Unavailable("no_session")
        return f"decision:{session}"

    async def fetch(self, facts: Facts) -> str:
        """The decision's name. Raises `Unavailable`."""
        return await self.store.text(self.key(facts)) or ""

    async def keep(self, decision: str, seconds: float, facts: Facts) -> None:
        """Put the session on `decision` for so long. Raises `Unavailable`."""
        await self.store.keep(self.key(facts), decision, seconds)


class Keep:
    """Slow input that puts the session on a decision, by its name, until so many seconds after its last request."""

    def __init__(self, kept: Kept, decision: str, seconds: float) -> None:
        self.kept = kept
        self._decision = decision
        self._seconds = seconds

    async def fetch(self, facts: Facts) -> bool:
        """Whether it was put there, which a request that another engine decides is not. Raises `Unavailable`."""
        if not facts.shadow:
            await self.kept.keep(self._decision, self._seconds, facts)
        return not facts.shadow


def expected_tokens(facts: Facts) -> tuple[int, int]:
    """Input and output tokens by which a call is priced: as much output as it allows, or as it has input."""
    tokens = facts.get(estimate)
    wanted = facts.request.asking.most(facts.request)
    return tokens, tokens if wanted is None else wanted
