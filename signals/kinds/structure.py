"""`structure`: how a text is built: code fences, questions, list items, patterns, length."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice
from typing import Any, Literal, Self

import re2
from pydantic import Field, field_validator, model_validator

from signals.bounds import check, idle, within
from signals.facts import Facts
from signals.reading import Reading, Unavailable, of, unknown
from signals.request import Scope
from signals.signal import Doubt, Ends, Params, SearchParams, Shared, Signal
from signals.text.automaton import bounded
from signals.text.patterns import Pattern, compiled, doubts, plain_pattern
from signals.text.view import plain_keyword, slices

_MANY = 4000
"""Occurrences after which counting stops, so that no text keeps the event loop busy."""

_QUESTION_MARKS = (
    "?\uff1f\u061f\u2047\u2048\u2049\u1367\u055e"  # Latin, full-width, Arabic, double ones, Ethiopic, Armenian
)
_NAMED = {
    # A fence opens or closes a block (CommonMark 4.5), indented as far as it likes in a list.
    "code_fences": re2.compile(rb"(?m)^[ \t]*(?:```|~~~)"),
    # Several question marks in a row are one question.
    "questions": re2.compile(f"[{_QUESTION_MARKS}]+".encode()),
    # Bullets and numbers as in Markdown and in plain mail.
    "list_items": re2.compile("(?m)(^[ \\t]*(?:[-*+•‣–]|\\(?\\d{1,3}[.)])[ \\t]+)[^\\s]".encode()),
}
_ASCII = {"questions": re.compile(rb"\?+")}
"""The same for text that is all ASCII and short, where it is quicker. RE2 releases the interpreter lock meanwhile."""
_SHORT = 64 * 1024
_ASCII_WORD = re.compile(r"[A-Za-z0-9_]")
_REJECTED = 10_000
"""How many occurrences of keywords inside other words are skipped; a text with more is Unknown."""
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_UNSPACED}]|[^\\W{_UNSPACED}]+")

Named = Literal["code_fences", "questions", "list_items", "bytes"]


class Custom(Params):
    """An expression or keywords to look for: exactly one of the two."""

    regex: Pattern | None = Field(None, description="An RE2 expression.")
    keywords: list[str] | None = Field(
        None, min_length=1, description="Whole words and phrases, in upper or lower case."
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.regex is None) == (self.keywords is None):
            raise ValueError("exactly one of regex, keywords is needed")
        return self

    @field_validator("keywords")
    @classmethod
    def _not_empty(cls, keywords: list[str] | None) -> list[str] | None:
        if any(not keyword.strip() for keyword in keywords or ()):
            raise ValueError("a keyword is empty")
        return keywords


Feature = Named | Custom


class StructureParams(SearchParams):
    """Exactly one of count, density, exists, sequence."""

    count: Feature | None = Field(
        None,
        description="How often: `code_fences` (blocks), `questions`, `list_items`, `bytes` (length in UTF-8), "
        "`{regex: EXPRESSION}` or `{keywords: [...]}`. Needs at_least or at_most.",
    )
    density: Feature | None = Field(
        None, description="How often per 100 words (a Han or kana character is a word). Needs at_least or at_most."
    )
    exists: Feature | None = Field(None, description="Whether it is there at all.")
    sequence: list[Feature] | None = Field(
        None, min_length=2, description="Whether these follow one another in this order, whatever lies between."
    )
    at_least: float | None = Field(None, ge=0, description="The least count or density that matches.")
    at_most: float | None = Field(None, ge=0, description="The greatest count or density that matches.")

    @model_validator(mode="after")
    def _one_test(self) -> Self:
        given = [name for name in ("count", "density", "exists", "sequence") if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError("exactly one of count, density, exists, sequence is needed")
        if given[0] in ("count", "density"):
            check(self.at_least, self.at_most)
        elif self.at_least is not None or self.at_most is not None:
            raise ValueError(f"at_least and at_most go with count and density, not with {given[0]}")
        if self.count is None and "bytes" in (self.density, self.exists, *(self.sequence or ())):
            raise ValueError("bytes can only be counted")
        return self

    def span(self) -> Ends:
        return 0, None

    def doubts(self) -> Iterator[Doubt]:
        yield from idle(self, 0, None)
        for name in ("count", "density", "exists"):
            feature = getattr(self, name)
            if isinstance(feature, Custom) and feature.regex is not None:
                yield from doubts(feature.regex, name, "regex")


class Structure(Signal):
    """Reads how often something is in the text, or in which order. The score is the count or the density."""

    kind = "structure"
    Parameters = StructureParams
    answers = True
    scored = True

    def __init__(self, name: str, params: StructureParams, shared: Shared) -> None:
        super().__init__(name, params, shared)
        self._scope: Scope = params.in_
        self._least, self._most = params.at_least, params.at_most
        self._bytes = params.count == "bytes"
        self._per_words = params.density is not None
        single = next((given for given in (params.count, params.density, params.exists) if given is not None), None)
        features = params.sequence if params.sequence is not None else [single]
        self._finders = (
            [] if self._bytes else [_Finder(feature, params.exact) for feature in features if feature is not None]
        )
        self._exact = params.exact or all(isinstance(feature, str) for feature in features)
        # A count is exact up to its bounds at least.
        self._enough = int(max(_MANY, self._least or 0, self._most or 0)) + 1
        self._counts = params.count is not None or params.density is not None

    def read(self, facts: Facts) -> Reading:
        text = facts.request.text(self._scope)
        data = text.encode(errors="replace")
        if self._bytes:
            return Reading(within(len(data), self._least, self._most), float(len(data)))
        plain = text if self._exact else facts.request.spellings(self._scope)[0][1]
        texts = [data] if plain is text else [data, plain.encode(errors="replace")]
        if not self._counts:
            return of(any(map(self._in_order, texts)))
        finder = self._finders[0]
        found = max(sum(1 for _ in islice(finder.spans(searched), self._enough)) for searched in texts)
        value = float((found + 1) // 2 if finder.paired else found)
        if self._per_words and found:
            if found == self._enough:
                return unknown("too_long")
            value = 100 * value / max(sum(len(_WORD.findall(part)) for part in slices(plain)), 1)
        return Reading(within(value, self._least, self._most), value)

    def _in_order(self, data: bytes) -> bool:
        at = 0
        for finder in self._finders:
            span = next(finder.spans(data, at), None)
            if span is None:
                return False
            at = span[1]
        return True


class _Finder:
    """Finds one feature in UTF-8 text. `paired`: two occurrences count as one (a code fence opens and closes)."""

    def __init__(self, feature: Feature, exact: bool) -> None:
        self.paired = feature == "code_fences"
        self._whole = False
        self._group = 1 if feature == "list_items" else 0
        self._pattern: Any
        self._ascii: Any
        if isinstance(feature, str):
            self._pattern = _NAMED[feature]
            self._ascii = _ASCII.get(feature, self._pattern)
        elif feature.regex is not None:
            pattern = feature.regex
            if not exact and plain_pattern(pattern) != pattern:
                pattern = f"(?:{pattern})|(?:{plain_pattern(pattern)})"
            self._pattern = self._ascii = compiled(pattern.encode())
        else:
            keywords = [keyword if exact else plain_keyword(keyword) for keyword in feature.keywords or ()]
            # The longest first: of "stack" and "stack trace", the text's own length decides.
            longest = sorted(keywords, key=len, reverse=True)
            self._whole = True
            self._pattern = self._ascii = compiled(
                ("(?i)" + "|".join(_phrase(keyword) for keyword in longest)).encode()
            )

    def spans(self, data: bytes, start: int = 0) -> Iterator[tuple[int, int]]:
        """Start and end, in bytes, of each occurrence from `start` on."""
        pattern = self._ascii if len(data) <= _SHORT and data.isascii() else self._pattern
        rejected = 0
        for found in pattern.finditer(data, start):
            span: tuple[int, int] = found.span(self._group)
            if not self._whole or bounded(data, *span):
                yield span
            elif (rejected := rejected + 1) > _REJECTED:
                raise Unavailable("too_long")


def _phrase(keyword: str) -> str:
    """The pattern of a keyword. RE2 sees the bounds of ASCII words itself; `bounded` looks at the rest."""
    pattern = r"\s+".join(re2.escape(word) for word in keyword.split())
    before = r"\b" if _ASCII_WORD.match(keyword.strip()[0]) else ""
    after = r"\b" if _ASCII_WORD.match(keyword.strip()[-1]) else ""
    return before + pattern + after
