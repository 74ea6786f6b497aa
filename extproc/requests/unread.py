"""Requests that were refused or passed on unread: counted by the caller, and told to the log without flooding it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger("pointsman.unread")

EVERY_S = 1.0
"""Seconds between two lines of one reason."""
SHOWN = 200
"""Characters of a path that are shown."""


class UnreadLog:
    """At most one line per reason and second; each line says how many requests there were since the last."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._told: dict[str, float] = {}
        self._since: dict[str, int] = {}

    def tell(self, reason: str, method: str, path: str) -> None:
        """A request with this path was not read; `reason` is from a closed set. The query is not shown."""
        now = self._clock()
        count = self._since.get(reason, 0) + 1
        if now - self._told.get(reason, float("-inf")) < EVERY_S:
            self._since[reason] = count
            return
        self._told[reason] = now
        self._since[reason] = 0
        shown = path.partition("?")[0][:SHOWN].encode("unicode_escape").decode()
        extra = {"reason": reason, "method": method[:16], "path": shown, "requests": count}
        log.warning("unread", extra=extra)
