"""The public data that the shipped models learn from, split by a hash of the text into training and held-out parts."""

from __future__ import annotations

import gzip
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILES: Final = (
    "difficulty/gsm8k",
    "domain/mmlu",
    "injection/bipia_attacks",
    "injection/bipia_contexts",
    "intent/banking77",
    "intent/clinc150",
    "jailbreak/benign_role_prompts",
    "jailbreak/inthewild",
    "language/sentences",
    "pii/presidio_synth",
    "reasoning/gsm8k_train",
    "selection/llmrouter_scores",
)
_HELD: Final = 15  # per cent of the texts
_CHOICES: Final = re.compile(r"\nA\. ")


def question_of(prompt: str) -> str:
    """A multiple-choice prompt without its choices."""
    return _CHOICES.split(prompt, maxsplit=1)[0]


def held(text: str) -> bool:
    """Whether `text` belongs to the held-out part: decided by SHA-256, so it is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100 < _HELD


@dataclass(frozen=True, slots=True)
class Source:
    """All rows of one file and which of them may be learned from."""

    rows: tuple[dict[str, Any], ...]
    key: str

    def part(self, held_out: bool) -> list[dict[str, Any]]:
        """The held-out rows, or the ones to learn from."""
        return [row for row in self.rows if held(question_of(row[self.key])) is held_out]


class Data:
    """The files of a data folder, read once. `checksums` maps each file to its SHA-256."""

    def __init__(self, folder: Path) -> None:
        self.sources: dict[str, Source] = {}
        self.checksums: dict[str, str] = {}
        for name in FILES:
            path = folder / f"{name}.jsonl.gz"
            try:
                raw = path.read_bytes()
            except OSError as error:
                raise SystemExit(
                    f"{path}: {error.strerror}; --data must name the folder described in docs/models.md"
                ) from None
            self.checksums[name] = hashlib.sha256(raw).hexdigest()
            rows = tuple(json.loads(line) for line in gzip.decompress(raw).splitlines())
            key = next(key for key in ("prompt", "question", "text", "context") if key in rows[0])
            self.sources[name] = Source(rows, "context" if name == "injection/bipia_contexts" else key)

    def part(self, name: str, held_out: bool = False) -> list[dict[str, Any]]:
        return self.sources[name].part(held_out)

    def texts(self, held_out: bool = False) -> Iterable[str]:
        """Every text of one part, multiple-choice questions with their choices."""
        for source in self.sources.values():
            for row in source.part(held_out):
                yield row[source.key]
