"""What selectors have learned: sums by candidate that decay with time and add up, so that replicas share them.

An amount that comes at the time t weighs 2^((t - L) / half-life), for a landmark L that all replicas agree on, and what
is read is divided by the weight of now. So nothing that was added ever has to be changed, and the sums of replicas add
up to those of one (forward decay: Cormode, Shkapenyuk, Srivastava, Xu, "Forward Decay", ICDE 2009). The landmark moves
every SPAN half-lives; what is older than that has faded away.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from math import exp2
from typing import TYPE_CHECKING, Any, Final

from signals.reading import Unavailable
from signals.state.store import Store, Valkey
from signals.state.tally import Tally

if TYPE_CHECKING:  # loaded where something is learned, which few policies do
    import numpy as np
    from numpy.typing import NDArray

    F64 = NDArray[np.float64]

SPAN: Final = 32
"""Half-lives after which the landmark moves."""
MOST: Final = 1e12
"""The largest amount, which leaves room for its weight and for many others."""
EVERY_S: Final = 1.0
"""How often the store is asked for what other replicas have learned, while there are requests."""
PASSING: Final = 256
"""Standings that come and go of which one process keeps the last ones used."""


class Standing:
    """Vectors of `size` sums by the key of a candidate, of this process or of all that share `store`.

    Reading and adding never wait: what was added goes to the store in the background, together with the question for
    what the others have added. Keys of candidates that are gone stay until they have faded, so that a candidate that
    comes back is known. `version` counts what was added here, `pulls` how often the sums of the others have changed.
    `clock` gives seconds since the epoch.
    """

    def __init__(
        self, store: Store, name: str, size: int, half_life: float, clock: Callable[[], float] = time.time
    ) -> None:
        self.name = name
        self.size = size
        self.version = 0
        self.pulls = 0
        self._store = store if isinstance(store, Valkey) else None  # nobody else learns in the memory of a process
        self.half_life = half_life
        self._clock = clock
        self._epoch = self._epoch_now()
        self._sums: dict[str, F64] = {}
        self._fresh: dict[str, tuple[float, ...] | None] = {}  # the sums as they weighed a moment ago
        self._fresh_until = float("-inf")
        self._pending: dict[str, F64] = {}  # not yet in the store, but in the sums
        self._asked = float("-inf")
        self._seen: tuple[int, str | None] | None = None  # which state of the store the sums are of
        self._task: asyncio.Task[None] | None = None
        self._sharing = asyncio.Lock()  # while one tells what was added, another must not ask for the sums without it

    def add(self, key: str, amounts: Sequence[float] | F64) -> None:
        """Add to the sums of a candidate, now. Raises ValueError where these are not `size` numbers of at most MOST."""
        given = self.check(amounts)
        self._turn()
        given = given * exp2(self._age())
        self._sums[key] = self._sums.get(key, 0.0) + given
        self._fresh.pop(key, None)
        if self._store is not None:
            self._pending[key] = self._pending.get(key, 0.0) + given
        self.version += 1
        self.refresh()

    def check(self, amounts: Sequence[float] | F64) -> F64:
        """`amounts`, which can be added. Raises ValueError where these are not `size` numbers of at most MOST."""
        import numpy as np

        given = np.asarray(amounts, np.float64)
        if given.shape != (self.size,) or not (np.abs(given) <= MOST).all():
            raise ValueError(f"{self.size} numbers are needed, none of them beyond {MOST:g}")
        return given

    def __contains__(self, key: str) -> bool:
        return key in self._sums

    @property
    def count(self) -> int:
        """Of how many candidates something is known."""
        return len(self._sums)

    def of(self, key: str) -> F64 | None:
        """The sums of a candidate as they weigh now; None where nothing is known of it."""
        self._turn()
        found = self._sums.get(key)
        return None if found is None else found * exp2(-self._age())

    def told(self, key: str) -> tuple[float, ...] | None:
        """The same as numbers, quickly: they may be as old as a thousandth of a half-life."""
        now = self._clock()
        if now >= self._fresh_until:
            self._fresh = {}
            self._fresh_until = now + self.half_life / 1000
        if key not in self._fresh:
            sums = self.of(key)
            self._fresh[key] = None if sums is None else tuple(sums.tolist())
        return self._fresh[key]

    async def take_in(self, sums: Mapping[str, Sequence[float]]) -> None:
        """Add what another has learned. Raises ValueError as `add` does, and then nothing was added; `Unavailable`
        where it waits here to be told to the store."""
        for amounts in sums.values():
            self.check(amounts)
        for key, amounts in sums.items():
            self.add(key, amounts)
        self.pulls += 1
        await self.share()

    async def forget(self) -> None:
        """Forget all sums, of everybody who shares them. Raises `Unavailable`."""
        async with self._sharing:
            if self._store is not None:
                await self._store.ungather([self._key(self._epoch_now() - back) for back in (0, 1)])
            self._sums, self._fresh, self._pending = {}, {}, {}
            self.pulls += 1

    def stamp(self) -> tuple[int, int, int]:
        """Changes when what `told` says may have changed."""
        return self.version, self.pulls, int(self._clock() / self.half_life * 1000)

    def all(self) -> dict[str, list[float]]:
        """All sums as they weigh now, by candidate: what is exported."""
        self._turn()
        weight = exp2(-self._age())
        return {key: (found * weight).tolist() for key, found in sorted(self._sums.items())}

    def refresh(self) -> None:
        """See to it, in the background, that the store and this process know of each other. Never raises."""
        if self._store is None or self._task is not None or time.monotonic() - self._asked < EVERY_S:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:  # a command, which asks for itself
            return
        self._asked = time.monotonic()
        self._task = loop.create_task(self._in_background())

    async def _in_background(self) -> None:
        try:
            await self.share()
        except Unavailable:  # what was learned waits here, and choices are made by what is known here
            pass
        finally:
            self._task = None

    async def share(self) -> None:
        """Tell the store what was added here, and ask it for the sums. Raises `Unavailable`."""
        if self._store is not None:
            async with self._sharing:
                await self._share(self._store)

    async def _share(self, store: Valkey) -> None:
        self._turn()
        epoch, mine, self._pending = self._epoch, self._pending, {}
        named = {f"{at}:{key}": float(value) for key, sums in mine.items() for at, value in enumerate(sums) if value}
        try:
            if named:
                await store.gather(self._key(epoch), named, 2 * SPAN * self.half_life)
        except Unavailable:
            for key, sums in mine.items():
                self._pending[key] = self._pending.get(key, 0.0) + sums
            raise
        seen = epoch, await store.mark(self._key(epoch))
        if seen == self._seen:
            return  # nobody has added anything: the sums, which may be thousands of numbers, need not come
        before = await store.gathered(self._key(epoch - 1))
        now = await store.gathered(self._key(epoch))
        self._turn()
        if self._epoch != epoch:
            return
        import numpy as np

        found: dict[str, F64] = {}
        for weight, fields in ((exp2(-SPAN), before), (1.0, now)):
            for field, value in fields.items():
                at, _, key = field.partition(":")
                if int(at) < self.size:
                    found.setdefault(key, np.zeros(self.size))[int(at)] += weight * value
        for key, sums in self._pending.items():
            found[key] = found.get(key, 0.0) + sums
        self._sums = found
        self._fresh = {}
        self._seen = seen
        self.pulls += 1

    def _key(self, epoch: int) -> str:
        return f"standing:{self.name}:{self.size}:{self.half_life:g}:{epoch}"

    def _epoch_now(self) -> int:
        return int(self._clock() / (SPAN * self.half_life))

    def _age(self) -> float:
        """Half-lives since the landmark."""
        return self._clock() / self.half_life - self._epoch * SPAN

    def _turn(self) -> None:
        """Move the landmark, where its time is over."""
        moved = self._epoch_now() - self._epoch
        if moved:
            weight = exp2(-SPAN * moved) if moved < 30 else 0.0
            self._epoch += moved
            self._sums = {key: sums * weight for key, sums in self._sums.items()}
            self._pending = {key: sums * weight for key, sums in self._pending.items()}


class Standings:
    """The standings of one process by their names. They outlive policies."""

    def __init__(self) -> None:
        self.tally = Tally()
        self._known: dict[tuple[Any, ...], Standing] = {}
        self._passing: OrderedDict[tuple[Any, ...], Standing] = OrderedDict()

    def of(self, store: Store, name: str, size: int, half_life: float) -> Standing:
        """The standing of a name in a store; the same one as before where size and half-life are."""
        key = (id(store), name, size, half_life)
        if key not in self._known:
            self._known[key] = Standing(store, name, size, half_life)
        return self._known[key]

    def passing(self, store: Store, name: str, size: int, half_life: float) -> Standing:
        """The same for one of many names, of which the last PASSING used are kept."""
        key = (id(store), name, size, half_life)
        found = self._passing.get(key)
        if found is None:
            found = self._passing[key] = Standing(store, name, size, half_life)
            if len(self._passing) > PASSING:
                self._passing.popitem(last=False)
        else:
            self._passing.move_to_end(key)
        return found

    def known(self) -> Mapping[str, Standing]:
        """Those that there are, by name."""
        return {standing.name: standing for standing in self._known.values()}
