"""A session stays on its model (`sticky: session`), whatever kind of selector chose it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from decisions.decision import Choice
from decisions.model import Model
from decisions.outcome import Outcome
from decisions.selectors.selector import STAYED, Graded, Pick, Selector
from signals.facts import Facts
from signals.gather import fetch
from signals.reading import Unavailable
from signals.signal import Shared
from signals.state.session import Sessions
from signals.state.store import Store

PIN_S: Final = 86_400.0
"""How long a session stays pinned after its last request, in seconds."""


def built(pick: Pick, shared: Shared) -> Selector:
    """The selector of a choice. Raises OSError or ValueError where something that it needs cannot be had."""
    selector = pick.kind(pick, pick.params, shared)
    return Pinned(selector, pick, shared) if pick.sticky else selector


class Pinned(Selector):
    """Keeps a session on the model that `chooser` chose for its first request, by a pin in the state store.

    Pins are by the name of the decision, so that they outlive a policy whose choice has one model more. A model that is
    no longer among the choices loses the session; one that lacks what a request needs loses that request. While the
    store is away, `chooser` decides.

    Where `chooser` would choose the session's model anew, the choice and its propensity are the chooser's own.
    """

    name = "pinned"
    by_session = True

    def __init__(self, chooser: Selector, pick: Pick, shared: Shared) -> None:
        super().__init__(pick, pick.params, shared)
        self._chooser = chooser
        self._store: Store = shared.services.store
        self._sessions: Sessions = shared.services.sessions
        self._scope = pick.decision
        self._by_key = {model.key: model for model in self.models}
        self.slow = (self,)
        self.learns = chooser.learns
        self.graded = chooser.graded
        self.watches_answers = chooser.watches_answers
        self.standing = chooser.standing
        self.per_tenant = chooser.per_tenant

    def context(self, facts: Facts) -> Any:
        return self._chooser.context(facts)

    def learn(self, outcome: Outcome, choice: Choice) -> None:
        self._chooser.learn(outcome, choice)

    def grade(self, given: Graded, score: float) -> None:
        self._chooser.grade(given, score)

    def compare(self, better: Graded, worse: Graded) -> None:
        self._chooser.compare(better, worse)

    def summary(self, sums: Mapping[str, Sequence[float]]) -> dict[str, tuple[float, float]]:
        return self._chooser.summary(sums)

    async def take_in(self, sums: Mapping[str, Sequence[float]]) -> None:
        await self._chooser.take_in(sums)

    async def forget(self) -> None:
        await self._chooser.forget()

    def stub(self, facts: Facts, qualities: Mapping[str, float]) -> None:
        self._chooser.stub(facts, qualities)

    def stub_seconds(self, facts: Facts, seconds: Mapping[str, float]) -> None:
        self._chooser.stub_seconds(facts, seconds)

    @property
    def grades_by(self) -> str:
        return self._chooser.grades_by

    async def settle(self) -> None:
        await self._chooser.settle()

    async def fetch(self, facts: Facts) -> Choice:
        """The choice for the session (the slow input of this selector). Raises `Unavailable`."""
        await fetch((self._chooser,), facts)
        session = facts.get(self._sessions)
        if not session:
            raise Unavailable("no_session")
        key = f"pin:{self._scope}:{session}"
        chosen = self._chooser.preferred(facts)
        if facts.shadow:
            pinned = await self._store.text(key)
        else:
            pinned = await self._store.pin(key, chosen.model.key, PIN_S)
            if pinned not in self._by_key:
                await self._store.keep(key, chosen.model.key, PIN_S)
        model = self._by_key.get(pinned or "")
        if model is None or model is chosen.model:
            return chosen
        return Choice(model, STAYED, 1.0, chosen.by)

    def among(self, models: Sequence[Model], facts: Facts) -> Choice:
        try:
            chosen = facts.got(self)
        except Unavailable:
            return self._chooser.among(models, facts)
        return chosen if chosen.model in models else self._chooser.among(models, facts)
