"""Who can write answers instead of the plain route, by the key in a decision.

A new writer is one file with its `WriterKind` (upstream.writer), and a line here.
"""

from __future__ import annotations

from typing import Final

from panel import kind as panel
from stepwise import kind as stepwise
from upstream.writer import WriterKind

WRITERS: Final[tuple[WriterKind, ...]] = (stepwise.KIND, panel.KIND)

ACTIONS: Final = ("route", "respond", *(kind.name for kind in WRITERS))
"""What a decision may do: it has exactly one of these keys."""

ANSWERS: Final = ("mask", "cut", "respond", "flag")
"""What a decision with `on: answer` may do."""
