"""Ports for servers that cannot choose one themselves."""

from __future__ import annotations

import os
import random
import socket
from itertools import cycle

FIRST, SHARE = 12_000, 1_000
"""Below what Linux gives to clients (32768 and up), and each test process of a run has a share of its own."""
_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 16

_TURNS = cycle(random.SystemRandom().sample(range(FIRST + _WORKER * SHARE, FIRST + (_WORKER + 1) * SHARE), SHARE))


def free_port() -> int:
    """A TCP port of loopback that nobody listens on, and that no connection and no other test takes meanwhile: none is
    given again before all others were."""
    for port in _TURNS:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("0.0.0.0", port))
            except OSError:
                continue
            return port
    raise AssertionError("the turns have no end")
