"""The names of the training algorithms, apart from what runs them, which takes seconds to import."""

from __future__ import annotations

PLAIN = ("supervised", "ppo", "vtrace")
ASK = "-ask"
ALGORITHMS = (*PLAIN, *(name + ASK for name in PLAIN))
"""The last three may ask; they need the large model's marks."""
