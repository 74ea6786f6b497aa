"""Loads a policy whole and notices when its file changes, a ConfigMap's `..data` swap included."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from config.build import build, unservable
from config.load import parse
from config.problem import PolicyError
from config.resources import Resources
from decisions.engine import Engine
from signals.files import POLICY, read

log = logging.getLogger("pointsman.config")

Gate = Callable[[Engine, Path], None]
"""Runs a cases file against an engine; raises `Rejected` when a case fails."""


class Rejected(Exception):
    """A policy that loads but must not be used: its own test cases fail. The text says which."""


@dataclass(frozen=True, slots=True)
class Loaded:
    """A policy in force: the file as it was read and the engine built from exactly those bytes.

    `candidate` is a second policy beside it, when there is one; `resources` are for those that come after it.
    """

    source: bytes
    engine: Engine
    resources: Resources = field(default_factory=Resources)
    candidate: Loaded | None = None

    @property
    def engines(self) -> tuple[Engine, ...]:
        """The engine of the policy in force and, where there is a candidate, the candidate's."""
        return (self.engine,) if self.candidate is None else (self.engine, self.candidate.engine)

    @property
    def sources(self) -> tuple[bytes, bytes | None]:
        """The files as they were read: the policy, the candidate."""
        return self.source, None if self.candidate is None else self.candidate.source

    def close(self) -> None:
        """Release what the engines hold."""
        self.engine.close()
        if self.candidate is not None:
            self.candidate.close()


def cases_file(policy: Path) -> Path:
    """Where a policy's own test cases lie: `policy.yaml` has `policy.cases.yaml` beside it."""
    return policy.with_suffix(".cases.yaml")


def load(
    path: Path, gate: Gate | None = None, candidate: Path | None = None, resources: Resources | None = None
) -> Loaded:
    """Read, check and build the policy at `path`, and run its cases if it has any and there is a `gate`.

    A `candidate` with errors is left out, and the log says why: it must not keep the policy from being loaded. Raises
    PolicyError, Rejected, or OSError when the file cannot be read. A failed load leaves nothing behind.
    """
    resources = resources or Resources()
    loaded = _gated(path, gate, resources)
    if candidate is None:
        return loaded
    try:
        return replace(loaded, candidate=_gated(candidate, gate, resources))
    except (PolicyError, Rejected, OSError) as error:
        log.error("candidate_rejected", extra={"reasons": str(error).splitlines()})
        return loaded


def _gated(path: Path, gate: Gate | None, resources: Resources) -> Loaded:
    source = read(path, POLICY)
    policy = parse(source, str(path))
    if problems := unservable(policy):
        raise PolicyError(problems)
    loaded = Loaded(source, build(policy, resources), resources)
    cases = cases_file(path)
    if gate is not None and cases.exists():
        try:
            gate(loaded.engine, cases)
        except BaseException:
            loaded.close()
            raise
    return loaded


def _built(source: bytes, path: Path, resources: Resources) -> Loaded:
    return Loaded(source, build(parse(source, str(path)), resources), resources)


def from_sources(
    sources: tuple[bytes, bytes | None], path: Path, candidate: Path | None, resources: Resources
) -> Loaded:
    """Build what was read from `path` and `candidate` and found good. Raises PolicyError."""
    loaded = _built(sources[0], path, resources)
    if sources[1] is None or candidate is None:
        return loaded
    return replace(loaded, candidate=_built(sources[1], candidate, resources))


class Watcher:
    """Calls a reload when the content of a policy, or of its cases, is no longer what it was.

    The files are polled: inotify does not see a ConfigMap's symlink being swapped above the file. A poll compares what
    `stat` says of the resolved file; only when that differs is the content read and hashed. A file that is missing for
    a moment (an editor's rename) is waited for. Whether the reload takes the new content makes no difference here: a
    policy with errors is not tried again until the file changes once more.
    """

    def __init__(self, path: Path, interval: float = 1.0, candidate: Path | None = None) -> None:
        policies = (path,) if candidate is None else (path, candidate)
        self._files = tuple(file for policy in policies for file in (policy, cases_file(policy)))
        self._interval = interval
        self._stamp = self._stamps()
        self._digest = self._digests()

    async def run(self, reload: Callable[[], Awaitable[object]]) -> None:
        """Poll until cancelled."""
        while True:
            await asyncio.sleep(self._interval)
            if await self.changed():
                await reload()

    async def changed(self) -> bool:
        """Look once, and say whether there is something new."""
        stamp = self._stamps()
        if stamp == self._stamp:
            return False
        await asyncio.sleep(min(0.05, self._interval))  # let a writer that is not atomic finish
        if stamp != self._stamps() or stamp[0] is None:
            return False
        digest = self._digests()
        self._stamp = stamp
        if digest == self._digest or digest[0] is None:
            return False
        self._digest = digest
        return True

    def _stamps(self) -> tuple[tuple[str, int, int, int, int] | None, ...]:
        return tuple(map(_stamp, self._files))

    def _digests(self) -> tuple[str | None, ...]:
        return tuple(map(_digest, self._files))


def _stamp(path: Path) -> tuple[str, int, int, int, int] | None:
    try:
        resolved = os.path.realpath(path)
        found = os.stat(resolved)
    except OSError:
        return None
    return resolved, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _digest(path: Path) -> str | None:
    try:
        return hashlib.sha256(read(path, POLICY)).hexdigest()
    except OSError:
        return None
