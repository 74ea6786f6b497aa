"""How long a peer may take: for its greeting, between frames, inside one, to take what we wrote, to answer a PING."""

from __future__ import annotations

from typing import Final

from extproc.transport.seam import TransportLimits

FINE: Final = 0
CUT: Final = 1  # the socket is closed without a word
ASK: Final = 2  # a PING is due


class Liveness:
    """When a connection last did what. Times are those of the event loop's clock in seconds; 0.0 is never."""

    def __init__(self, limits: TransportLimits, now: float) -> None:
        self.limits = limits
        self.heard = True  # since the last look
        self.born = now
        self.heard_at = now
        self.used_at = now  # it carried a stream
        self.asked_at = 0.0  # a PING of ours is out
        self.paused_at = 0.0

    def look(self, now: float, used: bool) -> None:
        """Once in a while. `used`: it carries a stream."""
        if self.heard:
            self.heard = False
            self.heard_at = now
        if used:
            self.used_at = now

    def aged(self, now: float) -> bool:
        """Has it been idle or alive for so long that it is to be drained?"""
        limits = self.limits
        return now - self.used_at > limits.idle_s or (limits.max_age_s > 0 and now - self.born > limits.max_age_s)

    def silence(self, now: float, used: bool) -> int:
        """What to do about a peer that says nothing: FINE, CUT or ASK."""
        limits = self.limits
        if self.heard_at > self.asked_at:
            self.asked_at = 0.0
        if self.asked_at:
            return CUT if now - self.asked_at > limits.stall_s else FINE
        if used and now - self.heard_at > limits.keepalive_s:
            self.asked_at = now
            return ASK
        return FINE
