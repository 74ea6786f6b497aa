"""Who is next: a queue in which whoever sends large texts does not decide how long others wait.

Between clients it is start-time fair queueing (Goyal, Vin and Cheng, "Start-time Fair Queueing", SIGCOMM 1996): every
client has a tag in virtual time that grows by the work it was served, the least tag is served next, and whoever comes
new begins at the tag that is being served. Within a client the shortest comes first, and every fourth turn is the
oldest one's, so that a long text gets its turn, too.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from ipaddress import IPv6Address, ip_address
from typing import Final, Generic, Protocol, TypeVar

from signals.request import Request

_OLDEST: Final = 4
"""Every so many turns of a client the oldest of its jobs is taken instead of the shortest."""
_LOOK: Final = 64
"""Clients without a job of the right length that are passed over while a batch is filled, at most."""


def client_of(request: Request) -> str:
    """Whose request it is, as far as that is known without doubt: the last address of `x-forwarded-for`, which Envoy
    appends itself (`use_remote_address: true`). Of an IPv6 address the first 64 bits, which are one customer's. ''
    where there is none: then all are one client.
    """
    address = request.headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    if ":" in address:
        try:
            found = ip_address(address)
        except ValueError:
            return address
        if isinstance(found, IPv6Address) and found.ipv4_mapped is None:
            return found.packed[:8].hex()
    return address


class Job(Protocol):
    """What waits. `work` is how much it is, above 0; jobs of one `bucket` may run together; `client` is whose it is.
    `number` is the queue's own: what came later has a greater one."""

    work: int
    bucket: int
    client: str
    number: int


J = TypeVar("J", bound=Job)


class _Client(Generic[J]):
    """The jobs of one client that wait, by bucket and in the order of their coming."""

    __slots__ = ("key", "queues", "tag", "turns", "work")

    def __init__(self, key: str, tag: int) -> None:
        self.key, self.tag = key, tag
        self.turns = self.work = 0
        self.queues: dict[int, OrderedDict[int, J]] = {}

    def add(self, job: J) -> None:
        self.queues.setdefault(job.bucket, OrderedDict())[job.number] = job
        self.work += job.work

    def remove(self, job: J) -> bool:
        """Whether `job` was there."""
        queue = self.queues.get(job.bucket)
        if queue is None or queue.pop(job.number, None) is None:
            return False
        if not queue:
            del self.queues[job.bucket]
        self.work -= job.work
        return True

    def next(self) -> J:
        self.turns += 1
        if self.turns % _OLDEST:
            return self.first(min(self.queues))
        return min((self.first(bucket) for bucket in self.queues), key=lambda job: job.number)

    def first(self, bucket: int) -> J:
        return next(iter(self.queues[bucket].values()))

    def newest(self) -> J:
        return max((next(reversed(queue.values())) for queue in self.queues.values()), key=lambda job: job.number)


class FairQueue(Generic[J]):
    """The queue. It knows no clock and no thread; whoever shares it holds a lock."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[J]] = {}
        # (tag, order of coming, client): every client in `_clients` once, those that wait for nothing included, until
        # the virtual time has passed their tag.
        self._line: list[tuple[int, int, _Client[J]]] = []
        self._now = self._numbers = self._count = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[J]:
        for client in self._clients.values():
            for queue in client.queues.values():
                yield from queue.values()

    def add(self, job: J) -> None:
        job.number = self._numbers = self._numbers + 1
        client = self._clients.get(job.client)
        if client is None:
            client = self._clients[job.client] = _Client(job.client, self._now)
            self._push(client)
        client.add(job)
        self._count += 1

    def remove(self, job: J) -> bool:
        """Take `job` out, whoever's turn it is. Whether it still waited."""
        client = self._clients.get(job.client)
        if client is None or not client.remove(job):
            return False
        self._count -= 1
        return True

    def evict(self) -> J:
        """Take out the newest job of the client whose jobs are the most work together."""
        job = max(self._clients.values(), key=lambda client: client.work).newest()
        self.remove(job)
        return job

    def take(self, count: int, work: int) -> list[J]:
        """Take out what runs next: a job, and others of its bucket as far as they fit into `count` and `work`."""
        client = self._pop()
        while not client.queues:  # served, and nothing came since: the virtual time has reached its tag
            del self._clients[client.key]
            client = self._pop()
        self._now = client.tag
        first = client.next()
        jobs, left = [first], work - first.work
        self._serve(client, first)
        aside: list[_Client[J]] = []
        while self._line and len(jobs) < count and len(aside) < _LOOK:
            client = self._pop()
            job = client.first(first.bucket) if first.bucket in client.queues else None
            if job is None or job.work > left:
                aside.append(client)
                continue
            left -= job.work
            jobs.append(job)
            self._serve(client, job)
        for client in aside:
            self._push(client)
        return jobs

    def _serve(self, client: _Client[J], job: J) -> None:
        self.remove(job)
        client.tag += job.work
        self._push(client)

    def _push(self, client: _Client[J]) -> None:
        self._numbers += 1
        heapq.heappush(self._line, (client.tag, self._numbers, client))

    def _pop(self) -> _Client[J]:
        return heapq.heappop(self._line)[2]
