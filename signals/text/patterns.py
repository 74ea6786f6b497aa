"""Regular expressions in text: one RE2 set for all patterns of a policy (linear time whatever the text)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from itertools import islice
from typing import Annotated, Any, Final

import re2
from pydantic import AfterValidator, Field

from signals.reading import Unavailable
from signals.signal import Doubt
from signals.text.hits import Searcher
from signals.text.view import view

_MEMORY = 64 << 20
"""Bytes that the set's automaton may take; RE2 forgets and rebuilds states beyond that."""

MOST: Final = 20_000
"""The most patterns of a policy, and the most keywords: each has one bit of the integer that says what was found."""
INSTRUCTIONS: Final = 3_000_000
"""The most instructions that RE2 may compile the patterns of one policy to, together: two seconds' work."""
_LARGEST: Final = 120_000
"""Instructions that RE2 has made by the time it finds a pattern too large."""

left: ContextVar[list[int] | None] = ContextVar("left", default=None)
"""How many instructions the patterns of the policy that is being read may have (one number; None: no limit)."""
MANY_PLACES: Final = 10_000
"""Places of patterns in one text that are looked at; a text with more is Unknown."""
_STRANGE = re.compile(r"[^\x00-\x7f]+")

_CANARY = r"\z"
"""Matches every text. RE2's set reports a lack of memory as 'nothing matched'; then this is missing too."""


def compiled(pattern: str | bytes) -> Any:
    """The compiled `pattern`. ValueError when RE2 does not take it (no look-around, no back-references).

    RE2 would log to standard error on its own; its errors are ours to report.
    """
    try:
        return re2.compile(pattern, _options())
    except re2.error as error:
        why = error.args[0]
        text = why.decode(errors="replace") if isinstance(why, bytes) else str(why)
        raise ValueError(f"{pattern!r} is not an RE2 expression: {_plainly(text)}") from None


_WHY: Final = {
    "missing )": "a ( is not closed",
    "unexpected )": "a ) closes nothing",
    "missing ]": "a [ is not closed",
    "no argument for repetition operator": "{} has nothing before it to repeat; the character itself is written \\{}",
    "bad repetition operator": "{} repeats what is repeated already",
    "invalid repetition size": "{} is more repetitions than RE2 takes, which are 1000",
    "invalid perl operator": "RE2 has no {}: it cannot look ahead or behind, since its time is linear",
    "invalid escape sequence": "RE2 does not know {}; back-references are nothing that it has",
    "trailing \\": "its last \\ has nothing to escape",
}
"""RE2's errors (github.com/google/re2, re2/regexp.cc) in plain words; `{}` is the piece that it names."""


def _plainly(why: str) -> str:
    kind, _, piece = why.partition(": ")
    words = next((words for known, words in _WHY.items() if kind.startswith(known)), None)
    return why if words is None else words.replace("{}", piece)


def _options() -> Any:
    options = re2.Options()
    options.log_errors = False
    return options


def checked(pattern: str) -> str:
    """`pattern` itself, or ValueError when RE2 does not take it or there is nothing `left`."""
    budget = left.get()
    if budget is None:
        compiled(pattern)
        return pattern
    if budget[0] <= 0:
        raise ValueError("the policy's regular expressions together are too large: this one is not looked at any more")
    budget[0] -= _LARGEST
    made = compiled(pattern)
    budget[0] += _LARGEST - made.programsize
    return pattern


_SAMPLES: Final = ("", "\x02", "Zq9 ~.", "\u4e2d\u00e9\n-")
"""Texts that have next to nothing in common: a pattern found in all of them is found everywhere."""
_LONG: Final = 300
_MANY: Final = 1000
_DELIMITED = re.compile(r"/(.*)/[gimsuxy]*[gix][gimsuxy]*", re.DOTALL)


def doubts(given: str | Sequence[str], *path: str | int) -> Iterator[Doubt]:
    """Patterns, one or a list at `path`, that are found in every text, or that stand between slashes as in other
    languages. Of very many, and of long ones, not all are looked at."""
    listed = not isinstance(given, str)
    patterns = [given] if isinstance(given, str) else given
    for index, pattern in enumerate(patterns[:_MANY]):
        if len(pattern) > _LONG:
            continue
        place = (*path, index) if listed else path
        if _DELIMITED.fullmatch(pattern):
            message = f"{pattern!r} is found only with its slashes: leave them out, and write flags as (?i) in front"
            yield Doubt(place, "L328", message)
        elif all(compiled(pattern).search(text) for text in _SAMPLES):
            message = (
                f"{pattern!r} is found in every text, the empty one too: it may match nothing at all; ask for more"
            )
            yield Doubt(place, "L322", message)


Pattern = Annotated[str, Field(min_length=1), AfterValidator(checked)]
"""A parameter that holds an RE2 expression (https://github.com/google/re2/wiki/Syntax)."""


def plain_pattern(pattern: str) -> str:
    """A pattern as it finds its own words in the view of a text; itself where that is not certain to be the same."""
    if pattern.isascii() or "[" in pattern:
        return pattern
    words = [view(found) for found in _STRANGE.findall(pattern)]
    if not all(words):  # what follows, a quantifier say, would belong to another character
        return pattern
    parts = iter(words)
    try:
        return checked(_STRANGE.sub(lambda found: str(re2.escape(next(parts))), pattern))
    except ValueError:
        return pattern


def places(patterns: Sequence[Any], text: str) -> list[tuple[int, int]]:
    """Where `text` has what `patterns`, compiled for bytes, find: first and last character but one, none of them empty.
    `Unavailable` (`too_many`) where there are very many."""
    data = text.encode(errors="replace")
    found = [
        (start, end)
        for pattern in patterns
        for start, end in (match.span() for match in islice(pattern.finditer(data), MANY_PLACES))
        if end > start
    ]
    if len(found) >= MANY_PLACES:
        raise Unavailable("too_many")
    return found if len(data) == len(text) else in_characters(found, data)


def in_characters(found: Sequence[tuple[int, int]], data: bytes) -> list[tuple[int, int]]:
    """Spans of UTF-8 text, from bytes to characters."""
    chars: dict[int, int] = {}
    at = count = 0
    for place in sorted({place for span in found for place in span}):
        count += len(data[at:place].decode(errors="replace"))
        at, chars[place] = place, count
    return [(chars[start], chars[end]) for start, end in found]


class PatternSet(Searcher):
    """All patterns that were added, searched in one pass. `add` them, `freeze`, then `scan`."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._set: re2.Set | None = None
        self._canary = -1

    def add(self, pattern: str) -> int:
        """The pattern's number; it has been `checked`. ValueError when there are too many."""
        if pattern not in self._ids:
            if len(self._ids) >= MOST:
                raise ValueError(f"the policy has more than {MOST} regular expressions")
            self._ids[pattern] = len(self._ids)
        return self._ids[pattern]

    def freeze(self) -> None:
        """Compile the set. ValueError when the patterns together are too large for it."""
        options = _options()
        options.max_mem = _MEMORY
        made = re2.Set.SearchSet(options)
        for pattern in self._ids:
            made.Add(pattern)
        self._canary = made.Add(_CANARY)
        try:
            made.Compile()
        except re2.error:
            raise ValueError(f"the policy's {len(self._ids)} regular expressions together are too large") from None
        self._set = made

    def scan(self, text: str) -> int:
        """The numbers of the patterns found in `text`, as the bits of an integer. `Unavailable`: out of memory."""
        assert self._set is not None, "freeze first"
        matched = self._set.Match(text.encode(errors="replace"))
        if not matched or self._canary not in matched:
            raise Unavailable("pattern_memory")
        found = 0
        for number in matched:
            found |= 1 << number
        return found & ~(1 << self._canary)
