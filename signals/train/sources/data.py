"""The public data that the shipped models learn from, split by a hash of the text into training and held-out parts."""

from __future__ import annotations

import gzip
import hashlib
import json
import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
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
    "wild/atk_cse_direct",
    "wild/atk_cse_indirect_tool",
    "wild/atk_cse_multi",
    "wild/atk_deepset",
    "wild/atk_jbb_aim",
    "wild/atk_jbb_dsn",
    "wild/atk_jbb_gcg",
    "wild/atk_jbb_pair",
    "wild/atk_jbb_rs",
    "wild/dm_pubmedqa",
    "wild/ok_arena_v01",
    "wild/ok_bfcl_react",
    "wild/ok_bfcl_tools",
    "wild/ok_deepset",
    "wild/ok_humaneval",
    "wild/ok_mtbench",
    "wild/ok_pubmed_tool",
    "wild/ok_security_frr",
    "wild/ok_vicuna",
    "wild/rs_aqua",
    "wild/rs_bbh",
)
_HELD: Final = 15  # per cent of the texts
_CHOICES: Final = re.compile(r"\nA\. ")


def question_of(prompt: str) -> str:
    """A multiple-choice prompt without its choices."""
    return _CHOICES.split(prompt, maxsplit=1)[0]


def held(text: str) -> bool:
    """Whether `text` belongs to the held-out part: decided by SHA-256, so it is the same everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big") % 100 < _HELD


def said(request: dict[str, Any], role: str) -> str:
    """What the chat body holds of one role: the last message of the user, all that tools returned."""
    texts = [message["content"] for message in request["messages"] if message["role"] == role and message["content"]]
    return "\n".join(texts[-1:] if role == "user" else texts)


@cache
def _python_files(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.py"))


def library(folder: Path, size: int, seed: int) -> Iterator[str]:
    """Code as an agent's tool returns it: pieces of up to 8,000 characters of `size` Python files below `folder`."""
    chance = random.Random(seed)
    files = _python_files(folder)
    for path in chance.sample(files, min(size, len(files))):
        text = path.read_text(errors="replace")
        if len(text) > 200:
            start = chance.randrange(max(1, len(text) - 8000))
            yield text[start : start + chance.randint(500, 8000)]


@dataclass(frozen=True, slots=True)
class Source:
    """All rows of one file and which of them may be learned from."""

    rows: tuple[dict[str, Any], ...]
    key: str

    def part(self, held_out: bool) -> list[dict[str, Any]]:
        """The held-out rows, or the ones to learn from."""
        return [row for row in self.rows if held(question_of(self.text(row))) is held_out]

    def text(self, row: dict[str, Any]) -> str:
        """What a row is about; of a chat body what its user says, which keeps rows of one question together."""
        return said(row[self.key], "user") if self.key == "request" else str(row[self.key])


class Data:
    """The files of a data folder, read once. `checksums` maps each file to its SHA-256. `limit`: of each file no more
    than so many rows count, evenly chosen, for a trial of the training. `assistant`: the wheel of assistant.py."""

    def __init__(
        self, folder: Path, files: Sequence[str] = FILES, limit: int | None = None, assistant: Path | None = None
    ) -> None:
        self.limit, self.assistant = limit, assistant
        self.sources: dict[str, Source] = {}
        self.checksums: dict[str, str] = {}
        for name in files:
            path = folder / f"{name}.jsonl.gz"
            try:
                raw = path.read_bytes()
            except OSError as error:
                raise SystemExit(
                    f"{path}: {error.strerror}; --data must name the folder described in docs/models.md"
                ) from None
            self.checksums[name] = hashlib.sha256(raw).hexdigest()
            rows = tuple(json.loads(line) for line in gzip.decompress(raw).splitlines())
            rows = rows[:: -(-len(rows) // limit)] if limit else rows
            key = next(key for key in ("prompt", "question", "text", "context", "request") if key in rows[0])
            self.sources[name] = Source(rows, "context" if name == "injection/bipia_contexts" else key)

    def part(self, name: str, held_out: bool = False) -> list[dict[str, Any]]:
        return self.sources[name].part(held_out)

    def texts(self, held_out: bool = False) -> Iterable[str]:
        """Every text of one part, multiple-choice questions with their choices."""
        for source in self.sources.values():
            for row in source.part(held_out):
                yield source.text(row)
