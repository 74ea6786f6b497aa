"""Where answers are kept: in this process, the least recently used ones dropped first, or in Valkey.

An answer that cannot be had, for whatever reason, is one that is not there.
"""

from __future__ import annotations

import asyncio
import base64
import math
import time
from collections import OrderedDict
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import zstandard

from extproc.keeping.key import Key
from signals.reading import Unavailable
from signals.state.store import Store

LONG: Final = 64 * 1024
"""Bytes of a body or an answer from which on they are worked on in a thread."""
_OVERHEAD: Final = 600
"""Bytes that an entry takes beside its body: keys, numbers, and their places in two tables."""
_KIND: Final = "cache:"


class KeptAnswer(NamedTuple):
    """An answer: the JSON text of the API's own object, and when it was kept, in seconds since the epoch.

    `asked` is the embedding of the question, int8 [d], where others may put it in another way; else b''.
    """

    body: bytes
    at: float
    asked: bytes = b""

    def age(self) -> float:
        """Seconds; 0 where the clock of whoever kept it is ahead of ours."""
        return max(0.0, time.time() - self.at)


class ShelfPlace(NamedTuple):
    """Under what an answer is kept: the name of its decision, and its key."""

    decision: str
    key: Key


class Shelf(Protocol):
    """Keeps answers. Nothing here raises."""

    async def get(self, place: ShelfPlace) -> KeptAnswer | None: ...

    async def put(self, place: ShelfPlace, kept: KeptAnswer, ttl: float) -> None: ...

    async def drop(self, decision: str | None, scope: str | None) -> int:
        """Forget the answers of a decision, and of a scope (None: of all); says how many they were.

        Raises Unavailable where they cannot be reached, and so are kept still.
        """
        ...


class MemoryShelf:
    """In this process, in at most `limit` bytes, all of which the entries are charged for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.bytes = 0
        self.evicted = 0
        self._kept: OrderedDict[str, tuple[ShelfPlace, KeptAnswer, float]] = OrderedDict()  # by digest; until when

    def __len__(self) -> int:
        return len(self._kept)

    async def get(self, place: ShelfPlace) -> KeptAnswer | None:
        return self.find(place)

    def find(self, place: ShelfPlace) -> KeptAnswer | None:
        """The answer, which counts as used."""
        digest = place.key.digest
        entry = self._kept.get(digest)
        if entry is None:
            return None
        if entry[2] <= time.monotonic():
            self._remove(digest)
            return None
        self._kept.move_to_end(digest)
        return entry[1]

    async def put(self, place: ShelfPlace, kept: KeptAnswer, ttl: float) -> None:
        self.keep(place, kept, ttl)

    def keep(self, place: ShelfPlace, kept: KeptAnswer, ttl: float) -> None:
        """The same at once."""
        digest = place.key.digest
        if digest in self._kept:
            self._remove(digest)
        if _size(kept) > self.limit:
            return
        self._kept[digest] = place, kept, time.monotonic() + ttl
        self.bytes += _size(kept)
        self.fit(self.limit)

    def fit(self, limit: int) -> None:
        """Let `limit` be the most bytes from now on."""
        self.limit = limit
        while self.bytes > limit:
            self._remove(next(iter(self._kept)))
            self.evicted += 1

    async def drop(self, decision: str | None, scope: str | None) -> int:
        found = [
            digest
            for digest, (place, _, _) in self._kept.items()
            if decision in (None, place.decision) and scope in (None, place.key.scope)
        ]
        for digest in found:
            self._remove(digest)
        return len(found)

    def _remove(self, digest: str) -> None:
        self.bytes -= _size(self._kept.pop(digest)[1])


def _size(kept: KeptAnswer) -> int:
    return len(kept.body) + len(kept.asked) + _OVERHEAD


class StoreShelf:
    """In the state store, compressed. What leaves this process of a request is the hash of its key.

    `limit`: bytes of one answer; what is larger, or cannot be read, was not written by us and is not there.
    """

    def __init__(self, store: Store, limit: int) -> None:
        self._store = store
        self._limit = limit

    async def get(self, place: ShelfPlace) -> KeptAnswer | None:
        try:
            text = await self._store.text(_name(place))
        except Unavailable:
            return None
        if text is None:
            return None
        if len(text) <= LONG:
            return unpacked(text, self._limit)
        return await asyncio.to_thread(unpacked, text, self._limit)

    async def put(self, place: ShelfPlace, kept: KeptAnswer, ttl: float) -> None:
        text = packed(kept) if len(kept.body) <= LONG else await asyncio.to_thread(packed, kept)
        with suppress(Unavailable):
            await self._store.keep(_name(place), text, ttl)

    async def drop(self, decision: str | None, scope: str | None) -> int:
        return await self._store.drop(f"{_KIND}{decision or '*'}:{scope or '*'}:*")


def _name(place: ShelfPlace) -> str:
    return f"{_KIND}{place.decision}:{place.key.scope}:{place.key.digest}"


def packed(kept: KeptAnswer) -> str:
    """`kept` as a text for the store."""
    data = zstandard.ZstdCompressor(3, write_checksum=True).compress(kept.body)
    parts = (data, kept.asked) if kept.asked else (data,)
    return " ".join((f"{kept.at:.3f}", *(base64.b64encode(part).decode() for part in parts)))


def unpacked(text: str, limit: int) -> KeptAnswer | None:
    """What `packed` made; None where that is something else, or more than `limit` bytes."""
    said, _, rest = text.partition(" ")
    data, _, asked = rest.partition(" ")
    try:
        at = float(said)
        raw = base64.b64decode(data, validate=True)
        if not (math.isfinite(at) and 0 < zstandard.frame_content_size(raw) <= limit):
            return None
        return KeptAnswer(zstandard.decompress(raw), at, base64.b64decode(asked, validate=True))
    except (ValueError, zstandard.ZstdError):
        return None
