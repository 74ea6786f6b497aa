"""The answer so far: its text, who wrote which step of it, and whether it goes round in circles."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from stepwise.asking.pair import PairModel
from stepwise.metrics import StepwiseMetrics
from stepwise.thoughts import Shown
from upstream.endpoint import JSON
from upstream.tokens import Token

_LOOP_DRAFTS = 2  # a draft that repeats earlier steps this often in a row is rejected
_LOOP_STEPS = 4  # an answer that repeats earlier steps this often in a row is ended


class Text(NamedTuple):
    """Something for the client. `entries`: the upstream's log probabilities of its tokens."""

    model: PairModel
    content: str = ""
    reasoning: str = ""
    entries: tuple[object, ...] = ()


@dataclass(frozen=True, slots=True)
class Record:
    """Who wrote what: one step of the answer.

    `action`: keep (a draft that was kept), redo (the large model's, for a rejected draft), loop (likewise, because the
    draft repeated earlier steps), unjudged (likewise, because the strategy failed), large (the strategy asked for it
    outright), handover, takeover (the other model failed), rest (written without being judged), cut (a beginning that
    the other model finished). `score`: the strategy's, and `mark`: the large model's, of the draft. `characters`: how
    long its text is in the answer.
    """

    model: str
    action: str
    tokens: int
    score: float | None = None
    characters: int = 0
    mark: float | None = None

    def to_json(self, index: int) -> JSON:
        judged = {"score": self.score, "mark": self.mark}
        said = {name: round(value, 4) for name, value in judged.items() if value is not None}
        told = {"index": index, "model": self.model, "action": self.action, "tokens": self.tokens}
        return {**told, "characters": self.characters, **said}


class Transcript:
    """What the client has been or is being given, as text (`parts`, `tokens`), as what it has not taken yet (`out`),
    and step by step (`records`)."""

    def __init__(self, metrics: StepwiseMetrics, *, apart: bool = False) -> None:
        """`apart`: the client gets thoughts in a field of their own."""
        self.parts: list[str] = []
        self.tokens = 0
        self.out: deque[Text] = deque()
        self.records: list[Record] = []
        self._metrics = metrics
        self._shown = Shown() if apart else None

    @property
    def text(self) -> str:
        return "".join(self.parts)

    def say(self, model: PairModel, tokens: Iterable[Token]) -> int:
        """Text becomes part of the answer, and goes to the client token by token, as it was made: a step that was kept
        would else come as one jump. Returns how many tokens that is."""
        tokens = list(tokens)
        size = sum(token.size for token in tokens)
        self.tokens += size
        entries: list[object] = []  # those of tokens without text, parts of a character, go with the next one's
        for token in tokens:
            if token.raw:
                entries.append(token.raw)
            if token.text:
                parts = self._shown.feed(token.text) if self._shown else ("", token.text)
                if self._show(model, parts, tuple(entries)):
                    entries.clear()
        if text := "".join(token.text for token in tokens):
            self.parts.append(text)
        return size

    def end(self, model: PairModel) -> None:
        """The answer is complete: what may have been a tag is none."""
        if self._shown is not None:
            self._show(model, self._shown.finish(), ())

    def _show(self, model: PairModel, parts: tuple[str, str], entries: tuple[object, ...]) -> bool:
        """Whether something has gone out of the thoughts or of the answer."""
        thoughts, content = parts
        if thoughts:
            self.out.append(Text(model, reasoning=thoughts, entries=() if content else entries))
        if content:
            self.out.append(Text(model, content, entries=entries))
        return bool(thoughts or content)

    def record(self, record: Record) -> None:
        """A step is complete."""
        self.records.append(record)
        self._metrics.steps[record.model, record.action] += 1


class Loops:
    """Accepted steps in a row that repeated an earlier one."""

    def __init__(self) -> None:
        self._in_a_row = 0

    def count(self, repeats: bool) -> None:
        """A step was accepted."""
        self._in_a_row = self._in_a_row + 1 if repeats else 0

    def caught(self, repeats: bool) -> bool:
        """Is a draft to be rejected because it `repeats` an earlier step?"""
        return repeats and self._in_a_row + 1 >= _LOOP_DRAFTS

    @property
    def endless(self) -> bool:
        """Is the answer to be ended?"""
        return self._in_a_row >= _LOOP_STEPS
