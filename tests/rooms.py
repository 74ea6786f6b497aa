"""The rooms of the product: its packages, but for the generated code (`proto`)."""

from __future__ import annotations

ROOMS = ("cli", "config", "console", "decisions", "extproc", "panel", "signals", "stepwise", "upstream")
