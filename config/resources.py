"""What outlives a policy in one process: the models that are loaded, the gauges, what selectors have learned,
and the state store."""

from __future__ import annotations

from pathlib import Path

from config.schema import StoreSpec
from signals.neural.service import Inference
from signals.state.gauges import Loads
from signals.state.standing import Standings
from signals.state.store import Memory, Store, Valkey


class Resources:
    """Made once per process; the engines of one policy after another are built with it."""

    def __init__(self) -> None:
        self.inference = Inference()
        self.loads = Loads()
        self.standings = Standings()
        self._memory = Memory()
        self._stores: dict[tuple[StoreSpec, str | None, bool], Valkey] = {}

    def store(self, spec: StoreSpec | None, folder: Path, answers: bool = False) -> Store:
        """The store that a policy in `folder` asks for, the same one as before if nothing about it has changed.

        `answers`: for answers that are kept, with connections of its own: where they are too large to come in time,
        budgets and sessions do not wait. Raises ValueError when its secret or the `redis` package is missing.
        """
        if spec is None:
            return self._memory
        password = None if spec.password is None else spec.password.reveal(folder)
        key = (spec, password, answers)
        if key not in self._stores:
            self._stores[key] = Valkey(spec.url, password, spec.timeout)
        return self._stores[key]

    def counts(self) -> dict[str, float]:
        """The stores' counts (see `signals.state.store.Store.counts`), added up."""
        each = [store.counts() for store in self._stores.values()]
        return {name: sum(counts[name] for counts in each) for name in self._memory.counts()}

    async def close(self) -> None:
        """Write what is pending and close the connections."""
        for store in self._stores.values():
            await store.close()


class TrialResources(Resources):
    """Resources whose state is this process's own, for requests that are only tried: no session moves by them, and no
    store is asked."""

    def store(self, spec: StoreSpec | None, folder: Path, answers: bool = False) -> Store:
        super().store(spec, folder, answers)  # what is wrong with it is a problem all the same
        return super().store(None, folder)
