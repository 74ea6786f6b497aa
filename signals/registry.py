"""Every kind of signal there is. A new kind is one file and one line here."""

from __future__ import annotations

from signals.header import Header
from signals.signal import Signal

KINDS: tuple[type[Signal], ...] = (Header,)

BY_NAME: dict[str, type[Signal]] = {kind.kind: kind for kind in KINDS}
