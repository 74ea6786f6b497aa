"""Who is next: a queue in which whoever sends large texts does not decide how long others wait.

Between clients it is worst-case fair queueing (Bennett and Zhang, "WF2Q: Worst-case Fair Weighted Fair Queueing",
INFOCOM 1996): every client has a tag in virtual time that grows by the work it was served; of those whose tag has come,
next is who would be done first, by its tag and the work that it wants. Virtual time grows by the work that is done over
the number of clients that wait, and whoever comes new begins at its present. Within a client the shortest comes first,
and every fourth turn is the oldest one's, so that a long text gets its turn, too.

Start-time fair queueing (least tag first) would be simpler, but when many clients send equally large texts, as in an
attack, all have the same tag, and a short text waits for one of each.
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

    __slots__ = ("entry", "key", "queues", "tag", "turns", "work")

    def __init__(self, key: str) -> None:
        self.key, self.tag = key, 0.0
        self.entry = self.turns = self.work = 0
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
        if (self.turns + 1) % _OLDEST:
            return self.first(min(self.queues))
        return min((self.first(bucket) for bucket in self.queues), key=lambda job: job.number)

    def first(self, bucket: int) -> J:
        return next(iter(self.queues[bucket].values()))

    def newest(self) -> J:
        return max((next(reversed(queue.values())) for queue in self.queues.values()), key=lambda job: job.number)


_Entry = tuple[float, int, _Client[J]]


class FairQueue(Generic[J]):
    """The queue. It knows no clock and no thread; whoever shares it holds a lock. Each step takes time logarithmic in
    the number of clients, except `evict`, which looks at all of them."""

    def __init__(self) -> None:
        self._clients: dict[str, _Client[J]] = {}
        # An entry counts only while its number is the client's own.
        # (when it would be done, number, client): those who wait and whose tag has come.
        self._line: list[_Entry[J]] = []
        # (tag, number, client): those who wait and whose tag is to come, and those who wait for nothing until it has.
        self._later: list[_Entry[J]] = []
        self._now = 0.0
        self._numbers = self._count = self._active = 0

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
            client = self._clients[job.client] = _Client(job.client)
        if not client.queues:
            client.tag = max(client.tag, self._now)
            self._active += 1
        client.add(job)
        self._count += 1
        if client.next() is job:
            self._enter(client)

    def remove(self, job: J) -> bool:
        """Take `job` out, whoever's turn it is. Whether it still waited."""
        client = self._clients.get(job.client)
        if client is None or not client.remove(job):
            return False
        self._count -= 1
        self._active -= not client.queues
        self._enter(client)
        return True

    def evict(self) -> J:
        """Take out the newest job of the client whose jobs are the most work together."""
        job = max(self._clients.values(), key=lambda client: client.work).newest()
        self.remove(job)
        return job

    def take(self, count: int, work: int) -> list[J]:
        """Take out what runs next: a job, and others of its bucket as far as they fit into `count` and `work`."""
        client = self._pop()
        assert client is not None, "nothing waits"
        return self._filled(client, client.next(), count, work)

    def short(self, count: int, work: int) -> list[J]:
        """As `take`, but only what fits into `work`, which may be nothing: the next client with such a job."""
        aside: list[_Client[J]] = []
        jobs: list[J] = []
        while not jobs and len(aside) < _LOOK and (client := self._pop(not aside)) is not None:
            job = client.first(min(client.queues))
            if job.work <= work:
                jobs = self._filled(client, job, count, work)
            else:
                aside.append(client)
        for client in aside:
            self._enter(client)
        return jobs

    def _filled(self, client: _Client[J], first: J, count: int, work: int) -> list[J]:
        client.turns += 1
        jobs, left = [first], work - first.work
        self._serve(client, first)
        aside: list[_Client[J]] = []
        while len(jobs) < count and len(aside) < _LOOK and (other := self._pop(not aside)) is not None:
            job = other.first(first.bucket) if first.bucket in other.queues else None
            if job is None or job.work > left:
                aside.append(other)
                continue
            left -= job.work
            jobs.append(job)
            self._serve(other, job)
        for other in aside:
            self._enter(other)
        if not self._count:  # nobody has anything to make up for
            self._clients.clear()
            self._line.clear()
            self._later.clear()
            self._now = 0.0
        return jobs

    def _serve(self, client: _Client[J], job: J) -> None:
        self._now += job.work / self._active
        client.tag += job.work
        self.remove(job)

    def _enter(self, client: _Client[J]) -> None:
        """Put `client` where it belongs; wherever it was before does not count any more."""
        self._numbers += 1
        client.entry = self._numbers
        if client.queues and client.tag <= self._now:
            line, key = self._line, client.tag + client.next().work
        else:
            line, key = self._later, client.tag
        heapq.heappush(line, (key, client.entry, client))
        if len(line) > 2 * len(self._clients) + _LOOK:
            line[:] = [entry for entry in line if entry[1] == entry[2].entry]
            heapq.heapify(line)

    def _pop(self, idle: bool = True) -> _Client[J] | None:
        """Who is next of those whose tag has come. Where there is nobody, virtual time goes on to the next tag if that
        would leave the model `idle`; else None, as when nobody waits.
        """
        while True:
            self._advance()
            while self._line:
                _, number, client = heapq.heappop(self._line)
                if client.entry == number:
                    return client
            if not idle or not self._later:
                return None
            self._now = max(self._now, self._later[0][0])

    def _advance(self) -> None:
        """Let those in whose tag has come, and forget those who have nothing to make up for."""
        while self._later and self._later[0][0] <= self._now:
            _, number, client = heapq.heappop(self._later)
            if client.entry != number:
                continue
            if client.queues:
                self._enter(client)
            else:
                del self._clients[client.key]
