"""Which decision a session is on (`sticky: session` on a decision), in the state store."""

from __future__ import annotations

from typing import Any

from signals.facts import Facts, SlowInput
from signals.reading import Unavailable
from signals.state.session import Sessions
from signals.state.store import Store


class Kept:
    """Slow input: the decision on which an earlier request of the session has put it; '' where none has."""

    name = "sticky"

    def __init__(self, store: Store, sessions: Sessions) -> None:
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
        self._kept = kept
        self._decision = decision
        self._seconds = seconds

    async def fetch(self, facts: Facts) -> bool:
        """Whether it was put there, which a request that another engine decides is not. Raises `Unavailable`."""
        if not facts.shadow:
            await self._kept.keep(self._decision, self._seconds, facts)
        return not facts.shadow
