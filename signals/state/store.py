"""State that replicas share: money spent, and which model a session is on. In this process, or in Redis/Valkey.

There are only a few small operations: add to a number, add to it only within a limit, read a text, keep the first or
the last text that is written under a key. Every call has a deadline of its own and fails as `Unavailable` with
`store_down`, so that no request has to wait for the store.
"""

from __future__ import annotations

import asyncio
import logging
import re
import secrets
import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from signals.reading import Unavailable
from signals.state.sums import Sums

if TYPE_CHECKING:
    from redis.asyncio import Redis

log = logging.getLogger("pointsman.store")

PREFIX = "pointsman:"
DOWN = "store_down"
MARK = ":mark"
REST_S = 1.0  # after a failure the store is left alone for so long: requests see Unknown at once, not after a timeout
MAX_PENDING = 100_000  # keys with an amount to be added later


class Store(Protocol):
    """Shared state. `ttl` is seconds; a key is at most a few hundred characters."""

    async def number(self, key: str) -> float:
        """The number under `key`, 0.0 when there is none. Raises `Unavailable`."""
        ...

    def add(self, key: str, amount: float, ttl: float) -> None:
        """Add to the number under `key`, soon. Never blocks and never raises; the amount is kept while the store is
        down."""
        ...

    async def take(self, key: str, amount: float, limit: float, ttl: float) -> bool:
        """Add to the number under `key` if it stays within `limit`, at once. Raises `Unavailable`."""
        ...

    async def pin(self, key: str, value: str, ttl: float) -> str:
        """The text under `key`, which becomes `value` when there is none; `ttl` begins anew. Raises `Unavailable`."""
        ...

    async def text(self, key: str) -> str | None:
        """The text under `key`. Raises `Unavailable`."""
        ...

    async def keep(self, key: str, value: str, ttl: float) -> None:
        """Let `value` be the text under `key`. Raises `Unavailable`."""
        ...

    async def drop(self, pattern: str) -> int:
        """Forget the texts whose keys fit `pattern`, in which `*` stands for anything and nothing else has a meaning;
        says how many. Takes as long as it must. Raises `Unavailable`."""
        ...

    async def close(self) -> None:
        """Write what is pending, as far as that works, and close the connections."""
        ...

    def counts(self) -> dict[str, float]:
        """`down` (1 or 0), `failures`, `pending` and `dropped` amounts, for metrics."""
        ...


async def first_text(store: Store, keys: Sequence[str], again: float) -> str | None:
    """The text under the first of `keys` that has one. Where none has, they are looked up once more after `again`
    seconds: another router may have shown its client an answer and be about to write what it knows of it. 0: they are
    not. Raises `Unavailable`."""
    for seconds in (0.0, again) if again else (0.0,):
        if seconds:
            await asyncio.sleep(seconds)
        for key in keys:
            if (text := await store.text(key)) is not None:
                return text
    return None


class Memory:
    """State of this process alone, in bounded memory.

    Over `limit` texts the least recently used one is dropped, which costs a session its model at most. Numbers are
    promises (budgets): those of one kind, which all of a key but what is behind its last colon names, have `limit` keys
    of their own, and are never too low (`signals.state.sums`).
    """

    def __init__(self, limit: int = 100_000) -> None:
        self._limit = limit
        self._kept: OrderedDict[str, tuple[float, str]] = OrderedDict()  # key → (expiry, text)
        self._sums: dict[str, Sums] = {}

    async def number(self, key: str) -> float:
        sums = self._sums.get(_kind(key))
        return 0.0 if sums is None else sums.get(key, time.monotonic())

    def add(self, key: str, amount: float, ttl: float) -> None:
        now = time.monotonic()
        sums = self._of(_kind(key), now)
        sums.put(key, sums.get(key, now) + amount, now + ttl, now)

    async def take(self, key: str, amount: float, limit: float, ttl: float) -> bool:
        if await self.number(key) + amount > limit:
            return False
        self.add(key, amount, ttl)
        return True

    async def pin(self, key: str, value: str, ttl: float) -> str:
        kept = self._get(key) or value
        self._put(key, kept, ttl)
        return kept

    async def text(self, key: str) -> str | None:
        return self._get(key)

    async def keep(self, key: str, value: str, ttl: float) -> None:
        self._put(key, value, ttl)

    async def drop(self, pattern: str) -> int:
        fits = re.compile(".*".join(map(re.escape, pattern.split("*"))), re.DOTALL).fullmatch
        found = [key for key in self._kept if fits(key)]
        for key in found:
            del self._kept[key]
        return len(found)

    async def close(self) -> None:
        """There is nothing to close."""

    def counts(self) -> dict[str, float]:
        return {"down": 0.0, "failures": 0.0, "pending": 0.0, "dropped": 0.0}

    def _of(self, kind: str, now: float) -> Sums:
        sums = self._sums.get(kind)
        if sums is None:  # those of periods that are over go when a new one begins
            self._sums = {name: other for name, other in self._sums.items() if other.until > now}
            sums = self._sums[kind] = Sums(self._limit)
        return sums

    def _get(self, key: str) -> str | None:
        expiry, value = self._kept.get(key, (0.0, None))
        return value if expiry > time.monotonic() else None

    def _put(self, key: str, value: str, ttl: float) -> None:
        self._kept[key] = (time.monotonic() + ttl, value)
        self._kept.move_to_end(key)
        while len(self._kept) > self._limit:
            self._kept.popitem(last=False)


def _glob(pattern: str) -> str:
    """`pattern` for the server, where some other signs have a meaning."""
    return re.sub(r"[\[\]?^\\]", r"\\\g<0>", pattern)


def _kind(key: str) -> str:
    return key.rpartition(":")[0]


class Valkey:
    """State in a Redis or Valkey server (RESP, `INCRBYFLOAT`, `SET NX GET`; Redis 7 or later).

    Amounts are gathered by key and written in batches by one task, so that a request never waits for a write, and
    are kept while the server is away. `url` is `redis://host:port/db`, `rediss://` for TLS.
    """

    def __init__(self, url: str, password: str | None = None, timeout: float = 0.02) -> None:
        try:
            from redis.asyncio import Redis
            from redis.backoff import NoBackoff
            from redis.retry import Retry
        except ImportError:
            raise ValueError("the store needs the `redis` package: pip install 'pointsman[redis]'") from None
        self._client: Redis = Redis.from_url(
            url,
            password=password,
            socket_timeout=timeout * 10,
            socket_connect_timeout=timeout * 10,
            decode_responses=True,
            retry=Retry(NoBackoff(), 0),
        )
        self._timeout = timeout
        self._pending: dict[str, tuple[float, float]] = {}  # key → (amount, ttl)
        self._writer: asyncio.Task[None] | None = None
        self._writing = asyncio.Lock()  # `close` may come while the writer waits for an answer: nothing counts twice
        self._rest_until = 0.0
        self._failures = 0
        self._dropped = 0

    async def number(self, key: str) -> float:
        return float(await self._asked(self._client.get(PREFIX + key)) or 0.0)

    def add(self, key: str, amount: float, ttl: float) -> None:
        before = self._pending.get(key)
        if before is None and len(self._pending) >= MAX_PENDING:
            self._dropped += 1
            return
        self._pending[key] = (amount + (before[0] if before else 0.0), ttl)
        if self._writer is None or self._writer.done():
            self._writer = asyncio.get_running_loop().create_task(self._write())

    async def take(self, key: str, amount: float, limit: float, ttl: float) -> bool:
        # Added first and taken back: two replicas at once may both be refused, but never both be let in.
        total = float(await self._asked(self._client.incrbyfloat(PREFIX + key, amount)))
        if total > limit:
            await self._asked(self._client.incrbyfloat(PREFIX + key, -amount))
            return False
        await self._asked(self._client.pexpire(PREFIX + key, int(ttl * 1000)))
        return True

    async def pin(self, key: str, value: str, ttl: float) -> str:
        milliseconds = int(ttl * 1000)
        kept = await self._asked(self._client.set(PREFIX + key, value, px=milliseconds, nx=True, get=True))
        if kept is None:
            return value
        await self._asked(self._client.pexpire(PREFIX + key, milliseconds))
        return str(kept)

    async def text(self, key: str) -> str | None:
        kept = await self._asked(self._client.get(PREFIX + key))
        return None if kept is None else str(kept)

    async def keep(self, key: str, value: str, ttl: float) -> None:
        await self._asked(self._client.set(PREFIX + key, value, px=int(ttl * 1000)))

    async def gather(self, key: str, amounts: Mapping[str, float], ttl: float) -> None:
        """Add to the numbers under `key` by their names, at once. Raises `Unavailable`."""
        pipe = self._client.pipeline(transaction=True)
        for name, amount in amounts.items():
            pipe.hincrbyfloat(PREFIX + key, name, amount)
        pipe.pexpire(PREFIX + key, int(ttl * 1000))
        pipe.set(PREFIX + key + MARK, secrets.token_hex(8), px=int(ttl * 1000))
        await self._asked(pipe.execute(), 10)

    async def mark(self, key: str) -> str | None:
        """A text that is another one whenever the numbers under `key` are others. Raises `Unavailable`."""
        return await self.text(key + MARK)

    async def gathered(self, key: str) -> dict[str, float]:
        """The numbers under `key` by their names. Raises `Unavailable`."""
        found = await self._asked(self._client.hgetall(PREFIX + key), 10)
        return {str(name): float(number) for name, number in found.items()}

    async def ungather(self, keys: Sequence[str]) -> None:
        """Forget the numbers under `keys`. Raises `Unavailable`."""
        await self._asked(self._client.unlink(*(PREFIX + key + end for key in keys for end in ("", MARK))), 10)

    async def drop(self, pattern: str) -> int:
        dropped = 0
        try:
            keys: list[str] = []
            async for key in self._client.scan_iter(_glob(PREFIX + pattern), 1000):
                keys.append(key)
                if len(keys) == 1000:
                    dropped += await self._client.unlink(*keys)
                    keys = []
            return dropped + (await self._client.unlink(*keys) if keys else 0)
        except Exception as error:  # noqa: BLE001 - as in `_asked`
            self._failed(error)
            raise Unavailable(DOWN) from None

    async def close(self) -> None:
        if self._pending and time.monotonic() >= self._rest_until:
            await self._flush()
        if self._writer is not None:
            self._writer.cancel()
        await self._client.aclose()

    def counts(self) -> dict[str, float]:
        return {
            "down": float(time.monotonic() < self._rest_until),
            "failures": float(self._failures),
            "pending": float(len(self._pending)),
            "dropped": float(self._dropped),
        }

    async def _asked(self, command: Any, patience: int = 1) -> Any:
        """The server's answer, for which nobody waits longer than so many timeouts."""
        if time.monotonic() < self._rest_until:
            command.close()
            raise Unavailable(DOWN)
        try:
            return await asyncio.wait_for(command, self._timeout * patience)
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the store could not be asked
            self._failed(error)
            raise Unavailable(DOWN) from None

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        self._rest_until = time.monotonic() + REST_S
        log.warning("store_down", extra={"error": type(error).__name__, "pending": len(self._pending)})

    async def _write(self) -> None:
        """Until nothing is pending: a batch, or a rest when the server is away."""
        while self._pending:
            rest = self._rest_until - time.monotonic()
            await asyncio.sleep(max(rest, 0.005))
            await self._flush()

    async def _flush(self) -> None:
        async with self._writing:
            await self._write_batch()

    async def _write_batch(self) -> None:
        batch = dict(list(self._pending.items())[:1000])
        pipe = self._client.pipeline(transaction=True)
        for key, (amount, ttl) in batch.items():
            pipe.incrbyfloat(PREFIX + key, amount)
            pipe.pexpire(PREFIX + key, int(ttl * 1000))
        try:
            await asyncio.wait_for(pipe.execute(), self._timeout * 10)
        except Exception as error:  # noqa: BLE001 - as in `_asked`; the amounts stay pending
            # A batch whose answer was lost may have been written: it can be counted twice, never forgotten.
            self._failed(error)
            return
        for key, (amount, ttl) in batch.items():
            left = self._pending[key][0] - amount
            if abs(left) > 1e-12:
                self._pending[key] = (left, ttl)
            else:
                del self._pending[key]
